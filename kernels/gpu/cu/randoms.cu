#include "common.cuh"

// Random numbers of a counter, and the counts that advance between steps. Everything that changes from
// call to call is read on the GPU, so that a captured launch draws new numbers when it runs again.

// Ten rounds of Philox4x32 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011).
struct Philox {
    uint32 words[4];
    __device__ Philox(uint64 block, uint64 call, uint64 key) {
        uint32 a = uint32(block), b = uint32(block >> 32), c = uint32(call), d = uint32(call >> 32);
        uint32 k0 = uint32(key), k1 = uint32(key >> 32);
#pragma unroll
        for (int i = 0; i < 10; i++) {
            uint64 p = uint64(a) * 0xD2511F53u, q = uint64(c) * 0xCD9E8D57u;
            a = uint32(q >> 32) ^ b ^ k0;
            b = uint32(q);
            c = uint32(p >> 32) ^ d ^ k1;
            d = uint32(p);
            k0 += 0x9E3779B9u;
            k1 += 0xBB67AE85u;
        }
        words[0] = a, words[1] = b, words[2] = c, words[3] = d;
    }
};

constexpr int GROUP = PACK > 4 ? PACK : 4;  // elements that a thread does at once

// out = x · scale, or 0 where the element's word is below ``least``. Bytes per element: twice its size;
// no mask is stored. About 20 instructions an element: of 16-bit numbers they, not memory, take the time.
KERNEL dropout(const T* x, const int64* ticket, T* out, long long n, long long least, double scale) {
    uint64 key = uint64(ticket[0]), call = uint64(ticket[1]);
    bool aligned = packable(x) && packable(out);
#pragma unroll 1
    for (int64 i = thread_of_grid() * GROUP; i < n; i += threads_of_grid() * GROUP) {
        Pack v[GROUP / PACK];
#pragma unroll
        for (int k = 0; k < GROUP; k += PACK) v[k / PACK] = some_at(x + i + k, n - i - k, aligned);
#pragma unroll
        for (int k = 0; k < GROUP; k += 4) {
            Philox random(uint64(i + k) / 4, call, key);
#pragma unroll
            for (int j = 0; j < 4; j++) {
                T& y = v[(k + j) / PACK].v[(k + j) % PACK];
                y = random.words[j] >= uint64(least) ? T(A(y) * A(scale)) : T(0);
            }
        }
#pragma unroll
        for (int k = 0; k < GROUP; k += PACK) put_some(out + i + k, v[k / PACK], n - i - k, aligned);
    }
}

// A copy of the state, int64 [seed, calls], whose calls then advance by one.
KERNEL draw(int64* state, int64* ticket) {
    ticket[0] = state[0];
    ticket[1] = state[1]++;
}

// state: [learning rate, step]; found_inf, which may be null, is not 0 where the step is left out.
KERNEL count_step(double* state, const double* found_inf) {
    if (!found_inf || *found_inf == 0) state[1] += 1;
}
