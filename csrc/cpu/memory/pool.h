// A pool of memory for large CPU outputs.
//
// A fresh allocation of tens of megabytes consists of unmapped pages, and the page faults of the first write cost
// several times the write itself. torch returns such memory to the system when a tensor dies. This pool keeps it for
// later outputs. docs/design-cpu.md explains how much it keeps.
#pragma once

#include <cstddef>
#include <memory>
#include <optional>

namespace snnfast::cpu::pool {

// Outputs of at least so many bytes come from the pool. The C library recycles smaller ones by itself.
inline constexpr size_t kLeast = size_t{128} << 10;

void give_back(void* buffer) noexcept;  // torch calls it when a tensor dies

struct GiveBack {
  void operator()(void* buffer) const { give_back(buffer); }
};
using Buffer = std::unique_ptr<char[], GiveBack>;

Buffer take(size_t bytes);  // aligned to at least 64 bytes; nullptr if memory is short
void clear();               // returns all idle memory to the system

bool owns(const void* buffer);  // whether it is one that was taken
size_t idle_bytes();
std::optional<size_t> idle_limit();
void set_idle_limit(std::optional<size_t> bytes);  // nullopt, the default: the pool follows the demand

}  // namespace snnfast::cpu::pool
