// The instruction sets that the CPU kernels are built for. setup.py passes the list; each set is a namespace.
#pragma once

#include <string>
#include <vector>

// The list, best first: X(avx512, ...) X(avx2, ...) X(baseline, ...), or some of them.
#ifndef SNN_ISAS
#define SNN_ISAS(X, ...) X(baseline, __VA_ARGS__)
#endif

namespace snnfast::cpu {

enum class Isa { baseline, avx2, avx512 };

Isa current_isa();                         // throws if the kernels are built for no set that this processor has
void set_isa(const std::string& name);     // throws if this processor has not got it
const char* isa();                         // the name of the set in use
std::vector<std::string> isa_available();  // names, best first
std::string vendor();                      // of the processor, such as AuthenticAMD; empty where it does not say

}  // namespace snnfast::cpu

// Declares a function in the namespace of each instruction set.
#define SNN_ISA_DECLARE(isa, ...) \
  namespace isa {                 \
  __VA_ARGS__;                    \
  }
#define SNN_DECLARE_FOR_EACH_ISA(...) SNN_ISAS(SNN_ISA_DECLARE, __VA_ARGS__)

// Returns what such a function returns for the instruction set in use.
#define SNN_ISA_CASE(isa, ...) \
  case ::snnfast::cpu::Isa::isa: return ::snnfast::cpu::isa::__VA_ARGS__;
#define SNN_RETURN_OF_CURRENT_ISA(...)     \
  switch (::snnfast::cpu::current_isa()) { \
    SNN_ISAS(SNN_ISA_CASE, __VA_ARGS__)    \
    default: __builtin_unreachable();      \
  }
