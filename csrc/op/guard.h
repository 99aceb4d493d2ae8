// No C++ exception leaves the library: torch may be built with another C++ library, whose handlers do not know it, and
// on Windows with another kind of exceptions. Inside the library, errors are exceptions.
#pragma once

#include <cstdint>
#include <exception>
#include <new>
#include <string>

#include <torch/csrc/inductor/aoti_torch/c/shim.h>

namespace snnfast {

// The message of the exception that is being handled. It is valid until the thread's next failure.
inline const char* current_message() noexcept {
  thread_local std::string message;
  try {
    try {
      throw;
    } catch (const std::bad_alloc&) {
      return "snnfast: not enough memory";
    } catch (const std::exception& error) {
      message = error.what();
      return message.c_str();
    }
  } catch (...) {
    return "snnfast: an error without a message";
  }
}

// Calls a function, and returns nullptr or the message of the exception that it threw. Not inlined: an error of torch
// passes the caller, which may have no handlers. Those of another C++ library can't read torch's exceptions.
template <typename Function>
__attribute__((noinline)) const char* message_of(Function&& function) {
  try {
    function();
    return nullptr;
  } catch (...) {
    return current_message();
  }
}

using Boxed = void(StableIValue*, uint64_t, uint64_t);

// The kernel of an op, as torch calls it. An exception becomes an error of torch's own, which a function of its C API
// raises. That error passes this function, so it catches nothing itself, and nothing in it has a destructor.
template <Boxed* kernel>
void guarded(StableIValue* stack, uint64_t inputs, uint64_t outputs) {
  const char* const message = message_of([&] { kernel(stack, inputs, outputs); });
  if (message != nullptr) aoti_torch_check(false, "snnfast", "", 0, message);
}

}  // namespace snnfast

// A function on tensors as the kernel of an op.
#define SNN_BOX(function) (&::snnfast::guarded<TORCH_BOX(&function)>)
