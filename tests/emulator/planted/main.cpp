// planted <name>: runs the kernel with that bug. planted clean: runs all of their twins with seeds 0 to 7.
#include <cstring>

#include "memory.cu"
#include "threads.cu"

namespace planted {
namespace {

struct Bug {
  const char* name;
  void (*planted)();
  void (*clean)();
};

#define BUG(NAME) {#NAME, run_##NAME<true>, run_##NAME<false>}
const Bug kBugs[] = {
    BUG(global_bounds),     BUG(static_shared_bounds), BUG(alignment),           BUG(unwritten_global),
    BUG(unwritten_shared),  BUG(unwritten_output),     BUG(missing_syncthreads), BUG(block_race),
    BUG(divergent_barrier), BUG(two_barriers),         BUG(block_waits),         BUG(block_size),
};

}  // namespace
}  // namespace planted

int main(int count, char** arguments) {
  if (count != 2) return 2;
  const bool clean = std::strcmp(arguments[1], "clean") == 0;
  bool found = clean;
  for (unsigned seed = 0; seed < (clean ? 8 : 1); ++seed) {
    emulator::set_seed(seed);
    for (const planted::Bug& bug : planted::kBugs) {
      if (clean) bug.clean();
      if (std::strcmp(arguments[1], bug.name) != 0) continue;
      bug.planted();
      found = true;
    }
  }
  return found ? 0 : 2;
}
