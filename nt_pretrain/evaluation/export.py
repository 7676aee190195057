"""One head of a run with its trunk as one ordinary network, in the layout of timm: for use without this program."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from nt_pretrain.checkpoint.errors import on_first
from nt_pretrain.config.errors import ConfigErrors
from nt_pretrain.evaluation.chosen import Chosen
from nt_pretrain.evaluation.plain import make_plain
from nt_pretrain.evaluation.speakers import find_all, load_all
from nt_pretrain.models.member_network import member_network, plain_section
from nt_pretrain.models.network import vision_of
from nt_pretrain.models.timm_layout import to_timm
from nt_pretrain.models.vision import VisionModel
from nt_pretrain.parallel.mesh import Ranks


def exportable(chosen: Chosen, head: int, *, world: int) -> tuple[Chosen, VisionModel]:
    """The one head that is written, by its number over all members, and its network.

    Raises:
        ConfigErrors: timm has no such network, the model has no such head, or there are several ranks.
    """
    chosen = chosen.only(head)
    model = chosen.config.model
    if model.sharing == "inputs":
        raise ConfigErrors(["model.sharing: inputs is one network for all members; none can be written by itself"])
    wrong = [f"{world} ranks were started; an export takes one process, without torchrun"] if world > 1 else []
    if not model.sees_pictures or vision_of(model).is_for_small_pictures:
        wrong.append(f"model.family {model.family} has no layout in timm; resnet18, resnet34 and resnet50 have")
    elif model.channels is not None:
        wrong.append(f"model.channels {list(model.channels)}: timm's {model.family} has channels of its own")
    if wrong:
        raise ConfigErrors(wrong)
    return chosen, vision_of(plain_section(model))


def export(chosen: Chosen, ranks: Ranks, out: Path, tell: Callable[[str], None], *, head: int, average: bool) -> None:
    """Write a state dict for ``timm.create_model(...).load_state_dict`` to ``out``, replacing what is there.

    Args:
        ranks: one.
        head: whose network, by its number over all members.
        average: the moving average of the weights instead of these.

    Raises:
        CheckpointError: there is no checkpoint, it cannot be used, or ``out`` cannot be written.
        ConfigErrors: as :func:`exportable`.
    """
    chosen, model = exportable(chosen, head, world=ranks.world)
    (loaded,) = load_all(find_all(chosen, ranks), chosen, ranks, average=average)
    (speaker,) = chosen.speakers
    network, head = loaded.model, speaker.heads[0]
    if speaker.config.model.sharing != "none":
        make_plain(network, torch.float64 if speaker.config.train.precision == "fp64" else torch.float32)
        network, head = member_network(network, speaker.config.model, head), 0
    state = {name: _whole(tensor) for name, tensor in network.state_dict().items()}
    on_first(ranks.control, f"cannot write {out}", lambda: _save(to_timm(state, model, head=head), out))
    for skipped in loaded.skipped:
        tell(f"checkpoint skipped: {skipped}")
    kind = ", average of the weights" if average else ""
    of = f"{speaker.name}, {chosen.manifest[0]}" if chosen.manifest else speaker.config.run.name
    tell(f"head {speaker.heads[0]} of {of}, step {loaded.step:,}{kind}: {out}")
    tell(f"  network = timm.create_model({model.family!r}, num_classes={model.classes})")
    if model.small_stem:
        tell("  network.conv1 = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False)")
        tell("  network.maxpool = torch.nn.Identity()")
    tell(f"  network.load_state_dict(torch.load({str(out)!r}))")


def _whole(tensor: Tensor) -> Tensor:
    """On the CPU, in storage of its own: a file holds the whole storage of what is saved."""
    full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return full.detach().cpu().clone(memory_format=torch.contiguous_format)


def _save(state: dict[str, Tensor], out: Path) -> Path:
    """Written beside and renamed, so that there is never half a file."""
    out.parent.mkdir(parents=True, exist_ok=True)
    half = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        torch.save(state, half)
        half.replace(out)
    finally:
        half.unlink(missing_ok=True)
    return out
