"""Take an ONNX file as it comes: check it, mend it, prove that it still answers the same, ask TensorRT's parser."""

import os

from workbench.export.onnx_graph import ask_parser, fix, inspect


def mend_onnx(source: str | os.PathLike[str], path: str | os.PathLike[str], *, progress: bool = True) -> str:
    """Write a mended copy of an ONNX file and say what was found.

    Args:
        source: the `.onnx` file.
        path: the `.onnx` file to write, whole or not at all.
        progress: show a bar.
    Returns:
        What the new file holds and costs, what was changed and why, the proof, and the parser's answer.
    Raises:
        ModelError: not a valid ONNX model, or one that ONNX Runtime cannot run.
        ExportError: a network of more than 2 GB.
        OutputError: the file cannot be written.
    """
    report = fix(source, path, progress=progress)
    answer = ask_parser(path, progress=progress)
    return f"{inspect(path).to_text()}\n{report.to_text()}\n{answer.to_text()}\nwritten {path}"
