// The C API of the library, for functions that are not tensor ops. snnfast/_core/library.py calls it through ctypes. It
// throws no exception: a function that can fail returns nullptr, or a message that is valid until the thread's next
// failure.
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>

#include "../cpu/isa.h"
#include "../cpu/memory/pool.h"
#include "../cpu/unroll/dispatch.h"
#include "../cuda/device.h"
#include "guard.h"
#include "problem.h"

#if defined(__clang__)
#define SNN_COMPILER "clang " __clang_version__
#else
#define SNN_COMPILER "g++ " __VERSION__
#endif
#if defined(_WIN32)
#define SNN_API extern "C" __declspec(dllexport)
#else
#define SNN_API extern "C" __attribute__((visibility("default")))
#endif

#if defined(__GLIBC__)
// libstdc++ reads this variable to skip atomic operations while there is one thread. glibc has it only since 2.32, so
// the library defines its own. 0: there may be several threads.
extern "C" __attribute__((visibility("hidden"))) char __libc_single_threaded;
char __libc_single_threaded = 0;
#endif

namespace {

using namespace snnfast;

std::string json(const std::string& text) {
  std::string quoted = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') quoted += '\\';
    quoted += c;
  }
  return quoted + '"';
}
std::string json(int64_t number) { return std::to_string(number); }
std::string json(const SavedMode& mode) {
  return "[" + json(mode.name) + "," + json(mode.plus) + "," + json(mode.per) + "," + json(mode.bytes) + "]";
}
std::string json(const OptionField& field) {
  return "[" + json(field.name) + "," + json(field.at) + "," + json(field.bits) + "]";
}

template <typename List>
std::string json_list(const List& list) {
  std::string items;
  for (const auto& item : list) items += (items.empty() ? "" : ",") + json(item);
  return "[" + items + "]";
}

std::string facts() {
  const std::pair<const char*, std::string> all[] = {
      {"compiler", json(SNN_COMPILER)},
      {"torch_target", json(SNN_TORCH_TARGET)},
      {"cuda_compiler", json(SNN_CUDA_COMPILER)},
      {"cuda_architectures", json(SNN_CUDA_ARCHITECTURES)},
      {"cuda_missing", json(SNN_CUDA_MISSING)},
      // Their numbers are positions in these lists, as in Python.
      {"surrogates", json_list(kSurrogateNames)},
      {"resets", json_list(kResetNames)},
      {"times", json_list(kTimeNames)},
      // T steps take (T + plus) // per rows, of so many bytes per element; 0: those of the opmath dtype.
      {"saved_modes", json_list(kSavedModes)},
      {"option_fields", json_list(kOptionFields)},
      {"isa_available", json_list(cpu::isa_available())},
      {"vendor", json(cpu::vendor())},
  };
  std::string object;
  for (const auto& [name, value] : all) object += (object.empty() ? "" : ",") + json(name) + ":" + value;
  return "{" + object + "}";
}

}  // namespace

// How the library was built, and what it has, as a JSON object.
SNN_API const char* snnfast_facts() {
  static const std::string text = facts();
  return text.c_str();
}

// Sets `name` to that of the CPU instruction set in use.
SNN_API const char* snnfast_isa(const char** name) {
  return message_of([&] { *name = cpu::isa(); });
}

SNN_API const char* snnfast_set_isa(const char* name) {
  return message_of([&] { cpu::set_isa(name); });
}

// Makes calls that touch so many bytes use non-temporal stores; -1: those that do not fit the caches. Returns the
// number before.
SNN_API int64_t snnfast_set_stream_bytes(int64_t bytes) { return cpu::set_stream_bytes(bytes); }

SNN_API void snnfast_pool_clear() { cpu::pool::clear(); }

SNN_API bool snnfast_pool_owns(const void* buffer) { return cpu::pool::owns(buffer); }

SNN_API uint64_t snnfast_pool_idle_bytes() { return cpu::pool::idle_bytes(); }

// Returns whether there is a limit, and sets `bytes` to it. Without a limit, the pool follows the demand.
SNN_API bool snnfast_pool_idle_limit(uint64_t* bytes) {
  const std::optional<size_t> limit = cpu::pool::idle_limit();
  *bytes = limit.value_or(0);
  return limit.has_value();
}

// nullptr: the pool follows the demand.
SNN_API void snnfast_pool_set_idle_limit(const uint64_t* bytes) {
  cpu::pool::set_idle_limit(bytes != nullptr ? std::optional<size_t>(*bytes) : std::nullopt);
}

// Sets `reason` to why the kernels can't run on the current CUDA device, or to "" if they can.
SNN_API const char* snnfast_cuda_unavailable([[maybe_unused]] const char** reason) {
  return message_of([&] {
#if defined(SNN_CUDA)
    thread_local std::string text;
    text = cuda::unavailable();
    *reason = text.c_str();
#else
    throw std::runtime_error("snnfast was built without CUDA");
#endif
  });
}
