// Whether a call fits the cache of its device.
#include <atomic>

#include "launch.cuh"

namespace snnfast::cuda {
namespace {

int64_t g_stream_bytes = -1;

// Of the current device; asked for once for each. 0 where it can't be told: then every call is streamed.
int64_t cache_bytes() {
  if (g_stream_bytes >= 0) return g_stream_bytes;
  constexpr int kDevices = 64;
  static std::atomic<int> known[kDevices];
  int device = 0, bytes = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return 0;
  if (device < kDevices) bytes = known[device].load(std::memory_order_relaxed);
  if (bytes != 0) return bytes;
  if (cudaDeviceGetAttribute(&bytes, cudaDevAttrL2CacheSize, device) != cudaSuccess) return 0;
  if (device < kDevices) known[device].store(bytes, std::memory_order_relaxed);
  return bytes;
}

int64_t kept_bytes(const LifProblem& p, Keep keep) {
  switch (keep) {
    case Keep::kCheckpoints: return checkpoint_rows(p.T) * p.N * acc_size(p.dtype);
    case Keep::kRounded: return p.T * p.N * 2;
    case Keep::kBits: return bit_rows(p.T) * p.N;
    case Keep::kNothing: break;
  }
  return 0;
}

}  // namespace

bool exceeds_cache(const LifForward& p) {
  const int rows = !p.x_constant + !p.spk_count + (p.mem_rec != nullptr);
  return rows * p.T * p.N * element_size(p.dtype) + kept_bytes(p, p.keep) > cache_bytes();
}

bool exceeds_cache(const LifBackward& p) {
  const int rows = (p.x != nullptr && !p.x_constant) + (p.grad_spk != nullptr && !p.spk_count) +
                   (p.grad_mem_rec != nullptr) + (p.grad_x != nullptr && !p.x_constant) + (p.mem_rec != nullptr);
  const int64_t derivative = p.derivative != nullptr ? p.T * p.N * acc_size(p.dtype) : 0;
  return rows * p.T * p.N * element_size(p.dtype) + derivative + kept_bytes(p, p.keep) > cache_bytes();
}

void set_stream_bytes(int64_t bytes) { g_stream_bytes = bytes; }

}  // namespace snnfast::cuda
