"""Reading a prompt and going on token by token: keys and values of what was read are kept, the trunk's once for all
heads.

Sequences of a batch may have different lengths. Each stands at its own position: what another one has more is neither
seen by it nor does it shift its rotary positions. Weights are those of plain modules, not of sharded ones.

Shape letters: B sequences, T new tokens of each, C capacity of the cache, M heads in use, and those of
:mod:`nt_pretrain.models.llama`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from nt_pretrain.config.schema import ModelSection
from nt_pretrain.models.llama import Attention, Block, rotary_tables
from nt_pretrain.models.multihead import Head, MultiHead


@dataclass(frozen=True)
class KeysValues:
    """Of one block."""

    keys: Tensor  # [B, K, C, D]
    values: Tensor  # [B, K, C, D]


@dataclass
class Cache:
    """What B sequences have left in every block they passed; changed in place.

    Attributes:
        heads: of the heads in use, by their number.
        lengths: int64 [B], on the CPU: tokens read of each sequence.
        tables: cosine and sine of the positions, each [C, D].
    """

    trunk: list[KeysValues]
    heads: dict[int, list[KeysValues]]
    lengths: Tensor
    tables: tuple[Tensor, Tensor]

    @property
    def capacity(self) -> int:
        return len(self.tables[0])

    def tensors(self) -> list[Tensor]:
        """All keys and values; their sizes are the memory that a cache takes."""
        blocks = [*self.trunk, *(block for head in self.heads.values() for block in head)]
        return [each for block in blocks for each in (block.keys, block.values)]


def empty_cache(
    model: MultiHead, section: ModelSection, *, sequences: int, capacity: int, heads: Sequence[int] | None = None
) -> Cache:
    """For ``sequences`` of at most ``capacity`` tokens each, on the device of ``model``.

    Args:
        heads: numbers of the heads to use; None: all.

    Raises:
        ValueError: no sequence, no room, two trunks, or a head that ``model`` has not.
    """
    if sequences < 1 or capacity < 1:
        raise ValueError(f"a cache of {sequences} sequences of {capacity} tokens: both must be at least 1")
    numbers = [int(each) for each in model.heads] if heads is None else list(heads)
    if missing := [each for each in numbers if str(each) not in model.heads]:
        raise ValueError(f"there is no head {missing[0]}; the model has {', '.join(model.heads)}")
    norm = _head(model, numbers[0]).norm.weight
    kv_heads, head_dim = section.kv_heads or section.attention_heads, section.head_dim
    if section.trunks > 1:
        raise ValueError("a network of two trunks cannot go on token by token; choose another member")
    # One query against bfloat16 keys takes torch's CPU several times longer than against float32 ones.
    dtype = torch.promote_types(norm.dtype, torch.float32) if norm.device.type == "cpu" else norm.dtype

    def blocks(count: int, slim: int = 1) -> list[KeysValues]:
        shape = (sequences, kv_heads // slim, capacity, head_dim)
        # Zeros, not leftovers: what is masked is multiplied with a weight of 0, which a nan would survive.
        return [
            KeysValues(*(torch.zeros(shape, dtype=dtype, device=norm.device) for _ in range(2))) for _ in range(count)
        ]

    cos, sin = rotary_tables(section, capacity, norm.device)
    in_trunk = 0 if model.trunk is None else section.layers - section.blocks_in_head
    return Cache(
        blocks(in_trunk),
        {number: blocks(section.blocks_in_head, section.head_slim) for number in numbers},
        torch.zeros(sequences, dtype=torch.int64),
        (cos.to(norm.dtype), sin.to(norm.dtype)),
    )


@torch.no_grad()
def prefill(model: MultiHead, tokens_BT: Tensor, cache: Cache, counts: Tensor | None = None) -> Tensor:
    """Read the next tokens of every sequence; returns the logits [M, B, V] behind the last one of each.

    Args:
        tokens_BT: int64. Sequences with fewer tokens are filled up at their end with any.
        counts: int64 [B], on the CPU: how many of the T belong to each sequence; None: all.

    Raises:
        ValueError: shapes that do not fit, a sequence without a token, or more than the cache has room for.
    """
    batch, length = len(cache.lengths), tokens_BT.shape[-1]
    if tokens_BT.dim() != 2 or len(tokens_BT) != batch:
        raise ValueError(f"tokens {list(tokens_BT.shape)} for a cache of {batch} sequences: give [{batch}, T]")
    counts = torch.full((batch,), length) if counts is None else counts
    if counts.shape != (batch,) or not 1 <= int(counts.min()) <= int(counts.max()) <= length:
        raise ValueError(f"counts {counts.tolist()}: each of the {batch} sequences must have 1 to {length} tokens")
    step = _step(cache, length, tokens_BT.device)
    x: Tensor = tokens_BT
    if model.trunk is not None:
        x = model.trunk.embedding(tokens_BT)
        for block, kept in zip(model.trunk.blocks, cache.trunk, strict=True):
            x = _through_block(block, x, step, kept)
    last = (counts - 1).to(tokens_BT.device)
    logits = [_through_head(_head(model, number), x, step, kept, last) for number, kept in cache.heads.items()]
    cache.lengths += counts
    return torch.stack(logits)


def decode_step(model: MultiHead, tokens_B: Tensor, cache: Cache) -> Tensor:
    """Read one more token (int64) of every sequence; returns the logits [M, B, V] behind it.

    Raises:
        ValueError: as :func:`prefill`.
    """
    return prefill(model, tokens_B[:, None], cache)


@dataclass(frozen=True)
class _Step:
    """Where the new tokens stand."""

    cos: Tensor  # [T, D], or [B, 1, T, D] where sequences differ
    sin: Tensor
    start: int | None  # position of the first one, if it is the same in all sequences
    positions_BT: Tensor
    end: int  # keys from here on belong to no sequence
    mask: Tensor | None  # [B, 1, T, end] bool, True where attention is allowed; None: all of what is there


def _step(cache: Cache, length: int, device: torch.device) -> _Step:
    begin = cache.lengths
    end = int(begin.max()) + length
    if end > cache.capacity:
        raise ValueError(
            f"sequence {int(begin.argmax())} would have {end} tokens, but the cache has room for {cache.capacity}: "
            "make it with a larger capacity"
        )
    positions = (begin[:, None] + torch.arange(length)).to(device)
    if bool((begin == begin[0]).all()):
        start = int(begin[0])
        at: slice | Tensor = slice(start, end)
    else:
        start, at = None, positions
    cos, sin = (table[at] if start is not None else table[at][:, None] for table in cache.tables)
    mask = None
    if start is None or (start > 0 and length > 1):
        mask = (torch.arange(end, device=device) <= positions[:, :, None])[:, None]
    return _Step(cos, sin, start, positions, end, mask)


def _through_head(head: Head, x: Tensor, step: _Step, kept: list[KeysValues], last_B: Tensor) -> Tensor:
    """Logits [B, V] of tokens number ``last_B``; ``x`` as in :meth:`Head.forward`."""
    if hasattr(head, "embedding"):
        x = head.embedding(x)
    for block, of_block in zip(head.blocks, kept, strict=True):
        assert isinstance(block, Block)
        x = _through_block(block, x, step, of_block)
    x = x[torch.arange(len(x), device=x.device), last_B]
    for _ in range(head.norm_passes):
        x = head.norm(x)
    logits: Tensor = head.output(x)
    return logits


def _through_block(block: Block, x_BTH: Tensor, step: _Step, kept: KeysValues) -> Tensor:
    """As :meth:`Block.forward`, for new tokens."""
    x_BTH = x_BTH + _attend(block.attention, block.attention_norm(x_BTH), step, kept)
    return x_BTH + block.ffn(block.ffn_norm(x_BTH))


def _attend(attention: Attention, x_BTH: Tensor, step: _Step, kept: KeysValues) -> Tensor:
    batch, length, _ = x_BTH.shape
    query, key, value = attention.project(x_BTH, step.cos, step.sin)
    for new, stored in ((key, kept.keys), (value, kept.values)):
        if step.start is not None:
            stored[:, :, step.start : step.end].copy_(new)
        else:
            row = torch.arange(batch, device=new.device)[:, None]
            # What fills up a shorter sequence lands behind its end, where its next tokens will overwrite it.
            stored[row, :, step.positions_BT] = new.transpose(1, 2).to(stored.dtype)
    if step.start != 0:
        query = query.to(kept.keys.dtype)
        key, value = kept.keys[:, :, : step.end], kept.values[:, :, : step.end]
    out = F.scaled_dot_product_attention(
        query, key, value, attn_mask=step.mask, is_causal=step.start == 0 and length > 1,
        enable_gqa=attention.kv_heads != attention.heads,
    )  # fmt: skip
    return attention.out(out.to(x_BTH.dtype).transpose(1, 2).reshape(batch, length, -1))


def _head(model: MultiHead, number: int) -> Head:
    head = model.heads[str(number)]
    assert isinstance(head, Head), "a head of another network than LLaMA"
    return head
