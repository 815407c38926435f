// What every kernel file shares: number types, packs of 16 bytes, sums over a warp and a block.
//
// A file is compiled once for each dtype, with -DT=float32 (or float64, float16, bfloat16). Numbers
// are stored as T and computed as A: float, or double for double. It is portable C++ with CUDA's
// keywords, so that tests/cuda compiles the same file for the CPU. Shared arrays stand in kernels
// and in functions that are no templates. The parameters of a kernel are pointers, long long, double
// and bool: what Python's None, int, float and bool become.
#pragma once

typedef signed char int8;
typedef unsigned char uint8;
typedef short int16;
typedef int int32;
typedef long long int64;
typedef unsigned int uint32;
typedef unsigned long long uint64;
typedef float float32;
typedef double float64;

#define KERNEL extern "C" __global__ void
#ifndef SHIM
#define DYNAMIC_SHARED(type, name)                            \
    extern __shared__ __align__(16) unsigned char shared_[]; \
    type* name = reinterpret_cast<type*>(shared_)
#define ALIGNED(p, bytes)  // a GPU stops at what is not; the shim reports it
#endif

// IEEE half precision: 1 sign, 5 exponent and 10 fraction bits.
struct float16 {
    unsigned short bits;
    float16() = default;
    __device__ float16(float x) : bits(half_bits(x)) {}
    __device__ operator float() const { return half_value(bits); }
#ifdef SHIM
    static unsigned short half_bits(float x) { _Float16 h = x; unsigned short b; __builtin_memcpy(&b, &h, 2); return b; }
    static float half_value(unsigned short b) { _Float16 h; __builtin_memcpy(&h, &b, 2); return h; }
#else
    static __device__ unsigned short half_bits(float x) {
        unsigned short b;
        asm("cvt.rn.f16.f32 %0, %1;" : "=h"(b) : "f"(x));
        return b;
    }
    static __device__ float half_value(unsigned short b) {
        float x;
        asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(b));
        return x;
    }
#endif
};

// The upper half of a float: 1 sign, 8 exponent and 7 fraction bits, rounded to nearest even.
struct bfloat16 {
    unsigned short bits;
    bfloat16() = default;
    __device__ bfloat16(float x) {
        uint32 b = __float_as_uint(x);
        bits = x != x ? 0x7fff : (b + 0x7fff + ((b >> 16) & 1)) >> 16;
    }
    __device__ operator float() const { return __uint_as_float(uint32(bits) << 16); }
};

template <class> struct Accumulator { typedef float type; };
template <> struct Accumulator<double> { typedef double type; };
typedef Accumulator<T>::type A;

// 16 bytes of numbers, read and written at once where they are so aligned.
constexpr int PACK = 16 / sizeof(T);
struct alignas(16) Pack {
    T v[PACK];
};

inline __device__ Pack pack_at(const T* p) {
    ALIGNED(p, 16);
    return *reinterpret_cast<const Pack*>(p);
}
inline __device__ void put_pack(T* p, const Pack& x) {
    ALIGNED(p, 16);
    *reinterpret_cast<Pack*>(p) = x;
}
inline __device__ bool packable(const void* p) { return reinterpret_cast<uint64>(p) % 16 == 0; }

// The pack at p, or ``left`` numbers of it where it ends earlier and 0 behind them; read at once if
// ``aligned``.
inline __device__ Pack some_at(const T* p, int64 left, bool aligned) {
    if (aligned && left >= PACK) return pack_at(p);
    Pack x;
#pragma unroll
    for (int j = 0; j < PACK; j++) x.v[j] = j < left ? p[j] : T(0);
    return x;
}
inline __device__ void put_some(T* p, const Pack& x, int64 left, bool aligned) {
    if (aligned && left >= PACK) return put_pack(p, x);
#pragma unroll
    for (int j = 0; j < PACK; j++)
        if (j < left) p[j] = x.v[j];
}

// This thread among those of the whole grid, and their number: the start and the step of its loop.
inline __device__ int64 thread_of_grid() { return int64(blockIdx.x) * blockDim.x + threadIdx.x; }
inline __device__ int64 threads_of_grid() { return int64(gridDim.x) * blockDim.x; }

// For element i of a flat array: column = i % inner and row = i / inner % mid, without a division as i
// moves on by 1 or by ``step``. All below 2³¹. The small operand of a broadcast is read at its row.
struct Place {
    uint32 mid, inner, row, column, rows, columns;
    __device__ Place(uint32 i, uint32 step, uint32 mid, uint32 inner)
        : mid(mid), inner(inner), row(i / inner % mid), column(i % inner), rows(step / inner % mid), columns(step % inner) {}
    __device__ void next() {
        if (++column < inner) return;
        column = 0;
        if (++row == mid) row = 0;
    }
    __device__ void jump() {
        row += rows;
        column += columns;
        if (column >= inner) column -= inner, row++;
        if (row >= mid) row -= mid;
    }
};

#define INF __int_as_float(0x7f800000)
#define NOT_A_NUMBER __int_as_float(0x7fffffff)

struct Plus {
    template <class V> __device__ V operator()(V a, V b) const { return a + b; }
};
struct Larger {  // passes over NaN
    template <class V> __device__ V operator()(V a, V b) const { return b > a ? b : a; }
};

// The combination of x over the 32 lanes of a warp, in every lane, in an order of its own.
template <class V, class F> __device__ V over_warp(V x, F f) {
    for (int step = 16; step; step /= 2) x = f(x, __shfl_xor_sync(0xffffffffu, x, step));
    return x;
}

// The combination of x over a block of whole warps, in every thread; scratch holds 32 numbers.
template <class V, class F> __device__ V over_block(V x, V neutral, V* scratch, F f) {
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    x = over_warp(x, f);
    __syncthreads();  // whoever reads the scratch of an earlier call is done
    if (lane == 0) scratch[warp] = x;
    __syncthreads();
    return over_warp(lane < warps ? scratch[lane] : neutral, f);
}
