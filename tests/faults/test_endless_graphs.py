"""Networks that never end, or grow without measure: ended by the clock and by Ctrl-C, or refused."""

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import fault_cases
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from workbench.core.errors import TimeLimitError
from workbench.core.time_limit import time_left, time_limit
from workbench.export.conversion import convert
from workbench.onnx_graph.cost import inspect
from workbench.onnx_graph.file import check
from workbench.onnx_graph.mend import fix
from workbench.onnx_graph.noise import rounding_noise
from workbench.onnx_graph.session import may_loop
from workbench.parity.divergence import first_divergence
from workbench.parity.stages import verify
from workbench.runners.backends import open_runner
from workbench.runners.onnxruntime_runner import OnnxRuntimeRunner

FEED = {"x": np.ones((1, 4), np.float32)}
SLOW_S = 10.0  # a busy machine; without a limit none of these ends


def value(name, kind=TensorProto.FLOAT, shape=(1, 4)):
    return helper.make_tensor_value_info(name, kind, shape)


def loop(source, result, rounds=""):
    """A Loop that adds nothing to a tensor, for ever or a number of rounds."""
    scalars = [value("i", TensorProto.INT64, []), value("c", TensorProto.BOOL, [])]
    nodes = [helper.make_node("Identity", [name], [f"{name}2"]) for name in "cv"]
    ends = [value("c2", TensorProto.BOOL, []), value("v2")]
    body = helper.make_graph(nodes, "body", [*scalars, value("v")], ends)
    return helper.make_node("Loop", [rounds, "yes", source], [result], body=body)


def network(path, nodes, functions=(), rounds=3):
    weights = [numpy_helper.from_array(np.array(True), "yes"), numpy_helper.from_array(np.array(rounds), "rounds")]
    weights.append(numpy_helper.from_array(np.ones((1, 4), np.float32), "k"))
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("my", 1)]
    graph = helper.make_graph(nodes, "g", [value("x")], [value("y")], weights)
    onnx.save(helper.make_model(graph, opset_imports=opsets, functions=list(functions), ir_version=8), path)
    return path


def in_a_branch(path):
    def branch(name, *nodes):
        return helper.make_graph(list(nodes), name, [], [value(nodes[-1].output[0])])

    spin, still = branch("then", loop("x", "a")), branch("else", helper.make_node("Neg", ["x"], ["b"]))
    return network(path, [helper.make_node("If", ["yes"], ["y"], then_branch=spin, else_branch=still)])


def in_a_function(path):
    yes = helper.make_node("Constant", [], ["yes"], value=helper.make_tensor("t", TensorProto.BOOL, [], [True]))
    function = helper.make_function("my", "F", ["x"], ["y"], [yes, loop("x", "y")], [helper.make_opsetid("", 17)])
    return network(path, [helper.make_node("F", ["x"], ["y"], domain="my")], [function])


ENDLESS = {
    "of the input": lambda path: network(path, [loop("x", "y")]),
    "of a constant": lambda path: network(path, [loop("k", "z"), helper.make_node("Add", ["x", "z"], ["y"])]),
    "of 2**62 rounds": lambda path: network(path, [loop("x", "y", "rounds")], rounds=2**62),
    "in a branch": in_a_branch,
    "in a function": in_a_function,
    "after a good part": lambda path: network(path, [helper.make_node("Relu", ["x"], ["r"]), loop("r", "y")]),
}


def infer(path):
    with OnnxRuntimeRunner(path, threads=1) as runner:
        return runner.infer(FEED)


def write(path):
    return path.with_name("out.onnx")


USES = {
    "infer": infer,
    "rounding_noise": lambda path: rounding_noise(path, [("ones", FEED)]),
    "fix": lambda path: fix(path, write(path), progress=False),
    "convert": lambda path: convert(path, write(path), progress=False),
    "verify": lambda path: verify(path, progress=False),
    "verify two": lambda path: verify(path, path, progress=False),
    "first_divergence": lambda path: first_divergence(path, path, FEED, progress=False),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
@pytest.mark.parametrize("make", ENDLESS.values(), ids=ENDLESS)
def test_the_time_limit_ends_it_and_names_the_step(tmp_path, make, use):
    path, start = make(tmp_path / "endless.onnx"), time.monotonic()
    assert may_loop(onnx.load(path))
    with fault_cases.untouched(tmp_path), time_limit(0.3), pytest.raises(TimeLimitError, match=r"0\.3 s.*: "):
        use(path)
    assert time.monotonic() - start < SLOW_S


@pytest.mark.parametrize("use", [inspect, check], ids=["inspect", "check"])
@pytest.mark.parametrize("make", ENDLESS.values(), ids=ENDLESS)
def test_what_only_looks_at_it_does_not_run_it(tmp_path, make, use):
    use(make(tmp_path / "endless.onnx"))


@pytest.mark.parametrize("call", [convert, verify])
def test_the_public_functions_take_the_limit(tmp_path, call):
    path = ENDLESS["of the input"](tmp_path / "endless.onnx")
    with fault_cases.untouched(tmp_path), pytest.raises(TimeLimitError):
        call(path, write(path), timeout_s=0.3, progress=False) if call is convert else call(
            path, timeout_s=0.3, progress=False
        )


@pytest.mark.parametrize("words", [["convert", "{0}", "{0}.out.onnx"], ["verify", "{0}"], ["verify", "{0}", "{0}"]])
def test_the_commands_take_the_limit(tmp_path, capsys, words):
    path = ENDLESS["of the input"](tmp_path / "endless.onnx")
    with fault_cases.untouched(tmp_path):
        asked = [*(word.format(path) for word in words), "--timeout", "0.3"]
        status, text = fault_cases.command(capsys, *asked)
    assert status == 2
    assert "time limit of 0.3 s" in text


@pytest.mark.parametrize("seconds", ["inf", "nan", "-1", "0", "1e300", "-inf"])
@pytest.mark.parametrize("command", ["convert", "verify"])
def test_a_limit_that_is_no_time_is_refused(tmp_path, capsys, command, seconds):
    path = network(tmp_path / "good.onnx", [helper.make_node("Relu", ["x"], ["y"])])
    targets = [path, tmp_path / "out.onnx"] if command == "convert" else [path]
    with fault_cases.untouched(tmp_path):
        status, text = fault_cases.command(capsys, command, *targets, f"--timeout={seconds}")
    assert status == 2
    assert "expected seconds above 0" in text


def test_a_limit_that_is_long_enough_changes_nothing(tmp_path):
    path = network(tmp_path / "loop.onnx", [loop("x", "y", "rounds")])
    with time_limit(1000):
        answer = infer(path)["y"]
    assert np.array_equal(answer, FEED["x"]) and np.array_equal(infer(path)["y"], answer)
    assert time_left("nothing") is None


def test_a_fault_inside_a_loop_is_told_and_not_taken_for_the_clock(tmp_path):
    path = network(tmp_path / "loop.onnx", [loop("x", "z", "rounds"), helper.make_node("Gather", ["k", "far"], ["y"])])
    model = onnx.load(path)
    model.graph.initializer.append(numpy_helper.from_array(np.array([[99]]), "far"))
    onnx.save(model, path)
    with time_limit(100):
        assert "time limit" not in fault_cases.refusal(infer, path)


INTERRUPTED = """
import sys
sys.path.insert(0, sys.argv[1])
from workbench.cli.main import main
from workbench.onnx_graph import session
run = session.run_ended
session.run_ended = lambda *given: print("it runs", flush=True) or run(*given)
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.parametrize("words", [["convert", "endless.onnx", "out.onnx"], ["verify", "endless.onnx"]])
def test_ctrl_c_ends_it_at_once(tmp_path, words):
    path = ENDLESS["of the input"](tmp_path / "endless.onnx")
    root, pipe = str(Path(fault_cases.__file__).parents[1]), subprocess.PIPE
    child = subprocess.Popen([sys.executable, "-c", INTERRUPTED, root, *words], cwd=tmp_path, stdout=pipe, stderr=pipe)
    try:
        assert child.stdout.readline() == b"it runs\n"
        time.sleep(0.3)
        start = time.monotonic()
        child.send_signal(signal.SIGINT)
        errors = child.communicate(timeout=60)[1]
    finally:
        child.kill()
    assert child.returncode == 130, errors
    assert time.monotonic() - start < SLOW_S
    assert os.listdir(tmp_path) == [path.name]


def calls(path, count, times, last=None):
    """Functions of which each calls the next so many times."""
    opsets, functions = [helper.make_opsetid("", 17), helper.make_opsetid("my", 1)], []
    for number in range(count):
        after = f"F{number + 1}" if number + 1 < count else last
        nodes = [helper.make_node("Neg", ["a"], ["b"])]
        if after:
            pairs = itertools.pairwise(["a", *(f"m{step}" for step in range(times - 1)), "b"])
            nodes = [helper.make_node(after, [here], [there], domain="my") for here, there in pairs]
        functions.append(helper.make_function("my", f"F{number}", ["a"], ["b"], nodes, opsets))
    return network(path, [helper.make_node("F0", ["x"], ["y"], domain="my")], functions)


@pytest.mark.parametrize(("count", "times"), [(16, 2), (20, 2), (30, 2), (200, 2), (9, 4), (5, 30), (3, 1000)])
def test_functions_that_grow_without_measure_are_refused_at_once(tmp_path, count, times):
    path, start = calls(tmp_path / "bomb.onnx", count, times), time.monotonic()
    assert "stand for" in fault_cases.refusal(infer, path)
    assert time.monotonic() - start < SLOW_S


@pytest.mark.parametrize(("count", "times"), [(1, 1), (5, 2), (24, 1), (2, 24)])
def test_functions_of_a_usual_size_are_used(tmp_path, count, times):
    assert infer(calls(tmp_path / "calls.onnx", count, times))["y"].shape == (1, 4)


@pytest.mark.parametrize(("count", "last"), [(1, "F0"), (2, "F0"), (5, "F0"), (5, "F3")])
def test_functions_that_call_themselves_are_refused(tmp_path, count, last):
    assert "recursive" in fault_cases.refusal(infer, calls(tmp_path / "ring.onnx", count, 2, last))


def number(value):
    """A number as protobuf writes it."""
    return bytes([value & 127 | 128]) + number(value >> 7) if value > 127 else bytes([value])


def field(place, content):
    return number(place << 3 | 2) + number(len(content)) + content


@pytest.mark.parametrize("depth", [1, 5, 20, 30, 33, 40, 60, 100, 300, 1000, 3000])
def test_branches_in_branches_are_used_or_refused(tmp_path, depth):
    """Written as bytes, for the packages that write ONNX refuse deep ones themselves."""
    shape = field(12, value("r", shape=[1]).SerializeToString())
    still = field(1, helper.make_node("Identity", ["x"], ["r"]).SerializeToString()) + field(2, b"g") + shape
    graph = still
    for _ in range(depth):
        branches = [(b"then_branch", graph), (b"else_branch", still)]
        held = [field(1, name) + field(6, inner) + number(20 << 3) + number(5) for name, inner in branches]
        node = field(1, b"c") + field(2, b"r") + field(4, b"If") + b"".join(field(5, item) for item in held)
        graph = field(1, node) + field(2, b"g") + shape
    for end in (value("x", shape=[1]), value("c", TensorProto.BOOL, [])):
        graph += field(11, end.SerializeToString())
    opset = field(8, number(2 << 3) + number(17))
    (tmp_path / "deep.onnx").write_bytes(number(1 << 3) + number(8) + field(7, graph) + opset)
    text = fault_cases.answer(inspect, tmp_path / "deep.onnx")
    assert bool(text) == (depth > 30)


@pytest.fixture(scope="module")
def spinning(tmp_path_factory):
    """A frozen TensorFlow graph with a loop that never ends."""
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    from workbench.core.packages import load_tensorflow

    tf = load_tensorflow()

    def spin(x):
        (end,) = tf.while_loop(lambda v: tf.reduce_all(v < 9), lambda v: [tf.minimum(v, 1.0)], [x])
        return tf.ensure_shape(end, (None, 4))

    concrete = tf.function(spin).get_concrete_function(tf.TensorSpec((None, 4), tf.float32, "x"))
    path = tmp_path_factory.mktemp("spinning") / "spinning.pb"
    path.write_bytes(
        convert_variables_to_constants_v2(concrete, lower_control_flow=False).graph.as_graph_def().SerializeToString()
    )
    return path


def test_a_tensorflow_loop_is_ended_by_the_clock(spinning, tmp_path):
    with pytest.raises(TimeLimitError, match="time limit of 8 s"):
        convert(spinning, tmp_path / "out.onnx", timeout_s=8, progress=False)


@pytest.mark.timeout(60)
def test_the_run_of_a_tensorflow_loop_is_ended_by_the_clock_and_by_ctrl_c(spinning, request):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    running = threading.active_count() - 1
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    with open_runner(spinning) as runner:
        start = time.monotonic()
        with time_limit(0.5), pytest.raises(TimeLimitError, match="run the TensorFlow graph"):
            runner.infer(FEED)
        assert time.monotonic() - start < SLOW_S
        timer = threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            runner.infer(FEED)
        assert time.monotonic() - start < 2 * SLOW_S
        timer.join()
        assert threading.active_count() == 1 + running  # the loop does not go on behind
