// Reached from Python through ctypes: what only tests change.
#include <dlfcn.h>
#include <algorithm>
#include <iterator>

#include "../../csrc/op/problem.h"
#include "emulator.h"

#define EXPORTED extern "C" __attribute__((visibility("default")))

EXPORTED void snnfast_set_vector_minimum(int64_t neurons) { snnfast::cuda::set_vector_minimum(neurons); }
EXPORTED void snnfast_set_norm_blocks(int64_t blocks) { snnfast::cuda::set_norm_blocks(blocks); }
EXPORTED void snnfast_set_chunked_limits(int64_t least_steps, int64_t most_neurons) {
  snnfast::cuda::set_chunked_limits(least_steps, most_neurons);
}
// Takes the launches since the call before. Returns how many there are.
static std::vector<emulator::Launch> taken;
EXPORTED int64_t snnfast_take_launches() {
  taken = emulator::take_launches();
  return static_cast<int64_t>(taken.size());
}
// Of each of them: where its kernel lies in the library, its blocks, the threads of a block, and the bytes of its
// parameters.
EXPORTED void snnfast_taken_launches(int64_t (*to)[4]) {
  Dl_info library{};
  dladdr(reinterpret_cast<const void*>(&snnfast_taken_launches), &library);
  for (const auto& [kernel, blocks, threads, parameters] : taken) {
    const int64_t row[] = {static_cast<const char*>(kernel) - static_cast<const char*>(library.dli_fbase), blocks,
                           threads, static_cast<int64_t>(parameters.size())};
    std::copy(std::begin(row), std::end(row), *to++);
  }
}
// The parameters of one of them.
EXPORTED const void* snnfast_parameters_of(int64_t launch) {
  return taken[static_cast<size_t>(launch)].parameters.data();
}
EXPORTED void snnfast_set_emulator_seed(unsigned seed) { emulator::set_seed(seed); }
