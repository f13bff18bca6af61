"""Precision written into an ONNX network: half floats, and 8 bits with Q/DQ pairs.

The names below are imported from their modules when they are first used, so that a process which needs one module
does not load the others.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workbench.precision.calibration import Calibration, calibrate
    from workbench.precision.emulation import emulate_float16
    from workbench.precision.half import to_bf16, to_fp16
    from workbench.precision.quantize import quantize_fp8, quantize_int8
    from workbench.precision.range_figures import range_figure, sensitivity_figure
    from workbench.precision.ranges import Ranges, measure_ranges
    from workbench.precision.report import PrecisionReport
    from workbench.precision.sensitivity import layers_to_keep

_HOMES = {
    "Calibration": "calibration",
    "PrecisionReport": "report",
    "Ranges": "ranges",
    "calibrate": "calibration",
    "emulate_float16": "emulation",
    "layers_to_keep": "sensitivity",
    "measure_ranges": "ranges",
    "quantize_fp8": "quantize",
    "quantize_int8": "quantize",
    "range_figure": "range_figures",
    "sensitivity_figure": "range_figures",
    "to_bf16": "half",
    "to_fp16": "half",
}

__all__ = [
    "Calibration",
    "PrecisionReport",
    "Ranges",
    "calibrate",
    "emulate_float16",
    "layers_to_keep",
    "measure_ranges",
    "quantize_fp8",
    "quantize_int8",
    "range_figure",
    "sensitivity_figure",
    "to_bf16",
    "to_fp16",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
