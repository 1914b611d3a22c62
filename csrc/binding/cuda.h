// What every binding of CUDA kernels needs: the device and stream of a call, errors as exceptions, and the namespace
// and dispatch key of the operators. With IRNEXT_CUDA_HOST: the same kernels run by the host emulation on CPU tensors,
// as operators of a namespace of their own, for tests where there is no GPU.
#pragma once

#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <map>
#include <mutex>

#include "binding/arguments.h"
#include "irnext/cuda/attention.h"

#if defined(IRNEXT_CUDA_HOST)
#define IRNEXT_CUDA_NAMESPACE irnext_cuda_host
#define IRNEXT_CUDA_KEY CPU
#else
#define IRNEXT_CUDA_NAMESPACE irnext
#define IRNEXT_CUDA_KEY CUDA
#endif
#define IRNEXT_CUDA_IMPL(name, key, m) STABLE_TORCH_LIBRARY_IMPL(name, key, m)  // expands the names first
#define IRNEXT_CUDA_FRAGMENT(name, m) STABLE_TORCH_LIBRARY_FRAGMENT(name, m)

namespace irnext::binding {

inline void check(cudaError_t error, const char* what) {
  STD_TORCH_CHECK(error == cudaSuccess, what, ": ", cudaGetErrorString(error));
}

// What kernels on the current device can count on.
inline cuda::Device device_facts() {
  cuda::Device device;
  int capability = 0;
  check(cuda::current_device(&device), "asking for the device");
  check(cuda::compiled_capability(&capability), "asking for the kernels");
  device.capability = std::min(device.capability, capability);
  return device;
}

#if !defined(IRNEXT_CUDA_HOST)
// PyTorch's function for the stream as CUDA knows it. It lies in a library that only a PyTorch for CUDA has, and whose
// names other libraries do not see: linking against it, or a weak symbol, would not do.
inline cudaStream_t current_stream(int device) {
  using Function = AOTITorchError (*)(int32_t device_index, void** stream);
  static const Function function = [] {
    void* const library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    return library ? reinterpret_cast<Function>(dlsym(library, "aoti_torch_get_current_cuda_stream")) : nullptr;
  }();
  STD_TORCH_CHECK(function, "this PyTorch has no CUDA");
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(function(device, &stream));
  return static_cast<cudaStream_t>(stream);
}
#endif

// The device and stream that a tensor's kernels run on, for as long as this lives.
class Execution {
 public:
  explicit Execution(const stable::Tensor& tensor)
#if defined(IRNEXT_CUDA_HOST)
  {
    STD_TORCH_CHECK(tensor.is_cpu(), "these operators take CPU tensors");
    device_ = device_facts();
  }
#else
      : guard_(tensor.get_device_index()) {
    stream_ = current_stream(tensor.get_device_index());
    device_ = facts_of(tensor.get_device_index());
  }
#endif

  cudaStream_t stream() const { return stream_; }
  const cuda::Device& device() const { return device_; }

 private:
#if !defined(IRNEXT_CUDA_HOST)
  // Asked for once: the questions take longer than a launch.
  static cuda::Device facts_of(int index) {
    static std::mutex mutex;
    static std::map<int, cuda::Device> known;
    const std::lock_guard<std::mutex> lock(mutex);
    const auto found = known.find(index);
    return found != known.end() ? found->second : known[index] = device_facts();
  }

  stable::accelerator::DeviceGuard guard_;
#endif
  cudaStream_t stream_ = nullptr;
  cuda::Device device_ = {};
};

}  // namespace irnext::binding
