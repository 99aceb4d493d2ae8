#include "pool.h"

#include <cstdlib>
#include <fstream>
#include <list>
#include <map>
#include <mutex>
#include <new>
#include <unordered_map>
#include <utility>

#if defined(__GLIBC__)
#include <malloc.h>
#endif
#if defined(__linux__)
#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace snnfast::cpu::pool {
namespace {

constexpr size_t kPage = size_t{2} << 20;        // a huge page: one fault instead of 512
constexpr size_t kSmallUnit = size_t{64} << 10;  // of buffers below a huge page

struct Buffer {
  void* data;
  size_t bytes;
  bool yielded = false;  // the system may take its pages back
};

using Idle = std::list<Buffer>;

// Bytes of memory that this process may use: the machine's, or its container's if that is less. 0 if unknown.
size_t memory_size() {
  size_t bytes = 0;
#if defined(__linux__)
  const long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
  if (pages > 0 && page > 0) bytes = static_cast<size_t>(pages) * static_cast<size_t>(page);
  size_t allowed = 0;
  // "max" where there is no limit, which is then not read.
  if (std::ifstream("/sys/fs/cgroup/memory.max") >> allowed && allowed < bytes) bytes = allowed;
#endif
  return bytes;
}

// Lets the system take the pages back when it is short of memory; until it does, writing to them costs no fault.
// Returns whether that was possible.
bool yield(const Buffer& buffer) {
#if defined(__linux__) && defined(MADV_FREE)
  return madvise(buffer.data, buffer.bytes, MADV_FREE) == 0;
#else
  return false;
#endif
}

struct Pool {
  std::mutex mutex;
  Idle idle;                                     // the one given back last is in front; the yielded ones come last
  Idle::iterator yielded = idle.end();           // the first of these
  std::multimap<size_t, Idle::iterator> sorted;  // the idle ones by size; of a size, the one given back last comes last
  size_t idle_bytes = 0, yielded_bytes = 0;      // the latter are among the former
  size_t limit, firm_limit;                      // of all idle bytes, and of those that are not yielded
  std::unordered_map<void*, size_t> sizes;       // of every live buffer, in use or idle

  Pool() : limit(memory_size() / 2), firm_limit(memory_size() / 8) {}

  void add(Buffer buffer) {
    idle.push_front(buffer);
    sorted.emplace(buffer.bytes, idle.begin());
    idle_bytes += buffer.bytes;
    trim(limit);
    while (idle_bytes - yielded_bytes > firm_limit) {
      const auto oldest = std::prev(yielded);
      if (!yield(*oldest)) return trim(firm_limit);
      oldest->yielded = true;
      yielded_bytes += oldest->bytes;
      yielded = oldest;
    }
  }

  Buffer remove(Idle::iterator place) {
    const Buffer buffer = *place;
    idle_bytes -= buffer.bytes;
    if (buffer.yielded) yielded_bytes -= buffer.bytes;
    if (place == yielded) ++yielded;
    idle.erase(place);
    return buffer;
  }

  void trim(size_t to) {
    while (idle_bytes > to) {
      sorted.erase(sorted.lower_bound(idle.back().bytes));  // the oldest of its size
      const Buffer oldest = remove(std::prev(idle.end()));
      sizes.erase(oldest.data);
      std::free(oldest.data);
    }
  }

  // One of at least `bytes` and not much more, preferably of just as many and still warm; nullptr if there is none.
  void* reuse(size_t bytes) {
    auto place = sorted.lower_bound(bytes);
    if (place == sorted.end() || place->first > bytes + bytes / 4) return nullptr;
    place = std::prev(sorted.upper_bound(place->first));
    const Idle::iterator found = place->second;
    sorted.erase(place);
    return remove(found).data;
  }
};

// Never destroyed: tensors may outlive every static object.
Pool& the_pool() {
  static Pool* const pool = [] {
    auto* made = new Pool;
#if defined(__linux__)
    // A fork while another thread holds the lock would leave the child with a lock that nobody opens.
    pthread_atfork([] { the_pool().mutex.lock(); }, [] { the_pool().mutex.unlock(); },
                   [] { the_pool().mutex.unlock(); });
#endif
    return made;
  }();
  return *pool;
}

void trim_to(size_t bytes) {
  Pool& pool = the_pool();
  {
    const std::lock_guard lock(pool.mutex);
    pool.trim(bytes);
  }
#if defined(__GLIBC__)
  malloc_trim(0);  // buffers too small to be mapped are otherwise kept by the C library
#endif
}

}  // namespace

void* take(size_t bytes) {
  const size_t unit = bytes < kPage ? kSmallUnit : kPage;
  const size_t rounded = (bytes + unit - 1) / unit * unit;
  Pool& pool = the_pool();
  {
    const std::lock_guard lock(pool.mutex);
    if (void* const data = pool.reuse(rounded)) return data;
  }
  void* data = std::aligned_alloc(unit, rounded);
  if (data == nullptr) {  // what lies idle here may be what is missing
    clear();
    data = std::aligned_alloc(unit, rounded);
  }
  if (data == nullptr) throw std::bad_alloc();
#if defined(__linux__)
  // Advice: where huge pages are switched off, nothing is lost.
  if (unit == kPage) madvise(data, rounded, MADV_HUGEPAGE);
#endif
  const std::lock_guard lock(pool.mutex);
  pool.sizes[data] = rounded;
  return data;
}

void give_back(void* buffer) {
  Pool& pool = the_pool();
  const std::lock_guard lock(pool.mutex);
  pool.add({buffer, pool.sizes.at(buffer)});
}

void clear() { trim_to(0); }

size_t idle_bytes() {
  Pool& pool = the_pool();
  const std::lock_guard lock(pool.mutex);
  return pool.idle_bytes;
}

size_t yielded_bytes() {
  Pool& pool = the_pool();
  const std::lock_guard lock(pool.mutex);
  return pool.yielded_bytes;
}

size_t set_firm_limit(size_t bytes) {
  Pool& pool = the_pool();
  const std::lock_guard lock(pool.mutex);
  return std::exchange(pool.firm_limit, bytes);
}

size_t idle_limit() {
  Pool& pool = the_pool();
  const std::lock_guard lock(pool.mutex);
  return pool.limit;
}

void set_idle_limit(size_t bytes) {
  Pool& pool = the_pool();
  {
    const std::lock_guard lock(pool.mutex);
    pool.limit = bytes;
  }
  trim_to(bytes);
}

}  // namespace snnfast::cpu::pool
