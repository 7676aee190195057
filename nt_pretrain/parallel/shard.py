"""The one place that puts a plain model onto a mesh: cuts, FSDP2 units, precision, materialised values.

Units are the trunk's blocks, each head's blocks, the rest of the trunk and the rest of each head; of networks for rows,
whose blocks are one matrix each, the whole trunk and each whole head. Trunk and heads are roots of their own, because
the step calls them one by one. A rank holds the trunk and the heads of its group only.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate, distribute_tensor
from torch.utils.checkpoint import checkpoint

from nt_pretrain.config.schema import Config
from nt_pretrain.models.accounting import shapes_of
from nt_pretrain.models.mlp import MlpBlock, MlpHead, MlpTrunk
from nt_pretrain.models.multihead import Head, MultiHead, Trunk, TwoTrunks
from nt_pretrain.models.network import build, values_of
from nt_pretrain.models.vision import VisionHead, VisionTrunk
from nt_pretrain.parallel.batch_norm import norms_of, recomputing, synchronise
from nt_pretrain.parallel.blocks import block_modules, draw_blocks, ensure_same_kernels, initial_blocks, topologies
from nt_pretrain.parallel.mesh import Ranks
from nt_pretrain.parallel.single import draw_single, initial_single, single_topologies
from nt_pretrain.parallel.tensor import cut, replace_forward
from nt_pretrain.sparsity.block_budget import BlockBudget, line_budgets
from nt_pretrain.sparsity.budget import LayerBudget, plan_budgets
from nt_pretrain.sparsity.conv_layers import replace_convolutions
from nt_pretrain.sparsity.csr_layers import replace_single, single_budgets
from nt_pretrain.sparsity.csr_topology import CsrLayer
from nt_pretrain.sparsity.layers import replace_layers
from nt_pretrain.sparsity.topology import Held


def sharded_model(config: Config, ranks: Ranks) -> MultiHead:
    """The model of ``config`` on the mesh of ``ranks``, with its initial weights.

    It is built without storage and each rank fills only the shards it holds, so a model larger than one rank's memory
    works, and every mesh starts from the same bits.
    """
    model = placed_model(config, ranks)
    ensure_same_kernels(model, ranks)
    device = "cpu" if config.parallel.cpu_offload else ranks.device.type
    model.to_empty(device=torch.device(device))
    with torch.no_grad():
        lines = {name: held_part(module.weight).rows for name, module in block_modules(model).items()}
        draw_blocks(model, blocks_of(config), lines, config, ranks)
        blocks = topologies(model)
        draw_single(model, singles_of(config), config, ranks)
        singles = single_topologies(model)
        for name, parameter in model.named_parameters():
            if name in blocks:
                local(parameter).copy_(initial_blocks(blocks[name], config=config))
                continue
            held = held_part(parameter)
            if name in singles:
                local(parameter).copy_(initial_single(singles[name], held.rows, config=config))
                continue
            index = held.rows[:, None] * held.total_columns + held.columns[None, :]
            values = values_of(name, tuple(parameter.shape), index, seed=config.run.seed, model=config.model)
            local(parameter).copy_(values.view(local(parameter).shape))
        for norm in norms_of(model):
            # Running statistics stay where they are computed with, also where weights are kept elsewhere.
            norm.running_mean, norm.running_var, norm.num_batches_tracked = (
                buffer.to(ranks.device) for buffer in norm.buffers()
            )
            norm.reset_running_stats()
    return model


def placed_model(config: Config, ranks: Ranks) -> MultiHead:
    """The same without storage (meta device). Tensor cuts come first, then recomputation, compilation, shards."""
    with torch.device("meta"):
        own = ranks.own_heads(config.model.heads)
        model = build(config.model, own, label_smoothing=config.train.label_smoothing)
        budgets = blocks_of(config)
        replace_layers(model, budgets)
        replace_convolutions(model, budgets)
        replace_single(model, singles_of(config))
    stored = {"pure_bf16": torch.bfloat16, "fp64": torch.float64}.get(config.train.precision)
    if stored is not None:
        model = model.to(stored)
    for root in roots(model):
        mesh = ranks.trunk_mesh if root is model.trunk else ranks.heads_mesh
        if ranks.sizes.tensor > 1:
            assert isinstance(root, Trunk | Head), "only networks for text are cut"
            cut(root, mesh["tensor"])
        if config.parallel.batch_norm == "all":
            synchronise(root, ranks.everyone if root is model.trunk else ranks.same_heads_group)
        blocks = list(root.blocks)
        for block in blocks:
            _recompute(block, config.parallel.activation_checkpoint)
            if config.parallel.compile:
                block.compile()
        units = [block for block in blocks if not isinstance(block, MlpBlock)]
        _shard(root, units, config, mesh["replicate", "shard"] if ranks.sizes.replicate > 1 else mesh["shard"])
    return model


def blocks_of(config: Config) -> dict[str, BlockBudget]:
    """Budgets of the layers of which only the active blocks exist; empty unless ``sparsity.backend`` is block."""
    sparsity = config.sparsity
    if sparsity.backend == "masked" or sparsity.density == 1.0 or sparsity.unit == 1:
        return {}
    return line_budgets(shapes_of(config.model), sparsity)


def singles_of(config: Config) -> dict[str, LayerBudget]:
    """Budgets of the layers of which only the active weights exist, each by itself; empty unless ``sparsity.backend``
    is block and ``sparsity.unit`` is 1.
    """
    sparsity = config.sparsity
    if sparsity.backend == "masked" or sparsity.density == 1.0 or sparsity.unit > 1:
        return {}
    return single_budgets(plan_budgets(shapes_of(config.model), sparsity))


Root = Trunk | TwoTrunks | Head | VisionTrunk | VisionHead | MlpTrunk | MlpHead
"""A trunk or a head: what is called from outside."""


def _shard(root: Root, blocks: list[nn.Module], config: Config, mesh: DeviceMesh) -> None:
    policy = precision_policy(config)
    offload = CPUOffloadPolicy(pin_memory=torch.cuda.is_available()) if config.parallel.cpu_offload else OffloadPolicy()

    def wrap(module: nn.Module, reshard: bool) -> None:
        fully_shard(module, mesh=mesh, mp_policy=policy, offload_policy=offload, reshard_after_forward=reshard)

    for block in blocks:
        wrap(block, config.parallel.reshard_after_forward)
    # A head's own group is needed again at once by its backward, the trunk's embedding is not needed there at all.
    wrap(root, False)
    ahead = config.parallel.prefetch
    sharded: list[FSDPModule] = [block for block in blocks if isinstance(block, FSDPModule)]
    for at, unit in enumerate(sharded if ahead else []):
        unit.set_modules_to_forward_prefetch(sharded[at + 1 : at + 1 + ahead])
        unit.set_modules_to_backward_prefetch(sharded[max(0, at - ahead) : at][::-1])


def _recompute(block: nn.Module, what: str) -> None:
    """Let the backward pass compute activations again, of the feed-forward layer (three in five of them) or of all."""
    if what != "none":
        module = block if what == "full" else block.get_submodule("ffn")
        # The forward is replaced, not the module wrapped: names of parameters stay.
        replace_forward(module, partial(_checkpointed, module, module.forward))


def _checkpointed(module: nn.Module, forward: Callable[..., Tensor], *arguments: Any) -> Tensor:
    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), recomputing(module)

    return checkpoint(forward, *arguments, use_reentrant=False, context_fn=contexts)


def roots(model: MultiHead) -> list[Root]:
    """Trunk (if there is one) and heads: the modules that are called from outside."""
    return [*([model.trunk] if model.trunk is not None else []), *own_heads(model).values()]


def own_heads(model: MultiHead) -> dict[int, Head | VisionHead | MlpHead]:
    """The heads held here by their number."""
    known = Head | VisionHead | MlpHead
    heads = {int(number): head for number, head in model.heads.items() if isinstance(head, known)}
    assert len(heads) == len(model.heads), "a head of a family that is not known here"
    return heads


def precision_policy(config: Config) -> MixedPrecisionPolicy:
    """Compute and reduction dtypes of ``train.precision`` and ``parallel.deterministic_reduce``.

    Networks for pictures compute in bf16 by autocast (:mod:`nt_pretrain.parallel.forward`), which leaves their batch
    norms in fp32: weights are gathered in fp32.

    Sums of fp32 gradients of equal micro-batches are exact in fp64 for all practical purposes, hence do not depend on
    how many ranks they are spread over.
    """
    wide = config.train.precision in ("fp32", "fp64") or config.model.sees_pictures
    compute = None if wide else torch.bfloat16
    exact = config.parallel.deterministic_reduce or config.train.precision == "fp64"
    reduce = torch.float64 if exact else torch.float32
    if config.train.precision == "pure_bf16" and not config.parallel.deterministic_reduce:
        reduce = torch.bfloat16
    return MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=reduce)


def set_last_micro_batch(model: MultiHead, is_last: bool) -> None:
    """Reduce gradients only in the backward of the last micro-batch; the others accumulate locally."""
    for root in roots(model):
        assert isinstance(root, FSDPModule)
        root.set_requires_gradient_sync(is_last)
        root.set_is_last_backward(is_last)


def reshard(model: nn.Module) -> None:
    """Free all gathered weights, so that the next forward pass gathers them from the shards as they are then."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a DTensor as a plain tensor that shares its storage; a plain tensor itself."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def held_part(parameter: Tensor) -> Held:
    """Which rows and columns of ``parameter``, seen as a matrix [first dimension, the rest], this rank holds.

    Rows and columns are numbered by two thin tensors that are distributed exactly like the parameter, which is right
    for every placement (uneven, strided) and needs no communication.
    """
    shape = (parameter.shape[0], parameter.numel() // parameter.shape[0])
    device = parameter.device
    rows, columns = (torch.arange(size, device=device) for size in shape)
    if isinstance(parameter, DTensor):
        matrix = (parameter.shape[0], *[1] * (parameter.ndim - 1)), (*[1] * (parameter.ndim - 1), parameter.shape[-1])
        rows = _part(rows.view(matrix[0]), parameter, 0)
        if parameter.ndim == 2:
            columns = _part(columns.view(matrix[1]), parameter, 1)
    return Held(rows.reshape(-1), columns.reshape(-1), shape[1])


def _part(numbers: Tensor, parameter: DTensor, dim: int) -> Tensor:
    """This rank's part of ``numbers`` along ``dim``, cut as ``parameter`` is."""
    cuts = [each if getattr(each, "dim", None) == dim else Replicate() for each in parameter.placements]
    return distribute_tensor(numbers, parameter.device_mesh, cuts, src_data_rank=None).to_local().to(numbers.device)


def like_parameter(values: Tensor, parameter: Tensor) -> Tensor:
    """The flat local ``values`` as a tensor placed like ``parameter`` (same storage), e.g. to save it sharded."""
    if not isinstance(parameter, DTensor):
        return values.view(parameter.shape)
    return DTensor.from_local(
        values.view(parameter.to_local().shape), parameter.device_mesh, parameter.placements, run_check=False,
        shape=parameter.shape, stride=parameter.stride(),
    )  # fmt: skip


def like_lines(table: Tensor, parameter: Tensor, lines: int | None = None) -> Tensor:
    """``table`` [L, n] of the lines of ``parameter`` held here as a tensor of all lines, placed alike; same storage.

    Args:
        lines: how many there are, if not as many as the parameter's; they are cut as its are.
    """
    if not isinstance(parameter, DTensor):
        return table
    shape = torch.Size((lines or parameter.shape[0], table.shape[1]))
    return DTensor.from_local(
        table, parameter.device_mesh, parameter.placements, run_check=False, shape=shape, stride=(shape[1], 1)
    )


def own_ids(layer: CsrLayer, parameter: Tensor) -> Tensor:
    """The numbers of the weights in the slots of ``parameter`` held here, placed like it; same storage."""
    slots = held_part(parameter).rows
    first = int(slots[0]) if slots.numel() else 0
    return like_parameter(layer.ids[first : first + slots.numel()], parameter)
