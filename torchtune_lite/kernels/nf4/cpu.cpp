// NF4 on a CPU: the two loops of cpu.py, which says what they compute. A block is 64 weights, 32 bytes of codes and one
// scale.
#include "numbers.h"
#ifdef __SSSE3__
#include <immintrin.h>
#endif

namespace {

template <typename T>
void look_up(T* out, const uint8_t* codes, const T* values) {
    for (int i = 0; i < 32; i++) {
        out[2 * i] = values[codes[i] >> 4];
        out[2 * i + 1] = values[codes[i] & 15];
    }
}

#ifdef __SSSE3__
// The low and the high bytes of the 16 values are a register each, and one instruction looks up 16 codes in it.
void look_up(uint16_t* out, const uint8_t* codes, const uint16_t* values) {
    const __m128i first = _mm_loadu_si128((const __m128i*)values), last = _mm_loadu_si128((const __m128i*)values + 1);
    const __m128i byte = _mm_set1_epi16(255), nibble = _mm_set1_epi8(15);
    const __m128i low = _mm_packus_epi16(_mm_and_si128(first, byte), _mm_and_si128(last, byte));
    const __m128i high = _mm_packus_epi16(_mm_srli_epi16(first, 8), _mm_srli_epi16(last, 8));
    __m128i* to = (__m128i*)out;
    for (int half = 0; half < 2; half++) {
        const __m128i both = _mm_loadu_si128((const __m128i*)codes + half);
        const __m128i even = _mm_and_si128(_mm_srli_epi16(both, 4), nibble), odd = _mm_and_si128(both, nibble);
        const __m128i order[] = {_mm_unpacklo_epi8(even, odd), _mm_unpackhi_epi8(even, odd)};
        for (__m128i code : order) {
            const __m128i lows = _mm_shuffle_epi8(low, code), highs = _mm_shuffle_epi8(high, code);
            _mm_storeu_si128(to++, _mm_unpacklo_epi8(lows, highs));
            _mm_storeu_si128(to++, _mm_unpackhi_epi8(lows, highs));
        }
    }
}
#endif

// Strides are in elements from row to row; `blocks` are those of a row.
template <typename T>
void decode(T* out, const uint8_t* codes, const T* scales, const T* levels, int64_t rows, int64_t blocks,
            int64_t out_stride, int64_t codes_stride, int64_t scales_stride, int threads) {
#pragma omp parallel for num_threads(threads)
    for (int64_t row = 0; row < rows; row++) {
        for (int64_t block = 0; block < blocks; block++) {
            const float scale = read(scales[row * scales_stride + block]);
            T values[16];
            for (int i = 0; i < 16; i++) write(values[i], read(levels[i]) * scale);
            look_up(out + row * out_stride + block * 64, codes + row * codes_stride + block * 32, values);
        }
    }
}

}  // namespace

#define DECODE(name, T)                                                                                           \
    extern "C" void name(T* out, const uint8_t* codes, const T* scales, const T* levels, int64_t rows,            \
                         int64_t blocks, int64_t out_stride, int64_t codes_stride, int64_t scales_stride,         \
                         int threads) {                                                                           \
        decode(out, codes, scales, levels, rows, blocks, out_stride, codes_stride, scales_stride, threads);       \
    }
DECODE(decode_bfloat16, uint16_t)
DECODE(decode_float32, float)

extern "C" void encode_bfloat16(uint8_t* codes, uint16_t* absmax, const uint16_t* weights, const uint8_t* table,
                                int64_t blocks, int threads) {
#pragma omp parallel for num_threads(threads)
    for (int64_t block = 0; block < blocks; block++) {
        const uint16_t* weight = weights + block * 64;
        uint16_t largest = 0, ratios[64];
        for (int i = 0; i < 64; i++) {
            const uint16_t magnitude = weight[i] & 0x7fff;  // ordered as its value, infinity and NaN above all
            largest = magnitude > largest ? magnitude : largest;
        }
        absmax[block] = largest;
        uint8_t* out = codes + block * 32;
        if (largest == 0) {
            std::memset(out, 0x77, 32);
            continue;
        }
        const float scale = widened(largest);
        for (int i = 0; i < 64; i++) ratios[i] = rounded(widened(weight[i]) / scale);
        for (int i = 0; i < 32; i++) out[i] = uint8_t(table[ratios[2 * i]] << 4 | table[ratios[2 * i + 1]]);
    }
}
