"""Both memory back ends on a real GPU: exact copies, bandwidth, leaks, threads, and life beside a framework."""

import gc
import threading
import time

import numpy as np
import pytest
from _onnxruntime_engine import CopyEngine

from workbench.core.errors import DeviceError
from workbench.engine.inference import allocate_buffers, do_inference
from workbench.engine.memory import open_memory

MIB = 1 << 20
NAMES = ("cuda-python", "pycuda")


@pytest.fixture(params=[pytest.param(name, marks=pytest.mark.needs(name)) for name in NAMES])
def memory(request):
    return open_memory(request.param)


def numbers(nbytes, seed=0):
    return np.random.default_rng(seed).integers(0, 256, nbytes, np.uint8)


@pytest.mark.parametrize("nbytes", [1, 4095, 64 * MIB + 3])
def test_bytes_survive_the_way_there_and_back(memory, nbytes):
    data = numbers(nbytes)
    with memory.active():
        stream, address = memory.create_stream(), memory.allocate(nbytes)
        there, back = memory.allocate_pinned(nbytes), memory.allocate_pinned(nbytes)
        there[:], back[:] = data, 0
        memory.copy_to_device(address, there, nbytes, stream)
        memory.copy_to_host(back, address, nbytes, stream)
        memory.synchronize(stream)
        memory.free(address)
        memory.destroy_stream(stream)
    np.testing.assert_array_equal(back, data)


def test_pinned_copies_are_faster_than_pageable_ones(memory, record_property):
    nbytes = 256 * MIB
    with memory.active():
        stream, address = memory.create_stream(), memory.allocate(nbytes)
        rates = {}
        for kind, host in (("pinned", memory.allocate_pinned(nbytes)), ("pageable", np.empty(nbytes, np.uint8))):
            host[:] = 1
            for way, copy in (
                ("to device", lambda host=host: memory.copy_to_device(address, host, nbytes, stream)),
                ("to host", lambda host=host: memory.copy_to_host(host, address, nbytes, stream)),
            ):
                samples = []
                for _ in range(8):
                    start = time.perf_counter()
                    copy()
                    memory.synchronize(stream)
                    samples.append(time.perf_counter() - start)
                rates[kind, way] = nbytes / np.median(samples) / 1e9
                record_property(f"{kind} {way}, GB/s", round(rates[kind, way], 1))
        memory.free(address)
        memory.destroy_stream(stream)
    for way in ("to device", "to host"):
        assert rates["pinned", way] > rates["pageable", way]


@pytest.mark.needs("cuda-python")
def test_ten_thousand_inferences_leak_nothing(memory, record_property):
    engine = CopyEngine(100_000, 4)
    with allocate_buffers(engine, 4, memory=memory) as buffers:
        images = [numbers(100_000 * batch, batch).reshape(batch, -1) for batch in (1, 4)]
        for index in range(100):
            do_inference(engine, images[index % 2], buffers)
        with memory.active():
            before = memory.memory_info()[0]
        start = time.perf_counter()
        for index in range(10_000):
            answer = do_inference(engine, images[index % 2], buffers)["output"]
            if index % 1000 < 2:
                np.testing.assert_array_equal(answer, images[index % 2])
        record_property("microseconds per call", round((time.perf_counter() - start) / 10_000 * 1e6, 1))
        with memory.active():
            lost = before - memory.memory_info()[0]
    record_property("bytes of GPU memory lost", lost)
    assert lost < 2 * MIB  # the smallest area lost in each call would be 5 MB


@pytest.mark.needs("cuda-python")
def test_buffers_made_and_closed_many_times_leak_nothing(memory, record_property):
    engine = CopyEngine(4 * MIB, 4)
    image = numbers(4 * MIB).reshape(1, -1)

    def cycle():
        with allocate_buffers(engine, 4, memory=memory) as buffers:
            do_inference(engine, image, buffers)

    for _ in range(3):
        cycle()
    with memory.active():
        before = memory.memory_info()[0]
    for _ in range(200):
        cycle()
    gc.collect()
    with memory.active():
        lost = before - memory.memory_info()[0]
    record_property("bytes of GPU memory lost", lost)
    assert lost < 16 * MIB  # 200 cycles that leaked would lose 3.2 GB


@pytest.mark.needs("cuda-python")
def test_an_answer_stays_readable_after_its_buffers_are_closed(memory):
    engine = CopyEngine(1000)
    image = numbers(2000).reshape(2, -1)
    with allocate_buffers(engine, 2, memory=memory) as buffers:
        answer = do_inference(engine, image, buffers)["output"]
    np.testing.assert_array_equal(answer, image)


@pytest.mark.needs("cuda-python")
def test_two_threads_get_their_own_answers(memory):
    engine, problems = CopyEngine(MIB, 3), []

    def work(seed):
        try:
            with allocate_buffers(engine, 3, memory=memory) as buffers:
                for step in range(200):
                    image = numbers(MIB * (1 + step % 3), seed + step).reshape(-1, MIB)
                    np.testing.assert_array_equal(do_inference(engine, image, buffers)["output"], image)
        except BaseException as error:  # reported below
            problems.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in (0, 10_000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    assert not problems


@pytest.mark.needs("cuda-python")
@pytest.mark.parametrize("framework", [pytest.param(name, marks=pytest.mark.needs(name)) for name in ("torch", "jax")])
def test_it_lives_beside_a_framework(memory, framework):
    engine = CopyEngine(MIB)
    compute = {"torch": torch_product, "jax": jax_product}[framework]
    image = numbers(MIB).reshape(1, -1)
    expected = compute()
    with allocate_buffers(engine, 1, memory=memory) as buffers:
        for _ in range(20):
            np.testing.assert_array_equal(do_inference(engine, image, buffers)["output"], image)
            np.testing.assert_array_equal(compute(), expected)
    np.testing.assert_array_equal(compute(), expected)


def torch_product():
    import torch

    x = torch.arange(256 * 256, dtype=torch.float32, device="cuda").reshape(256, 256) / 65536
    return (x @ x).cpu().numpy()


def jax_product():
    import jax.numpy as jnp

    x = jnp.arange(256 * 256, dtype=jnp.float32).reshape(256, 256) / 65536
    return np.asarray(x @ x)


def test_too_much_memory_is_refused_with_advice_and_the_gpu_goes_on(memory):
    with memory.active():
        with pytest.raises(DeviceError, match=r"failed for .* MiB of GPU memory: .*take a smaller batch"):
            memory.allocate(1 << 46)
        memory.free(memory.allocate(1000))


@pytest.mark.needs("cuda-python")
def test_an_error_has_cuda_s_own_name_and_does_not_stay(memory):
    if memory.name != "cuda-python":
        pytest.skip("pycuda: frees objects, so a wrong address cannot be given to it")
    with memory.active():
        with pytest.raises(DeviceError, match=r"cudaFree failed: cudaErrorInvalidValue \(1\), "):
            memory.free(12345)
        memory.free(memory.allocate(1000))


@pytest.mark.needs("cuda-python")
def test_a_graph_gives_the_same_answers_and_its_time_is_measured(record_property):
    engine, memory = CopyEngine(10_000, 4), open_memory("cuda-python")
    for graph in (False, True):
        with allocate_buffers(engine, 4, memory=memory, cuda_graph=graph) as buffers:
            for seed, batch in enumerate((2, 2, 2, 4, 4, 4, 2, 2)):
                image = numbers(10_000 * batch, seed).reshape(batch, -1)
                np.testing.assert_array_equal(do_inference(engine, image, buffers)["output"], image)
            assert buffers.replays == (5 if graph else 0)
            start = time.perf_counter()
            for _ in range(2000):
                do_inference(engine, image, buffers)
            each = (time.perf_counter() - start) / 2000
            record_property(f"microseconds per call {'with' if graph else 'without'} a graph", round(each * 1e6, 1))
