"""Look into ONNX graphs and change them: the one door to reading, checking, mending and fusing."""

from workbench.export.fuse import fuse_argmax, fuse_preprocessing
from workbench.export.onnx_file import OnnxSummary, check, read
from workbench.export.onnx_fix import AppliedRewrite, FixReport, fix
from workbench.export.onnx_inspect import LayerCost, OnnxInspection, inspect
from workbench.export.onnx_names import name_batch
from workbench.export.onnx_rewrites import make_resize_exact
from workbench.export.parser_check import ParserAnswer, RefusedNode, ask_parser

__all__ = [
    "AppliedRewrite",
    "FixReport",
    "LayerCost",
    "OnnxInspection",
    "OnnxSummary",
    "ParserAnswer",
    "RefusedNode",
    "ask_parser",
    "check",
    "fix",
    "fuse_argmax",
    "fuse_preprocessing",
    "inspect",
    "make_resize_exact",
    "name_batch",
    "read",
]
