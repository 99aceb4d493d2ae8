// What the C API sees of the CPU backend.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace snnfast::cpu {

const char* isa();                         // name of the instruction set in use
std::vector<std::string> isa_available();  // best first
void set_isa(const std::string& name);     // throws if this processor has not got it

// From how many bytes a call writes its outputs by non-temporal stores, -1: as the caches are; returns what it was. For
// tests.
int64_t set_stream_bytes(int64_t bytes);

}  // namespace snnfast::cpu
