// The backends by which an op reaches the kernels of a device. The test emulator builds the CUDA sources for tensors on
// the CPU.
#pragma once

#include <string>

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include "guard.h"
#include "layout.h"
#include "problem.h"

#if defined(SNN_EMULATED)
#include "outputs.h"
#define SNN_CUDA_KEY CPU
#else
#include "../cpu/memory/pool.h"
#include "../cpu/unroll/dispatch.h"
#define SNN_CUDA_KEY CUDA
#endif

#if !defined(SNN_NAMESPACE)
#define SNN_NAMESPACE snnfast
#endif

#if !defined(USE_CUDA)
// A CPU build of torch lacks this one symbol. So it is weak, and checked before it is called.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index, void** stream);
#endif

namespace snnfast {

// torch's C function makes the tensor: torch::stable::new_empty would look the operator up by name, which takes as long
// as a kernel of a small step.
inline torch::stable::Tensor empty_strided(const torch::stable::Tensor& like, const Shape& shape, const Shape& strides,
                                           torch::headeronly::ScalarType dtype) {
  using torch::headeronly::ScalarType;
  const int32_t type = dtype == ScalarType::Float    ? aoti_torch_dtype_float32()
                       : dtype == ScalarType::Double ? aoti_torch_dtype_float64()
                       : dtype == ScalarType::Half   ? aoti_torch_dtype_float16()
                       : dtype == ScalarType::Byte   ? aoti_torch_dtype_uint8()
                                                     : aoti_torch_dtype_bfloat16();
  int32_t device = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device));
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(shape.size()), shape.data(), strides.data(),
                                                  type, device, like.get_device_index(), &handle));
  return torch::stable::Tensor(handle);
}

#if !defined(SNN_EMULATED)
struct CpuBackend {
  // Whether the kernels sum the gradient of a parameter that is one number over all neurons.
  static constexpr bool kSumsParameters = false;
  // Whether the kernels read a state that is one number for all neurons as such.
  static constexpr bool kReadsNumbers = false;

  static void check_device(const torch::stable::Tensor& t) {
    STD_TORCH_CHECK(t.is_cpu(), "expected tensors on the CPU");
  }

  // Returns an uninitialised tensor on the device of `like`, dense in some order of its dimensions.
  static torch::stable::Tensor empty(const torch::stable::Tensor& like, const Shape& shape, const Shape& strides,
                                     torch::headeronly::ScalarType dtype) {
    using torch::headeronly::ScalarType;
    size_t bytes = dtype == ScalarType::Double ? 8 : dtype == ScalarType::Float ? 4 : dtype == ScalarType::Byte ? 1 : 2;
    for (const int64_t size : shape) bytes *= static_cast<size_t>(size);
    if (bytes < cpu::pool::kLeast) return empty_strided(like, shape, strides, dtype);
    cpu::pool::Buffer buffer = cpu::pool::take(bytes);
    STD_TORCH_CHECK(buffer != nullptr, "snnfast: could not allocate ", bytes, " bytes for an output of shape ",
                    shape.text());
    torch::stable::Tensor t =
        torch::stable::from_blob(buffer.get(), {shape.data(), shape.size()}, {strides.data(), strides.size()},
                                 like.device(), dtype, &cpu::pool::give_back);
    (void)buffer.release();  // the tensor owns it now
    return t;
  }

  template <typename Neuron>
  static void run(const Forward<Neuron>& problem, const torch::stable::Tensor&) {
    cpu::forward(problem);
  }
  template <typename Neuron>
  static void run(const Backward<Neuron>& problem, const torch::stable::Tensor&) {
    cpu::backward(problem);
  }
};
#endif

struct CudaBackend {
  static constexpr bool kSumsParameters = true, kReadsNumbers = true;

#if defined(SNN_EMULATED)
  // An op calls this first, so that outputs which an earlier op left when it failed are forgotten.
  static void check_device(const torch::stable::Tensor& t) {
    emulator::outputs.clear();
    STD_TORCH_CHECK(t.is_cpu(), "expected tensors on the CPU");
  }

  static torch::stable::Tensor empty(const torch::stable::Tensor& like, const Shape& shape, const Shape& strides,
                                     torch::headeronly::ScalarType dtype) {
    torch::stable::Tensor t = empty_strided(like, shape, strides, dtype);
    emulator::add_output({t.mutable_data_ptr(), t.numel(), static_cast<size_t>(t.element_size())});
    return t;
  }

  template <typename Launch>
  static int on_stream_of(const torch::stable::Tensor&, Launch&& launch) {
    const int error = launch(nullptr);
    if (error != 0) return error;
    const std::string unwritten = emulator::describe_unwritten();
    STD_TORCH_CHECK(unwritten.empty(), "the kernel has not written ", unwritten);
    return 0;
  }
#else
  static torch::stable::Tensor empty(const torch::stable::Tensor& like, const Shape& shape, const Shape& strides,
                                     torch::headeronly::ScalarType dtype) {
    return empty_strided(like, shape, strides, dtype);
  }

  static void check_device(const torch::stable::Tensor& t) { STD_TORCH_CHECK(t.is_cuda(), "expected tensors on CUDA"); }

  // Launches on the caller's current stream of the tensor's device, with that device current.
  template <typename Launch>
  static int on_stream_of(const torch::stable::Tensor& t, Launch&& launch) {
    STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream != nullptr, "torch's CUDA library is not loaded");
    const torch::stable::accelerator::DeviceGuard guard(t.get_device_index());
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream));
    return launch(stream);
  }
#endif

  template <typename Neuron>
  static void run(const Forward<Neuron>& problem, const torch::stable::Tensor& t) {
    STD_TORCH_CHECK(problem.bits == nullptr, "bits: only on the CPU");
    STD_TORCH_CHECK(problem.saved != Saved::kSpikes, "saved: spikes only on the CPU");
    const int error = on_stream_of(t, [&](void* stream) { return cuda::forward(problem, stream); });
    STD_TORCH_CHECK(error == 0, "snnfast: the CUDA kernel ", Neuron::kName,
                    "_forward failed: ", cuda::error_string(error));
  }
  template <typename Neuron>
  static void run(const Backward<Neuron>& problem, const torch::stable::Tensor& t) {
    STD_TORCH_CHECK(problem.outputs.grad == nullptr, "weight: only on the CPU");
    STD_TORCH_CHECK(problem.saved != Saved::kSpikes, "saved: spikes only on the CPU");
    const int error = on_stream_of(t, [&](void* stream) { return cuda::backward(problem, stream); });
    STD_TORCH_CHECK(error == 0, "snnfast: the CUDA kernel ", Neuron::kName,
                    "_backward failed: ", cuda::error_string(error));
  }
};

}  // namespace snnfast
