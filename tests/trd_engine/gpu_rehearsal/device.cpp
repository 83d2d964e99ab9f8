// A CUDA device that computes nothing, for a PyTorch that is built without CUDA: with it tensors may say that they are
// on cuda:0, and the autograd engine visits them there. Must be in the process before PyTorch is; see device.py.
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

namespace at {
namespace {

struct RehearsedHooks : CUDAHooksInterface {
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return false; }
  DeviceIndex deviceCount() const override { return 1; }
  DeviceIndex getCurrentDevice() const override { return 0; }
};

C10_REGISTER_TYPED_CREATOR(CUDAHooksRegistry, "CUDAHooks", [](CUDAHooksArgs) -> std::unique_ptr<CUDAHooksInterface> {
  return std::make_unique<RehearsedHooks>();
})

// The engine keeps a stream for each device by its index, and the base class answers -1.
struct RehearsedGuard : c10::impl::NoOpDeviceGuardImpl<DeviceType::CUDA> {
  const Device device{DeviceType::CUDA, 0};
  const c10::Stream stream{c10::Stream::DEFAULT, device};
  Device exchangeDevice(Device) const override { return device; }
  Device getDevice() const override { return device; }
  c10::Stream getStream(Device) const noexcept override { return stream; }
  c10::Stream exchangeStream(c10::Stream) const noexcept override { return stream; }
  void record(void**, const c10::Stream&, const DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
};

const RehearsedGuard guard;
const c10::impl::DeviceGuardImplRegistrar registrar(DeviceType::CUDA, &guard);

} // namespace
} // namespace at
