// What both matrix products (gemm_mma.cu, gemm_wgmma.cu) share: the number type's name in PTX, the
// swizzle, the order of the tiles and the storing of results. docs/kernels.md draws the tiles.
#pragma once
#include "common.cuh"

// "bf16" or "f16", as PTX calls T.
#define NAME_bfloat16 "bf16"
#define NAME_float16 "f16"
#define NAME_(t) NAME_##t
#define NAME(t) NAME_(t)
#define PTX NAME(T)

#ifdef SHIM
#include "tensorshim.h"  // tests/cuda: the instructions below, on the CPU
#else
// An address in shared memory as PTX wants it: 32 bits from the start of shared memory.
inline __device__ uint32 shared_address(const void* p) { return uint32(__cvta_generic_to_shared(p)); }

// Two floats rounded to T, the first in the lower half.
inline __device__ uint32 pair(float first, float second) {
    uint32 both;
    asm("cvt.rn." PTX "x2.f32 %0, %1, %2;" : "=r"(both) : "f"(second), "f"(first));
    return both;
}
#endif

// Shared memory has 32 banks of 4 bytes: one row of 128 bytes touches each bank once, and the same
// column of the next row lies in the same banks. Eight threads that read 16 bytes each from one
// column of eight rows would queue up eightfold. So the 16-byte chunk c of row r is kept in the place
// of chunk c ^ (r % 8): a column then goes through all banks, and a row still does. In terms of byte
// addresses: bits 4-6 ^= bits 7-9. The copy engine (TMA) and wgmma know this as "128B swizzle".
inline __device__ uint32 swizzled(uint32 address) { return address ^ (address >> 7 & 7) << 4; }

// Where tile number i of a product of (rows x columns) tiles stands. Tiles are counted down bands of
// up to 16 tile rows, column after column: those that run at the same time form a block that is
// about square, so that they share as much of A and B as they can in the L2 cache.
struct Tile {
    int row, column;
};
inline __device__ Tile tile_at(int i, int rows, int columns) {
    const int BAND = 16;
    int first = i / (BAND * columns) * BAND, height = rows - first < BAND ? rows - first : BAND;
    int within = i - first * columns;
    return {first + within % height, within / height};
}

// Two neighbouring sums to the even address ``to``.
inline __device__ void put_pair(T* to, float x, float y) { *reinterpret_cast<uint32*>(to) = pair(x, y); }
