// What all products of this folder share: how a matrix is packed, rows of either type, threads.
//
// Layout. Sixteen outputs are one block. Inside it a unit is 16 outputs x 4 columns, one byte a code, byte 4 * o + c: one
// 512-bit register whose 32-bit lanes are outputs. A run packs 8 / BITS units into 64 bytes, unit u in the bits
// u * BITS and on; 3 bits are a run of 2 bits (four units) followed by four 64-bit masks of the third bit. 8 bits are a
// unit each. Runs go along the columns, blocks along the outputs.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#if defined(__AVX512BW__) || defined(__AVX2__)
#include <immintrin.h>
#endif
#if defined(_OPENMP)
#include <omp.h>
#endif

#if defined(_WIN32)
#define EXPORT extern "C" __declspec(dllexport)
#else
#define EXPORT extern "C" __attribute__((visibility("default")))
#endif

#if defined(__AVX512BW__) && defined(__AVX512VNNI__)
#define HAS_VNNI512 1
#endif
#if defined(__AVX512BW__) && defined(__AVX512BF16__) && defined(__BMI2__)
#define HAS_LOOKUP 1
#endif

namespace subeight {

constexpr int kOutputs = 16;  // of a block
constexpr int kUnit = 4;      // columns of a unit

template <int BITS>
constexpr int units_of_run() {
  return BITS == 3 ? 4 : 8 / BITS;
}

template <int BITS>
constexpr int bytes_of_run() {
  return BITS == 3 ? 96 : 64;
}

inline float from_bf16(uint16_t value) {
  uint32_t bits = static_cast<uint32_t>(value) << 16;
  float found;
  std::memcpy(&found, &bits, 4);
  return found;
}

inline uint16_t to_bf16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

#if defined(HAS_LOOKUP)
// Sixteen values of bf16 as float32.
inline __m512 widened(const uint16_t* values) {
  const __m256i narrow = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(values));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(narrow), 16));
}
#endif

// One matrix as it is packed.
struct Matrix {
  const uint8_t* codes;
  const uint16_t* scales;  // bf16 [blocks, groups, 16]
  const uint8_t* zeros;    // [blocks, groups, 16], or null: `zero` for all
  int zero;
  int out, in, group;
  int groups() const { return in / group; }
  int blocks() const { return (out + kOutputs - 1) / kOutputs; }
};

// The rows of x, and where y goes.
struct Rows {
  const void* x;
  void* y;
  int count;
  bool is_bf16;
  float input(int row, int column, int in) const {
    const int64_t at = static_cast<int64_t>(row) * in + column;
    return is_bf16 ? from_bf16(static_cast<const uint16_t*>(x)[at]) : static_cast<const float*>(x)[at];
  }
  void output(int row, int column, int out, float value) const {
    const int64_t at = static_cast<int64_t>(row) * out + column;
    if (is_bf16) static_cast<uint16_t*>(y)[at] = to_bf16(value);
    else static_cast<float*>(y)[at] = value;
  }
};

// One code of a run, whatever the CPU.
template <int BITS>
inline int code_of(const uint8_t* run, int unit, int byte) {
  if constexpr (BITS == 8) return run[byte];
  constexpr int low = BITS == 3 ? 2 : BITS;
  int code = (run[byte] >> (low * unit)) & ((1 << low) - 1);
  if constexpr (BITS == 3) code += 4 * ((run[64 + 8 * unit + byte / 8] >> (byte % 8)) & 1);
  return code;
}

template <typename Work>
void over_blocks(int blocks, int threads, const Work& work) {
#if defined(_OPENMP)
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
#endif
  for (int block = 0; block < blocks; ++block) work(block);
}

}  // namespace subeight
