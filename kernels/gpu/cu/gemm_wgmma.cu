// C (m, n) = A (m, k) B (k, n) on Hopper's tensor cores (sm_90a: H100, H200), all row-major.
//
// A block makes tiles of 128 x 256 sums. Nine warps share the work by role:
//
//   warp 8       the producer: one thread asks the copy engine (TMA) for the next 64 columns of A and
//                64 rows of B, up to four steps ahead, and never touches the data
//   warps 0-3    a consumer warpgroup: rows 0-63 of the tile, 128 sums in each thread's registers
//   warps 4-7    another: rows 64-127
//
// Nobody else's instructions are needed to feed the tensor cores: they read shared memory by
// themselves (wgmma), while the copy engine fills another part of it. Full and empty stages are told
// by barriers in shared memory (mbarrier).
//
// Blocks are persistent, one for each multiprocessor, and go on to the next tile by themselves: the
// producer is already loading it while the consumers store the last one.
//
// A step moves 48 KB for 4.2 million operations, 85 for each byte. An H100 does some 300 in the time that
// memory gives it one, so most bytes must come from its L2 cache: hence the order of tiles (gemm.cuh).
//
// Sources: PTX ISA, "Asynchronous warpgroup level matrix instructions", "mbarrier", "cp.async.bulk.tensor";
// CUTLASS, media/docs "efficient_gemm" and cute/atom/mma_traits_sm90_gmma.hpp (layouts of descriptors);
// P. Shankhdhar, "Outperforming cuBLAS on H100" (fast.cu), whose steps this follows.
#include "gemm.cuh"

constexpr int BM = 128, BN = 256, BK = 64, STAGES = 4;
constexpr int GROUPS = 2, CONSUMER_WARPS = 4 * GROUPS;
// B is loaded in panels of 64 columns, 128 bytes: the widest row that can be swizzled.
constexpr int PANEL = 64, PANEL_BYTES = BK * PANEL * 2;
constexpr int A_BYTES = BM * BK * 2, B_BYTES = BK * BN * 2, STAGE_BYTES = A_BYTES + B_BYTES;

// What cuTensorMapEncodeTiled makes: address, shape, box and swizzle of a matrix in global memory.
struct alignas(128) TensorMap {
    uint64 opaque[16];
};

#ifndef SHIM
// --- mbarrier: counts arrivals and bytes; when both are complete, its phase (0 or 1) flips ---

inline __device__ void barrier_init(uint64* barrier, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}
// The copy engine sees memory through a path of its own (the async proxy): this makes the barriers
// that were just written known to it.
inline __device__ void barriers_are_ready() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
inline __device__ void barrier_arrive(uint64* barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}
// Arrive, and let the phase last until this many bytes have come as well.
inline __device__ void barrier_arrive_expecting(uint64* barrier, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes) : "memory");
}
// Wait until the phase of this parity is over. A wait that never ends would hang the GPU: after a
// million tries of up to 10 microseconds (a load takes one) it becomes an error of the launch.
inline __device__ void barrier_wait(uint64* barrier, int parity) {
    for (uint32 tries = 0, over = 0; !over; tries++) {
        asm volatile(
            "{\n"
            ".reg .pred p;\n"
            "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2, %3;\n"
            "selp.u32 %0, 1, 0, p;\n"
            "}" : "=r"(over) : "r"(shared_address(barrier)), "r"(parity), "r"(10000) : "memory");
        if (tries >> 20) __trap();
    }
}

// --- TMA: one thread starts the copy of a box of the matrix; the bytes report to the barrier ---

// The box whose first element is (row, column), swizzled, to ``to``; zeros for what is outside.
inline __device__ void load_box(void* to, const TensorMap* map, int row, int column, uint64* barrier) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];"
        ::"r"(shared_address(to)), "l"(map), "r"(column), "r"(row), "r"(shared_address(barrier)) : "memory");
}

// --- wgmma: 128 threads together start D += A B with A (64, 16), B (16, 256) in shared memory ---

// Before the first wgmma of a batch: what was written to the registers of d before is done.
inline __device__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
// What was started since the last commit is a group.
inline __device__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Wait until at most N of the groups are still under way.
template <int N> __device__ void wgmma_wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory"); }

#define D4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define D16(i) D4(i), D4(i + 4), D4(i + 8), D4(i + 12)
#define D64(i) D16(i), D16(i + 16), D16(i + 32), D16(i + 48)
// d = A B, or d += A B if ``add``. The last two numbers say how A and B lie in shared memory: A with
// its columns (k) side by side, 0; B with its columns (n) side by side, 1, as a row-major B is.
inline __device__ void wgmma(float (&d)[128], uint64 a, uint64 b, int add) {
    asm volatile(
        "{\n"
        ".reg .pred add;\n"
        "setp.ne.b32 add, %130, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n256k16.f32." PTX "." PTX " {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
        "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
        "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "
        "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "
        "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127}, "
        "%128, %129, add, 1, 1, 0, 1;\n"
        "}" : D64(0), D64(64) : "l"(a), "l"(b), "r"(add));
}
#endif

// A matrix descriptor: where wgmma finds a matrix in shared memory. Everything is in units of 16 bytes.
//   bits 0-13 the address; 16-29 "leading", 32-45 "stride" offset; 62-63: 1 is the 128-byte swizzle
// Swizzled memory comes in atoms of eight rows of 128 bytes, 1024 bytes. From one to the next:
//   A, rows of k:  stride = 1024: the next eight rows of m (leading is not used)
//   B, rows of n:  stride = 1024: the next eight rows of k; leading = PANEL_BYTES: the next 64 columns
inline __device__ uint64 descriptor(const void* at, int leading, int stride) {
    return uint64(shared_address(at) >> 4) | uint64(leading >> 4) << 16 | uint64(stride >> 4) << 32 | 1ull << 62;
}

KERNEL __launch_bounds__(32 * CONSUMER_WARPS + 32, 1) gemm_wgmma(
    const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, T* c, long long m_, long long n_, long long k_) {
    int m = int(m_), n = int(n_), k = int(k_);
    // The swizzle goes by the bits of the address, so a stage begins at a multiple of 1024.
    DYNAMIC_SHARED(unsigned char, shared);
    unsigned char* stages = shared + (-shared_address(shared) & 1023);
    uint64* full = reinterpret_cast<uint64*>(stages + STAGES * STAGE_BYTES);
    uint64* empty = full + STAGES;
    if (threadIdx.x == 0) {
        for (int s = 0; s < STAGES; s++) {
            barrier_init(full + s, 1);  // the producer arrives, and STAGE_BYTES come
            barrier_init(empty + s, CONSUMER_WARPS);
        }
        barriers_are_ready();
    }
    __syncthreads();

    // Both roles walk the same tiles, steps and stages. A lap around the ring of stages is a phase of
    // its barriers; `lap` is the parity of the present one.
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, stage = 0, lap = 0;
    int rows = (m + BM - 1) / BM, columns = (n + BN - 1) / BN;

    if (warp == CONSUMER_WARPS) {
        if (lane) return;
        for (int tile = blockIdx.x; tile < rows * columns; tile += gridDim.x) {
            Tile at = tile_at(tile, rows, columns);
            for (int x = 0; x < k; x += BK) {
                // Before its first phase a barrier counts as one whose phase 1 is over: in the first
                // lap nobody has to free a stage.
                barrier_wait(empty + stage, lap ^ 1);
                unsigned char* to = stages + stage * STAGE_BYTES;
                barrier_arrive_expecting(full + stage, STAGE_BYTES);
                load_box(to, &a, at.row * BM, x, full + stage);
                for (int p = 0; p < BN / PANEL; p++)
                    load_box(to + A_BYTES + p * PANEL_BYTES, &b, x, at.column * BN + p * PANEL, full + stage);
                if (++stage == STAGES) stage = 0, lap ^= 1;
            }
        }
        return;
    }

    float d[128];
    int group = warp / 4;
    for (int tile = blockIdx.x; tile < rows * columns; tile += gridDim.x) {
        int last = 0;  // the stage of the step before
        for (int x = 0; x < k; x += BK) {
            barrier_wait(full + stage, lap);
            unsigned char* from = stages + stage * STAGE_BYTES;
            uint64 at_a = descriptor(from + group * 64 * BK * 2, 16, 1024);
            uint64 at_b = descriptor(from + A_BYTES, PANEL_BYTES, 1024);
            wgmma_fence();
            // 16 of k further: 32 bytes along the rows of A, two atoms down B.
#pragma unroll
            for (int i = 0; i < BK / 16; i++) wgmma(d, at_a + i * (32 >> 4), at_b + i * (2048 >> 4), x + i > 0);
            wgmma_commit();
            // This step may go on; the one before is over, and its stage is free. Each warp says so for
            // itself, as a wait is for the warp's own part.
            wgmma_wait<1>();
            if (x > 0 && lane == 0) barrier_arrive(empty + last);
            last = stage;
            if (++stage == STAGES) stage = 0, lap ^= 1;
        }
        wgmma_wait<0>();
        if (lane == 0) barrier_arrive(empty + last);

        // A warp holds 16 rows of the sums: d[4j], d[4j + 1] are neighbours in the columns 8j, 8j + 1
        // (plus 2 for each lane of four), d[4j + 2] and d[4j + 3] the same eight rows below.
        Tile at = tile_at(tile, rows, columns);
        int row = at.row * BM + warp * 16 + lane / 4, column = at.column * BN + lane % 4 * 2;
        T* to = c + int64(row) * n + column;
#pragma unroll
        for (int j = 0; j < BN / 8; j++)
            if (column + 8 * j < n) {  // n is a multiple of 8
                if (row < m) put_pair(to + 8 * j, d[4 * j], d[4 * j + 1]);
                if (row + 8 < m) put_pair(to + 8 * int64(n) + 8 * j, d[4 * j + 2], d[4 * j + 3]);
            }
    }
}
