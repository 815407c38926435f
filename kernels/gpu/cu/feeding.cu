// What a captured step takes in and notes down by itself: its next batch, its loss.
#include "common.cuh"

// One block: rows[i] = order[(place + i) mod size], then place += n.
KERNEL next_rows(const long long* order, long long size, long long* place, long long* rows, long long n) {
    int64 start = *place;
    for (int64 i = threadIdx.x; i < n; i += blockDim.x) rows[i] = order[(start + i) % size];
    __syncthreads();  // everybody has read the place
    if (threadIdx.x == 0) *place = start + n;
}

// Rounded by itself, as on the CPU: the compiler makes no multiply-add of it.
inline __device__ float product(float a, float b) { return __fmul_rn(a, b); }
inline __device__ double product(double a, double b) { return __dmul_rn(a, b); }

// A block for each row: out = x[rows] · scale + shift. Bytes: 1 + sizeof(T) for an element.
KERNEL take_scaled_bytes(const unsigned char* x, const long long* rows, T* out, long long m, long long width, double scale, double shift) {
    int64 row = rows[blockIdx.x];
    row += row < 0 ? m : 0;
    bool inside = row >= 0 && row < m;
    T* y = out + blockIdx.x * width;
    for (int64 i = threadIdx.x; i < width; i += blockDim.x)
        y[i] = T(inside ? product(A(x[row * width + i]), A(scale)) + A(shift) : A(NOT_A_NUMBER));
}

// One thread: ring[count mod size] = value, then count += 1.
KERNEL push(T* ring, long long size, long long* count, const T* value) {
    ring[*count % size] = *value;
    *count += 1;
}
