// Two TensorRT plugins: HardMish(x, gain) and Warp(image, flow), version "1", namespace "". The arithmetic is in
// kernels.cu; what both do is defined in tests/custom_layers.py.
//
// Needs TensorRT's public headers (TENSORRT_INCLUDE; NvInfer.h is in no Python package) and links nothing of TensorRT:
// it only implements pure interfaces, which carry versions of their own. A first version of HardMish, compiled against
// the headers of TensorRT 10.16 and of 11.1, ran on an H200 through a program like harness.cpp, and TensorRT-RTX 1.7.1
// built engines with it. This text makes the same calls. It was compiled against declarations of the same order and
// layout; so compiled, TensorRT-RTX 1.7.1 built engines with both plugins, and both ran on an H200 through harness.cpp.
#include <NvInfer.h>
#include <NvInferRuntimePlugin.h>
#include <cstdint>
#include <cstdio>
#include <new>

using namespace nvinfer1;

extern "C" int hard_mish_launch(void const* x, void const* gain, void* y, int64_t count, int64_t channels,
    int64_t inner, int32_t half, void* stream);
extern "C" int warp_launch(void const* image, void const* flow, void* out, int64_t batch, int64_t rows,
    int64_t columns, int64_t channels, int32_t half, void* stream);

namespace
{
void print(char const* before, Dims const& shape)
{
    std::fprintf(stderr, "%s(", before);
    for (int32_t i = 0; i < shape.nbDims; ++i)
        std::fprintf(stderr, "%s%lld", i ? ", " : "", static_cast<long long>(shape.d[i]));
    std::fprintf(stderr, ")");
}

// A layer is its name, whether two shapes fit together, and the call of its kernel.

struct HardMish
{
    static constexpr char const* name = "HardMish";
    static constexpr char const* expected = "a gain that broadcasts to x, with one axis that is not 1";

    struct Layout
    {
        bool fits = true;
        int64_t count = 1, channels = 1, inner = 1;
    };

    // Finds the axis of x that the gain runs along; `inner` is the size of what lies right of it.
    static Layout layout(Dims const& x, Dims const& gain)
    {
        Layout found;
        int64_t right = 1;
        for (int32_t i = 0; i < x.nbDims; ++i)
        {
            int32_t const axis = x.nbDims - 1 - i, of_gain = gain.nbDims - 1 - i; // both from the right, as NumPy does
            int64_t const size = of_gain < 0 ? 1 : gain.d[of_gain];
            if (size != 1)
            {
                found.fits = found.fits && size == x.d[axis] && found.channels == 1;
                found.channels = size;
                found.inner = right;
            }
            right *= x.d[axis];
        }
        found.count = right;
        found.fits = found.fits && gain.nbDims <= x.nbDims;
        return found;
    }
    static bool fits(Dims const& x, Dims const& gain) { return layout(x, gain).fits; }
    static int launch(
        Dims const& x, Dims const& gain, void const* const* inputs, void* output, int32_t half, void* stream)
    {
        Layout const found = layout(x, gain);
        return hard_mish_launch(
            inputs[0], inputs[1], output, found.count, found.channels, found.inner, half, stream);
    }
};

struct Warp
{
    static constexpr char const* name = "Warp";
    static constexpr char const* expected = "an image (N, H, W, C) and a flow (N, H, W, 2)";

    static bool fits(Dims const& image, Dims const& flow)
    {
        bool same = image.nbDims == 4 && flow.nbDims == 4 && flow.d[3] == 2;
        for (int32_t i = 0; same && i < 3; ++i)
            same = image.d[i] == flow.d[i];
        return same;
    }
    static int launch(
        Dims const& image, Dims const&, void const* const* inputs, void* output, int32_t half, void* stream)
    {
        int64_t const* d = image.d;
        return warp_launch(inputs[0], inputs[1], output, d[0], d[1], d[2], d[3], half, stream);
    }
};

// What TensorRT asks of a layer with two inputs and one output of the first one's shape and type. It keeps no state.
template <class Layer>
class Plugin final : public IPluginV3, public IPluginV3OneCore, public IPluginV3OneBuild, public IPluginV3OneRuntime
{
public:
    IPluginCapability* getCapabilityInterface(PluginCapabilityType type) noexcept override
    {
        switch (type)
        {
        case PluginCapabilityType::kCORE: return static_cast<IPluginV3OneCore*>(this);
        case PluginCapabilityType::kBUILD: return static_cast<IPluginV3OneBuild*>(this);
        case PluginCapabilityType::kRUNTIME: return static_cast<IPluginV3OneRuntime*>(this);
        }
        return nullptr;
    }
    IPluginV3* clone() noexcept override { return new (std::nothrow) Plugin(*this); }
    AsciiChar const* getPluginName() const noexcept override { return Layer::name; }
    AsciiChar const* getPluginVersion() const noexcept override { return "1"; }
    AsciiChar const* getPluginNamespace() const noexcept override { return ""; }

    // while an engine is built; sizes may not be known yet
    int32_t getNbOutputs() const noexcept override { return 1; }
    int32_t configurePlugin(DynamicPluginTensorDesc const*, int32_t inputs, DynamicPluginTensorDesc const*,
        int32_t outputs) noexcept override
    {
        return inputs == 2 && outputs == 1 ? 0 : refuse(inputs, outputs);
    }
    int32_t getOutputDataTypes(
        DataType* out, int32_t outputs, DataType const* in, int32_t inputs) const noexcept override
    {
        if (inputs != 2 || outputs != 1)
            return refuse(inputs, outputs);
        out[0] = in[0];
        return 0;
    }
    int32_t getOutputShapes(DimsExprs const* in, int32_t inputs, DimsExprs const*, int32_t, DimsExprs* out,
        int32_t outputs, IExprBuilder&) noexcept override
    {
        if (inputs != 2 || outputs != 1)
            return refuse(inputs, outputs);
        out[0] = in[0];
        return 0;
    }
    bool supportsFormatCombination(int32_t at, DynamicPluginTensorDesc const* io, int32_t, int32_t) noexcept override
    {
        PluginTensorDesc const& asked = io[at].desc;
        bool const type = asked.type == DataType::kFLOAT || asked.type == DataType::kHALF;
        return asked.format == TensorFormat::kLINEAR && type && asked.type == io[0].desc.type;
    }

    // while it runs; all sizes are known
    int32_t onShapeChange(PluginTensorDesc const* in, int32_t, PluginTensorDesc const*, int32_t) noexcept override
    {
        if (Layer::fits(in[0].dims, in[1].dims))
            return 0;
        std::fprintf(stderr, "%s got ", Layer::name);
        print("", in[0].dims);
        print(" and ", in[1].dims);
        std::fprintf(stderr, ", expected %s\n", Layer::expected);
        return -1;
    }
    int32_t enqueue(PluginTensorDesc const* in, PluginTensorDesc const*, void const* const* inputs,
        void* const* outputs, void*, cudaStream_t stream) noexcept override
    {
        if (int32_t const problem = onShapeChange(in, 2, nullptr, 1))
            return problem;
        int32_t const half = in[0].type == DataType::kHALF;
        return Layer::launch(in[0].dims, in[1].dims, inputs, outputs[0], half, stream);
    }
    IPluginV3* attachToContext(IPluginResourceContext*) noexcept override { return clone(); }
    PluginFieldCollection const* getFieldsToSerialize() noexcept override { return &mFields; }

private:
    static int32_t refuse(int32_t inputs, int32_t outputs)
    {
        std::fprintf(stderr, "%s got %d inputs and %d outputs, expected 2 and 1\n", Layer::name, inputs, outputs);
        return -1;
    }

    PluginFieldCollection mFields{0, nullptr};
};

template <class Layer>
class Creator final : public IPluginCreatorV3One
{
public:
    IPluginV3* createPlugin(AsciiChar const*, PluginFieldCollection const*, TensorRTPhase) noexcept override
    {
        return new (std::nothrow) Plugin<Layer>;
    }
    PluginFieldCollection const* getFieldNames() noexcept override { return &mFields; }
    AsciiChar const* getPluginName() const noexcept override { return Layer::name; }
    AsciiChar const* getPluginVersion() const noexcept override { return "1"; }
    AsciiChar const* getPluginNamespace() const noexcept override { return ""; }

private:
    PluginFieldCollection mFields{0, nullptr};
};
} // namespace

// The two names that TensorRT looks for when it loads the library (IPluginRegistry::loadLibrary).
extern "C" __attribute__((visibility("default"))) void setLoggerFinder(ILoggerFinder*) {}
extern "C" __attribute__((visibility("default"))) IPluginCreatorInterface* const* getCreators(int32_t& count)
{
    static Creator<HardMish> hard_mish;
    static Creator<Warp> warp;
    static IPluginCreatorInterface* const creators[] = {&hard_mish, &warp};
    count = 2;
    return creators;
}
