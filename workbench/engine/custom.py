"""Plugins: what TensorRT computes a custom node with, a compiled library or a creator written in Python."""

import ctypes
import functools
import hashlib
import importlib.util
import inspect
import os
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.core.errors import EngineBuildError, InputError, first_line
from workbench.core.files import PathLike, open_regular
from workbench.onnx_graph.edit import custom_nodes
from workbench.onnx_graph.file import read

if TYPE_CHECKING:
    import trt_types as trt  # the types of one flavour, from typings/; see tests/engine/test_tensorrt_stubs.py

PluginLike = PathLike | Callable[[Any], Any]

_LIBRARY_STARTS = (b"\x7fELF", b"MZ")  # of a library of Linux and of Windows
_LARGEST_LIBRARY = 1 << 32  # bytes
_FUNCTION = "give a function that takes TensorRT's module, brings its own imports and gives a creator"
_LIBRARY_PACKAGES = ("tensorrt_rtx_libs", "tensorrt_libs")


@dataclass(frozen=True)
class Plugin:
    """A plugin as the builder's process gets it: the path of a library, or the source of a Python function."""

    title: str
    digest: str  # SHA-256 of the library or of the source
    path: str = ""
    source: str = ""


def read_plugins(plugins: Sequence[PluginLike]) -> tuple[Plugin, ...]:
    """Read what `build_engine` takes as plugins: libraries, and functions that make a creator; an InputError else."""
    if isinstance(plugins, str | os.PathLike) or callable(plugins):
        raise InputError(f"got {type(plugins).__name__} as the plugins, expected a list: plugins=[...]")
    read = tuple(_from_python(item) if callable(item) else _from_library(item) for item in plugins)
    titles = [plugin.title for plugin in read]
    if len(set(titles)) < len(titles):
        raise InputError(f"got the plugins {', '.join(titles)}, expected each once and under a name of its own")
    return read


def _from_library(path: PathLike) -> Plugin:
    path = Path(path)
    try:
        with open_regular(path, _LARGEST_LIBRARY, InputError) as file:
            start, digest = file.read(4), hashlib.sha256()
            if not start.startswith(_LIBRARY_STARTS):
                raise InputError(f"the plugin {path} is no compiled library; compile it, or give a Python function")
            digest.update(start)
            for part in iter(functools.partial(file.read, 1 << 20), b""):
                digest.update(part)
    except OSError as error:
        raise InputError(f"the plugin {path} cannot be read ({error.strerror or error}); compile it first") from error
    return Plugin(path.name, digest.hexdigest(), path=str(path.resolve()))


def _from_python(function: Any) -> Plugin:
    """Only the text of the function travels: a file would run whole, and a notebook has none."""
    name = getattr(function, "__name__", type(function).__name__)
    try:
        source = textwrap.dedent(inspect.getsource(function))
    except (OSError, TypeError) as error:
        raise InputError(f"the plugin {name} has no source to read; {_FUNCTION}") from error
    if not source.startswith("def ") or getattr(function, "__closure__", None):
        raise InputError(f"got the plugin {name}, which is no function that stands alone; {_FUNCTION}")
    return Plugin(name, hashlib.sha256(source.encode()).hexdigest(), source=source)


def custom_order(onnx_path: PathLike, plugins: Sequence[Plugin]) -> dict[str, Any]:
    """What the builder's process is told: the operator of each custom node of a file by its name, and plugins."""
    nodes = {node.name: node.operator for node in custom_nodes(read(onnx_path))}
    return {"custom": nodes, "plugins": [asdict(plugin) for plugin in plugins]}


def library_environment(folder: Path) -> dict[str, str]:
    """The environment in which a process can use plugins; `folder` gets links and must live as long as it.

    TensorRT's registry looks for its own library under a name without a version, which the packages for Python do not
    have, and ends the process when it is not found.
    """
    for package in _LIBRARY_PACKAGES if os.name == "posix" else ():
        spec = importlib.util.find_spec(package)
        for place in (spec.submodule_search_locations or ()) if spec is not None else ():
            for library in Path(place).glob("lib*.so.*"):
                link = folder / f"{library.name.partition('.so')[0]}.so"
                if not link.exists():
                    link.symlink_to(library)
    paths = [str(folder), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
    return {"LD_LIBRARY_PATH": os.pathsep.join(paths)} if os.name == "posix" else {}


def check_library_name(flavour: str) -> None:
    """Refuse plugins in this very process where TensorRT-RTX would end it, see `library_environment`."""
    name = "libtensorrt_rtx.so"
    if flavour != "tensorrt_rtx" or os.name != "posix":
        return
    try:
        ctypes.CDLL(name)
    except OSError as error:
        raise EngineBuildError(
            f"with plugins TensorRT-RTX looks for {name}, which its package does not have; start Python with "
            f"LD_LIBRARY_PATH=FOLDER, where FOLDER holds a link of that name to the package's {name}.1"
        ) from error


def register_plugins(
    flavour_module: "trt.Module", registry: "trt.IPluginRegistry", plugins: Iterable[Mapping[str, str]], logger: Any
) -> dict[str, list[Any]]:
    """Register plugins; return the creators of each, by its title, to be kept alive. Else an EngineBuildError."""
    found: dict[str, list[Any]] = {}
    for plugin in plugins:
        load = _load_library if plugin["path"] else _load_python
        found[plugin["title"]] = load(flavour_module, registry, plugin, logger)
    return found


def _load_library(
    flavour_module: "trt.Module", registry: "trt.IPluginRegistry", plugin: Mapping[str, str], logger: Any
) -> list[Any]:
    title = plugin["title"]
    try:
        library = ctypes.CDLL(plugin["path"])
    except OSError as error:
        reason = first_line(error).replace(f"{plugin['path']}: ", "")
        raise EngineBuildError(
            f"the plugin library {title} cannot be loaded ({reason}); compile it for this machine and TensorRT"
        ) from error
    if not hasattr(library, "getCreators"):
        raise EngineBuildError(
            f"the library {title} has no plugin creators: it exports no getCreators; see workbench/engine/plugins"
        )
    before = {_identity(creator) for creator in registry.all_creators}
    registry.load_library(plugin["path"])
    found = [creator for creator in registry.all_creators if _identity(creator) not in before]
    if not found:
        reason = logger.reasons() or "its names are taken, or it has none"
        raise EngineBuildError(f"TensorRT takes no plugin creator from the library {title}: {reason}")
    return found


def _load_python(
    flavour_module: "trt.Module", registry: "trt.IPluginRegistry", plugin: Mapping[str, str], logger: Any
) -> list[Any]:
    title, space = plugin["title"], dict[str, Any]()
    try:
        exec(compile(plugin["source"], f"<plugin {title}>", "exec"), space)  # the caller's own function
        creator: trt.IPluginCreatorV3One = space[title](flavour_module)
        identity = _identity(creator)
    except Exception as error:
        raise EngineBuildError(f"the plugin function {title} fails: {type(error).__name__}: {error}") from error
    if identity in {_identity(item) for item in registry.all_creators}:
        raise EngineBuildError(f"the plugin function {title} makes a second creator of the name {creator.name}")
    if not registry.register_creator(creator, creator.plugin_namespace):
        raise EngineBuildError(f"TensorRT does not take the creator of {title}: {logger.reasons() or 'no reason'}")
    return [creator]


def _identity(creator: "trt.IPluginCreatorV3One") -> tuple[str, str, str]:
    return creator.name, creator.plugin_version, creator.plugin_namespace


def check_used(creators: Mapping[str, Sequence[Any]], operators: Mapping[str, str], done_by: Mapping[str, str]) -> None:
    """Refuse a plugin of which no node of the network is computed, with an EngineBuildError.

    `operators` has the operator of each custom node by its name, `done_by` what TensorRT took for it.
    """
    for title, made in creators.items():
        names = [creator.name for creator in made]
        if set(names).isdisjoint(done_by.values()):
            listed = ", ".join(f"{node} ({operator})" for node, operator in operators.items()) or "none"
            raise EngineBuildError(
                f"got the plugin {title} for {' and '.join(names)}, which no node of the network uses; its custom "
                f"nodes: {listed}; mark the layer with that name, or leave the plugin out"
            )


def make_creator(
    trt_module: "trt.Module",
    name: str,
    enqueue: Callable[..., Any],
    *,
    shapes: Callable[..., Any] | None = None,
    types: Sequence[str] = ("FLOAT", "HALF"),
    outputs: int = 1,
) -> Any:
    """Make the creator of a plugin in Python, for `build_engine(plugins=[...])`: an `IPluginV3` in a few lines.

    The tensors of a node have one type of `types` and lie in memory as ONNX describes them (linear format).

    Args:
        trt_module: the module that the plugin function was given.
        name: the operator of the custom node.
        enqueue: computes: takes the descriptions of the inputs and of the outputs, their addresses on the GPU, the
            address of the workspace, and the CUDA stream, as `IPluginV3OneRuntime.enqueue` does.
        shapes: takes the inputs' symbolic shapes (`DimsExprs`) and an `IExprBuilder`, gives those of the outputs; the
            first input's for each when None.
        types: names of TensorRT's `DataType`.
        outputs: how many.
    Returns:
        An `IPluginCreatorV3One`.
    """
    plugin_class = _plugin_class(trt_module, name, enqueue, shapes, types, outputs)
    maker: Any = trt_module.IPluginCreatorV3One

    class Creator(maker):
        """What TensorRT's registry finds by the operator's name."""

        def __init__(self) -> None:
            maker.__init__(self)
            self.name, self.plugin_version, self.plugin_namespace = name, "1", ""
            self.field_names = trt_module.PluginFieldCollection([])

        def create_plugin(self, title: str, fields: Any, phase: Any) -> Any:
            return plugin_class()

    return Creator()


def _plugin_class(
    api: "trt.Module",
    name: str,
    enqueue: Callable[..., Any],
    shapes: Callable[..., Any] | None,
    types: Sequence[str],
    outputs: int,
) -> Any:
    """The class behind `make_creator`."""
    base: Any = api.IPluginV3  # mypy takes no attribute of a module's value for a base class
    core: Any = api.IPluginV3OneCore
    build: Any = api.IPluginV3OneBuild
    runtime: Any = api.IPluginV3OneRuntime

    class Plugin(base, core, build, runtime):
        """What TensorRT asks: what it is, at build time which shapes, types and formats, at run time to compute."""

        def __init__(self) -> None:
            for part in (base, core, build, runtime):
                part.__init__(self)
            self.plugin_name, self.plugin_version, self.plugin_namespace = name, "1", ""
            self.num_outputs = outputs

        def get_capability_interface(self, kind: Any) -> Any:
            return self

        def clone(self) -> Any:
            return Plugin()

        def get_output_data_types(self, input_types: Any) -> Any:
            return [input_types[0]] * outputs

        def get_output_shapes(self, inputs: Any, shape_inputs: Any, builder: Any) -> Any:
            return shapes(inputs, builder) if shapes else [api.DimsExprs(inputs[0])] * outputs

        def supports_format_combination(
            self, position: int, described: "list[trt.DynamicPluginTensorDesc]", inputs: int
        ) -> bool:
            this = described[position].desc
            linear = this.format == api.TensorFormat.LINEAR
            return linear and this.type.name in types and this.type == described[0].desc.type

        def configure_plugin(self, inputs: Any, results: Any) -> None: ...

        def on_shape_change(self, inputs: Any, results: Any) -> None: ...

        def set_tactic(self, tactic: Any) -> None: ...

        def get_valid_tactics(self) -> Any:
            return []

        def get_workspace_size(self, inputs: Any, results: Any) -> int:
            return 0

        def get_fields_to_serialize(self) -> Any:
            return api.PluginFieldCollection([])

        def attach_to_context(self, context: Any) -> Any:
            return self.clone()

        def enqueue(self, *given: Any) -> None:
            enqueue(*given)

    return Plugin
