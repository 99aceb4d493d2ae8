// What the library asks of the operating system. system.cpp answers for Linux, macOS and Windows.
#pragma once

#include <cstddef>
#include <cstdint>

namespace snnfast::cpu::system {

inline constexpr size_t kPage = size_t{2} << 20;  // a huge page: one fault instead of 512, and one TLB entry

// Whole huge pages, where the system has them. Returns nullptr if memory is short.
void* map(size_t bytes);
void unmap(void* data, size_t bytes);

// Memory of the heap. Returns nullptr if memory is short.
void* allocate(size_t alignment, size_t bytes);
void release(void* data);

size_t memory_of_machine();  // bytes; 0 if the system does not tell
int64_t last_level_cache();  // likewise

// Lets the heap of the C library keep so many free bytes, and take buffers of less than `mapped` bytes from it. What
// the user has chosen stays as it is.
void keep_heap(size_t bytes, size_t mapped);
void trim_heap();  // returns what is free to the system

// Calls functions before a fork, and after it in both processes.
void around_fork(void (*before)(), void (*after)());

}  // namespace snnfast::cpu::system
