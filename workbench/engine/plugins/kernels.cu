// The device code of two layers, HardMish and Warp, and the two C functions that launch it. It needs CUDA alone, so a
// TensorRT plugin, a test through ctypes or any other program can call it.
//
// Both read float32 or float16, compute in float and round once at the end, like tests/custom_layers.py, and give the
// same bits as NumPy: no operation here is one that compilers may join into a fused multiply-add, but for the one in
// `between`, where __fmul_rn forbids it. A NaN stays a NaN; its bits may be others.
//
// Both layers do so little arithmetic that memory sets the time. What makes them fast: a thread reads and writes 16
// bytes at once where it can (`Pack`), and divides 32-bit numbers where they are wide enough (`Index`).
#include <cstdint>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

namespace
{
constexpr int threads = 256;

// Neighbouring numbers; one instruction reads or writes them where they are 2, 4 or 8, and so are aligned together.
template <typename T, int width>
struct alignas(width == 3 ? sizeof(T) : sizeof(T) * width) Pack
{
    T value[width];
};

// y = 0.5 * x * clip(x + 2, 0, 2) * gain. Element i belongs to channel (i / inner) % channels: `inner` is 1 where the
// channels are the last axis, and the size of a plane where they are followed by rows and columns.
template <typename T, int width, bool last_axis, typename Index>
__global__ void hard_mish(T const* __restrict__ x, T const* __restrict__ gain, T* __restrict__ y, Index count,
    Index channels, Index inner)
{
    Index const first = (blockIdx.x * Index(threads) + threadIdx.x) * width;
    if (first >= count)
        return;
    if (last_axis)
        inner = 1; // known to the compiler: the division below is gone
    Index const row = first / inner;
    Index left = inner - (first - row * inner); // how many elements of this channel follow, this one included
    Index channel = row % channels;
    float slope = static_cast<float>(gain[channel]);

    bool const whole = count - first >= width;
    Pack<T, width> pack{};
    if (whole)
        pack = *reinterpret_cast<Pack<T, width> const*>(x + first);
    else
        for (int k = 0; k < width; ++k)
            if (k < count - first)
                pack.value[k] = x[first + k];

#pragma unroll
    for (int k = 0; k < width; ++k)
    {
        float const v = static_cast<float>(pack.value[k]);
        float const moved = fminf(fmaxf(v + 2.0F, 0.0F), 2.0F);
        pack.value[k] = static_cast<T>(0.5F * v * moved * slope);
        if (--left == 0 && k + 1 < width)
        {
            left = inner;
            channel = channel + 1 == channels ? 0 : channel + 1;
            slope = static_cast<float>(gain[channel]);
        }
    }

    if (whole)
        *reinterpret_cast<Pack<T, width>*>(y + first) = pack;
    else
        for (int k = 0; k < width; ++k)
            if (k < count - first)
                y[first + k] = pack.value[k];
}

// A place between two neighbouring pixels: the first one, the second one, and the share of the second.
struct Place
{
    int first, second;
    float share;
};

// A position that is NaN becomes 0, so that nothing outside the picture is ever read.
__device__ Place locate(float position, int size)
{
    float const clamped = fminf(fmaxf(position, 0.0F), static_cast<float>(size - 1));
    float const before = floorf(clamped);
    int const first = static_cast<int>(before);
    return {first, min(first + 1, size - 1), clamped - before};
}

__device__ float between(float first, float second, float share)
{
    return first + __fmul_rn(second - first, share);
}

// A block covers a tile of blockDim.z rows and blockDim.y columns; the blockDim.x threads of a pixel share its packs.
template <typename T, int width, bool one_pack, typename Index>
__global__ void warp(T const* __restrict__ image, T const* __restrict__ flow, T* __restrict__ out, int batch, int rows,
    int columns, int packs)
{
    if (one_pack)
        packs = 1; // known to the compiler: the loop over them is gone
    int const column = blockIdx.x * blockDim.y + threadIdx.y;
    if (column >= columns)
        return;
    auto const* from = reinterpret_cast<Pack<T, width> const*>(image);
    auto* to = reinterpret_cast<Pack<T, width>*>(out);
    // a grid has at most 65535 blocks along y and z, so larger pictures and batches take further turns
    for (int n = blockIdx.z; n < batch; n += gridDim.z)
        for (int row = blockIdx.y * blockDim.z + threadIdx.z; row < rows; row += gridDim.y * blockDim.z)
        {
            Index const pixel = (Index(n) * rows + row) * columns + column;
            Place const down = locate(row + static_cast<float>(flow[2 * pixel]), rows);
            Place const along = locate(column + static_cast<float>(flow[2 * pixel + 1]), columns);
            Index const upper = (Index(n) * rows + down.first) * columns;
            Index const lower = (Index(n) * rows + down.second) * columns;
            for (int p = one_pack ? 0 : threadIdx.x; p < packs; p += blockDim.x)
            {
                Pack<T, width> const a = from[(upper + along.first) * packs + p];
                Pack<T, width> const b = from[(upper + along.second) * packs + p];
                Pack<T, width> const c = from[(lower + along.first) * packs + p];
                Pack<T, width> const d = from[(lower + along.second) * packs + p];
                Pack<T, width> answer;
#pragma unroll
                for (int k = 0; k < width; ++k)
                {
                    float const above = between(a.value[k], b.value[k], along.share);
                    float const below = between(c.value[k], d.value[k], along.share);
                    answer.value[k] = static_cast<T>(between(above, below, down.share));
                }
                to[pixel * packs + p] = answer;
            }
        }
}

bool fits_32_bits(int64_t count)
{
    return count <= INT32_MAX; // half of what uint32_t holds: the last block may count past the end
}

bool aligned(void const* address, size_t bytes)
{
    return reinterpret_cast<uintptr_t>(address) % bytes == 0;
}

template <typename T, int width, typename Index>
void launch_hard_mish(
    T const* x, T const* gain, T* y, int64_t count, int64_t channels, int64_t inner, cudaStream_t stream)
{
    int64_t const per_block = int64_t(threads) * width;
    auto const blocks = static_cast<unsigned>((count + per_block - 1) / per_block);
    auto const kernel = inner == 1 ? hard_mish<T, width, true, Index> : hard_mish<T, width, false, Index>;
    kernel<<<blocks, threads, 0, stream>>>(x, gain, y, Index(count), Index(channels), Index(inner));
}

template <typename T>
void choose_hard_mish(void const* x_, void const* gain_, void* y_, int64_t count, int64_t channels, int64_t inner,
    cudaStream_t stream)
{
    auto const *x = static_cast<T const*>(x_), *gain = static_cast<T const*>(gain_);
    auto* y = static_cast<T*>(y_);
    constexpr int width = 16 / sizeof(T);
    if (!aligned(x, 16) || !aligned(y, 16)) // a part of a larger array; TensorRT's tensors are aligned
        launch_hard_mish<T, 1, uint64_t>(x, gain, y, count, channels, inner, stream);
    else if (fits_32_bits(count))
        launch_hard_mish<T, width, uint32_t>(x, gain, y, count, channels, inner, stream);
    else
        launch_hard_mish<T, width, uint64_t>(x, gain, y, count, channels, inner, stream);
}

template <typename T, int width>
void launch_warp(
    T const* image, T const* flow, T* out, int batch, int rows, int columns, int channels, cudaStream_t stream)
{
    int each = 1; // threads for a pixel: one for each 32 bytes, a power of two, 32 at most
    while (each < 32 && each * 2 * 32 <= channels * static_cast<int>(sizeof(T)))
        each *= 2;
    int const across = min(32, threads / each);
    dim3 const block(each, across, threads / each / across);
    dim3 const grid((columns + block.y - 1) / block.y, min(65535U, (rows + block.z - 1) / block.z), min(65535, batch));
    auto kernel = channels == width ? warp<T, width, true, uint32_t> : warp<T, width, false, uint32_t>;
    if (!fits_32_bits(int64_t(batch) * rows * columns * max(channels, 2)))
        kernel = warp<T, width, false, uint64_t>;
    kernel<<<grid, block, 0, stream>>>(image, flow, out, batch, rows, columns, channels / width);
}

template <typename T>
void choose_warp(void const* image_, void const* flow_, void* out_, int batch, int rows, int columns, int channels,
    cudaStream_t stream)
{
    auto const *image = static_cast<T const*>(image_), *flow = static_cast<T const*>(flow_);
    auto* out = static_cast<T*>(out_);
    auto const fits = [&](int width)
    { return channels % width == 0 && aligned(image, width * sizeof(T)) && aligned(out, width * sizeof(T)); };
    if (sizeof(T) == 2 && fits(8))
        launch_warp<T, 16 / sizeof(T)>(image, flow, out, batch, rows, columns, channels, stream);
    else if (fits(4))
        launch_warp<T, 4>(image, flow, out, batch, rows, columns, channels, stream);
    else if (channels == 3)
        launch_warp<T, 3>(image, flow, out, batch, rows, columns, channels, stream);
    else if (fits(2))
        launch_warp<T, 2>(image, flow, out, batch, rows, columns, channels, stream);
    else
        launch_warp<T, 1>(image, flow, out, batch, rows, columns, channels, stream);
}
} // namespace

// All addresses are the GPU's; `half` is 0 for float32 and 1 for float16. They start the work on the stream and return
// at once, with 0 or CUDA's error number.

extern "C" __attribute__((visibility("default"))) int hard_mish_launch(void const* x, void const* gain, void* y,
    int64_t count, int64_t channels, int64_t inner, int32_t half, void* stream)
{
    if (count == 0)
        return cudaSuccess;
    if (count < 0 || channels < 1 || inner < 1 || count % inner != 0 || count / inner % channels != 0)
        return cudaErrorInvalidValue;
    auto const choose = half ? choose_hard_mish<__half> : choose_hard_mish<float>;
    choose(x, gain, y, count, channels, inner, static_cast<cudaStream_t>(stream));
    return cudaGetLastError();
}

extern "C" __attribute__((visibility("default"))) int warp_launch(void const* image, void const* flow, void* out,
    int64_t batch, int64_t rows, int64_t columns, int64_t channels, int32_t half, void* stream)
{
    if (batch < 0 || rows < 0 || columns < 0 || channels < 0)
        return cudaErrorInvalidValue;
    if (batch == 0 || rows == 0 || columns == 0 || channels == 0)
        return cudaSuccess;
    int64_t const largest = 1 << 28; // so that no sum of sizes leaves an int
    if (batch > largest || rows > largest || columns > largest || channels > largest)
        return cudaErrorInvalidValue;
    auto const choose = half ? choose_warp<__half> : choose_warp<float>;
    choose(image, flow, out, int(batch), int(rows), int(columns), int(channels), static_cast<cudaStream_t>(stream));
    return cudaGetLastError();
}
