#include "pool.h"

#include <algorithm>
#include <limits>
#include <list>
#include <map>
#include <mutex>
#include <unordered_map>

#include "system.h"

namespace snnfast::cpu::pool {
namespace {

using system::kPage;
constexpr size_t kSmallUnit = size_t{64} << 10;  // sizes of smaller buffers are multiples of this

// By default, so much memory may be idle:
constexpr size_t kAlways = size_t{64} << 20;  // at least, however small the demand
constexpr size_t kMost = size_t{8} << 30;     // at most, however large the demand
constexpr size_t kMemoryShare = 4;            // at most this part of the machine's memory

constexpr size_t kHeap = size_t{2} << 30;  // of the C library's heap, at most
constexpr size_t kHeapShare = 8;           // and at most this part of the machine's memory

struct Block {
  void* data;
  size_t bytes;
};

using Idle = std::list<Block>;

void* allocate(size_t bytes) { return bytes < kPage ? system::allocate(kSmallUnit, bytes) : system::map(bytes); }

void free(const Block& buffer) {
  if (buffer.bytes < kPage) {
    system::release(buffer.data);
  } else {
    system::unmap(buffer.data, buffer.bytes);
  }
}

// Tracks the peak: the most bytes that were recently in use at once. A window of time ends when sixteen times its peak
// has been taken, and the window before it counts as well. So memory that is freed too early causes page faults at most
// once in sixteen uses.
class Demand {
 public:
  void take(size_t bytes) {
    in_use_ += bytes;
    taken_ += bytes;
    this_window_ = std::max(this_window_, in_use_);
    if (taken_ / 16 > peak()) start_window(this_window_);
  }
  void give_back(size_t bytes) { in_use_ -= bytes; }
  void forget() { start_window(0); }
  size_t in_use() const { return in_use_; }
  size_t peak() const { return std::max(last_window_, this_window_); }

 private:
  void start_window(size_t peak_before) {
    last_window_ = peak_before;
    this_window_ = in_use_;
    taken_ = 0;
  }

  size_t in_use_ = 0, taken_ = 0, this_window_ = 0, last_window_ = 0;
};

struct Pool {
  std::mutex mutex;
  Idle idle;                                     // the buffer given back last is in front
  std::multimap<size_t, Idle::iterator> sorted;  // by size; within a size, the buffer given back last comes last
  size_t idle_bytes = 0;
  std::optional<size_t> limit;  // set by the user
  Demand demand;
  std::unordered_map<void*, size_t> sizes;  // of all buffers, in use and idle
  const size_t most = std::min(kMost, system::memory_of_machine() / kMemoryShare);
  const size_t heap = std::min(kHeap, system::memory_of_machine() / kHeapShare);

  size_t allowed() const {
    if (limit.has_value()) return *limit;
    // Twice the peak: a step that is repeated uses some buffers at its peak, and others before and after it.
    return std::min(most, std::max(kAlways, 2 * demand.peak() - demand.in_use()));
  }

  void add(Block buffer) {
    demand.give_back(buffer.bytes);
    const size_t most_now = allowed();
    if (buffer.bytes > most_now) return release(buffer);  // trim() would release all others first
    idle.push_front(buffer);
    sorted.emplace(buffer.bytes, idle.begin());
    idle_bytes += buffer.bytes;
    trim(most_now);
  }

  void release(const Block& buffer) {
    sizes.erase(buffer.data);
    free(buffer);
  }

  Block remove(Idle::iterator place) {
    const Block buffer = *place;
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

  // Returns the smallest idle buffer that is large enough, and of that size the one used last, which may be in the
  // caches. Returns nullptr if it has more than twice as many bytes. Twice: varying shapes then find most buffers.
  void* reuse(size_t bytes) {
    auto place = sorted.lower_bound(bytes);
    if (place == sorted.end() || place->first / 2 > bytes) return nullptr;
    place = std::prev(sorted.upper_bound(place->first));
    const Idle::iterator found = place->second;
    sorted.erase(place);
    const Block buffer = remove(found);
    demand.take(buffer.bytes);
    return buffer.data;
  }
};

// PyTorch's own tensors, such as the outputs of convolutions, come from the C library. glibc maps the largest of them
// anew at each call, and returns the free end of its heap to the system, so every step of a network has page faults.
// Let the heap keep so many bytes, as the pool does.
void keep_heap(size_t bytes) {
  const size_t most = std::min<size_t>(bytes, std::numeric_limits<int>::max());
  system::keep_heap(most, std::clamp(most / 2, kLeast, kHeap / 2));
}

// Never destroyed: tensors may outlive every static object.
Pool& the_pool() {
  static Pool* const pool = [] {
    auto* made = new Pool;
    keep_heap(made->heap);
    // A fork while another thread holds the lock would leave the child with a lock that nobody opens.
    system::around_fork([] { the_pool().mutex.lock(); }, [] { the_pool().mutex.unlock(); });
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
  system::trim_heap();  // otherwise the C library keeps buffers that are too small to be mapped
}

}  // namespace

Buffer take(size_t bytes) {
  const size_t unit = bytes < kPage ? kSmallUnit : kPage;
  const size_t rounded = (bytes + unit - 1) / unit * unit;
  Pool& pool = the_pool();
  {
    const std::lock_guard lock(pool.mutex);
    if (void* const data = pool.reuse(rounded)) return Buffer(static_cast<char*>(data));
  }
  void* data = allocate(rounded);
  if (data == nullptr) {  // idle buffers may be the memory that is missing
    clear();
    data = allocate(rounded);
  }
  if (data == nullptr) return nullptr;
  const std::lock_guard lock(pool.mutex);
  pool.sizes[data] = rounded;
  pool.demand.take(rounded);
  pool.trim(pool.allowed());  // before the pages of the new buffer are written to, and so become memory
  return Buffer(static_cast<char*>(data));
}

void give_back(void* buffer) noexcept {
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

bool owns(const void* buffer) {
  Pool& pool = the_pool();
  const std::lock_guard lock(pool.mutex);
  return pool.sizes.count(const_cast<void*>(buffer)) != 0;
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
  keep_heap(std::min(pool.heap, bytes.value_or(pool.heap)));
  trim_to(allowed);
}

}  // namespace snnfast::cpu::pool
