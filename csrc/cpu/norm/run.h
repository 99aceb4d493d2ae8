// Runs the kernels of batch normalisation for this processor on PyTorch's threads.
#pragma once

#include <vector>

#include "../parallel.h"
#include "batch_norm.h"

namespace snnfast::cpu {

inline constexpr int64_t kNormGrain = 1 << 15;  // elements that are worth a thread

inline const BatchNormKernels& batch_norm() { SNN_RETURN_OF_CURRENT_ISA(batch_norm_kernels()) }

template <typename P>
void run(const BatchNormPass<P>& pass, P& p) {
  const int64_t elements = p.T * p.C * p.samples();
  const auto share_out = [&](int64_t number, void (*kernel)(const P&, int64_t, int64_t)) {
    in_parallel(0, number, kNormGrain / (elements / number) + 1,
                [&](int64_t first, int64_t last) { kernel(p, first, last); });
  };
  const int64_t units = batch_norm().units(p), parts = units > 1 ? 1 : batch_norm().parts(p);
  if (parts == 1) return share_out(units, pass.units);
  std::vector<double> sums(parts * 2 * p.C);
  p.sums = sums.data();
  share_out(parts, pass.add_parts);
  share_out(parts, pass.write_parts);
}

}  // namespace snnfast::cpu
