#include "common.cuh"

// Numbers taken by an index, and their gradients, which add up without atomic additions: in the order
// of the index, so with the same result every time. An index counts from the end if it is negative; one
// outside gives NaN, and adds to nothing.

constexpr uint64 NOWHERE = ~uint64(0);

inline __device__ int64 from_start(int64 i, int64 n) { return i < 0 ? i + n : i; }

// out (outer, m, d) = rows of x (outer, n, d): ``lanes`` threads for each. Bytes: twice those of out.
KERNEL select_rows(const T* x, const int64* index, T* out, long long outer, long long n, long long m, long long d, long long lanes) {
    bool aligned = d % PACK == 0 && packable(x) && packable(out);
    int64 first = thread_of_grid() / uint32(lanes), step = threads_of_grid() / uint32(lanes);
    int rank = threadIdx.x % uint32(lanes);
    Place place{uint32(first), uint32(step), uint32(outer), uint32(m)};
    for (int64 row = first; row < outer * m; row += step, place.jump()) {
        int64 i = from_start(index[place.column], n);
        bool inside = i >= 0 && i < n;
        const T* from = x + (place.row * n + i) * d;
        for (int64 c = rank * PACK; c < d; c += lanes * PACK) {
            Pack v;
            if (inside) v = some_at(from + c, d - c, aligned);
            else
#pragma unroll
                for (int j = 0; j < PACK; j++) v.v[j] = T(A(NOT_A_NUMBER));
            put_some(out + row * d + c, v, d - c, aligned);
        }
    }
}

// --- the gradient of rows taken: the index is sorted once, then rows that go to one place stand together

constexpr int SPAN = 2048;  // keys that a block sorts in shared memory

// Bitonic sorting (Batcher, 1968): the steps with distances below SPAN for stages first … last, all in
// shared memory. keys[p] is index[p] before p, so that equal ones stay in order; an index outside
// comes behind all others, and behind those what fills up to a power of two. ``index`` is null once
// keys are there.
KERNEL sort_span(const int64* index, uint64* keys, long long m, long long n, long long size, long long first, long long last) {
    __shared__ uint64 span[SPAN];
    int64 start = int64(blockIdx.x) * SPAN;
    int count = int(min(size, int64(SPAN)));
    for (int k = threadIdx.x; k < count; k += blockDim.x) {
        int64 p = start + k;
        if (!index) {
            span[k] = keys[p];
            continue;
        }
        int64 i = p < m ? from_start(index[p], n) : 0;
        uint64 row = i >= 0 && i < n ? uint64(i) : uint64(n);
        span[k] = p < m ? row << 32 | uint64(p) : NOWHERE;
    }
    for (int64 stage = first; stage <= last; stage *= 2)
        for (int distance = int(min(stage, int64(count)) / 2); distance; distance /= 2) {
            __syncthreads();
            for (int k = threadIdx.x; k < count / 2; k += blockDim.x) {
                int low = 2 * k - (k & (distance - 1)), high = low + distance;
                uint64 a = span[low], b = span[high];
                if ((a > b) == (((start + low) & stage) == 0)) span[low] = b, span[high] = a;
            }
        }
    __syncthreads();
    for (int k = threadIdx.x; k < count; k += blockDim.x) keys[start + k] = span[k];
}

// One step with a distance of SPAN or more: a thread for each pair of keys.
KERNEL sort_step(uint64* keys, long long size, long long stage, long long distance) {
    int64 k = thread_of_grid();
    if (k >= size / 2) return;
    int64 low = 2 * k - (k & (distance - 1)), high = low + distance;
    uint64 a = keys[low], b = keys[high];
    if ((a > b) == ((low & stage) == 0)) keys[low] = b, keys[high] = a;
}

inline __device__ int64 row_of(uint64 key) { return int64(key >> 32); }

// Where a warp's lane stands: the keys of a chunk, the columns of a tile, and which of ``outer``.
struct Segment {
    int64 chunk, column, outer;
    __device__ Segment(int64 which, int64 chunks, int64 d) {
        uint32 tiles = uint32((d + 32 * PACK - 1) / (32 * PACK)), rest = uint32(which) / tiles;
        column = (uint32(which) % tiles * 32 + threadIdx.x % 32) * PACK;
        chunk = rest % uint32(chunks);
        outer = rest / uint32(chunks);
    }
};

struct Totals {
    A v[PACK];
    __device__ void clear() {
#pragma unroll
        for (int j = 0; j < PACK; j++) v[j] = 0;
    }
    __device__ void keep(A* p, int64 left) const {
#pragma unroll
        for (int j = 0; j < PACK; j++)
            if (j < left) p[j] = v[j];
    }
    __device__ void put(T* p, int64 left, bool aligned) const {
        Pack x;
#pragma unroll
        for (int j = 0; j < PACK; j++) x.v[j] = T(v[j]);
        put_some(p, x, left, aligned);
    }
};

constexpr int AHEAD = PACK > 4 ? 2 : 4;  // rows on the way at once, in 16 registers or fewer

// A warp for 32 sorted keys and 32 packs of columns of g (outer, m, d). The sum of a run of equal rows
// goes to out (outer, n, d), which was 0, if the run lies in the chunk; else into part (outer, chunks,
// 2, d): [0] that of a run which goes on from the chunk before, [1] that of one which starts here and
// goes on.
KERNEL sum_runs(const uint64* keys, const T* g, A* part, T* out, long long outer, long long m, long long n, long long d, long long chunks) {
    int64 warp = thread_of_grid() / 32, tiles = (d + 32 * PACK - 1) / (32 * PACK);
    if (warp >= outer * chunks * tiles) return;
    Segment at(warp, chunks, d);
    int64 start = at.chunk * 32, left = d - at.column;
    int lane = threadIdx.x % 32, count = int(min(m - start, int64(32)));
    bool aligned = d % PACK == 0 && packable(g) && packable(out);
    uint64 own = lane < count ? keys[start + lane] : NOWHERE;
    int64 previous = at.chunk ? row_of(keys[start - 1]) : -1, next = start + 32 < m ? row_of(keys[start + 32]) : -1;
    const T* from = g + at.outer * m * d + at.column;
    A* edge = part + (at.outer * chunks + at.chunk) * 2 * d + at.column;
    T* to = out + at.outer * n * d + at.column;
    Totals total;
    total.clear();
    int64 row = row_of(__shfl_sync(0xffffffffu, own, 0));
    bool goes_on = row == previous;  // the run, from the chunk before
    for (int k = 0; k < count; k += AHEAD) {
        uint64 key[AHEAD];
        Pack ahead[AHEAD];
#pragma unroll
        for (int u = 0; u < AHEAD; u++) {
            key[u] = __shfl_sync(0xffffffffu, own, k + u);
            if (k + u < count) ahead[u] = some_at(from + int64(uint32(key[u])) * d, left, aligned);
        }
#pragma unroll
        for (int u = 0; u < AHEAD; u++) {
            if (k + u >= count) continue;
            if (row_of(key[u]) != row) {
                if (goes_on) total.keep(edge, left);
                else total.put(to + row * d, left, aligned);
                total.clear();
                row = row_of(key[u]);
                goes_on = false;
            }
#pragma unroll
            for (int j = 0; j < PACK; j++) total.v[j] += A(ahead[u].v[j]);
        }
    }
    if (row == n) return;  // an index outside
    if (goes_on) total.keep(edge, left);
    else if (row == next) total.keep(edge + d, left);
    else total.put(to + row * d, left, aligned);
}

// A block for the run that starts in a chunk and goes on, and 32 packs of columns: its sums from all
// chunks, by 8 warps in turn, then by one.
KERNEL __launch_bounds__(256) join_runs(const uint64* keys, const A* part, T* out, long long m, long long n, long long d, long long chunks) {
    __shared__ A scratch[256 * PACK];
    Segment at(blockIdx.x, chunks, d);
    int64 start = at.chunk * 32, after = start + 32;
    if (after >= m) return;
    int64 row = row_of(keys[after]);
    bool starts = row_of(keys[after - 1]) == row && (row_of(keys[start]) != row || !start || row_of(keys[start - 1]) != row);
    if (!starts || row == n) return;  // the same in the whole block
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    int64 more = 0;  // chunks that the run goes on through
    for (uint32 in = ~0u; in == ~0u; more += __popc(in)) {
        int64 p = (at.chunk + 1 + more + lane) * 32;
        in = __ballot_sync(0xffffffffu, p < m && row_of(keys[p]) == row);
    }
    const A* edge = part + (at.outer * chunks + at.chunk) * 2 * d + at.column;
    Totals total;
    total.clear();
    for (int64 k = warp; k <= more; k += warps)
#pragma unroll
        for (int j = 0; j < PACK; j++)
            if (at.column + j < d) total.v[j] += edge[(k ? 2 * k : 1) * d + j];
#pragma unroll
    for (int j = 0; j < PACK; j++) scratch[j * blockDim.x + threadIdx.x] = total.v[j];
    __syncthreads();
    if (warp) return;
    for (int w = 1; w < warps; w++)
#pragma unroll
        for (int j = 0; j < PACK; j++) total.v[j] += scratch[j * blockDim.x + w * 32 + lane];
    total.put(out + (at.outer * n + row) * d + at.column, d - at.column, d % PACK == 0 && packable(out));
}

// --- numbers taken along the last axis

// out (rows, k): out[r, j] = x[r, index[r, j]] of x (rows, n). Bytes: 8 and twice the size of a number
// for each of out, more where x is read here and there.
KERNEL gather(const T* x, const int64* index, T* out, long long rows, long long n, long long k) {
    Place place{uint32(thread_of_grid()), uint32(threads_of_grid()), uint32(rows), uint32(k)};
    for (int64 i = thread_of_grid(); i < rows * k; i += threads_of_grid(), place.jump()) {
        int64 at = from_start(index[i], n);
        out[i] = at >= 0 && at < n ? x[place.row * n + at] : T(A(NOT_A_NUMBER));
    }
}

// out (rows, n), each number once: the sum of those g[r, j] whose index[r, j] is its column, in the order
// of j. Each thread looks through the row's index, from the caches. Bytes: those of out, for small k.
KERNEL gather_backward(const T* g, const int64* index, T* out, long long rows, long long n, long long k) {
    int64 units = (n + PACK - 1) / PACK;
    bool aligned = n % PACK == 0 && packable(out);
    Place place{uint32(thread_of_grid()), uint32(threads_of_grid()), uint32(rows), uint32(units)};
    for (int64 i = thread_of_grid(); i < rows * units; i += threads_of_grid(), place.jump()) {
        int64 row = place.row, column = int64(place.column) * PACK;
        Totals total;
        total.clear();
        for (int64 j = row * k; j < (row + 1) * k; j++) {
            int64 at = from_start(index[j], n) - column;
            if (at < 0 || at >= PACK) continue;
#pragma unroll
            for (int u = 0; u < PACK; u++)
                if (u == at) total.v[u] += A(g[j]);
        }
        total.put(out + row * n + column, n - column, aligned);
    }
}
