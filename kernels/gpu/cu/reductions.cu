#include "common.cuh"

// Sums and extremes over the middle of (outer, n, inner), and their relatives.
//
// Which numbers a thread combines, and in which order, follows from the shape alone: not from the
// addresses, and not from the GPU's size. 16-bit numbers are added up as floats. Bytes: each number is
// read once. Where one block for a row would leave the GPU idle, rows are cut into chunks, whose
// results stand in ``part`` until finish_… combines them.

struct Largest {  // NaN is the largest
    __device__ A operator()(A a, A b) const { return a > b || a != a ? a : b; }
};
struct Smallest {  // and the smallest
    __device__ A operator()(A a, A b) const { return a < b || a != a ? a : b; }
};

// A chunk's result into part, if there is one; a whole one divided, into out.
inline __device__ void give(A total, int64 at, A* part, T* out, double divisor) {
    if (part) part[at] = total;
    else out[at] = T(total / A(divisor));
}

// The part of n numbers that falls to member ``rank`` of a team: packs in turn and numbers behind the
// last pack in turn, or single numbers in turn if rows do not begin at packs (not ``packs``).
template <class F> __device__ A share(const T* x, int64 n, int rank, int size, bool packs, A total, F f) {
    int64 whole = packs ? n / PACK : 0;
    bool aligned = packable(x);
#pragma unroll 4
    for (int64 i = rank; i < whole; i += size) {
        Pack v = some_at(x + i * PACK, PACK, aligned);
#pragma unroll
        for (int j = 0; j < PACK; j++) total = f(total, A(v.v[j]));
    }
#pragma unroll 4
    for (int64 i = whole * PACK + rank; i < n; i += size) total = f(total, A(x[i]));
    return total;
}

// Rows of few numbers (inner 1): ``lanes`` of a warp for each.
template <class F>
__device__ void lanes_rows(const T* x, T* out, int64 rows, int64 n, int64 lanes, bool packs, double divisor, A neutral, F f) {
    int lane = threadIdx.x % 32, each = 32 / int(lanes), rank = lane % int(lanes);
    int64 step = threads_of_grid() / 32 * each;
    // All lanes of a warp stay in the loop together: they shuffle.
    for (int64 first = thread_of_grid() / 32 * each; first < rows; first += step) {
        int64 row = first + lane / int(lanes);
        A total = row < rows ? share(x + row * n, n, rank, int(lanes), packs, neutral, f) : neutral;
        for (int by = int(lanes) / 2; by; by /= 2) total = f(total, __shfl_xor_sync(0xffffffffu, total, by));
        if (rank == 0 && row < rows) give(total, row, nullptr, out, divisor);
    }
}

// Rows of many (inner 1): a block for each chunk of ``length`` numbers.
template <class F>
__device__ void block_row(const T* x, A* part, T* out, int64 n, int64 length, int64 chunks, bool packs, double divisor, A* scratch, A neutral, F f) {
    int64 row = blockIdx.x / uint32(chunks), from = blockIdx.x % uint32(chunks) * length;
    A total = share(x + row * n + from, min(n - from, length), threadIdx.x, blockDim.x, packs, neutral, f);
    total = over_block(total, neutral, scratch, f);
    if (threadIdx.x == 0) give(total, blockIdx.x, part, out, divisor);
}

// The numbers at p, of which ``left`` are there.
inline __device__ void numbers_at(const T* p, int64 left, bool aligned, A (&v)[PACK]) {
    Pack x = some_at(p, left, aligned);
#pragma unroll
    for (int j = 0; j < PACK; j++) v[j] = A(x.v[j]);
}
inline __device__ void numbers_at(const A* p, int64, bool, A (&v)[1]) { v[0] = *p; }

// Columns (inner > 1, or the chunks of rows): a block's threads stand ``across`` side by side, each
// over W columns, in lines that take the n rows of the chunk in turn.
template <int W, class S, class F>
__device__ void block_columns(const S* x, A* part, T* out, int64 n, int64 inner, int64 length, int64 chunks, int64 across, double divisor, A* scratch, A neutral, F f) {
    uint32 side = threadIdx.x % uint32(across), line = threadIdx.x / uint32(across), lines = blockDim.x / uint32(across);
    uint32 tiles = uint32((inner + across * W - 1) / (across * W)), rest = blockIdx.x / tiles;
    int64 column = (blockIdx.x % tiles * across + side) * W, start = rest % uint32(chunks) * length;
    const S* from = x + rest / uint32(chunks) * n * inner + column;
    bool aligned = inner % PACK == 0 && packable(x);
    A total[W];
#pragma unroll
    for (int j = 0; j < W; j++) total[j] = neutral;
    if (column < inner)
#pragma unroll 4
        for (int64 i = start + line; i < min(n, start + length); i += lines) {
            A v[W];
            numbers_at(from + i * inner, inner - column, aligned, v);
#pragma unroll
            for (int j = 0; j < W; j++) total[j] = f(total[j], v[j]);
        }
#pragma unroll
    for (int j = 0; j < W; j++) scratch[j * blockDim.x + threadIdx.x] = total[j];
    for (uint32 half = lines / 2; half; half /= 2) {
        __syncthreads();
        if (line < half)
#pragma unroll
            for (int j = 0; j < W; j++) {
                A* own = scratch + j * blockDim.x + threadIdx.x;
                *own = f(*own, own[half * across]);
            }
    }
    if (line == 0)
#pragma unroll
        for (int j = 0; j < W; j++)
            if (column + j < inner) give(scratch[j * blockDim.x + threadIdx.x], int64(rest) * inner + column + j, part, out, divisor);
}

#define LANES const T *x, T *out, long long rows, long long n, long long lanes, bool packs, double divisor
KERNEL sum_lanes(LANES) { lanes_rows(x, out, rows, n, lanes, packs, divisor, A(0), Plus()); }
KERNEL amax_lanes(LANES) { lanes_rows(x, out, rows, n, lanes, packs, divisor, A(-INF), Largest()); }
KERNEL amin_lanes(LANES) { lanes_rows(x, out, rows, n, lanes, packs, divisor, A(INF), Smallest()); }

#define ROWS const T *x, A *part, T *out, long long n, long long length, long long chunks, bool packs, double divisor
#define GIVEN_ROWS x, part, out, n, length, chunks, packs, divisor, scratch
KERNEL sum_rows(ROWS) {
    __shared__ A scratch[32];
    block_row(GIVEN_ROWS, A(0), Plus());
}
KERNEL amax_rows(ROWS) {
    __shared__ A scratch[32];
    block_row(GIVEN_ROWS, A(-INF), Largest());
}
KERNEL amin_rows(ROWS) {
    __shared__ A scratch[32];
    block_row(GIVEN_ROWS, A(INF), Smallest());
}

#define COLUMNS const T *x, A *part, T *out, long long n, long long inner, long long length, long long chunks, long long across, double divisor
#define GIVEN_COLUMNS x, part, out, n, inner, length, chunks, across, divisor, scratch
KERNEL __launch_bounds__(256) sum_columns(COLUMNS) {
    __shared__ A scratch[256 * PACK];
    block_columns<PACK>(GIVEN_COLUMNS, A(0), Plus());
}
KERNEL __launch_bounds__(256) amax_columns(COLUMNS) {
    __shared__ A scratch[256 * PACK];
    block_columns<PACK>(GIVEN_COLUMNS, A(-INF), Largest());
}
KERNEL __launch_bounds__(256) amin_columns(COLUMNS) {
    __shared__ A scratch[256 * PACK];
    block_columns<PACK>(GIVEN_COLUMNS, A(INF), Smallest());
}

// The second stage: x (outer, n, inner) are the results of n chunks.
#define PARTS const A *x, T *out, long long n, long long inner, long long across, double divisor
#define GIVEN_PARTS x, nullptr, out, n, inner, n, 1, across, divisor, scratch
KERNEL sum_finish(PARTS) {
    __shared__ A scratch[256];
    block_columns<1>(GIVEN_PARTS, A(0), Plus());
}
KERNEL amax_finish(PARTS) {
    __shared__ A scratch[256];
    block_columns<1>(GIVEN_PARTS, A(-INF), Largest());
}
KERNEL amin_finish(PARTS) {
    __shared__ A scratch[256];
    block_columns<1>(GIVEN_PARTS, A(INF), Smallest());
}

// Whether number a at place i comes before b at place j: the larger one, NaN before all, the first of
// equals.
inline __device__ bool before(A a, int64 i, A b, int64 j) {
    if (a != a || b != b) return a != a && (b == b || i < j);
    return a > b || (a == b && i < j);
}

// The place of the largest number of each row, or of the smallest if ``least``: a warp for each row.
KERNEL arg_rows(const T* x, int64* out, long long rows, long long n, bool least) {
    int lane = threadIdx.x % 32;
    for (int64 row = thread_of_grid() / 32; row < rows; row += threads_of_grid() / 32) {
        A best = -INF;
        int64 at = n;
#pragma unroll 4
        for (int64 i = lane; i < n; i += 32) {
            A v = A(x[row * n + i]);
            v = least ? -v : v;
            if (before(v, i, best, at)) best = v, at = i;
        }
        for (int by = 16; by; by /= 2) {
            A v = __shfl_xor_sync(0xffffffffu, best, by);
            int64 i = __shfl_xor_sync(0xffffffffu, at, by);
            if (before(v, i, best, at)) best = v, at = i;
        }
        if (lane == 0) out[row] = at;
    }
}

// out[i] = g[i / inner % mid] / divisor. Bytes: the size of a number for each of the result.
KERNEL mean_backward(const T* g, T* out, long long n, long long mid, long long inner, double divisor) {
    int64 start = thread_of_grid() * PACK, step = threads_of_grid() * PACK;
    bool aligned = packable(out);
    Place place{uint32(start), uint32(step), uint32(mid), uint32(inner)};
#pragma unroll 1
    for (int64 i = start; i < n; i += step, place.jump()) {
        Pack x;
        Place at = place;
#pragma unroll
        for (int j = 0; j < PACK; j++, at.next()) x.v[j] = T(A(g[at.row]) / A(divisor));
        put_some(out + i, x, n - i, aligned);
    }
}
