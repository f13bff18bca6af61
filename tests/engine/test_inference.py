"""Inference on a stand-in of TensorRT's runtime: checks of how the API is used, not of what TensorRT computes."""

import ast
import functools
import inspect
from pathlib import Path

import numpy as np
import pytest
from inference_checks import CHECKS, make_networks
from onnx_networks import mixed_feed, picture, save_counting_network, save_identity_network, save_picture_network
from standin import device, runtime
from standin.runtime import open_standin

import workbench
from workbench.core.errors import DeviceError, FeedError, InputError
from workbench.engine import inference
from workbench.engine.inference import allocate_buffers, do_inference, load_images_to_buffer

TYPINGS = Path(__file__).parents[2] / "typings"
FLAVOURS = ("trt11.4", "trt10.16", "rtx1.7.1", "lean11.4")
DTYPES = ("float32", "float16", "int8", "int32", "int64", "uint8", "bool", "bfloat16", "float8_e4m3fn")


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    return make_networks(tmp_path_factory.mktemp("networks"))


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_inference(check, networks):
    check(inference, networks)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_goes_in_and_out(dtype, tmp_path):
    if dtype.startswith(("bfloat16", "float8")):
        pytest.importorskip("ml_dtypes")
    path = save_identity_network(tmp_path / "same.onnx", inference.numpy_dtype(dtype))
    # ONNX Runtime takes these types from no NumPy array, so nothing computes here but a function that hands them on
    session = PassThrough() if dtype.startswith(("bfloat16", "float8")) else None
    engine, memory = open_standin(path, session=session)
    x = (np.arange(15).reshape(3, 5) % 2).astype(inference.numpy_dtype(dtype))
    with allocate_buffers(engine, 4, memory=memory) as buffers:
        answer = do_inference(engine, x, buffers)["output"]
        assert answer.dtype == x.dtype and answer.shape == x.shape
        np.testing.assert_array_equal(answer, x)


class PassThrough:
    def run(self, names, feed):
        return list(feed.values())


def test_a_type_without_whole_bytes_is_refused():
    with pytest.raises(InputError, match="got a tensor of type int4, expected one with whole bytes"):
        inference.numpy_dtype("int4")


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (9, "got batch_size=9, but this engine takes batches of 1 to 8; give that, or build"),
        (0, "got batch_size=0, expected a whole number of 1 or more"),
        (2.0, "got batch_size=2.0, expected a whole number"),
        (True, "got batch_size=True, expected a whole number"),
    ],
)
def test_a_batch_outside_the_profile_is_refused(networks, batch, message):
    engine, memory = open_standin(networks / "mixed.onnx")
    with pytest.raises(InputError, match=message.replace("(", r"\(")):
        allocate_buffers(engine, batch, memory=memory)
    assert memory.log == []


def test_a_fixed_batch_is_named(tmp_path):
    path = save_picture_network(tmp_path / "fixed.onnx", batch=4)
    engine, memory = open_standin(path)
    with pytest.raises(InputError, match=r"takes batches of 4 only; call allocate_buffers\(engine, batch_size=4\)"):
        allocate_buffers(engine, memory=memory)
    with allocate_buffers(engine, 4, memory=memory) as buffers:
        assert do_inference(engine, picture(4), buffers)["output"].shape == (4, 5)
        with pytest.raises(FeedError, match="axis 0 is 2 where the network takes 4"):
            do_inference(engine, picture(2), buffers)


def test_an_output_whose_size_depends_on_values_is_refused(tmp_path):
    engine, memory = open_standin(save_counting_network(tmp_path / "count.onnx"))
    with pytest.raises(InputError, match="the size of output 'output' cannot be told from the input shapes"):
        allocate_buffers(engine, memory=memory)
    assert memory.live == 0


@pytest.mark.parametrize(
    ("feed", "message"),
    [
        (np.zeros((1, 6), np.float32), "got ndarray as the feed, expected a dict of arrays by input name"),
        ([1, 2], "got list as the feed"),
        ({"left": mixed_feed(1)["left"]}, "input 'right' is missing"),
        ({**mixed_feed(1), "middle": np.zeros(1)}, "an input 'middle' the network does not have"),
        ({**mixed_feed(1), "flags": np.zeros((1, 2, 3))}, r'pass x.astype\("int32"\)'),
        ({**mixed_feed(1), "left": np.full((1, 6), np.nan, np.float32)}, "6 NaN"),
    ],
)
def test_a_wrong_feed_is_refused_and_the_buffers_go_on(networks, feed, message):
    engine, memory = open_standin(networks / "mixed.onnx")
    with allocate_buffers(engine, 2, memory=memory) as buffers:
        for use in (lambda: do_inference(engine, feed, buffers), lambda: load_images_to_buffer(feed, buffers)):
            with pytest.raises(FeedError, match=message):
                use()
        do_inference(engine, mixed_feed(2), buffers)


def test_a_wrong_layout_is_refused_with_the_call_that_mends_it(networks):
    engine, memory = open_standin(networks / "picture.onnx")
    message = r"pass x\.transpose\(0, 3, 1, 2\)"
    with allocate_buffers(engine, memory=memory) as buffers, pytest.raises(FeedError, match=message):
        do_inference(engine, picture(1).transpose(0, 2, 3, 1), buffers)


def test_inputs_whose_batches_differ_are_refused(networks):
    engine, memory = open_standin(networks / "mixed.onnx")
    with allocate_buffers(engine, 4, memory=memory) as buffers:
        with pytest.raises(InputError, match=r"left \(2, 6\), right \(3, 6\).*give inputs that fit together"):
            do_inference(engine, {**mixed_feed(2), "right": mixed_feed(3)["right"]}, buffers)
        do_inference(engine, mixed_feed(2), buffers)


def test_the_answers_are_views_that_the_next_call_overwrites(networks):
    engine, memory = open_standin(networks / "picture.onnx")
    with allocate_buffers(engine, memory=memory) as buffers:
        first = do_inference(engine, picture(1, 1), buffers)["output"]
        kept = first.copy()
        do_inference(engine, picture(1, 2), buffers)
        assert not np.array_equal(first, kept)


def test_a_closed_engine_is_refused(networks):
    engine, memory = open_standin(networks / "picture.onnx")
    with allocate_buffers(engine, memory=memory) as buffers:
        engine.close()
        with pytest.raises(InputError, match="the engine is closed; load it again"):
            do_inference(engine, picture(1), buffers)
    assert memory.live == 0
    with pytest.raises(InputError, match="the engine is closed"):
        allocate_buffers(engine, memory=memory)
    assert memory.live == 0


def test_graphs_need_a_back_end_that_has_them(networks):
    engine, memory = open_standin(networks / "picture.onnx", memory=device.NoGraphs())
    with pytest.raises(InputError, match="offers no CUDA graphs; use memory='cuda-python', or cuda_graph=False"):
        allocate_buffers(engine, memory=memory, cuda_graph=True)


def test_a_network_that_cannot_be_recorded_says_so(networks):
    engine, memory = open_standin(networks / "picture.onnx")
    with allocate_buffers(engine, memory=memory, cuda_graph=True) as buffers:
        do_inference(engine, picture(1), buffers)
        buffers._context.is_stream_capturable = lambda stream: False  # only TensorRT-RTX has this method
        with pytest.raises(DeviceError, match="cannot be recorded as a CUDA graph for these shapes"):
            do_inference(engine, picture(1), buffers)


def test_a_context_that_does_not_come_is_explained(networks):
    engine, memory = open_standin(networks / "picture.onnx")
    engine.cuda_engine._refuse_context = True
    with pytest.raises(DeviceError, match=r"made no execution context.*TensorRT said: .*OutOfMemory"):
        allocate_buffers(engine, memory=memory)
    assert memory.live == 0


def test_a_failure_while_closing_does_not_hide_the_error_of_the_block(networks):
    engine, memory = open_standin(networks / "picture.onnx")
    with pytest.raises(KeyError) as caught, allocate_buffers(engine, memory=memory):
        memory.fail_at["destroy_stream"] = DeviceError("planted")
        raise KeyError("anything")
    assert caught.value.__notes__ == ["closing the buffers failed too: planted"]
    assert not memory.areas and not memory.pinned


def test_a_failure_while_closing_is_raised_and_the_rest_is_given_back(networks):
    engine, memory = open_standin(networks / "picture.onnx")
    buffers = allocate_buffers(engine, memory=memory)
    memory.fail_at["synchronize"] = DeviceError("planted")
    with pytest.raises(DeviceError, match="planted"):
        buffers.close()
    assert memory.live == 0
    buffers.close()


def test_repr_tells_the_state(networks):
    engine, memory = open_standin(networks / "picture.onnx")
    with allocate_buffers(engine, 2, memory=memory) as buffers:
        assert "batch 2" in repr(buffers) and "stand-in" in repr(buffers)
        # 2 pictures of 3x16x24, 2x5 classes and 2x8 features, all float32
        assert buffers.nbytes == 4 * (2 * 3 * 16 * 24 + 2 * 5 + 2 * 8)
    assert repr(buffers).endswith("closed>")


# The stand-in keeps to the signatures of the real bindings.


@functools.cache
def stub_classes(flavour):
    (path,) = (TYPINGS / flavour).rglob("*.pyi")
    return {item.name: item for item in ast.parse(path.read_text()).body if isinstance(item, ast.ClassDef)}


def stub_class(flavour, name):
    return stub_classes(flavour)[name]


def stub_methods(flavour, name):
    """Method name to parameter names and the number without a default, for each overload, and the properties."""
    found, properties = {}, set()
    for item in stub_class(flavour, name).body:
        if isinstance(item, ast.FunctionDef):
            if any(isinstance(mark, ast.Name) and mark.id == "property" for mark in item.decorator_list):
                properties.add(item.name)
            names = [argument.arg for argument in item.args.args][1:]
            found.setdefault(item.name, []).append((names, len(names) - len(item.args.defaults)))
    return found, properties


def public_methods(kind):
    for name, value in vars(kind).items():
        if not name.startswith("_"):
            yield name, value


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("name", ["IExecutionContext", "ICudaEngine"])
def test_the_stand_in_has_the_signatures_of_the_real_bindings(flavour, name):
    real, properties = stub_methods(flavour, name)
    checked = 0
    for method, value in public_methods(getattr(runtime, name)):
        assert method in real, f"{flavour} has no {name}.{method}"
        assert isinstance(value, property) == (method in properties)
        if not isinstance(value, property):
            names = list(inspect.signature(value).parameters)[1:]
            assert any(names == theirs[: len(names)] and len(names) >= needed for theirs, needed in real[method]), (
                f"{name}.{method}({', '.join(names)}) is not among {real[method]}"
            )
        checked += 1
    assert checked >= 7


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("name", ["DataType", "TensorIOMode", "TensorLocation"])
def test_the_stand_in_has_the_members_of_the_real_enumerations(flavour, name):
    members = {item.target.id for item in stub_class(flavour, name).body if isinstance(item, ast.AnnAssign)}
    assert set(getattr(runtime, name).__members__) <= members


def test_inference_calls_nothing_that_a_flavour_lacks():
    tree = ast.parse(Path(inference.__file__).read_text())
    called = {
        node.func.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Attribute | ast.Name)
        and getattr(node.func.value, "attr", getattr(node.func.value, "id", "")) in ("_context", "cuda_engine")
    }
    assert {"execute_async_v3", "set_input_shape", "set_tensor_address", "create_execution_context"} <= called
    for flavour in FLAVOURS:
        known = {*stub_methods(flavour, "IExecutionContext")[0], *stub_methods(flavour, "ICudaEngine")[0]}
        assert called <= known


def test_nothing_outside_the_tests_knows_the_stand_in():
    for path in Path(workbench.__file__).parent.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert not any(name.split(".")[0] in ("standin", "tests") for name in names), path
