// The op that a loop over connected neurons calls beside those of a step: memory from the pool, whose rows the steps
// write.
#include <cstdint>

#include <torch/csrc/stable/library.h>

#include "../../op/tensors.h"

namespace snnfast {
namespace {

// An uninitialised contiguous [rows, *] like [*].
Tensor rows_like(const Tensor& like, int64_t rows) {
  STD_TORCH_CHECK(rows >= 0, "rows: expected 0 or more");
  CpuBackend::check_device(like);
  dtype_of(like, "like");
  const Shape shape = Shape(like.sizes()).with(rows);
  elements(shape);
  return CpuBackend::empty(like, shape, contiguous_strides(shape), like.scalar_type());
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(SNN_NAMESPACE, m) { m.def("rows_like(Tensor like, SymInt rows) -> Tensor"); }

STABLE_TORCH_LIBRARY_IMPL(SNN_NAMESPACE, CPU, m) { m.impl("rows_like", SNN_BOX(rows_like)); }

}  // namespace snnfast
