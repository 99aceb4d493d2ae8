// Reached from Python through ctypes: what only tests change.
#include <dlfcn.h>

#include "../../csrc/op/problem.h"
#include "emulator.h"

#define EXPORTED extern "C" __attribute__((visibility("default")))

EXPORTED void snnfast_set_vector_minimum(int64_t neurons) { snnfast::cuda::set_vector_minimum(neurons); }
EXPORTED void snnfast_set_chunked_limits(int64_t least_steps, int64_t most_neurons) {
  snnfast::cuda::set_chunked_limits(least_steps, most_neurons);
}
// The launches since the call before, as many as there is room for: of each, where its kernel lies in the library, its
// blocks, the threads of a block, and the bytes of its parameters. Returns how many there were.
static std::vector<emulator::Launch> taken;
EXPORTED int64_t snnfast_take_launches(int64_t (*to)[4], int64_t room) {
  Dl_info library{};
  dladdr(reinterpret_cast<const void*>(&snnfast_take_launches), &library);
  taken = emulator::take_launches();
  const auto number = static_cast<int64_t>(taken.size());
  for (int64_t i = 0; i < number && i < room; ++i) {
    const auto& [kernel, blocks, threads, parameters] = taken[static_cast<size_t>(i)];
    to[i][0] = static_cast<const char*>(kernel) - static_cast<const char*>(library.dli_fbase);
    to[i][1] = blocks;
    to[i][2] = threads;
    to[i][3] = static_cast<int64_t>(parameters.size());
  }
  return number;
}
// The parameters of one of them.
EXPORTED const void* snnfast_parameters_of(int64_t launch) {
  return taken[static_cast<size_t>(launch)].parameters.data();
}
EXPORTED void snnfast_set_emulator_seed(unsigned seed) { emulator::set_seed(seed); }
