#include "elementwise.cuh"

KERNEL map_sqrt(const T* x, T* out, long long n) { map(x, out, n, [](A v) { return sqrt(v); }); }
KERNEL map_exp(const T* x, T* out, long long n) { map(x, out, n, [](A v) { return exp(v); }); }
KERNEL map_log(const T* x, T* out, long long n) { map(x, out, n, [](A v) { return log(v); }); }
KERNEL map_tanh(const T* x, T* out, long long n) { map(x, out, n, [](A v) { return tanh(v); }); }
KERNEL map_sigmoid(const T* x, T* out, long long n) {
    map(x, out, n, [](A v) {
        A e = exp(-abs(v));  // at most 1
        return (v >= 0 ? A(1) : e) / (1 + e);
    });
}

template <class V, int N> __device__ V polynomial(const V (&terms)[N], V t) {
    V y = terms[N - 1];
#pragma unroll
    for (int i = N - 2; i >= 0; i--) y = y * t + terms[i];
    return y;
}

// Φ(-z) e^(z²/2) of t = 1 - 8 / (z + 4), Φ the normal distribution. For float the terms of the Numba
// backend, which are as exact as a float is; for double those of the reference.
inline __device__ float normal_tail(float t) {
    const float terms[] = {
        0.09441064f, -0.17039773f, 0.1243792f, -0.07170735f, 0.030865647f, -0.008492745f,
        0.00050243095f, 0.0006407147f, -0.00017321977f, -4.5401932e-05f, 1.2792758e-05f,
    };
    return polynomial(terms, t);
}
inline __device__ double normal_tail(double t) {
    const double terms[] = {
        0.09441064130196893, -0.1703977215484544, 0.12437925533926537, -0.07170740733782753,
        0.03086480410622515, -0.008492095479758216, 0.000507562076799988, 0.0006388138234854208,
        -0.00018718428669896724, -4.555470650032797e-05, 2.8648442798579606e-05,
        4.630796917724566e-06, -4.303904346491218e-06, -8.274302256520367e-07, 6.62297108753446e-07,
        2.026236560690965e-07, -9.534702277947434e-08, -4.904678284724266e-08, 1.0479978903484804e-08,
        9.259844747144312e-09, -4.583989356967971e-10, -9.543550430903501e-10, -4.767851228809609e-11,
    };
    return polynomial(terms, t);
}

struct Normal {
    A cdf, e;  // Φ(x) and e^(-x²/2)
    __device__ Normal(A x) {
        A z = abs(x);
        e = exp(A(-0.5) * z * z);
        A tail = e * normal_tail(1 - 8 / (z + 4));
        cdf = x < 0 ? tail : 1 - tail;
    }
};

constexpr double SQRT_2_OVER_PI = 0.79788456080286535588;
inline __device__ A gelu_inner(A x) { return A(SQRT_2_OVER_PI) * (x + A(0.044715) * x * x * x); }

KERNEL map_gelu(const T* x, T* out, long long n) {
    map(x, out, n, [](A v) { return v * Normal(v).cdf; });
}
KERNEL map_gelu_tanh(const T* x, T* out, long long n) {
    map(x, out, n, [](A v) { return A(0.5) * v * (1 + tanh(gelu_inner(v))); });
}
KERNEL zip_gelu_backward(const T* g, const T* x, T* out, long long n) {
    zip(g, x, out, n, [](A g, A x) {
        Normal normal(x);
        return g * (normal.cdf + x * normal.e * A(0.39894228040143267794));  // 1/√(2π)
    });
}
KERNEL zip_gelu_tanh_backward(const T* g, const T* x, T* out, long long n) {
    zip(g, x, out, n, [](A g, A x) {
        A t = tanh(gelu_inner(x)), slope = A(SQRT_2_OVER_PI) * (1 + A(3 * 0.044715) * x * x);
        return g * (A(0.5) * (1 + t) + A(0.5) * x * (1 - t * t) * slope);
    });
}
