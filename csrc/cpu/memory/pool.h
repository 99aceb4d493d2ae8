// Large CPU outputs from recycled memory.
//
// A fresh allocation of tens of megabytes comes from the system as unmapped pages, and the page faults of the first
// write cost several times the write itself. torch returns such memory to the system when a tensor dies; this pool
// keeps it for later outputs.
//
// Idle and in use together are at most twice what was in use at once lately: that is enough for a step that is repeated
// to find all its memory again, and for steps of varying shapes to find most of it. See docs/design-cpu.md.
#pragma once

#include <cstddef>
#include <new>
#include <optional>
#include <string>

namespace snnfast::cpu::pool {

// Outputs from here on come from the pool; smaller ones the C library recycles by itself.
inline constexpr size_t kLeast = size_t{128} << 10;

class OutOfMemory : public std::bad_alloc {
 public:
  explicit OutOfMemory(size_t bytes);
  const char* what() const noexcept override { return message_.c_str(); }

 private:
  std::string message_;
};

void* take(size_t bytes);  // aligned to at least 64 bytes; throws OutOfMemory
void give_back(void* buffer);
void clear();  // returns all idle memory to the system

size_t idle_bytes();
std::optional<size_t> idle_limit();
void set_idle_limit(std::optional<size_t> bytes);  // 0: keep nothing; nullopt: what fits the demand, as by default

}  // namespace snnfast::cpu::pool
