// The ops of snnTorch's Leaky.
#include "../math/leaky.h"

#include "../op/host.h"

namespace snnfast {

SNN_REGISTER(Leaky)

}  // namespace snnfast
