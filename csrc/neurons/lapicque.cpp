// The ops of snnTorch's Lapicque.
#include "../math/lapicque.h"

#include "../op/host.h"

namespace snnfast {

SNN_REGISTER(Lapicque)

}  // namespace snnfast
