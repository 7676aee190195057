"""The training loop, on one page."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from nt_pretrain.config.schema import Config
from nt_pretrain.data.loader import Batch, TrainLoader
from nt_pretrain.observe.exitcodes import ExitCode
from nt_pretrain.observe.meters import Meter
from nt_pretrain.parallel.forward import Inputs
from nt_pretrain.parallel.growth import GrowthScores
from nt_pretrain.parallel.mesh import Ranks, tighten_timeout
from nt_pretrain.parallel.watchdog import Watchdog
from nt_pretrain.sparsity.schedule import is_update_step, prune_rate
from nt_pretrain.train import readings
from nt_pretrain.train.change import change_topology, growth_scores
from nt_pretrain.train.checkpoints import Checkpoints
from nt_pretrain.train.failures import DivergedError
from nt_pretrain.train.lr import learning_rate
from nt_pretrain.train.observer import Observer
from nt_pretrain.train.quarantine import Quarantine
from nt_pretrain.train.requests import Requests
from nt_pretrain.train.state import TrainState
from nt_pretrain.train.step import accumulate_gradients, apply_gradients
from nt_pretrain.train.stripping import Stripping
from nt_pretrain.train.validation import Validated


@dataclass(frozen=True)
class Parts:
    """What the loop works with; :mod:`nt_pretrain.train.run` puts it together."""

    config: Config
    ranks: Ranks
    state: TrainState
    loader: TrainLoader
    quarantine: Quarantine
    meter: Meter
    observer: Observer
    requests: Requests
    validate: Callable[[], Validated]
    checkpoints: Checkpoints
    watchdog: Watchdog


def train(parts: Parts) -> ExitCode:
    """Train from ``state.step`` to the last step, or until told to stop.

    Raises:
        DivergedError: the gradient is not finite; nothing of this step is saved.
        DataError: data cannot be read, or too much of it.
        CheckpointError: a checkpoint cannot be written; one written in the background tells it some steps later.
    """
    with contextlib.closing(iter(parts.loader)) as batches:
        return _steps(parts, batches)


def _steps(parts: Parts, batches: Iterator[Batch]) -> ExitCode:
    config, state, meter, observer, ranks = parts.config, parts.state, parts.meter, parts.observer, parts.ranks
    watchdog = parts.watchdog
    stripping = Stripping(config, state, ranks, observer)
    first = state.step + 1
    while state.step < config.total_steps:
        step = state.step + 1
        watchdog.at(step, "reading data")
        with meter.waiting():
            batch = parts.quarantine.next_batch(batches, step)
        watchdog.at(step, "computing gradients")
        scores = growth_scores(state, config, ranks, step)
        stripping.before_step(step)
        losses = accumulate_gradients(state.model, config, inputs_of(batch, config, ranks), ranks, scores)
        stripping.after_gradients(step)
        if is_update_step(config, step):
            watchdog.at(step, "updating topologies")
            observer.topology_changed(step, *_update_topology(parts, step, scores))
        lr = learning_rate(config, step)
        norm = apply_gradients(state.optimizer, state.layers, config, ranks, lr)
        if not math.isfinite(norm):
            raise DivergedError(f"step {step}: gradient norm {norm}, losses of the heads {losses.per_head}")
        if state.average is not None:
            state.average.update()
        state.step, state.targets = step, state.targets + losses.targets
        meter.step(losses.targets)
        if step % config.observe.log_every_steps == 0 or step == config.total_steps:
            values = readings.of_step(losses, head_loss=config.train.head_loss, grad_norm=norm, lr=lr)
            observer.stepped(step, values | meter.read() | parts.quarantine.readings())
        last = step == config.total_steps
        decision = parts.requests.decide(parts.checkpoints.progress())
        if decision.settle:
            watchdog.at(step, "waiting for a checkpoint")
            with meter.paused():
                parts.checkpoints.settle()
        # First of all the checkpoint: launchers kill what has not ended some seconds after their signal.
        if last or decision.save or _due(step, config.checkpoint.save_every_steps):
            watchdog.at(step, "saving")
            with meter.paused():
                parts.checkpoints.save(batch, parts.quarantine.facts(), wait=last or decision.stop)
            parts.requests.saved()
        if validation_is_due(config, step):
            watchdog.at(step, "validating")
            with meter.paused():
                observer.validated(step, *parts.validate())
        if decision.stop and not last:
            observer.stopping(step, decision.reason)
            return ExitCode.STOPPED
        if step == first:
            tighten_timeout(ranks, config.parallel.timeout_seconds)
            watchdog.allow(config.parallel.timeout_seconds)
    return ExitCode.FINISHED


def inputs_of(batch: Batch, config: Config, ranks: Ranks) -> Inputs:
    """What this rank's samples are as inputs and targets, on its device."""
    # Sent as they came: token numbers are half as wide, and from pinned memory the copy runs beside the computation.
    first, second = (array.to(ranks.device, non_blocking=True) for array in batch.arrays)
    return (Inputs.of_pictures if config.model.sees_pictures else Inputs.of_text)(first, second)


def _update_topology(parts: Parts, step: int, scores: GrowthScores | None) -> tuple[dict[str, float], str]:
    """Readings of the update and the digest of the new topology."""
    changes = change_topology(parts.state, parts.config, parts.ranks, step, scores)
    rate = prune_rate(parts.config, step)
    found = readings.of_update(changes, rate) | readings.of_topology(parts.state.budgets)
    return found, parts.state.digest(parts.ranks)


def validation_is_due(config: Config, step: int) -> bool:
    """Whether the run validates after ``step``."""
    return step == config.total_steps or _due(step, config.eval.every_steps)


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
