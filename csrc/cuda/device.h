// What the host asks of CUDA itself, without a header of it.
#pragma once

#include <string>

namespace snnfast::cuda {

// Why the kernels can't run on the current device; empty where they can. It starts CUDA there, and launches nothing.
// Throws std::runtime_error where CUDA fails for a reason that has nothing to do with the kernels.
std::string unavailable();

}  // namespace snnfast::cuda
