// What the losses share. Every block adds up its terms, and ``total`` the sums of the blocks; a lone
// block writes the loss itself.
#pragma once
#include "common.cuh"

enum { MEAN, SUM, NONE };  // REDUCTIONS of reference.py

struct Loss {
    T* loss;  // of each term for NONE, else one number
    A* sums;  // of the blocks; null where there is one block
    int64 reduction;
    __device__ void finish(A terms, A divisor, A* scratch) const {
        if (reduction == NONE) return;
        A sum = over_block(terms, A(0), scratch, Plus());
        if (threadIdx.x) return;
        if (sums) sums[blockIdx.x] = sum;
        else loss[0] = T(sum / divisor);
    }
};

// The sum of at most 64 numbers, in all lanes of a warp.
inline __device__ A sum_of_parts(const A* parts, int64 count) {
    int lane = threadIdx.x % 32;
    A low = lane < count ? parts[lane] : A(0), high = lane + 32 < count ? parts[lane + 32] : A(0);
    return over_warp(low + high, Plus());
}
