"""The one place that puts a plain model onto a mesh: FSDP2 units, precision, materialised values.

Units are the trunk's blocks, each head's blocks, the rest of the trunk and the rest of each head. Trunk and heads are
roots of their own, because the step calls them one by one.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from nt_pretrain.config.schema import Config
from nt_pretrain.models.init import initial_values
from nt_pretrain.models.multihead import Head, MultiHead, Trunk, build
from nt_pretrain.sparsity.topology import Held


def sharded_model(config: Config, mesh: DeviceMesh) -> MultiHead:
    """The model of ``config``, sharded over ``mesh``, with its initial weights.

    It is built without storage and each rank fills only the shards it holds, so a model larger than one rank's memory
    works, and every world size starts from the same bits.
    """
    with torch.device("meta"):
        model = build(config.model)
    if config.train.precision == "pure_bf16":
        model = model.to(torch.bfloat16)
    policy = precision_policy(config)
    for root in roots(model):
        for block in root.blocks:
            fully_shard(block, mesh=mesh, mp_policy=policy, reshard_after_forward=config.parallel.reshard_after_forward)
        # A head's own group is needed again at once by its backward, the trunk's embedding is not needed there at all.
        fully_shard(root, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
    model.to_empty(device=torch.device(mesh.device_type))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            held = held_part(parameter)
            index = held.rows[:, None] * held.total_columns + held.columns[None, :]
            values = initial_values(name, index, seed=config.run.seed, model=config.model)
            local(parameter).copy_(values.view(local(parameter).shape))
    return model


def roots(model: MultiHead) -> list[Trunk | Head]:
    """Trunk (if there is one) and heads: the modules that are called from outside."""
    heads = [head for head in model.heads if isinstance(head, Head)]
    return [*([model.trunk] if model.trunk is not None else []), *heads]


def precision_policy(config: Config) -> MixedPrecisionPolicy:
    """Compute and reduction dtypes of ``train.precision`` and ``parallel.deterministic_reduce``.

    Sums of fp32 gradients of equal micro-batches are exact in fp64 for all practical purposes, hence do not depend on
    how many ranks they are spread over.
    """
    compute = None if config.train.precision == "fp32" else torch.bfloat16
    reduce = torch.float64 if config.parallel.deterministic_reduce else torch.float32
    if config.train.precision == "pure_bf16" and not config.parallel.deterministic_reduce:
        reduce = torch.bfloat16
    return MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=reduce)


def set_last_micro_batch(model: MultiHead, is_last: bool) -> None:
    """Reduce gradients only in the backward of the last micro-batch; the others accumulate locally."""
    for root in roots(model):
        assert isinstance(root, FSDPModule)
        root.set_requires_gradient_sync(is_last)
        root.set_is_last_backward(is_last)


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a DTensor as a plain tensor that shares its storage; a plain tensor itself."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def held_part(parameter: Tensor) -> Held:
    """Which rows and columns of ``parameter``, seen as a matrix [first dimension, the rest], this rank holds.

    Rows and columns are numbered by two thin tensors that are distributed exactly like the parameter, which is right
    for every placement (uneven, strided) and needs no communication.
    """
    rows_total, columns_total = parameter.shape[0], parameter.numel() // parameter.shape[0]
    if not isinstance(parameter, DTensor):
        device = parameter.device
        return Held(torch.arange(rows_total, device=device), torch.arange(columns_total, device=device), columns_total)
    device = parameter.device
    rows = torch.arange(rows_total, device=device).view([rows_total] + [1] * (parameter.ndim - 1))
    spread = distribute_tensor(rows, parameter.device_mesh, parameter.placements, src_data_rank=None).to_local()
    return Held(spread.reshape(-1), torch.arange(columns_total, device=device), columns_total)


def like_parameter(values: Tensor, parameter: Tensor) -> Tensor:
    """The flat local ``values`` as a tensor placed like ``parameter`` (same storage), e.g. to save it sharded."""
    if not isinstance(parameter, DTensor):
        return values.view(parameter.shape)
    return DTensor.from_local(
        values.view(parameter.to_local().shape), parameter.device_mesh, parameter.placements, run_check=False,
        shape=parameter.shape, stride=parameter.stride(),
    )  # fmt: skip
