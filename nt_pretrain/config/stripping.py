"""What does not go together with synaptic stripping."""

from __future__ import annotations

from nt_pretrain.config.schema import Config, StrippingSection
from nt_pretrain.models.units import units_of


def stripping_problems(config: Config) -> list[str]:
    """Options of ``stripping`` that have no effect, and others that it cannot go with, one line each."""
    section, sparsity = config.stripping, config.sparsity
    if section.every_steps == 0:
        default = StrippingSection()
        return [
            f"stripping.{key}: has no effect while stripping.every_steps is 0; set that, or leave {key} out"
            for key in ("window_steps", "quantile", "threshold")
            if getattr(section, key) != getattr(default, key)
        ]
    found = []
    if section.window_steps > section.every_steps:
        found.append(
            f"stripping.window_steps: {section.window_steps:,} exceeds stripping.every_steps {section.every_steps:,}, "
            "but each step counts for one removal only; 0 counts all steps since the one before"
        )
    if not units_of(config.model):
        found.append(
            f"stripping.every_steps: the units of model.ffn: {config.model.ffn} are never exactly 0, so none could be "
            "dead; set model.ffn: relu or relu2, or stripping.every_steps: 0"
        )
    if sparsity.density < 1.0 and (sparsity.backend == "block" or sparsity.unit > 1 or sparsity.balance == "line"):
        key = "backend: block" if sparsity.backend == "block" else f"unit: {sparsity.unit}"
        found.append(
            f"stripping.every_steps: single weights are removed for good, with which sparsity.{key} cannot go, whose "
            "layers keep their number of active units; set sparsity.backend: masked, unit: 1 and balance: layer"
        )
    if config.parallel.compile:
        found.append(
            "stripping.every_steps: compiled blocks do not tell which of their units are active; set parallel.compile: "
            "false"
        )
    return found
