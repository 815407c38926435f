// C (m, n) = A (m, k) B (k, n) on tensor cores since Ampere (sm_80), all row-major.
//
// A block of eight warps makes a tile of 128 x 128 sums, in steps of 64 along k:
//
//   global memory --cp.async--> shared memory --ldmatrix--> registers --mma--> sums in registers
//
// Each warp makes 64 x 32 of the sums: 4 x 4 pieces of 16 x 8, what one mma.m16n8k16 adds to. For 16 of k
// it reads 64 + 32 rows of 16 numbers and does 16 mma with them.
//
// Three stages: while the warps compute on one, the next one has arrived and the one after is under
// way. Copies by cp.async pass no register and no thread waits for them before it must.
//
// Sources: PTX ISA, "mma.m16n8k16", "ldmatrix", "cp.async"; CUTLASS, media/docs "efficient_gemm".
#include "gemm.cuh"

constexpr int BM = 128, BN = 128, BK = 64, STAGES = 3, THREADS = 256;
// Rows in shared memory are 64 numbers, 128 bytes: A is 128 of them, B two panels of 64 columns.
constexpr int ROW = 128, PANEL_BYTES = BK * ROW;
constexpr int A_BYTES = BM * ROW, B_BYTES = 2 * PANEL_BYTES, STAGE_BYTES = A_BYTES + B_BYTES;

#ifndef SHIM
// Start to copy 16 bytes to shared memory; zeros if not ``there``.
inline __device__ void copy_16(uint32 to, const void* from, bool there) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(there ? 16 : 0) : "memory");
}
// The copies that this thread started since the last commit are a group.
inline __device__ void copies_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Wait until at most N of this thread's groups are still under way.
template <int N> __device__ void copies_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }

// Four 8 x 8 matrices, row i of matrix j at the address that lane 8j + i gives. Lane 4i + t gets of each
// the numbers 2t and 2t + 1 of row i, or with ``transposed`` of column i.
template <bool transposed> __device__ void load_matrices(uint32 (&x)[4], uint32 row) {
    if (transposed)
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
            : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3]) : "r"(row) : "memory");
    else
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
            : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3]) : "r"(row) : "memory");
}
// d (16, 8) += a (16, 16) b (16, 8), spread over the lanes of the warp.
inline __device__ void mma(float (&d)[4], const uint32 (&a)[4], uint32 b0, uint32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." PTX "." PTX ".f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
#endif

// Start to copy the step at column x of A and row x of B. Eight threads copy a row of 128 bytes, a
// thread the same 16-byte chunk of every 32nd row. n and k are multiples of 8: a chunk is whole or absent.
inline __device__ void load_step(uint32 to, const T* a, const T* b, int row, int column, int x, int m, int n, int k) {
    int chunk = threadIdx.x % 8, first = threadIdx.x / 8;
#pragma unroll
    for (int i = first; i < BM; i += THREADS / 8) {
        bool there = row + i < m && x + chunk * 8 < k;
        copy_16(swizzled(to + i * ROW + chunk * 16), there ? a + int64(row + i) * k + x + chunk * 8 : a, there);
    }
#pragma unroll
    for (int p = 0; p < 2; p++)
#pragma unroll
        for (int i = first; i < BK; i += THREADS / 8) {
            int at = column + p * 64 + chunk * 8;
            bool there = x + i < k && at < n;
            copy_16(swizzled(to + A_BYTES + p * PANEL_BYTES + i * ROW + chunk * 16), there ? b + int64(x + i) * n + at : b, there);
        }
}

KERNEL __launch_bounds__(THREADS, 2) gemm_mma(const T* a, const T* b, T* c, long long m_, long long n_, long long k_) {
    int m = int(m_), n = int(n_), k = int(k_);
    // The swizzle goes by the bits of the address, so a stage begins at a multiple of 1024.
    DYNAMIC_SHARED(unsigned char, shared);
    uint32 stages = (shared_address(shared) + 1023) / 1024 * 1024;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int down = warp % 2 * 64, right = warp / 2 * 32;  // the warp's part of the tile
    Tile tile = tile_at(blockIdx.x, (m + BM - 1) / BM, (n + BN - 1) / BN);
    int row = tile.row * BM, column = tile.column * BN;

    // A group is committed for every step, though it be empty: the count of groups tells the stages.
    for (int s = 0; s < STAGES - 1; s++) {
        if (s * BK < k) load_step(stages + s * STAGE_BYTES, a, b, row, column, s * BK, m, n, k);
        copies_commit();
    }

    float d[4][4][4] = {};
    int stage = 0, next = STAGES - 1;
    for (int x = 0; x < k; x += BK) {
        copies_wait<STAGES - 2>();  // this thread's copies of the step are there,
        __syncthreads();            // and everybody's; and nobody still reads the stage of the step before,
        int ahead = x + (STAGES - 1) * BK;  // which is filled anew
        if (ahead < k) load_step(stages + next * STAGE_BYTES, a, b, row, column, ahead, m, n, k);
        copies_commit();

        uint32 at_a = stages + stage * STAGE_BYTES + down * ROW;
        uint32 at_b = stages + stage * STAGE_BYTES + A_BYTES + right / 64 * PANEL_BYTES + right % 64 * 2;
#pragma unroll
        for (int y = 0; y < BK; y += 16) {
            // Lane l names row l % 16, columns 0-7 (l < 16) or 8-15 of a 16 x 16 piece: so the four matrices
            // come in the order that mma has them, for A and, transposed, for two pieces of B.
            uint32 pieces_a[4][4], pieces_b[2][4];
#pragma unroll
            for (int i = 0; i < 4; i++)
                load_matrices<false>(pieces_a[i], swizzled(at_a + (16 * i + lane % 16) * ROW + 2 * y + lane / 16 * 16));
#pragma unroll
            for (int j = 0; j < 2; j++)
                load_matrices<true>(pieces_b[j], swizzled(at_b + (y + lane % 16) * ROW + 32 * j + lane / 16 * 16));
#pragma unroll
            for (int i = 0; i < 4; i++)
#pragma unroll
                for (int j = 0; j < 4; j++) mma(d[i][j], pieces_a[i], pieces_b[j / 2][j % 2 * 2], pieces_b[j / 2][j % 2 * 2 + 1]);
        }
        stage = stage + 1 == STAGES ? 0 : stage + 1;
        next = next + 1 == STAGES ? 0 : next + 1;
    }

    // Lane 4i + t holds the columns 2t and 2t + 1 of rows i and i + 8 of each piece.
    row += down + lane / 4, column += right + lane % 4 * 2;
    T* to = c + int64(row) * n + column;
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 4; j++)
            if (column + 8 * j < n) {  // n is a multiple of 8
                if (row + 16 * i < m) put_pair(to + int64(16 * i) * n + 8 * j, d[i][j][0], d[i][j][1]);
                if (row + 16 * i + 8 < m) put_pair(to + int64(16 * i + 8) * n + 8 * j, d[i][j][2], d[i][j][3]);
            }
}
