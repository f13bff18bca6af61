"""Write docs/api.md: every public name of `import workbench as wb`, from its docstring, with an example.

    python scripts/make_api.py [--check]

`--check` writes nothing and exits with 1 if the file is not what the docstrings say.
tests/repository/test_api_examples.py runs the examples from top to bottom.
"""

import argparse
import inspect
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import workbench as wb  # noqa: E402

TARGET = ROOT / "docs" / "api.md"

GPU = "on a machine with an NVIDIA GPU"
BUILDER = "with TensorRT or TensorRT-RTX"
EXAMPLES: dict[str, list[tuple[str, str, str]]] = {
    "Look around": [
        ("environment", "print(wb.environment())", ""),
        (
            "WorkbenchError",
            'try:\n    wb.open_runner("nowhere.onnx")\nexcept wb.WorkbenchError as error:\n    print(error)',
            "",
        ),
    ],
    "Pictures": [
        ("street_scenes", 'scene = wb.street_scenes(["scene_1000025"])[0]', ""),
        ("load_image", 'image = wb.load_image("pictures/a.png")', ""),
        ("read_folder", 'names = [picture.name for picture in wb.read_folder("pictures")]', ""),
        ("rescale_image", "small = wb.rescale_image(image, (64, 64, 3))", ""),
        ("sub_mean_chw", "x = wb.sub_mean_chw(small.transpose(2, 0, 1))[None]", ""),
        ("color_map", "colors = wb.color_map(scene.truth)", ""),
    ],
    "A Keras network to ONNX": [
        ("convert", 'print(wb.convert("net.keras", "net.onnx"))', ""),
        ("keras_to_onnx", 'wb.keras_to_onnx(model, "net.onnx")', ""),
        ("keras_to_pb", 'inputs, outputs = wb.keras_to_pb(model, "net.pb")', ""),
        ("pb_to_onnx", 'wb.pb_to_onnx("net.pb", "again.onnx", inputs=inputs, outputs=outputs)', ""),
        ("overwriting", 'with wb.overwriting():\n    wb.pb_to_onnx("net.pb", "again.onnx")', ""),
        ("inspect", 'print(wb.inspect("net.onnx").to_text())', ""),
        ("fix", 'print(wb.fix("net.onnx", "fixed.onnx").to_text())', ""),
        ("fuse_preprocessing", 'wb.fuse_preprocessing("net.onnx", "pictures_in.onnx", mean=(72, 82, 72))', ""),
        ("fuse_argmax", 'wb.fuse_argmax("pictures_in.onnx", "labels_out.onnx")', ""),
    ],
    "Run it, and is it still right?": [
        ("open_runner", 'with wb.open_runner("net.onnx") as runner:\n    answer = runner.infer({"input": x})', ""),
        ("verify", 'report = wb.verify("net.keras", "net.onnx", images="pictures")\nprint(report.to_text())', ""),
        (
            "Tolerance",
            'strict = wb.verify("net.keras", "net.onnx", tolerance=wb.Tolerance(max_relative_error=1e-5))',
            "",
        ),
        (
            "compare_runners",
            'with wb.open_runner("net.keras") as first, wb.open_runner("net.onnx") as second:\n'
            '    parity = wb.compare_runners(first, second, [("a", {"input": x})])',
            "",
        ),
        ("rounding_noise", 'noise = wb.rounding_noise("net.onnx", [("a", {"input": x})])\nprint(noise.describe())', ""),
        ("first_divergence", 'print(wb.first_divergence("net.keras", "net.onnx", {"input": x}).to_text())', ""),
        (
            "side_by_side",
            "from workbench.core.drawing import Panel\n\n"
            'panel = Panel(runner.info, answer["output"][0].argmax(0))\n'
            'figure = wb.side_by_side(small.astype("uint8"), None, panel, panel)',
            "",
        ),
    ],
    "How fast, and in fewer bits": [
        (
            "time_runners",
            'with wb.open_runner("net.keras") as first, wb.open_runner("net.onnx") as second:\n'
            '    print(wb.time_runners([first, second], {"input": x}, runs=5).to_text())',
            "",
        ),
        ("to_fp16", 'print(wb.to_fp16("net.onnx", "half.onnx").to_text())', ""),
        ("calibrate", 'scales = wb.calibrate("net.onnx", [("a", {"input": x})])', ""),
        ("quantize_int8", 'wb.quantize_int8("net.onnx", "int8.onnx", scales)', ""),
        (
            "sweep",
            'rows = wb.sweep("net.onnx", precision=["fp32", "fp16"], batch=[1], runs=5)\nprint(rows.to_text())',
            "",
        ),
        ("load_recording", 'rows = wb.load_recording("h200_precision")', ""),
    ],
    "TensorRT": [
        ("build_engine", 'plan = wb.build_engine("net.onnx", precision="fp32")', BUILDER),
        ("save_engine", 'wb.save_engine(plan, "net.plan")', BUILDER),
        ("load_engine", 'engine = wb.load_engine("net.plan")', GPU),
        ("allocate_buffers", "buffers = wb.allocate_buffers(engine, batch_size=1)", GPU),
        ("load_images_to_buffer", "wb.load_images_to_buffer(x, buffers)", GPU),
        ("do_inference", "answers = wb.do_inference(engine, x, buffers)", GPU),
    ],
    "Custom layers": [
        (
            "mark_custom_layer",
            'print(wb.mark_custom_layer("net.onnx", "marked.onnx", layer="head", name="Head").to_text())',
            "",
        ),
        (
            "register_operator",
            'with wb.register_operator("HardMish", lambda x, gain: 0.5 * x * (x + 2).clip(0, 2) * gain):\n'
            "    pass  # open_runner of a file with such a node uses it here",
            "",
        ),
    ],
    "Folders": [
        ("segment_folder", 'print(wb.segment_folder("streets", "painted", save="color").to_text())', ""),
    ],
}
"""Name, example, and what it needs beside Keras and ONNX Runtime; they run one after the other."""

SETUP = """import keras
import workbench as wb

image = keras.Input((3, 64, 64), name="input")
layer = keras.layers.Conv2D(20, 3, padding="same", data_format="channels_first", name="output")
model = keras.Model(image, layer(image))
model.save("net.keras")"""


def signature(value: object) -> str:
    """The call as people write it: names and defaults, without types."""
    try:
        parameters = inspect.signature(value).parameters.values()  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return ""
    plain = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in parameters]
    return str(inspect.Signature(plain))


def entry(name: str, example: str, needs: str) -> str:
    """One name: call, docstring, example."""
    value = getattr(wb, name)
    call = "" if isinstance(value, type) and issubclass(value, Exception) else signature(value)
    text = (inspect.getdoc(value) or "").strip()
    summary, _, rest = text.partition("\n")
    body = f"```text\n{rest.strip()}\n```\n\n" if rest.strip() else ""
    note = f" ({needs})" if needs else ""
    home = re.sub(r"<|>", "", value.__module__)
    return (
        f"### `wb.{name}`\n\n{summary}\n\n```python\nwb.{name}{call}\n```\n\n{body}"
        f"Example{note}:\n\n```python\n{example}\n```\n\nDefined in `{home}`.\n"
    )


def page() -> str:
    """The whole file."""
    parts = [
        "# The public names\n",
        "Written by `scripts/make_api.py` from the docstrings; do not edit. `import workbench as wb` imports nothing "
        "else: each name is loaded when it is first used. The examples run from top to bottom, in a folder with "
        "`pictures/` (yours) and `streets/`, after:\n",
        f"```python\n{SETUP}\n```\n",
    ]
    for title, names in EXAMPLES.items():
        parts.append(f"## {title}\n")
        parts += [entry(*each) for each in names]
    return "\n".join(parts)


def main() -> int:
    """Write the file, or compare it."""
    parser = argparse.ArgumentParser(description="Write docs/api.md from the docstrings.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if the file is out of date")
    check = parser.parse_args().check
    listed = [name for names in EXAMPLES.values() for name, *_ in names]
    if sorted(listed) != sorted(wb.__all__):
        print(f"without an example, or with one and not public: {sorted(set(listed) ^ set(wb.__all__))}")
        return 1
    text = page()
    if not check:
        TARGET.write_text(text, encoding="utf-8")
        return 0
    if not TARGET.exists() or TARGET.read_text(encoding="utf-8") != text:
        print("docs/api.md is not what the docstrings say; run: python scripts/make_api.py")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
