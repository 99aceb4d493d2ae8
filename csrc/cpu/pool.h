// Large CPU outputs from recycled memory.
//
// A fresh allocation of tens of megabytes comes from the system as unmapped pages, and the page faults of the first
// write cost several times the write itself. torch returns such memory to the system when a tensor dies; this pool
// keeps it for the next output of about the same size. Beyond an eighth of the memory it keeps only what the system may
// take back at any time, and nothing where the system has no such mark.
#pragma once

#include <cstddef>

namespace snnfast::cpu::pool {

// Outputs from here on come from the pool; smaller ones the C library recycles by itself.
inline constexpr size_t kLeast = size_t{128} << 10;

void* take(size_t bytes);  // aligned to at least 64 bytes; throws std::bad_alloc
void give_back(void* buffer);
void clear();  // returns all idle memory to the system

size_t idle_bytes();
size_t idle_limit();
void set_idle_limit(size_t bytes);    // 0: keep nothing
size_t yielded_bytes();               // of the idle ones, those that the system may take back
size_t set_firm_limit(size_t bytes);  // of the other ones; returns the one before. For tests.

}  // namespace snnfast::cpu::pool
