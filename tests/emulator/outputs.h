// The outputs of the op that runs: poison before the launch, and after it no element of them may be.
#pragma once

#include <string>
#include <vector>

#include "poison.h"

namespace emulator {

struct Output {
  void* data;
  int64_t count;
  size_t size;  // of an element
};
inline thread_local std::vector<Output> outputs;

inline void add_output(const Output& output) {
  poison(output.data, static_cast<size_t>(output.count) * output.size);
  if (output.size > 1) outputs.push_back(output);  // in a byte every bit may be set by right
}

// Of the first output with an element that no thread has written; empty if there is none.
inline std::string describe_unwritten() {
  for (const Output& output : outputs) {
    const int64_t at = first_poisoned(output.data, output.count, output.size);
    if (at == output.count) continue;
    return "output " + std::to_string(&output - outputs.data()) + ", element " + std::to_string(at);
  }
  return "";
}

}  // namespace emulator
