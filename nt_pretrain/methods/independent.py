"""Ensembles of members trained one after the other, each from its own seed: weights, topology and batches are its own.

Deep ensemble (Lakshminarayanan et al. 2017, arXiv 1612.01474), and FreeTickets' DST ensemble (Liu et al., ICLR 2022,
arXiv 2106.14568): the same of sparse models whose topology evolves.
"""

from __future__ import annotations

from nt_pretrain.config.schema import Config
from nt_pretrain.methods.phase import Fresh, Phase, of_length, seed_of
from nt_pretrain.methods.settings import dense, members_of, single


def deep_ensemble(config: Config) -> list[Phase]:
    """M dense models of train.steps steps each."""
    return _members(config, single(dense(config)))


def dst_ensemble(config: Config) -> list[Phase]:
    """M sparse models of train.steps steps each."""
    return _members(config, single(config))


def _members(config: Config, model: Config) -> list[Phase]:
    return [
        Phase(
            f"member_{number}",
            of_length(model, config.total_steps, {"run.seed": seed_of(config, number)}),
            Fresh(),
            emits=f"member_{number}",
        )
        for number in range(members_of(config))
    ]
