// The ops of snnTorch's Synaptic.
#include "../math/synaptic.h"

#include "../op/host.h"

namespace snnfast {

SNN_REGISTER(Synaptic)

}  // namespace snnfast
