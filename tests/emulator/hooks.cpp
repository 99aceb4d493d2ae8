// Reached from Python through ctypes: what only tests change.
#include "../../csrc/op/problem.h"
#include "emulator.h"

#define EXPORTED extern "C" __attribute__((visibility("default")))

EXPORTED void snnfast_set_vector_minimum(int64_t neurons) { snnfast::cuda::set_vector_minimum(neurons); }
EXPORTED void snnfast_set_chunked_limits(int64_t least_steps, int64_t most_neurons) {
  snnfast::cuda::set_chunked_limits(least_steps, most_neurons);
}
EXPORTED void snnfast_set_stream_bytes(int64_t bytes) { snnfast::cuda::set_stream_bytes(bytes); }
EXPORTED int snnfast_emulated_cache_bytes() { return emulator::kCacheBytes; }
// Since the call before.
EXPORTED int64_t snnfast_streamed_loads() { return emulator::streamed.loads.exchange(0); }
EXPORTED int64_t snnfast_streamed_stores() { return emulator::streamed.stores.exchange(0); }
EXPORTED unsigned snnfast_last_blocks() { return emulator::last_launch().blocks; }
EXPORTED int64_t snnfast_take_launches() { return emulator::take_launches(); }
EXPORTED unsigned snnfast_last_threads() { return emulator::last_launch().threads; }
EXPORTED void snnfast_set_emulator_seed(unsigned seed) { emulator::set_seed(seed); }
