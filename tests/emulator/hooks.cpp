// Reached from Python through ctypes: switches of the kernels that only tests turn.
#include "../../csrc/lif.h"

extern "C" __attribute__((visibility("default"))) void snnfast_set_vector_minimum(int64_t neurons) {
  snnfast::cuda::set_vector_minimum(neurons);
}
