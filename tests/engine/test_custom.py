"""Plugins in the build: who computes a custom node is read back, and a plugin that is not used is an error."""

import _ctypes
import importlib.util
import linecache
import os
import shutil
import subprocess
import sys
from pathlib import Path

import custom_networks
import onnx
import pytest
from engine_checks import build
from fault_cases import is_sentence
from plugin_builds import compile_plugins, missing_headers, missing_nvcc

from workbench.cli.main import main
from workbench.core.errors import EngineBuildError, EngineLoadError, InputError
from workbench.engine import load, tensorrt_api
from workbench.engine.build import engine_text, save_engine
from workbench.engine.parser import ask_parser
from workbench.engine.plan import PlanManifest, manifest_path


@pytest.fixture(autouse=True)
def builder_is_here():
    """CI names TensorRT-RTX as one it must test, so there its absence is an error."""
    names = [flavour.name for flavour in tensorrt_api.available_flavours()[0]]
    if "tensorrt_rtx" not in names and "CI" not in os.environ:
        pytest.skip("TensorRT-RTX is not installed; a must in CI only")


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return custom_networks.save_plain(tmp_path_factory.mktemp("plugins"))


@pytest.fixture(scope="module")
def marked(plain):
    return custom_networks.mark_all(plain, plain.parent)


@pytest.fixture(scope="module")
def bare(marked):
    return custom_networks.save_bare(marked)


# Each brings its own imports: only its text goes to the builder's process.


def hard_mish_plugin(trt):
    from workbench.engine import make_creator

    return make_creator(trt, "HardMish", print)


def warp_plugin(trt):
    from workbench.engine import make_creator

    return make_creator(trt, "Warp", print)


def warp_of_given_shape(trt):
    from workbench.engine import make_creator

    def shapes(inputs, builder):
        return [trt.DimsExprs([inputs[0][0], inputs[0][1], inputs[0][2], builder.constant(4)])]

    return make_creator(trt, "Warp", print, shapes=shapes, types=("FLOAT",))


def hard_mish_again(trt):
    from workbench.engine import make_creator

    return make_creator(trt, "HardMish", print)


def other_plugin(trt):
    from workbench.engine import make_creator

    return make_creator(trt, "Other", print)


def raising_plugin(trt):
    raise ValueError("no creator today")


def no_plugin(trt):
    return None


def plugin_that_fails_to_tell_shapes(trt):
    from workbench.engine import make_creator

    def shapes(inputs, builder):
        raise ValueError("no shape")

    return make_creator(trt, "HardMish", print, shapes=shapes)


def plugin_that_fails_to_be_made(trt):
    from workbench.engine import make_creator

    creator = make_creator(trt, "HardMish", print)

    class Failing(type(creator)):
        def create_plugin(self, name, fields, phase):
            raise ValueError("not made")

    return Failing()


def plugin_that_ends_the_process(trt):
    import os

    os._exit(3)


def refused(path, plugins, *words, error=EngineBuildError, **options):
    with pytest.raises(error) as caught:
        build(path, plugins=plugins, cache=False, **options)
    is_sentence(str(caught.value))
    for word in words:
        assert word in str(caught.value)


# who computes


def test_without_plugins_the_functions_are_inlined(marked):
    plan = build(marked)
    assert "PLUGIN_V3" not in plan.manifest.layers and plan.manifest.plugin_nodes == {}
    assert plan.manifest.layers["ELEMENTWISE"] > 100


def test_plugins_stand_for_their_nodes_and_the_manifest_says_so(marked):
    plan = build(marked, plugins=[hard_mish_plugin, warp_of_given_shape])
    nodes = plan.manifest.plugin_nodes
    assert nodes == {
        "net_1/mish_1/HardMish": "HardMish",
        "net_1/warp_1/Warp": "Warp",
        "net_1/second_1/HardMish": "HardMish",
    }
    assert plan.manifest.layers["PLUGIN_V3"] == 3 and "ELEMENTWISE" not in plan.manifest.layers
    assert sorted(plan.manifest.plugins) == ["hard_mish_plugin", "warp_of_given_shape"]
    assert "plugin   net_1/warp_1/Warp: Warp" in engine_text(plan, "net.plan")
    assert PlanManifest.from_json(plan.manifest.to_json()) == plan.manifest


def test_a_file_without_functions_is_built_with_plugins_for_all(bare):
    assert len(build(bare, plugins=[hard_mish_plugin, warp_plugin]).manifest.plugin_nodes) == 3


def test_one_plugin_leaves_the_other_layer_inlined(marked):
    plan = build(marked, plugins=[hard_mish_plugin])
    assert set(plan.manifest.plugin_nodes.values()) == {"HardMish"} and plan.manifest.layers["ELEMENTWISE"] > 100


def test_a_node_without_a_name_is_known_by_what_it_writes(bare, tmp_path):
    model = onnx.load(bare)
    for node in model.graph.node:
        node.name = ""
    onnx.save(model, tmp_path / "nameless.onnx")
    plan = build(tmp_path / "nameless.onnx", plugins=[hard_mish_plugin, warp_plugin])
    assert sorted(plan.manifest.plugin_nodes.values()) == ["HardMish", "HardMish", "Warp"]


def test_half_precision_goes_through_the_plugin(marked):
    plan = build(marked, precision="fp16", plugins=[hard_mish_plugin, warp_plugin])
    assert plan.manifest.types["PLUGIN_V3"] == {"float16": 3} and plan.manifest.kept == ()


def test_a_plugin_for_float32_alone_needs_its_node_kept(marked):
    refused(marked, [hard_mish_plugin, warp_of_given_shape], precision="fp16")
    plan = build(marked, precision="fp16", plugins=[hard_mish_plugin, warp_of_given_shape], keep=["Warp"])
    assert plan.manifest.types["PLUGIN_V3"] == {"float16": 2, "float32": 1}


def test_the_installed_package_is_not_touched(marked):
    folder = Path(importlib.util.find_spec("tensorrt_rtx_libs").submodule_search_locations[0])
    before = sorted((item.name, item.lstat().st_mtime_ns) for item in folder.iterdir())
    build(marked, plugins=[hard_mish_plugin], cache=False)
    assert sorted((item.name, item.lstat().st_mtime_ns) for item in folder.iterdir()) == before
    assert not (folder / "libtensorrt_rtx.so").exists()


def test_the_cache_tells_plugins_apart(marked):
    first = build(marked, plugins=[hard_mish_plugin])
    assert build(marked, plugins=[hard_mish_plugin]).manifest.built == first.manifest.built
    assert build(marked).manifest.plugin_nodes == {}


def test_the_parser_says_which_route_each_node_takes(marked, bare):
    answer = ask_parser(marked, flavour="tensorrt_rtx", progress=False, plugins=[hard_mish_plugin])
    assert answer.accepted
    routes = dict(note.removeprefix("custom node ").split(": ") for note in answer.notes)
    assert routes == {
        "net_1/mish_1/HardMish (workbench.custom.HardMish)": "by the plugin HardMish",
        "net_1/warp_1/Warp (workbench.custom.Warp)": "inlined, by its function",
        "net_1/second_1/HardMish (workbench.custom.HardMish)": "by the plugin HardMish",
    }
    refusal = ask_parser(bare, flavour="tensorrt_rtx", progress=False)
    assert not refusal.accepted and {node.operator for node in refusal.refused} == {"HardMish", "Warp"}
    assert all("mark_custom_layer" in node.help and "plugins=" in node.help for node in refusal.refused)


def test_the_parser_s_report_tells_of_a_plugin_that_is_not_used(plain):
    answer = ask_parser(plain, flavour="tensorrt_rtx", progress=False, plugins=[hard_mish_plugin])
    assert not answer.accepted and "no node of the network uses" in answer.problem


# bad input


def test_a_plugin_that_no_node_uses_is_refused(marked, plain):
    refused(
        marked, [other_plugin], "the plugin other_plugin for Other", "no node of the network uses", "warp_1/Warp (Warp)"
    )
    refused(plain, [hard_mish_plugin], "its custom nodes: none")


def test_a_custom_node_with_neither_function_nor_plugin_is_refused_with_what_helps(bare):
    refused(bare, [], "Plugin not found", "what helps: give it a function with mark_custom_layer")


@pytest.mark.parametrize(
    ("plugin", "words"),
    [
        (raising_plugin, ["the plugin function raising_plugin fails: ValueError: no creator today"]),
        (no_plugin, ["the plugin function no_plugin fails"]),
        (plugin_that_fails_to_tell_shapes, ["output shape computation failed"]),
        (plugin_that_fails_to_be_made, []),
        (plugin_that_ends_the_process, ["ended with status 3"]),
    ],
)
def test_a_creator_that_fails_is_one_sentence(marked, plugin, words):
    refused(marked, [plugin], *words)


def test_two_creators_of_one_name_are_refused(marked):
    refused(marked, [hard_mish_plugin, hard_mish_again], "a second creator of the name HardMish")


@pytest.fixture
def library(tmp_path):
    """A library that is no plugin: one of Python's own."""
    return Path(shutil.copy(_ctypes.__file__, tmp_path / "libplain.so"))


def test_a_library_without_creators_is_refused(marked, library):
    refused(marked, [library], "libplain.so has no plugin creators", "getCreators")


def test_a_library_for_another_tensorrt_is_refused(marked, library):
    data = library.read_bytes()
    assert b"libc.so.6\0" in data
    library.write_bytes(data.replace(b"libc.so.6\0", b"libn.so.8\0"))
    refused(marked, [library], "libplain.so cannot be loaded (libn.so.8: cannot open shared object file", "compile it")


def test_a_library_that_was_cut_short_is_refused(marked, library):
    library.write_bytes(library.read_bytes()[:2000])
    refused(marked, [library], "was killed by SIGBUS; it had the plugins libplain.so")  # what Linux does then


def test_embedding_is_refused_where_it_cannot_be(marked, library, monkeypatch):
    refused(marked, [hard_mish_plugin], "Python stays outside a plan", error=InputError, embed_plugins=True)
    refused(marked, [], "embed_plugins for no plugin", error=InputError, embed_plugins=True)
    flavour = tensorrt_api.open_flavour("tensorrt_rtx")
    monkeypatch.delattr(flavour.module.IBuilderConfig, "plugins_to_serialize")
    refused(marked, [library], "writes no plugin library into a plan", error=InputError, embed_plugins=True)


@pytest.mark.skipif(bool(missing_nvcc() or missing_headers()), reason=missing_nvcc() or missing_headers())
def test_the_compiled_library_computes_its_nodes_beside_the_plan_or_inside_it(marked, plain, tmp_path):
    library, _ = compile_plugins(tmp_path, ["89"])
    plan, embedded = (build(marked, plugins=[library], embed_plugins=inside) for inside in (False, True))
    assert list(plan.manifest.plugin_nodes.values()) == ["HardMish", "Warp", "HardMish"]
    assert len(embedded.data) - len(plan.data) >= library.stat().st_size
    half = build(marked, plugins=[library], precision="fp16")
    assert half.manifest.types["PLUGIN_V3"] == {"float16": 3}
    refused(marked, [library, hard_mish_plugin], "a second creator of the name HardMish")
    refused(plain, [library], "libworkbench_plugins.so for HardMish and Warp, which no node")


def test_the_command_takes_libraries(marked, library, tmp_path, capsys):
    plan = tmp_path / "net.plan"
    assert main(["build", str(marked), "-o", str(plan), "--plugins", str(library), "--no-cache"]) == 2
    assert "has no plugin creators" in capsys.readouterr().err and not plan.exists()


# loading


@pytest.fixture
def saved(marked, tmp_path):
    return save_engine(build(marked, plugins=[hard_mish_plugin]), tmp_path / "net.plan")


def test_a_plan_that_needs_plugins_says_so(saved):
    with pytest.raises(EngineLoadError, match=r"needs the plugin hard_mish_plugin; give it in load_engine"):
        load.load_engine(saved)


def test_a_plan_is_not_loaded_with_another_plugin_of_the_name(saved):
    space = {}
    source = "def hard_mish_plugin(trt):\n    return None\n"
    exec(compile(source, "<another>", "exec"), space)
    linecache.cache["<another>"] = (len(source), None, source.splitlines(True), "<another>")
    with pytest.raises(EngineLoadError, match="was built with another hard_mish_plugin than the one given"):
        load.load_engine(saved, plugins=[space["hard_mish_plugin"]])


def test_a_plan_with_libraries_inside_needs_consent(saved):
    beside = manifest_path(saved)
    text = beside.read_text()
    assert '"embed_plugins": false' in text
    beside.write_text(text.replace('"embed_plugins": false', '"embed_plugins": true'))
    with pytest.raises(EngineLoadError, match=r"holds plugin libraries .* allow_host_code=True"):
        load.load_engine(saved)


def test_a_creator_is_registered_where_the_plan_is_loaded():
    """In a process of its own: the registry keeps what it was told."""
    code = (
        "import tensorrt_rtx as trt; from workbench.engine.custom import *; import sys; sys.path.insert(0, 'tests')\n"
        "from workbench.engine.tensorrt_api import open_flavour, make_logger\n"
        "from dataclasses import asdict\n"
        "source = 'def mine(trt):\\n    from workbench.engine import make_creator\\n"
        '    return make_creator(trt, "Mine", print)\\n\'\n'
        "plugin = asdict(Plugin('mine', 'digest', source=source))\n"
        "logger = make_logger(open_flavour('tensorrt_rtx'))\n"
        "made = register_plugins(trt, trt.get_plugin_registry(), [plugin], logger)\n"
        "print([c.name for c in trt.get_plugin_registry().all_creators if c.name == 'Mine'], list(made))"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['Mine'] ['mine']"
