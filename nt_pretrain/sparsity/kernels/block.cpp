// Products over active blocks only, for constant or any other number of blocks per row.
//
//   block_product   y[t, o] = sum over the blocks j of output row o of x[t, index[j]] · block[slots[j]]: the forward pass,
//                   and with the lists of the transposed index the gradient of the input
//   block_gradient  dW[j] = dY[:, rows[j]]^T · X[:, columns[j]]
#include <torch/library.h>

#include "tiles.h"

namespace nt {
namespace {

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
