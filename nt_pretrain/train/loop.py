"""The training loop, on one page."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from nt_pretrain.config.schema import Config
from nt_pretrain.data.loader import Batch
from nt_pretrain.methods.phase import Phase
from nt_pretrain.observe.exitcodes import ExitCode
from nt_pretrain.observe.meters import Meter
from nt_pretrain.parallel.forward import Inputs
from nt_pretrain.parallel.growth import GrowthScores
from nt_pretrain.parallel.mesh import Ranks, set_timeout
from nt_pretrain.parallel.watchdog import Watchdog
from nt_pretrain.sparsity.schedule import is_update_step, prune_rate
from nt_pretrain.train import readings
from nt_pretrain.train.anneal import drawn_masks, settle, target_only
from nt_pretrain.train.beside import Beside
from nt_pretrain.train.change import change_topology, growth_scores
from nt_pretrain.train.checkpoints import Checkpoints
from nt_pretrain.train.dropout import step_dropout
from nt_pretrain.train.failures import DivergedError
from nt_pretrain.train.lr import learning_rate
from nt_pretrain.train.many_inputs import input_orders
from nt_pretrain.train.observer import Observer
from nt_pretrain.train.quarantine import Quarantine
from nt_pretrain.train.requests import Requests
from nt_pretrain.train.state import TrainState
from nt_pretrain.train.step import accumulate_gradients, apply_gradients
from nt_pretrain.train.stripping import Stripping
from nt_pretrain.train.validation import Validation


@dataclass(frozen=True)
class Parts:
    """What the loop works with in one phase; :mod:`nt_pretrain.train.run` puts it together.

    ``batches`` go on from phase to phase; ``total_steps`` are those of all phases.
    """

    phase: Phase
    total_steps: int
    ranks: Ranks
    state: TrainState
    batches: Iterator[Batch]
    quarantine: Quarantine
    meter: Meter
    observer: Observer
    requests: Requests
    validation: Validation
    checkpoints: Checkpoints
    watchdog: Watchdog


def train(parts: Parts, beside: Beside) -> ExitCode:
    """Train from ``state.step`` to the last step of the phase, or until told to stop.

    Args:
        beside: frozen weights that the phase needs beside its state.

    Raises:
        DivergedError: the gradient is not finite; nothing of this step is saved.
        DataError: data cannot be read, or too much of it.
        CheckpointError: a checkpoint cannot be written; one written in the background tells it some steps later.
    """
    state, meter, observer, ranks, watchdog = parts.state, parts.meter, parts.observer, parts.ranks, parts.watchdog
    phase, batches, first = parts.phase, parts.batches, parts.state.step + 1
    stripping = Stripping(phase, state, ranks, observer)
    while state.step < phase.last:
        step = state.step + 1
        # Whatever is a function of the step counts those of the phase, and uses what the configuration says there.
        step_in = step - phase.before
        config = phase.config_at(step_in)
        watchdog.at(step, "reading data")
        with meter.waiting():
            batch = parts.quarantine.next_batch(batches, step)
        watchdog.at(step, "computing gradients")
        scores = growth_scores(state, config, ranks, step_in)
        inputs = inputs_of(batch, config, ranks)
        drop = step_dropout(config, step, inputs.samples, ranks)
        orders = input_orders(config, step, inputs.samples, ranks)
        stripping.before_step(step)
        objective = beside.objective(step_in, inputs.samples)
        with drawn_masks(state, phase, step_in) as drawn, beside.for_step(step_in):
            losses = accumulate_gradients(state.model, config, inputs, ranks, scores, drop, orders, objective)
        stripping.after_gradients(step)
        if is_update_step(config, step_in):
            watchdog.at(step, "updating topologies")
            observer.topology_changed(step, *_update_topology(parts, config, step_in, scores))
        lr = learning_rate(config, step_in)
        norm = apply_gradients(state.optimizer, state.layers, config, ranks, lr, drawn)
        if not math.isfinite(norm):
            raise DivergedError(f"step {step}: gradient norm {norm}, losses of the heads {losses.per_head}")
        if state.average is not None:
            state.average.update()
        settle(state, phase, step_in)
        state.step, state.targets = step, state.targets + losses.targets
        meter.step(losses.targets)
        last = step == phase.last
        if step % config.observe.log_every_steps == 0 or last:
            values = readings.of_step(losses, head_loss=config.train.head_loss, grad_norm=norm, lr=lr)
            observer.stepped(step, values | meter.read() | parts.quarantine.readings())
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
        if validation_is_due(phase, step):
            watchdog.at(step, "validating")
            with meter.paused(), target_only(state, phase, step_in), beside.for_validation():
                observer.validated(step, *parts.validation.measure())
        if decision.stop and step < parts.total_steps:
            observer.stopping(step, decision.reason)
            return ExitCode.STOPPED
        if step == first:
            set_timeout(ranks, config.parallel.timeout_seconds)
            watchdog.allow(config.parallel.timeout_seconds)
    return ExitCode.FINISHED


def inputs_of(batch: Batch, config: Config, ranks: Ranks) -> Inputs:
    """What this rank's samples are as inputs and targets, on its device."""
    # Sent as they came: token numbers are half as wide, and from pinned memory the copy runs beside the computation.
    first, second = (array.to(ranks.device, non_blocking=True) for array in batch.arrays)
    return (Inputs.of_labelled if config.model.classifies else Inputs.of_text)(first, second)


def _update_topology(
    parts: Parts, config: Config, step: int, scores: GrowthScores | None
) -> tuple[dict[str, float], str]:
    """Readings of the update and the digest of the new topology."""
    changes = change_topology(parts.state, config, parts.ranks, step, scores)
    rate = prune_rate(config, step)
    found = readings.of_update(changes, rate) | readings.of_topology(parts.state.budgets)
    return found, parts.state.digest(parts.ranks)


def validation_is_due(phase: Phase, step: int) -> bool:
    """Whether the run validates after ``step``, which lies in ``phase``."""
    return step == phase.last or _due(step, phase.config.eval.every_steps)


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
