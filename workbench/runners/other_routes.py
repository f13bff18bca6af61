"""Two other routes from ONNX to a processor, ncnn and TVM, behind the same contract, so that they can be judged alike.

Both run a batch of one on the CPU. They are here to be compared with; the workbench builds on neither.
"""

import importlib.util
import os
import shutil
import subprocess
import tempfile
from importlib import metadata
from pathlib import Path

import numpy as np
import onnx

from workbench.core.contract import Runner, RunnerInfo, TensorSpec
from workbench.core.errors import BackendUnavailableError, ModelError
from workbench.core.packages import require_backend
from workbench.onnx_graph.file import OnnxSummary, check

_PNNX_FILES = ("pnnxparam", "pnnxbin", "pnnxpy", "pnnxonnx", "ncnnpy")


class NcnnRunner(Runner):
    """A network that pnnx translated for ncnn, Tencent's runtime for phones and small boards.

    Args:
        path: the `.onnx` file: float32, a batch of one or an open batch, all other sizes fixed.
        fp16: let pnnx store the weights as float16, as it does unless told otherwise.
        threads: threads inside one operator. They wait for each other without resting: on two busy cores, two of them
            took 2 s for what one did in 0.05 s.
    Raises:
        ModelError: pnnx cannot translate the network, ncnn cannot load the result, or it answers in another shape.
        BackendUnavailableError: ncnn or pnnx is not installed.
    """

    def __init__(self, path: str | os.PathLike[str], *, fp16: bool = False, threads: int = 1) -> None:
        ncnn, inputs, outputs = require_backend("ncnn", "routes"), *_specs(check(path), Path(path))
        self._ncnn, self._net = ncnn, ncnn.Net()
        options = self._net.opt
        options.num_threads = threads
        options.use_fp16_packed = options.use_fp16_storage = options.use_fp16_arithmetic = fp16
        with tempfile.TemporaryDirectory() as folder:
            skipped = _run_pnnx(Path(path), Path(folder), list(inputs.values()), fp16)
            files = [str(Path(folder) / f"model.ncnn.{kind}") for kind in ("param", "bin")]
            if self._net.load_param(files[0]) or self._net.load_model(files[1]):
                raise ModelError(f"ncnn cannot run {path}{skipped or ''}; use another runner for it")
        super().__init__(RunnerInfo("ncnn", metadata.version("ncnn"), "CPU"), inputs, outputs)
        self._check_shapes(Path(path))

    def _infer(self, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {name: array[None] for name, array in self._extract(feed).items()}

    def _extract(self, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run once; the answers come without the batch axis, which ncnn does not know."""
        extractor = self._net.create_extractor()
        for index, name in enumerate(self.inputs):
            extractor.input(f"in{index}", self._ncnn.Mat(np.ascontiguousarray(feed[name][0])).clone())
        return {name: np.array(extractor.extract(f"out{index}")[1]) for index, name in enumerate(self.outputs)}

    def _check_shapes(self, path: Path) -> None:
        """Run zeros: where pnnx takes another axis for the batch, nothing else would tell."""
        sizes = {name: [size or 1 for size in spec.shape] for name, spec in self.inputs.items()}
        zeros = {name: np.zeros(shape, np.float32) for name, shape in sizes.items()}
        for name, array in self._extract(zeros).items():
            if not self.outputs[name].fits((1, *array.shape)):
                raise ModelError(
                    f"ncnn answers {path} with {name} {(1, *array.shape)}, and the graph says "
                    f"{self.outputs[name].describe()}: pnnx misread an axis; use another runner for this network"
                )

    def _close(self) -> None:
        self._net = None


class TvmRunner(Runner):
    """A network that Apache TVM compiled for this machine's processor, untuned.

    Args:
        path: the `.onnx` file; an open batch is fixed to one.
    Raises:
        ModelError: TVM does not know one of the operators.
        BackendUnavailableError: TVM is not installed.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        tvm = require_backend("tvm", "routes")
        frontend = require_backend("tvm.relax.frontend.onnx", "routes")
        inputs, outputs = _specs(check(path), Path(path))
        shapes = {name: list(spec.shape) for name, spec in inputs.items()}
        try:
            module = frontend.from_onnx(onnx.load(path), shape_dict=shapes, keep_params_in_input=False)
            compiled = tvm.compile(module, target=tvm.target.Target("llvm"))
        except Exception as error:  # its errors share no public base
            reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise ModelError(f"TVM {tvm.__version__} cannot compile {path}: {reason}; use another runner") from error
        self._tvm, self._machine = tvm, tvm.relax.VirtualMachine(compiled, tvm.cpu())
        super().__init__(RunnerInfo("tvm", tvm.__version__, "CPU"), inputs, outputs)

    def _infer(self, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        tensors = [self._tvm.runtime.tensor(feed[name], self._tvm.cpu()) for name in self.inputs]
        answer = self._machine["main"](*tensors)
        answers = [answer] if hasattr(answer, "numpy") else list(answer)
        return {name: np.array(array.numpy()) for name, array in zip(self.outputs, answers, strict=True)}

    def _close(self) -> None:
        self._machine = None


def _specs(summary: OnnxSummary, path: Path) -> tuple[dict[str, TensorSpec], dict[str, TensorSpec]]:
    """The network's ends with a batch of one."""
    for spec in summary.inputs:
        if spec.dtype != "float32" or not spec.shape or spec.shape[0] not in (None, 1) or None in spec.shape[1:]:
            raise ModelError(
                f"{path} takes {spec.name} {spec.describe()}, expected float32, a batch of one and fixed sizes; "
                "export the network that way"
            )
    ends = [[_with_one(spec) for spec in side] for side in (summary.inputs, summary.outputs)]
    return {spec.name: spec for spec in ends[0]}, {spec.name: spec for spec in ends[1]}


def _with_one(spec: TensorSpec) -> TensorSpec:
    return TensorSpec(spec.name, (1, *spec.shape[1:]) if spec.shape[:1] == (None,) else spec.shape, spec.dtype)


def _run_pnnx(path: Path, folder: Path, inputs: list[TensorSpec], fp16: bool) -> str:
    """Translate in a child process; return which operators pnnx left out, as the end of a sentence."""
    shutil.copy(path, folder / "model.onnx")
    sizes = ",".join("[" + ",".join(map(str, spec.shape)) + "]" for spec in inputs)
    command = [_pnnx_program(), "model.onnx", f"inputshape={sizes}", f"fp16={int(fp16)}"]
    command += ["ncnnparam=model.ncnn.param", "ncnnbin=model.ncnn.bin"]
    command += [f"{name}=unused.{name}" for name in _PNNX_FILES]
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode or not (folder / "model.ncnn.bin").exists():
        last = [line for line in done.stdout.splitlines() if line.strip()][-1:] or ["no message"]
        raise ModelError(f"pnnx cannot translate {path} (status {done.returncode}: {last[0]}); use another runner")
    skipped = {line.split()[1] for line in done.stdout.splitlines() if line.startswith("ignore ")}
    return f": pnnx left out {', '.join(sorted(skipped))}" if skipped else ""


def _pnnx_program() -> str:
    """Find pnnx's program without importing its package, which would import PyTorch."""
    spec = importlib.util.find_spec("pnnx")
    if spec is None or spec.origin is None:
        raise BackendUnavailableError("pnnx is not installed; in the project's folder run: pip install -e '.[routes]'")
    return str(Path(spec.origin).with_name("pnnx.exe" if os.name == "nt" else "pnnx"))
