// What both formats share: what this processor can do, and copies of operands into words of 32 bits.
//
// A word is one float, or two bfloat16 that are neighbours along the axis of the sum (the low half comes first): what one
// lane of vdpbf16ps takes. Processors without that instruction get bfloat16 widened to float while it is copied.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <type_traits>

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#include <immintrin.h>
#define NT_AVX512 1
// Only functions marked so may hold these instructions, so the library loads on any processor.
#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma")))
#define AVX512_INLINE AVX512 __attribute__((always_inline)) static inline
#else
#define NT_AVX512 0
#endif

namespace nt {

constexpr int kPortable = 0, kAvx512 = 1, kAvx512Bf16 = 2;

inline int detected_level() {
#if NT_AVX512
  static const int found = [] {
    __builtin_cpu_init();
    const bool wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    if (!wide) return kPortable;
    return __builtin_cpu_supports("avx512bf16") ? kAvx512Bf16 : kAvx512;
  }();
  return found;
#else
  return kPortable;
#endif
}

inline std::atomic<int> level_limit{kAvx512Bf16};

inline int level() { return std::min(level_limit.load(), detected_level()); }

struct Release {
  void operator()(void* memory) const { ::operator delete(memory, std::align_val_t(64)); }
};

// Memory of one call. Not cleared: clearing some megabytes would cost as much as copying them. At the start of a cache
// line: a vector that lies across two is two reads.
template <class T>
std::unique_ptr<T[], Release> scratch(int64_t count) {
  return {static_cast<T*>(::operator new(std::max<int64_t>(count, 1) * sizeof(T), std::align_val_t(64))), Release{}};
}

inline bool in_pairs(const at::Tensor& x) { return x.scalar_type() == at::kBFloat16 && level() == kAvx512Bf16; }

inline bool unit_stride(const at::Tensor& x) { return x.size(1) <= 1 || x.stride(1) == 1; }

inline uint32_t word_of(float value) {
  uint32_t word;
  std::memcpy(&word, &value, 4);
  return word;
}

inline uint32_t word_of(at::BFloat16 value) { return uint32_t(value.x) << 16; }

inline int64_t round_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

// Strided rows are a page or two apart, where no prefetcher of the hardware follows.
constexpr int64_t kAhead = 8;

inline void ahead(const void* from, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(static_cast<const char*>(from) + i);
}

#if NT_AVX512

AVX512_INLINE __mmask16 first16(int64_t count) {
  return count >= 16 ? __mmask16(0xffff) : count > 0 ? __mmask16((1u << count) - 1) : __mmask16(0);
}

// Two rows of bfloat16 to pairs; `second` null: the pair's high half is zero.
AVX512 inline void join_rows(const at::BFloat16* first, const at::BFloat16* second, int64_t valid, int64_t block,
                             uint32_t* out) {
  for (int64_t i = 0; i < block; i += 16) {
    const __mmask16 inside = first16(valid - i);
    const __m512i low = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(inside, first + i));
    __m512i high = _mm512_setzero_si512();
    if (second) high = _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(inside, second + i)), 16);
    _mm512_storeu_si512(out + i, _mm512_or_si512(low, high));
  }
}

// The first `valid` of `words` words, then zeros.
AVX512 inline void copy_wide(const void* from, int64_t valid, int64_t words, uint32_t* out) {
  const uint32_t* source = static_cast<const uint32_t*>(from);
  for (int64_t i = 0; i < words; i += 16)
    _mm512_mask_storeu_epi32(out + i, first16(words - i), _mm512_maskz_loadu_epi32(first16(valid - i), source + i));
}

#endif

// `valid` values and zeros up to `block`, one to a word.
template <class S>
void widen_row(const S* from, int64_t valid, int64_t block, uint32_t* out) {
#if NT_AVX512
  if constexpr (std::is_same_v<S, float>)
    if (level() > kPortable) return copy_wide(from, valid, block, out);
#endif
  for (int64_t i = 0; i < valid; ++i) out[i] = word_of(from[i]);
  for (int64_t i = valid; i < block; ++i) out[i] = 0;
}

// `valid` values and zeros up to `block`, as the words of a sum along the row.
template <class S, bool PAIR>
void copy_row(const S* from, int64_t valid, int64_t block, uint32_t* out) {
  if constexpr (PAIR) {
#if NT_AVX512
    if (valid % 2 == 0) return copy_wide(from, valid / 2, block / 2, out);
#endif
    std::memcpy(out, from, valid * sizeof(S));
    std::memset(reinterpret_cast<char*>(out) + valid * sizeof(S), 0, (block - valid) * sizeof(S));
  } else {
    widen_row(from, valid, block, out);
  }
}

// Rows [begin, end) of one block column of x to out [words][block], the sum running down the rows: two rows make one row
// of pairs. Columns beyond `valid` become zero.
template <class S, bool PAIR>
void copy_columns(const S* x, int64_t stride, int64_t begin, int64_t end, int64_t valid, int64_t block, uint32_t* out) {
  for (int64_t t = begin; t < end; t += PAIR ? 2 : 1, out += block) {
    const S* row = x + t * stride;
    ahead(row + kAhead * stride, valid * sizeof(S));
    if constexpr (PAIR) {
#if NT_AVX512
      ahead(row + (kAhead + 1) * stride, valid * sizeof(S));
      join_rows(row, t + 1 < end ? row + stride : nullptr, valid, block, out);
#endif
    } else {
      widen_row(row, valid, block, out);
    }
  }
}

// Rows [begin, end) of x [*, width] to out [blocks][tile][words of a block]: the sum runs along a row, so pairs lie side
// by side already. Tokens up to `padded` and columns beyond `width` become zero.
template <class S, bool PAIR>
void copy_rows(const S* x, int64_t stride, int64_t begin, int64_t end, int64_t padded, int64_t width, int64_t block,
               int64_t tile, uint32_t* out) {
  const int64_t words = PAIR ? block / 2 : block;
  const int64_t blocks = (width + block - 1) / block;
  for (int64_t t = begin; t < end; ++t)
    for (int64_t c = 0; c < blocks; ++c)
      copy_row<S, PAIR>(x + t * stride + c * block, std::min(block, width - c * block), block,
                        out + (c * tile + t - begin) * words);
  for (int64_t t = end - begin; t < padded; ++t)
    for (int64_t c = 0; c < blocks; ++c) std::memset(out + (c * tile + t) * words, 0, words * 4);
}

#if NT_AVX512

template <bool PAIR>
AVX512_INLINE __m512 multiply_add(__m512 sum, __m512 a, __m512 b) {
  if constexpr (PAIR)
    return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
  else
    return _mm512_fmadd_ps(a, b, sum);
}

// Round to nearest even, as torch does.
AVX512_INLINE __m256i to_bf16(__m512 value) {
  const __m512i bits = _mm512_castps_si512(value);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
  const __mmask16 nan = _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
  const __m512i chosen = _mm512_mask_mov_epi32(rounded, nan, _mm512_set1_epi32(0x7fc00000));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(chosen, 16));
}

// The first `valid` (at most 16) of 16 values.
AVX512_INLINE void store(float* to, __m512 value, int64_t valid) {
  if (valid >= 16)
    _mm512_storeu_ps(to, value);
  else if (valid > 0)
    _mm512_mask_storeu_ps(to, __mmask16((1u << valid) - 1), value);
}

AVX512_INLINE void store(at::BFloat16* to, __m512 value, int64_t valid) {
  if (valid >= 16)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), to_bf16(value));
  else if (valid > 0)
    _mm256_mask_storeu_epi16(to, __mmask16((1u << valid) - 1), to_bf16(value));
}

AVX512_INLINE void transpose16(__m512i (&r)[16]) {
  __m512i t[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
    r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
    r[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
    r[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
  }
}

// Lane i: the sum of the lanes of r[i].
AVX512_INLINE __m512 sums_of(const __m512 (&r)[16]) {
  __m512 quarter[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const __m512 a = _mm512_add_ps(_mm512_unpacklo_ps(r[4 * i], r[4 * i + 1]), _mm512_unpackhi_ps(r[4 * i], r[4 * i + 1]));
    const __m512 b =
        _mm512_add_ps(_mm512_unpacklo_ps(r[4 * i + 2], r[4 * i + 3]), _mm512_unpackhi_ps(r[4 * i + 2], r[4 * i + 3]));
    quarter[i] = _mm512_add_ps(_mm512_shuffle_ps(a, b, 0x44), _mm512_shuffle_ps(a, b, 0xee));
  }
  const __m512 a = _mm512_add_ps(_mm512_shuffle_f32x4(quarter[0], quarter[1], 0x88),
                                 _mm512_shuffle_f32x4(quarter[0], quarter[1], 0xdd));
  const __m512 b = _mm512_add_ps(_mm512_shuffle_f32x4(quarter[2], quarter[3], 0x88),
                                 _mm512_shuffle_f32x4(quarter[2], quarter[3], 0xdd));
  return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
}

#endif

}  // namespace nt
