// Memory of the pool for the time of a call.
#pragma once

#include <cstdint>

#include <torch/headeronly/util/Exception.h>

#include "pool.h"

namespace snnfast::cpu::pool {

inline Buffer scratch(int64_t bytes) {
  Buffer buffer = take(static_cast<size_t>(bytes));
  STD_TORCH_CHECK(buffer != nullptr, "snnfast: could not allocate ", bytes, " bytes");
  return buffer;
}

// So many values, aligned to a cache line, not initialised.
template <typename T>
class Scratch {
 public:
  explicit Scratch(int64_t count) : buffer_(scratch(count * static_cast<int64_t>(sizeof(T)))) {}
  T* data() { return reinterpret_cast<T*>(buffer_.get()); }
  const T* data() const { return reinterpret_cast<const T*>(buffer_.get()); }

 private:
  Buffer buffer_;
};

}  // namespace snnfast::cpu::pool
