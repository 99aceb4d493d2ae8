// Products of spikes that are bits with the weight of a Linear, and their gradients: shared out over PyTorch's threads.
#pragma once

#include "events.h"

namespace snnfast::cpu {

struct Linear {
  DType dtype;  // of weight, bias and outputs
  SpikeBits spikes;
  Height height;
  int64_t O;
};

// y [T, R, O] = spikes * weight + bias; `bias`: [O] or nullptr.
void spikes_linear(const Linear&, const void* weight, const void* bias, void* y);

// gradient [O, N] of the weight, from that of y [T, R, O].
void spikes_linear_weight(const Linear&, const void* grad, void* gradient);

}  // namespace snnfast::cpu
