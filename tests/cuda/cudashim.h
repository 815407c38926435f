// CUDA's keywords and intrinsics for a C++ compiler of the CPU, so that the unchanged .cu files run
// without a GPU.
//
// Each CUDA thread is a fiber, with a stack of its own. Blocks run one after the other. Within a
// block a warp runs until all of its lanes wait or have ended, then the next one: who forgets a
// barrier reads what another warp has not yet written. Shared memory is filled with 0xFF (NaN) before
// each block. Warps and blocks run forward, in reverse or shuffled (warps anew after each round).
//
// Reported as errors: barriers that only a part of a warp reaches, or that threads reach at different
// lines; shuffles whose lanes do not all come; waits that nobody ends. Not modelled: memory order,
// blocks at the same time, reads out of bounds, clusters, speed. Tensor cores: tensorshim.h.
#pragma once
#include <algorithm>
#include <cmath>
#include <csetjmp>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sys/mman.h>
#include <ucontext.h>
#include <utility>
#include <vector>

#define SHIM
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__
#define __restrict__
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
#define __shared__ static __attribute__((section("shared_memory")))
#define __constant__ static const
#define DYNAMIC_SHARED(type, name) type* name = reinterpret_cast<type*>(shim::dynamic.data())
#define ALIGNED(p, bytes) if (reinterpret_cast<uintptr_t>(p) % (bytes)) shim::fail("an address that is no multiple of %d", bytes)

struct dim3 {
    unsigned x = 1, y = 1, z = 1;
};

extern "C" char __start_shared_memory[] __attribute__((weak));
extern "C" char __stop_shared_memory[] __attribute__((weak));

namespace shim {

constexpr size_t STACK = 128 << 10;
enum State { READY, BARRIER, SHUFFLE, POLL, DONE };

struct Fiber {
    dim3 thread;
    State state;
    int line;           // of the barrier it waits at
    unsigned lanes;     // that must come to the shuffle it waits at
    uint64_t shuffles;  // it came to so far
    jmp_buf place;
    bool begun;
    alignas(16) char slot[2][16];  // what it gives to shuffles: a lane may be one ahead of another
};

inline std::vector<Fiber> fibers;
inline std::vector<char> dynamic;
inline std::vector<char*> stacks;
inline Fiber* self;
inline dim3 grid, block, at;  // the shapes, and which block runs
inline jmp_buf scheduler;
inline void (*body)(void*);
inline void* arguments;
inline char message[300];
inline ucontext_t starter, home;
inline int direction;              // 0 forward, 1 reverse, 2 shuffled
inline unsigned dice;
inline uint64_t blocks_run;        // so far
inline uint64_t happened, noticed;  // of what threads poll for: how often it came about, and was seen

inline int lane(const Fiber* f) { return int(f - fibers.data()) % 32; }
inline Fiber* warp_of(Fiber* f) { return f - lane(f); }
inline int lanes_in(Fiber* warp) { return std::min<long>(32, fibers.data() + fibers.size() - warp); }

inline void stop() { longjmp(scheduler, 1); }
inline void wait() {
    if (!_setjmp(self->place)) longjmp(scheduler, 1);
}
inline void fail(const char* what, int a = 0, int b = 0) {
    if (!message[0]) {
        int n = std::snprintf(message, sizeof message, "block %u, thread %u: ", at.x, self->thread.x);
        std::snprintf(message + n, sizeof message - n, what, a, b);
    }
    self->state = DONE;
    stop();
}

inline void barrier(int line) {
    self->state = BARRIER;
    self->line = line;
    wait();
}

// Whether to do what may come early or late: each time in one order of warps, never in another.
inline bool perhaps() {
    if (direction == 2) dice = dice * 1664525u + 1013904223u;
    return direction == 1 || (direction == 2 && dice >> 31);
}

// Lets the others run. For who looks again and again for something, which counts as ``happened``.
inline void poll() {
    self->state = POLL;
    wait();
}

// Every lane of the mask gives x, and each takes what lane ``from`` gave.
inline void meet(unsigned mask, const void* x, size_t size) {
    if (!(mask >> lane(self) & 1)) fail("a shuffle by a lane that its mask leaves out");
    std::memcpy(self->slot[self->shuffles % 2], x, size);
    self->shuffles += 1;
    self->lanes = mask;
    self->state = SHUFFLE;
    wait();
}
template <class V> V given(int from, unsigned mask) {
    V x;
    if (from < 0 || from > 31 || !(mask >> from & 1)) from = lane(self);
    std::memcpy(&x, warp_of(self)[from].slot[(self->shuffles - 1) % 2], sizeof(V));
    return x;
}

inline void enter() {
    body(arguments);
    self->state = DONE;
    stop();
}

inline void resume(Fiber* f, char* stack) {
    self = f;
    if (_setjmp(scheduler)) return;
    if (f->begun) longjmp(f->place, 1);
    f->begun = true;
    getcontext(&starter);
    starter.uc_stack.ss_sp = stack;
    starter.uc_stack.ss_size = STACK;
    starter.uc_link = &home;
    makecontext(&starter, enter, 0);
    setcontext(&starter);
}

inline bool met(Fiber* f) {  // whether all lanes of its shuffle have come
    Fiber* warp = warp_of(f);
    for (int i = 0; i < 32; i++)
        if (f->lanes >> i & 1 && (i >= lanes_in(warp) || warp[i].shuffles < f->shuffles)) return false;
    return true;
}

inline void run_warp(Fiber* warp) {
    for (bool moved = true; moved && !message[0];) {
        moved = false;
        for (int i = 0; i < lanes_in(warp) && !message[0]; i++) {
            Fiber* f = warp + i;
            if (f->state == SHUFFLE && met(f)) f->state = READY;
            if (f->state != READY) continue;
            resume(f, stacks[f - fibers.data()]);
            moved = true;
        }
    }
}

// Lets those who poll look again: whether there are any.
inline bool wake() {
    bool any = false;
    for (Fiber& f : fibers) {
        if (f.state != POLL) continue;
        self = &f;
        if (happened == noticed) fail("it waits for what nobody does any more");
        f.state = READY;
        any = true;
    }
    noticed = happened;
    return any;
}

// Lets everybody go who waits at the barrier, once nobody can come to it any more.
inline bool release() {
    const Fiber* first = nullptr;
    for (Fiber& f : fibers) {
        self = &f;
        if (f.state == SHUFFLE) fail("a shuffle that not all lanes of its mask come to (or a barrier among them)");
        if (f.state != BARRIER) continue;
        if (first && first->line != f.line) fail("threads wait at different barriers: lines %d and %d", first->line, f.line);
        first = &f;
    }
    for (Fiber& f : fibers)
        if (f.state == BARRIER) {
            Fiber* warp = warp_of(&f);
            for (int i = 0; i < lanes_in(warp); i++)
                if (warp[i].state == DONE) self = &f, fail("a barrier (line %d) that a part of the warp has left behind", f.line);
        }
    for (Fiber& f : fibers)
        if (f.state == BARRIER) f.state = READY;
    return first != nullptr;
}

inline void order(std::vector<int>& items, int how, unsigned seed) {
    for (size_t i = 0; i < items.size(); i++) items[i] = int(i);
    if (how == 1) std::reverse(items.begin(), items.end());
    if (how == 2)
        for (size_t i = items.size(); i > 1; i--) std::swap(items[i - 1], items[(seed = seed * 1664525u + 1013904223u) % i]);
}

inline void run_block(std::vector<int> warps) {
    blocks_run += 1;
    happened = noticed + 1;
    if (__start_shared_memory) std::memset(__start_shared_memory, 0xff, __stop_shared_memory - __start_shared_memory);
    std::fill(dynamic.begin(), dynamic.end(), char(0xff));
    for (size_t i = 0; i < fibers.size(); i++) {
        Fiber& f = fibers[i];
        unsigned n = unsigned(i);
        f.thread = {n % block.x, n / block.x % block.y, n / block.x / block.y};
        f.state = READY;
        f.begun = false;
        f.shuffles = 0;
    }
    do {
        for (int w : warps) run_warp(fibers.data() + 32 * w);
        if (direction == 2) order(warps, 2, dice += 1);
        if (!message[0] && _setjmp(scheduler)) return;  // wake and release may fail
    } while (!message[0] && (wake() || release()));
}

// Runs ``call`` for every thread of every block; the error, or an empty string.
template <class F> const char* launch(const unsigned* sizes, size_t shared, int how, F call) {
    direction = how;
    dice = 0;
    grid = {sizes[0], sizes[1], sizes[2]};
    block = {sizes[3], sizes[4], sizes[5]};
    fibers.resize(size_t(block.x) * block.y * block.z);
    dynamic.resize(shared);
    while (stacks.size() < fibers.size())
        stacks.push_back(static_cast<char*>(mmap(nullptr, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)));
    body = [](void* f) { (*static_cast<F*>(f))(); };
    arguments = &call;
    message[0] = 0;
    std::vector<int> warps((fibers.size() + 31) / 32), blocks(size_t(grid.x) * grid.y * grid.z);
    order(warps, how, 1);
    order(blocks, how, 2);
    for (int b : blocks) {
        if (message[0]) break;
        unsigned n = unsigned(b);
        at = {n % grid.x, n / grid.x % grid.y, n / grid.x / grid.y};
        run_block(warps);
    }
    return message;
}

// Calls a kernel with the arguments at these addresses, as CUDA's launch does.
template <class... P, size_t... I> const char* call(void (*kernel)(P...), void** at, const unsigned* sizes, size_t shared, int how, std::index_sequence<I...>) {
    return launch(sizes, shared, how, [=] { kernel(*static_cast<P*>(at[I])...); });
}
template <class... P> const char* start(void (*kernel)(P...), void** at, const unsigned* sizes, size_t shared, int how) {
    return call(kernel, at, sizes, shared, how, std::index_sequence_for<P...>{});
}

}  // namespace shim

#define STARTED_BY(start_, kernel)                                                                      \
    extern "C" const char* start_(void** at, const unsigned* sizes, size_t shared, int how) {           \
        return shim::start(&kernel, at, sizes, shared, how);                                            \
    }

#define threadIdx (shim::self->thread)
#define blockIdx shim::at
#define blockDim shim::block
#define gridDim shim::grid
#define __syncthreads() shim::barrier(__LINE__)
#define __threadfence()
#define __threadfence_block()

template <class V> V __shfl_sync(unsigned mask, V x, int from) { shim::meet(mask, &x, sizeof x); return shim::given<V>(from & 31, mask); }
template <class V> V __shfl_xor_sync(unsigned mask, V x, int bits) { shim::meet(mask, &x, sizeof x); return shim::given<V>(shim::lane(shim::self) ^ bits, mask); }
template <class V> V __shfl_down_sync(unsigned mask, V x, int by) { shim::meet(mask, &x, sizeof x); return shim::given<V>(shim::lane(shim::self) + by, mask); }
template <class V> V __shfl_up_sync(unsigned mask, V x, int by) { shim::meet(mask, &x, sizeof x); return shim::given<V>(shim::lane(shim::self) - by, mask); }
inline void __syncwarp(unsigned mask = 0xffffffffu) { int x = 0; shim::meet(mask, &x, sizeof x); }
inline unsigned __ballot_sync(unsigned mask, int holds) {
    shim::meet(mask, &holds, sizeof holds);
    unsigned bits = 0;
    for (int i = 0; i < 32; i++)
        if (mask >> i & 1 && shim::given<int>(i, mask)) bits |= 1u << i;
    return bits;
}
inline int __any_sync(unsigned mask, int holds) { return __ballot_sync(mask, holds) != 0; }
inline int __all_sync(unsigned mask, int holds) { return __ballot_sync(mask, holds) == mask; }

template <class V> V atomicAdd(V* p, V x) { V old = *p; *p = old + x; return old; }
template <class V> V atomicMax(V* p, V x) { V old = *p; *p = std::max(old, x); return old; }
template <class V> V atomicOr(V* p, V x) { V old = *p; *p = old | x; return old; }
template <class V> V atomicExch(V* p, V x) { V old = *p; *p = x; return old; }
template <class V> V atomicCAS(V* p, V expected, V x) { V old = *p; if (old == expected) *p = x; return old; }

template <class V> V __ldg(const V* p) { return *p; }
template <class V> V __ldcs(const V* p) { return *p; }
template <class V> V __ldcg(const V* p) { return *p; }
template <class V> void __stcs(V* p, V x) { *p = x; }
template <class V> void __stcg(V* p, V x) { *p = x; }
inline unsigned __float_as_uint(float x) { unsigned b; std::memcpy(&b, &x, 4); return b; }
inline float __uint_as_float(unsigned b) { float x; std::memcpy(&x, &b, 4); return x; }
inline int __float_as_int(float x) { return int(__float_as_uint(x)); }
inline float __int_as_float(int b) { return __uint_as_float(unsigned(b)); }
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned(uint64_t(a) * b >> 32); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(unsigned x) { return x ? __builtin_clz(x) : 32; }
inline int __ffs(unsigned x) { return __builtin_ffs(int(x)); }
inline float rsqrtf(float x) { return 1 / std::sqrt(x); }
inline double rsqrt(double x) { return 1 / std::sqrt(x); }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float x) { return std::sqrt(x); }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __dadd_rn(double a, double b) { return a + b; }
using std::abs; using std::ceil; using std::erf; using std::exp; using std::floor; using std::fma; using std::isinf; using std::isnan;
using std::log; using std::log1p; using std::max; using std::min; using std::pow; using std::sqrt; using std::tanh;
inline float fdividef(float a, float b) { return a / b; }
inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
inline float __fdividef(float a, float b) { return a / b; }
