// Products over active blocks only, for constant or any other number of blocks per row.
//
//   block_product   y[t, o] = sum over the blocks j of output row o of x[t, index[j]] · block[slots[j]]: the forward pass,
//                   and with the lists of the transposed index the gradient of the input
//   block_gradient  dW[j] = dY[:, rows[j]]^T · X[:, columns[j]]
//
// Tokens are copied in tiles that stay in the second-level cache, one block column after another: with rows of 4 KiB, as
// 1024 floats have, reading them in place would fall into the same few sets of the first-level cache.
#include <ATen/native/CPUBlas.h>
#include <torch/library.h>

#include "words.h"

namespace nt {
namespace {

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

const float* floats(const uint32_t* words) { return reinterpret_cast<const float*>(words); }

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

// Blocks [count, b, b] as a product reads them: [words along the sum][b outputs].
template <class S, bool PAIR>
void pack_block(const S* from, int64_t block, bool transposed, uint32_t* to) {
  if (!transposed) return copy_columns<S, PAIR>(from, block, 0, block, block, block, to);
  const int64_t words = PAIR ? block / 2 : block;
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

template <class S, bool PAIR>
void product(const at::Tensor& x, const at::Tensor& blocks, const int32_t* pointers, const int32_t* index,
             const int32_t* slots, int64_t rows, bool transposed, at::Tensor& y) {
  const int64_t tokens = x.size(0), width = x.size(1), count = blocks.size(0), block = blocks.size(1);
  const int64_t words = PAIR ? block / 2 : block, in_blocks = (width + block - 1) / block;
  const S* source = x.const_data_ptr<S>();
  const S* weights = blocks.const_data_ptr<S>();
  S* target = y.mutable_data_ptr<S>();
  // In the order of the lists, so that the kernels read them one after another.
  const auto ready = scratch<uint32_t>(count * words * block);
  at::parallel_for(0, count, 1 + 32768 / (block * block), [&](int64_t begin, int64_t end) {
    for (int64_t j = begin; j < end; ++j)
      pack_block<S, PAIR>(weights + slots[j] * block * block, block, transposed, ready.get() + j * words * block);
  });
  const int64_t step = 24, fitting = kTileBytes / (in_blocks * words * 4) / step * step;
  const int64_t share = round_up((tokens + at::get_num_threads() - 1) / at::get_num_threads(), step);
  const int64_t tile = std::max(step, std::min({fitting, share, int64_t(96)}));
  const int64_t tiles = (tokens + tile - 1) / tile;
  // Few tokens: several threads take one tile and share its output rows.
  const int64_t parts = std::min<int64_t>(rows, (at::get_num_threads() + tiles - 1) / tiles);
  const Row<S> kernel = row_kernel<S, PAIR>(block);
  at::parallel_for(0, tiles * parts, 1, [&](int64_t begin, int64_t end) {
    const auto panel = scratch<uint32_t>(in_blocks * tile * words);
    const auto sum = scratch<float>(kernel ? 0 : tile * block);
    int64_t held = -1;
    for (int64_t item = begin; item < end; ++item) {
      const int64_t first = item / parts * tile, here = std::min(tile, tokens - first);
      if (item / parts != held)
        copy_rows<S, PAIR>(source, x.stride(0), first, first + here, round_up(here, step), width, block, tile,
                           panel.get());
      held = item / parts;
      for (int64_t o = item % parts * rows / parts; o < (item % parts + 1) * rows / parts; ++o) {
        const int64_t at = pointers[o], many = pointers[o + 1] - at, valid = std::min(block, y.size(1) - o * block);
        const uint32_t* mine = ready.get() + at * words * block;
        S* out = target + first * y.size(1) + o * block;
        if (kernel)
          kernel(panel.get(), tile, here, mine, index + at, many, out, y.size(1), valid);
        else
          brgemm_row<S>(panel.get(), tile, here, mine, index + at, many, out, y.size(1), block, valid, sum.get());
      }
    }
  });
}

template <class S, bool PAIR>
void gradient(const at::Tensor& dy, const at::Tensor& x, const int32_t* rows, const int32_t* columns, at::Tensor& dw) {
  const int64_t tokens = x.size(0), width = x.size(1), outs = dy.size(1), count = dw.size(0), block = dw.size(1);
  const int64_t in_blocks = (width + block - 1) / block, depth = PAIR ? (tokens + 1) / 2 : tokens;
  // Both operands of a chunk stay in the first-level cache.
  const int64_t chunk = std::max<int64_t>(64, 4096 / block), per_word = PAIR ? 2 : 1;
  const int64_t chunks = (depth + chunk - 1) / chunk;
  const Gradient kernel = gradient_kernel<PAIR>(block);
  const auto panel = scratch<uint32_t>(in_blocks * depth * block);
  const S* source = x.const_data_ptr<S>();
  const S* slopes = dy.const_data_ptr<S>();
  float* target = dw.mutable_data_ptr<float>();
  at::parallel_for(0, chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin * chunk; k < std::min(end * chunk, depth); k += 8)
      for (int64_t c = 0; c < in_blocks; ++c)
        copy_columns<S, PAIR>(source + c * block, x.stride(0), k * per_word, std::min((k + 8) * per_word, tokens),
                              std::min(block, width - c * block), block, panel.get() + (c * depth + k) * block);
  });
  // Several block rows together: stretches of dY that the processor fetches ahead.
  const int64_t together = std::max<int64_t>(1, 256 / block);
  at::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    const auto left = scratch<uint32_t>(together * chunk * block), turned = scratch<uint32_t>(kernel ? 0 : chunk * block);
    for (int64_t j = begin, next; j < end; j = next) {
      const int64_t first = rows[j] / together * together;
      for (next = j; next < end && rows[next] >= first && rows[next] < first + together;) ++next;
      for (int64_t k = 0; k < depth; k += chunk) {
        const int64_t here = std::min(chunk, depth - k);
        for (int64_t t = k; t < k + here; t += 8)
          for (int64_t r = 0; r < together && (first + r) * block < outs; ++r)
            copy_columns<S, PAIR>(slopes + (first + r) * block, dy.stride(0), t * per_word,
                                  std::min(std::min(t + 8, k + here) * per_word, tokens),
                                  std::min(block, outs - (first + r) * block), block,
                                  left.get() + (r * chunk + t - k) * block);
        for (int64_t one = j; one < next; ++one) {
          const uint32_t* of_row = left.get() + (rows[one] - first) * chunk * block;
          const uint32_t* right = panel.get() + (columns[one] * depth + k) * block;
          float* out = target + one * block * block;
          if (kernel) {
            kernel(of_row, right, here, out);
          } else {
            for (int64_t i = 0; i < here; ++i)
              for (int64_t o = 0; o < block; ++o) turned[o * here + i] = of_row[i * block + o];
            at::native::cpublas::brgemm(block, block, here, here, block, block, true, floats(turned.get()),
                                        floats(right), out, false);
          }
        }
      }
    }
  });
}

at::Tensor block_product(const at::Tensor& x, const at::Tensor& blocks, const at::Tensor& pointers,
                         const at::Tensor& index, const at::Tensor& slots, int64_t out_features, bool transposed) {
  TORCH_CHECK(x.dim() == 2 && unit_stride(x) && blocks.is_contiguous() && x.dtype() == blocks.dtype());
  at::Tensor y = at::empty({x.size(0), out_features}, x.options());
  if (y.numel() == 0) return y;
  const auto run = x.scalar_type() == at::kFloat ? product<float, false>
                   : in_pairs(x)                 ? product<at::BFloat16, true>
                                                 : product<at::BFloat16, false>;
  run(x, blocks, pointers.const_data_ptr<int32_t>(), index.const_data_ptr<int32_t>(), slots.const_data_ptr<int32_t>(),
      pointers.size(0) - 1, transposed, y);
  return y;
}

at::Tensor block_gradient(const at::Tensor& dy, const at::Tensor& x, const at::Tensor& rows, const at::Tensor& columns,
                          int64_t block) {
  TORCH_CHECK(unit_stride(x) && unit_stride(dy) && x.size(0) == dy.size(0) && x.dtype() == dy.dtype());
  at::Tensor dw = at::zeros({rows.size(0), block, block}, x.options().dtype(at::kFloat));
  if (x.size(0) == 0) return dw;
  const auto run = x.scalar_type() == at::kFloat ? gradient<float, false>
                   : in_pairs(x)                 ? gradient<at::BFloat16, true>
                                                 : gradient<at::BFloat16, false>;
  run(dy, x, rows.const_data_ptr<int32_t>(), columns.const_data_ptr<int32_t>(), dw);
  return dw;
}

// Limits the instructions used to `limit` (0 portable, 1 AVX-512, 2 also its bfloat16), and returns what is used now.
int64_t limit_level(int64_t limit) {
  level_limit = int(limit);
  return level();
}

}  // namespace
}  // namespace nt

TORCH_LIBRARY(nt_sparse, library) {
  library.def("block_product(Tensor x, Tensor blocks, Tensor pointers, Tensor index, Tensor slots, int out_features, "
              "bool transposed) -> Tensor");
  library.def("block_gradient(Tensor dy, Tensor x, Tensor rows, Tensor columns, int block) -> Tensor");
  library.def("csr_product(Tensor x, Tensor weights, Tensor pointers, Tensor index, Tensor slots, int out_features)"
              " -> Tensor");
  library.def("csr_gradient(Tensor dy, Tensor x, Tensor pointers, Tensor index, Tensor slots) -> Tensor");
  library.def("limit_level(int limit) -> int", nt::limit_level);
}

TORCH_LIBRARY_IMPL(nt_sparse, CPU, library) {
  library.impl("block_product", nt::block_product);
  library.impl("block_gradient", nt::block_gradient);
}
