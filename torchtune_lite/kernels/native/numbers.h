// Numbers of the compiled loops: float32, and bfloat16, which travels as its bits; sixteen of them at a time.
#pragma once
#include <cstdint>
#include <cstring>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

inline float widened(uint16_t bits) {
    uint32_t wide = uint32_t(bits) << 16;
    float value;
    std::memcpy(&value, &wide, 4);
    return value;
}

// To nearest, ties to even. A NaN stays one where its low half is 0, as it is in what bfloat16 operands give.
inline uint16_t rounded(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline float read(float value) { return value; }
inline float read(uint16_t bits) { return widened(bits); }
inline void write(float& out, float value) { out = value; }
inline void write(uint16_t& out, float value) { out = rounded(value); }

constexpr int LANES = 16;
typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));
typedef uint32_t Words __attribute__((vector_size(4 * LANES)));
typedef uint16_t Halves __attribute__((vector_size(2 * LANES)));

inline Floats load(const float* from) {
    Floats values;
    std::memcpy(&values, from, sizeof values);
    return values;
}

inline Floats load(const uint16_t* from) {
    Halves halves;
    std::memcpy(&halves, from, sizeof halves);
    return (Floats)(__builtin_convertvector(halves, Words) << 16);
}

inline void store(float* to, Floats values) { std::memcpy(to, &values, sizeof values); }

inline void store(uint16_t* to, Floats values) {
    const Words bits = (Words)values;
    const Halves halves = __builtin_convertvector((bits + 0x7fff + (bits >> 16 & 1)) >> 16, Halves);
    std::memcpy(to, &halves, sizeof halves);
}

// In a fixed order, so that a row gives the same whatever lies beside it.
inline float sum(Floats values) {
#ifdef __AVX512F__
    return _mm512_reduce_add_ps((__m512)values);
#else
    float parts[LANES];
    std::memcpy(parts, &values, sizeof parts);
    for (int half = LANES / 2; half > 0; half /= 2)
        for (int i = 0; i < half; i++) parts[i] += parts[i + half];
    return parts[0];
#endif
}

inline float largest(Floats values) {
    float most = values[0];
    for (int i = 1; i < LANES; i++) most = values[i] > most ? values[i] : most;
    return most;
}

// e^x to 2 units in the last place: 2^n e^r with r within ln 2 / 2 of 0, by a polynomial (Cephes).
inline Floats exponential(Floats x) {
    x = x < -87.3f ? Floats{} - 87.3f : x;
    x = x > 88.3f ? Floats{} + 88.3f : x;
    const Floats shifted = x * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: what is left of the fraction is rounded
    const Floats n = shifted - 12582912.0f;
    const Floats r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    Floats p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    const Ints scale = (__builtin_convertvector(n, Ints) + 127) << 23;
    return p * (Floats)scale;
}
