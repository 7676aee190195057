"""Estimate of the memory of one rank, in bytes, part by part.

What is stored (weights, gradients, moments, average, topology) is exact up to uneven shards; of layers of blocks only
active ones count (:mod:`nt_pretrain.train.block_memory`). Activations are counted from what a block saves for its
backward (measured on a CPU in fp32: within 1 %; fused kernels on a GPU save less). Left out: the libraries' own memory,
data, and fragmentation; plan for a fifth more.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from nt_pretrain.config.mesh import MeshSizes
from nt_pretrain.config.schema import Config, ModelSection
from nt_pretrain.eval.metrics import CHUNK
from nt_pretrain.models.accounting import Shapes
from nt_pretrain.models.groups import group_of, part_of
from nt_pretrain.models.sharing import is_frozen, sharing_of
from nt_pretrain.parallel.mesh import wants_cuda
from nt_pretrain.parallel.shard import blocks_of, singles_of
from nt_pretrain.sparsity.budget import LayerBudget
from nt_pretrain.sparsity.stripping import strippable_budgets
from nt_pretrain.train.block_memory import (
    Beside,
    BlockLayerSize,
    growth_bytes,
    saved_bytes,
    scratch_bytes,
    size_on,
    update_bytes,
)
from nt_pretrain.train.picture_memory import PictureMemory, picture_memory
from nt_pretrain.train.row_memory import RowMemory, row_memory
from nt_pretrain.train.single_memory import single_growth_bytes, single_saved_bytes, single_topology_bytes


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank.

    Attributes:
        weights: this rank's shard.
        gathered: whole layers in the compute dtype while they are used.
        gradients: the shard; and, with gradient accumulation, a whole unsharded gradient, since gradients travel once.
        moments: the shard of Adam's two moments, or of SGD's momentum.
        topology: active and explored flags, and stripped ones where there are any; of layers of blocks the columns of
            all blocks that are multiplied here, with the index lists of the kernels, and of the lines held here what an
            update needs.
        activations: what trunk and one head save for their backward, for one micro-batch.
        loss: logits of one chunk of tokens, and the gradient of one output layer.
        update: scores and flags during a topology update, when activations and logits are gone.
        validation: logits of one head and the sum of all, when gradients and activations are gone.
        read_off: of the validation, what is beside logits and their sum: a chunk's logits in fp32.
        snapshot: the copy that a checkpoint is written from; none on a GPU, where it is in the host's memory.
        average: the shard of the moving average of the weights.
        swapped: the weights beside the average that is validated in their place.
        kernels: what the compiled kernels of layers of blocks take on a CPU while one runs.
        growth: what dense gradients add to the fullest moment of a step after which blocks grow.
        host: of weights, moments, average, topology and what lies beside them, what is in the host's memory
            (``parallel.cpu_offload`` on a GPU).
        beside: other weights beside the state: :mod:`nt_pretrain.train.beside_memory`.
        teaching: what a teacher's forward pass and the divergence from it add to a step.
    """

    weights: int
    gathered: int
    gradients: int
    moments: int
    topology: int
    activations: int
    loss: int
    update: int
    validation: int
    read_off: int = 0
    snapshot: int = 0
    average: int = 0
    swapped: int = 0
    host: int = 0
    kernels: int = 0
    growth: int = 0
    beside: int = 0
    teaching: int = 0

    @property
    def peak(self) -> int:
        stored = self.weights + self.moments + self.average + self.topology + self.beside + self.snapshot - self.host
        used = self.gathered + self.kernels
        step = self.gradients + max(used + self.activations + self.loss + self.growth + self.teaching, self.update)
        return stored + max(step, used + self.validation + self.swapped)


def estimate(
    config: Config, shapes: Shapes, budgets: dict[str, LayerBudget], sizes: MeshSizes, *, accumulation: int
) -> Memory:
    """Memory of one rank of a mesh that runs ``accumulation`` micro-batches per step."""
    compute, stored, reduced = element_bytes(config)
    kind = config.model.data
    # Networks for pictures gather fp32 weights, of which autocast makes copies to compute with.
    used = stored if kind == "pictures" else compute
    own = own_shapes(shapes, sizes)
    blocks = {name: size_on(b, sizes, _shards(name, sizes)) for name, b in blocks_of(config).items() if name in own}
    held = {name: _tensor_part(name, math.prod(shape), sizes) for name, shape in own.items()}
    held |= {name: layer.whole for name, layer in blocks.items()}
    singles = {name: budget for name, budget in singles_of(config).items() if name in own}
    held |= {name: budget.active for name, budget in singles.items()}
    shards = {name: math.ceil(count / _shards(name, sizes)) for name, count in held.items()}
    shard = sum((shards | {name: layer.shard for name, layer in blocks.items()}).values())
    groups = _gathered_groups(held | {name: layer.gathered for name, layer in blocks.items()})
    frozen = [name for name in held if is_frozen(name, sharing_of(config.model))]
    trained = shard - sum(shards[name] for name in frozen)
    whole = (sum(held.values()) - sum(held[name] for name in frozen)) * reduced
    gradients = trained * stored + (whole if accumulation > 1 else max(*groups.values(), 0) * (used + reduced))
    masked = {name: each for name, each in budgets.items() if name in held and name not in blocks | singles}
    flagged = {name: _flags(name, budget, sizes) for name, budget in masked.items()}
    flags = sum(flagged.values())
    # A third one says whether the weight was stripped.
    all_flags = 2 * flags + sum(flagged[name] for name in strippable_budgets(config, shapes) if name in flagged)
    topology, saved = all_flags + sum(x.topology for x in blocks.values()), sum(x.saved for x in blocks.values())
    for name, budget in singles.items():
        topology += single_topology_bytes(budget, _shards(name, sizes))
        saved += single_saved_bytes(budget, _shards(name, sizes))
    parts = _parts(config, sizes, compute, blocks)
    moments, average = moment_count(config) * trained * stored, shard * average_bytes(config)
    kept = shard * stored + moments + average
    # Kernels of convolutions gather some pixels at a time, never all of a layer's input.
    tokens = 0 if kind != "text" else config.train.micro_batch * config.data.sequence_length * sizes.head
    growth = growth_bytes(
        blocks, config, Beside(parts.loss, _logits_bytes(config, sizes, tokens, compute), parts.activations),
        tokens=tokens, compute=compute, accumulation=accumulation, copies=sizes.replicate,
    )  # fmt: skip
    growth += single_growth_bytes(list(singles.values()), config, sizes, accumulation=accumulation)
    on_host = config.parallel.cpu_offload and wants_cuda(config)
    return Memory(
        weights=shard * stored,
        gathered=_gathered_elements(config, groups) * (used + compute if used > compute else compute),
        gradients=gradients,
        moments=moments,
        topology=topology,
        activations=parts.activations,
        loss=parts.loss,
        update=_update_bytes(budgets, held, flags, sizes) if not blocks else update_bytes(blocks, stored),
        validation=parts.validation,
        read_off=parts.read_off,
        average=average,
        swapped=shard * stored if average and not on_host else 0,
        host=(kept + topology) * on_host,
        kernels=scratch_bytes(blocks, config, tokens, compute),
        growth=growth,
        snapshot=kept + all_flags + saved if config.checkpoint.asynchronous and not wants_cuda(config) else 0,
    )


def _parts(
    config: Config, sizes: MeshSizes, compute: int, blocks: dict[str, BlockLayerSize]
) -> TextMemory | PictureMemory | RowMemory:
    """What depends on the kind of data."""
    if config.model.data == "text":
        return _text_memory(config, sizes, compute, blocks)
    return (picture_memory if config.model.data == "pictures" else row_memory)(config, sizes, compute)


def _flags(name: str, budget: LayerBudget, sizes: MeshSizes) -> int:
    """Units of a masked layer whose flags a rank holds."""
    return budget.units if budget.unit > 1 else math.ceil(budget.units / (sizes.tensor * _shards(name, sizes)))


@dataclass(frozen=True)
class TextMemory:
    """Parts of :class:`Memory` of the same names."""

    activations: int
    loss: int
    validation: int
    read_off: int


def _text_memory(config: Config, sizes: MeshSizes, compute: int, blocks: dict[str, BlockLayerSize]) -> TextMemory:
    tokens = config.train.micro_batch * config.data.sequence_length
    looked_up = [layer for name, layer in blocks.items() if group_of(name) == "embedding"]
    # Where the values of a token belong.
    places = 8 * looked_up[0].budget.fan if looked_up else 0
    rows = tokens * sharing_of(config.model).copies
    return TextMemory(
        activations=math.ceil(rows * (_saved_elements_per_token(config, sizes) * compute + places)),
        loss=_loss_bytes(config, sizes, tokens * sizes.head, compute, blocks.get("heads.0.output.weight")),
        validation=_validation_bytes(config, sizes, compute),
        read_off=_read_off_bytes(config, sizes, compute),
    )


def checkpoint_bytes(config: Config, shapes: Shapes, budgets: dict[str, LayerBudget]) -> int:
    """Bytes of one checkpoint over all ranks: weights, moments, average of the weights, two flags per unit, a third
    where it may be stripped; of layers of blocks the active ones, with their columns and a flag per block.
    """
    _, stored, _ = element_bytes(config)
    weight, blocks = (1 + moment_count(config)) * stored + average_bytes(config), blocks_of(config)
    values = {name: math.prod(shape) for name, shape in shapes.items()}
    values |= {name: budget.active * budget.unit**2 for name, budget in blocks.items()}
    singles = singles_of(config)
    values |= {name: budget.active for name, budget in singles.items()}
    flags = sum(budget.units for name, budget in budgets.items() if name not in blocks and name not in singles)
    tables = saved_bytes(blocks) + sum(single_saved_bytes(budget, 1) for budget in singles.values())
    stripped = sum(budget.units for budget in strippable_budgets(config, shapes).values())
    frozen = sum(count for name, count in values.items() if is_frozen(name, sharing_of(config.model)))
    moments = moment_count(config) * stored * frozen
    return weight * sum(values.values()) - moments + 2 * flags + stripped + tables


def moment_count(config: Config) -> int:
    """Moments that the optimizer keeps of a weight."""
    return {"adamw": 2, "sgd": 1}[config.optim.algorithm]


def average_bytes(config: Config) -> int:
    """Bytes of the moving average of one weight: fp32 at least; 0 where none is kept."""
    _, stored, _ = element_bytes(config)
    return max(4, stored) if config.train.ema_decay > 0.0 else 0


def element_bytes(config: Config) -> tuple[int, int, int]:
    """Bytes of an element where it is computed with, stored (weights and moments), and reduced over ranks."""
    precision = config.train.precision
    compute = {"fp32": 4, "fp64": 8}.get(precision, 2)
    stored = {"pure_bf16": 2, "fp64": 8}.get(precision, 4)
    return compute, stored, 8 if config.parallel.deterministic_reduce else stored


def own_shapes(shapes: Shapes, sizes: MeshSizes) -> Shapes:
    """The layers that one rank holds some of: the trunk's and those of the first of ``sizes.head`` groups of heads."""
    heads = len({part_of(name) for name in shapes} - {"trunk"})
    own = {"trunk", *(f"heads.{number}" for number in range(heads // sizes.head))}
    return {name: shape for name, shape in shapes.items() if part_of(name) in own}


def _tensor_part(name: str, elements: int, sizes: MeshSizes) -> int:
    """Elements of a layer on one of the ranks that share its products; norms are whole on each."""
    return elements if group_of(name) == "norm" else elements // sizes.tensor


def _shards(name: str, sizes: MeshSizes) -> int:
    return sizes.shard * (sizes.head if part_of(name) == "trunk" else 1)


def saved_per_token_of_block(model: ModelSection, recompute: str = "none", tensor: int = 1) -> float:
    """Elements that one block saves for its backward per token, on one of ``tensor`` ranks that share it.

    Input, normalised and scaled input of both norms (6 hidden), query and attention output (2 widths of all attention
    heads, in general 2 hidden), key and value, and of SwiGLU gate, its activation, up and their product (4
    intermediate), of ReLU its output, and its square where it is squared. Tensor ranks divide all of it, but each keeps
    what it gathered for its products (2 hidden).

    Args:
        recompute: as ``parallel.activation_checkpoint``; then only inputs of what is computed again are kept.
    """
    kv_width, width = model.head_dim * (model.kv_heads or model.attention_heads), model.head_dim * model.attention_heads
    inside = {"swiglu": 4, "relu": 1, "relu2": 2}[model.ffn] * model.intermediate
    attention, ffn = 3 * model.hidden + 2 * width + 2 * kv_width, 3 * model.hidden + inside
    gathered = model.hidden if tensor > 1 else 0
    if model.sharing == "rank_one":
        # What goes into every product with its factors, and what comes out of it without them.
        matrices = 3 if model.ffn == "swiglu" else 2
        attention += 6 * model.hidden + 2 * kv_width
        ffn += matrices * (model.hidden + model.intermediate)
    if recompute == "full":
        return model.hidden / tensor
    if recompute == "selective":
        return (attention + 3 * model.hidden) / tensor + gathered
    return (attention + ffn) / tensor + 2 * gathered


def _saved_elements_per_token(config: Config, sizes: MeshSizes) -> float:
    """Of the path through trunk and one head: the heads run one after the other, each on its whole group's tokens.

    What is computed again exists for one block at a time.
    """
    model, what = config.model, config.parallel.activation_checkpoint
    block = saved_per_token_of_block(model, what, sizes.tensor)
    trunk, head = model.layers - model.blocks_in_head, model.blocks_in_head
    again = saved_per_token_of_block(model, "none", sizes.tensor) - block if what != "none" else 0.0
    # Input and output of the trunk, and of the last norm.
    ends = model.hidden * (1 + 2 * sizes.head) / sizes.tensor
    return trunk * block + sizes.head * head * block + ends + (sizes.head if head else 1) * again


def _loss_bytes(config: Config, sizes: MeshSizes, tokens: int, compute: int, blocks: BlockLayerSize | None) -> int:
    """Of the loss of one head.

    Logits and logarithmic probabilities of a chunk in fp32; the gradients of the last hidden states and of the output
    layer, which is summed in fp32 and then turned into the compute dtype. Chunks' gradients of an output layer of
    ``blocks`` are added to the sum.
    """
    model = config.model
    vocabulary = model.vocab_size // sizes.tensor
    wide = max(4, compute)
    count = vocabulary * model.hidden if blocks is None else blocks.whole
    weight = count * (wide if compute == wide else wide + compute)
    if blocks is not None and tokens > config.train.loss_chunk:
        weight = max(weight, 2 * count * wide)
    if model.sharing != "none":
        # Of every member its matrix, and gradients that wait for the backward pass of all.
        weight = model.members * count * (2 * compute + (wide if compute == wide else 0)) + count * wide
    rows = tokens * sharing_of(model).copies
    return 2 * _logits_bytes(config, sizes, tokens, compute) + weight + rows * model.hidden * compute


def _logits_bytes(config: Config, sizes: MeshSizes, tokens: int, compute: int) -> int:
    """Of one chunk, in fp32."""
    return min(config.train.loss_chunk, tokens) * (config.model.vocab_size // sizes.tensor) * max(4, compute)


def _update_bytes(budgets: dict[str, LayerBudget], held: dict[str, int], flags: int, sizes: MeshSizes) -> int:
    """Of a topology update: per unit a score of 4 bytes and three flags (active before, kept, grown).

    Weights of a layer of blocks are squared in fp64 and turned into fixed point, one layer at a time.
    """
    blocks = [name for name, budget in budgets.items() if budget.unit > 1 and name in held]
    return 7 * flags + 16 * max((math.ceil(held[name] / _shards(name, sizes)) for name in blocks), default=0)


def _validation_bytes(config: Config, sizes: MeshSizes, compute: int) -> int:
    """Of one forward pass: logits of one head, the fp32 sum over heads from the second on, and a chunk's in fp32.

    A head group sees its ranks' tokens together; tensor ranks gather whole logits.
    """
    logits = config.model.vocab_size * config.eval.micro_batch * config.data.sequence_length * sizes.head
    chunk, single = _read_off_bytes(config, sizes, compute), config.model.voices == sizes.head
    if config.model.sharing != "none":
        logits, single = logits * config.model.members, False  # of all members at once
    return logits * compute + (max(logits * 4, chunk) if single else logits * 4 + chunk)


def _read_off_bytes(config: Config, sizes: MeshSizes, compute: int) -> int:
    """Of a chunk's softmax; logits that are not fp32 already are copied before it."""
    tokens = config.eval.micro_batch * config.data.sequence_length * sizes.head
    return min(CHUNK, tokens) * config.model.vocab_size * (4 if compute >= 4 else 8)


def _gathered_groups(held: dict[str, int]) -> dict[str, int]:
    """Elements of each group of layers that is gathered together: a block, or the rest of the trunk or of a head."""
    groups: dict[str, int] = {}
    for name, count in held.items():
        part = part_of(name)
        if part in ("trunk", "heads.0"):
            words = name.removeprefix(part + ".").split(".")
            group = f"{part}.block.{words[1]}" if words[0] == "blocks" else part
            groups[group] = groups.get(group, 0) + count
    return groups


def _gathered_elements(config: Config, groups: dict[str, int]) -> int:
    """Most elements gathered at once: the rest of trunk and head, and two blocks (one comes early) or all."""
    blocks = [size for group, size in groups.items() if ".block." in group]
    rest = sum(groups.values()) - sum(blocks)
    return rest + (sum(sorted(blocks)[-2:]) if config.parallel.reshard_after_forward else sum(blocks))
