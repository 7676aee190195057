"""Side-by-side timings: python launch/bench.py step [--model 9m] [--precision fp32] [--repeats 7]
                                        launch/bench.py update [--model 60m_sparse] [--precision fp32] [--repeats 7]
                                        launch/bench.py checkpoint [--model 60m_sparse] [--repeats 7]
                                        launch/bench.py layer [--convolutions] [--plain-torch] [--repeats 7]
                                        launch/bench.py decode [--precision bf16] [--repeats 7]
                                        launch/bench.py layer --device cuda [--tokens 8192 32768] [--repeats 7]
                                        launch/bench.py pictures [--family resnet50] [--precision bf16] [--batch 128]
                                        launch/bench.py images [--jpegs FOLDER] [--repeats 7]
                                        launch/bench.py data [--text FOLDER] [--jpegs FOLDER] [--repeats 7]

`step` times one optimizer step on one core, all variants interleaved in one process (each repeat runs every variant,
every second repeat in reverse order), and prints CPU seconds, wall seconds, and the median of the ratios within a
repeat with their spread: our dense model, three dense heads on its trunk (TreeNet), three sparse ones with masks and,
for the models 60m_sparse and 350m_heads, with only their active blocks, steps that update the topology beside steps
that do not, and transformers' LlamaForCausalLM, if it is installed, with the shape of the dense model, the same
tokens, precision (bf16 by autocast over fp32 weights), fused AdamW and clipping.

`update` times the parts of a topology update of the same models, `checkpoint` saving and loading them beside a plain
write of as many bytes.

`layer` times, in the same way, one linear layer 1024 x 2752 with 2048 tokens, forward and both backward products, with
active blocks of 16, 32, 64 and 128 and with single active weights, against the dense layer of the same type. With one
thread its CPU seconds tell, even on a busy machine. --plain-torch times the products without the compiled kernels.
--convolutions times those of the last two stages of a ResNet-50 instead, on 8 and 32 pictures (or --batch).
`layer --device cuda` times layers of one and three heads on the GPU, in bf16, with 8,192 and 32,768 tokens: our Triton
kernels, stk's and torch's block-sparse products against the dense and the masked layer, with the rates they reach.

`decode` times, in the same way, writing one token at a time behind a context of 64, with one sequence and with eight:
three heads at density .2, of blocks and of single weights, against one dense model and the dense ensemble.

`pictures` times, in the same way, one training step of our ResNets (dense M=1, TreeNet and sparse M=3) and of a plain
torch loop over the same dense network, on the GPU where there is one.

`images` times, in the same way, a JPEG to a random crop of 224 x 224, ours with each decoder against Pillow's decoding,
crop and resize of the same boxes (what torchvision does). Without --jpegs the pictures are made here, 500 x 375 as
ImageNet's are on average and 1600 x 1200.

`data` times, in the same way, the whole way of data: shards against plain wds.WebDataset, prepared tokens against
tokenising, our pipeline against SentencePiece alone, JPEGs to crops against Pillow; then a run that goes on at document
100 million of 100,000 shards. Each figure stands beside its target. Shards are made in a temporary folder from --text
(text or json lines, such as `launch/prepare.py corpus kjv --out FOLDER` fetches) or from made-up words.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
from bench_checkpoint import bench_checkpoint
from bench_conv import bench_conv
from bench_data import DataOptions, bench_data
from bench_decode import bench_decode
from bench_explain import explain
from bench_images import bench_images, jpeg_sets
from bench_layer import TYPES, bench_layer
from bench_layer_gpu import bench_layer_gpu
from bench_pictures import SHAPES as PICTURE_SHAPES
from bench_pictures import bench_pictures
from bench_step import SHAPES, bench_step
from bench_update import bench_update

from nt_pretrain.data.errors import DataError
from nt_pretrain.parallel.mesh import leave
from nt_pretrain.sparsity.capabilities import capabilities, report


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "what", choices=["step", "update", "checkpoint", "layer", "decode", "pictures", "images", "data"]
    )
    parser.add_argument("--model", choices=list(SHAPES), default="9m")
    parser.add_argument("--family", choices=list(PICTURE_SHAPES), default="resnet50", help="for `pictures`")
    parser.add_argument("--batch", type=int, default=0, help="pictures of a step; default: 128 on a GPU, few on a CPU")
    parser.add_argument("--precision", choices=["fp32", "bf16"], action="append")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--jpegs", type=Path, help="folder of JPEG files for `images` and `data`")
    parser.add_argument("--text", type=Path, help="folder of text or json lines for `data`")
    parser.add_argument("--kind", choices=["bpe", "unigram"], default="bpe", help="tokenizer for `data` (%(default)s)")
    parser.add_argument("--vocab-size", type=int, default=32_000, help="pieces of that tokenizer (%(default)s)")
    parser.add_argument("--sequence-length", type=int, default=1024, help="for `data` (%(default)s)")
    parser.add_argument("--mb", type=float, default=2.0, help="megabytes of text timed by `data` (%(default)s)")
    parser.add_argument("--plain-torch", action="store_true", help="`layer` without the compiled kernels")
    parser.add_argument("--convolutions", action="store_true", help="`layer` on convolutions of a ResNet-50")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="for `layer` (%(default)s)")
    parser.add_argument("--tokens", type=int, nargs="+", default=[8192, 32_768], help="for `layer --device cuda`")
    parser.add_argument("--explain", action="store_true", help="`layer`: operations and bytes against measured peaks")
    parser.add_argument("--figure", type=Path, help="draw all ratios with their spread to this file (extra `report`)")
    parser.add_argument("--json", type=Path, help="also write all timings to this file")
    return parser.parse_args()


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    precisions = options.precision or ["fp32", "bf16"]
    results: list[dict[str, object]]
    if options.what == "data":
        results = [_data(options)]
    elif options.what == "pictures":
        results = [bench_pictures(options.family, p, options.repeats, options.batch) for p in precisions]
    elif options.what == "images":
        results = [bench_images(name, jpegs, options.repeats) for name, jpegs in jpeg_sets(options.jpegs).items()]
    elif options.what == "layer":
        results = _on_gpu(options) if options.device == "cuda" else _layers(options, precisions)
    elif options.what == "checkpoint":
        results = [bench_checkpoint(options.model, options.repeats)]
    elif options.what == "update":
        results = [bench_update(options.model, p, options.repeats) for p in precisions]
    elif options.what == "decode":
        results = [bench_decode(p, options.repeats) for p in precisions]
    else:
        results = [bench_step(options.model, p, options.repeats) for p in precisions]
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    if options.figure:
        from bench_figure import draw  # needs matplotlib, which machines to measure may lack

        draw(results, options.figure)
        print(f"drawn: {options.figure}")
    print("figures of the reference machine: docs/PERFORMANCE.md")


def _data(options: argparse.Namespace) -> dict[str, object]:
    wanted = DataOptions(
        options.text, options.jpegs, options.kind, options.vocab_size, options.sequence_length, options.mb
    )
    try:
        return bench_data(wanted, options.repeats)
    except DataError as error:
        print(error, file=sys.stderr)
        sys.exit(3)


def _layers(options: argparse.Namespace, precisions: list[str]) -> list[dict[str, object]]:
    compiled = False if options.plain_torch else None
    results = []
    for precision in precisions:
        if options.convolutions:
            pictures = [options.batch] if options.batch else [8, 32]
            results += [bench_conv(precision, count, options.repeats, compiled) for count in pictures]
            continue
        results.append(bench_layer(precision, options.repeats, compiled))
        if options.explain:
            explain(results[-1], TYPES[precision])
    return results


def _on_gpu(options: argparse.Namespace) -> list[dict[str, object]]:
    if not torch.cuda.is_available():
        print(f"there is no CUDA device here; what runs:\n{report(capabilities())}", file=sys.stderr)
        sys.exit(2)
    results = []
    for precision in options.precision or ["bf16"]:
        results += bench_layer_gpu(precision, options.tokens, options.repeats, torch.device("cuda"))
    return results


if __name__ == "__main__":
    main()
    leave(0, together=True)
