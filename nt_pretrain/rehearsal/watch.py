"""What a stretch of code allocates and sends, seen at torch's dispatcher.

It works on real tensors and on fake ones (:class:`torch._subclasses.fake_tensor.FakeTensorMode`), which have sizes but
no values: a step can then be run in the shapes of a model and a mesh that no machine here could hold.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@dataclass(frozen=True)
class Sent:
    """Bytes that this rank sends by ring algorithms, and collectives it takes part in."""

    bytes: int = 0
    calls: int = 0

    def __add__(self, other: Sent) -> Sent:
        return Sent(self.bytes + other.bytes, self.calls + other.calls)

    def __mul__(self, times: int) -> Sent:
        return Sent(self.bytes * times, self.calls * times)


Traffic = dict[str, Sent]
"""By name of the process group."""


PART_OF_A_RANK = {
    "allgather_": 1,
    "_allgather_base_": 1,
    "reduce_scatter_": 0,
    "_reduce_scatter_base_": 0,
    "allreduce_": 0,
}
"""The argument of each collective that has one rank's part."""


class Watch(TorchDispatchMode):
    """While entered, counts live bytes of tensors made inside, their peak, and collectives by process group.

    A storage counts from the operation that returns it until nothing refers to it. Views count once. What existed
    before is not counted, unless it grows: FSDP gives gathered weights their memory and takes it back.

    Args:
        scratch: bytes that one of our kernels takes while it runs, by its name and arguments: these never get here.
    """

    def __init__(self, scratch: Callable[[str, tuple[Any, ...]], int] | None = None) -> None:
        super().__init__()
        self.scratch = scratch
        self.live = 0
        self.peak = 0
        self._sizes: dict[int, int] = {}
        self._bytes: Counter[str] = Counter()
        self._calls: Counter[str] = Counter()

    @property
    def traffic(self) -> Traffic:
        return {name: Sent(self._bytes[name], calls) for name, calls in self._calls.items()}

    def forget_peak(self) -> None:
        """Let the peak start from what is live now."""
        self.peak = self.live

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if any(issubclass(each, DTensor) for each in types):
            return NotImplemented  # it comes back as operations on the local tensors
        if function.namespace == "c10d":
            self._count(function, args)
        made = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self._see(tensor.untyped_storage())
        if self.scratch is not None and function.namespace == "nt_sparse":
            self.peak = max(self.peak, self.live + self.scratch(function.overloadpacket.__name__, args))
        return made

    def __enter__(self) -> Watch:
        self._resizes = _resizes_told_to(self._see)
        self._resizes.__enter__()
        return super().__enter__()

    def __exit__(self, *how: Any) -> None:
        super().__exit__(*how)
        self._resizes.__exit__(None, None, None)

    def _see(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._sizes:
            self._sizes[key] = 0
            weakref.finalize(storage, self._gone, key)
        self.live += size - self._sizes[key]
        self._sizes[key] = size
        self.peak = max(self.peak, self.live)

    def _gone(self, key: int) -> None:
        self.live -= self._sizes.pop(key)

    def _count(self, function: Any, args: tuple) -> None:
        name = function.overloadpacket.__name__
        if name in ("barrier", "monitored_barrier_"):
            return
        group = next(_group(each) for each in args if isinstance(each, torch.ScriptObject) and _is_group(each))
        ranks = dist.get_world_size(group)
        if name not in PART_OF_A_RANK:
            raise ValueError(f"no rule for what {name} sends; add one to PART_OF_A_RANK")
        tensors = [each for each in tree_leaves(args[PART_OF_A_RANK[name]]) if isinstance(each, Tensor)]
        part = sum(each.numel() * each.element_size() for each in tensors)
        sent = 2 * (ranks - 1) * part // ranks if name == "allreduce_" else (ranks - 1) * part
        self._bytes[group.group_name] += sent
        self._calls[group.group_name] += ranks > 1


def _is_group(script: torch.ScriptObject) -> bool:
    return "ProcessGroup" in str(script._type())


def _group(script: torch.ScriptObject) -> dist.ProcessGroup:
    return dist.ProcessGroup.unbox(script)


@contextmanager
def _resizes_told_to(see: Any) -> Iterator[None]:
    """Storages are resized behind the dispatcher's back and torch has no hook for it, so their method is replaced."""
    resize = torch.UntypedStorage.resize_

    def told(storage: torch.UntypedStorage, size: int) -> None:
        resize(storage, size)
        see(storage)

    torch.UntypedStorage.resize_ = told  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        torch.UntypedStorage.resize_ = resize  # type: ignore[method-assign]
