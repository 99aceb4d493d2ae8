// What the kernels with planted bugs share. Each is a template: with `kPlanted` it has the bug, without it is the clean
// twin. The comment `// planted: <name>` marks the line that a report must name.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <memory>

#include "emulator.h"
#include "poison.h"

namespace planted {

// Memory that nothing has written, to the byte as large as asked for.
template <typename T>
class Memory {
 public:
  explicit Memory(int count) : data_(new T[static_cast<size_t>(count)]), count_(count) {
    emulator::poison(data_.get(), sizeof(T) * static_cast<size_t>(count));
  }
  Memory(int count, T value) : Memory(count) { std::fill_n(data_.get(), count, value); }

  T* get() const { return data_.get(); }

  // Of an output after the launch: what was never written, or computed from what was never written.
  void expect_written() const {
    const int64_t at = emulator::first_poisoned(data_.get(), count_, sizeof(T));
    if (at == count_) return;
    std::fprintf(stderr, "poison: element %d of the output\n", static_cast<int>(at));
    std::exit(1);
  }

 private:
  std::unique_ptr<T[]> data_;
  int count_;
};

inline __global__ void nothing() {}

inline void expect_success(int error) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "launch: error %d, %s\n", error, cudaGetErrorString(error));
  std::exit(1);
}

// One kernel over `threads` threads per block, with the bug or without.
template <typename... Parameters, typename... Arguments>
void run(void (*kernel)(Parameters...), int grid, int threads, const Arguments&... arguments) {
  expect_success(emulator::launch(kernel, static_cast<unsigned>(grid), static_cast<unsigned>(threads), arguments...));
}

}  // namespace planted
