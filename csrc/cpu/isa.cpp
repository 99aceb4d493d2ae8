#include "isa.h"

#include <cstdlib>

#include <torch/headeronly/util/Exception.h>

namespace snnfast::cpu {
namespace {

const char* name_of(Isa isa) {
  constexpr const char* kNames[] = {"baseline", "avx2", "avx512"};
  return kNames[static_cast<int>(isa)];
}

bool processor_has(Isa isa) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (isa == Isa::avx512) return __builtin_cpu_supports("x86-64-v4");
  if (isa == Isa::avx2) return __builtin_cpu_supports("x86-64-v3");
#endif
  return isa == Isa::baseline;
}

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

}  // namespace

Isa current_isa() { return current(); }
void set_isa(const std::string& name) { current() = find(name); }
const char* isa() { return name_of(current()); }

std::vector<std::string> isa_available() {
  std::vector<std::string> names;
  for (const Isa isa : available()) names.emplace_back(name_of(isa));
  return names;
}

}  // namespace snnfast::cpu
