"""Hidden units dropped for a while: which there are, and masks that are functions of a key and a number.

Units are the hidden units of a feed-forward layer and the heads of an attention layer, the channels between the
convolutions of a residual block (where WideResNet has its dropout, Zagoruyko and Komodakis 2016, arXiv 1605.07146), and
the units of a hidden layer of a perceptron. What is left is scaled by 1 / (1 - rate) (Srivastava et al. 2014). A mask
holds for a whole sample, all tokens and all places of a picture (Gal and Ghahramani 2016, arXiv 1512.05287).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from nt_pretrain.counter_random import key_of, uniform
from nt_pretrain.models.llama import Attention

_READERS = re.compile(r"(^|\.)(ffn\.down|attention\.out|conv3x3_second|conv1x1_last|conv3x3)$")
"""Layers whose input is hidden units."""
_WRITERS = re.compile(r"(^|\.)blocks\.\d+\.linear$")
"""Layers whose block gives hidden units: those of a perceptron."""


@dataclass(frozen=True)
class Site:
    """Where units of one kind lie.

    Attributes:
        name: of the layer that reads or makes them.
        module: their values are its input, or, with ``after``, its output.
        axis: of these values along which they lie.
        width: values of each unit.
    """

    name: str
    module: nn.Module
    axis: int
    width: int = 1
    after: bool = False


@dataclass(frozen=True)
class Drop:
    """What is dropped.

    Attributes:
        rate: chance of every unit.
        key: of the masks (seed, step or pass, ...).
        samples: int64 [S], numbers of the samples, each with a mask of its own; None: one mask for all.
        cut: (this rank, ranks) of those that share the units of a layer, a part in a row each.
    """

    rate: float
    key: tuple[object, ...]
    samples: Tensor | None = None
    cut: tuple[int, int] = (0, 1)


def sites(model: nn.Module) -> list[Site]:
    """All of ``model``, in the order of its modules."""
    modules = dict(model.named_modules())
    found = []
    for name, module in modules.items():
        parent = modules[name.rpartition(".")[0]] if "." in name else model
        if _READERS.search(name):
            width = parent.head_dim if isinstance(parent, Attention) else 1
            found.append(Site(name, module, 1 if "conv" in name else -1, width))
        elif _WRITERS.search(name):
            found.append(Site(name, parent, -1, after=True))
    return found


@contextmanager
def dropping(model: nn.Module, drop: Drop, *, prefix: str = "") -> Iterator[None]:
    """Inside, forward passes of ``model`` drop units; with rate 0 it changes nothing, not even a bit.

    Args:
        prefix: before the layers' names, where ``model`` is a part of a larger one.
    """
    with ExitStack() as stack:
        for site in sites(model) if drop.rate else []:
            change = partial(_dropped, drop=drop, site=site, name=prefix + site.name)
            if site.after:
                handle = site.module.register_forward_hook(lambda module, inputs, out, change=change: change(out))
            else:
                handle = site.module.register_forward_pre_hook(partial(_change_input, change=change))
            stack.callback(handle.remove)
        yield


def kept(drop: Drop, name: str, units: int, device: torch.device) -> Tensor:
    """Which of the ``units`` of a layer held here stay: bool [S, units], or [1, units] without numbers of samples."""
    rank, ranks = drop.cut
    own = torch.arange(rank * units, (rank + 1) * units, device=device)
    samples = torch.zeros(1, dtype=torch.int64) if drop.samples is None else drop.samples
    index = samples.to(device)[:, None] * (units * ranks) + own
    return uniform(key_of(*drop.key, "dropout", name), index) >= drop.rate


def _change_input(module: nn.Module, inputs: tuple[Any, ...], *, change: Any) -> tuple[Any, ...]:
    return (change(inputs[0]), *inputs[1:])


def _dropped(x: Tensor, *, drop: Drop, site: Site, name: str) -> Tensor:
    mask = kept(drop, name, x.shape[site.axis] // site.width, x.device).repeat_interleave(site.width, dim=1)
    shape = [1] * x.ndim
    shape[0], shape[site.axis] = mask.shape
    return x * (mask.view(shape).to(x.dtype) / (1.0 - drop.rate))
