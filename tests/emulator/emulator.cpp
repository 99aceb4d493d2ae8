// Runs the threads of a grid: block after block, and in a block each thread until it ends or waits for others.
//
// A fiber runs one thread after the other until one of them waits. That one keeps the fiber, and another fiber goes on
// with the threads that have not started: a kernel without a barrier needs one fiber and two switches per block. The
// fibers are those of <ucontext.h>: Linux has them on every processor, and their slow switch, which asks the system to
// keep the signal mask, is paid only where a thread waits.
//
// This file is compiled without any sanitizer, so that none takes the scheduler's accesses for the kernel's. It tells
// those that are in the process what happens: AddressSanitizer the stack in use, ThreadSanitizer the CUDA thread.
#include "emulator.h"

#include <ucontext.h>

#include <cstdio>
#include <cstdlib>
#include <deque>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "poison.h"

#define EMULATOR_OPTIONAL __attribute__((weak))
extern "C" {
EMULATOR_OPTIONAL void __sanitizer_start_switch_fiber(void** fake_stack, const void* bottom, size_t size);
EMULATOR_OPTIONAL void __sanitizer_finish_switch_fiber(void* fake_stack, const void** bottom, size_t* size);
EMULATOR_OPTIONAL void* __tsan_get_current_fiber();
EMULATOR_OPTIONAL void* __tsan_create_fiber(unsigned flags);
EMULATOR_OPTIONAL void __tsan_destroy_fiber(void* fiber);
EMULATOR_OPTIONAL void __tsan_switch_to_fiber(void* fiber, unsigned flags);
EMULATOR_OPTIONAL void __tsan_acquire(void* address);
EMULATOR_OPTIONAL void __tsan_release(void* address);
EMULATOR_OPTIONAL void __tsan_java_alloc(uintptr_t address, uintptr_t size);
extern __attribute__((visibility("hidden"))) char emulated_shared_begin[], emulated_shared_end[];  // shared.ld
}

namespace emulator {

Position position;

namespace {

constexpr size_t kStackBytes = 128 * 1024;
constexpr unsigned kMostAtomics = 1u << 22;  // without a thread that ends or waits in between

enum class State { kNew, kReady, kWaits, kDone };

struct Fiber {
  ucontext_t context{};
  std::unique_ptr<char[]> stack;
  const void* bottom = nullptr;  // of the stack, for AddressSanitizer, as the next two
  size_t bytes = 0;
  void* fake_stack = nullptr;

  Fiber() = default;
  explicit Fiber(void (*entry)()) : stack(new char[kStackBytes]), bottom(stack.get()), bytes(kStackBytes) {
    getcontext(&context);
    context.uc_stack = {stack.get(), 0, kStackBytes};
    makecontext(&context, entry, 0);
    context.uc_stack = {};  // else AddressSanitizer forgets at every switch what it knows of the stack
  }
};

struct Thread {
  State state = State::kNew;
  Fiber* fiber = nullptr;
  void* race_name = nullptr;  // who it is for ThreadSanitizer
  Wait wait{};
  bool result = false;
};
bool waits(const Thread& thread) { return thread.state == State::kWaits; }

// One launch at a time, as on one stream: __shared__ variables are static.
std::mutex one_launch;
struct Running {
  void (*run)(const void*);  // one thread
  const void* of;
  std::mt19937 random;
  std::vector<Thread> threads{};  // of the block that runs
  std::vector<unsigned> order{};
  size_t next = 0, done = 0;  // next: in order, after the current thread
  unsigned current = 0, atomics = 0;
  Fiber caller{};
  void* caller_race_name = nullptr;
  std::unique_ptr<char> end;      // ThreadSanitizer orders all threads before it
  const char* refusal = nullptr;  // why the current thread must not do what it has come to
  std::string fault{};            // of the kernel; no thread runs after it
} running;

std::vector<Launch> launches;
unsigned current_seed = std::getenv("SNNFAST_EMULATOR_SEED") ? std::atoi(std::getenv("SNNFAST_EMULATOR_SEED")) : 0;
std::deque<Fiber> fibers;
std::vector<Fiber*> free_fibers;
std::string last_fault;

bool checks_races() { return __tsan_create_fiber != nullptr; }

// Memory begins another life: ThreadSanitizer forgets who used it, by its interface for managed heaps.
void forget_use(void* at, size_t bytes) {
  if (checks_races() && bytes > 0) __tsan_java_alloc(reinterpret_cast<uintptr_t>(at), (bytes + 7) / 8 * 8);
}

// To ThreadSanitizer a switch orders nothing; only acquire and release do.
void switch_fiber(Fiber& from, Fiber& to, void* race_name) {
  if (__sanitizer_start_switch_fiber) __sanitizer_start_switch_fiber(&from.fake_stack, to.bottom, to.bytes);
  if (checks_races()) __tsan_switch_to_fiber(race_name, /*no_sync=*/1);
  swapcontext(&from.context, &to.context);
  if (__sanitizer_finish_switch_fiber) __sanitizer_finish_switch_fiber(from.fake_stack, &to.bottom, &to.bytes);
}

// From the current thread back to the scheduler.
void pause() { switch_fiber(*running.threads[running.current].fiber, running.caller, running.caller_race_name); }

uint3 index_in(dim3 size, unsigned i) { return {i % size.x, i / size.x % size.y, i / size.x / size.y}; }

std::string describe(const Thread& thread) {
  const auto text = [](uint3 i) {
    return "(" + std::to_string(i.x) + "," + std::to_string(i.y) + "," + std::to_string(i.z) + ")";
  };
  const Wait& wait = thread.wait;
  const auto i = static_cast<unsigned>(&thread - running.threads.data());
  const std::string who = "thread " + text(index_in(position.block_size, i)) + " of block " + text(position.block);
  if (thread.state == State::kDone) return who + " has exited";
  return who + " waits in " + wait.name + " at " + wait.at.file_name() + ":" + std::to_string(wait.at.line());
}

void make_current(unsigned i, Fiber* fiber) {
  running.current = i;
  running.threads[i].fiber = fiber;
  running.threads[i].state = State::kReady;
  position.thread = index_in(position.block_size, i);
}

// The life of a fiber: threads that have not started, until one waits; later that one's end.
void run_threads() {
  Fiber& caller = running.caller;
  if (__sanitizer_finish_switch_fiber) __sanitizer_finish_switch_fiber(nullptr, &caller.bottom, &caller.bytes);
  for (;;) {
    running.run(running.of);
    if (checks_races()) __tsan_release(running.end.get());
    Thread& ended = running.threads[running.current];
    ended.state = State::kDone;
    ++running.done;
    running.atomics = 0;
    const bool more =
        running.next < running.order.size() && running.threads[running.order[running.next]].state == State::kNew;
    // Two threads on one fiber would be one thread to ThreadSanitizer.
    more && !checks_races() ? make_current(running.order[running.next++], ended.fiber) : pause();
  }
}

Fiber* take_fiber() {
  if (free_fibers.empty()) free_fibers.push_back(&fibers.emplace_back(run_threads));
  Fiber* const fiber = free_fibers.back();
  free_fibers.pop_back();
  forget_use(fiber->stack.get(), kStackBytes);
  return fiber;
}

void resume(unsigned i) {
  Thread& thread = running.threads[i];
  make_current(i, thread.fiber == nullptr ? take_fiber() : thread.fiber);
  if (checks_races() && thread.race_name == nullptr) thread.race_name = __tsan_create_fiber(0);
  switch_fiber(running.caller, *thread.fiber, thread.race_name);
  const Thread& last = running.threads[running.current];
  if (last.state == State::kDone) free_fibers.push_back(last.fiber);
  if (running.refusal != nullptr) running.fault = describe(last) + running.refusal;
}

// ---- threads that wait for each other

// The first thread of the block that is not at the barrier where this one waits.
const Thread* missing_beside(const Thread& waiting) {
  const Wait& wait = waiting.wait;
  const auto missing = std::find_if(running.threads.begin(), running.threads.end(), [&](const Thread& other) {
    return !waits(other) || other.wait.name != wait.name || other.wait.at.line() != wait.at.line() ||
           other.wait.at.column() != wait.at.column();
  });
  return missing == running.threads.end() ? nullptr : &*missing;
}

// Lets the block go on if all of it is at one barrier; says whether it was.
bool let_go() {
  std::vector<Thread>& threads = running.threads;
  const auto first = std::find_if(threads.begin(), threads.end(), waits);
  if (first == threads.end() || missing_beside(*first) != nullptr) return false;
  const bool any = std::any_of(threads.begin(), threads.end(), [](const Thread& t) { return t.wait.predicate; });
  for (Thread& thread : threads) {
    thread.state = State::kReady;
    thread.result = any;
  }
  if (!checks_races()) return true;
  // What the block did until now comes before what it does from now on.
  const auto token = std::make_unique<char>();
  for (const auto step : {__tsan_release, __tsan_acquire}) {
    for (const Thread& thread : threads) {
      __tsan_switch_to_fiber(thread.race_name, 1);
      step(token.get());
    }
  }
  __tsan_switch_to_fiber(running.caller_race_name, 1);
  return true;
}

// ---- blocks

void run_block(unsigned block) {
  position.block = index_in(position.grid_size, block);
  const auto static_bytes = static_cast<size_t>(emulated_shared_end - emulated_shared_begin);
  forget_use(emulated_shared_begin, static_bytes);
  poison(emulated_shared_begin, static_bytes);
  std::vector<Thread>& threads = running.threads;
  std::fill(threads.begin(), threads.end(), Thread{});
  running.done = 0;
  while (running.done < threads.size() && running.fault.empty()) {
    bool any = let_go();
    if (current_seed != 0) std::shuffle(running.order.begin(), running.order.end(), running.random);
    for (size_t k = 0; k < threads.size() && running.fault.empty(); ++k) {
      const unsigned i = running.order[k];
      if (threads[i].state != State::kNew && threads[i].state != State::kReady) continue;
      running.next = k + 1;
      resume(i);
      any = true;
    }
    if (any) continue;
    const Thread& stuck = *std::find_if(threads.begin(), threads.end(), waits);
    running.fault = describe(stuck) + "; " + describe(*missing_beside(stuck));
  }
  for (const Thread& thread : threads) {
    if (thread.race_name != nullptr) __tsan_destroy_fiber(thread.race_name);
  }
}

}  // namespace

bool wait(const Wait& wait) {
  Thread& thread = running.threads[running.current];
  thread.wait = wait;
  thread.state = wait.barrier ? State::kWaits : State::kReady;
  running.atomics = wait.barrier ? 0 : running.atomics + 1;
  if (running.atomics == kMostAtomics) running.refusal = ": again and again, for what no thread of its block does";
  pause();
  return thread.result;
}

// More than on a card: it comes after all fences before it.
void fence() {
  static char token;
  if (!checks_races()) return;
  __tsan_release(&token);
  __tsan_acquire(&token);
}

void set_seed(unsigned seed) { current_seed = seed; }

std::vector<Launch> take_launches() { return std::exchange(launches, {}); }

int run_grid(const void* kernel, dim3 grid, dim3 block, void (*run)(const void*), const void* of,
             std::vector<unsigned char> parameters) {
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  if (threads == 0 || threads > 1024 || block.z > 64 || grid.x == 0 || grid.x > 0x7fffffffu || grid.y == 0 ||
      grid.y > 65535 || grid.z == 0 || grid.z > 65535) {
    return cudaErrorInvalidConfiguration;
  }
  const std::lock_guard lock(one_launch);
  running = {.run = run, .of = of, .random = std::mt19937(current_seed), .end = std::make_unique<char>()};
  running.threads.resize(threads);
  running.order.resize(threads);
  std::iota(running.order.begin(), running.order.end(), 0u);
  if (checks_races()) running.caller_race_name = __tsan_get_current_fiber();
  position.block_size = block;
  position.grid_size = grid;
  const uint64_t blocks = uint64_t{grid.x} * grid.y * grid.z;
  launches.push_back({kernel, static_cast<unsigned>(blocks), static_cast<unsigned>(threads), std::move(parameters)});
  for (uint64_t i = 0; i < blocks && running.fault.empty(); ++i) {
    run_block(static_cast<unsigned>(current_seed % 2 == 1 ? blocks - 1 - i : i));
  }
  if (checks_races()) __tsan_acquire(running.end.get());
  if (running.fault.empty()) return cudaSuccess;
  fibers.clear();  // some are in the middle of a thread
  free_fibers.clear();
  std::fprintf(stderr, "emulator: %s\n", running.fault.c_str());
  last_fault = "unspecified launch failure: " + running.fault;
  return cudaErrorLaunchFailure;
}

const char* error_string(int error) {
  if (error == cudaErrorLaunchFailure) return last_fault.c_str();
  return "invalid configuration argument";
}

}  // namespace emulator
