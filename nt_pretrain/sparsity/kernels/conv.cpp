// Convolutions over active blocks as products: a block multiplies the pixels that its tap of the kernel sees.
//
//   conv_product    y[p, o] = sum over the blocks j of output row o of x[source(tap(j), p), column(j)] · block[slots[j]]: the
//                   forward pass, and with the turned lists the gradient of the input
//   conv_gradient   dW[j] = sum over the pixels p of dY[p, rows[j]]^T · X[source(tap(j), p), column(j)]
//
// Pictures are matrices [pictures * pixels, channels]. What a tap sees is read from tables of one picture's pixels, so
// strides and padding are none of the kernels' business. Pixels are gathered for a tile at a time, only the (tap, block of
// channels) that some block reads: nothing as large as the unfolded input is ever made.
#include <torch/library.h>

#include <array>
#include <vector>

#include "tiles.h"

namespace nt {
namespace {

constexpr int64_t kGradientChunk = 4096, kGroupBytes = 512 * 1024;

// Pixels of one class are summed over the same taps. A forward pass has one class; the gradient of the input has
// stride * stride, since a pixel was seen by those taps only whose offset fits its remainder.
struct Taps {
  const int32_t* sources;  // of each tap, for each pixel of its class: the pixel read, or -1 for padding
  const int32_t* starts;   // [taps]: where a tap's run of sources begins
  const int32_t* targets;  // of each class: its pixels
  const int32_t* classes;  // [classes + 1]: where a class's run of targets begins
};

struct Lists {
  const int32_t* pointers;  // [classes * rows + 1]
  const int32_t* index;     // [blocks], into the class's run of `used`
  const int32_t* slots;     // [blocks]
  const int32_t* used;      // tap * input blocks + input block, ascending within a class
  const int32_t* starts;    // [classes + 1]: where a class's run of `used` begins
};

// The pixel tables in terms of a batch: rows of x, or -1.
struct Batch {
  int64_t before, inside;  // pixels of a picture read from, and of the class in a picture

  // What one tap reads for the tokens [first, first + count).
  void rows(const int32_t* sources, int64_t first, int64_t count, int64_t* out) const {
    int64_t pixel = first % inside, base = first / inside * before;
    for (int64_t t = 0; t < count; ++t) {
      out[t] = sources[pixel] < 0 ? -1 : base + sources[pixel];
      if (++pixel == inside) pixel = 0, base += before;
    }
  }
};

#if NT_AVX512

// As copy_row of words, inlined into the loop over pixels.
template <int V>
AVX512_INLINE void copy_vectors(const void* from, uint32_t* out) {
#pragma GCC unroll 8
  for (int v = 0; v < V; ++v)
    _mm512_storeu_si512(out + 16 * v, from ? _mm512_loadu_si512(static_cast<const uint32_t*>(from) + 16 * v)
                                           : _mm512_setzero_si512());
}

template <class S, int V>
AVX512 void gather_whole(const S* x, int64_t stride, const int64_t* rows, int64_t count, uint32_t* out) {
  for (int64_t t = 0; t < count; ++t) copy_vectors<V>(rows[t] < 0 ? nullptr : x + rows[t] * stride, out + t * 16 * V);
}

#endif

// Channels [0, valid) of the given rows to out [count][words of a block]; a row of -1 becomes zeros.
template <class S, bool PAIR>
void gather(const S* x, int64_t stride, const int64_t* rows, int64_t count, int64_t valid, int64_t block, uint32_t* out) {
  const int64_t words = PAIR ? block / 2 : block;
#if NT_AVX512
  if (valid == block && level() > kPortable && (PAIR || sizeof(S) == 4)) {
    if (words == 16) return gather_whole<S, 1>(x, stride, rows, count, out);
    if (words == 32) return gather_whole<S, 2>(x, stride, rows, count, out);
    if (words == 64) return gather_whole<S, 4>(x, stride, rows, count, out);
    if (words == 128) return gather_whole<S, 8>(x, stride, rows, count, out);
  }
#endif
  for (int64_t t = 0; t < count; ++t) {
    if (rows[t] < 0)
      std::memset(out + t * words, 0, words * 4);
    else
      copy_row<S, PAIR>(x + rows[t] * stride, valid, block, out + t * words);
  }
}

#if NT_AVX512

AVX512 inline void gather_pairs(const at::BFloat16* x, int64_t stride, const int64_t* rows, int64_t count, int64_t valid,
                                int64_t block, const at::BFloat16* zeros, uint32_t* out) {
  for (int64_t t = 0; t < count; t += 2, out += block) {
    const bool second = t + 1 < count && rows[t + 1] >= 0;
    join_rows(rows[t] < 0 ? zeros : x + rows[t] * stride, second ? x + rows[t + 1] * stride : nullptr, valid, block, out);
  }
}

#endif

// The same with the sum running down the rows: two rows make one row of pairs. `zeros`: a block of them.
template <class S, bool PAIR>
void gather_down(const S* x, int64_t stride, const int64_t* rows, int64_t count, int64_t valid, int64_t block,
                 const S* zeros, uint32_t* out) {
  if constexpr (!PAIR) return gather<S, false>(x, stride, rows, count, valid, block, out);
#if NT_AVX512
  if constexpr (PAIR) return gather_pairs(x, stride, rows, count, valid, block, zeros, out);
#endif
}

struct Tile {
  int64_t kind, first, count;
};

template <class S, bool PAIR>
void product(const at::Tensor& x, const at::Tensor& blocks, const Lists& lists, const Taps& taps, int64_t pictures,
             int64_t classes, int64_t rows, bool transposed, at::Tensor& y) {
  const int64_t width = x.size(1), count = blocks.size(0), block = blocks.size(1), wide = y.size(1);
  const int64_t words = PAIR ? block / 2 : block, in_blocks = (width + block - 1) / block;
  const int64_t threads = at::get_num_threads(), before = x.size(0) / pictures, after = y.size(0) / pictures;
  const S* weights = blocks.const_data_ptr<S>();
  S* target = y.mutable_data_ptr<S>();
  const auto ready = scratch<uint32_t>(count * words * block);
  at::parallel_for(0, count, 1 + 32768 / (block * block), [&](int64_t begin, int64_t end) {
    for (int64_t j = begin; j < end; ++j)
      pack_block<S, PAIR>(weights + lists.slots[j] * block * block, block, transposed, ready.get() + j * words * block);
  });
  const int64_t step = 24;
  int64_t panel_words = 1, largest = step;
  std::vector<Tile> tiles;
  for (int64_t kind = 0; kind < classes; ++kind) {
    const int64_t used = lists.starts[kind + 1] - lists.starts[kind];
    const int64_t tokens = pictures * (taps.classes[kind + 1] - taps.classes[kind]);
    if (used == 0 || tokens == 0) continue;  // y is zero there already
    const int64_t fitting = kTileBytes / (used * words * 4) / step * step;
    const int64_t share = round_up((tokens + threads - 1) / threads, step);
    const int64_t tile = std::max(step, std::min({fitting, share, int64_t(96)}));
    panel_words = std::max(panel_words, used * tile * words), largest = std::max(largest, tile);
    for (int64_t first = 0; first < tokens; first += tile) tiles.push_back({kind, first, std::min(tile, tokens - first)});
  }
  const int64_t parts = std::min<int64_t>(rows, (threads + tiles.size() - 1) / std::max<int64_t>(tiles.size(), 1));
  const bool direct = classes == 1;
  const Row<S> kernel = row_kernel<S, PAIR>(block);
  at::parallel_for(0, tiles.size() * parts, 1, [&](int64_t begin, int64_t end) {
    const auto panel = scratch<uint32_t>(panel_words);
    const auto sum = scratch<float>(kernel ? 0 : largest * block);
    const auto aside = scratch<S>(direct ? 0 : largest * block);
    std::vector<int64_t> from(round_up(largest, step));
    int64_t held = -1;
    for (int64_t item = begin; item < end; ++item) {
      const Tile& tile = tiles[item / parts];
      const int64_t padded = round_up(tile.count, step), base = tile.kind * rows;
      const Batch batch{before, taps.classes[tile.kind + 1] - taps.classes[tile.kind]};
      if (item / parts != held) {
        int64_t tap = -1;
        for (int64_t u = lists.starts[tile.kind]; u < lists.starts[tile.kind + 1]; ++u) {
          const int64_t column = lists.used[u] % in_blocks * block;
          if (lists.used[u] / in_blocks != tap) {
            tap = lists.used[u] / in_blocks;
            batch.rows(taps.sources + taps.starts[tap], tile.first, tile.count, from.data());
            std::fill(from.begin() + tile.count, from.begin() + padded, -1);
          }
          gather<S, PAIR>(x.const_data_ptr<S>() + column, x.stride(0), from.data(), padded,
                          std::min(block, width - column), block,
                          panel.get() + (u - lists.starts[tile.kind]) * padded * words);
        }
      }
      held = item / parts;
      for (int64_t o = item % parts * rows / parts; o < (item % parts + 1) * rows / parts; ++o) {
        const int64_t at = lists.pointers[base + o], many = lists.pointers[base + o + 1] - at;
        const int64_t valid = std::min(block, wide - o * block);
        const uint32_t* mine = ready.get() + at * words * block;
        S* out = direct ? target + tile.first * wide + o * block : aside.get();
        const int64_t stride = direct ? wide : block;
        if (kernel)
          kernel(panel.get(), padded, tile.count, mine, lists.index + at, many, out, stride, valid);
        else
          brgemm_row<S>(panel.get(), padded, tile.count, mine, lists.index + at, many, out, stride, block, valid,
                        sum.get());
        if (direct) continue;
        for (int64_t t = 0; t < tile.count; ++t) {
          const int64_t token = tile.first + t, pixel = taps.targets[taps.classes[tile.kind] + token % batch.inside];
          std::memcpy(target + (token / batch.inside * after + pixel) * wide + o * block, out + t * block,
                      valid * sizeof(S));
        }
      }
    }
  });
}

// The blocks come by column, so that what one tap sees is gathered once for all that read it.
template <class S, bool PAIR>
void gradient(const at::Tensor& dy, const at::Tensor& x, const int32_t* rows, const int32_t* columns,
              const int32_t* slots, const int32_t* sources, int64_t pictures, at::Tensor& dw) {
  const int64_t tokens = dy.size(0), outs = dy.size(1), width = x.size(1), count = dw.size(0), block = dw.size(1);
  const int64_t in_blocks = (width + block - 1) / block, out_blocks = (outs + block - 1) / block;
  const int64_t depth = PAIR ? (tokens + 1) / 2 : tokens, per_word = PAIR ? 2 : 1;
  const int64_t chunk = std::max<int64_t>(64, kGradientChunk / block);
  const Batch batch{x.size(0) / pictures, tokens / pictures};
  const Gradient kernel = gradient_kernel<PAIR>(block);
  const S* source = x.const_data_ptr<S>();
  const S* slopes = dy.const_data_ptr<S>();
  float* target = dw.mutable_data_ptr<float>();
  // Sums of one group stay in the second-level cache while the pixels go by.
  const int64_t fitting = std::max<int64_t>(1, kGroupBytes / (block * block * 4));
  const int64_t groups = std::max((count + fitting - 1) / fitting, std::min<int64_t>(count, at::get_num_threads()));
  at::parallel_for(0, groups, 1, [&](int64_t begin, int64_t end) {
    const auto left = scratch<uint32_t>(out_blocks * chunk * block), right = scratch<uint32_t>(chunk * block);
    const auto turned = scratch<uint32_t>(kernel ? 0 : chunk * block);
    const std::vector<S> zeros(block, S(0));
    std::vector<int64_t> from(chunk * per_word);
    for (int64_t group = begin; group < end; ++group) {
      const int64_t first = group * count / groups, last = (group + 1) * count / groups;
      for (int64_t k = 0; k < depth; k += chunk) {
        const int64_t here = std::min(chunk, depth - k), pixels = std::min(here * per_word, tokens - k * per_word);
        for (int64_t r = 0; r < out_blocks; ++r)
          copy_columns<S, PAIR>(slopes + r * block, dy.stride(0), k * per_word, k * per_word + pixels,
                                std::min(block, outs - r * block), block, left.get() + r * chunk * block);
        int64_t tap = -1;
        for (int64_t j = first; j < last; ++j) {
          const int64_t column = columns[j] % in_blocks * block;
          if (columns[j] / in_blocks != tap) {
            tap = columns[j] / in_blocks;
            batch.rows(sources + tap * batch.inside, k * per_word, pixels, from.data());
          }
          if (j == first || columns[j] != columns[j - 1])
            gather_down<S, PAIR>(source + column, x.stride(0), from.data(), pixels, std::min(block, width - column),
                                 block, zeros.data(), right.get());
          const uint32_t* of_row = left.get() + rows[j] * chunk * block;
          float* out = target + slots[j] * block * block;
          if (kernel) {
            kernel(of_row, right.get(), here, out);
          } else {
            for (int64_t i = 0; i < here; ++i)
              for (int64_t o = 0; o < block; ++o) turned[o * here + i] = of_row[i * block + o];
            at::native::cpublas::brgemm(block, block, here, here, block, block, true, floats(turned.get()),
                                        floats(right.get()), out, false);
          }
        }
      }
    }
  });
}

const int32_t* ints(const at::Tensor& tensor) { return tensor.const_data_ptr<int32_t>(); }

at::Tensor conv_product(const at::Tensor& x, const at::Tensor& blocks, at::TensorList lists, at::TensorList taps,
                        int64_t pictures, int64_t out_pixels, int64_t out_features, bool transposed) {
  TORCH_CHECK(x.dim() == 2 && unit_stride(x) && blocks.is_contiguous() && x.dtype() == blocks.dtype());
  TORCH_CHECK(lists.size() == 5 && taps.size() == 4);
  const Lists where{ints(lists[0]), ints(lists[1]), ints(lists[2]), ints(lists[3]), ints(lists[4])};
  const Taps seen{ints(taps[0]), ints(taps[1]), ints(taps[2]), ints(taps[3])};
  const int64_t classes = taps[3].size(0) - 1, rows = (lists[0].size(0) - 1) / classes;
  bool whole = true;
  for (int64_t kind = 0; kind < classes; ++kind) whole = whole && where.starts[kind + 1] > where.starts[kind];
  const std::array<int64_t, 2> shape{pictures * out_pixels, out_features};
  at::Tensor y = whole ? at::empty(shape, x.options()) : at::zeros(shape, x.options());
  if (y.numel() == 0) return y;
  const auto run = x.scalar_type() == at::kFloat ? product<float, false>
                   : in_pairs(x)                 ? product<at::BFloat16, true>
                                                 : product<at::BFloat16, false>;
  run(x, blocks, where, seen, pictures, classes, rows, transposed, y);
  return y;
}

at::Tensor conv_gradient(const at::Tensor& dy, const at::Tensor& x, const at::Tensor& rows, const at::Tensor& columns,
                         const at::Tensor& slots, const at::Tensor& sources, int64_t pictures, int64_t block) {
  TORCH_CHECK(unit_stride(x) && unit_stride(dy) && x.dtype() == dy.dtype());
  at::Tensor dw = at::zeros({rows.size(0), block, block}, x.options().dtype(at::kFloat));
  if (dy.size(0) == 0) return dw;
  const auto run = x.scalar_type() == at::kFloat ? gradient<float, false>
                   : in_pairs(x)                 ? gradient<at::BFloat16, true>
                                                 : gradient<at::BFloat16, false>;
  run(dy, x, ints(rows), ints(columns), ints(slots), ints(sources), pictures, dw);
  return dw;
}

}  // namespace
}  // namespace nt

TORCH_LIBRARY_FRAGMENT(nt_sparse, library) {
  library.def("conv_product(Tensor x, Tensor blocks, Tensor[] lists, Tensor[] taps, int pictures, int out_pixels, "
              "int out_features, bool transposed) -> Tensor");
  library.def("conv_gradient(Tensor dy, Tensor x, Tensor rows, Tensor columns, Tensor slots, Tensor sources, "
              "int pictures, int block) -> Tensor");
}

TORCH_LIBRARY_IMPL(nt_sparse, CPU, library) {
  library.impl("conv_product", nt::conv_product);
  library.impl("conv_gradient", nt::conv_gradient);
}
