// Reached from Python through ctypes: what only tests change.
#include "../../csrc/lif.h"
#include "emulator.h"

#define EXPORTED extern "C" __attribute__((visibility("default")))

EXPORTED void snnfast_set_vector_minimum(int64_t neurons) { snnfast::cuda::set_vector_minimum(neurons); }
EXPORTED void snnfast_set_emulator_seed(unsigned seed) { emulator::set_seed(seed); }
