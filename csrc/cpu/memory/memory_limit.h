// How much memory this process may use, and how much more it may map.
#pragma once

#include <cstddef>
#include <string>

namespace snnfast::cpu {

// Returns the bytes of the machine, or of the control group of the process if it has fewer; 0 if unknown. `root` is the
// folder that holds /proc and /sys, for tests.
size_t memory_limit(const std::string& root = "");

// Returns the bytes that the process may still map under RLIMIT_AS and RLIMIT_DATA; the largest size_t without a limit.
size_t mappable_bytes();

}  // namespace snnfast::cpu
