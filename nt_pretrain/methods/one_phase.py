"""Methods that are one phase of ordinary training: settings of the sections model and sparsity.

NeuroTrails (arXiv 2505.17909), TreeNet (Lee et al. 2015, arXiv 1511.06314), SET (arXiv 1707.04780), RigL (arXiv
1911.11134), and the deep ensemble (Lakshminarayanan et al. 2017, arXiv 1612.01474) as one network without a trunk.
"""

from __future__ import annotations

from nt_pretrain.config.schema import Config
from nt_pretrain.methods.phase import Phase, changed
from nt_pretrain.methods.settings import dense, members_of, single
from nt_pretrain.models.network import block_count


def as_configured(config: Config) -> list[Phase]:
    """The sections model and sparsity as they stand."""
    return [Phase("train", config)]


def one_dense(config: Config) -> list[Phase]:
    """One dense model."""
    return [Phase("train", single(dense(config)))]


def treenet(config: Config) -> list[Phase]:
    """A trunk and M dense heads."""
    return [Phase("train", changed(dense(config), {"model.heads": members_of(config)}))]


def neurotrails(config: Config) -> list[Phase]:
    """A trunk and M heads with a topology that goes on evolving."""
    return [Phase("train", changed(config, {"model.heads": members_of(config)}))]


def joint_ensemble(config: Config) -> list[Phase]:
    """M dense models side by side in one network: all blocks in the heads."""
    everything = {"model.heads": members_of(config), "model.blocks_in_head": block_count(config.model)}
    return [Phase("train", changed(dense(config), everything))]


def set_(config: Config) -> list[Phase]:
    """One sparse model, grown at random (SET)."""
    return [Phase("train", changed(single(config), {"sparsity.grow": "random"}))]


def rigl(config: Config) -> list[Phase]:
    """One sparse model, grown by gradient (RigL)."""
    return [Phase("train", changed(single(config), {"sparsity.grow": "gradient"}))]


def static(config: Config) -> list[Phase]:
    """One sparse model whose first topology stays."""
    return [Phase("train", changed(single(config), {"sparsity.stop_fraction": 0.0}))]
