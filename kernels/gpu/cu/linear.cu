// What surrounds the products of a linear layer, over matrices (n, k) in C order.
//
// A warp takes a row at a time, 32 · W columns of it: W is PACK (16 bytes for each lane) where k and the
// addresses allow, else 1. The 8 warps of a block take every eighth row. blockIdx.x picks the columns.
#include "common.cuh"

constexpr int WARPS = 8;

template <int W> __device__ void load(A* v, const T* p) {
    if constexpr (W == PACK) {
        Pack x = pack_at(p);
        for (int i = 0; i < W; i++) v[i] = A(x.v[i]);
    } else {
        v[0] = A(*p);
    }
}

template <int W> __device__ void store(T* p, const A* v) {
    if constexpr (W == PACK) {
        Pack x;
        for (int i = 0; i < W; i++) x.v[i] = T(v[i]);
        put_pack(p, x);
    } else {
        *p = T(v[0]);
    }
}

inline __device__ A positive(A v) { return v <= A(0) ? A(0) : v; }  // NaN stays

template <int W> __device__ void add_bias(T* y, const T* b, int64 n, int64 k, bool relu) {
    int64 c = (int64(blockIdx.x) * 32 + threadIdx.x % 32) * W;
    if (c >= k) return;
    A bias[W];
    for (int i = 0; i < W; i++) bias[i] = b ? A(b[c + i]) : A(0);
    for (int64 r = blockIdx.y * WARPS + threadIdx.x / 32; r < n; r += gridDim.y * WARPS) {
        A v[W];
        load<W>(v, y + r * k + c);
        for (int i = 0; i < W; i++) v[i] = relu ? positive(v[i] + bias[i]) : v[i] + bias[i];
        store<W>(y + r * k + c, v);
    }
}

// y (n, k) + b (k), which may be null, in place; then ReLU. 2 numbers move for each element, 8 bytes
// of float32. The grid: columns, rows.
KERNEL bias_and_relu(T* y, const T* b, long long n, long long k, bool relu, bool packed) {
    if (packed)
        add_bias<PACK>(y, b, n, k, relu);
    else
        add_bias<1>(y, b, n, k, relu);
}

// Column sums of a chunk of rows, one for each warp, into sums (WARPS, 32 · W).
template <int W> __device__ void gate_rows(const T* g, const T* y, T* gated, A* sums, int64 n, int64 k, int64 rows) {
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int64 c = (int64(blockIdx.x) * 32 + lane) * W, start = blockIdx.y * rows, end = min(n, start + rows);
    A total[W];
    for (int i = 0; i < W; i++) total[i] = A(0);
    if (c < k) {
#pragma unroll 2
        for (int64 r = start + warp; r < end; r += WARPS) {
            A v[W], above[W];
            load<W>(v, g + r * k + c);
            if (y) {
                load<W>(above, y + r * k + c);
                for (int i = 0; i < W; i++) v[i] = above[i] <= A(0) ? A(0) : v[i];
            }
            if (gated) store<W>(gated + r * k + c, v);
            for (int i = 0; i < W; i++) total[i] += v[i];
        }
    }
    for (int i = 0; i < W; i++) sums[(warp * 32 + lane) * W + i] = total[i];
}

// gated = g where not y <= 0, else 0, and db = its column sums, in one pass over g (n, k). Without y
// there is no gate; gated and db may be null. 3 numbers move for each element, 12 bytes of float32;
// 1 (4 bytes) for the sums alone. blockIdx.y picks a chunk of so many rows, fixed by the shape; the
// sums of several chunks go to partial (chunks, k), for sum_chunks.
KERNEL gate_and_sum(const T* g, const T* y, T* gated, A* partial, T* db, long long n, long long k, long long rows, bool packed) {
    __shared__ A sums[WARPS * 32 * PACK];
    if (packed)
        gate_rows<PACK>(g, y, gated, sums, n, k, rows);
    else
        gate_rows<1>(g, y, gated, sums, n, k, rows);
    if (!db) return;
    __syncthreads();
    int columns = packed ? 32 * PACK : 32;
    for (int i = threadIdx.x; i < columns; i += blockDim.x) {
        int64 c = int64(blockIdx.x) * columns + i;
        if (c >= k) break;
        A total = 0;
        for (int warp = 0; warp < WARPS; warp++) total += sums[warp * columns + i];
        if (partial)
            partial[blockIdx.y * k + c] = total;
        else
            db[c] = T(total);
    }
}

// db = the column sums of partial (chunks, k): 32 columns for each block of 32 warps.
KERNEL __launch_bounds__(1024) sum_chunks(const A* partial, T* db, long long chunks, long long k) {
    __shared__ A sums[32 * 32];
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int64 c = int64(blockIdx.x) * 32 + lane;
    A total = 0;
    if (c < k)
        for (int64 i = warp; i < chunks; i += 32) total += partial[i * k + c];
    sums[warp * 32 + lane] = total;
    __syncthreads();
    if (warp > 0 || c >= k) return;
    total = 0;
    for (int i = 0; i < 32; i++) total += sums[i * 32 + lane];
    db[c] = T(total);
}
