// A CUDA device that is not there, for a torch without CUDA: FakeTensorMode computes no numbers, but
// torch asks the device's guard for a stream on the way.
#include <c10/core/impl/DeviceGuardImplInterface.h>

namespace {
using Guard = c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::CUDA>;
C10_REGISTER_GUARD_IMPL(CUDA, Guard)
} // namespace
