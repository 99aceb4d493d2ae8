// The threads of the CPU kernels: they are PyTorch's.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>

#include <torch/csrc/stable/ops.h>

namespace snnfast::cpu {

// Calls f(begin, end) with ranges of at least `least`, in parallel. What it throws stays inside the library, as
// op/guard.h explains: it is thrown again in the thread of the caller. Of several exceptions one is.
template <typename F>
void in_parallel(int64_t first, int64_t last, int64_t least, const F& f) {
  std::exception_ptr error;
  std::atomic_flag failed;
  torch::stable::parallel_for(first, last, std::max<int64_t>(1, least), [&](int64_t begin, int64_t end) {
    try {
      f(begin, end);
    } catch (...) {
      if (!failed.test_and_set()) error = std::current_exception();
    }
  });
  if (error) std::rethrow_exception(error);
}

}  // namespace snnfast::cpu
