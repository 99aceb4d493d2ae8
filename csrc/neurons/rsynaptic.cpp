// The ops of snnTorch's RSynaptic.
#include "../math/rsynaptic.h"

#include "../op/host.h"

namespace snnfast {

SNN_REGISTER(RSynaptic)

}  // namespace snnfast
