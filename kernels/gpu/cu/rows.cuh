// Work on rows of numbers, each done by a team: some lanes of a warp where rows are short, a whole
// block where they are long. The first HELD packs of each thread stay in its registers: so a warp
// holds a row of 1,024 floats, 1,024 threads one of 32,768. The rest of a longer row is read again,
// mostly from the L2 cache.
#pragma once
#include "common.cuh"

constexpr int HELD = sizeof(T) == 4 ? 8 : 4;  // packs, in 32 registers (double: 16); held() in rows.py

// e to the power x. That of 16 bits need not be exact, and takes a third of the instructions; that of
// double is long, and inlined so often that it would spill registers.
inline __device__ float exp_of(float x) { return sizeof(T) == 2 ? __expf(x) : exp(x); }
__noinline__ __device__ double exp_of(double x) { return exp(x); }

// A power of two of lanes, at most a warp.
struct Lanes {
    static constexpr bool HOLDS_ALL = true;  // the rows given to lanes are so short
    int size, rank;
    __device__ Lanes(int size) : size(size), rank(threadIdx.x & (size - 1)) {}
    // The combination of x over the team, in all its threads. Every lane of the warp must come.
    template <class F> __device__ A all(A x, A neutral, F f) const {
        for (int step = size / 2; step; step /= 2) x = f(x, __shfl_xor_sync(0xffffffffu, x, step));
        return x;
    }
};

struct Block {
    static constexpr bool HOLDS_ALL = false;
    int size, rank;
    A* scratch;  // 32 numbers of shared memory
    __device__ Block(A* scratch) : size(blockDim.x), rank(threadIdx.x), scratch(scratch) {}
    template <class F> __device__ A all(A x, A neutral, F f) const { return over_block(x, neutral, scratch, f); }
};

// The numbers of a pack as they are computed with.
struct Numbers {
    A v[PACK];
};

// Whether rows of c numbers at these addresses (or null) are packs, one after another.
inline __device__ bool in_packs(int64 c, const void* p, const void* q, const void* r = nullptr, const void* s = nullptr) {
    return c % PACK == 0 && packable(p) && packable(q) && packable(r) && packable(s);
}

// How a team shares out the c numbers of each row (c < 2³⁰): packs in turn, or single numbers in turn
// where a row does not begin at a multiple of 16 bytes.
struct Columns {
    int c, rank, size;
    bool packs;

    __device__ int rounds() const { return (c + size * PACK - 1) / (size * PACK); }
    // The column of number j of this thread's pack k; c or more behind the end of the row.
    __device__ int at(int k, int j) const {
        return packs ? (k * size + rank) * PACK + j : (k * PACK + j) * size + rank;
    }
    // Whether this thread has column i.
    __device__ bool owns(int i) const { return i < c && (packs ? i / PACK : i) % size == rank; }
    // Pack k of a row, with ``fill`` behind the end.
    __device__ Numbers load(const T* row, int k, A fill) const {
        Numbers x;
        if (packs && at(k, 0) < c) {
            Pack p = pack_at(row + at(k, 0));
#pragma unroll
            for (int j = 0; j < PACK; j++) x.v[j] = A(p.v[j]);
        } else {
#pragma unroll
            for (int j = 0; j < PACK; j++) x.v[j] = at(k, j) < c ? A(row[at(k, j)]) : fill;
        }
        return x;
    }
    __device__ void put(T* row, int k, const Numbers& x) const {
        if (packs && at(k, 0) < c) {
            Pack p;
#pragma unroll
            for (int j = 0; j < PACK; j++) p.v[j] = T(x.v[j]);
            put_pack(row + at(k, 0), p);
        } else {
#pragma unroll
            for (int j = 0; j < PACK; j++)
                if (at(k, j) < c) row[at(k, j)] = T(x.v[j]);
        }
    }
};

// The same number in all of a row.
inline __device__ void fill_row(const Columns& columns, T* row, A x) {
    Numbers same;
#pragma unroll
    for (int j = 0; j < PACK; j++) same.v[j] = x;
    for (int k = 0; k < columns.rounds(); k++) columns.put(row, k, same);
}

// A row, the first packs of each thread in registers.
template <class Team> struct Row {
    const T* x;
    Columns columns;
    A fill;
    Numbers held[HELD];

    __device__ Row(const T* x, const Columns& columns, A fill) : x(x), columns(columns), fill(fill) {
        int rounds = columns.rounds();
#pragma unroll
        for (int k = 0; k < HELD; k++)
            if (k < rounds) held[k] = columns.load(x, k, fill);
    }
    // f(k, pack k) for all packs of this thread.
    template <class F> __device__ void each(F f) const {
        int rounds = columns.rounds();
#pragma unroll
        for (int k = 0; k < HELD; k++)
            if (k < rounds) f(k, held[k]);
        for (int k = HELD; !Team::HOLDS_ALL && k < rounds; k++) f(k, columns.load(x, k, fill));
    }
};

// The largest number of a row, and Σ e^(x - top) over it, in one pass. Numbers behind the end are -∞.
struct Exponentials {
    A top, total;
    template <class Team> __device__ Exponentials(const Row<Team>& row, const Team& team) : top(-INF), total(0) {
        row.each([&](int, const Numbers& x) {
            A before = top;
#pragma unroll
            for (int j = 0; j < PACK; j++) top = Larger()(top, x.v[j]);
            A shift = top == A(-INF) ? A(0) : top;  // else a thread with nothing but -∞ had NaN
            total *= exp_of(before - shift);
#pragma unroll
            for (int j = 0; j < PACK; j++) total += exp_of(x.v[j] - shift);
        });
        A own = top;
        top = team.all(own, A(-INF), Larger());
        total = team.all(total * exp_of(own - top), A(0), Plus());
    }
};
