// Reached from Python through ctypes: what only tests change.
#include "../../csrc/lif.h"
#include "emulator.h"

#define EXPORTED extern "C" __attribute__((visibility("default")))

EXPORTED void snnfast_set_vector_minimum(int64_t neurons) { snnfast::cuda::set_vector_minimum(neurons); }
EXPORTED void snnfast_set_chunked_limits(int64_t least_steps, int64_t most_neurons) {
  snnfast::cuda::set_chunked_limits(least_steps, most_neurons);
}
EXPORTED unsigned snnfast_last_blocks() { return emulator::last_launch().blocks; }
EXPORTED unsigned snnfast_last_threads() { return emulator::last_launch().threads; }
EXPORTED void snnfast_set_emulator_seed(unsigned seed) { emulator::set_seed(seed); }
