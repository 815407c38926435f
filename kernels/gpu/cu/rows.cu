#include "rows.cuh"

// softmax or its logarithm. Bytes per element: twice its size; a row beyond the registers reads the
// rest again.
template <class Team>
__device__ void softmax_row(const Team& team, const T* x, T* y, int c, bool packs, bool logarithm) {
    Columns columns = {c, team.rank, team.size, packs};
    Row<Team> row(x, columns, A(-INF));
    Exponentials e(row, team);
    A log_total = log(e.total), share = 1 / e.total;
    row.each([&](int k, const Numbers& x) {
        Numbers out;
#pragma unroll
        for (int j = 0; j < PACK; j++) {
            A shifted = x.v[j] - e.top;
            out.v[j] = logarithm ? shifted - log_total : exp_of(shifted) * share;
        }
        columns.put(y, k, out);
    });
}

KERNEL __launch_bounds__(256, 4) softmax_lanes(const T* x, T* y, long long n, long long c, long long lanes, bool logarithm) {
    Lanes team((int)lanes);
    int64 row = int64(blockIdx.x) * (blockDim.x / team.size) + threadIdx.x / team.size;
    bool packs = in_packs(c, x, y);
    if (row >= n) row = c = 0;  // its lanes come to the shuffles, and write nothing
    softmax_row(team, x + row * c, y + row * c, (int)c, packs, logarithm);
}

KERNEL __launch_bounds__(1024) softmax_block(const T* x, T* y, long long c, bool logarithm) {
    __shared__ A scratch[32];
    int64 start = blockIdx.x * c;
    softmax_row(Block(scratch), x + start, y + start, (int)c, in_packs(c, x, y), logarithm);
}
