#include "dispatch.h"

#include <algorithm>
#include <utility>

#include "../memory/system.h"

namespace snnfast::cpu {
namespace {

// Neuron-steps below which another thread costs more than it saves.
constexpr int64_t kGrain = 32768;

// Bytes of a cache line, which non-temporal stores write as a whole.
constexpr int64_t kAlignment = 64;

// The share of the last-level cache that a thread can expect: twice what processors have for each core. The system
// tells the size of the whole cache only, even to a virtual machine that shares it with others.
constexpr int64_t kCachePerThread = int64_t{8} << 20;

int64_t forced_stream_bytes = -1;

// Calls that touch this many bytes write their outputs by non-temporal stores: such outputs leave the caches before
// anybody reads them, and an ordinary store first reads each cache line from memory.
int64_t stream_bytes() {
  if (forced_stream_bytes >= 0) return forced_stream_bytes;
  const int64_t share = kCachePerThread * torch::stable::get_num_threads(), cache = system::last_level_cache();
  return cache > 0 && cache < share ? cache : share;
}

}  // namespace

bool streams(DType dtype, int64_t T, int64_t N, int rows, std::initializer_list<const void*> written) {
  const int64_t row = N * element_size(dtype);
  // The conversion of 16-bit rows takes longer than their way to memory.
  const int64_t limit = element_size(dtype) == 2 ? 2 * stream_bytes() : stream_bytes();
  if (rows * T * row < limit || row % kAlignment != 0) return false;
  for (const void* tensor : written) {
    if (reinterpret_cast<uintptr_t>(tensor) % kAlignment != 0) return false;
  }
  return true;
}

Shares shares(int64_t T, int64_t N, int64_t least_units) {
  const int64_t work = kUnit * std::clamp<int64_t>(T, 1, kGrain);  // more steps change nothing, and might overflow
  return {(N + kUnit - 1) / kUnit, work * least_units >= kGrain ? least_units : kGrain / work};
}

int64_t set_stream_bytes(int64_t bytes) { return std::exchange(forced_stream_bytes, bytes); }

}  // namespace snnfast::cpu
