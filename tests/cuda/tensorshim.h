// The tensor-core instructions of sm_80 and sm_90a on the CPU, for the kernels that call them by the
// functions of gemm_mma.cu and gemm_wgmma.cu. Layouts are those of the PTX ISA; included by gemm.cuh,
// where T is known.
//
// What is asynchronous runs as late as the kernel's waits allow, at once, or now and then at once, by the
// launch's order: who reads before a copy has come, or overwrites what is still read, is seen in one. An access
// outside of the block's shared memory, a barrier with too many arrivals and a wait that nobody ends
// are errors.
#pragma once
#include <deque>
#include <functional>

#define __grid_constant__
struct TensorMap;

namespace shim {

constexpr uint32 BASE = 16;  // where dynamic shared memory begins; at no multiple of 1024

inline char* at_shared(uint32 address, size_t size) {
    if (address < BASE || address - BASE + size > dynamic.size()) fail("shared memory at %d, of %d bytes", int(address), int(dynamic.size()));
    return dynamic.data() + (address - BASE);
}

// What is under way: of a thread (in groups, by commits), or of the copy engine.
struct Work {
    uint64_t block = 0;
    std::deque<std::function<void()>> jobs;
    std::deque<size_t> groups;  // how many jobs each committed group has
    size_t open = 0;            // jobs since the last commit

    void of_this_block() {
        if (block != blocks_run) *this = Work{blocks_run};
    }
    void start(bool now, std::function<void()> job) {
        of_this_block();
        if (now) return job();
        jobs.push_back(job);
        open += 1;
    }
    void commit() {
        of_this_block();
        groups.push_back(open);
        open = 0;
    }
    void wait(size_t most) {
        for (of_this_block(); groups.size() > most; groups.pop_front())
            for (size_t i = 0; i < groups.front(); i++, jobs.pop_front()) jobs.front()();
    }
};
inline std::vector<Work> works(1024);
inline Work engine;
inline Work& own() { return works[self - fibers.data()]; }

struct Barrier {  // 8 bytes in shared memory
    uint8_t phase, arrivals;
    int16_t missing;
    int32_t bytes;
    void check() {
        if (missing < 0) fail("more arrivals at a barrier than it has (%d)", arrivals);
        if (missing || bytes) return;
        phase ^= 1;
        missing = arrivals;
        happened += 1;
    }
};
inline Barrier& barrier_at(uint64* p) { return *reinterpret_cast<Barrier*>(p); }

// What tests/cuda/test_gemm.py makes in the place of a tensor map.
struct Map {
    char* data;
    int64_t rows, columns, pitch;
    int32_t box_rows, box_columns;
};

}  // namespace shim

inline uint32 shared_address(const void* p) { return uint32(static_cast<const char*>(p) - shim::dynamic.data()) + shim::BASE; }
inline uint32 pair(float first, float second) { return T(first).bits | uint32(T(second).bits) << 16; }
inline float number(uint32 word, int upper) {
    T x;
    x.bits = word >> 16 * upper;
    return float(x);
}

// --- sm_80 ---

inline void copy_16(uint32 to, const void* from, bool there) {
    if (to % 16 || reinterpret_cast<uint64>(from) % 16) shim::fail("a copy of 16 bytes at an address that is no multiple of 16");
    shim::own().start(shim::direction == 1, [=] {
        char* place = shim::at_shared(to, 16);
        there ? std::memcpy(place, from, 16) : std::memset(place, 0, 16);
    });
}
inline void copies_commit() { shim::own().commit(); }
template <int N> void copies_wait() { shim::own().wait(N); }

template <bool transposed> void load_matrices(uint32 (&x)[4], uint32 row) {
    if (row % 16) shim::fail("a row of a matrix at an address that is no multiple of 16");
    shim::meet(~0u, &row, 4);
    int i = shim::lane(shim::self) / 4, t = shim::lane(shim::self) % 4;
    for (int j = 0; j < 4; j++)
        for (int v = 0; v < 2; v++) {
            uint32 start = shim::given<uint32>(8 * j + (transposed ? 2 * t + v : i), ~0u);
            std::memcpy(reinterpret_cast<char*>(&x[j]) + 2 * v, shim::at_shared(start + 2 * (transposed ? i : 2 * t + v), 2), 2);
        }
}

// Lane 4g + t has of A the rows g (a[0], a[2]) and g + 8 (a[1], a[3]) at k = 2t, 2t + 1 and 8 more; of B
// the column g at the same k; of D the rows g and g + 8 at the columns 2t, 2t + 1.
inline void mma(float (&d)[4], const uint32 (&a)[4], uint32 b0, uint32 b1) {
    struct Four { uint32 v[4]; };
    struct Two { uint32 v[2]; } b{{b0, b1}};
    int g = shim::lane(shim::self) / 4, t = shim::lane(shim::self) % 4;
    float rows[2][16], columns[2][16];
    shim::meet(~0u, a, 16);
    for (int u = 0; u < 4; u++) {
        Four from = shim::given<Four>(4 * g + u, ~0u);
        for (int r = 0; r < 4; r++)
            for (int v = 0; v < 2; v++) rows[r % 2][r / 2 * 8 + 2 * u + v] = number(from.v[r], v);
    }
    shim::meet(~0u, &b, 8);
    for (int j = 0; j < 2; j++)
        for (int u = 0; u < 4; u++) {
            Two from = shim::given<Two>(4 * (2 * t + j) + u, ~0u);
            for (int r = 0; r < 2; r++)
                for (int v = 0; v < 2; v++) columns[j][r * 8 + 2 * u + v] = number(from.v[r], v);
        }
    for (int i = 0; i < 4; i++)
        for (int k = 0; k < 16; k++) d[i] += rows[i / 2][k] * columns[i % 2][k];
}

// --- sm_90a ---

inline void barrier_init(uint64* barrier, int arrivals) { shim::barrier_at(barrier) = {0, uint8_t(arrivals), int16_t(arrivals), 0}; }
inline void barriers_are_ready() {}
inline void barrier_arrive(uint64* barrier) {
    shim::barrier_at(barrier).missing -= 1;
    shim::barrier_at(barrier).check();
    shim::happened += 1;
    if (shim::perhaps()) shim::poll();  // whoever waited for it goes first
}
inline void barrier_arrive_expecting(uint64* barrier, int bytes) {
    shim::barrier_at(barrier).bytes += bytes;
    barrier_arrive(barrier);
}
inline void barrier_wait(uint64* barrier, int parity) {
    while (shim::barrier_at(barrier).phase == parity) {
        shim::engine.of_this_block();
        if (shim::engine.jobs.empty()) {
            shim::poll();
            continue;
        }
        shim::engine.jobs.front()();
        shim::engine.jobs.pop_front();
    }
}
inline void load_box(void* to, const TensorMap* map, int row, int column, uint64* barrier) {
    shim::Map m = *reinterpret_cast<const shim::Map*>(map);
    uint32 start = shared_address(to), size = m.box_rows * m.box_columns * 2;
    if (start % 1024) shim::fail("a swizzled box at %d, no multiple of 1024", int(start));
    shim::engine.start(shim::perhaps(), [=] {
        for (uint32 i = 0; i < size; i += 2) {
            int64_t r = row + i / 2 / m.box_columns, c = column + i / 2 % m.box_columns;
            bool inside = r >= 0 && c >= 0 && r < m.rows && c < m.columns;
            uint32 at = start + i;
            char* place = shim::at_shared(at ^ (at >> 7 & 7) << 4, 2);
            inside ? std::memcpy(place, m.data + r * m.pitch + 2 * c, 2) : std::memset(place, 0, 2);
        }
        shim::barrier_at(barrier).bytes -= size;
        shim::barrier_at(barrier).check();
    });
    shim::happened += 1;  // who waits can see to it now
}

inline void wgmma_fence() {}
inline void wgmma_commit() { shim::own().commit(); }
template <int N> void wgmma_wait() { shim::own().wait(N); }

// The number at byte ``offset`` of the matrix of a descriptor, which says where the swizzle is.
inline float number_at(uint64 descriptor, uint32 offset) {
    uint32 at = uint32(descriptor & 0x3fff) * 16 + offset;
    T x;
    std::memcpy(&x.bits, shim::at_shared(at ^ (at >> 7 & 7) << 4, 2), 2);
    return float(x);
}
// A: rows of k, atoms of 8 rows of m. B: rows of n, atoms of 8 rows of k and 64 columns. Thread 32w + 4g + t
// of the group has the rows 16w + g (d[4j], d[4j + 1]) and 8 more, the columns 8j + 2t and 8j + 2t + 1.
inline void wgmma(float (&d)[128], uint64 a, uint64 b, int add) {
    if (a >> 62 != 1 || b >> 62 != 1) shim::fail("a descriptor without the 128-byte swizzle");
    float* sums = d;
    int thread = (shim::self - shim::fibers.data()) % 128;
    shim::own().start(shim::direction == 1, [=] {
        uint32 stride_a = (a >> 32 & 0x3fff) * 16, stride_b = (b >> 32 & 0x3fff) * 16, leading_b = (b >> 16 & 0x3fff) * 16;
        float rows[2][16];
        for (int i = 0; i < 2; i++)
            for (int k = 0; k < 16; k++) {
                int row = thread / 32 * 16 + thread % 32 / 4 + 8 * i;
                rows[i][k] = number_at(a, row / 8 * stride_a + row % 8 * 128 + 2 * k);
            }
        for (int j = 0; j < 64; j++) {
            int column = j / 2 * 8 + thread % 4 * 2 + j % 2;
            float *upper = sums + j / 2 * 4 + j % 2, *lower = upper + 2;
            if (!add) *upper = *lower = 0;
            for (int k = 0; k < 16; k++) {
                float x = number_at(b, column / 64 * leading_b + k / 8 * stride_b + k % 8 * 128 + column % 64 * 2);
                *upper += rows[0][k] * x;
                *lower += rows[1][k] * x;
            }
        }
    });
}
