// The CPU kernels: time runs inside a block of neurons, and each step is a vectorised loop over the block.
//
// Compiled once for each neuron (SNN_NEURON) and each instruction set, whose namespace SNN_ISA names. Only `kernels`
// may have external linkage, and no inline function of other headers may be emitted: the linker would keep one copy for
// all instruction sets.
#include "kernels.h"

#include "backward.h"
#include "forward.h"

namespace snnfast::cpu::SNN_ISA {

template <>
const Kernels<SNN_NEURON>& kernels<SNN_NEURON>() {
  using N = SNN_NEURON;
  static constexpr Kernels<N> kAll{
      {forward<N, float>, forward<N, double>, forward<N, Half>, forward<N, BFloat16>},
      {backward<N, float>, backward<N, double>, backward<N, Half>, backward<N, BFloat16>},
  };
  return kAll;
}

}  // namespace snnfast::cpu::SNN_ISA
