#include "losses.cuh"

// loss = Σ sums, divided by Σ parts or, if there are none, by the divisor.
KERNEL __launch_bounds__(1024) total(const A* sums, const A* parts, T* loss, long long n, long long count, double divisor) {
    __shared__ A scratch[32];
    A sum = 0;
    for (int64 i = threadIdx.x; i < n; i += blockDim.x) sum += sums[i];
    Loss{loss, nullptr, SUM}.finish(sum, parts ? sum_of_parts(parts, count) : A(divisor), scratch);
}

struct Elements {
    const T *input, *target, *weight, *pos_weight;  // the weights may be null, for 1
    T* dinput;
    int64 n;
};

struct Term {
    A loss, slope;
};

// The loss Σ w f(x, t, q) of the elements x, targets t and weights w, q, and its gradient w f'. The
// order of the sums follows from n alone, as the grid does.
template <class F> __device__ void sum_terms(const Elements& e, const Loss& to, A* scratch, F f) {
    bool aligned = packable(e.input) && packable(e.target) && packable(e.weight) && packable(e.pos_weight) &&
                   packable(e.dinput) && packable(to.loss);
    A divisor = to.reduction == MEAN ? A(e.n) : A(1), share = 1 / divisor, terms = 0;
    for (int64 i = thread_of_grid() * PACK; i < e.n; i += threads_of_grid() * PACK) {
        int64 left = e.n - i;
        Pack x = some_at(e.input + i, left, aligned), t = some_at(e.target + i, left, aligned), w, q, d, l;
        if (e.weight) w = some_at(e.weight + i, left, aligned);
        if (e.pos_weight) q = some_at(e.pos_weight + i, left, aligned);
#pragma unroll
        for (int j = 0; j < PACK; j++) {
            Term term = f(A(x.v[j]), A(t.v[j]), e.pos_weight ? A(q.v[j]) : A(1));
            A weight = e.weight ? A(w.v[j]) : A(1);
            if (j < left) terms += weight * term.loss;
            l.v[j] = T(weight * term.loss);
            d.v[j] = T(weight * term.slope * share);
        }
        put_some(e.dinput + i, d, left, aligned);
        if (to.reduction == NONE) put_some(to.loss + i, l, left, aligned);
    }
    to.finish(terms, divisor, scratch);
}

inline __device__ A at_least(A least, A x) { return x < least ? least : x; }  // passes NaN on

// (x - t)². Three times the bytes of the input.
KERNEL mse(const T* input, const T* target, T* dinput, T* loss, A* sums, long long n, long long reduction) {
    __shared__ A scratch[32];
    sum_terms({input, target, nullptr, nullptr, dinput, n}, {loss, sums, reduction}, scratch, [](A x, A t, A) {
        return Term{(x - t) * (x - t), 2 * (x - t)};
    });
}

// -(t log x + (1-t) log(1-x)), NaN outside 0..1. Three times the bytes of the input, and those of weight.
KERNEL bce(const T* input, const T* target, const T* weight, T* dinput, T* loss, A* sums, long long n, long long reduction) {
    __shared__ A scratch[32];
    sum_terms({input, target, weight, nullptr, dinput, n}, {loss, sums, reduction}, scratch, [](A x, A t, A) {
        A l = (t - 1) * at_least(A(-100), log1p(-x)) - t * at_least(A(-100), log(x));
        return Term{x >= 0 && x <= 1 ? l : A(NOT_A_NUMBER), (x - t) / at_least(A(1e-12), x * (1 - x))};
    });
}

// (1-t) x + (1 + (q-1) t) log(1 + e⁻ˣ). Three times the bytes of the input, and those of the weights.
KERNEL bce_logits(
    const T* input, const T* target, const T* weight, const T* pos_weight, T* dinput, T* loss, A* sums, long long n,
    long long reduction) {
    __shared__ A scratch[32];
    sum_terms({input, target, weight, pos_weight, dinput, n}, {loss, sums, reduction}, scratch, [](A x, A t, A q) {
        A e = exp(-(x < 0 ? -x : x)), softplus = log1p(e) + (x < 0 ? -x : A(0)), share = (x < 0 ? e : A(1)) / (1 + e);
        return Term{(1 - t) * x + (1 + (q - 1) * t) * softplus, (q * t + 1 - t) * share - q * t};
    });
}
