// The ops of snnTorch's RLeaky.
#include "../math/rleaky.h"

#include "../op/host.h"

namespace snnfast {

SNN_REGISTER(RLeaky)

}  // namespace snnfast
