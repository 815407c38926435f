// Optimizer steps over flat arrays, in place: one pass over memory, which is what they cost.
#include "common.cuh"

inline __device__ A flushed(A x, A least) { return abs(x) < least ? A(0) : x; }

// b to the power n ≥ 0, by squaring: a step count is a whole number.
inline __device__ double power(double b, int64 n) {
    double y = 1;
    for (; n > 0; n >>= 1, b *= b)
        if (n & 1) y *= b;
    return y;
}

// How many elements come before the first at which all of these are aligned; n if there is none.
inline __device__ int64 before_packs(int64 n, const T* a, const T* b, const T* c, const T* d) {
    uint64 at = reinterpret_cast<uint64>(a) % 16;
    bool alike = at == reinterpret_cast<uint64>(b) % 16 && at == reinterpret_cast<uint64>(c) % 16 &&
                 at == reinterpret_cast<uint64>(d) % 16;
    int64 head = (16 - at) % 16 / sizeof(T);
    return alike && head < n ? head : n;
}

struct Adam {
    A step_size, correction, rest1, beta2, rest2, eps, decay, shrink, least;

    __device__ void operator()(T& p, T g, T& m, T& v) const {
        A x = p, d = g, mean = m, square = v;
        if (decay != 0) d = fma(decay, x, d);
        d = flushed(d, least);
        mean = flushed(fma(rest1, d - mean, mean), least);
        square = flushed(fma(beta2, square, rest2 * flushed(d * d, least)), least);
        m = T(mean);
        v = T(square);
        p = T(fma(-step_size, mean / fma(sqrt(square), correction, eps), x * shrink));
    }
};

// Reads p, g, m, v and writes p, m, v: 7 sizes of T an element, 28 bytes for float32.
KERNEL adam_step(T* p, const T* g, T* m, T* v, const double* state, const double* found_inf, double beta1, double beta2,
                 double eps, double weight_decay, bool decoupled, double least, long long n) {
    __shared__ A shared[2];
    if (found_inf && *found_inf != 0) return;  // the same for every thread
    if (threadIdx.x < 2) {
        double left = 1 - power(threadIdx.x ? beta2 : beta1, int64(state[1]));
        shared[threadIdx.x] = threadIdx.x ? A(1 / sqrt(left)) : A(state[0] / left);
    }
    __syncthreads();
    Adam step = {shared[0], shared[1], A(1 - beta1), A(beta2), A(1 - beta2), A(eps), A(decoupled ? 0 : weight_decay),
                 A(decoupled ? 1 - state[0] * weight_decay : 1), A(least)};
    int64 head = before_packs(n, p, g, m, v), packs = (n - head) / PACK, rest = n - packs * PACK;
    int64 first = int64(blockIdx.x) * blockDim.x + threadIdx.x, stride = int64(gridDim.x) * blockDim.x;
    for (int64 i = first; i < packs; i += stride) {
        int64 at = head + i * PACK;
        Pack a = pack_at(p + at), b = pack_at(g + at), c = pack_at(m + at), d = pack_at(v + at);
        for (int k = 0; k < PACK; k++) step(a.v[k], b.v[k], c.v[k], d.v[k]);
        put_pack(p + at, a);
        put_pack(m + at, c);
        put_pack(v + at, d);
    }
    for (int64 i = first; i < rest; i += stride) {
        int64 at = i < head ? i : i + packs * PACK;
        step(p[at], g[at], m[at], v[at]);
    }
}

struct Sgd {
    A lr, momentum, share, decay, least;
    bool nesterov;

    __device__ A smoothed(T p, T g) const {
        A d = g;
        return flushed(decay != 0 ? fma(decay, A(p), d) : d, least);
    }
    __device__ void operator()(T& p, T g) const { p = T(fma(-lr, smoothed(p, g), A(p))); }
    __device__ void operator()(T& p, T g, T& buf) const {
        A d = smoothed(p, g), b = flushed(fma(momentum, A(buf), share * d), least);
        buf = T(b);
        p = T(fma(-lr, nesterov ? fma(momentum, b, d) : b, A(p)));
    }
};

// Without momentum 3 sizes of T an element, with it 5: 12 and 20 bytes for float32.
KERNEL sgd_step(T* p, const T* g, T* buf, const double* state, const double* found_inf, double momentum, double dampening,
                double weight_decay, bool nesterov, double least, long long n) {
    if (found_inf && *found_inf != 0) return;
    Sgd step = {A(state[0]), A(momentum), A(state[1] == 1 ? 1 : 1 - dampening), A(weight_decay), A(least), nesterov};
    int64 head = before_packs(n, p, g, buf ? buf : p, p), packs = (n - head) / PACK, rest = n - packs * PACK;
    int64 first = int64(blockIdx.x) * blockDim.x + threadIdx.x, stride = int64(gridDim.x) * blockDim.x;
    for (int64 i = first; i < packs; i += stride) {
        int64 at = head + i * PACK;
        Pack a = pack_at(p + at), b = pack_at(g + at);
        if (buf) {
            Pack c = pack_at(buf + at);
            for (int k = 0; k < PACK; k++) step(a.v[k], b.v[k], c.v[k]);
            put_pack(buf + at, c);
        } else
            for (int k = 0; k < PACK; k++) step(a.v[k], b.v[k]);
        put_pack(p + at, a);
    }
    for (int64 i = first; i < rest; i += stride) {
        int64 at = i < head ? i : i + packs * PACK;
        if (buf) step(p[at], g[at], buf[at]);
        else step(p[at], g[at]);
    }
}
