#include "elementwise.cuh"

// b of fewer numbers: element i takes b[i / inner % mid].
template <class F> __device__ void zip_rows(const T* a, const T* b, T* out, int64 n, int64 mid, int64 inner, F f) {
    int64 start = thread_of_grid() * PACK, step = threads_of_grid() * PACK;
    bool aligned = packable(a) && packable(out);
    Place place{uint32(start), uint32(step), uint32(mid), uint32(inner)};
#pragma unroll 1
    for (int64 i = start; i < n; i += step, place.jump()) {
        Pack x = some_at(a + i, n - i, aligned);
        Place at = place;
#pragma unroll
        for (int j = 0; j < PACK; j++, at.next()) x.v[j] = T(f(A(x.v[j]), A(b[at.row])));
        put_some(out + i, x, n - i, aligned);
    }
}

// f(a, b). b is null for a number, and mid 0 for an array of a's shape.
template <class F>
__device__ void combine(const T* a, const T* b, double number, T* out, int64 n, int64 mid, int64 inner, F f) {
    if (!b || mid == 1) {
        A y = b ? A(b[0]) : A(T(A(number)));
        map(a, out, n, [=](A x) { return f(x, y); });
    } else if (mid) {
        zip_rows(a, b, out, n, mid, inner, f);
    } else {
        zip(a, b, out, n, f);
    }
}

// a has the result's shape: if ``swapped``, it is the second operand.
#define OPERANDS const T *a, const T *b, double number, T *out, long long n, long long mid, long long inner, bool swapped
#define GIVEN a, b, number, out, n, mid, inner

KERNEL zip_add(OPERANDS) { combine(GIVEN, [](A x, A y) { return x + y; }); }
KERNEL zip_sub(OPERANDS) { combine(GIVEN, [=](A x, A y) { return swapped ? y - x : x - y; }); }
KERNEL zip_div(OPERANDS) { combine(GIVEN, [=](A x, A y) { return (swapped ? y : x) / (swapped ? x : y); }); }
KERNEL zip_mul(OPERANDS) { combine(GIVEN, [](A x, A y) { return x * y; }); }
KERNEL zip_maximum(OPERANDS) { combine(GIVEN, [](A x, A y) { return x > y || x != x ? x : y; }); }
KERNEL zip_minimum(OPERANDS) { combine(GIVEN, [](A x, A y) { return x < y || x != x ? x : y; }); }

KERNEL map_neg(const T* x, T* out, long long n) { map(x, out, n, [](A v) { return -v; }); }
KERNEL map_relu(const T* x, T* out, long long n) { map(x, out, n, [](A v) { return v <= 0 ? A(0) : v; }); }
KERNEL zip_relu_backward(const T* g, const T* y, T* out, long long n) {
    zip(g, y, out, n, [](A g, A y) { return y <= 0 ? A(0) : g; });
}
