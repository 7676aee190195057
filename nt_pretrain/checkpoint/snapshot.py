"""Copies of a state's tensors in host memory, so that training may go on while they are written."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from nt_pretrain.parallel.shard import local


class HostBuffers:
    """Host memory for one state, allocated by the first copy and used again by all later ones.

    On CUDA it is pinned, which makes copies several times faster; torch rounds pinned allocations up to powers of two,
    so plan for up to twice the size of the state.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def copy(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Copy ``tensors``; the values are complete when this returns, so the originals may change at once.

        Args:
            tensors: DTensors (this rank's shards are copied) and plain tensors.

        Returns:
            The buffers, placed like the originals. The next call writes over them.
        """
        assert all(isinstance(tensor, Tensor) for tensor in tensors.values()), "anything else torch would pickle"
        if not _fit(self._buffers, tensors):
            self._buffers = {}  # freed before the new ones are made
            self._buffers = {name: _host_like(tensor) for name, tensor in tensors.items()}
        devices = set()
        for name, tensor in tensors.items():
            local(self._buffers[name]).copy_(local(tensor).detach(), non_blocking=True)
            devices.add(tensor.device)
        for device in devices:
            if device.type == "cuda":
                torch.cuda.synchronize(device)
        return self._buffers


def _fit(buffers: dict[str, Tensor], tensors: dict[str, Tensor]) -> bool:
    return buffers.keys() == tensors.keys() and all(
        _layout(buffers[name]) == _layout(tensor) for name, tensor in tensors.items()
    )


def _layout(tensor: Tensor) -> tuple[object, ...]:
    placed = (tensor.device_mesh, tensor.placements) if isinstance(tensor, DTensor) else None
    return tensor.shape, local(tensor).shape, tensor.dtype, placed


def _host_like(tensor: Tensor) -> Tensor:
    """A tensor in host memory placed like ``tensor``: a DTensor keeps its mesh, even one of GPUs."""
    buffer = tensor.detach().to("cpu", copy=True)
    if tensor.device.type == "cuda":
        if not isinstance(buffer, DTensor):
            return buffer.pin_memory()
        # Not DTensor.from_local: it would move the shard to the device of the mesh.
        buffer._local_tensor = buffer._local_tensor.pin_memory()
    return buffer
