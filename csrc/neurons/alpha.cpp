// The ops of snnTorch's Alpha.
#include "../math/alpha.h"

#include "../op/host.h"

namespace snnfast {

SNN_REGISTER(Alpha)

}  // namespace snnfast
