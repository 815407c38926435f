#include "common.cuh"

// Copies of arrays with strides into contiguous ones. A number is moved, not looked at: T stands for any
// dtype of its size.

// A flat place i as four digits, of which the last runs fastest, and where the strides put it; moved on
// without a division. All below 2³¹.
struct Walk {
    uint32 sizes[4], digits[4], steps[4];
    int64 strides[4];
    __device__ Walk(uint32 i, uint32 step, uint32 a, uint32 b, uint32 c, uint32 d, int64 p, int64 q, int64 r, int64 s)
        : sizes{a, b, c, d}, strides{p, q, r, s} {
#pragma unroll
        for (int k = 3; k >= 0; k--) {
            digits[k] = i % sizes[k], i /= sizes[k];
            steps[k] = step % sizes[k], step /= sizes[k];
        }
    }
    __device__ int64 at() const {
        return digits[0] * strides[0] + digits[1] * strides[1] + digits[2] * strides[2] + digits[3] * strides[3];
    }
    __device__ void jump() {
        uint32 carry = 0;
#pragma unroll
        for (int k = 3; k >= 0; k--) {
            digits[k] += steps[k] + carry;
            carry = digits[k] >= sizes[k];
            if (carry) digits[k] -= sizes[k];
        }
    }
};

template <class V>
__device__ void copy_all(const V* x, V* out, int64 a, int64 b, int64 c, int64 d, int64 p, int64 q, int64 r, int64 s) {
    ALIGNED(x, sizeof(V));
    ALIGNED(out, sizeof(V));
    int64 n = a * b * c * d;
    Walk walk{uint32(thread_of_grid()), uint32(threads_of_grid()), uint32(a), uint32(b), uint32(c), uint32(d), p, q, r, s};
#pragma unroll 1
    for (int64 i = thread_of_grid(); i < n; i += threads_of_grid(), walk.jump()) out[i] = x[walk.at()];
}

// out (a, b, c, d) = x with strides p, q, r, s: of numbers, or of 16 bytes if ``packs``. Bytes per
// element: twice its size, where x is read in pieces of 32 bytes or more.
KERNEL copy_strided(const T* x, T* out, long long a, long long b, long long c, long long d, long long p, long long q, long long r, long long s, bool packs) {
    if (packs) copy_all(reinterpret_cast<const Pack*>(x), reinterpret_cast<Pack*>(out), a, b, c, d, p, q, r, s);
    else copy_all(x, out, a, b, c, d, p, q, r, s);
}

// out (n, rows, columns) of x, in which a step along the rows is 1, along the columns ``stride``, and
// along n ``apart``. Blocks of 32 × 8 threads read tiles of 32 × 32 along the rows of x and write them
// along the columns, so both whole lines of 128 bytes of memory (for 4-byte numbers). The 33rd column
// keeps the threads of a warp in different banks of shared memory.
KERNEL transpose(const T* x, T* out, long long rows, long long columns, long long stride, long long apart) {
    __shared__ T tile[32][33];
    uint32 across = uint32((columns + 31) / 32), down = uint32((rows + 31) / 32), which = blockIdx.x / across;
    int64 column = blockIdx.x % across * 32, row = which % down * 32, n = which / down;
    int side = threadIdx.x % 32, line = threadIdx.x / 32;
#pragma unroll
    for (int k = line; k < 32; k += 8)
        if (column + k < columns && row + side < rows) tile[k][side] = x[n * apart + (column + k) * stride + row + side];
    __syncthreads();
#pragma unroll
    for (int k = line; k < 32; k += 8)
        if (row + k < rows && column + side < columns) out[(n * rows + row + k) * columns + column + side] = tile[side][k];
}
