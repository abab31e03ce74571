// The dequantized matrix, in bf16.

#include "packed.h"

using namespace subeight;

namespace {

// One code after the other, whatever the CPU.
template <int BITS>
void unpack_plainly(const Matrix& w, const float* table, uint16_t* values, int threads) {
  constexpr int run_columns = units_of_run<BITS>() * kUnit, run_bytes = bytes_of_run<BITS>();
  const int runs = w.in / run_columns;
  over_blocks(w.blocks(), threads, [&](int block) {
    const int outputs = std::min(kOutputs, w.out - block * kOutputs);
    const uint8_t* first = w.codes + static_cast<int64_t>(block) * runs * run_bytes;
    for (int lane = 0; lane < outputs; ++lane) {
      uint16_t* row = values + (static_cast<int64_t>(block) * kOutputs + lane) * w.in;
      for (int group = 0; group < w.groups(); ++group) {
        const int64_t place = (static_cast<int64_t>(block) * w.groups() + group) * kOutputs + lane;
        const float scale = from_bf16(w.scales[place]), zero = w.zeros ? w.zeros[place] : 0;
        uint16_t scaled[1 << BITS];
        if constexpr (BITS < 8)
          for (int code = 0; code < 1 << BITS; ++code) scaled[code] = to_bf16(scale * (table[code] - zero));
        for (int at = group * (w.group / run_columns); at < (group + 1) * (w.group / run_columns); ++at)
          for (int unit = 0; unit < units_of_run<BITS>(); ++unit)
            for (int column = 0; column < kUnit; ++column) {
              const int code = code_of<BITS>(first + static_cast<int64_t>(at) * run_bytes, unit, kUnit * lane + column);
              row[at * run_columns + unit * kUnit + column] =
                  BITS < 8 ? scaled[code] : to_bf16(scale * (table[code] - zero));
            }
      }
    }
  });
}

#if defined(HAS_LOOKUP)

constexpr int kSide = 16, kColumns = 2 * kSide;  // a square of 16 outputs x 16 pairs of columns

// Rows become columns, of 32-bit lanes.
inline void transpose(__m512i (&rows)[kSide]) {
  __m512i turned[kSide];
#pragma GCC unroll 8
  for (int at = 0; at < kSide; at += 2) {
    turned[at] = _mm512_unpacklo_epi32(rows[at], rows[at + 1]);
    turned[at + 1] = _mm512_unpackhi_epi32(rows[at], rows[at + 1]);
  }
#pragma GCC unroll 4
  for (int at = 0; at < kSide; at += 4)
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      rows[at + 2 * half] = _mm512_unpacklo_epi64(turned[at + half], turned[at + 2 + half]);
      rows[at + 2 * half + 1] = _mm512_unpackhi_epi64(turned[at + half], turned[at + 2 + half]);
    }
#pragma GCC unroll 4
  for (int at = 0; at < 4; ++at)
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      turned[8 * half + at] = _mm512_shuffle_i32x4(rows[8 * half + at], rows[8 * half + 4 + at], 0x88);
      turned[8 * half + 4 + at] = _mm512_shuffle_i32x4(rows[8 * half + at], rows[8 * half + 4 + at], 0xdd);
    }
#pragma GCC unroll 8
  for (int at = 0; at < 8; ++at) {
    rows[at] = _mm512_shuffle_i32x4(turned[at], turned[8 + at], 0x88);
    rows[8 + at] = _mm512_shuffle_i32x4(turned[at], turned[8 + at], 0xdd);
  }
}

// The scales and zero points of a block's sixteen outputs, and what the codes stand for before them (bytes: the first).
struct Group {
  __m512 scales, zeros, low, high;
};

// One column of a unit for all sixteen outputs, in bf16, in the low halves of the lanes.
template <int BITS>
inline __m512i column_of(const uint8_t* run, __m512i packed, int unit, int column, const Group& group) {
  constexpr int step = BITS == 3 ? 2 : BITS;
  // the table repeats itself, so bits above the code do not matter
  const __m512i index = _mm512_srli_epi32(packed, 8 * column + step * unit);
  __m512 values;
  if constexpr (BITS == 8)
    values = _mm512_add_ps(_mm512_cvtepi32_ps(_mm512_and_si512(index, _mm512_set1_epi32(255))), group.low);
  else
    values = _mm512_permutexvar_ps(index, group.low);
  if constexpr (BITS == 3) {
    uint64_t third;
    std::memcpy(&third, run + 64 + 8 * unit, 8);
    const auto mask = static_cast<__mmask16>(_pext_u64(third, 0x1111111111111111ull << column));
    values = _mm512_mask_permutexvar_ps(values, mask, index, group.high);
  }
  values = _mm512_mul_ps(_mm512_sub_ps(values, group.zeros), group.scales);
  return _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(values));
}

template <int BITS>
void unpack_block(const Matrix& w, const float* table, uint16_t* values, int block) {
  constexpr int run_columns = units_of_run<BITS>() * kUnit, run_bytes = bytes_of_run<BITS>();
  constexpr int period = BITS == 3 ? 4 : BITS == 8 ? 1 : 1 << BITS;
  float low[kSide], high[kSide];
  for (int at = 0; at < kSide; ++at) {
    low[at] = table[at % period];
    high[at] = BITS == 3 ? table[4 + at % 4] : 0;
  }
  const uint8_t* run = w.codes + static_cast<int64_t>(block) * (w.in / run_columns) * run_bytes;
  const int outputs = std::min(kOutputs, w.out - block * kOutputs);
  for (int column = 0; column < w.in; column += kColumns) {
    const int64_t place = (static_cast<int64_t>(block) * w.groups() + column / w.group) * kOutputs;
    Group group{widened(w.scales + place), _mm512_setzero_ps(), _mm512_loadu_ps(low), _mm512_loadu_ps(high)};
    if (w.zeros) {
      const __m128i zeros = _mm_loadu_si128(reinterpret_cast<const __m128i*>(w.zeros + place));
      group.zeros = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(zeros));
    }
    __m512i pairs[kSide];
    int pair = 0;
    for (int at = 0; at < kColumns / run_columns; ++at, run += run_bytes) {
      const __m512i packed = _mm512_loadu_si512(run);
      for (int unit = 0; unit < units_of_run<BITS>(); ++unit)
        for (int of_unit = 0; of_unit < kUnit; of_unit += 2) {
          const __m512i second = column_of<BITS>(run, packed, unit, of_unit + 1, group);
          pairs[pair++] = _mm512_or_si512(column_of<BITS>(run, packed, unit, of_unit, group), _mm512_slli_epi32(second, 16));
        }
    }
    transpose(pairs);
    uint16_t* into = values + static_cast<int64_t>(block) * kOutputs * w.in + column;
    for (int lane = 0; lane < outputs; ++lane) _mm512_storeu_si512(into + static_cast<int64_t>(lane) * w.in, pairs[lane]);
  }
}

#endif

template <int BITS>
void unpack(const Matrix& w, const float* table, uint16_t* values, int threads) {
#if defined(HAS_LOOKUP)
  if (w.group % kColumns == 0) {
    over_blocks(w.blocks(), threads, [&](int block) { unpack_block<BITS>(w, table, values, block); });
    return;
  }
#endif
  unpack_plainly<BITS>(w, table, values, threads);
}

}  // namespace

// All of the matrix in bf16 [out, in]; `table`: the value of every code. Returns 0, or 1 for unknown bits.
EXPORT int subeight_unpack(const uint8_t* codes, const uint16_t* scales, const uint8_t* zeros, const float* table, int bits,
                           int out, int in, int group, uint16_t* values, int threads) {
  const Matrix w{codes, scales, zeros, 0, out, in, group};
  switch (bits) {
    case 2: unpack<2>(w, table, values, threads); return 0;
    case 3: unpack<3>(w, table, values, threads); return 0;
    case 4: unpack<4>(w, table, values, threads); return 0;
    case 8: unpack<8>(w, table, values, threads); return 0;
    default: return 1;
  }
}
