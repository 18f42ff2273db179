// What a decoder does between its products, for few tokens on a CPU: norm, rotation, attention to what slots of a cache
// hold. passes.py describes them. Each row is computed in the same order in any company.
#include "numbers.h"
#include <cmath>
#include <vector>

namespace {

constexpr int64_t PARALLEL = 1 << 15;  // values from which on the threads are worth waking

template <typename T>
void rms_norm(T* y, const T* x, const T* weight, int64_t n, int64_t dim, float eps, float offset, int threads) {
#pragma omp parallel for num_threads(n * dim >= PARALLEL ? threads : 1)
    for (int64_t row = 0; row < n; row++) {
        const T* from = x + row * dim;
        T* to = y + row * dim;
        Floats squares = {};
        int64_t i = 0;
        for (; i + LANES <= dim; i += LANES) squares += load(from + i) * load(from + i);
        float total = sum(squares);
        for (int64_t j = i; j < dim; j++) total += read(from[j]) * read(from[j]);
        const float scale = 1 / std::sqrt(total / dim + eps);
        for (i = 0; i + LANES <= dim; i += LANES) store(to + i, load(from + i) * scale * (load(weight + i) + offset));
        for (; i < dim; i++) write(to[i], read(from[i]) * scale * (read(weight[i]) + offset));
    }
}

struct Heads {
    int64_t tokens, heads, head_dim, token_stride, head_stride;
};

// y is [tokens, heads, head_dim] without gaps; pair i is (i, i + pairs).
template <typename T>
void rotate(T* y, const T* x, const Heads& shape, const T* cos, const T* sin, int64_t pairs, int64_t angle_stride,
            int threads) {
    const int64_t dim = shape.head_dim;
#pragma omp parallel for num_threads(shape.tokens * shape.heads * dim >= PARALLEL ? threads : 1)
    for (int64_t token = 0; token < shape.tokens; token++) {
        const T *c = cos + token * angle_stride, *s = sin + token * angle_stride;
        for (int64_t head = 0; head < shape.heads; head++) {
            const T* from = x + token * shape.token_stride + head * shape.head_stride;
            T* to = y + (token * shape.heads + head) * dim;
            int64_t i = 0;
            for (; i + LANES <= pairs; i += LANES) {
                const Floats x1 = load(from + i), x2 = load(from + pairs + i), cosine = load(c + i), sine = load(s + i);
                store(to + i, x1 * cosine - x2 * sine);
                store(to + pairs + i, x2 * cosine + x1 * sine);
            }
            for (; i < pairs; i++) {
                const float x1 = read(from[i]), x2 = read(from[pairs + i]), cosine = read(c[i]), sine = read(s[i]);
                write(to[i], x1 * cosine - x2 * sine);
                write(to[pairs + i], x2 * cosine + x1 * sine);
            }
            for (i = 2 * pairs; i < dim; i++) to[i] = from[i];
        }
    }
}

// One query head of one token: y = softmax(scores) v over `count` keys, of V times sixteen numbers each.
template <typename T, int V>
void attend(T* y, const T* q, const T* k, const T* v, int64_t count, float scale, float softcap,
            std::vector<float>& memory) {
    const int64_t padded = (count + LANES - 1) / LANES * LANES;
    if (int64_t(memory.size()) < padded) memory.resize(2 * padded);
    float* scores = memory.data();
    Floats query[V], out[V] = {};
    for (int i = 0; i < V; i++) query[i] = load(q + LANES * i) * scale;
    for (int64_t t = 0; t < count; t++) {
        Floats products = {};
        for (int i = 0; i < V; i++) products += query[i] * load(k + (V * t + i) * LANES);
        scores[t] = sum(products);
    }
    for (int64_t t = count; t < padded; t++) scores[t] = -INFINITY;  // a share of e^-87 at most
    Floats most = Floats{} - INFINITY, shares = {};
    for (int64_t t = 0; t < padded; t += LANES) {
        Floats score = load(scores + t);
        if (softcap > 0) {  // c tanh(s / c), the padding's last
            const Floats capped = softcap - 2 * softcap / (exponential(2 / softcap * score) + 1);
            store(scores + t, score = score < -1e30f ? score : capped);
        }
        most = score > most ? score : most;
    }
    const float top = largest(most);
    for (int64_t t = 0; t < padded; t += LANES) {
        const Floats share = exponential(load(scores + t) - top);
        store(scores + t, share);
        shares += share;
    }
    const float total = sum(shares);
    for (int64_t t = 0; t < count; t++)
        for (int i = 0; i < V; i++) out[i] += scores[t] * load(v + (V * t + i) * LANES);
    for (int i = 0; i < V; i++) store(y + LANES * i, out[i] / total);
}

// The memory of one layer's cache.
struct Cache {
    void *k, *v;
    int64_t slot_stride, head_stride;  // positions follow each other without gaps
};

// Single tokens: their keys and values go to `positions` of `slots`, of which they then see all up to there.
template <typename T, int V>
void cached_attention(T* y, const T* q, const T* k, const T* v, const Heads* shapes, const Cache& cache,
                      const int64_t* slots, const int64_t* positions, int64_t window, float scale, float softcap,
                      int threads) {
    const Heads &qs = shapes[0], &ks = shapes[1], &vs = shapes[2];
    const int64_t group = qs.heads / ks.heads, dim = qs.head_dim;
#pragma omp parallel num_threads(threads)
    {
        std::vector<float> memory;
#pragma omp for schedule(dynamic)
        for (int64_t each = 0; each < qs.tokens * ks.heads; each++) {
            const int64_t row = each / ks.heads, head = each % ks.heads, position = positions[row];
            const int64_t place = slots[row] * cache.slot_stride + head * cache.head_stride;
            T *keys = (T*)cache.k + place, *values = (T*)cache.v + place;
            std::memcpy(keys + position * dim, k + row * ks.token_stride + head * ks.head_stride, dim * sizeof(T));
            std::memcpy(values + position * dim, v + row * vs.token_stride + head * vs.head_stride, dim * sizeof(T));
            const int64_t first = window > 0 && position >= window ? position - window + 1 : 0;
            for (int64_t h = head * group; h < (head + 1) * group; h++)
                attend<T, V>(y + (row * qs.heads + h) * dim, q + row * qs.token_stride + h * qs.head_stride,
                             keys + first * dim, values + first * dim, position - first + 1, scale, softcap, memory);
        }
    }
}

}  // namespace

#define EXPORT(dtype, T)                                                                                              \
    extern "C" void rms_norm_##dtype(T* y, const T* x, const T* weight, int64_t n, int64_t dim, float eps,            \
                                     float offset, int threads) {                                                     \
        rms_norm(y, x, weight, n, dim, eps, offset, threads);                                                         \
    }                                                                                                                 \
    extern "C" void rotate_##dtype(T* y, const T* x, const Heads* shape, const T* cos, const T* sin, int64_t pairs,   \
                                   int64_t angle_stride, int threads) {                                               \
        rotate(y, x, *shape, cos, sin, pairs, angle_stride, threads);                                                 \
    }                                                                                                                 \
    extern "C" void cached_attention_##dtype(T* y, const T* q, const T* k, const T* v, const Heads* shapes,           \
                                             const Cache* cache, const int64_t* slots, const int64_t* positions,      \
                                             int64_t window, float scale, float softcap, int threads) {               \
        const auto run = shapes->head_dim == 32    ? cached_attention<T, 2>                                           \
                         : shapes->head_dim == 64  ? cached_attention<T, 4>                                           \
                         : shapes->head_dim == 80  ? cached_attention<T, 5>                                           \
                         : shapes->head_dim == 96  ? cached_attention<T, 6>                                           \
                         : shapes->head_dim == 128 ? cached_attention<T, 8>                                           \
                                                   : cached_attention<T, 16>;                                         \
        run(y, q, k, v, shapes, *cache, slots, positions, window, scale, softcap, threads);                           \
    }
EXPORT(float32, float)
EXPORT(bfloat16, uint16_t)
