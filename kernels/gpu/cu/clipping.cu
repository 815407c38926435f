// The norm of gradients, the factor that clips them, and loss scaling. An array is cut into chunks
// that its length alone fixes: a block for each, and one launch for eight arrays.
#include "common.cuh"

constexpr int64 CHUNK = 8192;  // as in clipping.py

#define ARRAYS(V)                                                                                  \
    V *x0, long long n0, V *x1, long long n1, V *x2, long long n2, V *x3, long long n3, V *x4,      \
        long long n4, V *x5, long long n5, V *x6, long long n6, V *x7, long long n7

// The block's array x (n) and in it the chunk b: those of the arrays before it are counted off.
#define FIND_CHUNK(V)                                     \
    V* x = x0;                                            \
    int64 n = n0, b = blockIdx.x;                         \
    NEXT_ARRAY(x1, n1) NEXT_ARRAY(x2, n2) NEXT_ARRAY(x3, n3) NEXT_ARRAY(x4, n4) NEXT_ARRAY(x5, n5) \
    NEXT_ARRAY(x6, n6) NEXT_ARRAY(x7, n7)
#define NEXT_ARRAY(x_, n_)         \
    if (b >= chunks(n)) {          \
        b -= chunks(n), x = x_, n = n_; \
    }

inline __device__ int64 chunks(int64 n) { return (n + CHUNK - 1) / CHUNK; }

// PACK elements from i on, zeros behind the end. A thread gets the same ones whatever the alignment.
inline __device__ Pack elements(const T* x, int64 i, int64 n, bool packs) {
    if (packs && i + PACK <= n) return pack_at(x + i);
    Pack y;
    for (int k = 0; k < PACK; k++) y.v[k] = i + k < n ? x[i + k] : T(0);
    return y;
}

struct Largest {  // keeps NaN
    __device__ double operator()(double a, double b) const { return b > a || b != b ? b : a; }
    __device__ double add(double total, double x, double) const { return (*this)(total, abs(x)); }
};
struct Squares : Plus {
    __device__ double add(double total, double x, double) const { return fma(x, x, total); }
};
struct Sizes : Plus {
    __device__ double add(double total, double x, double) const { return total + abs(x); }
};
struct Powers : Plus {
    __device__ double add(double total, double x, double p) const { return total + pow(abs(x), p); }
};

template <class F> __device__ void chunk_norm(const T* x, int64 n, int64 b, double p, double* scratch, double* part, F f) {
    bool packs = packable(x);
    int64 end = min(n, (b + 1) * CHUNK), step = int64(blockDim.x) * PACK;
    double total = 0;
#pragma unroll 4
    for (int64 i = b * CHUNK + threadIdx.x * PACK; i < end; i += step) {
        Pack y = elements(x, i, end, packs);
        for (int k = 0; k < PACK; k++) total = f.add(total, double(A(y.v[k])), p);
    }
    total = over_block(total, 0.0, scratch, f);
    if (threadIdx.x == 0) *part = total;
}

#define NORM(F)                                                            \
    __shared__ double scratch[32];                                         \
    FIND_CHUNK(const T)                                                    \
    chunk_norm(x, n, b, p, scratch, parts + blockIdx.x, F())

// One size of T an element: 4 bytes for float32.
KERNEL norm_largest(double* parts, double p, ARRAYS(const T)) { NORM(Largest); }
KERNEL norm_squares(double* parts, double p, ARRAYS(const T)) { NORM(Squares); }
KERNEL norm_sizes(double* parts, double p, ARRAYS(const T)) { NORM(Sizes); }
KERNEL norm_powers(double* parts, double p, ARRAYS(const T)) { NORM(Powers); }

// One block: the parts combined, to the power 1/p.
KERNEL norm_total(const double* parts, long long count, double p, T* out) {
    __shared__ double scratch[32];
    bool largest = p > 1e308;
    double total = 0;
    for (int64 i = threadIdx.x; i < count; i += blockDim.x) total = largest ? Largest()(total, parts[i]) : total + parts[i];
    total = largest ? over_block(total, 0.0, scratch, Largest()) : over_block(total, 0.0, scratch, Plus());
    if (threadIdx.x == 0) out[0] = T(A(largest || p == 1 ? total : p == 2 ? sqrt(total) : pow(total, 1 / p)));
}

KERNEL clip_scale(const T* total, double most, T* out) {
    A scale = A(most) / (A(total[0]) + A(1e-6));
    out[0] = T(scale > 1 ? A(1) : scale);  // NaN stays
}

// found_inf is 0 before. Reads and writes g: 8 bytes an element for float32.
KERNEL unscale(const double* state, double* found_inf, ARRAYS(T)) {
    FIND_CHUNK(T)
    bool packs = packable(x), bad = false;
    A factor = A(T(A(1 / state[0])));
    int64 end = min(n, (b + 1) * CHUNK), step = int64(blockDim.x) * PACK;
    for (int64 i = b * CHUNK + threadIdx.x * PACK; i < end; i += step) {
        Pack y = elements(x, i, end, packs);
        for (int k = 0; k < PACK; k++) {
            A g = y.v[k];
            bad |= !(g - g == 0);
            y.v[k] = T(g * factor);
        }
        if (packs && i + PACK <= end) put_pack(x + i, y);
        else
            for (int k = 0; k < PACK && i + k < end; k++) x[i + k] = y.v[k];
    }
    if (bad) *found_inf = 1;  // whoever writes, writes this
}

KERNEL clear(double* found_inf) { *found_inf = 0; }

// One thread.
KERNEL scale_step(double* state, const double* found_inf, double growth_factor, double backoff_factor, long long interval) {
    double scale = state[0], count = state[1] + 1;
    if (*found_inf != 0) {
        scale *= backoff_factor;
        count = 0;
    } else if (count == interval) {
        if (scale * growth_factor <= 3.4028234663852886e38) scale *= growth_factor;  // float32's largest
        count = 0;
    }
    state[0] = scale;
    state[1] = count;
}
