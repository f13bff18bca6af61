"""The examples of docs/api.md, run from top to bottom as a reader would."""

import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

from make_api import EXAMPLES, SETUP  # noqa: E402

sys.path.remove(str(ROOT / "scripts"))


def test_the_examples_run_from_top_to_bottom(tmp_path):
    for folder in ("pictures", "streets"):
        (tmp_path / folder).mkdir()
        for name in "ab":
            picture = np.random.default_rng(ord(name)).integers(0, 256, (64, 64, 3), dtype=np.uint8)
            Image.fromarray(picture).save(tmp_path / folder / f"{name}.png")
    examples = [example for names in EXAMPLES.values() for _, example, needs in names if not needs]
    program = "\n".join([f"import sys; sys.path.insert(0, {str(ROOT)!r})", SETUP, *examples])
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "PASS" in done.stdout
