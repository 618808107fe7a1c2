// The SMs that blocks of this process run on, counted by %smid: one JSON line per launch.
// Build: nvcc -arch=sm_90 -O2 -o census census.cu
#include <cstdio>
#include <cstdlib>
#include <cuda_runtime.h>

constexpr int kWords = 32;  // 1024 SMs are more than any GPU has.

__global__ void mark(unsigned* seen, long long cycles) {
  unsigned sm;
  asm volatile("mov.u32 %0, %%smid;" : "=r"(sm));
  if (threadIdx.x == 0) atomicOr(&seen[sm / 32], 1u << (sm % 32));
  const long long begun = clock64();
  while (clock64() - begun < cycles) {
  }
}

static void check(cudaError_t code, const char* call) {
  if (code == cudaSuccess) return;
  fprintf(stderr, "%s: %s\n", call, cudaGetErrorString(code));
  exit(1);
}

int main(int argc, char** argv) {
  const int launches = argc > 1 ? atoi(argv[1]) : 10;
  int attribute = 0;
  unsigned* seen = nullptr;
  check(cudaDeviceGetAttribute(&attribute, cudaDevAttrMultiProcessorCount, 0), "attribute");
  check(cudaMalloc(&seen, kWords * sizeof(unsigned)), "malloc");
  for (int launch = 0; launch < launches; ++launch) {
    unsigned words[kWords];
    check(cudaMemset(seen, 0, kWords * sizeof(unsigned)), "memset");
    // Four waves of blocks that all spin for about a millisecond reach every SM there is.
    mark<<<8192, 64>>>(seen, 1000000);
    check(cudaDeviceSynchronize(), "kernel");
    check(cudaMemcpy(words, seen, sizeof words, cudaMemcpyDeviceToHost), "copy");
    int count = 0;
    for (unsigned word : words) count += __builtin_popcount(word);
    printf("{\"attribute\": %d, \"smids\": %d}\n", attribute, count);
    fflush(stdout);
  }
  return 0;
}
