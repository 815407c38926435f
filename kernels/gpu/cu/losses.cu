// The losses of labelled rows: the value and, from the same pass, its gradient.
#include "losses.cuh"
#include "rows.cuh"

struct Labels {
    const int64* y;
    const T* weight;  // of each class, or null
    int64 c, ignored;
    __device__ bool holds(int64 label) const { return label >= 0 && label < c; }
    // w_y of a row: 0 if it is left out, NaN if the label is outside the classes.
    __device__ A weight_of(int64 label) const {
        if (label == ignored) return 0;
        if (!holds(label)) return A(NOT_A_NUMBER);
        return weight ? A(weight[label]) : A(1);
    }
    // Σ w_y over some rows, in all threads of the block.
    __device__ A sum(int64 first, int64 last, A* scratch) const {
        A sum = 0;
        for (int64 n = first + threadIdx.x; n < last; n += blockDim.x) sum += weight_of(y[n]);
        return over_block(sum, A(0), scratch, Plus());
    }
};

// 8 bytes per row.
KERNEL __launch_bounds__(1024) label_weights(const int64* y, const T* weight, A* parts, long long n, long long chunk, long long c, long long ignored) {
    __shared__ A scratch[32];
    Labels labels = {y, weight, c, ignored};
    A sum = labels.sum(blockIdx.x * chunk, min(n, (blockIdx.x + 1) * chunk), scratch);
    if (threadIdx.x == 0) parts[blockIdx.x] = sum;
}

struct CrossEntropy {
    const T* logits;
    T* dlogits;
    Labels labels;
    A divisor;

    // The loss of a row, in all threads of its team, and its gradient. A row that is not ``inside``
    // is not there, but its team comes to the shuffles.
    template <class Team> __device__ A row(const Team& team, int64 row, bool inside, bool packs) const {
        const T* x = logits + row * labels.c;
        T* d = dlogits + row * labels.c;
        Columns columns = {inside ? int(labels.c) : 0, team.rank, team.size, packs};
        Row<Team> own(x, columns, A(-INF));
        Exponentials e(own, team);
        int64 label = inside ? labels.y[row] : labels.ignored;
        if (label == labels.ignored) return fill_row(columns, d, 0), A(0);
        A share = labels.weight_of(label), factor = share / (e.total * divisor);
        own.each([&](int k, const Numbers& x) {
            Numbers out;
#pragma unroll
            for (int j = 0; j < PACK; j++) out.v[j] = exp_of(x.v[j] - e.top) * factor;
            columns.put(d, k, out);
        });
        int y = labels.holds(label) ? int(label) : 0;
        A shifted = A(x[y]) - e.top;
        if (columns.owns(y)) d[y] = T(exp_of(shifted) * factor - share / divisor);
        return -share * (shifted - log(e.total));
    }
};

// Twice the bytes of the logits, and 8 for each row; a row beyond the registers reads the rest again.
// A lone block takes all rows, and finds their weight itself.
KERNEL __launch_bounds__(256, 3) cross_entropy_lanes(
    const T* logits, const int64* y, const T* weight, T* dlogits, T* loss, A* sums, const A* parts, long long count,
    long long n, long long c, long long lanes, long long ignored, long long reduction) {
    __shared__ A scratch[32];
    Lanes team((int)lanes);
    int teams = blockDim.x / team.size;
    Labels labels = {y, weight, c, ignored};
    A divisor = reduction != MEAN ? A(1) : sums ? sum_of_parts(parts, count) : labels.sum(0, n, scratch);
    CrossEntropy each = {logits, dlogits, labels, divisor};
    bool packs = in_packs(c, logits, dlogits);
    A terms = 0;
    for (int64 row = int64(blockIdx.x) * teams + threadIdx.x / team.size; __any_sync(0xffffffffu, row < n); row += int64(gridDim.x) * teams) {
        A term = each.row(team, row, row < n, packs);
        if (team.rank || row >= n) continue;
        if (reduction == NONE) loss[row] = T(term);
        terms += term;
    }
    Loss{loss, sums, reduction}.finish(terms, divisor, scratch);
}

// The same for a long row.
KERNEL __launch_bounds__(1024) cross_entropy_block(
    const T* logits, const int64* y, const T* weight, T* dlogits, T* loss, A* sums, const A* parts, long long count,
    long long n, long long c, long long ignored, long long reduction) {
    __shared__ A scratch[32];
    Labels labels = {y, weight, c, ignored};
    A divisor = reduction != MEAN ? A(1) : sums ? sum_of_parts(parts, count) : labels.sum(0, n, scratch);
    CrossEntropy each = {logits, dlogits, labels, divisor};
    A term = each.row(Block(scratch), blockIdx.x, true, in_packs(c, logits, dlogits));
    if (threadIdx.x) term = 0;
    else if (reduction == NONE) loss[blockIdx.x] = T(term);
    Loss{loss, sums, reduction}.finish(term, divisor, scratch);
}

// With labels smoothed by ε > 0: row after row, a block for each, in three passes of which the later
// two read from a cache.
KERNEL __launch_bounds__(1024) cross_entropy_smoothed(
    const T* logits, const int64* y, const T* weight, T* dlogits, T* loss, A* sums, const A* parts, long long count,
    long long n, long long c, long long ignored, double smoothing, long long reduction) {
    __shared__ A scratch[32];
    Labels labels = {y, weight, c, ignored};
    A divisor = reduction != MEAN ? A(1) : sums ? sum_of_parts(parts, count) : labels.sum(0, n, scratch);
    int64 label = y[blockIdx.x];
    bool keep = label != ignored;
    const T* x = logits + blockIdx.x * c;
    T* d = dlogits + blockIdx.x * c;
    A top = -INF, total = 0, weights = 0, spread = 0;
#pragma unroll 4
    for (int i = threadIdx.x; i < c; i += blockDim.x) top = Larger()(top, A(x[i]));
    top = over_block(top, A(-INF), scratch, Larger());
#pragma unroll 4
    for (int i = threadIdx.x; i < c; i += blockDim.x) {
        A w = weight ? A(weight[i]) : A(1), shifted = A(x[i]) - top;
        total += exp_of(shifted);
        weights += w;
        spread += w * shifted;
    }
    total = over_block(total, A(0), scratch, Plus());
    weights = over_block(weights, A(0), scratch, Plus());
    spread = over_block(spread, A(0), scratch, Plus());
    A hard = A(1 - smoothing) * labels.weight_of(label), smooth = A(smoothing / c), log_total = log(total);
    A factor = (hard + smooth * weights) / (total * divisor);
#pragma unroll 4
    for (int i = threadIdx.x; i < c; i += blockDim.x) {
        A off = smooth * (weight ? A(weight[i]) : A(1)) + (i == label ? hard : A(0));
        d[i] = T(keep ? exp_of(A(x[i]) - top) * factor - off / divisor : A(0));
    }
    A at_y = A(x[labels.holds(label) ? label : 0]);
    A term = -hard * (at_y - top - log_total) - smooth * (spread - weights * log_total);
    if (threadIdx.x || !keep) term = 0;
    if (threadIdx.x == 0 && reduction == NONE) loss[blockIdx.x] = T(term);
    Loss{loss, sums, reduction}.finish(term, divisor, scratch);
}

// The bytes of dlogp, and 32 and 8 for each row. Lanes here may be as many as the threads of a block.
KERNEL nll_rows(
    const T* logp, const int64* y, const T* weight, T* dlogp, T* loss, A* sums, const A* parts, long long count,
    long long n, long long c, long long lanes, long long ignored, long long reduction) {
    __shared__ A scratch[32];
    Lanes team((int)lanes);
    int teams = blockDim.x / team.size;
    Labels labels = {y, weight, c, ignored};
    A divisor = reduction != MEAN ? A(1) : sums ? sum_of_parts(parts, count) : labels.sum(0, n, scratch);
    Columns columns = {int(c), team.rank, team.size, in_packs(c, dlogp, dlogp)};
    A terms = 0;
    for (int64 base = int64(blockIdx.x) * teams; base < n; base += int64(gridDim.x) * teams) {
        int64 row = base + threadIdx.x / team.size;
        if (row >= n) continue;
        bool keep = y[row] != ignored;
        int label = keep && y[row] >= 0 && y[row] < c ? int(y[row]) : 0;
        A share = labels.weight_of(y[row]);
        A term = keep ? -share * A(logp[row * c + label]) : A(0);
        fill_row(columns, dlogp + row * c, keep ? 0 / divisor : A(0));  // NaN if divided by 0
        if (keep && columns.owns(label)) dlogp[row * c + label] = T(-share / divisor);
        if (team.rank) continue;
        if (reduction == NONE) loss[row] = T(term);
        terms += term;
    }
    Loss{loss, sums, reduction}.finish(terms, divisor, scratch);
}
