#include "system.h"

#if defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#define NOMINMAX
#include <malloc.h>
#include <windows.h>
#else
#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>
#endif
#if defined(__GLIBC__)
#include <malloc.h>
#endif

#include <cstdlib>
#include <cstring>

namespace snnfast::cpu::system {

#if defined(_WIN32)

// Without huge pages: they need a privilege there. What the system reserves begins on a multiple of 64 KiB.
void* map(size_t bytes) { return VirtualAlloc(nullptr, bytes, MEM_RESERVE | MEM_COMMIT, PAGE_READWRITE); }
void unmap(void* data, size_t) { VirtualFree(data, 0, MEM_RELEASE); }

void* allocate(size_t alignment, size_t bytes) { return _aligned_malloc(bytes, alignment); }
void release(void* data) { _aligned_free(data); }

size_t memory_of_machine() {
  MEMORYSTATUSEX status{};
  status.dwLength = sizeof status;
  return GlobalMemoryStatusEx(&status) ? static_cast<size_t>(status.ullTotalPhys) : 0;
}

void around_fork(void (*)(), void (*)()) {}  // no process is forked there

#else

// Huge pages are mapped, not taken from the heap: heap memory that was used before keeps its small pages.
void* map(size_t bytes) {
  const size_t mapped = bytes + kPage;  // so that a multiple of kPage lies inside
  void* const found = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (found == MAP_FAILED) return nullptr;
  char* const start = static_cast<char*>(found);
  const size_t before = (kPage - reinterpret_cast<uintptr_t>(start) % kPage) % kPage;
  if (before > 0) munmap(start, before);
  if (before < kPage) munmap(start + before + bytes, kPage - before);
#if defined(MADV_HUGEPAGE)
  madvise(start + before, bytes, MADV_HUGEPAGE);  // advice: where huge pages are switched off, nothing is lost
#endif
  return start + before;
}
void unmap(void* data, size_t bytes) { munmap(data, bytes); }

void* allocate(size_t alignment, size_t bytes) { return std::aligned_alloc(alignment, bytes); }
void release(void* data) { std::free(data); }

size_t memory_of_machine() {
  const long pages = sysconf(_SC_PHYS_PAGES);
  return pages > 0 ? static_cast<size_t>(pages) * static_cast<size_t>(sysconf(_SC_PAGESIZE)) : 0;
}

void around_fork(void (*before)(), void (*after)()) { pthread_atfork(before, after, after); }

#endif

int64_t last_level_cache() {
#if defined(_SC_LEVEL3_CACHE_SIZE)
  static const int64_t bytes = sysconf(_SC_LEVEL3_CACHE_SIZE);
  return bytes > 0 ? bytes : 0;
#else
  return 0;
#endif
}

#if defined(__GLIBC__)

void keep_heap(size_t bytes, size_t mapped) {
  const char* const tunables = std::getenv("GLIBC_TUNABLES");
  if (std::getenv("MALLOC_TRIM_THRESHOLD_") != nullptr || std::getenv("MALLOC_MMAP_THRESHOLD_") != nullptr ||
      (tunables != nullptr && std::strstr(tunables, "glibc.malloc") != nullptr)) {
    return;
  }
  mallopt(M_TRIM_THRESHOLD, static_cast<int>(bytes));
  mallopt(M_MMAP_THRESHOLD, static_cast<int>(mapped));
}
void trim_heap() { malloc_trim(0); }

#else

void keep_heap(size_t, size_t) {}
void trim_heap() {}

#endif

}  // namespace snnfast::cpu::system
