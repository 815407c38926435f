#include "rows.cuh"

constexpr int K = HELD / 4;  // packs of a thread in the backward pass, which sums over rows too

// y = (x - μ) r w + b for a row, and μ and r; the variance in a second pass over the registers. Bytes
// per element: twice its size.
template <class Team>
__device__ void norm_row(const Team& team, const Columns& columns, int64 row, const T* x, const T* weight, const T* bias, T* y, T* mean, T* rstd, double eps) {
    Row<Team> own(x, columns, A(0));
    A sum = 0, squares = 0, d = columns.c;
    own.each([&](int, const Numbers& x) {
#pragma unroll
        for (int j = 0; j < PACK; j++) sum += x.v[j];
    });
    A m = team.all(sum, A(0), Plus()) / d;
    own.each([&](int k, const Numbers& x) {
#pragma unroll
        for (int j = 0; j < PACK; j++) {
            A centred = columns.at(k, j) < columns.c ? x.v[j] - m : A(0);
            squares += centred * centred;
        }
    });
    A r = 1 / sqrt(team.all(squares, A(0), Plus()) / d + A(eps));
    own.each([&](int k, const Numbers& x) {
        Numbers out;
#pragma unroll
        for (int j = 0; j < PACK; j++) out.v[j] = (x.v[j] - m) * r;
        if (weight) {
            Numbers w = columns.load(weight, k, A(0));
#pragma unroll
            for (int j = 0; j < PACK; j++) out.v[j] *= w.v[j];
        }
        if (bias) {
            Numbers b = columns.load(bias, k, A(0));
#pragma unroll
            for (int j = 0; j < PACK; j++) out.v[j] += b.v[j];
        }
        columns.put(y, k, out);
    });
    if (team.rank == 0 && columns.c) mean[row] = T(m), rstd[row] = T(r);
}

KERNEL __launch_bounds__(256, 4) layer_norm_lanes(
    const T* x, const T* weight, const T* bias, T* y, T* mean, T* rstd, long long n, long long c, long long lanes, double eps) {
    Lanes team((int)lanes);
    int64 row = int64(blockIdx.x) * (blockDim.x / team.size) + threadIdx.x / team.size;
    Columns columns = {row < n ? int(c) : 0, team.rank, team.size, in_packs(c, x, weight, bias, y)};
    norm_row(team, columns, row, x + row * c, weight, bias, y + row * c, mean, rstd, eps);
}

KERNEL __launch_bounds__(1024) layer_norm_block(
    const T* x, const T* weight, const T* bias, T* y, T* mean, T* rstd, long long n, long long c, double eps) {
    __shared__ A scratch[32];
    Block team(scratch);
    Columns columns = {int(c), team.rank, team.size, in_packs(c, x, weight, bias, y)};
    int64 start = blockIdx.x * c;
    norm_row(team, columns, blockIdx.x, x + start, weight, bias, y + start, mean, rstd, eps);
}

struct Gradients {
    const T *g, *x, *mean, *rstd, *weight;
    T* dx;                   // null where it is not needed
    A *dweights, *dbiases;   // (blocks, c), sums over the rows of a block; null
    int64 n, c, each;        // rows to a block
};

// dx of the rows that the block's teams take in turns, and the sums over a team's rows of g x̂ and g
// in its K packs of columns. With x̂ = (x - μ) r and h = g w: dx = r (h - Σ h / c - x̂ Σ (h x̂) / c).
// Bytes per element: three times its size.
struct Sums {
    Numbers dweight[K], dbias[K];

    template <class Team> __device__ Sums(const Gradients& a, const Team& team, int which, int teams) {
#pragma unroll
        for (int k = 0; k < K; k++)
#pragma unroll
            for (int j = 0; j < PACK; j++) dweight[k].v[j] = dbias[k].v[j] = 0;
        int64 first = blockIdx.x * a.each, last = min(a.n, first + a.each);
        bool packs = in_packs(a.c, a.g, a.x, a.dx, a.weight);
        for (int64 base = first; base < last; base += teams) add(a, team, base + which, last, packs);
    }

    template <class Team> __device__ void add(const Gradients& a, const Team& team, int64 row, int64 last, bool packs) {
        bool inside = row < last;
        Columns columns = {inside ? int(a.c) : 0, team.rank, team.size, packs};
        int64 start = inside ? row * a.c : 0;
        A m = inside ? A(a.mean[row]) : A(0), r = inside ? A(a.rstd[row]) : A(0), level = 0, along = 0;
        Numbers h[K], x[K];
#pragma unroll
        for (int k = 0; k < K; k++) h[k] = columns.load(a.g + start, k, A(0)), x[k] = columns.load(a.x + start, k, A(0));
#pragma unroll
        for (int k = 0; k < K; k++) {
#pragma unroll
            for (int j = 0; j < PACK; j++) {
                x[k].v[j] = (x[k].v[j] - m) * r;
                dweight[k].v[j] += h[k].v[j] * x[k].v[j];
                dbias[k].v[j] += h[k].v[j];
            }
            if (!a.weight) continue;
            Numbers w = columns.load(a.weight, k, A(0));
#pragma unroll
            for (int j = 0; j < PACK; j++) h[k].v[j] *= w.v[j];
        }
        if (!a.dx) return;
#pragma unroll
        for (int k = 0; k < K; k++)
#pragma unroll
            for (int j = 0; j < PACK; j++) level += h[k].v[j], along += h[k].v[j] * x[k].v[j];
        level = team.all(level, A(0), Plus()) / A(a.c);
        along = team.all(along, A(0), Plus()) / A(a.c);
#pragma unroll
        for (int k = 0; k < K; k++) {
#pragma unroll
            for (int j = 0; j < PACK; j++) h[k].v[j] = r * (h[k].v[j] - level - x[k].v[j] * along);
            columns.put(a.dx + start, k, h[k]);
        }
    }
};

// One of the two sums over all teams of the block, warp after warp, as its row of ``out`` (blocks, c).
inline __device__ void over_teams(Numbers (&sum)[K], const Lanes& team, A* total, A* out, int64 c, bool packs) {
    if (!out) return;
    Columns columns = {int(c), team.rank, team.size, packs};
#pragma unroll
    for (int k = 0; k < K; k++)
#pragma unroll
        for (int j = 0; j < PACK; j++)
            for (int step = 16; step >= team.size; step /= 2) sum[k].v[j] += __shfl_xor_sync(0xffffffffu, sum[k].v[j], step);
    for (int warp = 0; warp < blockDim.x / 32; warp++) {
        if (threadIdx.x / 32 == warp && threadIdx.x % 32 < team.size)
#pragma unroll
            for (int k = 0; k < K; k++)
#pragma unroll
                for (int j = 0; j < PACK; j++) {
                    int i = columns.at(k, j);
                    if (i < c) total[i] = warp ? total[i] + sum[k].v[j] : sum[k].v[j];
                }
        __syncthreads();
    }
    for (int i = threadIdx.x; i < c; i += blockDim.x) out[blockIdx.x * c + i] = total[i];
    __syncthreads();
}

KERNEL __launch_bounds__(256, 4) layer_norm_backward_lanes(
    const T* g, const T* x, const T* mean, const T* rstd, const T* weight, T* dx, A* dweights, A* dbiases,
    long long n, long long c, long long each, long long lanes) {
    DYNAMIC_SHARED(A, total);
    Lanes team((int)lanes);
    Sums sums({g, x, mean, rstd, weight, dx, dweights, dbiases, n, c, each}, team, threadIdx.x / team.size, blockDim.x / team.size);
    bool packs = in_packs(c, g, x, dx, weight);
    over_teams(sums.dweight, team, total, dweights, c, packs);
    over_teams(sums.dbias, team, total, dbiases, c, packs);
}

KERNEL __launch_bounds__(1024) layer_norm_backward_block(
    const T* g, const T* x, const T* mean, const T* rstd, const T* weight, T* dx, A* dweights, A* dbiases,
    long long n, long long c, long long each) {
    __shared__ A scratch[32];
    Block team(scratch);
    Gradients a = {g, x, mean, rstd, weight, dx, dweights, dbiases, n, c, each};
    Sums sums(a, team, 0, 1);
    Columns columns = {int(c), team.rank, team.size, in_packs(c, g, x, dx, weight)};
#pragma unroll
    for (int k = 0; k < K; k++)
#pragma unroll
        for (int j = 0; j < PACK; j++) {
            int64 i = columns.at(k, j), at = blockIdx.x * c + i;
            if (i < c && dweights) dweights[at] = sums.dweight[k].v[j];
            if (i < c && dbiases) dbiases[at] = sums.dbias[k].v[j];
        }
}

// Σ over the rows of parts (n, c), of two arrays at once, either of them null. A block does 32 columns:
// its warps take the rows in turns, and then add up the sums of a column each.
KERNEL __launch_bounds__(1024) column_sums(const A* first, const A* second, T* first_out, T* second_out, long long n, long long c) {
    __shared__ A scratch[32][33];
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    const A* parts = blockIdx.y ? second : first;
    T* out = blockIdx.y ? second_out : first_out;
    if (!parts) return;
    int64 start = int64(blockIdx.x) * 32;
    A sum = 0;
#pragma unroll 4
    for (int64 row = warp; row < n; row += warps) sum += start + lane < c ? parts[row * c + start + lane] : A(0);
    scratch[warp][lane] = sum;
    __syncthreads();
    for (int column = warp; column < 32; column += warps) {
        sum = over_warp(lane < warps ? scratch[lane][column] : A(0), Plus());
        if (lane == 0 && start + column < c) out[start + column] = T(sum);
    }
}
