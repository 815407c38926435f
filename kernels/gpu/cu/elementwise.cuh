// out[i] = f(x[i]) or f(a[i], b[i]), over contiguous arrays; out may be one of them.
//
// Bytes: the size of a number for each operand of the result's shape, and for the result; a smaller
// operand comes from the caches. Loads and stores are the plain ones: the next kernel reads what this
// one writes, mostly from the L2 cache.

#pragma once
#include "common.cuh"

template <class F> __device__ void map(const T* x, T* out, int64 n, F f) {
    bool aligned = packable(x) && packable(out);
#pragma unroll 1
    for (int64 i = thread_of_grid() * PACK; i < n; i += threads_of_grid() * PACK) {
        Pack v = some_at(x + i, n - i, aligned);
#pragma unroll
        for (int j = 0; j < PACK; j++) v.v[j] = T(f(A(v.v[j])));
        put_some(out + i, v, n - i, aligned);
    }
}

template <class F> __device__ void zip(const T* a, const T* b, T* out, int64 n, F f) {
    bool aligned = packable(a) && packable(b) && packable(out);
#pragma unroll 1
    for (int64 i = thread_of_grid() * PACK; i < n; i += threads_of_grid() * PACK) {
        Pack x = some_at(a + i, n - i, aligned), y = some_at(b + i, n - i, aligned);
#pragma unroll
        for (int j = 0; j < PACK; j++) x.v[j] = T(f(A(x.v[j]), A(y.v[j])));
        put_some(out + i, x, n - i, aligned);
    }
}
