"""Operators by NumPy functions, in ONNX Runtime and in ONNX's reference evaluator; what goes wrong in one is said."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import custom_networks
import numpy as np
import onnx
import pytest
from conversions import relative_error
from custom_layers import hard_mish, warp
from fault_cases import is_sentence
from onnx import TensorProto, helper

from workbench.core.errors import BackendUnavailableError, InputError, ModelError
from workbench.core.time_limit import time_limit
from workbench.onnx_graph import edit
from workbench.onnx_graph.operators import register_operator
from workbench.onnx_graph.session import open_session, run_session
from workbench.runners.backends import open_runner

ROUNDING = 3e-6  # products in another order: some steps of 2**-24 of values near the largest


@pytest.fixture(scope="module")
def marked(tmp_path_factory):
    folder = tmp_path_factory.mktemp("operators")
    return custom_networks.mark_all(custom_networks.save_plain(folder), folder)


@pytest.fixture(scope="module")
def bare(marked):
    return custom_networks.save_bare(marked)


def first(path, backend="auto"):
    with open_runner(path, backend) as runner:
        return next(iter(runner.infer(dict.fromkeys(runner.inputs, custom_networks.pictures())).values()))


def expected():
    return custom_networks.custom_network()(custom_networks.pictures()).numpy()


def network(operator, kinds=(TensorProto.FLOAT,), *, function=False, outputs=1):
    """One node of `kinds` inputs, `outputs` outputs, with an Abs as its function or none."""
    reads = [helper.make_tensor_value_info(f"x{index}", kind, ["N", 3]) for index, kind in enumerate(kinds)]
    names = [f"y{index}" for index in range(outputs)]
    node = helper.make_node(operator, [value.name for value in reads], names, name="one", domain=edit.CUSTOM)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(edit.CUSTOM, 1)]
    body = [helper.make_node("Abs", ["x0"], ["y0"])]
    functions = [helper.make_function(edit.CUSTOM, operator, ["x0"], ["y0"], body, opsets[:1])] if function else []
    writes = [helper.make_tensor_value_info(name, kinds[0], ["N", None]) for name in names]
    graph = helper.make_graph([node], "g", reads, writes)
    return helper.make_model(graph, opset_imports=opsets, ir_version=8, functions=functions)


def run(model, *arrays):
    return run_session(open_session(model), {f"x{index}": array for index, array in enumerate(arrays)})


X = np.array([[1, -2, 3]], np.float32)


# who computes


@pytest.mark.parametrize("backend", ["onnxruntime", "reference"])
def test_registered_functions_compute_the_nodes(bare, marked, backend):
    calls = []

    def counted(image, flow):
        calls.append(image.shape)
        return warp(image, flow)

    with register_operator("HardMish", hard_mish), register_operator("Warp", counted):
        assert relative_error(first(bare, backend), expected()) < ROUNDING
        assert relative_error(first(marked, backend), expected()) < ROUNDING
    assert calls == [(2, *custom_networks.SIZE, 4)] * 2


@pytest.mark.parametrize("backend", ["onnxruntime", "reference"])
def test_without_a_registered_operator_the_function_computes(marked, backend):
    assert relative_error(first(marked, backend), expected()) < ROUNDING


def test_a_closed_operator_is_forgotten_although_the_library_never_forgets(marked):
    with register_operator("HardMish", lambda x, gain: x * 0):
        assert relative_error(first(marked), expected()) > 0.1
    with register_operator("Warp", warp):  # the library is there, and HardMish is known to it
        assert relative_error(first(marked), expected()) < ROUNDING


def test_a_name_can_be_registered_again_with_another_function():
    model = network("Again")
    with register_operator("Again", lambda x: x + 1):
        np.testing.assert_array_equal(run(model, X)["y0"], X + 1)
    with register_operator("Again", lambda x: x * 2) as operator:
        np.testing.assert_array_equal(run(model, X)["y0"], X * 2)
        operator.close()
        operator.close()
        with pytest.raises(ModelError, match="register_operator"):
            open_session(model)


def test_a_node_of_other_types_takes_its_function():
    with register_operator("OtherTypes", lambda x: x * 5):
        half = network("OtherTypes", (TensorProto.FLOAT16,), function=True)
        np.testing.assert_array_equal(run(half, X.astype(np.float16))["y0"], np.abs(X))


def test_several_outputs_and_types_pass(tmp_path):
    kinds = (TensorProto.DOUBLE, TensorProto.INT64)
    types = {"inputs": ("float64", "int64"), "outputs": ("float64", "bool")}
    model = network("Several", kinds, outputs=2)
    model.graph.output[1].type.tensor_type.elem_type = TensorProto.BOOL
    arrays = X.astype(np.float64) / 3, np.array([[1, 2, 3]])
    with register_operator("Several", lambda x, n: (x * n, n > 1), shapes=lambda x, n: [x, n], **types):
        found = run(model, *arrays)
    np.testing.assert_array_equal(found["y0"], arrays[0] * arrays[1])
    np.testing.assert_array_equal(found["y1"], [[False, True, True]])
    assert found["y0"].dtype == np.float64


def test_an_answer_of_another_shape_is_right_where_it_was_said():
    with register_operator("Sum", lambda x: x.sum(1, keepdims=True), shapes=lambda x: [(x[0], 1)]):
        np.testing.assert_array_equal(run(network("Sum"), X)["y0"], [[2]])


def test_special_numbers_pass_unchanged():
    special = np.array([[np.nan, np.inf, -0.0], [1e-45, -np.inf, 3.4e38]], np.float32)
    with register_operator("Special", lambda x: x):
        np.testing.assert_array_equal(run(network("Special"), special)["y0"], special)


def test_the_reference_runner_names_itself_and_refuses_what_it_cannot_run(bare, marked):
    with open_runner(marked, "reference") as runner:
        assert runner.info.backend == "reference" and "ONNX reference" in runner.reason
    with pytest.raises(ModelError, match="HardMish"):
        open_runner(bare, "reference")
    with pytest.raises(InputError, match="backend='keras'"):
        open_runner(custom_networks.custom_network(), "reference")


# what goes wrong in a function


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda x: x.astype(np.float64), "answers float64 of (1, 3), expected float32 of (1, 3)"),
        (lambda x: x[:, :2], "answers float32 of (1, 2), expected float32 of (1, 3)"),
        (lambda x: (x, x), "answers float32 of (1, 3) and float32 of (1, 3), expected float32 of (1, 3)"),
        (lambda x: (), "answers nothing"),
        (lambda x: None, "answers NoneType"),
        (lambda x: x.tolist(), "answers list"),
        (lambda x: x / 0 + {}, "fails for float32 of (1, 3): TypeError"),
        (lambda x: [][1], "fails for float32 of (1, 3): IndexError"),
    ],
)
@pytest.mark.parametrize("where", ["onnxruntime", "reference"])
def test_a_function_that_answers_wrongly_is_an_error_of_the_run(tmp_path, function, words, where):
    path = tmp_path / "wrong.onnx"
    onnx.save(network("Wrong"), path)
    with register_operator("Wrong", function), open_runner(path, where) as runner:
        for _ in range(2):  # also the second time
            with pytest.raises(InputError) as caught:
                runner.infer({"x0": X})
            is_sentence(str(caught.value))
            assert words in str(caught.value) and "the operator Wrong" in str(caught.value)


def test_an_error_of_one_run_is_not_told_to_the_next():
    def picky(x):
        if x[0, 0] > 0:
            raise ValueError("positive")
        return x

    with register_operator("Picky", picky):
        session = open_session(network("Picky"))
        with pytest.raises(InputError, match="positive"):
            run_session(session, {"x0": X})
        np.testing.assert_array_equal(run_session(session, {"x0": -X})["y0"], -X)


def test_ctrl_c_in_a_function_arrives():
    def interrupted(x):
        raise KeyboardInterrupt

    with register_operator("Interrupted", interrupted), pytest.raises(KeyboardInterrupt):
        run(network("Interrupted"), X)


def test_errors_are_told_to_the_thread_that_runs():
    def picky(x):
        if x[0, 0] > 0:
            raise ValueError("positive")
        return x

    told = []

    def work(session, array):
        try:
            for _ in range(50):
                run_session(session, {"x0": array})
            told.append("fine")
        except InputError:
            told.append("error")

    with register_operator("Threads", picky):
        session = open_session(network("Threads"))
        threads = [threading.Thread(target=work, args=(session, array)) for array in (X, -X)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(told) == ["error", "fine"]


def test_an_error_arrives_under_a_time_limit_too():
    def wrong(x):
        raise ValueError("no")

    with register_operator("Limited", wrong):
        session = open_session(network("Limited"))
        with time_limit(30), pytest.raises(InputError, match="no"):
            run_session(session, {"x0": X})


def test_a_session_that_outlives_its_operator_says_so():
    with register_operator("Outlived", lambda x: x):
        session = open_session(network("Outlived"))
    with pytest.raises(InputError, match=r"Outlived was closed.*open the network again"):
        run_session(session, {"x0": X})


# what cannot be registered


@pytest.mark.parametrize("name", ["", "a b", "workbench.custom::X", "1"])
def test_a_name_that_is_none_is_refused(name):
    with pytest.raises(InputError, match="operator name"):
        register_operator(name, lambda x: x)


def test_a_name_that_is_taken_is_refused():
    with register_operator("Taken", lambda x: x), pytest.raises(InputError, match="close that operator first"):
        register_operator("Taken", lambda x: x)


@pytest.mark.parametrize("shapes", [lambda x: None, lambda x: [3], lambda x, y: [x]])
def test_shapes_that_are_none_are_an_error_of_the_run(shapes):
    with register_operator("Shapes", lambda x: x, shapes=shapes), pytest.raises(InputError, match="Shapes fails for"):
        run(network("Shapes"), X)


@pytest.mark.parametrize("function", [3, None, dict])
def test_what_has_no_signature_is_refused(function):
    with pytest.raises(InputError, match="expected a function") as caught:
        register_operator("Unsigned", function)
    is_sentence(str(caught.value))


@pytest.mark.parametrize(
    "types", [{"inputs": ["float16"]}, {"outputs": ["bfloat16"]}, {"outputs": []}, {"inputs": []}, {"inputs": ["x"]}]
)
def test_types_that_cannot_pass_are_refused(types):
    with pytest.raises(InputError, match=r"expected one or more of float32, float64"):
        register_operator("Types", lambda x: x, **types)


def test_a_name_may_have_other_types_later():
    with register_operator("Later", lambda x: x + 1):
        np.testing.assert_array_equal(run(network("Later"), X)["y0"], X + 1)
    kinds = (TensorProto.FLOAT, TensorProto.FLOAT)
    with register_operator("Later", lambda x, y: x * y):
        np.testing.assert_array_equal(run(network("Later", kinds), X, X)["y0"], X * X)


SCRIPT = """
import numpy as np
from onnx import TensorProto
from test_operators import X, network, open_session, register_operator, run_session
from workbench.core.errors import InputError
kept = []
for index in range(12):
    with register_operator(f"Op{index}", lambda x, index=index: x + index):
        kept.append(open_session(network(f"Op{index}")))
        assert run_session(kept[-1], {"x0": X})["y0"][0, 0] == 1 + index
with register_operator("Product", lambda x, y: x * y):  # as many float32 as are usual are known from the start
    kept.append(open_session(network("Product", (TensorProto.FLOAT, TensorProto.FLOAT))))
"""


def python(code):
    here = Path(__file__)
    paths = os.pathsep.join(map(str, (here.parent, here.parents[1], here.parents[2])))
    environment = {**os.environ, "PYTHONPATH": paths}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)


def test_many_operators_and_open_sessions_leave_the_process_whole():
    """Told of one operator more, the library frees what open sessions hold: the process then died at its end."""
    done = python(SCRIPT)
    assert done.returncode == 0, done.stderr


def test_types_that_are_new_to_the_library_wait_until_no_session_is_open():
    code = """
with register_operator("Whole", lambda n: n * 2, inputs=["int64"], outputs=["int64"]):
    whole = network("Whole", (TensorProto.INT64,))
    try:
        open_session(whole)
    except InputError as error:
        print(error)
    kept.clear()
    print(run_session(open_session(whole), {"x0": np.array([[1, 2, 3]])})["y0"])
"""
    done = python(SCRIPT + code)
    assert done.returncode == 0, done.stderr
    assert "close its runner before you open one with int64 to int64" in done.stdout and "[[2 4 6]]" in done.stdout


def test_a_node_that_no_operator_fits_and_without_function_is_refused():
    with register_operator("Unfit", lambda x: x):
        for kinds in ((TensorProto.FLOAT16,), (TensorProto.FLOAT, TensorProto.FLOAT)):
            with pytest.raises(ModelError, match=r"one reads .* and Unfit takes float32"):
                open_session(network("Unfit", kinds))


def test_without_the_package_it_is_named_and_the_reference_evaluator_computes(bare, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime_extensions", None)
    with register_operator("HardMish", hard_mish), register_operator("Warp", warp):
        with pytest.raises(BackendUnavailableError, match=r"\.\[custom\]"):
            open_runner(bare)
        assert relative_error(first(bare, "reference"), expected()) < ROUNDING
