// What memory holds that nothing has written: NaN in every floating-point type, -1 in integers.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace emulator {

// Not by memset, which AddressSanitizer would keep from writing across the gaps between variables.
inline void poison(void* at, size_t bytes) {
  std::fill_n(static_cast<volatile uint64_t*>(at), bytes / 8, ~uint64_t{0});
  std::fill_n(static_cast<volatile uint8_t*>(at) + bytes / 8 * 8, bytes % 8, uint8_t{0xff});
}

// The first of `count` elements of `size` bytes that is poison in every bit, which no arithmetic makes of other
// numbers; `count` if there is none.
inline int64_t first_poisoned(const void* at, int64_t count, size_t size) {
  const auto* bytes = static_cast<const uint8_t*>(at);
  for (int64_t i = 0; i < count; ++i, bytes += size) {
    if (std::all_of(bytes, bytes + size, [](uint8_t byte) { return byte == 0xff; })) return i;
  }
  return count;
}

}  // namespace emulator
