// Calls a plugin's own enqueue in the order in which TensorRT does, without TensorRT: host code, interface and kernel
// run on any NVIDIA GPU, and NumPy judges the answer.
//
//   plugin_harness LIBRARY                                             lists the plugins of the library
//   plugin_harness LIBRARY PLUGIN TYPE OUT TENSOR... [--then OUT TENSOR...]... [--repeat N]
//
// TYPE is float32 or float16, a TENSOR is FILE:2x3x8x8, raw numbers in C order. The answer, of the first tensor's
// shape, goes to OUT. After each --then the same plugin object runs again, on tensors of other shapes. --repeat times
// the last tensors N times against copies of as many bytes, and prints one line of JSON.
//
// Exit status: 0 done, 1 the plugin refused or CUDA failed, 2 a bad argument or library, 77 no GPU.
#include <NvInfer.h>
#include <NvInferRuntimePlugin.h>
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

using namespace nvinfer1;

namespace
{
constexpr int refused = 1, bad = 2, no_gpu = 77;

[[noreturn]] void stop(int status, std::string const& sentence)
{
    std::fprintf(stderr, "%s\n", sentence.c_str());
    std::exit(status);
}

void check(cudaError_t error, char const* what)
{
    if (error != cudaSuccess)
        stop(refused, std::string(what) + " failed: " + cudaGetErrorString(error));
}

struct Tensor
{
    Dims shape{};
    size_t bytes = 0;
    std::vector<char> data;
    void* address = nullptr; // on the GPU
};

struct Call
{
    std::string out;
    std::vector<Tensor> tensors;
};

Tensor read_tensor(std::string const& argument, size_t item)
{
    size_t const colon = argument.rfind(':');
    if (colon == std::string::npos)
        stop(bad, "got the tensor " + argument + ", expected FILE:SHAPE, such as x.raw:2x3x8x8");
    Tensor tensor;
    tensor.bytes = item;
    for (char const* at = argument.c_str() + colon; *at; )
    {
        char* end = nullptr;
        long long const size = std::strtoll(at + 1, &end, 10);
        if (end == at + 1 || size < 0 || (*end && *end != 'x') || tensor.shape.nbDims == Dims::MAX_DIMS)
            stop(bad, "got the shape " + argument.substr(colon + 1) + ", expected up to 8 sizes, such as 2x3x8x8");
        tensor.shape.d[tensor.shape.nbDims++] = size;
        tensor.bytes *= static_cast<size_t>(size);
        at = end;
    }
    std::ifstream file(argument.substr(0, colon), std::ios::binary);
    tensor.data.assign(std::istreambuf_iterator<char>(file), {});
    if (!file || tensor.data.size() != tensor.bytes)
        stop(bad, "got " + std::to_string(tensor.data.size()) + " bytes in " + argument.substr(0, colon) + ", expected "
                + std::to_string(tensor.bytes));
    return tensor;
}

std::vector<Call> read_calls(int count, char** words, size_t item, int& repeat)
{
    std::vector<Call> calls(1);
    for (int i = 0; i < count; ++i)
    {
        std::string const word = words[i];
        if (word == "--then")
            calls.emplace_back();
        else if (word == "--repeat" && i + 1 < count)
        {
            repeat = std::atoi(words[++i]);
            if (repeat < 1)
                stop(bad, std::string("got --repeat ") + words[i] + ", expected a number from 1 on");
        }
        else if (calls.back().out.empty())
            calls.back().out = word;
        else
            calls.back().tensors.push_back(read_tensor(word, item));
    }
    for (Call const& call : calls)
        if (call.tensors.empty())
            stop(bad, "got no tensor, expected OUT and at least one FILE:SHAPE");
    return calls;
}

std::vector<IPluginCreatorV3One*> load_creators(char const* path)
{
    std::string const file = std::strchr(path, '/') ? path : std::string("./") + path;
    void* library = dlopen(file.c_str(), RTLD_NOW);
    if (!library)
        stop(bad, std::string("cannot load the library: ") + dlerror());
    using Get = IPluginCreatorInterface* const* (*) (int32_t&);
    auto const get = reinterpret_cast<Get>(dlsym(library, "getCreators"));
    if (!get)
        stop(bad, std::string(path) + " exports no getCreators, so it is no library of plugins");
    int32_t count = 0;
    IPluginCreatorInterface* const* found = get(count);
    std::vector<IPluginCreatorV3One*> creators;
    for (int32_t i = 0; i < count; ++i)
        if (std::strcmp(found[i]->getInterfaceInfo().kind, "PLUGIN CREATOR_V3ONE") == 0)
            creators.push_back(static_cast<IPluginCreatorV3One*>(found[i]));
    return creators;
}

template <class Interface>
Interface* capability(IPluginV3& plugin, PluginCapabilityType type)
{
    auto* found = plugin.getCapabilityInterface(type);
    if (!found)
        stop(refused, "the plugin lacks one of the three interfaces: core, build and runtime");
    return static_cast<Interface*>(found);
}

// What TensorRT asks when it builds: does the layer take these types, and what does it give?
void ask_types(IPluginV3& plugin, Call const& call, DataType type)
{
    auto* build = capability<IPluginV3OneBuild>(plugin, PluginCapabilityType::kBUILD);
    if (build->getNbOutputs() != 1)
        stop(bad, "the plugin has " + std::to_string(build->getNbOutputs()) + " outputs, expected 1");
    auto const inputs = static_cast<int32_t>(call.tensors.size());
    std::vector<DynamicPluginTensorDesc> all(inputs + 1);
    for (int32_t i = 0; i <= inputs; ++i)
    {
        Dims const& shape = call.tensors[i < inputs ? i : 0].shape;
        all[i] = {{shape, type, TensorFormat::kLINEAR, 1.0F}, shape, shape, shape};
        if (!build->supportsFormatCombination(i, all.data(), inputs, 1))
            stop(refused, "the plugin does not support this type for tensor " + std::to_string(i));
    }
    std::vector<DataType> const types(inputs, type);
    DataType given{};
    if (build->configurePlugin(all.data(), inputs, all.data() + inputs, 1) != 0
        || build->getOutputDataTypes(&given, 1, types.data(), inputs) != 0 || given != type)
        stop(refused, "the plugin refused these inputs, or answers in another type");
}

struct Run
{
    IPluginV3OneRuntime* runtime;
    std::vector<PluginTensorDesc> in;
    PluginTensorDesc out;
    std::vector<void const*> addresses;
    void* answer = nullptr;
    size_t bytes; // of all inputs and the answer

    Run(IPluginV3OneRuntime* runtime_, Call& call, DataType type)
        : runtime(runtime_)
        , out{call.tensors[0].shape, type, TensorFormat::kLINEAR, 1.0F}
        , bytes(call.tensors[0].bytes)
    {
        for (Tensor& tensor : call.tensors)
        {
            check(cudaMalloc(&tensor.address, std::max<size_t>(tensor.bytes, 1)), "cudaMalloc");
            check(cudaMemcpy(tensor.address, tensor.data.data(), tensor.bytes, cudaMemcpyHostToDevice), "cudaMemcpy");
            in.push_back({tensor.shape, type, TensorFormat::kLINEAR, 1.0F});
            addresses.push_back(tensor.address);
            bytes += tensor.bytes;
        }
        check(cudaMalloc(&answer, std::max<size_t>(call.tensors[0].bytes, 1)), "cudaMalloc");
        check(cudaMemset(answer, 0xFF, call.tensors[0].bytes), "cudaMemset"); // NaN: what is not written is seen
        if (runtime->onShapeChange(in.data(), static_cast<int32_t>(in.size()), &out, 1) != 0)
            stop(refused, "the plugin refused these shapes");
    }
    void enqueue(cudaStream_t stream)
    {
        int const status = runtime->enqueue(in.data(), &out, addresses.data(), &answer, nullptr, stream);
        if (status != 0)
            stop(refused, "enqueue answered " + std::to_string(status));
    }
    void free()
    {
        for (void const* address : addresses)
            check(cudaFree(const_cast<void*>(address)), "cudaFree");
        check(cudaFree(answer), "cudaFree");
    }
};

void write_answer(Call const& call, Run const& run, cudaStream_t stream)
{
    std::vector<char> data(call.tensors[0].bytes);
    check(cudaMemcpyAsync(data.data(), run.answer, data.size(), cudaMemcpyDeviceToHost, stream), "cudaMemcpyAsync");
    check(cudaStreamSynchronize(stream), "the kernel");
    std::ofstream file(call.out, std::ios::binary);
    if (!file.write(data.data(), static_cast<std::streamsize>(data.size())).flush())
        stop(bad, "cannot write " + call.out);
}

// The median time of `work` in microseconds, with an event of CUDA before and after each.
template <class Work>
double median_us(Work work, int repeat, cudaStream_t stream)
{
    std::vector<cudaEvent_t> events(2 * repeat);
    for (cudaEvent_t& event : events)
        check(cudaEventCreate(&event), "cudaEventCreate");
    for (int i = 0; i < 20; ++i)
        work();
    for (int i = 0; i < repeat; ++i)
    {
        check(cudaEventRecord(events[2 * i], stream), "cudaEventRecord");
        work();
        check(cudaEventRecord(events[2 * i + 1], stream), "cudaEventRecord");
    }
    check(cudaStreamSynchronize(stream), "the timed work");
    std::vector<float> times(repeat);
    for (int i = 0; i < repeat; ++i)
        check(cudaEventElapsedTime(&times[i], events[2 * i], events[2 * i + 1]), "cudaEventElapsedTime");
    for (cudaEvent_t event : events)
        check(cudaEventDestroy(event), "cudaEventDestroy");
    std::nth_element(times.begin(), times.begin() + repeat / 2, times.end());
    return times[repeat / 2] * 1e3;
}

void print_times(std::string const& plugin, std::string const& type, Run& run, int repeat, cudaStream_t stream)
{
    void *from = nullptr, *to = nullptr;
    size_t const half = run.bytes / 2; // a copy reads them and writes them
    check(cudaMalloc(&from, half + 1), "cudaMalloc");
    check(cudaMalloc(&to, half + 1), "cudaMalloc");
    check(cudaMemset(from, 0x5A, half + 1), "cudaMemset");
    double const ours = median_us([&] { run.enqueue(stream); }, repeat, stream);
    auto const copy_them = [&]
    { check(cudaMemcpyAsync(to, from, half, cudaMemcpyDeviceToDevice, stream), "cudaMemcpyAsync"); };
    double const copy = median_us(copy_them, repeat, stream);
    std::printf("{\"plugin\": \"%s\", \"type\": \"%s\", \"bytes\": %zu, \"repeat\": %d, \"median_us\": %.2f, "
                "\"copy_median_us\": %.2f, \"of_copy_rate\": %.3f}\n",
        plugin.c_str(), type.c_str(), run.bytes, repeat, ours, copy, copy / ours);
    check(cudaFree(from), "cudaFree");
    check(cudaFree(to), "cudaFree");
}
} // namespace

int main(int count, char** words)
{
    if (count != 2 && count < 6)
        stop(bad, "usage: plugin_harness LIBRARY [PLUGIN TYPE OUT TENSOR... [--then OUT TENSOR...] [--repeat N]]");
    std::vector<IPluginCreatorV3One*> const creators = load_creators(words[1]);
    if (count == 2)
    {
        for (auto* creator : creators)
            std::printf("%s version %s\n", creator->getPluginName(), creator->getPluginVersion());
        return 0;
    }
    std::string const name = words[2], type_name = words[3];
    auto const creator = std::find_if(
        creators.begin(), creators.end(), [&](IPluginCreatorV3One* c) { return name == c->getPluginName(); });
    if (creator == creators.end())
        stop(bad, "the library has no plugin " + name + "; without further arguments this program lists those it has");
    if (type_name != "float32" && type_name != "float16")
        stop(bad, "got the type " + type_name + ", expected float32 or float16");
    DataType const type = type_name == "float16" ? DataType::kHALF : DataType::kFLOAT;
    int repeat = 0;
    std::vector<Call> calls = read_calls(count - 4, words + 4, type == DataType::kHALF ? 2 : 4, repeat);

    PluginFieldCollection const none{0, nullptr};
    std::unique_ptr<IPluginV3> const plugin((*creator)->createPlugin("layer", &none, TensorRTPhase::kRUNTIME));
    if (!plugin)
        stop(refused, "createPlugin gave no plugin");
    for (Call const& call : calls)
        ask_types(*plugin, call, type);
    int devices = 0;
    if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0)
        stop(no_gpu, "no NVIDIA GPU was found, so nothing was run");

    cudaStream_t stream = nullptr;
    check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
    auto* const unattached = capability<IPluginV3OneRuntime>(*plugin, PluginCapabilityType::kRUNTIME);
    std::unique_ptr<IPluginV3> const attached(unattached->attachToContext(nullptr));
    if (!attached)
        stop(refused, "attachToContext gave no plugin");
    auto* const runtime = capability<IPluginV3OneRuntime>(*attached, PluginCapabilityType::kRUNTIME);
    for (Call& call : calls)
    {
        Run run(runtime, call, type);
        check(cudaDeviceSynchronize(), "the copies to the GPU"); // our stream does not wait for them by itself
        run.enqueue(stream);
        write_answer(call, run, stream);
        if (repeat > 0 && &call == &calls.back())
            print_times(name, type_name, run, repeat, stream);
        run.free();
    }
    check(cudaStreamDestroy(stream), "cudaStreamDestroy");
    return 0;
}
