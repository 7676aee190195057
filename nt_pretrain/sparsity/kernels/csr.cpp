// Products with single weights (CSR). Vectors run over tokens: a tile of them is turned feature-major, so that every
// weight takes whole cache lines of its input feature; the tile stays in the second-level cache, whose reads are the bound.
//
//   csr_product    y[t, o] = sum over j of row o of weights[slots[j]] · x[t, index[j]]
//   csr_gradient   dw[slots[j]] = sum over t of dy[t, row of j] · x[t, index[j]]
#include <torch/library.h>

#include "words.h"

namespace nt {
namespace {

constexpr int64_t kGroup = 16;  // output features that are turned back together

float value_of(float x) { return x; }
float value_of(at::BFloat16 x) { return float(x); }

// Columns [first, last) of rows [begin, end) of x to out [last - first][tile], D being float or, for pairs, bfloat16.
template <class S, class D>
void turn(const S* x, int64_t stride, int64_t begin, int64_t end, int64_t first, int64_t last, int64_t tile, D* out) {
  for (int64_t t = 0; t < tile; ++t)
    for (int64_t k = first; k < last; ++k)
      out[(k - first) * tile + t] = begin + t < end ? D(value_of(x[(begin + t) * stride + k])) : D(0);
}

#if NT_AVX512

AVX512_INLINE __m512i load16(const float* from, __mmask16 inside) { return _mm512_maskz_loadu_epi32(inside, from); }
AVX512_INLINE __m512i load16(const at::BFloat16* from, __mmask16 inside) {
  return _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(inside, from));
}

template <class S>
AVX512_INLINE void store16(float* to, __m512i value) {
  _mm512_storeu_si512(to, std::is_same_v<S, float> ? value : _mm512_slli_epi32(value, 16));
}
template <class S>
AVX512_INLINE void store16(at::BFloat16* to, __m512i value) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi32_epi16(value));
}

template <class S, class D>
AVX512 void turn_wide(const S* x, int64_t stride, int64_t begin, int64_t end, int64_t first, int64_t last, int64_t tile,
                      D* out) {
  for (int64_t t = 0; t < tile; t += 16)
    for (int64_t k = first; k < last; k += 16) {
      const int64_t columns = std::min<int64_t>(16, last - k);
      const __mmask16 inside = __mmask16((1u << columns) - 1);
      __m512i r[16];
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i) __builtin_prefetch(x + std::min(begin + t + i + 16, end - 1) * stride + k);
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i)
        r[i] = load16(x + std::min(begin + t + i, end - 1) * stride + k, begin + t + i < end ? inside : 0);
      transpose16(r);
      if (columns == 16) {
#pragma GCC unroll 16
        for (int i = 0; i < 16; ++i) store16<S>(out + (k - first + i) * tile + t, r[i]);
      } else {
        __m512i spill[16];
        for (int i = 0; i < 16; ++i) spill[i] = r[i];
        for (int64_t i = 0; i < columns; ++i) store16<S>(out + (k - first + i) * tile + t, spill[i]);
      }
    }
}

// sums [16 outputs][tile] to y's columns, for `tokens` rows.
template <class S>
AVX512 void turn_back(const float* sums, int64_t tile, int64_t tokens, S* y, int64_t stride, int64_t valid) {
  for (int64_t t = 0; t < tokens; t += 16) {
    __m512i r[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) r[i] = _mm512_loadu_si512(sums + i * tile + t);
    transpose16(r);
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i)
      if (t + i < tokens) store(y + (t + i) * stride, _mm512_castsi512_ps(r[i]), valid);
  }
}

// One output feature for a tile of 16 * V tokens: the sum over its `count` weights.
template <int V>
AVX512 void gather_floats(const float* x, const int32_t* index, const float* weights, int64_t count, float* out) {
  __m512 sum[V];
#pragma GCC unroll 4
  for (int v = 0; v < V; ++v) sum[v] = _mm512_setzero_ps();
  for (int64_t j = 0; j < count; ++j) {
    const float* row = x + int64_t(index[j]) * 16 * V;
    const __m512 weight = _mm512_set1_ps(weights[j]);
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) sum[v] = _mm512_fmadd_ps(weight, _mm512_loadu_ps(row + 16 * v), sum[v]);
  }
#pragma GCC unroll 4
  for (int v = 0; v < V; ++v) _mm512_storeu_ps(out + 16 * v, sum[v]);
}

// The same, two weights at a time: their inputs are interleaved, so a lane holds the pair of one token.
template <int V>  // vectors of 32 tokens
AVX512 void gather_pairs(const at::BFloat16* x, const int32_t* index, const at::BFloat16* weights, int64_t count,
                         float* out) {
  __m512 low[V], high[V];
#pragma GCC unroll 2
  for (int v = 0; v < V; ++v) low[v] = high[v] = _mm512_setzero_ps();
  int64_t j = 0;
  for (; j + 2 <= count; j += 2) {
    int pair;
    std::memcpy(&pair, weights + j, 4);
    const __m512i weight = _mm512_set1_epi32(pair);
    const at::BFloat16* one = x + int64_t(index[j]) * 32 * V;
    const at::BFloat16* two = x + int64_t(index[j + 1]) * 32 * V;
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) {
      const __m512i a = _mm512_loadu_si512(one + 32 * v), b = _mm512_loadu_si512(two + 32 * v);
      low[v] = _mm512_dpbf16_ps(low[v], (__m512bh)_mm512_unpacklo_epi16(a, b), (__m512bh)weight);
      high[v] = _mm512_dpbf16_ps(high[v], (__m512bh)_mm512_unpackhi_epi16(a, b), (__m512bh)weight);
    }
  }
  if (j < count) {
    const __m512i weight = _mm512_set1_epi32(weights[j].x), none = _mm512_setzero_si512();
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) {
      const __m512i a = _mm512_loadu_si512(x + int64_t(index[j]) * 32 * V + 32 * v);
      low[v] = _mm512_dpbf16_ps(low[v], (__m512bh)_mm512_unpacklo_epi16(a, none), (__m512bh)weight);
      high[v] = _mm512_dpbf16_ps(high[v], (__m512bh)_mm512_unpackhi_epi16(a, none), (__m512bh)weight);
    }
  }
  const __m512i first = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
  const __m512i second = _mm512_setr_epi32(8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31);
#pragma GCC unroll 2
  for (int v = 0; v < V; ++v) {
    _mm512_storeu_ps(out + 32 * v, _mm512_permutex2var_ps(low[v], first, high[v]));
    _mm512_storeu_ps(out + 32 * v + 16, _mm512_permutex2var_ps(low[v], second, high[v]));
  }
}

// dw[j] += the product of the tile's dy with the inputs index[j]; V vectors of a tile (16 floats or 32 bfloat16 each).
template <class D, int V>
AVX512 void scatter_row(const D* dy, const D* x, const int32_t* index, int64_t count, float* dw) {
  constexpr bool PAIR = !std::is_same_v<D, float>;
  constexpr int64_t tile = (PAIR ? 32 : 16) * V;
  __m512 left[V];
#pragma GCC unroll 8
  for (int v = 0; v < V; ++v) left[v] = _mm512_loadu_ps(reinterpret_cast<const float*>(dy) + 16 * v);
  for (int64_t j = 0; j < count; j += 16) {
    const int64_t here = std::min<int64_t>(16, count - j);
    __m512 sum[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) {
      const float* row = reinterpret_cast<const float*>(x + index[j + std::min<int64_t>(i, here - 1)] * tile);
      sum[i] = _mm512_setzero_ps();
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) sum[i] = multiply_add<PAIR>(sum[i], left[v], _mm512_loadu_ps(row + 16 * v));
    }
    const __mmask16 inside = __mmask16((1u << here) - 1);
    const __m512 old = _mm512_maskz_loadu_ps(inside, dw + j);
    _mm512_mask_storeu_ps(dw + j, inside, _mm512_add_ps(old, sums_of(sum)));
  }
}

#endif

// The functions of one tile: of floats or pairs, by this processor's instructions or plain loops.
template <class S, class D>
struct Tile {
  static constexpr int64_t wide = 64;
  bool fast = level() > kPortable;

  void fill(const S* x, int64_t stride, int64_t begin, int64_t end, int64_t first, int64_t last, int64_t tile,
            D* out) const {
#if NT_AVX512
    if (fast) return turn_wide<S, D>(x, stride, begin, end, first, last, tile, out);
#endif
    turn<S, D>(x, stride, begin, end, first, last, tile, out);
  }

  void gather(const D* x, const int32_t* index, const D* weights, int64_t count, int64_t tile, float* out) const {
#if NT_AVX512
    if constexpr (!std::is_same_v<D, float>)
      return tile == wide ? gather_pairs<2>(x, index, weights, count, out) : gather_pairs<1>(x, index, weights, count, out);
    else if (fast)
      return tile == wide ? gather_floats<4>(x, index, weights, count, out)
                          : gather_floats<2>(x, index, weights, count, out);
#endif
    std::fill_n(out, tile, 0.f);
    for (int64_t j = 0; j < count; ++j) {
      const D* row = x + index[j] * tile;
      for (int64_t t = 0; t < tile; ++t) out[t] += value_of(weights[j]) * value_of(row[t]);
    }
  }

  void back(const float* sums, int64_t tile, int64_t tokens, S* y, int64_t stride, int64_t valid) const {
#if NT_AVX512
    if (fast) return turn_back<S>(sums, tile, tokens, y, stride, valid);
#endif
    for (int64_t t = 0; t < tokens; ++t)
      for (int64_t i = 0; i < valid; ++i) y[t * stride + i] = S(sums[i * tile + t]);
  }

  void scatter(const D* dy, const D* x, const int32_t* index, int64_t count, int64_t tile, float* dw) const {
#if NT_AVX512
    if (fast) return scatter_row<D, std::is_same_v<D, float> ? 8 : 4>(dy, x, index, count, dw);
#endif
    for (int64_t j = 0; j < count; ++j) {
      float sum = 0;
      for (int64_t t = 0; t < tile; ++t) sum += value_of(dy[t]) * value_of(x[index[j] * tile + t]);
      dw[j] += sum;
    }
  }
};

template <class S, class D>
void product(const at::Tensor& x, const at::Tensor& weights, const int32_t* pointers, const int32_t* index,
             const int32_t* slots, int64_t rows, at::Tensor& y) {
  const int64_t tokens = x.size(0), width = x.size(1), count = weights.size(0);
  const Tile<S, D> of;
  const S* source = x.const_data_ptr<S>();
  const S* given = weights.const_data_ptr<S>();
  S* target = y.mutable_data_ptr<S>();
  const auto ordered = scratch<D>(count);
  at::parallel_for(0, count, 65536, [&](int64_t begin, int64_t end) {
    for (int64_t j = begin; j < end; ++j) ordered[j] = D(value_of(given[slots[j]]));
  });
  // 64 tokens of many features would not stay in the second-level cache.
  const int64_t threads = at::get_num_threads();
  const bool narrow = width * 64 * int64_t(sizeof(D)) > 512 * 1024 || tokens <= 32 * threads;
  const int64_t tile = narrow ? 32 : 64, tiles = (tokens + tile - 1) / tile;
  const int64_t groups = (rows + kGroup - 1) / kGroup;
  const int64_t parts = std::min<int64_t>(groups, (threads + tiles - 1) / tiles);
  at::parallel_for(0, tiles * parts, 1, [&](int64_t begin, int64_t end) {
    const auto panel = scratch<D>(width * tile);
    const auto sums = scratch<float>(kGroup * tile);
    int64_t held = -1;
    for (int64_t item = begin; item < end; ++item) {
      const int64_t first = item / parts * tile, here = std::min(tile, tokens - first), part = item % parts;
      if (item / parts != held) of.fill(source, x.stride(0), first, first + here, 0, width, tile, panel.get());
      held = item / parts;
      for (int64_t group = part * groups / parts; group < (part + 1) * groups / parts; ++group) {
        const int64_t valid = std::min(kGroup, rows - group * kGroup);
        for (int64_t i = 0; i < valid; ++i) {
          const int64_t at = pointers[group * kGroup + i], many = pointers[group * kGroup + i + 1] - at;
          of.gather(panel.get(), index + at, ordered.get() + at, many, tile, sums.get() + i * tile);
        }
        of.back(sums.get(), tile, here, target + first * rows + group * kGroup, rows, valid);
      }
    }
  });
}

template <class S, class D>
void gradient(const at::Tensor& dy, const at::Tensor& x, const int32_t* pointers, const int32_t* index,
              const int32_t* slots, at::Tensor& dw) {
  const int64_t tokens = x.size(0), width = x.size(1), rows = dy.size(1);
  const int64_t tile = 128, tiles = (tokens + tile - 1) / tile;
  const Tile<S, D> of;
  const S* source = x.const_data_ptr<S>();
  const S* slopes = dy.const_data_ptr<S>();
  float* target = dw.mutable_data_ptr<float>();
  const auto sums = scratch<float>(dw.size(0));  // by row, as they are added up
  const auto panel = scratch<D>(tiles * width * tile);
  at::parallel_for(0, tiles, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      of.fill(source, x.stride(0), i * tile, std::min(tokens, (i + 1) * tile), 0, width, tile,
              panel.get() + i * width * tile);
  });
  constexpr int64_t wide = 4 * kGroup;  // output features turned together: whole cache lines and their neighbours of dy
  at::parallel_for(0, rows, kGroup, [&](int64_t begin, int64_t end) {
    const auto left = scratch<D>(wide * tile);
    std::fill(sums.get() + pointers[begin], sums.get() + pointers[end], 0.f);
    for (int64_t i = 0; i < tiles; ++i)
      for (int64_t n = begin; n < end; n += wide) {
        const int64_t last = std::min(n + wide, end);
        of.fill(slopes, dy.stride(0), i * tile, std::min(tokens, (i + 1) * tile), n, last, tile, left.get());
        for (int64_t o = n; o < last; ++o)
          of.scatter(left.get() + (o - n) * tile, panel.get() + i * width * tile, index + pointers[o],
                     pointers[o + 1] - pointers[o], tile, sums.get() + pointers[o]);
      }
    for (int64_t j = pointers[begin]; j < pointers[end]; ++j) target[slots[j]] = sums[j];
  });
}

at::Tensor csr_product(const at::Tensor& x, const at::Tensor& weights, const at::Tensor& pointers,
                       const at::Tensor& index, const at::Tensor& slots, int64_t out_features) {
  TORCH_CHECK(x.dim() == 2 && unit_stride(x) && weights.is_contiguous() && x.dtype() == weights.dtype());
  at::Tensor y = at::empty({x.size(0), out_features}, x.options());
  if (y.numel() == 0) return y;
  const auto run = x.scalar_type() == at::kFloat ? product<float, float>
                   : in_pairs(x)                 ? product<at::BFloat16, at::BFloat16>
                                                 : product<at::BFloat16, float>;
  run(x, weights, pointers.const_data_ptr<int32_t>(), index.const_data_ptr<int32_t>(),
      slots.const_data_ptr<int32_t>(), out_features, y);
  return y;
}

at::Tensor csr_gradient(const at::Tensor& dy, const at::Tensor& x, const at::Tensor& pointers,
                        const at::Tensor& index, const at::Tensor& slots) {
  TORCH_CHECK(unit_stride(x) && unit_stride(dy) && x.size(0) == dy.size(0) && x.dtype() == dy.dtype());
  const auto options = x.options().dtype(at::kFloat);
  if (x.size(0) == 0 || index.size(0) == 0) return at::zeros({index.size(0)}, options);
  at::Tensor dw = at::empty({index.size(0)}, options);
  const auto run = x.scalar_type() == at::kFloat ? gradient<float, float>
                   : in_pairs(x)                 ? gradient<at::BFloat16, at::BFloat16>
                                                 : gradient<at::BFloat16, float>;
  run(dy, x, pointers.const_data_ptr<int32_t>(), index.const_data_ptr<int32_t>(), slots.const_data_ptr<int32_t>(), dw);
  return dw;
}

}  // namespace
}  // namespace nt

TORCH_LIBRARY_IMPL(nt_sparse, CPU, library) {
  library.impl("csr_product", nt::csr_product);
  library.impl("csr_gradient", nt::csr_gradient);
}
