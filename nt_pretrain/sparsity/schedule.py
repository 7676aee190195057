"""When the topology changes, by how much, and how dense the model is: functions of the step alone."""

from __future__ import annotations

import math

from nt_pretrain.config.schema import Config


def is_update_step(config: Config, step: int) -> bool:
    """Whether optimizer step ``step`` (counted from 1) ends with a topology update."""
    sparsity = config.sparsity
    if sparsity.density == 1.0:
        return False
    return step % sparsity.update_every == 0 and step <= sparsity.stop_fraction * config.total_steps


def update_count(config: Config) -> int:
    """Topology updates of a whole run."""
    if config.sparsity.density == 1.0:
        return 0
    return math.floor(config.sparsity.stop_fraction * config.total_steps) // config.sparsity.update_every


def prune_rate(config: Config, step: int) -> float:
    """rho(t): the share of active units dropped at step ``step``.

    Cosine form: end + (start - end) * (1 + cos(pi t / T)) / 2 with T the run's steps (NeuroTrails, arXiv 2505.17909).
    """
    sparsity = config.sparsity
    start, end, progress = sparsity.prune_rate, sparsity.prune_rate_end, step / config.total_steps
    if sparsity.prune_rate_schedule == "constant":
        return start
    if sparsity.prune_rate_schedule == "linear":
        return start + (end - start) * progress
    return end + 0.5 * (start - end) * (1.0 + math.cos(math.pi * progress))


def overall_density(config: Config, step: int) -> float:
    """Density of the sparse layers that an update at step ``step`` aims at."""
    sparsity = config.sparsity
    if sparsity.density_schedule == "constant":
        return sparsity.density
    progress = min(1.0, step / config.total_steps)
    if sparsity.density_schedule == "linear":
        left = 1.0 - progress
    else:
        left = 0.5 * (1.0 + math.cos(math.pi * progress))
    return sparsity.density + (sparsity.density_start - sparsity.density) * left
