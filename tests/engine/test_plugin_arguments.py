"""What is taken as a plugin, before anything starts; no TensorRT is needed."""

import functools
import inspect
import linecache
from pathlib import Path

import pytest
from fault_cases import is_sentence

from workbench.core.errors import EngineBuildError, InputError
from workbench.engine import custom
from workbench.engine.custom import read_plugins


def hard_mish_plugin(trt):
    from workbench.engine import make_creator

    return make_creator(trt, "HardMish", print)


def test_a_function_written_in_a_notebook_cell_is_taken(monkeypatch):
    source = inspect.getsource(hard_mish_plugin)
    space = {"__name__": "__main__"}
    exec(compile(source, "<cell 1>", "exec"), space)
    monkeypatch.setitem(linecache.cache, "<cell 1>", (len(source), None, source.splitlines(True), "<cell 1>"))
    (plugin,) = read_plugins([space["hard_mish_plugin"]])
    assert plugin.source == source and plugin.title == "hard_mish_plugin"


@pytest.mark.parametrize(
    ("plugins", "words"),
    [
        ("lib.so", "expected a list"),
        (hard_mish_plugin, "expected a list"),
        ([lambda trt: None], "no function that stands alone"),
        ([print], "no source to read"),
        ([functools.partial(hard_mish_plugin)], "no source to read"),
        ([hard_mish_plugin, hard_mish_plugin], "each once and under a name of its own"),
        (["missing.so"], "compile it first"),
        ([__file__], "no compiled library"),
        ([Path(__file__).parent], "Is a directory"),
    ],
)
def test_what_is_no_plugin_is_refused_before_anything_starts(plugins, words):
    with pytest.raises(InputError) as caught:
        read_plugins(plugins)
    is_sentence(str(caught.value))
    assert words in str(caught.value)


def test_registering_in_this_process_is_refused_where_it_would_end_it(monkeypatch):
    def missing(name):
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(custom.ctypes, "CDLL", missing)
    with pytest.raises(EngineBuildError, match=r"LD_LIBRARY_PATH=FOLDER.*libtensorrt_rtx\.so\.1"):
        custom.check_library_name("tensorrt_rtx")
    custom.check_library_name("tensorrt")
