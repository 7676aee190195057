"""The one composition root: builds everything of a run in order, trains, and leaves in order."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import IO, Any

import torch.distributed as dist

from nt_pretrain.checkpoint.errors import on_first
from nt_pretrain.checkpoint.folders import remove_leftovers
from nt_pretrain.checkpoint.load import Found, newest_valid
from nt_pretrain.config.errors import ConfigErrors
from nt_pretrain.config.load import to_yaml
from nt_pretrain.config.schema import Config
from nt_pretrain.data.loader import TrainLoader
from nt_pretrain.data.position import Position
from nt_pretrain.data.sources import Sources
from nt_pretrain.data.tokenizer import load_tokenizer
from nt_pretrain.methods.calendar import calendar_of, recipe_of
from nt_pretrain.methods.phase import Calendar, Clone, Phase
from nt_pretrain.observe.claim import claim
from nt_pretrain.observe.environment import collect
from nt_pretrain.observe.exitcodes import ExitCode, report_failure
from nt_pretrain.observe.log import Console, open_rank_log
from nt_pretrain.observe.meters import Meter, memory_total_bytes
from nt_pretrain.observe.record import Recorder
from nt_pretrain.observe.rundir import RunDir, Status
from nt_pretrain.parallel.mesh import Ranks, set_timeout
from nt_pretrain.parallel.watchdog import Watchdog
from nt_pretrain.train import readings
from nt_pretrain.train.anneal import goes_on, keep_target
from nt_pretrain.train.begin import empty_state, initial_state, phase_of
from nt_pretrain.train.checkpoints import Checkpoints
from nt_pretrain.train.costs import executed_per_sample
from nt_pretrain.train.failures import exit_code_of, explained, words_of
from nt_pretrain.train.loop import Parts, validation_is_due
from nt_pretrain.train.members import Members
from nt_pretrain.train.observer import Observer
from nt_pretrain.train.phase_plan import render_run
from nt_pretrain.train.phases import train_phases
from nt_pretrain.train.quarantine import Quarantine
from nt_pretrain.train.recorded import is_recorded
from nt_pretrain.train.requests import Requests
from nt_pretrain.train.resume import first_line, how_to_go_on, resume
from nt_pretrain.train.state import TrainState, identity
from nt_pretrain.train.together import on_all
from nt_pretrain.train.validation import Validation


def run(config: Config, command: str, ranks: Ranks) -> ExitCode:
    """Train the run that ``config`` describes, from its newest checkpoint if it has one.

    Args:
        command: the command line, for messages that say how to go on.

    Raises:
        CheckpointError, DataError, DivergedError: with a message for people; the status file says the same.
        ConfigErrors: another process runs in the run directory.
    """
    rundir = RunDir(f"{config.run.dir}/{config.run.name}")
    rundir.create()
    open_rank_log(rundir.rank_log(ranks.rank), ranks.rank)
    calendar = calendar_of(config)
    console = _console(config, calendar.total_steps, ranks)
    console.plain(render_run(config, ranks.world))
    lock = _claim(rundir, console, ranks)
    with contextlib.closing(lock) if lock is not None else contextlib.nullcontext():
        with _failure_in_status(calendar.total_steps, config, ranks, rundir):
            tokenizer = on_all(ranks, lambda: _tokenizer_hash(config))
        members = Members(config, calendar, rundir, tokenizer, ranks, trained_in=rundir)
        requests = Requests(rundir, config.checkpoint, ranks)
        requests.listen()
        code = _run(config, members, requests, command, console)
        if code is not ExitCode.FINISHED or not _is_finished(rundir, ranks):
            return code
        return _make_again(config, members, requests, command, console)


def _make_again(config: Config, members: Members, requests: Requests, command: str, console: Console) -> ExitCode:
    """Train the members of a finished run whose folders are gone once more, each by itself."""
    ranks = members.ranks
    again, lines = members.to_make_again()
    for line in lines:
        console.plain(line)
    # Of members that are listed: killed before this was gone.
    done = {each.emits for each in members.calendar if each.emits} - {each.emits for each in again}
    left = [members.beside(name).path for name in sorted(done)]
    on_first(ranks.control, "cannot remove what is left", lambda: all(_removed(path) for path in left))
    for phase in again:
        if requests.stopping():
            return ExitCode.FINISHED if requests.ends_the_job else ExitCode.STOPPED
        # A state was in memory until now, and another model is built, maybe compiled.
        gc.collect()
        set_timeout(ranks, config.parallel.first_timeout_seconds)
        console.plain(f"member {phase.emits} is gone and is made again: {phase.steps:,} steps")
        folder = members.beside(phase.emits)
        folder.create()
        alone = replace(members, calendar=Calendar((phase,)), trained_in=folder)
        code = _run(config, alone, requests, command, console)
        if code is not ExitCode.FINISHED or not _is_finished(folder, ranks):
            return code
        on_first(ranks.control, f"cannot remove {folder.path}", partial(_removed, folder.path))
    return ExitCode.FINISHED


def _removed(path: Path) -> bool:
    if path.is_dir():
        shutil.rmtree(path)
    return True


def _is_finished(rundir: RunDir, ranks: Ranks) -> bool:
    """Whether the run ended by itself: a run that file STOP has ended leaves as one that is finished."""

    def look() -> bool:
        status = rundir.read_status()
        return status is not None and status.state == "finished"

    return on_first(ranks.control, f"cannot read {rundir.status}", look)


def _run(config: Config, members: Members, requests: Requests, command: str, console: Console) -> ExitCode:
    """Train the phases of ``members`` in its folder, from the newest checkpoint there."""
    calendar, ranks, rundir = members.calendar, members.ranks, members.trained_in
    with _failure_in_status(calendar.total_steps, config, ranks, rundir):
        clean = on_first(ranks.control, "clean the checkpoint folder", lambda: remove_leftovers(rundir.checkpoints))
        found = newest_valid(rundir.checkpoints, group=ranks.control)
        phase = phase_of(found, calendar, config)
        members.refuse_other_parents()
        saved_as = identity(phase.config, members.tokenizer)
        state, position = _state(phase, found, saved_as, members, ranks)
    meter = _meter(config, phase, state, calendar.total_steps, ranks)
    observer = _observer(rundir, console, meter, config, state, calendar.total_steps, ranks)
    for notice in [*clean, *(f"checkpoint skipped: {each}" for each in (found.skipped if found else []))]:
        observer.warned(state.step, notice)
    opening = first_line(rundir, state, found, config)
    console.event(opening)
    due = found is not None and validation_is_due(phase, state.step)
    missed = due and not is_recorded(rundir, "validation/loss_ensemble", state.step, ranks)
    if state.step >= calendar.total_steps and not missed:
        with _failure_in_status(calendar.total_steps, config, ranks, rundir):
            members.emit(phase, state)
        return _already_finished(observer, console, state.step, config, command)
    members.forget()
    observer.started(state.step, opening)
    if ranks.rank == 0:
        rundir.write_config(to_yaml(config))
        rundir.write_environment(collect())
    watchdog = Watchdog(ranks, config.parallel.first_timeout_seconds)
    checkpoints = Checkpoints(
        phase.config, state, ranks, rundir, observer, saved_as, meter, calendar.begun(phase), recipe_of(config)
    )
    with contextlib.closing(observer), contextlib.closing(checkpoints), contextlib.closing(watchdog):
        try:
            validation = Validation(
                phase.config, state, ranks, rundir, lambda words: observer.warned(state.step, words)
            )
            loader = on_all(ranks, lambda: _loader(config, ranks, position))
            if loader.changes:
                observer.warned(state.step, "data.allow_change: going on although " + "; ".join(loader.changes))
            quarantine = Quarantine(ranks, observer, loader.documents, config.data.max_bad_fraction)
            quarantine.restore(found.state.get("quarantine", {}) if found else {})
            with quarantine.summarised(console.plain, rundir.events), contextlib.closing(iter(loader)) as batches:
                parts = Parts(
                    phase, calendar.total_steps, ranks, state, batches, quarantine, meter, observer, requests,
                    validation, checkpoints, watchdog,
                )  # fmt: skip
                code = train_phases(parts, calendar, members, missed=missed)
        except Exception as caught:
            # Before a save in flight is waited for: the first to speak is taken for the cause.
            error = explained(caught, config, ranks.rank, watchdog, rundir.ranks)
            _say_failed(error, observer, state.step, config, ranks)
            if error is caught:
                raise
            raise error from caught
        _say_goodbye(code, observer, console, state.step, config, command)
    return ExitCode.FINISHED if requests.ends_the_job else code


def _already_finished(observer: Observer, console: Console, step: int, config: Config, command: str) -> ExitCode:
    observer.ended("finished", step, 0, "already finished")
    observer.close()
    console.plain(how_to_go_on(config, calendar_of(config), command))
    return ExitCode.FINISHED


def _state(
    phase: Phase, found: Found | None, saved_as: dict[str, Any], members: Members, ranks: Ranks
) -> tuple[TrainState, Position | None]:
    """The state to go on with, and where the data stands: of the checkpoint ``found``, or of the phase's beginning."""
    if found is None:
        state = initial_state(phase, members, ranks)
        state.step = phase.before
        state.targets, start = members.begin_of(phase)
        return state, start
    state = empty_state(phase, ranks)
    annealing = goes_on(phase, found.step - phase.before + 1)
    position = resume(state, found, phase.config, saved_as, ranks, annealing=annealing)
    if isinstance(phase.start, Clone) and phase.start.keeps is not None and not annealing:
        # The options of an annealing may have changed: one that is over now was not when this was saved.
        keep_target(state)
    return state, position


@contextlib.contextmanager
def _failure_in_status(total_steps: int, config: Config, ranks: Ranks, rundir: RunDir) -> Iterator[None]:
    """What fails before the run has an observer stands in its status all the same."""
    try:
        yield
    except Exception as error:
        words = words_of(error, rank=ranks.rank, timeout_seconds=config.parallel.first_timeout_seconds)
        logging.getLogger("nt_pretrain").error(words)
        if ranks.rank == 0:
            before = rundir.read_status()
            step, code = before.step if before else 0, exit_code_of(error)
            rundir.write_status(
                Status(state="failed", step=step, total_steps=total_steps, exit_code=code, message=words)
            )
        raise


def _claim(rundir: RunDir, console: Console, ranks: Ranks) -> IO[str] | None:
    """The lock of the run directory, on rank 0.

    Raises:
        ConfigErrors: on all ranks, if another process holds it.
    """
    taken = claim(rundir.lock, console.plain) if ranks.rank == 0 else None
    holder = [taken if isinstance(taken, str) else ""]
    dist.broadcast_object_list(holder, src=0, group=ranks.control)
    if holder[0]:
        words = f"{rundir.path} is in use by {holder[0]}; stop that run (touch {rundir.stop}), or give another run.name"
        raise ConfigErrors([f"run.name: {words}"])
    return None if isinstance(taken, str) else taken


def _say_failed(error: Exception, observer: Observer, step: int, config: Config, ranks: Ranks) -> None:
    words = words_of(error, rank=ranks.rank, timeout_seconds=config.parallel.timeout_seconds)
    report_failure(words)
    logging.getLogger("nt_pretrain").error(words)
    observer.ended("failed", step, exit_code_of(error), words)


def _say_goodbye(code: ExitCode, observer: Observer, console: Console, step: int, config: Config, command: str) -> None:
    if code is ExitCode.FINISHED:
        observer.ended("finished", step, 0, "all steps done")
        console.plain(how_to_go_on(config, calendar_of(config), command))
    else:
        message = f"saved at step {step:,}; the same command goes on from there"
        observer.ended("stopped", step, int(code), message)
        console.plain(f"{message}:\n  {command}")


def _console(config: Config, total_steps: int, ranks: Ranks) -> Console:
    return Console(
        ranks.rank,
        total_steps=total_steps,
        world=ranks.world,
        device="gpu" if ranks.device.type == "cuda" else "rank",
        samples=config.model.samples,
        memory_total=memory_total_bytes(ranks.device),
    )


def _tokenizer_hash(config: Config) -> str:
    """sha256 of the tokenizer; empty where there is none."""
    return "" if config.model.classifies else load_tokenizer(config.data.tokenizer).sha256


def _loader(config: Config, ranks: Ranks, position: Position | None) -> TrainLoader:
    """Raises DataError if the data is not there, does not fit the position, or is not of the model's kind."""
    Sources.of_model(config, "train")
    return TrainLoader(
        config,
        rank=ranks.data_rank,
        world=ranks.sizes.data,
        position=position,
        local_world=int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
        pin=ranks.device.type == "cuda",
    )


def _meter(config: Config, phase: Phase, state: TrainState, total_steps: int, ranks: Ranks) -> Meter:
    return Meter(
        device=ranks.device,
        world=ranks.world,
        remaining_steps=total_steps - state.step,
        samples=config.model.samples,
        flops_per_sample=executed_per_sample(phase),
        peak=config.observe.peak_tflops,
        samples_before=state.targets,
        hours_before=state.seconds / 3600,
    )


def _observer(
    rundir: RunDir, console: Console, meter: Meter, config: Config, state: TrainState, total_steps: int, ranks: Ranks
) -> Observer:
    recorder = None
    if ranks.rank == 0:
        recorder = Recorder(rundir, start_step=state.step, tensorboard=config.observe.tensorboard)
    density = readings.of_topology(state.budgets) if state.budgets else {}
    return Observer(rundir, console, recorder, meter, total_steps=total_steps, density=density)
