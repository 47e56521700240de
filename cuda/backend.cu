// The GPU's memory and its one stream; in the emulator, the host's memory.
#include <cstdlib>
#include <cstring>

#include "cuda/cuda.h"

namespace t2l::cuda {

#ifdef __CUDACC__

Cuda::Cuda(int index) {
  cuda_check(cudaSetDevice(index), "select the GPU");
  cuda_check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "create a stream");
}

void* Cuda::reserve(size_t bytes) {
  void* p = nullptr;
  const cudaError_t e = cudaMalloc(&p, bytes);
  if (e == cudaErrorMemoryAllocation) {
    cudaGetLastError();  // this one is dealt with here
    fail("out of GPU memory: {} MiB more were needed; use fewer descriptions at once, a smaller model or --device cpu",
         (bytes >> 20) + 1);
  }
  cuda_check(e, "allocate memory");
  return p;
}

void Cuda::release(void* p, size_t) { cuda_check(cudaFree(p), "free memory"); }

void Cuda::copy(void* to, const void* from, size_t bytes) {
  cuda_check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream_), "copy");
}

void Cuda::upload(void* to, const void* from, size_t bytes) {
  cuda_check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, stream_), "upload");
  synchronize();  // the caller may change the host's memory now
}

void Cuda::download(void* to, const void* from, size_t bytes) {
  cuda_check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, stream_), "download");
  synchronize();
}

void Cuda::set_bytes(void* p, int byte, size_t bytes) {
  cuda_check(cudaMemsetAsync(p, byte, bytes, stream_), "fill memory");
}

void Cuda::synchronize() { cuda_check(cudaStreamSynchronize(stream_), "wait for the GPU"); }

namespace {

// Why GPU `index` cannot be used, or an empty string.
std::string unusable(int index) {
  int count = 0;
  const cudaError_t e = cudaGetDeviceCount(&count);
  if (e == cudaErrorInsufficientDriver) {
    int driver = 0;
    cudaDriverGetVersion(&driver);
    if (!driver) return "no NVIDIA driver is installed";
    return fmt::format("the NVIDIA driver is for CUDA {}.{}, this program for {}.{}; update the driver", driver / 1000,
                       driver % 1000 / 10, CUDART_VERSION / 1000, CUDART_VERSION % 1000 / 10);
  }
  if (e == cudaErrorNoDevice || (e == cudaSuccess && count == 0))
    return "no NVIDIA GPU is visible (is CUDA_VISIBLE_DEVICES empty?)";
  if (e != cudaSuccess) return cudaGetErrorString(e);
  if (index < 0 || index >= count) return fmt::format("there is no GPU {}, only 0 to {}", index, count - 1);
  int major = 0, minor = 0;
  for (const auto& [value, attribute] :
       {std::pair{&major, cudaDevAttrComputeCapabilityMajor}, std::pair{&minor, cudaDevAttrComputeCapabilityMinor}})
    if (const cudaError_t failed = cudaDeviceGetAttribute(value, attribute, index)) return cudaGetErrorString(failed);
  if (major < 8)
    return fmt::format("GPU {} has compute capability {}.{}, at least 8.0 (Ampere) is needed", index, major, minor);
  return {};
}

}  // namespace

#else

// 256-byte aligned as cudaMalloc's, and not a byte more than asked for, so that AddressSanitizer sees each overrun.
Cuda::Cuda(int) {}

void* Cuda::reserve(size_t bytes) {
  void* p = nullptr;
  if (posix_memalign(&p, 256, bytes)) fail("out of memory: {} MiB more were needed", (bytes >> 20) + 1);
  return p;
}

void Cuda::release(void* p, size_t) { std::free(p); }
void Cuda::copy(void* to, const void* from, size_t bytes) { std::memcpy(to, from, bytes); }
void Cuda::upload(void* to, const void* from, size_t bytes) { std::memcpy(to, from, bytes); }
void Cuda::download(void* to, const void* from, size_t bytes) { std::memcpy(to, from, bytes); }
void Cuda::set_bytes(void* p, int byte, size_t bytes) { std::memset(p, byte, bytes); }
void Cuda::synchronize() {}

namespace {
std::string unusable(int) { return {}; }
}  // namespace

#endif

}  // namespace t2l::cuda

t2l::Backend* t2l::cuda_backend(int index, std::string* why_not) {
  *why_not = cuda::unusable(index);
  if (!why_not->empty()) return nullptr;
  try {
    static cuda::Cuda& backend = *new cuda::Cuda(index);  // never destroyed: tensors may outlive it
    return &backend;
  } catch (const Error& e) {
    *why_not = e.what();
    return nullptr;
  }
}
