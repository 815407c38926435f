#include "common.cuh"

// One block for each row of logits (n, c): its loss -(1-ε) w_y log p_y, and p in dlogits.
KERNEL softmax_row(const T* logits, T* p, long long n, long long c) {
    __shared__ A scratch[32];
    const T* x = logits + blockIdx.x * c;
    A top = -INF;
    for (int64 i = threadIdx.x; i < c; i += blockDim.x) top = Larger()(top, A(x[i]));
    top = over_block(top, A(-INF), scratch, Larger());
    A total = 0;
    for (int64 i = threadIdx.x; i < c; i += blockDim.x) total += exp(A(x[i]) - top);
    total = over_block(total, A(0), scratch, Plus());
    for (int64 i = threadIdx.x; i < c; i += blockDim.x) p[blockIdx.x * c + i] = T(exp(A(x[i]) - top) / total);
}
