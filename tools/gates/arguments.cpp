// The bytes that a launch hands to a kernel of SNN_NEURONS: the struct of csrc/problem.h, and whether to stream.
//
// Reads lines of: pass (forward, backward); neuron; then numbers: dtype, steps, neurons, what is saved, whether the
// states are recorded, where parameters are (0: in the arguments, 1: one number on the device, 2: one for each neuron),
// surrogate, reset, whether parameters have gradients, whether to stream. Prints the bytes in hexadecimal.
#include <cstdio>
#include <cstring>
#include <iostream>
#include <string>

#include "problem.h"

namespace {

using namespace snnfast;

struct Wanted {
  int dtype;
  int64_t steps, neurons;
  int saved, record, place, surrogate, reset, sums, stream;
};

// A new place in memory for each tensor of a launch, of 8 GiB. The first is that of the currents, or of what is read in
// place of them.
uintptr_t next_place;
void* tensor() {
  next_place += uintptr_t{1} << 33;
  return reinterpret_cast<void*>(next_place);
}

template <typename Problem>
void fill(Problem& p, const Wanted& w) {
  p.dtype = static_cast<DType>(w.dtype);
  p.rules = {static_cast<Reset>(w.reset), true};
  p.T = w.steps;
  p.N = w.neurons;
  p.saved = static_cast<Saved>(w.saved);
  p.rows = saved_rows(p.saved, p.T) > 0 ? tensor() : nullptr;
  for (Parameter& parameter : p.parameters) {
    parameter.value = 0.5;
    if (w.place > 0) parameter.data = tensor();
    if (w.place > 1) parameter.size = w.neurons;
  }
}

template <typename Problem>
void print(const Problem& p, bool stream) {
  unsigned char bytes[sizeof p + 1];
  std::memcpy(bytes, static_cast<const void*>(&p), sizeof p);
  bytes[sizeof p] = stream;
  for (const unsigned char byte : bytes) std::printf("%02x", byte);
  std::printf("\n");
}

template <typename Neuron>
void forward(const Wanted& w) {
  Forward<Neuron> p{};
  p.x = tensor();
  fill(p, w);
  p.spk = tensor();
  if (w.record != 0) {
    for (void*& record : p.record) record = tensor();
  }
  for (void*& last : p.last) last = tensor();
  print(p, w.stream != 0);
}

template <typename Neuron>
void backward(const Wanted& w) {
  Backward<Neuron> p{};
  p.saved = static_cast<Saved>(w.saved);
  if (w.record != 0) {
    p.mem_rec = tensor();
  } else if (!p.recorded()) {
    p.x = tensor();
  }
  fill(p, w);
  p.grad_spk = tensor();
  p.grad_spk_stride = p.N;
  p.grad_x = tensor();
  if (w.sums != 0) {
    for (void*& gradient : p.grad_parameters) gradient = tensor();
  }
  p.surrogate = static_cast<SurrogateKind>(w.surrogate);
  p.coefficients = {3, 1};
  print(p, w.stream != 0);
}

// Whether a neuron has the name, and its launch was printed.
template <typename Neuron>
bool launch(const std::string& name, bool back, const Wanted& w) {
  if (name != Neuron::kName) return false;
  back ? backward<Neuron>(w) : forward<Neuron>(w);
  return true;
}

template <typename... Neurons>
bool launch_any(const std::string& name, bool back, const Wanted& w) {
  return (launch<Neurons>(name, back, w) || ...);
}

}  // namespace

int main() {
  std::string pass, neuron;
  Wanted w;
  while (std::cin >> pass >> neuron >> w.dtype >> w.steps >> w.neurons >> w.saved >> w.record >> w.place >>
         w.surrogate >> w.reset >> w.sums >> w.stream) {
    next_place = 0;
    if (!launch_any<SNN_NEURONS>(neuron, pass == "backward", w)) return 1;
  }
  return 0;
}
