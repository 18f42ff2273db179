// Products with int8 weights on a CPU, which cpu.py describes. Sixteen rows of a weight go abreast: their bytes, values
// + 128, lie as [group of 16 rows][four columns][row][column]. Inputs become int8 as well, in blocks of 64 with a scale
// each, so that a block is summed in integers: exactly, and the same in any company.
#include "numbers.h"
#include <vector>
#ifdef __AVX512VNNI__
#include <immintrin.h>
#endif

namespace {

constexpr int BLOCK = 64;
constexpr int STEPS = BLOCK / 4;  // of four columns

struct Weight {
    const uint8_t* values;  // [groups, dim / 4, 16, 4]
    const float* scales;    // [groups * 16]
    const float* bias;      // [rows], or null
    int64_t rows;

    int64_t groups() const { return (rows + LANES - 1) / LANES; }
};

// Rows as int8, padded with zeros to whole blocks, with a scale and a sum for each block.
struct Quantized {
    int64_t dim, stride, blocks;
    std::vector<int8_t> values;
    std::vector<float> scales;
    std::vector<int32_t> sums;

    void resize(int64_t rows, int64_t width) {
        dim = width;
        blocks = (dim + BLOCK - 1) / BLOCK;
        stride = blocks * BLOCK;
        values.resize(rows * stride);
        scales.resize(rows * blocks);
        sums.resize(rows * blocks);
    }

    template <typename T>
    void set(int64_t row, const T* x) {
        for (int64_t block = 0; block < blocks; block++) {
            const int64_t start = block * BLOCK, size = start + BLOCK < dim ? BLOCK : dim - start;
            alignas(64) float part[BLOCK] = {};
            for (int64_t i = 0; i < size; i++) part[i] = read(x[start + i]);
            Floats magnitudes = {};
            for (int i = 0; i < BLOCK; i += LANES) {
                const Floats value = load(part + i), magnitude = value < 0.0f ? -value : value;
                magnitudes = magnitude > magnitudes ? magnitude : magnitudes;
            }
            const float most = largest(magnitudes), inverse = most > 0 ? 127 / most : 0;
            Ints total = {};
            int8_t* out = values.data() + row * stride + start;
            for (int i = 0; i < BLOCK; i += LANES) {
                const Floats shifted = load(part + i) * inverse + 12582912.0f;  // 1.5 * 2^23: rounds to whole numbers
                const Ints whole = __builtin_convertvector(shifted - 12582912.0f, Ints);
                const auto bytes = __builtin_convertvector(whole, Bytes);
                std::memcpy(out + i, &bytes, sizeof bytes);
                total += whole;
            }
            int32_t sum = 0;
            for (int i = 0; i < LANES; i++) sum += total[i];
            scales[row * blocks + block] = most / 127;
            sums[row * blocks + block] = sum;
        }
    }

    typedef int8_t Bytes __attribute__((vector_size(LANES)));
};

// dots + the products of four columns of sixteen rows.
inline Ints multiplied(Ints dots, const uint8_t* weights, const int8_t* inputs) {
#ifdef __AVX512VNNI__
    int32_t four;
    std::memcpy(&four, inputs, 4);
    return (Ints)_mm512_dpbusd_epi32((__m512i)dots, _mm512_loadu_si512(weights), _mm512_set1_epi32(four));
#else
    for (int row = 0; row < LANES; row++)
        for (int i = 0; i < 4; i++) dots[row] += int32_t(weights[4 * row + i]) * int32_t(inputs[i]);
    return dots;
#endif
}

// y[c] = sixteen rows of a weight times C rows of x; SPLIT sums side by side, where C alone would be one chain.
template <int C, int SPLIT>
void tile(const uint8_t* weights, const Quantized& x, int64_t first, Floats* y) {
    const int8_t* values = x.values.data() + first * x.stride;
    const float* scales = x.scales.data() + first * x.blocks;
    const int32_t* sums = x.sums.data() + first * x.blocks;
    const int64_t steps = (x.dim + 3) / 4;
    Floats total[C] = {};
    for (int64_t block = 0; block < x.blocks; block++) {
        Ints dots[SPLIT][C] = {};
        for (int c = 0; c < C; c++) dots[0][c] -= 128 * sums[c * x.blocks + block];
        const int64_t start = block * STEPS;
        if (start + STEPS <= steps) {
            for (int i = 0; i < STEPS; i += SPLIT)
                for (int s = 0; s < SPLIT; s++)
                    for (int c = 0; c < C; c++)
                        dots[s][c] = multiplied(dots[s][c], weights + 64 * (start + i + s),
                                                values + c * x.stride + 4 * (start + i + s));
        } else {
            for (int64_t i = start; i < steps; i++)
                for (int c = 0; c < C; c++)
                    dots[0][c] = multiplied(dots[0][c], weights + 64 * i, values + c * x.stride + 4 * i);
        }
        for (int c = 0; c < C; c++) {
            for (int s = 1; s < SPLIT; s++) dots[0][c] += dots[s][c];
            total[c] += __builtin_convertvector(dots[0][c], Floats) * scales[c * x.blocks + block];
        }
    }
    for (int c = 0; c < C; c++) y[c] = total[c];
}

// Call `put(row of x, values of sixteen rows)` for a group of a weight and all n rows of x.
template <typename Put>
void products(const Weight& weight, int64_t group, const Quantized& x, int64_t n, Put put) {
    const uint8_t* values = weight.values + group * 64 * ((x.dim + 3) / 4);
    const Floats scales = load(weight.scales + group * LANES);
    Floats bias = {}, y[16];
    if (weight.bias)
        for (int i = 0; i < LANES && group * LANES + i < weight.rows; i++) bias[i] = weight.bias[group * LANES + i];
    for (int64_t first = 0; first < n;) {
        const int64_t left = n - first, count = left >= 16 ? 16 : left >= 8 ? 8 : left >= 4 ? 4 : left >= 2 ? 2 : 1;
        if (count == 16) tile<16, 1>(values, x, first, y);
        if (count == 8) tile<8, 1>(values, x, first, y);
        if (count == 4) tile<4, 1>(values, x, first, y);
        if (count == 2) tile<2, 2>(values, x, first, y);
        if (count == 1) tile<1, 4>(values, x, first, y);
        for (int64_t c = 0; c < count; c++) put(first++, y[c] * scales + bias);
    }
}

template <typename T>
void put_row(T* y, Floats values, int64_t count) {
    if (count >= LANES) return store(y, values);
    for (int i = 0; i < count; i++) write(y[i], values[i]);
}

thread_local Quantized inputs, hiddens;  // of the calling thread: they keep their memory
thread_local std::vector<float> gated;

template <typename T>
void linear(T* y, const T* x, int64_t n, int64_t dim, const Weight* weights, int count, int threads) {
    Quantized& q = inputs;
    q.resize(n, dim);
    int64_t groups = 0, width = 0;
    for (int i = 0; i < count; i++) {
        groups += weights[i].groups();
        width += weights[i].rows;
    }
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (int64_t row = 0; row < n; row++) q.set(row, x + row * dim);
#pragma omp for schedule(static)
        for (int64_t each = 0; each < groups; each++) {
            int64_t group = each, before = 0;
            const Weight* weight = weights;
            for (; group >= weight->groups(); weight++) {
                group -= weight->groups();
                before += weight->rows;
            }
            const int64_t row = group * LANES;
            products(*weight, group, q, n,
                     [&](int64_t c, Floats values) { put_row(y + c * width + before + row, values, weight->rows - row); });
        }
    }
}

enum Activation { SILU, GELU_TANH };

Floats activated(Floats x, int activation) {
    if (activation == SILU) return x / (1.0f + exponential(-x));
    const Floats inner = 1.5957691216f * (x + 0.044715f * x * x * x);  // (1 + tanh u) / 2 is the sigmoid of 2 u
    return x / (1.0f + exponential(-inner));
}

template <typename T>
void mlp(T* y, const T* x, int64_t n, int64_t dim, const Weight* weights, int activation, int threads) {
    const Weight &w1 = weights[0], &w2 = weights[1], &w3 = weights[2];
    const int64_t wide = w1.groups() * LANES;
    Quantized &q = inputs, &h = hiddens;
    q.resize(n, dim);
    h.resize(n, w1.rows);
    gated.resize(n * wide);
    float *hidden = gated.data();
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (int64_t row = 0; row < n; row++) q.set(row, x + row * dim);
#pragma omp for schedule(static)
        for (int64_t group = 0; group < w1.groups(); group++) {
            float* out = hidden + group * LANES;
            products(w1, group, q, n,
                     [&](int64_t c, Floats values) { store(out + c * wide, activated(values, activation)); });
            products(w3, group, q, n,
                     [&](int64_t c, Floats values) { store(out + c * wide, load(out + c * wide) * values); });
        }
#pragma omp for schedule(static)
        for (int64_t row = 0; row < n; row++) h.set(row, hidden + row * wide);
#pragma omp for schedule(static)
        for (int64_t group = 0; group < w2.groups(); group++) {
            const int64_t row = group * LANES;
            products(w2, group, h, n,
                     [&](int64_t c, Floats values) { put_row(y + c * w2.rows + row, values, w2.rows - row); });
        }
    }
}

}  // namespace

#define EXPORT(dtype, T)                                                                                          \
    extern "C" void linear_##dtype(T* y, const T* x, int64_t n, int64_t dim, const Weight* weights, int count,    \
                                   int threads) {                                                                 \
        linear(y, x, n, dim, weights, count, threads);                                                            \
    }                                                                                                             \
    extern "C" void mlp_##dtype(T* y, const T* x, int64_t n, int64_t dim, const Weight* weights, int activation,  \
                                int threads) {                                                                    \
        mlp(y, x, n, dim, weights, activation, threads);                                                          \
    }
EXPORT(float32, float)
EXPORT(bfloat16, uint16_t)
