#include "isa.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include <cstdlib>

#include <torch/headeronly/util/Exception.h>

namespace snnfast::cpu {
namespace {

const char* name_of(Isa isa) {
  constexpr const char* kNames[] = {"baseline", "avx2", "avx512"};
  return kNames[static_cast<int>(isa)];
}

#if defined(__x86_64__)
// By the instruction itself: __builtin_cpu_supports needs a runtime library that compilers link on Linux only.
enum Register { kEbx = 1, kEcx = 2 };

bool has_bits(unsigned leaf, Register which, unsigned bits) {
  unsigned found[4];
  return __get_cpuid_count(leaf, 0, &found[0], &found[1], &found[2], &found[3]) && (found[which] & bits) == bits;
}

// Whether the system keeps these registers of each thread.
bool system_keeps(unsigned registers) {
  constexpr unsigned kXgetbv = 1u << 27;
  if (!has_bits(1, kEcx, kXgetbv)) return false;
  unsigned low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (low & registers) == registers;
}

// x86-64-v3, and what x86-64-v4 has besides.
bool has_avx2() {
  constexpr unsigned kFma = 1u << 12, kMovbe = 1u << 22, kAvx = 1u << 28, kF16c = 1u << 29, kLzcnt = 1u << 5;
  constexpr unsigned kBmi = 1u << 3 | 1u << 8, kAvx2 = 1u << 5, kYmm = 0x6;
  return system_keeps(kYmm) && has_bits(1, kEcx, kFma | kMovbe | kAvx | kF16c) && has_bits(7, kEbx, kBmi | kAvx2) &&
         has_bits(0x80000001, kEcx, kLzcnt);
}
bool has_avx512() {
  constexpr unsigned kF = 1u << 16, kDq = 1u << 17, kCd = 1u << 28, kBw = 1u << 30, kVl = 1u << 31, kZmm = 0xe6;
  return has_avx2() && system_keeps(kZmm) && has_bits(7, kEbx, kF | kDq | kCd | kBw | kVl);
}
#endif

bool processor_has(Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::avx512) return has_avx512();
  if (isa == Isa::avx2) return has_avx2();
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

std::string vendor() {
#if defined(__x86_64__)
  unsigned leaves, name[3];
  if (__get_cpuid(0, &leaves, &name[0], &name[2], &name[1])) return {reinterpret_cast<const char*>(name), sizeof name};
#endif
  return {};
}

}  // namespace snnfast::cpu
