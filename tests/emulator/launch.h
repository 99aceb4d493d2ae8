// The launch of a program's kernel, which stands before this, as the driver does it: by the addresses of its arguments.
#pragma once

#include <utility>

template <typename... Parameters, size_t... k>
int launch_program(void (*kernel)(Parameters...), unsigned blocks, unsigned threads, void** arguments,
                   std::index_sequence<k...>) {
  return emulator::launch(kernel, blocks, threads, *static_cast<std::decay_t<Parameters>*>(arguments[k])...);
}

template <typename... Parameters>
int launch_program(void (*kernel)(Parameters...), unsigned blocks, unsigned threads, void** arguments) {
  return launch_program(kernel, blocks, threads, arguments, std::index_sequence_for<Parameters...>{});
}

extern "C" __attribute__((visibility("default"))) int snnfast_launch(unsigned blocks, unsigned threads,
                                                                     void** arguments) {
  return launch_program(snnfast_program, blocks, threads, arguments);
}
