// The Python module snnfast._C: what is not a tensor op. Importing it registers the ops of neurons/.
#include <string>
#include <tuple>
#include <vector>

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "cpu/isa.h"
#include "cpu/memory_limit.h"
#include "cpu/pool.h"
#include "problem.h"

#if defined(__clang__)
#define SNN_COMPILER "clang " __clang_version__
#else
#define SNN_COMPILER "g++ " __VERSION__
#endif

namespace {

template <size_t Size>
std::vector<std::string> names(const char* const (&list)[Size]) {
  return {list, list + Size};
}

// T steps take (T + plus) // per rows of so many bytes an element; 0: of the arithmetic's.
std::vector<std::tuple<std::string, int64_t, int64_t, int64_t>> saved_modes() {
  std::vector<std::tuple<std::string, int64_t, int64_t, int64_t>> modes;
  for (const snnfast::SavedMode& mode : snnfast::kSavedModes) {
    modes.emplace_back(mode.name, mode.plus, mode.per, mode.bytes);
  }
  return modes;
}

std::vector<std::tuple<std::string, int, int>> option_fields() {
  std::vector<std::tuple<std::string, int, int>> fields;
  for (const snnfast::OptionField& field : snnfast::kOptionFields)
    fields.emplace_back(field.name, field.at, field.bits);
  return fields;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  using namespace snnfast;
  m.doc() = "Build facts and switches of snnfast's compiled kernels.";
  m.attr("compiler") = SNN_COMPILER;
  m.attr("torch_target") = SNN_TORCH_TARGET;
  m.attr("cuda_compiler") = SNN_CUDA_COMPILER;
  m.attr("cuda_architectures") = SNN_CUDA_ARCHITECTURES;
  m.attr("cuda") = *SNN_CUDA_COMPILER != '\0';
  m.attr("cuda_missing") = SNN_CUDA_MISSING;
  // Their numbers are places in these lists, in Python too.
  m.attr("surrogates") = names(kSurrogateNames);
  m.attr("resets") = names(kResetNames);
  m.attr("times") = names(kTimeNames);
  m.attr("saved_modes") = saved_modes();
  m.attr("option_fields") = option_fields();
  m.def("isa", &cpu::isa, "Name of the CPU instruction set that the kernels use.");
  m.def("isa_available", &cpu::isa_available, "Instruction sets that this processor has kernels for, best first.");
  m.def("set_isa", &cpu::set_isa, pybind11::arg("name"), "Use the kernels of another instruction set, process-wide.");
  m.def(
      "set_stream_bytes", &cpu::set_stream_bytes, pybind11::arg("bytes"),
      "Write the outputs of calls that touch as many bytes by non-temporal stores, -1: as the caches are; returns the "
      "number before. For tests.");
  m.def("pool_clear", &cpu::pool::clear, "Return the idle memory of past outputs to the system.");
  m.def("pool_idle_bytes", &cpu::pool::idle_bytes, "Bytes of past outputs kept for the next ones.");
  m.def("pool_idle_limit", &cpu::pool::idle_limit, "The most bytes that are kept, None: what the demand decides.");
  m.def("pool_set_idle_limit", &cpu::pool::set_idle_limit, pybind11::arg("bytes"),
        "Keep at most so many bytes; None: what the demand decides.");
  m.def("memory_limit", &cpu::memory_limit, pybind11::arg("root") = "",
        "Bytes of memory that this process may use, by the /proc and /sys in a folder.");
}
