"""What inference must do, as functions of the module that does it: run on the real module and on mutations of it.

Each takes the module `workbench.engine.inference` (or a mutation) and a folder of networks from `make_networks`.
"""

import gc
import threading

import numpy as np
import onnxruntime
from onnx_networks import mixed_feed, picture, save_mixed_network, save_picture_network
from standin.runtime import open_standin

from workbench.core.errors import DeviceError, FeedError, InputError


def make_networks(folder):
    """Write the networks that the checks run."""
    save_mixed_network(folder / "mixed.onnx")
    save_picture_network(folder / "picture.onnx")
    save_picture_network(folder / "open_size.onnx", size=("height", "width"))
    return folder


def reference(path, feed):
    """ONNX Runtime's own answer."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, feed), strict=True))


def require_equal(got, expected):
    """The stand-in computes with ONNX Runtime too, so not one bit may differ."""
    assert list(got) == list(expected)
    for name, array in expected.items():
        assert got[name].dtype == array.dtype, name
        np.testing.assert_array_equal(got[name], array)


def check_answers_for_any_batch_up_to_the_largest(inference, folder):
    path = folder / "mixed.onnx"
    engine, memory = open_standin(path)
    with inference.allocate_buffers(engine, 6, memory=memory) as buffers:
        for seed, batch in enumerate((6, 1, 3, 3, 6)):
            feed = mixed_feed(batch, seed)
            require_equal(inference.do_inference(engine, feed, buffers), reference(path, feed))


def check_an_array_is_enough_for_one_input(inference, folder):
    path = folder / "picture.onnx"
    engine, memory = open_standin(path)
    with inference.allocate_buffers(engine, memory=memory) as buffers:
        for seed in range(3):
            x = picture(1, seed)
            require_equal(inference.do_inference(engine, x, buffers), reference(path, {"input": x}))


def check_load_puts_the_images_into_pinned_memory(inference, folder):
    engine, memory = open_standin(folder / "picture.onnx")
    x = picture(2)
    with inference.allocate_buffers(engine, 4, memory=memory) as buffers:
        for view in (x, x[:, :, ::-1], x[..., ::2].repeat(2, axis=3), np.asfortranarray(x)):
            inference.load_images_to_buffer(view, buffers)
            areas = [area[: x.nbytes] for area in memory.pinned.values() if area.size >= x.nbytes]
            expected = np.ascontiguousarray(view).reshape(-1).view(np.uint8)
            assert any(np.array_equal(area, expected) for area in areas)


def check_a_graph_is_recorded_once_per_shape_after_one_run(inference, folder):
    path = folder / "mixed.onnx"
    engine, memory = open_standin(path)
    batches = (2, 2, 2, 5, 5, 5, 2, 2)
    with inference.allocate_buffers(engine, 5, memory=memory, cuda_graph=True) as buffers:
        for seed, batch in enumerate(batches):
            feed = mixed_feed(batch, seed)
            require_equal(inference.do_inference(engine, feed, buffers), reference(path, feed))
            assert len(memory.graphs) <= 1
        assert buffers.replays == 5
    assert memory.log.count("capture") == 3 and memory.log.count("launch") == 5
    assert memory.live == 0


def check_without_a_graph_nothing_is_recorded(inference, folder):
    engine, memory = open_standin(folder / "mixed.onnx")
    with inference.allocate_buffers(engine, 2, memory=memory) as buffers:
        for _ in range(3):
            inference.do_inference(engine, mixed_feed(2), buffers)
    assert "capture" not in memory.log and "launch" not in memory.log


def check_nothing_is_allocated_per_call(inference, folder):
    engine, memory = open_standin(folder / "mixed.onnx")
    with inference.allocate_buffers(engine, 4, memory=memory) as buffers:
        after = memory.allocations, len(memory.queues)
        for batch in (4, 2, 1, 4):
            inference.do_inference(engine, mixed_feed(batch), buffers)
        assert (memory.allocations, len(memory.queues)) == after
        assert after == (12, 1)  # six tensors, each on the device and pinned, and one stream


def check_everything_is_given_back(inference, folder):
    engine, memory = open_standin(folder / "mixed.onnx")
    with inference.allocate_buffers(engine, 2, memory=memory, cuda_graph=True) as buffers:
        for _ in range(2):
            inference.do_inference(engine, mixed_feed(2), buffers)
    buffers.close()
    assert memory.live == 0
    for use in (
        lambda: inference.do_inference(engine, mixed_feed(2), buffers),
        lambda: inference.load_images_to_buffer(mixed_feed(2), buffers),
    ):
        _require_refusal(InputError, "the buffers are closed", use)


def check_everything_is_given_back_after_an_exception(inference, folder):
    engine, memory = open_standin(folder / "mixed.onnx")
    try:
        with inference.allocate_buffers(engine, 2, memory=memory) as buffers:
            inference.do_inference(engine, mixed_feed(2), buffers)
            raise KeyError("anything")
    except KeyError:
        pass
    assert memory.live == 0


def check_a_failed_allocation_gives_back_what_was_made_before(inference, folder):
    engine, memory = open_standin(folder / "mixed.onnx")
    memory.capacity = 100
    _require_refusal(DeviceError, "out of memory", lambda: inference.allocate_buffers(engine, 8, memory=memory))
    gc.collect()
    assert memory.live == 0


def check_buffers_that_nobody_closes_are_given_back_with_their_last_reference(inference, folder):
    engine, memory = open_standin(folder / "mixed.onnx")
    buffers = inference.allocate_buffers(engine, 2, memory=memory)
    inference.do_inference(engine, mixed_feed(2), buffers)
    del buffers
    gc.collect()
    assert memory.live == 0


def check_the_second_profile_is_used_where_the_first_does_not_reach(inference, folder):
    path = folder / "picture.onnx"
    low, high = ((batch, 3, 16, 24) for batch in (1, 2)), ((batch, 3, 16, 24) for batch in (5, 9))
    (a, b), (c, d) = low, high
    engine, memory = open_standin(path, profiles=[{"input": (a, b, b)}, {"input": (c, c, d)}])
    with inference.allocate_buffers(engine, 9, memory=memory) as buffers:
        for batch in (9, 5):
            x = picture(batch)
            require_equal(inference.do_inference(engine, x, buffers), reference(path, {"input": x}))
    _require_refusal(
        InputError,
        "got batch_size=3, but this engine takes batches of 1 to 2 or 5 to 9",
        lambda: inference.allocate_buffers(engine, 3, memory=memory),
    )


def check_an_open_size_follows_the_picture(inference, folder):
    path = folder / "open_size.onnx"
    profile = {"input": ((1, 3, 8, 8), (2, 3, 16, 16), (4, 3, 32, 32))}
    engine, memory = open_standin(path, profiles=[profile])
    with inference.allocate_buffers(engine, 4, memory=memory, cuda_graph=True) as buffers:
        for batch, size in ((4, (32, 32)), (1, (8, 20)), (1, (8, 20)), (1, (8, 20)), (1, (20, 8))):
            x = picture(batch, batch, size)
            require_equal(inference.do_inference(engine, x, buffers), reference(path, {"input": x}))
        for size, axis in (((8, 33), 3), ((7, 8), 2)):
            _require_refusal(
                FeedError,
                f"axis {axis} is {size[axis - 2]}, and this engine's profile takes 8 to 32",
                lambda size=size: inference.do_inference(engine, picture(1, 0, size), buffers),
            )


def check_more_than_the_buffers_hold_is_refused(inference, folder):
    engine, memory = open_standin(folder / "mixed.onnx")
    with inference.allocate_buffers(engine, 2, memory=memory) as buffers:
        for batch, message in (
            (3, "the buffers were made for batch_size=2; call allocate_buffers(engine, batch_size=3)"),
            (9, "got a batch of 9, and this engine's profile takes 1 to 8"),
        ):
            _require_refusal(
                FeedError, message, lambda batch=batch: inference.do_inference(engine, mixed_feed(batch), buffers)
            )


def check_an_error_of_the_gpu_is_reported_by_the_call_that_caused_it(inference, folder):
    path = folder / "mixed.onnx"
    engine, memory = open_standin(path)
    with inference.allocate_buffers(engine, 2, memory=memory) as buffers:
        feed = mixed_feed(2)
        inference.do_inference(engine, feed, buffers)
        memory.fail_in_queue = DeviceError("cudaStreamSynchronize failed: planted")
        _require_refusal(
            DeviceError,
            "inference failed: cudaStreamSynchronize failed: planted",
            lambda: inference.do_inference(engine, feed, buffers),
        )
        feed = mixed_feed(2, 1)
        require_equal(inference.do_inference(engine, feed, buffers), reference(path, feed))
    assert memory.live == 0


def check_a_refused_execution_names_what_tensorrt_logged(inference, folder):
    path = folder / "mixed.onnx"
    for graph in (False, True):
        engine, memory = open_standin(path)
        with inference.allocate_buffers(engine, 2, memory=memory, cuda_graph=graph) as buffers:
            inference.do_inference(engine, mixed_feed(2), buffers)
            engine.cuda_engine._refuse_execution = True
            _require_refusal(
                DeviceError,
                "Cuda Runtime (planted)",
                lambda: inference.do_inference(engine, mixed_feed(2), buffers),  # noqa: B023
            )
            assert not any(memory.queues.values())  # nothing of the failed call runs later
            engine.cuda_engine._refuse_execution = False
            feed = mixed_feed(2, 3)
            require_equal(inference.do_inference(engine, feed, buffers), reference(path, feed))
        assert memory.live == 0


def check_buffers_serve_one_thread_at_a_time(inference, folder):
    engine, memory = open_standin(folder / "mixed.onnx")
    with inference.allocate_buffers(engine, 2, memory=memory) as buffers:
        inside, done, problems = threading.Event(), threading.Event(), []
        synchronize = memory.synchronize

        def slow(stream):
            inside.set()
            done.wait(10)
            synchronize(stream)

        def work():
            try:
                inference.do_inference(engine, mixed_feed(2), buffers)
            except BaseException as error:  # reported below
                problems.append(error)

        memory.synchronize = slow
        thread = threading.Thread(target=work)
        thread.start()
        try:
            assert inside.wait(10)
            _require_refusal(
                InputError,
                "in use in another thread; call allocate_buffers once per thread",
                lambda: inference.do_inference(engine, mixed_feed(2), buffers),
            )
        finally:
            done.set()
            thread.join(10)
            memory.synchronize = synchronize
        assert not problems
        inference.do_inference(engine, mixed_feed(1), buffers)


def check_two_threads_with_buffers_of_their_own(inference, folder):
    path = folder / "mixed.onnx"
    engine, memory = open_standin(path)
    problems = []

    def work(seed):
        try:
            with inference.allocate_buffers(engine, 3, memory=memory) as buffers:
                for step in range(10):
                    feed = mixed_feed(1 + step % 3, seed + step)
                    require_equal(inference.do_inference(engine, feed, buffers), reference(path, feed))
        except BaseException as error:  # reported below
            problems.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in (0, 100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not problems
    assert memory.live == 0


def check_buffers_of_another_engine_are_refused(inference, folder):
    engine, memory = open_standin(folder / "mixed.onnx")
    other, _ = open_standin(folder / "mixed.onnx", memory=memory)
    with inference.allocate_buffers(engine, 2, memory=memory) as buffers:
        _require_refusal(InputError, "another engine", lambda: inference.do_inference(other, mixed_feed(2), buffers))


def check_answers_stay_readable_after_closing(inference, folder):
    path = folder / "mixed.onnx"
    engine, memory = open_standin(path)
    feed = mixed_feed(2)
    with inference.allocate_buffers(engine, 2, memory=memory) as buffers:
        answers = inference.do_inference(engine, feed, buffers)
    require_equal(answers, reference(path, feed))
    assert len(memory.pinned) == len(answers)  # kept alive by the arrays, and by nothing else
    assert memory.live == len(answers)
    answers.clear()
    assert memory.live == 0


CHECKS = [value for name, value in sorted(globals().items()) if name.startswith("check_")]


def _require_refusal(kind, message, function):
    try:
        function()
    except kind as error:
        assert message in str(error), str(error)
    else:
        raise AssertionError(f"{kind.__name__} was not raised")
