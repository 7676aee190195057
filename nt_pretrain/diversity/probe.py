"""The fixed probe set: the first samples of the validation split, as networks take them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nt_pretrain.config.schema import Config
from nt_pretrain.data.augment import normalised
from nt_pretrain.data.sources import Sources
from nt_pretrain.diversity.activations import Batch, spaced
from nt_pretrain.evaluation.batches import validation_set
from nt_pretrain.models.loss import IGNORED
from nt_pretrain.parallel.forward import Inputs
from nt_pretrain.parallel.mesh import Ranks


@dataclass(frozen=True)
class Probe:
    """Samples with their labels.

    Attributes:
        batches: as networks take them, on the device.
        inputs: all of them as they were read, on the CPU: tokens [S, T], pixels [S, 3, Y, X] (uint8) or features.
        targets: tokens [S, T] or labels [S]; IGNORED where there is none.
        classes: their names for people, or none.
    """

    batches: list[Batch]
    inputs: Tensor
    targets: Tensor
    classes: tuple[str, ...] = ()

    def class_name(self, label: int) -> str:
        return self.classes[label] if label < len(self.classes) else f"class {label}"

    @property
    def is_text(self) -> bool:
        return self.targets.ndim == 2

    @property
    def is_pictures(self) -> bool:
        return self.inputs.ndim == 4


def probe_set(config: Config, ranks: Ranks) -> Probe:
    """Read the validation samples that ``config`` asks for, on one rank.

    Raises:
        DataError: they cannot be read.
    """
    dtype = torch.float64 if config.train.precision == "fp64" else torch.float32
    read = [_labelled(batch) for batch in validation_set(config, ranks).read()]
    read = [batch for batch in read if batch.samples]
    said = [batch.targets.reshape(-1) != IGNORED for batch in read]
    wanted = torch.zeros(sum(len(each) for each in said), dtype=torch.bool)
    there = torch.cat(said).nonzero()[:, 0]
    wanted[there[spaced(len(there))]] = True
    batches = []
    for batch, rows in zip(read, wanted.split([len(each) for each in said]), strict=True):
        on = batch.to(ranks.device)
        inputs = normalised(on.inputs, dtype) if on.inputs.dtype == torch.uint8 else on.inputs
        batches.append(Batch(inputs, on.documents, rows.nonzero()[:, 0] if batch.targets.ndim == 2 else None))
    manifest = Sources.of_model(config, "validation").splits[0].manifest
    return Probe(
        batches,
        torch.cat([each.inputs for each in read]),
        torch.cat([each.targets for each in read]),
        tuple(manifest.class_names or manifest.classes),
    )


def _labelled(batch: Inputs) -> Inputs:
    """Without the samples that only fill up a batch."""
    there = (batch.targets != IGNORED).flatten(1).any(1) if batch.targets.ndim > 1 else batch.targets != IGNORED
    documents = None if batch.documents is None else batch.documents[there]
    return Inputs(batch.inputs[there], batch.targets[there], documents)
