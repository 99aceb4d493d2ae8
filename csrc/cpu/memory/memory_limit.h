// How much memory this process may use, and how much more it may map.
#pragma once

#include <cstddef>
#include <string>

namespace snnfast::cpu {

// Bytes of the machine, or of a control group that the process is in, if those are fewer; 0 if unknown. `root`: the
// folder that holds /proc and /sys, for tests.
size_t memory_limit(const std::string& root = "");

// Bytes that the process may still map under RLIMIT_AS and RLIMIT_DATA; the largest size_t without such a limit.
size_t mappable_bytes();

}  // namespace snnfast::cpu
