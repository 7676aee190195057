// What products of blocks are made of: micro-kernels over packed tiles, for this processor's instructions.
//
// Tokens are copied in tiles that stay in the second-level cache, one block column after another: with rows of 4 KiB, as
// 1024 floats have, reading them in place would fall into the same few sets of the first-level cache.
#pragma once

#include <ATen/native/CPUBlas.h>

#include "words.h"

namespace nt {

constexpr int64_t kTileBytes = 640 * 1024;

#if NT_AVX512

// sum[m][v] += a's row (or column) m times b's 16 columns v, over `words` words.
template <int MT, int NV, bool PAIR, bool DOWN, int LDA, int LDB>
AVX512_INLINE void multiply(int64_t words, const uint32_t* a, const uint32_t* b, __m512 (&sum)[MT][NV]) {
  for (int64_t k = 0; k < words; ++k) {
    __m512 right[NV];
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) right[v] = _mm512_loadu_ps(b + k * LDB + 16 * v);
#pragma GCC unroll 24
    for (int m = 0; m < MT; ++m) {
      const __m512 left = _mm512_castsi512_ps(_mm512_set1_epi32(DOWN ? a[k * LDA + m] : a[m * LDA + k]));
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) sum[m][v] = multiply_add<PAIR>(sum[m][v], left, right[v]);
    }
  }
}

template <int B>
struct Shape {
  static constexpr int vectors = B == 16 ? 1 : 2, tokens = B == 16 ? 24 : 12;  // 24 sums in registers
  static constexpr int outs = B == 16 ? 16 : 8;                               // of a weight gradient
};

// One row of output blocks for one tile of tokens.
template <class S, int B, bool PAIR>
AVX512 void product_row(const uint32_t* x, int64_t tile, int64_t tokens, const uint32_t* blocks, const int32_t* index,
                        int64_t count, S* y, int64_t stride, int64_t valid) {
  constexpr int MT = Shape<B>::tokens, NV = Shape<B>::vectors, KW = PAIR ? B / 2 : B;
  for (int64_t n = 0; n < B; n += 16 * NV) {
    for (int64_t t = 0; t < tokens; t += MT) {
      __m512 sum[MT][NV];
#pragma GCC unroll 24
      for (int m = 0; m < MT; ++m)
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) sum[m][v] = _mm512_setzero_ps();
      for (int64_t j = 0; j < count; ++j)
        multiply<MT, NV, PAIR, false, KW, B>(KW, x + (index[j] * tile + t) * KW,
                                             blocks + j * KW * B + n, sum);
#pragma GCC unroll 24
      for (int m = 0; m < MT; ++m)
        if (t + m < tokens)
#pragma GCC unroll 4
          for (int v = 0; v < NV; ++v) store(y + (t + m) * stride + n + 16 * v, sum[m][v], valid - n - 16 * v);
    }
  }
}

template <int B, bool PAIR>
AVX512 void gradient_block(const uint32_t* dy, const uint32_t* x, int64_t words, float* dw) {
  constexpr int MT = Shape<B>::outs, NV = Shape<B>::vectors;
  for (int64_t n = 0; n < B; n += 16 * NV)
    for (int64_t m0 = 0; m0 < B; m0 += MT) {
      __m512 sum[MT][NV];
#pragma GCC unroll 24
      for (int m = 0; m < MT; ++m)
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) sum[m][v] = _mm512_loadu_ps(dw + (m0 + m) * B + n + 16 * v);
      multiply<MT, NV, PAIR, true, B, B>(words, dy + m0, x + n, sum);
#pragma GCC unroll 24
      for (int m = 0; m < MT; ++m)
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) _mm512_storeu_ps(dw + (m0 + m) * B + n + 16 * v, sum[m][v]);
    }
}

#endif

template <class S>
using Row = void (*)(const uint32_t*, int64_t, int64_t, const uint32_t*, const int32_t*, int64_t, S*, int64_t, int64_t);
using Gradient = void (*)(const uint32_t*, const uint32_t*, int64_t, float*);

// Null where this processor has no kernel of its own: torch's brgemm then.
template <class S, bool PAIR>
Row<S> row_kernel(int64_t block) {
#if NT_AVX512
  if (level() > kPortable) {
    if (block == 16) return product_row<S, 16, PAIR>;
    if (block == 32) return product_row<S, 32, PAIR>;
    if (block == 64) return product_row<S, 64, PAIR>;
    if (block == 128) return product_row<S, 128, PAIR>;
  }
#endif
  return nullptr;
}

template <bool PAIR>
Gradient gradient_kernel(int64_t block) {
#if NT_AVX512
  if (level() > kPortable) {
    if (block == 16) return gradient_block<16, PAIR>;
    if (block == 32) return gradient_block<32, PAIR>;
    if (block == 64) return gradient_block<64, PAIR>;
    if (block == 128) return gradient_block<128, PAIR>;
  }
#endif
  return nullptr;
}

inline const float* floats(const uint32_t* words) { return reinterpret_cast<const float*>(words); }

// The same as product_row over floats, by torch's brgemm (oneDNN's micro-kernel where it has one, else its gemm).
template <class S>
void brgemm_row(const uint32_t* x, int64_t tile, int64_t tokens, const uint32_t* blocks, const int32_t* index,
                int64_t count, S* y, int64_t stride, int64_t block, int64_t valid, float* sum) {
  std::fill_n(sum, tokens * block, 0.f);
  for (int64_t j = 0; j < count; ++j)
    at::native::cpublas::brgemm(tokens, block, block, block, block, block, j > 0, floats(x + index[j] * tile * block),
                                floats(blocks + j * block * block), sum, false);
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t i = 0; i < valid; ++i) y[t * stride + i] = S(sum[t * block + i]);
}

#if NT_AVX512

// [block][words] to [words][block], 16 x 16 words at a time.
AVX512 inline void transpose_words(const void* from, int64_t block, int64_t words, uint32_t* to) {
  const uint32_t* source = static_cast<const uint32_t*>(from);
  for (int64_t k = 0; k < words; k += 16)
    for (int64_t o = 0; o < block; o += 16) {
      __m512i part[16];
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i) part[i] = _mm512_loadu_si512(source + (o + i) * words + k);
      transpose16(part);
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i) _mm512_storeu_si512(to + (k + i) * block + o, part[i]);
    }
}

#endif

// A block [b, b] as a product reads it: [words along the sum][b outputs].
template <class S, bool PAIR>
void pack_block(const S* from, int64_t block, bool transposed, uint32_t* to) {
  if (!transposed) return copy_columns<S, PAIR>(from, block, 0, block, block, block, to);
  const int64_t words = PAIR ? block / 2 : block;
#if NT_AVX512
  if constexpr (PAIR || std::is_same_v<S, float>)
    if (words % 16 == 0 && level() > kPortable) return transpose_words(from, block, words, to);
#endif
  for (int64_t k = 0; k < words; k += 8)
    for (int64_t o = 0; o < block; ++o)
      for (int64_t i = k; i < k + 8; ++i) {
        if constexpr (PAIR) {
          std::memcpy(to + i * block + o, from + o * block + 2 * i, 4);
        } else {
          to[i * block + o] = word_of(from[o * block + i]);
        }
      }
}

}  // namespace nt
