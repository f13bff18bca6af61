"""How long commands take before they do or refuse anything, against a bare start of the interpreter.

    python benchmarks/start_up.py

Each command runs as a whole process, in turn with `python -c pass`, on a network of one convolution.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from _record import write_record
from onnx_networks import save_picture_network

ROUNDS = 7
COMMANDS = {
    "--help": ["--help"],
    "convert missing.keras": ["convert", "missing.keras", "out.onnx"],
    "convert a.onnx": ["convert", "a.onnx", "out.onnx"],
    "verify a.onnx b.onnx --images": ["verify", "a.onnx", "b.onnx", "--images", "pictures"],
}
COUNT = "import sys; from workbench.cli.main import main\ntry: main({words!r})\nexcept SystemExit: pass\n" + (
    "sys.__stderr__.write('\\n%d' % sum(name.partition('.')[0] == 'workbench' for name in sys.modules))"
)


def seconds(command: list[str], folder: Path) -> float:
    start = time.perf_counter()
    subprocess.run(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    return time.perf_counter() - start


def modules(words: list[str], folder: Path) -> int:
    done = subprocess.run([sys.executable, "-c", COUNT.format(words=words)], cwd=folder, capture_output=True, text=True)
    return int(done.stderr.splitlines()[-1])


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for stem in "ab":
            save_picture_network(folder / f"{stem}.onnx")
        (folder / "pictures").mkdir()
        from workbench.core.files import data_file

        picture = data_file("street_scenes/images/scene_1000000.webp")
        (folder / "pictures" / "a.webp").write_bytes(picture.read_bytes())
        bare = [sys.executable, "-c", "pass"]
        results = {}
        for title, words in COMMANDS.items():
            command = [sys.executable, "-m", "workbench.cli.main", *words]
            pairs = [(seconds(command, folder), seconds(bare, folder)) for _ in range(ROUNDS)]
            results[title] = {
                "seconds": round(statistics.median(ours for ours, _ in pairs), 3),
                "times_python_start": round(statistics.median(ours / other for ours, other in pairs), 1),
                "modules_of_the_package": modules(words, folder),
            }
            print(title, json.dumps(results[title]))
        write_record("start_up", results, ("onnx", "onnxruntime"))


if __name__ == "__main__":
    main()
