"""The same network in fewer bits: half floats, 8 bits with Q/DQ pairs, what overflows and which layers it hurts."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "spec": ["PRECISIONS", "PrecisionReport"],
        "calibration": ["Calibration", "calibrate"],
        "rounding": ["emulate_float16"],
        "half": ["to_bf16", "to_fp16"],
        "quantize": ["quantize_fp8", "quantize_int8"],
        "figures": ["range_figure", "sensitivity_figure"],
        "ranges": ["Ranges", "measure_ranges"],
        "sensitivity": ["layers_to_keep"],
    },
)
