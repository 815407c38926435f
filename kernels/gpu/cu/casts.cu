#include "common.cuh"

// Numbers of one dtype as another. T is the new dtype, here also an integer; the old one is ``kind``, a
// place in KINDS of movement.py. Bytes per element: the sizes of both.

// What numbers of a dtype are computed as.
template <class V> struct Wide { typedef V type; };
template <> struct Wide<float16> { typedef float type; };
template <> struct Wide<bfloat16> { typedef float type; };
template <> struct Wide<int8> { typedef int type; };  // so that a float is cut first, and then wraps
template <> struct Wide<uint8> { typedef int type; };
template <> struct Wide<int16> { typedef int type; };

template <class V, int N> struct alignas(sizeof(V) * N) Some {
    V v[N];
};

// Each thread does 16 bytes of the larger dtype at once where both arrays are so aligned.
template <class From> __device__ void cast_all(const void* from, T* out, int64 n, bool truth) {
    constexpr int N = 16 / (sizeof(From) > sizeof(T) ? sizeof(From) : sizeof(T));
    typedef Some<From, N> Sources;
    typedef Some<T, N> Results;
    auto converted = [=](From stored) {
        typename Wide<From>::type v = stored;
        return truth ? T(v != 0) : T(typename Wide<T>::type(v));
    };
    const From* x = static_cast<const From*>(from);
    bool aligned = reinterpret_cast<uint64>(x) % sizeof(Sources) == 0 && reinterpret_cast<uint64>(out) % sizeof(Results) == 0;
    int64 packs = aligned ? n / N : 0;
#pragma unroll 1
    for (int64 i = thread_of_grid(); i < packs; i += threads_of_grid()) {
        ALIGNED(x, sizeof(Sources));
        ALIGNED(out, sizeof(Results));
        Sources a = reinterpret_cast<const Sources*>(x)[i];
        Results b;
#pragma unroll
        for (int j = 0; j < N; j++) b.v[j] = converted(a.v[j]);
        reinterpret_cast<Results*>(out)[i] = b;
    }
#pragma unroll 1
    for (int64 i = packs * N + thread_of_grid(); i < n; i += threads_of_grid()) out[i] = converted(x[i]);
}

// With ``truth`` 1 for what is not 0: how bool is stored, for which no file can be compiled, since a
// keyword in the place of T breaks NVRTC's own headers.
KERNEL cast(const void* x, T* out, long long n, long long kind, bool truth) {
    switch (kind) {
        case 0: return cast_all<bool>(x, out, n, truth);
        case 1: return cast_all<uint8>(x, out, n, truth);
        case 2: return cast_all<int8>(x, out, n, truth);
        case 3: return cast_all<int16>(x, out, n, truth);
        case 4: return cast_all<int32>(x, out, n, truth);
        case 5: return cast_all<int64>(x, out, n, truth);
        case 6: return cast_all<float16>(x, out, n, truth);
        case 7: return cast_all<bfloat16>(x, out, n, truth);
        case 8: return cast_all<float32>(x, out, n, truth);
        case 9: return cast_all<float64>(x, out, n, truth);
    }
}
