// Products of rows in int8 with weights in int8, one scale a row of either: exact integers, scaled once.
//
// Inputs are rounded here as `rounded_codes` rounds them: in bf16 where x is bf16. Weights are the codes of packed.h plus
// 128, so that they are the unsigned side of `dpbusd`; 128 times the sum of a row's codes is taken off its sums.

#include "packed.h"

#if defined(HAS_VNNI512) && defined(HAS_LOOKUP)

using namespace subeight;

namespace {

constexpr int kTile = 12;     // rows of a tile: with two blocks of outputs 24 of the 32 registers are sums
constexpr int kMiddle = 128;  // what is added to a code of the weight

struct Codes {
  std::vector<int8_t> codes;  // [rows, in]
  std::vector<float> scales;  // [rows]
  std::vector<int32_t> sums;  // [rows], of the codes
};

inline __m512 in_bf16(__m512 values) {
  const __m256i narrow = (__m256i)_mm512_cvtneps_pbh(values);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(narrow), 16));
}

template <bool BF16>
inline __m512 sixteen(const void* x, int64_t at) {
  if constexpr (BF16) return widened(static_cast<const uint16_t*>(x) + at);
  else return _mm512_loadu_ps(static_cast<const float*>(x) + at);
}

// The scale that stretches -peak .. peak over the row, as `full_range` finds it; `smallest` is the least that is kept.
template <bool BF16>
float scale_of(const Rows& rows, int row, int in, float peak) {
  __m512 largest = _mm512_setzero_ps();
  const int64_t first = static_cast<int64_t>(row) * in;
  int column = 0;
  for (; column + 16 <= in; column += 16)
    largest = _mm512_max_ps(largest, _mm512_abs_ps(sixteen<BF16>(rows.x, first + column)));
  float found = _mm512_reduce_max_ps(largest);
  for (; column < in; ++column) found = std::max(found, std::fabs(rows.input(row, column, in)));
  if (found == 0) return 1;
  const float ideal = found / peak;
  return std::max(BF16 ? from_bf16(to_bf16(ideal)) : ideal, 0x1p-126f);
}

template <bool BF16>
void round_row(const Rows& rows, int row, int in, float scale, Codes& found) {
  const int64_t first = static_cast<int64_t>(row) * in;
  int8_t* codes = found.codes.data() + first;
  const __m512 divisor = _mm512_set1_ps(scale);
  __m512i sums = _mm512_setzero_si512();
  __mmask16 undefined = 0;
  int column = 0, sum = 0;
  for (; column + 16 <= in; column += 16) {
    __m512 quotients = _mm512_div_ps(sixteen<BF16>(rows.x, first + column), divisor);
    if constexpr (BF16) quotients = in_bf16(quotients);
    undefined |= _mm512_cmp_ps_mask(quotients, quotients, _CMP_UNORD_Q);
    const __m512 low = _mm512_set1_ps(-128), high = _mm512_set1_ps(127);
    const __m512i rounded = _mm512_cvtps_epi32(_mm512_min_ps(_mm512_max_ps(quotients, low), high));
    sums = _mm512_add_epi32(sums, rounded);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(codes + column), _mm512_cvtepi32_epi8(rounded));
  }
  for (; column < in; ++column) {
    float quotient = rows.input(row, column, in) / scale;
    if (BF16) quotient = from_bf16(to_bf16(quotient));
    undefined |= std::isnan(quotient);
    codes[column] = static_cast<int8_t>(std::nearbyint(std::min(std::max(quotient, -128.0f), 127.0f)));
    sum += codes[column];
  }
  found.scales[row] = undefined ? NAN : scale;  // what is not a number stays none
  found.sums[row] = sum + _mm512_reduce_add_epi32(sums);
}

template <bool BF16>
void round_all(const Rows& rows, int in, float fixed, float peak, int threads, Codes& found) {
  found.codes.resize(static_cast<size_t>(rows.count) * in);
  found.scales.resize(rows.count);
  found.sums.resize(rows.count);
  over_blocks(rows.count, rows.count > 1 ? threads : 1, [&](int row) {
    float scale = fixed > 0 ? fixed : scale_of<BF16>(rows, row, in, peak);
    if (BF16) scale = from_bf16(to_bf16(scale));  // a fixed one too is divided by in bf16
    round_row<BF16>(rows, row, in, scale, found);
  });
}

// sum += codes * inputs, four products a lane.
inline void add_products(__m512i& sum, __m512i codes, __m512i inputs) {
#if defined(__GNUC__)
  asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(codes), "v"(inputs));  // GCC 12 spills the sums around its intrinsic
#else
  sum = _mm512_dpbusd_epi32(sum, codes, inputs);
#endif
}

// ROWS rows with BLOCKS blocks of outputs.
template <int ROWS, int BLOCKS>
void tile(const Matrix& w, const Rows& rows, const Codes& x, int first, int block) {
  __m512i sums[ROWS][BLOCKS];
  const int8_t* inputs = x.codes.data() + static_cast<int64_t>(first) * w.in;
  const uint8_t* codes = w.codes + static_cast<int64_t>(block) * kOutputs * w.in;
  const int64_t between = static_cast<int64_t>(w.in) * kOutputs;
#pragma GCC unroll 16
  for (int row = 0; row < ROWS; ++row)
#pragma GCC unroll 16
    for (int at = 0; at < BLOCKS; ++at) sums[row][at] = _mm512_setzero_si512();
  for (int column = 0; column < w.in; column += kUnit) {
    __m512i of_block[BLOCKS];
#pragma GCC unroll 16
    for (int at = 0; at < BLOCKS; ++at) of_block[at] = _mm512_loadu_si512(codes + at * between + column * kOutputs);
#pragma GCC unroll 16
    for (int row = 0; row < ROWS; ++row) {
      int32_t four;
      std::memcpy(&four, inputs + static_cast<int64_t>(row) * w.in + column, 4);
      const __m512i spread = _mm512_set1_epi32(four);
#pragma GCC unroll 16
      for (int at = 0; at < BLOCKS; ++at) add_products(sums[row][at], of_block[at], spread);
    }
  }
#pragma GCC unroll 16
  for (int row = 0; row < ROWS; ++row)
#pragma GCC unroll 16
    for (int at = 0; at < BLOCKS; ++at) {
      const __m512i whole = _mm512_sub_epi32(sums[row][at], _mm512_set1_epi32(kMiddle * x.sums[first + row]));
      const __m512 scales = _mm512_mul_ps(widened(w.scales + (block + at) * kOutputs), _mm512_set1_ps(x.scales[first + row]));
      const __m512 values = _mm512_mul_ps(_mm512_cvtepi32_ps(whole), scales);
      const int column = (block + at) * kOutputs;
      const auto mask = static_cast<__mmask16>(w.out - column >= kOutputs ? 0xffff : (1 << (w.out - column)) - 1);
      const int64_t place = static_cast<int64_t>(first + row) * w.out + column;
      if (rows.is_bf16)
        _mm256_mask_storeu_epi16(static_cast<uint16_t*>(rows.y) + place, mask, (__m256i)_mm512_cvtneps_pbh(values));
      else
        _mm512_mask_storeu_ps(static_cast<float*>(rows.y) + place, mask, values);
    }
}

template <int BLOCKS>
void panel(const Matrix& w, const Rows& rows, const Codes& x, int block) {
  int row = 0;
  for (; row + kTile <= rows.count; row += kTile) tile<kTile, BLOCKS>(w, rows, x, row, block);
  for (; row + 4 <= rows.count; row += 4) tile<4, BLOCKS>(w, rows, x, row, block);
  for (; row + 2 <= rows.count; row += 2) tile<2, BLOCKS>(w, rows, x, row, block);
  for (; row < rows.count; ++row) tile<1, BLOCKS>(w, rows, x, row, block);
}

}  // namespace

// `fixed`: the scale of all rows, or 0 where each finds its own, which stretches `peak` over its largest value.
// Returns 0, or 1 for builds without it.
EXPORT int subeight_int8(const uint8_t* codes, const uint16_t* scales, int out, int in, float fixed, float peak,
                         const void* x, void* y, int rows, int is_bf16, int threads) {
  const Matrix w{codes, scales, nullptr, kMiddle, out, in, in};
  const Rows of{x, y, rows, is_bf16 != 0};
  thread_local Codes rounded;
  if (of.is_bf16) round_all<true>(of, in, fixed, peak, threads, rounded);
  else round_all<false>(of, in, fixed, peak, threads, rounded);
  const Codes& shared = rounded;
  over_blocks((w.blocks() + 1) / 2, threads, [&](int pair) {
    if (2 * pair + 2 <= w.blocks()) panel<2>(w, of, shared, 2 * pair);
    else panel<1>(w, of, shared, 2 * pair);
  });
  return 0;
}

#else

EXPORT int subeight_int8(const uint8_t*, const uint16_t*, int, int, float, float, const void*, void*, int, int, int) {
  return 1;
}

#endif
