#include "pool.h"

#include <algorithm>
#include <cstdlib>
#include <limits>
#include <list>
#include <map>
#include <mutex>
#include <unordered_map>

#include "memory_limit.h"

#if defined(__GLIBC__)
#include <malloc.h>
#endif
#if defined(__linux__)
#include <pthread.h>
#include <sys/mman.h>
#endif

namespace snnfast::cpu::pool {
namespace {

constexpr size_t kPage = size_t{2} << 20;        // a huge page: one fault instead of 512
constexpr size_t kSmallUnit = size_t{64} << 10;  // of buffers below a huge page

// By default, idle memory is limited to
constexpr size_t kAlways = size_t{64} << 20;  // where the demand is less,
constexpr size_t kMost = size_t{8} << 30;     // however large the demand,
constexpr size_t kMemoryShare = 4;            // this part of the memory,
constexpr size_t kRoomShare = 8;              // and this part of the room under a limit of address space: what keeps
                                              // running into it is torch, which can't ask for anything back.

struct Buffer {
  void* data;
  size_t bytes;
};

using Idle = std::list<Buffer>;

// The most bytes that were in use at once lately. A window ends when sixteen times as much has been taken, and the one
// before it counts as well. So memory that is dropped too early is faulted in again once in sixteen uses at most.
class Demand {
 public:
  void take(size_t bytes) {
    in_use_ += bytes;
    taken_ += bytes;
    now_ = std::max(now_, in_use_);
    if (taken_ / 16 > most()) {
      before_ = now_;
      now_ = in_use_;
      taken_ = 0;
    }
  }
  void give_back(size_t bytes) { in_use_ -= bytes; }
  void forget() { before_ = 0, now_ = in_use_, taken_ = 0; }
  size_t in_use() const { return in_use_; }
  size_t most() const { return std::max(before_, now_); }

 private:
  size_t in_use_ = 0, taken_ = 0, now_ = 0, before_ = 0;
};

struct Pool {
  std::mutex mutex;
  Idle idle;                                     // the one given back last is in front
  std::multimap<size_t, Idle::iterator> sorted;  // the idle ones by size; of a size, the one given back last comes last
  size_t idle_bytes = 0;
  std::optional<size_t> limit;  // that the user has set
  Demand demand;
  std::unordered_map<void*, size_t> sizes;  // of every live buffer, in use or idle
  const size_t most = std::min(kMost, memory_limit() / kMemoryShare);

  size_t allowed() const {
    if (limit.has_value()) return *limit;
    // Twice: in a step that is repeated, what is in use at its peak and what is taken and given back around it.
    const size_t demanded = std::max(kAlways, 2 * demand.most() - demand.in_use());
    const size_t room = mappable_bytes();
    const size_t unlimited = std::numeric_limits<size_t>::max();
    return std::min({most, demanded, room == unlimited ? room : (room + idle_bytes) / kRoomShare});
  }

  void add(Buffer buffer) {
    demand.give_back(buffer.bytes);
    const size_t most_now = allowed();
    if (buffer.bytes > most_now) return release(buffer);  // instead of all others
    idle.push_front(buffer);
    sorted.emplace(buffer.bytes, idle.begin());
    idle_bytes += buffer.bytes;
    trim(most_now);
  }

  void release(const Buffer& buffer) {
    sizes.erase(buffer.data);
    std::free(buffer.data);
  }

  Buffer remove(Idle::iterator place) {
    const Buffer buffer = *place;
    idle_bytes -= buffer.bytes;
    idle.erase(place);
    return buffer;
  }

  void trim(size_t to) {
    while (idle_bytes > to) {
      sorted.erase(sorted.lower_bound(idle.back().bytes));  // the oldest of its size
      release(remove(std::prev(idle.end())));
    }
  }

  // One of at least `bytes` and at most twice as many, preferably of just as many and still warm; nullptr if there is
  // none. With twice as many, shapes that vary find a buffer mostly.
  void* reuse(size_t bytes) {
    auto place = sorted.lower_bound(bytes);
    if (place == sorted.end() || place->first / 2 > bytes) return nullptr;
    place = std::prev(sorted.upper_bound(place->first));
    const Idle::iterator found = place->second;
    sorted.erase(place);
    const Buffer buffer = remove(found);
    demand.take(buffer.bytes);
    return buffer.data;
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

OutOfMemory::OutOfMemory(size_t bytes) : message_("snnfast: could not allocate " + std::to_string(bytes) + " bytes") {}

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
  if (data == nullptr) throw OutOfMemory(bytes);
#if defined(__linux__)
  // Advice: where huge pages are switched off, nothing is lost.
  if (unit == kPage) madvise(data, rounded, MADV_HUGEPAGE);
#endif
  const std::lock_guard lock(pool.mutex);
  pool.sizes[data] = rounded;
  pool.demand.take(rounded);
  pool.trim(pool.allowed());  // before anything is written to the new one: idle ones of other sizes make room for it
  return data;
}

void give_back(void* buffer) {
  Pool& pool = the_pool();
  const std::lock_guard lock(pool.mutex);
  pool.add({buffer, pool.sizes.at(buffer)});
}

void clear() {
  {
    Pool& pool = the_pool();
    const std::lock_guard lock(pool.mutex);
    pool.demand.forget();
  }
  trim_to(0);
}

size_t idle_bytes() {
  Pool& pool = the_pool();
  const std::lock_guard lock(pool.mutex);
  return pool.idle_bytes;
}

std::optional<size_t> idle_limit() {
  Pool& pool = the_pool();
  const std::lock_guard lock(pool.mutex);
  return pool.limit;
}

void set_idle_limit(std::optional<size_t> bytes) {
  Pool& pool = the_pool();
  size_t allowed = 0;
  {
    const std::lock_guard lock(pool.mutex);
    pool.limit = bytes;
    allowed = pool.allowed();
  }
  trim_to(allowed);
}

}  // namespace snnfast::cpu::pool
