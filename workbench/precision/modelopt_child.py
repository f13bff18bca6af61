"""The child process of a quantisation with NVIDIA's Model Optimizer, which brings PyTorch with it.

`python -m workbench.precision.modelopt_child` takes one line of JSON: the files of the network, of data to run it on
and of the result, the precision, and the names of the nodes that may be quantised.
"""

import re
import sys
from typing import Any

import numpy as np

from workbench.core.errors import first_line
from workbench.core.packages import require_backend
from workbench.core.process import serve


def quantise(order: dict[str, Any]) -> None:
    """Quantise one network; float32 stays what it does not quantise."""
    quantization = require_backend("modelopt.onnx.quantization", "modelopt")
    with np.load(order["data"], allow_pickle=False) as arrays:
        data = dict(arrays)
    quantization.quantize(
        onnx_path=order["onnx"],
        quantize_mode=order["precision"],
        calibration_data=data,
        calibration_method="max",
        calibration_eps=["cpu"],
        nodes_to_quantize=[f"^{re.escape(name)}$" for name in order["nodes"]],
        high_precision_dtype="fp32",
        dq_only=True,
        log_level="ERROR",
        output_path=order["result"],
    )


def main() -> int:
    """Quantise what standard input orders; see `workbench.core.process`."""
    return serve(quantise, _explain)


def _explain(error: Exception) -> str:
    reason = f"{type(error).__name__}: {first_line(error)}"
    return f"nvidia-modelopt cannot quantise this network ({reason}); use backend='onnxruntime'"


if __name__ == "__main__":
    sys.exit(main())
