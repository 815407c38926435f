// A linear layer with weights of 8 bits for batches of a few rows: what takes the time is to read the
// weights, so they are read once, as they are.
//
// A warp takes R rows of w (k, d) and M rows of x (n, d), and 16 weights of each row for each lane: 512
// along d at a time, for which the block keeps x in shared memory. Long rows are cut in pieces of so
// many weights ("split-K"), a block for each. An output is summed in an order that d alone fixes.
#include "common.cuh"

constexpr int WARPS = 8, R = sizeof(A) == 8 ? 2 : 4, CHUNK = 512;

struct alignas(16) Bytes16 {
    uint32 word[4];
};
struct alignas(16) Four {
    A v[4];
};

// 16 weights from w[c], those behind the row's end as 0; 16 bytes at once where the rows allow it.
inline __device__ Bytes16 weights_at(const signed char* w, int64 c, int64 d, bool packed) {
    Bytes16 x = {{0, 0, 0, 0}};
    if (packed) {
        if (c < d) x = *reinterpret_cast<const Bytes16*>(w + c);
    } else {
        for (int i = 0; i < 16; i++)
            if (c + i < d) x.word[i / 4] |= uint32((unsigned char)w[c + i]) << 8 * (i % 4);
    }
    return x;
}

// Byte i of a word whose bytes got 128 added: as the last bits of 2^23 it is a float without a
// conversion, of which there would be few in a clock.
inline __device__ float weight(uint32 word, int i) {
    return __uint_as_float(0x4b000000u | (word >> 8 * i & 0xff)) - 8388736.0f;
}

inline __device__ A finish(A sum, A scale, const T* b, int64 k, bool relu) {
    A v = sum * scale + (b ? A(b[k]) : A(0));
    return relu && v <= A(0) ? A(0) : v;
}

// What all threads of a launch share: the arrays and their lengths, see linear_int8.
struct Layer {
    const T* x;
    const signed char* w;
    const A* scale;
    const T* b;
    A* partial;
    T* y;
    int64 n, d, k, piece;
    bool relu, packed;
};

template <int M> __device__ void multiply(Four* shared, const Layer& of) {
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int64 row = (int64(blockIdx.x) * WARPS + warp) * R, first = int64(blockIdx.z) * M;
    int64 start = blockIdx.y * of.piece, end = min(of.d, start + of.piece);
    A sum[R][M] = {};
    for (int64 c = start; c < end; c += CHUNK) {
        Bytes16 words[R];
        for (int r = 0; r < R; r++) words[r] = weights_at(of.w + min(row + r, of.k - 1) * of.d, c + 16 * lane, of.d, of.packed);
        __syncthreads();  // whoever reads the chunk before is done
        // As the lanes read it, without bank conflicts: quarter q of lane l at 32 q + l.
#pragma unroll 1
        for (int m = 0; m < M; m++)
            for (int i = threadIdx.x; i < CHUNK; i += 32 * WARPS) {
                A u = first + m < of.n && c + i < end ? A(of.x[(first + m) * of.d + c + i]) : A(0);
                shared[m * CHUNK / 4 + i / 4 % 4 * 32 + i / 16].v[i % 4] = u;
            }
        __syncthreads();
#pragma unroll
        for (int q = 0; q < 4; q++) {
            A v[R][4];
            for (int r = 0; r < R; r++)
                for (int j = 0; j < 4; j++) v[r][j] = A(weight(words[r].word[q] ^ 0x80808080u, j));
#pragma unroll
            for (int m = 0; m < M; m++) {
                Four u = shared[m * CHUNK / 4 + 32 * q + lane];
                for (int j = 0; j < 4; j++)
                    for (int r = 0; r < R; r++) sum[r][m] += u.v[j] * v[r][j];
            }
        }
    }
#pragma unroll
    for (int r = 0; r < R; r++)
#pragma unroll
        for (int m = 0; m < M; m++) {
            A total = over_warp(sum[r][m], Plus());
            if (lane > 0 || row + r >= of.k || first + m >= of.n) continue;
            int64 at = (first + m) * of.k + row + r;
            if (of.partial)
                of.partial[blockIdx.y * of.n * of.k + at] = total;
            else
                of.y[at] = T(finish(total, of.scale[row + r], of.b, row + r, of.relu));
        }
}

// y (n, k) = x (n, d) · (scale (k) w (k, d))ᵀ + b (k), or null, then ReLU. Moves 1 byte for each weight;
// x comes from the caches. blockIdx.x picks WARPS · R rows of w, blockIdx.y a piece of d, blockIdx.z so many
// rows of x as the launch takes at a time: 1 or 8. The sums of several pieces go to partial
// (pieces, n, k), for add_pieces.
KERNEL __launch_bounds__(256, 2) linear_int8(const T* x, const signed char* w, const A* scale, const T* b, A* partial, T* y, long long n, long long d, long long k, long long piece, long long rows, bool relu, bool packed) {
    __shared__ Four shared[8 * CHUNK / 4];
    Layer of = {x, w, scale, b, partial, y, n, d, k, piece, relu, packed};
    if (rows == 1) multiply<1>(shared, of);
    if (rows == 8) multiply<8>(shared, of);
}

// y (n, k) from partial (pieces, n, k): 4 bytes of a piece for each element of y.
KERNEL add_pieces(const A* partial, const A* scale, const T* b, T* y, long long n, long long k, long long pieces, bool relu) {
    int64 column = int64(blockIdx.x) * blockDim.x + threadIdx.x;
    if (column >= k) return;
    A sum = 0;
    for (int64 i = 0; i < pieces; i++) sum += partial[(i * n + blockIdx.y) * k + column];
    y[blockIdx.y * k + column] = T(finish(sum, scale[column], b, column, relu));
}

// The weights (k, d) as numbers, for products of many rows: reads 1 byte, writes one T for each.
KERNEL dequantize(const signed char* w, const A* scale, T* out, long long k, long long d, bool packed) {
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    for (int64 row = int64(blockIdx.x) * WARPS + warp; row < k; row += int64(gridDim.x) * WARPS) {
        A s = scale[row];
        const signed char* from = w + row * d;
        T* to = out + row * d;
        for (int64 c = 16 * lane; c < d; c += CHUNK) {
            Bytes16 words = weights_at(from, c, d, packed);
            Pack made[16 / PACK];
            for (int i = 0; i < 16; i++) made[i / PACK].v[i % PACK] = T(A(weight(words.word[i / 4] ^ 0x80808080u, i % 4)) * s);
            if (packed)
                for (int i = 0; i < 16 / PACK; i++) put_pack(to + c + i * PACK, made[i]);
            else
                for (int i = 0; i < 16; i++)
                    if (c + i < d) to[c + i] = made[i / PACK].v[i % PACK];
        }
    }
}
