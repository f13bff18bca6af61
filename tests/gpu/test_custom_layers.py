"""The kernels of HardMish and Warp on a GPU against NumPy, and the plugins around them, run without TensorRT.

All answers are compared bit for bit (a NaN with any NaN): the kernels do NumPy's float32 operations in NumPy's order,
and nothing is joined into a fused multiply-add.
"""

import ctypes
import json
import subprocess
from contextlib import contextmanager

import numpy as np
import pytest
from custom_layers import hard_mish, warp
from plugin_builds import compile_kernels, compile_plugins

from workbench.core.driver import probe_driver
from workbench.engine.memory import open_memory

pytestmark = pytest.mark.needs("cuda-python", "nvcc")
TYPES = pytest.mark.parametrize("dtype", [np.float32, np.float16])
NEEDS_HEADERS = pytest.mark.needs("tensorrt-headers")
INVALID_VALUE = 1  # cudaErrorInvalidValue of cuda's driver_types.h
GUARD = 256  # bytes on either side of the answer that nobody may touch
MIB = 1 << 20
# (shape of x, shape of gain): channels first and last, odd sizes, one channel, and a gain with fewer axes
LAYOUTS = [
    ((2, 3, 8, 8), (1, 3, 1, 1)),
    ((1, 64, 56, 56), (64, 1, 1)),
    ((3, 5, 7, 9), (1, 5, 1, 1)),
    ((2, 3, 1, 1), (1, 3, 1, 1)),
    ((2, 2, 3, 4, 5), (2, 1, 1, 1)),
    ((3, 1, 5), (1, 1, 1)),
    ((3, 17, 13, 64), (64,)),
    ((2, 7, 11, 3), (3,)),
    ((5, 1, 7), (1, 1, 7)),
    ((1, 1, 1, 1), (1,)),
    ((9,), (9,)),
    ((9,), ()),
]
PICTURES = [(1, 1, 1, 1), (2, 5, 7, 3), (1, 33, 65, 4), (3, 17, 9, 8), (1, 20, 31, 6), (2, 3, 130, 64), (1, 4, 5, 257)]


@pytest.fixture(scope="module")
def here():
    """The architecture of this machine's GPU, such as ("90",)."""
    return (probe_driver().gpus[0].capability.replace(".", ""),)


@pytest.fixture(scope="module")
def kernels(tmp_path_factory, here):
    library = ctypes.CDLL(str(compile_kernels(tmp_path_factory.mktemp("kernels"), here)))
    address, size, flag = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32
    library.hard_mish_launch.argtypes = [address] * 3 + [size] * 3 + [flag, address]
    library.warp_launch.argtypes = [address] * 3 + [size] * 4 + [flag, address]
    return library


@pytest.fixture(scope="module")
def memory():
    return open_memory("cuda-python")


@pytest.fixture(scope="module")
def programs(tmp_path_factory, here):
    return compile_plugins(tmp_path_factory.mktemp("plugins"), here)


def launch(memory, function, arrays, sizes, offset=0):
    """Call a launcher on copies of two arrays; return its status and an answer like the first one.

    `offset` moves all three away from the 256-byte boundaries of CUDA's allocations. The answer is NaN before the call.
    """
    first, second = (np.ascontiguousarray(array) for array in arrays)
    with memory.active():
        stream, addresses = memory.create_stream(), []
        room = np.full(first.nbytes + 2 * GUARD, 0xFF, np.uint8)
        for host in (first, second, room):
            addresses.append(memory.allocate(host.nbytes + GUARD))
            memory.copy_to_device(addresses[-1] + offset, bytes_of(host), host.nbytes, stream)
        x, other, answer = (address + offset for address in addresses)
        half = int(first.dtype == np.float16)
        status = function(x, other, answer + GUARD, *sizes, half, stream)
        memory.copy_to_host(room, answer, room.nbytes, stream)
        memory.synchronize(stream)
        for address in addresses:
            memory.free(address)
        memory.destroy_stream(stream)
    assert (room[:GUARD] == 0xFF).all() and (room[GUARD + first.nbytes :] == 0xFF).all()
    return status, room[GUARD : GUARD + first.nbytes].view(first.dtype).reshape(first.shape)


def bytes_of(array):
    return array.reshape(-1).view(np.uint8)


def run_hard_mish(memory, kernels, x, gain, offset=0):
    axes = (1,) * (x.ndim - gain.ndim) + gain.shape
    axis = next((index for index, size in enumerate(axes) if size != 1), x.ndim - 1)
    sizes = x.size, gain.size, int(np.prod(x.shape[axis + 1 :]))
    status, answer = launch(memory, kernels.hard_mish_launch, (x, gain), sizes, offset)
    assert status == 0
    return answer


def run_warp(memory, kernels, image, flow, offset=0):
    status, answer = launch(memory, kernels.warp_launch, (image, flow), image.shape, offset)
    assert status == 0
    return answer


def numbers(shape, dtype, scale=3.0, seed=0):
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(dtype)


def same(answer, expected):
    """Equal to the last bit, the sign of a zero included; the bits of a NaN do not count."""
    nan = np.isnan(expected)
    np.testing.assert_array_equal(np.isnan(answer), nan)
    bits = np.uint16 if expected.dtype == np.float16 else np.uint32
    np.testing.assert_array_equal(answer.view(bits)[~nan], expected.view(bits)[~nan])


# HardMish


@TYPES
@pytest.mark.parametrize(("shape", "gain_shape"), LAYOUTS)
def test_hard_mish_is_numpy_s_to_the_last_bit(memory, kernels, shape, gain_shape, dtype):
    x, gain = numbers(shape, dtype), numbers(gain_shape, dtype, 1.0, 1)
    same(run_hard_mish(memory, kernels, x, gain), hard_mish(x, gain))


@TYPES
def test_both_take_batches_of_1_to_16(memory, kernels, dtype):
    for batch in range(1, 17):
        x, gain = numbers((batch, 5, 3, 7), dtype, seed=batch), numbers((5, 1, 1), dtype, 1.0, 1)
        same(run_hard_mish(memory, kernels, x, gain), hard_mish(x, gain))
        image, flow = numbers((batch, 6, 11, 3), dtype, seed=batch), numbers((batch, 6, 11, 2), dtype, 2.0, 1)
        same(run_warp(memory, kernels, image, flow), warp(image, flow))


@TYPES
def test_hard_mish_of_every_float16(memory, kernels, dtype):
    """All 65,536 of them, subnormal, infinite and NaN ones too, with gains that overflow and underflow."""
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(dtype)
    gain = np.array([1, -2, 0, 1e-7, 60000, np.inf, -np.inf, np.nan], dtype)
    x = np.repeat(every, gain.size).reshape(-1, gain.size)
    same(run_hard_mish(memory, kernels, x, gain), hard_mish(x, gain))
    x = np.ascontiguousarray(x.T)
    same(run_hard_mish(memory, kernels, x, gain[:, None]), hard_mish(x, gain[:, None]))


@TYPES
@pytest.mark.parametrize(("shape", "gain_shape"), [((2, 3, 8, 8), (3, 1, 1)), ((5, 7, 16), (16,))])
def test_hard_mish_takes_addresses_that_are_not_multiples_of_16(memory, kernels, shape, gain_shape, dtype):
    x, gain = numbers(shape, dtype), numbers(gain_shape, dtype, 1.0, 1)
    same(run_hard_mish(memory, kernels, x, gain, offset=x.itemsize), hard_mish(x, gain))


@TYPES
def test_an_empty_batch_is_nothing_to_do(memory, kernels, dtype):
    gain = numbers((3, 1, 1), dtype)
    assert run_hard_mish(memory, kernels, np.empty((0, 3, 4, 4), dtype), gain).shape == (0, 3, 4, 4)
    for shape in ((0, 4, 4, 3), (2, 0, 4, 3), (2, 4, 0, 3), (2, 4, 4, 0)):
        flow = np.zeros((*shape[:3], 2), dtype)
        assert run_warp(memory, kernels, np.empty(shape, dtype), flow).shape == shape


def test_sizes_that_cannot_be_are_refused_and_nothing_is_written(memory, kernels):
    x, gain = numbers((2, 3, 4), np.float32), numbers((3, 1), np.float32)
    for sizes in ((-24, 3, 4), (24, 0, 4), (24, 3, 0), (24, 5, 4), (24, 3, 7), (24, 3, 48)):
        status, answer = launch(memory, kernels.hard_mish_launch, (x, gain), sizes)
        assert status == INVALID_VALUE and np.isnan(answer).all(), sizes
    for sizes in ((-1, 2, 3, 4), (1, 2, 3, -4), (1, 1 << 31, 3, 4)):
        status, answer = launch(memory, kernels.warp_launch, (x, gain), sizes)
        assert status == INVALID_VALUE and np.isnan(answer).all(), sizes


def test_hard_mish_of_more_numbers_than_32_bits_count(memory, kernels):
    """A little over 2**32 float16 numbers: the index arithmetic is another one there. The last million is compared."""
    channels, inner, tail = 5, 8, 1 << 20
    count = ((1 << 32) // (channels * inner) + 1) * channels * inner
    tile, gain = numbers(32 * MIB, np.float16), numbers((channels,), np.float16, 1.0, 1)
    answer = np.full(tail, np.nan, np.float16)
    with large_areas(memory, 2 * count, 2 * channels, 2 * count) as (stream, x, slopes, y):
        fill(memory, stream, x, tile, 2 * count)
        fill(memory, stream, slopes, gain, 2 * channels)
        fill(memory, stream, y + 2 * (count - tail), answer, 2 * tail)
        assert kernels.hard_mish_launch(x, slopes, y, count, channels, inner, 1, stream) == 0
        memory.copy_to_host(bytes_of(answer), y + 2 * (count - tail), 2 * tail, stream)
        memory.synchronize(stream)
    index = np.arange(count - tail, count)
    same(answer, hard_mish(tile[index % tile.size], gain[index // inner % channels]))


@contextmanager
def large_areas(memory, *sizes):
    """A stream and areas of many bytes, where the GPU has that much memory."""
    with memory.active():
        free = memory.memory_info()[0]
        if free < sum(sizes) + 512 * MIB:
            pytest.skip(f"it needs {sum(sizes) / 1e9:.0f} GB of GPU memory, and {free / 1e9:.0f} GB are free")
        stream, addresses = memory.create_stream(), [memory.allocate(size) for size in sizes]
        yield (stream, *addresses)
        for address in addresses:
            memory.free(address)
        memory.destroy_stream(stream)


def fill(memory, stream, address, tile, nbytes):
    """Repeat an array until `nbytes` are full."""
    for at in range(0, nbytes, tile.nbytes):
        memory.copy_to_device(address + at, bytes_of(tile), min(tile.nbytes, nbytes - at), stream)


# Warp


@TYPES
@pytest.mark.parametrize("shape", PICTURES)
def test_warp_is_numpy_s_to_the_last_bit(memory, kernels, shape, dtype):
    image = numbers(shape, dtype)
    for pixels in (0.0, 0.7, 4.0, 1e4):  # still, near, over the border, far outside
        flow = numbers((*shape[:3], 2), dtype, pixels, 1)
        same(run_warp(memory, kernels, image, flow), warp(image, flow))


@TYPES
def test_a_still_flow_copies_the_picture_and_a_whole_one_moves_it(memory, kernels, dtype):
    image, flow = numbers((1, 9, 10, 4), dtype), np.zeros((1, 9, 10, 2), dtype)
    np.testing.assert_array_equal(run_warp(memory, kernels, image, flow), image)
    flow[...] = 2, -3
    moved = run_warp(memory, kernels, image, flow)
    np.testing.assert_array_equal(moved[:, :-2, 3:], image[:, 2:, :-3])
    np.testing.assert_array_equal(moved[:, -2:, 3:], np.repeat(image[:, -1:, :-3], 2, axis=1))
    np.testing.assert_array_equal(moved[:, :-2, :3], np.repeat(image[:, 2:, :1], 3, axis=2))


@TYPES
@pytest.mark.parametrize("channels", [1, 3, 8])
def test_warp_takes_flows_and_pictures_that_are_nan_or_infinite(memory, kernels, channels, dtype):
    image, flow = numbers((1, 16, 12, channels), dtype), numbers((1, 16, 12, 2), dtype)
    odd = np.array([np.nan, np.inf, -np.inf, -0.0, 65504, -65504], dtype)
    flow.reshape(-1)[::5][:60] = np.tile(odd, 10)
    same(run_warp(memory, kernels, image, flow), warp(image, flow))
    image.reshape(-1)[::17][: odd.size] = odd
    same(run_warp(memory, kernels, image, flow), warp(image, flow))


@TYPES
def test_warp_reads_nothing_beyond_the_border(memory, kernels, dtype):
    """What follows the last column in memory is the next row, and what follows the last row the next picture."""
    image, flow = numbers((3, 5, 6, 2), dtype), np.full((3, 5, 6, 2), 100, dtype)
    last = image[:, -1:, -1:].copy()
    image[:, :-1], image[:, :, :-1] = np.nan, np.nan
    np.testing.assert_array_equal(run_warp(memory, kernels, image, flow), np.broadcast_to(last, image.shape))


@TYPES
@pytest.mark.parametrize("channels", [1, 4, 8])
def test_warp_takes_addresses_that_are_not_multiples_of_16(memory, kernels, channels, dtype):
    image, flow = numbers((2, 7, 9, channels), dtype), numbers((2, 7, 9, 2), dtype)
    for offset in (image.itemsize, 2 * image.itemsize):
        same(run_warp(memory, kernels, image, flow, offset), warp(image, flow))


@pytest.mark.parametrize("shape", [(70_000, 1, 2, 1), (1, 600_000, 1, 1), (1, 1, 600_000, 2)])
def test_warp_takes_more_rows_and_pictures_than_a_grid_has_blocks(memory, kernels, shape):
    image, flow = numbers(shape, np.float32), numbers((*shape[:3], 2), np.float32)
    same(run_warp(memory, kernels, image, flow), warp(image, flow))


def test_warp_of_more_numbers_than_32_bits_count(memory, kernels):
    """Four pictures of 1.3 * 2**30 float16 numbers each; the last rows of the last one are compared."""
    batch, rows, columns, channels, seen = 4, 1 << 14, 1 << 14, 5, 16
    tile, moves = numbers((1, 64, columns, channels), np.float16), numbers((1, 64, columns, 2), np.float16, 1.0, 1)
    moves = np.clip(moves, -4, 4)  # so that the rows compared look nowhere else
    pixels = batch * rows * columns
    answer = np.full((seen, columns, channels), np.nan, np.float16)
    nbytes = 2 * pixels * channels
    with large_areas(memory, nbytes, 4 * pixels, nbytes) as (stream, image, flow, out):
        fill(memory, stream, image, tile, nbytes)
        fill(memory, stream, flow, moves, 4 * pixels)
        fill(memory, stream, out + nbytes - answer.nbytes, answer, answer.nbytes)
        assert kernels.warp_launch(image, flow, out, batch, rows, columns, channels, 1, stream) == 0
        memory.copy_to_host(bytes_of(answer), out + nbytes - answer.nbytes, answer.nbytes, stream)
        memory.synchronize(stream)
    # a position this far down, in float32, has fewer bits left for the share of the next row
    start, row = np.float32(rows - 64), np.arange(64, dtype=np.float32)[:, None]
    down = (start + row + moves[0, ..., 0].astype(np.float32)) - start - row
    near = np.stack([down, moves[0, ..., 1].astype(np.float32)], -1)[None]
    same(answer, warp(tile.astype(np.float32), near)[0, -seen:].astype(np.float16))


# The plugins, in TensorRT's order of calls


def run_harness(programs, folder, plugin, calls, *more):
    library, harness = programs
    words, outs = [], []
    for number, arrays in enumerate(calls):
        words += ["--then"] * (number > 0) + [folder / f"answer{number}"]
        outs.append(folder / f"answer{number}")
        for index, array in enumerate(arrays):
            path = folder / f"tensor{number}_{index}"
            array.tofile(path)
            words.append(f"{path}:{'x'.join(map(str, array.shape))}")
    command = [harness, library, plugin, calls[0][0].dtype.name, *words, *more]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=120)
    pairs = [(out, arrays[0]) for out, arrays in zip(outs, calls, strict=True) if out.exists()]
    return done, [np.fromfile(out, first.dtype).reshape(first.shape) for out, first in pairs]


@NEEDS_HEADERS
@TYPES
def test_the_hard_mish_plugin_finds_the_channels_itself(programs, tmp_path, dtype):
    calls = [(numbers(shape, dtype), numbers(gain, dtype, 1.0, 1)) for shape, gain in LAYOUTS if gain]
    done, answers = run_harness(programs, tmp_path, "HardMish", calls)
    assert done.returncode == 0, done.stderr
    for answer, (x, gain) in zip(answers, calls, strict=True):
        same(answer, hard_mish(x, gain))


@NEEDS_HEADERS
@TYPES
def test_the_warp_plugin_follows_the_flow(programs, tmp_path, dtype):
    calls = [(numbers(shape, dtype), numbers((*shape[:3], 2), dtype, 2.0, 1)) for shape in PICTURES]
    done, answers = run_harness(programs, tmp_path, "Warp", calls)
    assert done.returncode == 0, done.stderr
    for answer, (image, flow) in zip(answers, calls, strict=True):
        same(answer, warp(image, flow))


@NEEDS_HEADERS
@pytest.mark.parametrize(
    ("plugin", "shapes", "words"),
    [
        ("HardMish", [(2, 3, 4, 4), (4, 1, 1)], "HardMish got (2, 3, 4, 4) and (4, 1, 1), expected a gain"),
        ("HardMish", [(2, 3, 4, 4), (3, 4, 1)], "HardMish got (2, 3, 4, 4) and (3, 4, 1), expected a gain"),
        ("HardMish", [(3,), (1, 3)], "HardMish got (3) and (1, 3), expected a gain"),
        ("Warp", [(1, 4, 5, 3), (1, 4, 5, 3)], "Warp got (1, 4, 5, 3) and (1, 4, 5, 3), expected an image"),
        ("Warp", [(1, 4, 5, 3), (1, 4, 6, 2)], "Warp got (1, 4, 5, 3) and (1, 4, 6, 2), expected an image"),
        ("Warp", [(4, 5, 3), (4, 5, 2)], "Warp got (4, 5, 3) and (4, 5, 2), expected an image"),
        ("Warp", [(1, 4, 5, 3)], "Warp got 1 inputs and 1 outputs, expected 2 and 1"),
    ],
)
def test_a_plugin_refuses_shapes_that_do_not_fit_and_says_which(programs, tmp_path, plugin, shapes, words):
    done, answers = run_harness(programs, tmp_path, plugin, [[numbers(shape, np.float32) for shape in shapes]])
    assert done.returncode == 1 and words in done.stderr
    assert answers == []


@NEEDS_HEADERS
def test_the_harness_times_a_plugin_against_a_copy(programs, tmp_path, record_property):
    x, gain = numbers((4, 64, 112, 112), np.float32), numbers((64, 1, 1), np.float32)
    done, (answer,) = run_harness(programs, tmp_path, "HardMish", [(x, gain)], "--repeat", 50)
    assert done.returncode == 0, done.stderr
    same(answer, hard_mish(x, gain))
    times = json.loads(done.stdout)
    assert times["bytes"] == 2 * x.nbytes + gain.nbytes and times["repeat"] == 50
    assert times["median_us"] > 0 and times["copy_median_us"] > 0
    record_property("of the copy rate", times["of_copy_rate"])
