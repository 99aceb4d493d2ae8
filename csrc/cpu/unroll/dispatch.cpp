#include "dispatch.h"

#include <algorithm>
#include <cstdlib>
#include <utility>

#if defined(__linux__)
#include <unistd.h>
#endif

#include <torch/headeronly/util/Exception.h>

namespace snnfast::cpu {
namespace {

// Neuron-steps below which another thread costs more than it saves.
constexpr int64_t kGrain = 32768;

// Of what non-temporal stores write: whole cache lines.
constexpr int64_t kAlignment = 64;

constexpr const char* kIsaNames[] = {"baseline", "avx2", "avx512"};

bool processor_has(Isa isa) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (isa == Isa::avx512) return __builtin_cpu_supports("x86-64-v4");
  if (isa == Isa::avx2) return __builtin_cpu_supports("x86-64-v3");
#endif
  return isa == Isa::baseline;
}

const char* name_of(Isa isa) { return kIsaNames[static_cast<int>(isa)]; }

std::vector<Isa> available() {  // best first
#define SNN_ITEM(isa, ...) Isa::isa,
  std::vector<Isa> found{SNN_ISAS(SNN_ITEM)};
#undef SNN_ITEM
  std::erase_if(found, [](Isa isa) { return !processor_has(isa); });
  return found;
}

Isa find(const std::string& name) {
  std::string names;
  for (const Isa isa : available()) {
    if (name == name_of(isa)) return isa;
    names += (names.empty() ? "" : ", ") + std::string(name_of(isa));
  }
  STD_TORCH_CHECK(false, "SNNFAST_ISA: '", name, "' is not available here; available: ", names);
}

Isa& current() {
  static Isa chosen = [] {
    const char* wanted = std::getenv("SNNFAST_ISA");
    if (wanted != nullptr && *wanted != '\0') return find(wanted);
    const std::vector<Isa> found = available();
    STD_TORCH_CHECK(!found.empty(), "the kernels were built for another processor than this one");
    return found.front();
  }();
  return chosen;
}

// What a thread can count on of a last-level cache that many cores share: twice what processors have for each core. The
// system tells the size of the whole cache, to a virtual machine even where other machines use it too.
constexpr int64_t kCachePerThread = int64_t{8} << 20;

// Bytes of the last-level cache; 0 where nobody tells.
int64_t cache_bytes() {
#if defined(__linux__) && defined(_SC_LEVEL3_CACHE_SIZE)
  static const int64_t bytes = sysconf(_SC_LEVEL3_CACHE_SIZE);
  return bytes > 0 ? bytes : 0;
#else
  return 0;
#endif
}

int64_t forced_stream_bytes = -1;

// Bytes that a call may touch before its outputs are written by non-temporal stores: what is larger than the caches
// evicts itself before anybody reads it, and each line written through the caches is first read from memory.
int64_t stream_bytes() {
  if (forced_stream_bytes >= 0) return forced_stream_bytes;
  const int64_t share = kCachePerThread * torch::stable::get_num_threads(), cache = cache_bytes();
  return cache > 0 && cache < share ? cache : share;
}

}  // namespace

Isa current_isa() { return current(); }

bool streams(DType dtype, int64_t T, int64_t N, int rows, std::initializer_list<const void*> written) {
  const int64_t row = N * element_size(dtype);
  // 16-bit rows wait for their conversion more than for the memory.
  const int64_t limit = element_size(dtype) == 2 ? 2 * stream_bytes() : stream_bytes();
  if (rows * T * row < limit || row % kAlignment != 0) return false;
  for (const void* tensor : written) {
    if (reinterpret_cast<uintptr_t>(tensor) % kAlignment != 0) return false;
  }
  return true;
}

Shares shares(int64_t T, int64_t N, int64_t least_units) {
  const int64_t work = kUnit * std::clamp<int64_t>(T, 1, kGrain);  // so many are enough, and do not overflow
  return {(N + kUnit - 1) / kUnit, work * least_units >= kGrain ? least_units : kGrain / work};
}

int64_t set_stream_bytes(int64_t bytes) { return std::exchange(forced_stream_bytes, bytes); }

const char* isa() { return name_of(current()); }
void set_isa(const std::string& name) { current() = find(name); }

std::vector<std::string> isa_available() {
  std::vector<std::string> names;
  for (const Isa isa : available()) names.emplace_back(name_of(isa));
  return names;
}

}  // namespace snnfast::cpu
