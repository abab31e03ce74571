// Products of a few rows with a packed matrix: y[rows, out] = x[rows, in] * dequantized(w)[out, in]^T.
//
// Two forms. `vnni`: x is rounded to int8 per block of at most 64 columns, products are exact integers. `lookup`: codes
// become bf16 values through a table (any codebook; bytes are integers), x stays bf16, sums are float32.

#include "packed.h"

using namespace subeight;

namespace {

#if defined(HAS_VNNI512)

// The codes of one unit as bytes.
template <int BITS>
inline __m512i unit_codes(const uint8_t* run, __m512i packed, int unit) {
  if constexpr (BITS == 8) return packed;
  if constexpr (BITS == 4)
    return _mm512_and_si512(unit ? _mm512_srli_epi16(packed, 4) : packed, _mm512_set1_epi8(15));
  __m512i low = _mm512_and_si512(_mm512_srli_epi16(packed, 2 * unit), _mm512_set1_epi8(3));
  if constexpr (BITS == 3) {
    uint64_t third;
    std::memcpy(&third, run + 64 + 8 * unit, 8);
    low = _mm512_mask_add_epi8(low, third, low, _mm512_set1_epi8(4));
  }
  return low;
}

using Sum = __m512i;
inline Sum no_sum() { return _mm512_setzero_si512(); }

template <int BITS, int ROWS>
inline void add_run(const uint8_t* run, const int8_t* const* x, int column, Sum* sums) {
  const __m512i packed = _mm512_loadu_si512(run);
  for (int unit = 0; unit < units_of_run<BITS>(); ++unit) {
    const __m512i codes = unit_codes<BITS>(run, packed, unit);
    for (int row = 0; row < ROWS; ++row) {
      int32_t four;
      std::memcpy(&four, x[row] + column + kUnit * unit, 4);
      sums[row] = _mm512_dpbusd_epi32(sums[row], codes, _mm512_set1_epi32(four));
    }
  }
}

inline void spill(const Sum& sum, int32_t* into) { _mm512_storeu_si512(into, sum); }

#elif defined(__AVX2__)

struct Sum {
  __m256i half[2];
};
inline Sum no_sum() { return {{_mm256_setzero_si256(), _mm256_setzero_si256()}}; }

template <int BITS>
inline __m256i unit_codes(const uint8_t* run, __m256i packed, int unit, int half) {
  if constexpr (BITS == 4)
    return _mm256_and_si256(unit ? _mm256_srli_epi16(packed, 4) : packed, _mm256_set1_epi8(15));
  __m256i low = _mm256_and_si256(_mm256_srli_epi16(packed, 2 * unit), _mm256_set1_epi8(3));
  if constexpr (BITS == 3) {
    int32_t third;
    std::memcpy(&third, run + 64 + 8 * unit + 4 * half, 4);
    const __m256i spread = _mm256_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 3, 3,
                                            3, 3, 3, 3, 3, 3);
    const __m256i bits = _mm256_set1_epi64x(static_cast<int64_t>(0x8040201008040201ull));
    const __m256i bytes = _mm256_shuffle_epi8(_mm256_set1_epi32(third), spread);
    const __m256i set = _mm256_cmpeq_epi8(_mm256_and_si256(bytes, bits), bits);
    low = _mm256_or_si256(low, _mm256_and_si256(set, _mm256_set1_epi8(4)));
  }
  return low;
}

template <int BITS, int ROWS>
inline void add_run(const uint8_t* run, const int8_t* const* x, int column, Sum* sums) {
  const __m256i ones = _mm256_set1_epi16(1);
  for (int half = 0; half < 2; ++half) {
    const __m256i packed = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(run + 32 * half));
    for (int unit = 0; unit < units_of_run<BITS>(); ++unit) {
      const __m256i codes = unit_codes<BITS>(run, packed, unit, half);
      for (int row = 0; row < ROWS; ++row) {
        int32_t four;
        std::memcpy(&four, x[row] + column + kUnit * unit, 4);
        const __m256i pairs = _mm256_maddubs_epi16(codes, _mm256_set1_epi32(four));
        sums[row].half[half] = _mm256_add_epi32(sums[row].half[half], _mm256_madd_epi16(pairs, ones));
      }
    }
  }
}

inline void spill(const Sum& sum, int32_t* into) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(into), sum.half[0]);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(into + 8), sum.half[1]);
}

#else

struct Sum {
  int32_t lanes[kOutputs];
};
inline Sum no_sum() { return Sum{}; }

template <int BITS, int ROWS>
inline void add_run(const uint8_t* run, const int8_t* const* x, int column, Sum* sums) {
  for (int unit = 0; unit < units_of_run<BITS>(); ++unit)
    for (int byte = 0; byte < 64; ++byte)
      for (int row = 0; row < ROWS; ++row)
        sums[row].lanes[byte / 4] += code_of<BITS>(run, unit, byte) * x[row][column + kUnit * unit + byte % 4];
}

inline void spill(const Sum& sum, int32_t* into) { std::memcpy(into, sum.lanes, sizeof sum.lanes); }

#endif

// x in int8 with a scale for every `step` columns, and sums of the codes of each group times their scales.
struct Rounded {
  std::vector<int8_t> codes;   // [rows, in]
  std::vector<float> scales;   // [rows, in / step]
  std::vector<float> sums;     // [rows, in / step], of the rounded values
};

void round_rows(const Rows& rows, int in, int step, Rounded& found) {
  const int steps = in / step;
  found.codes.resize(static_cast<size_t>(rows.count) * in);
  found.scales.resize(static_cast<size_t>(rows.count) * steps);
  found.sums.resize(static_cast<size_t>(rows.count) * steps);
  std::vector<float> values(step);
  for (int row = 0; row < rows.count; ++row)
    for (int at = 0; at < steps; ++at) {
      float largest = 0;
      for (int column = 0; column < step; ++column) {
        values[column] = rows.input(row, at * step + column, in);
        largest = std::max(largest, std::fabs(values[column]));
      }
      const float scale = largest / 127, inverse = largest > 0 ? 127 / largest : 0;
      int8_t* codes = found.codes.data() + static_cast<size_t>(row) * in + at * step;
      int sum = 0;
      for (int column = 0; column < step; ++column) {
        const int code = static_cast<int>(std::nearbyint(values[column] * inverse));
        codes[column] = static_cast<int8_t>(code);
        sum += code;
      }
      found.scales[static_cast<size_t>(row) * steps + at] = scale;
      found.sums[static_cast<size_t>(row) * steps + at] = scale * sum;
    }
}

template <int BITS, int ROWS>
void vnni_block(const Matrix& w, const Rows& rows, int first, const Rounded& x, int step, int block) {
  constexpr int run_columns = units_of_run<BITS>() * kUnit, run_bytes = bytes_of_run<BITS>();
  const uint8_t* run = w.codes + static_cast<int64_t>(block) * (w.in / run_columns) * run_bytes;
  const int steps = w.in / step;
  float totals[ROWS][kOutputs] = {};
  const int8_t* inputs[ROWS];
  for (int row = 0; row < ROWS; ++row) inputs[row] = x.codes.data() + static_cast<int64_t>(first + row) * w.in;
  for (int group = 0; group < w.groups(); ++group) {
    const int64_t place = (static_cast<int64_t>(block) * w.groups() + group) * kOutputs;
    float in_group[ROWS][kOutputs] = {};
    float sums[ROWS] = {};
    for (int at = group * (w.group / step); at < (group + 1) * (w.group / step); ++at) {
      Sum found[ROWS];
      for (int row = 0; row < ROWS; ++row) found[row] = no_sum();
      for (int column = at * step; column < (at + 1) * step; column += run_columns, run += run_bytes)
        add_run<BITS, ROWS>(run, inputs, column, found);
      for (int row = 0; row < ROWS; ++row) {
        int32_t lanes[kOutputs];
        spill(found[row], lanes);
        const int64_t of_row = static_cast<int64_t>(first + row) * steps + at;
        const float scale = x.scales[of_row];
        sums[row] += x.sums[of_row];
        for (int lane = 0; lane < kOutputs; ++lane) in_group[row][lane] += scale * static_cast<float>(lanes[lane]);
      }
    }
    for (int row = 0; row < ROWS; ++row)
      for (int lane = 0; lane < kOutputs; ++lane) {
        const float zero = w.zeros ? static_cast<float>(w.zeros[place + lane]) : static_cast<float>(w.zero);
        totals[row][lane] += from_bf16(w.scales[place + lane]) * (in_group[row][lane] - zero * sums[row]);
      }
  }
  const int outputs = std::min(kOutputs, w.out - block * kOutputs);
  for (int row = 0; row < ROWS; ++row)
    for (int lane = 0; lane < outputs; ++lane)
      rows.output(first + row, block * kOutputs + lane, w.out, totals[row][lane]);
}

#if defined(HAS_LOOKUP)

// x in bf16, each unit's columns in the order 0 2 1 3 in which codes leave their bytes, and sums of each group.
struct Shuffled {
  std::vector<uint16_t> values;  // [rows, in]
  std::vector<float> sums;       // [rows, groups]
};

void shuffle_rows(const Rows& rows, int in, int group, Shuffled& found) {
  static const int order[kUnit] = {0, 2, 1, 3};
  found.values.resize(static_cast<size_t>(rows.count) * in);
  found.sums.assign(static_cast<size_t>(rows.count) * (in / group), 0.0f);
  for (int row = 0; row < rows.count; ++row)
    for (int column = 0; column < in; ++column) {
      const uint16_t value = to_bf16(rows.input(row, column / kUnit * kUnit + order[column % kUnit], in));
      found.values[static_cast<size_t>(row) * in + column] = value;
      found.sums[static_cast<size_t>(row) * (in / group) + column / group] += from_bf16(value);
    }
}

// Two tables for 3 bits: the codes without and with their third bit.
struct Tables {
  __m512i low, high;
};

template <int BITS>
Tables tables_of(const uint16_t* table) {
  uint16_t low[32], high[32];
  constexpr int period = BITS == 3 ? 4 : 1 << BITS;
  for (int at = 0; at < 32; ++at) {
    low[at] = table[at % period];
    high[at] = BITS == 3 ? table[4 + at % 4] : 0;
  }
  return {_mm512_loadu_si512(low), _mm512_loadu_si512(high)};
}

// Bytes less 128, times x: 128 + the low seven bits is bf16 by its bits alone, and what is then taken off is 128 or 256.
template <int ROWS>
inline void add_bytes(__m512i packed, const uint16_t* const* x, int column, __m512* sums) {
  for (int odd = 0; odd < 2; ++odd) {
    const __m512i codes = odd ? _mm512_srli_epi16(packed, 8) : packed;
    const __m512i low = _mm512_or_si512(_mm512_and_si512(codes, _mm512_set1_epi16(0x7f)), _mm512_set1_epi16(0x4300));
    const __m512i off = _mm512_xor_si512(_mm512_and_si512(codes, _mm512_set1_epi16(0x80)),
                                         _mm512_set1_epi16(static_cast<int16_t>(0xc380)));
    for (int row = 0; row < ROWS; ++row) {
      int32_t two;
      std::memcpy(&two, x[row] + column + 2 * odd, 4);
      const auto inputs = (__m512bh)_mm512_set1_epi32(two);
      sums[row] = _mm512_dpbf16_ps(_mm512_dpbf16_ps(sums[row], (__m512bh)low, inputs), (__m512bh)off, inputs);
    }
  }
}

template <int BITS, int ROWS>
inline void look_up_run(const uint8_t* run, const Tables& tables, const uint16_t* const* x, int column, __m512* sums) {
  constexpr int step = BITS == 3 ? 2 : BITS;
  const __m512i packed = _mm512_loadu_si512(run);
  if constexpr (BITS == 8) return add_bytes<ROWS>(packed, x, column, sums);
  for (int unit = 0; unit < units_of_run<BITS>(); ++unit) {
    uint64_t third = 0;
    if constexpr (BITS == 3) std::memcpy(&third, run + 64 + 8 * unit, 8);
    for (int odd = 0; odd < 2; ++odd) {
      // the table repeats itself, so bits above the code do not matter
      const __m512i index = _mm512_srli_epi16(packed, step * unit + 8 * odd);
      __m512i values = _mm512_permutexvar_epi16(index, tables.low);
      if constexpr (BITS == 3) {
        const auto mask = static_cast<__mmask32>(_pext_u64(third, odd ? 0xaaaaaaaaaaaaaaaaull : 0x5555555555555555ull));
        values = _mm512_mask_permutexvar_epi16(values, mask, index, tables.high);
      }
      for (int row = 0; row < ROWS; ++row) {
        int32_t two;
        std::memcpy(&two, x[row] + column + kUnit * unit + 2 * odd, 4);
        sums[row] = _mm512_dpbf16_ps(sums[row], (__m512bh)values, (__m512bh)_mm512_set1_epi32(two));
      }
    }
  }
}

template <int BITS, int ROWS>
void lookup_block(const Matrix& w, const Rows& rows, int first, const Shuffled& x, const Tables& tables, int block) {
  constexpr int run_columns = units_of_run<BITS>() * kUnit, run_bytes = bytes_of_run<BITS>();
  const uint8_t* run = w.codes + static_cast<int64_t>(block) * (w.in / run_columns) * run_bytes;
  __m512 totals[ROWS];
  const uint16_t* inputs[ROWS];
  for (int row = 0; row < ROWS; ++row) {
    totals[row] = _mm512_setzero_ps();
    inputs[row] = x.values.data() + static_cast<int64_t>(first + row) * w.in;
  }
  for (int group = 0; group < w.groups(); ++group) {
    const int64_t place = (static_cast<int64_t>(block) * w.groups() + group) * kOutputs;
    __m512 sums[ROWS];
    for (int row = 0; row < ROWS; ++row) sums[row] = _mm512_setzero_ps();
    for (int column = group * w.group; column < (group + 1) * w.group; column += run_columns, run += run_bytes)
      look_up_run<BITS, ROWS>(run, tables, inputs, column, sums);
    const __m512 scales = widened(w.scales + place);
    for (int row = 0; row < ROWS; ++row) {
      if (w.zeros) {
        const __m128i zeros = _mm_loadu_si128(reinterpret_cast<const __m128i*>(w.zeros + place));
        const __m512 sum = _mm512_set1_ps(x.sums[static_cast<int64_t>(first + row) * w.groups() + group]);
        const __m512i taken = _mm512_sub_epi32(_mm512_cvtepu8_epi32(zeros), _mm512_set1_epi32(BITS == 8 ? 128 : 0));
        sums[row] = _mm512_fnmadd_ps(_mm512_cvtepi32_ps(taken), sum, sums[row]);
      }
      totals[row] = _mm512_fmadd_ps(scales, sums[row], totals[row]);
    }
  }
  const int outputs = std::min(kOutputs, w.out - block * kOutputs);
  for (int row = 0; row < ROWS; ++row) {
    float lanes[kOutputs];
    _mm512_storeu_ps(lanes, totals[row]);
    for (int lane = 0; lane < outputs; ++lane) rows.output(first + row, block * kOutputs + lane, w.out, lanes[lane]);
  }
}

template <int BITS>
void lookup(const Matrix& w, const Rows& rows, const uint16_t* table, int threads) {
  thread_local Shuffled x;
  shuffle_rows(rows, w.in, w.group, x);
  const Shuffled& shared = x;
  const Tables tables = tables_of<BITS>(table);
  over_blocks(w.blocks(), threads, [&](int block) {
    int row = 0;
    for (; row + 8 <= rows.count; row += 8) lookup_block<BITS, 8>(w, rows, row, shared, tables, block);
    for (; row + 4 <= rows.count; row += 4) lookup_block<BITS, 4>(w, rows, row, shared, tables, block);
    for (; row + 2 <= rows.count; row += 2) lookup_block<BITS, 2>(w, rows, row, shared, tables, block);
    for (; row < rows.count; ++row) lookup_block<BITS, 1>(w, rows, row, shared, tables, block);
  });
}

#endif

template <int BITS>
void vnni(const Matrix& w, const Rows& rows, int step, int threads) {
  thread_local Rounded x;
  round_rows(rows, w.in, step, x);
  const Rounded& shared = x;
  over_blocks(w.blocks(), threads, [&](int block) {
    int row = 0;
    for (; row + 4 <= rows.count; row += 4) vnni_block<BITS, 4>(w, rows, row, shared, step, block);
    for (; row + 2 <= rows.count; row += 2) vnni_block<BITS, 2>(w, rows, row, shared, step, block);
    for (; row < rows.count; ++row) vnni_block<BITS, 1>(w, rows, row, shared, step, block);
  });
}

}  // namespace

// Which forms this build has: 1 plain vnni, 2 by AVX2, 4 by AVX-512, 8 lookup.
EXPORT int subeight_forms() {
  int found = 1;
#if defined(HAS_VNNI512)
  found |= 4;
#elif defined(__AVX2__)
  found |= 2;
#endif
#if defined(HAS_LOOKUP)
  found |= 8;
#endif
  return found;
}

// `step`: columns that share a scale of x, a divisor of `group` and a multiple of a run. Returns 0, or 1 for unknown bits.
EXPORT int subeight_vnni(const uint8_t* codes, const uint16_t* scales, const uint8_t* zeros, int zero, int bits, int out,
                         int in, int group, int step, const void* x, void* y, int rows, int is_bf16, int threads) {
  const Matrix w{codes, scales, zeros, zero, out, in, group};
  const Rows of{x, y, rows, is_bf16 != 0};
  switch (bits) {
    case 2: vnni<2>(w, of, step, threads); return 0;
    case 3: vnni<3>(w, of, step, threads); return 0;
    case 4: vnni<4>(w, of, step, threads); return 0;
#if defined(HAS_VNNI512) || !defined(__AVX2__)
    case 8: vnni<8>(w, of, step, threads); return 0;
#endif
    default: return 1;
  }
}

// `table`: the bf16 value of every code. Returns 0, or 1 for unknown bits and builds without this form.
EXPORT int subeight_lookup(const uint8_t* codes, const uint16_t* scales, const uint8_t* zeros, const uint16_t* table,
                           int bits, int out, int in, int group, const void* x, void* y, int rows, int is_bf16,
                           int threads) {
#if defined(HAS_LOOKUP)
  const Matrix w{codes, scales, zeros, 0, out, in, group};
  const Rows of{x, y, rows, is_bf16 != 0};
  switch (bits) {
    case 2: lookup<2>(w, of, table, threads); return 0;
    case 3: lookup<3>(w, of, table, threads); return 0;
    case 4: lookup<4>(w, of, table, threads); return 0;
    case 8: lookup<8>(w, of, table, threads); return 0;
    default: return 1;
  }
#else
  (void)codes, (void)scales, (void)zeros, (void)table, (void)bits, (void)out, (void)in, (void)group, (void)x, (void)y;
  (void)rows, (void)is_bf16, (void)threads;
  return 1;
#endif
}
