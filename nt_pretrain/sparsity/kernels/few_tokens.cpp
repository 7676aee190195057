// Products for few tokens (at most 16), as decoding has them. They are bound by the memory that the weights come from,
// so weights are read once, as they are stored, block after block, and nothing of them is copied.
//
//   block_few   y[t, o] = sum over the blocks j of output row o of x[t, index[j]] · block[slots[j]], as block_product
//   csr_few     y = x · W^T, or y = x · W, for W [rows, columns] with single weights
//
// Sums are float; bfloat16 weights are widened while they are read.
#include <ATen/Functions.h>
#include <torch/library.h>

#include "words.h"

namespace nt {
namespace {

constexpr int64_t kFew = 16, kRows = 16;

float value_of(float x) { return x; }
float value_of(at::BFloat16 x) { return float(x); }

// x as floats [padded tokens][padded width], zeros in the padding.
std::unique_ptr<float[], Release> padded_copy(const at::Tensor& x, int64_t tokens, int64_t width) {
  auto copy = scratch<float>(tokens * width);
  const float* from = x.const_data_ptr<float>();
  for (int64_t t = 0; t < tokens; ++t) {
    const int64_t valid = t < x.size(0) ? x.size(1) : 0;
    if (valid) std::memcpy(copy.get() + t * width, from + t * x.stride(0), valid * sizeof(float));
    std::fill(copy.get() + t * width + valid, copy.get() + (t + 1) * width, 0.f);
  }
  return copy;
}

#if NT_AVX512

AVX512_INLINE __m512 wide(const float* from) { return _mm512_loadu_ps(from); }
AVX512_INLINE __m512 wide(const at::BFloat16* from) {
  const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

// Sums along a block's rows. sums[16 / T rows at a time][row, token] += block · x; T tokens at once, of `tokens`.
template <class W, int T>
AVX512 void along_rows(const W* block, const W* next, int64_t b, const float* x, int64_t stride, int64_t tokens,
                       float* sums) {
  constexpr int R = 16 / T;
  for (int64_t o = 0; o < b; o += kRows) {
    // The rows are walked in steps of a vector, which the processor does not foresee.
    const W* later = o + kRows < b ? block + (o + kRows) * b : next;
    for (int64_t i = 0; i < kRows * b; i += 64 / sizeof(W)) __builtin_prefetch(later + i);
    for (int64_t t = 0; t < tokens; t += T)
      for (int64_t r = o; r < o + kRows; r += R) {
        __m512 sum[16];
#pragma GCC unroll 16
        for (int i = 0; i < 16; ++i) sum[i] = _mm512_setzero_ps();
        for (int64_t k = 0; k < b; k += 16) {
          __m512 right[T];
#pragma GCC unroll 4
          for (int i = 0; i < T; ++i) right[i] = _mm512_loadu_ps(x + (t + i) * stride + k);
#pragma GCC unroll 16
          for (int m = 0; m < R; ++m) {
            const __m512 left = wide(block + (r + m) * b + k);
#pragma GCC unroll 4
            for (int i = 0; i < T; ++i) sum[m * T + i] = _mm512_fmadd_ps(left, right[i], sum[m * T + i]);
          }
        }
        float* out = sums + t * b + r * T;
        _mm512_storeu_ps(out, _mm512_add_ps(_mm512_loadu_ps(out), sums_of(sum)));
      }
  }
}

// Sums down a block's columns: sums [tokens][b] += x · block.
template <class W, int T, int NV>
AVX512 void down_columns(const W* block, const W* next, int64_t b, const float* x, int64_t stride, int64_t tokens,
                         float* sums) {
  // The next block may lie anywhere; within one the processor foresees what comes.
  const int64_t beginning = std::min<int64_t>(b * b, 4096 / sizeof(W));
  for (int64_t i = 0; i < beginning; i += 64 / sizeof(W)) __builtin_prefetch(next + i, 0, 2);
  for (int64_t n = 0; n < b; n += 16 * NV)
    for (int64_t t = 0; t < tokens; t += T) {
      __m512 sum[T][NV];
#pragma GCC unroll 4
      for (int i = 0; i < T; ++i)
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) sum[i][v] = _mm512_loadu_ps(sums + (t + i) * b + n + 16 * v);
      for (int64_t k = 0; k < b; ++k) {
        __m512 right[NV];
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) right[v] = wide(block + k * b + n + 16 * v);
#pragma GCC unroll 4
        for (int i = 0; i < T; ++i) {
          const __m512 left = _mm512_set1_ps(x[(t + i) * stride + k]);
#pragma GCC unroll 4
          for (int v = 0; v < NV; ++v) sum[i][v] = _mm512_fmadd_ps(left, right[v], sum[i][v]);
        }
      }
#pragma GCC unroll 4
      for (int i = 0; i < T; ++i)
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) _mm512_storeu_ps(sums + (t + i) * b + n + 16 * v, sum[i][v]);
    }
}

#endif

// The same for any processor, one token at a time.
template <class W>
void along_rows_plain(const W* block, const W*, int64_t b, const float* x, int64_t stride, int64_t tokens,
                      float* sums) {
  for (int64_t o = 0; o < b; ++o)
    for (int64_t t = 0; t < tokens; ++t) {
      float sum = 0;
      for (int64_t k = 0; k < b; ++k) sum += value_of(block[o * b + k]) * x[t * stride + k];
      sums[t * b + o] += sum;
    }
}

template <class W>
void down_columns_plain(const W* block, const W*, int64_t b, const float* x, int64_t stride, int64_t tokens,
                        float* sums) {
  for (int64_t k = 0; k < b; ++k)
    for (int64_t t = 0; t < tokens; ++t)
      for (int64_t n = 0; n < b; ++n) sums[t * b + n] += x[t * stride + k] * value_of(block[k * b + n]);
}

template <class W>
using Part = void (*)(const W*, const W*, int64_t, const float*, int64_t, int64_t, float*);

#if NT_AVX512
template <class W, int NV>
Part<W> down(int64_t together) {
  return together == 1 ? down_columns<W, 1, NV> : together == 2 ? down_columns<W, 2, NV> : down_columns<W, 4, NV>;
}
#endif

// The function of one block; `together` tokens lie side by side in its sums.
template <class W>
Part<W> part_of(int64_t b, int64_t together, bool along) {
#if NT_AVX512
  if (level() > kPortable) {
    if (along) return together == 1 ? along_rows<W, 1> : together == 2 ? along_rows<W, 2> : along_rows<W, 4>;
    return b == 16 ? down<W, 1>(together) : b == 32 ? down<W, 2>(together) : down<W, 4>(together);
  }
#endif
  return along ? along_rows_plain<W> : down_columns_plain<W>;
}

template <class W>
void blocks_few(const at::Tensor& x, const at::Tensor& blocks, const int32_t* pointers, const int32_t* index,
                const int32_t* slots, int64_t rows, bool along, at::Tensor& y) {
  const int64_t b = blocks.size(1), stride = round_up(x.size(1), b), outputs = y.size(1);
  const int64_t together = x.size(0) > 2 ? 4 : x.size(0), tokens = round_up(x.size(0), together);
  // Sums of along_rows hold `together` tokens of one output side by side.
  const int64_t side = along && level() > kPortable ? together : 1;
  const auto source = padded_copy(x, tokens, stride);
  const W* weights = blocks.const_data_ptr<W>();
  float* target = y.mutable_data_ptr<float>();
  const int64_t last = blocks.size(0) - 1;
  const Part<W> part = part_of<W>(b, together, along);
  const int64_t grain = std::max<int64_t>(1, 65536 * rows / std::max<int64_t>(1, blocks.numel()));
  at::parallel_for(0, rows, grain, [&](int64_t begin, int64_t end) {
    const auto sums = scratch<float>(tokens * b);
    for (int64_t o = begin; o < end; ++o) {
      std::fill_n(sums.get(), tokens * b, 0.f);
      for (int64_t j = pointers[o]; j < pointers[o + 1]; ++j)
        part(weights + slots[j] * b * b, weights + slots[std::min<int64_t>(j + 1, last)] * b * b, b,
             source.get() + index[j] * b, stride, tokens, sums.get());
      const int64_t valid = std::min(b, outputs - o * b);
      for (int64_t t = 0; t < x.size(0); ++t) {
        const float* from = sums.get() + t / side * side * b + t % side;
        for (int64_t i = 0; i < valid; ++i) target[t * outputs + o * b + i] = from[i * side];
      }
    }
  });
}

// `L` tokens side by side.
template <int L>
struct Lanes {
  typedef float Type __attribute__((vector_size(4 * L)));
};
template <>
struct Lanes<1> {
  typedef float Type;
};

// x [tokens][width] to out [width][L].
template <int L>
void turn_tokens(const at::Tensor& x, float* out) {
  const float* from = x.const_data_ptr<float>();
  for (int64_t k = 0; k < x.size(1); ++k)
    for (int64_t t = 0; t < L; ++t) out[k * L + t] = t < x.size(0) ? from[t * x.stride(0) + k] : 0.f;
}

template <int L, class W, class I>
struct Single {
  using V = typename Lanes<L>::Type;

  // One output: the sum over its weights of x [inputs][L].
  __attribute__((always_inline)) static inline void gather(const W* weights, const I* index, int64_t count,
                                                           const float* x, float* y) {
    const V* inputs = reinterpret_cast<const V*>(x);
    V sum[4] = {};
    int64_t j = 0;
    for (; j + 4 <= count; j += 4)
#pragma GCC unroll 4
      for (int u = 0; u < 4; ++u) sum[u] += value_of(weights[j + u]) * inputs[index[j + u]];
    for (; j < count; ++j) sum[0] += value_of(weights[j]) * inputs[index[j]];
    *reinterpret_cast<V*>(y) = (sum[0] + sum[1]) + (sum[2] + sum[3]);
  }

  // One input: its share of all outputs y [outputs][L].
  __attribute__((always_inline)) static inline void scatter(const W* weights, const I* index, int64_t count,
                                                            const float* x, float* y) {
    const V input = *reinterpret_cast<const V*>(x);
    V* outputs = reinterpret_cast<V*>(y);
#pragma GCC unroll 4
    for (int64_t j = 0; j < count; ++j) outputs[index[j]] += value_of(weights[j]) * input;
  }

  __attribute__((always_inline)) static inline void all(bool turned, const W* weights, const I* index,
                                                        const int32_t* pointers, int64_t begin, int64_t end,
                                                        const float* x, float* y) {
    for (int64_t o = begin; o < end; ++o) {
      const int64_t at = pointers[o], many = pointers[o + 1] - at;
      if (turned)
        scatter(weights + at, index + at, many, x + o * L, y);
      else
        gather(weights + at, index + at, many, x, y + o * L);
    }
  }

  static void plain(bool turned, const W* weights, const I* index, const int32_t* pointers, int64_t begin, int64_t end,
                    const float* x, float* y) {
    all(turned, weights, index, pointers, begin, end, x, y);
  }

#if NT_AVX512
  AVX512 static void fast(bool turned, const W* weights, const I* index, const int32_t* pointers, int64_t begin,
                          int64_t end, const float* x, float* y) {
    all(turned, weights, index, pointers, begin, end, x, y);
  }
#endif
};

template <int L, class W, class I>
void singles_few(const at::Tensor& x, const at::Tensor& weights, const at::Tensor& pointers, const at::Tensor& index,
                 bool turned, at::Tensor& y) {
  const int64_t rows = pointers.size(0) - 1, outputs = y.size(1);
  const auto source = scratch<float>(x.size(1) * L);
  turn_tokens<L>(x, source.get());
  auto run = Single<L, W, I>::plain;
#if NT_AVX512
  if (level() > kPortable) run = Single<L, W, I>::fast;
#endif
  // Turned, every thread adds up all outputs for its inputs.
  const int64_t parts = std::max<int64_t>(1, std::min<int64_t>(at::get_num_threads(), weights.numel() / 16384));
  const int64_t sets = turned ? parts : 1;
  const auto sums = scratch<float>(sets * outputs * L);
  at::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) {
      float* own = sums.get() + (turned ? part * outputs * L : 0);
      if (turned) std::fill_n(own, outputs * L, 0.f);
      run(turned, weights.const_data_ptr<W>(), index.const_data_ptr<I>(), pointers.const_data_ptr<int32_t>(),
          part * rows / parts, (part + 1) * rows / parts, source.get(), own);
    }
  });
  float* target = y.mutable_data_ptr<float>();
  for (int64_t part = 1; part < sets; ++part)
    for (int64_t i = 0; i < outputs * L; ++i) sums[i] += sums[part * outputs * L + i];
  for (int64_t t = 0; t < x.size(0); ++t)
    for (int64_t o = 0; o < outputs; ++o) target[t * outputs + o] = sums[o * L + t];
}

template <class W, class I>
auto singles_for(int64_t tokens) {
  return tokens == 1 ? singles_few<1, W, I>
         : tokens <= 4 ? singles_few<4, W, I>
         : tokens <= 8 ? singles_few<8, W, I>
                       : singles_few<16, W, I>;
}

at::Tensor block_few(const at::Tensor& x, const at::Tensor& blocks, const at::Tensor& pointers, const at::Tensor& index,
                     const at::Tensor& slots, int64_t out_features, bool along) {
  TORCH_CHECK(x.dim() == 2 && x.size(0) <= kFew && unit_stride(x) && blocks.is_contiguous());
  const at::Tensor floats = x.to(at::kFloat);
  at::Tensor y = at::empty({x.size(0), out_features}, floats.options());
  if (y.numel() == 0) return y.to(x.scalar_type());
  const auto run = blocks.scalar_type() == at::kFloat ? blocks_few<float> : blocks_few<at::BFloat16>;
  run(floats, blocks, pointers.const_data_ptr<int32_t>(), index.const_data_ptr<int32_t>(),
      slots.const_data_ptr<int32_t>(), pointers.size(0) - 1, along, y);
  return y.to(x.scalar_type());
}

// `index` int32 or, for at most 65536 columns, uint16: with half the index a third less is read.
at::Tensor csr_few(const at::Tensor& x, const at::Tensor& weights, const at::Tensor& pointers, const at::Tensor& index,
                   int64_t out_features, bool turned) {
  TORCH_CHECK(x.dim() == 2 && x.size(0) <= kFew && unit_stride(x) && weights.is_contiguous());
  const at::Tensor floats = x.to(at::kFloat);
  at::Tensor y = at::empty({x.size(0), out_features}, floats.options());
  if (y.numel() == 0) return y.to(x.scalar_type());
  const bool is_short = index.scalar_type() == at::kUInt16, is_float = weights.scalar_type() == at::kFloat;
  const int64_t tokens = x.size(0);
  const auto run = is_float ? (is_short ? singles_for<float, uint16_t>(tokens) : singles_for<float, int32_t>(tokens))
                   : is_short ? singles_for<at::BFloat16, uint16_t>(tokens)
                              : singles_for<at::BFloat16, int32_t>(tokens);
  run(floats, weights, pointers, index, turned, y);
  return y.to(x.scalar_type());
}

}  // namespace
}  // namespace nt

TORCH_LIBRARY_FRAGMENT(nt_sparse, library) {
  library.def("block_few(Tensor x, Tensor blocks, Tensor pointers, Tensor index, Tensor slots, int out_features, "
              "bool along) -> Tensor");
  library.def("csr_few(Tensor x, Tensor weights, Tensor pointers, Tensor index, int out_features, bool turned)"
              " -> Tensor");
}

TORCH_LIBRARY_IMPL(nt_sparse, CPU, library) {
  library.impl("block_few", nt::block_few);
  library.impl("csr_few", nt::csr_few);
}
