"""Tells people and files what the loop does. Rank 0 writes; the others only log."""

from __future__ import annotations

from pathlib import Path

from nt_pretrain.observe.log import Console
from nt_pretrain.observe.meters import Meter
from nt_pretrain.observe.record import Recorder
from nt_pretrain.observe.rundir import RunDir, State, Status


class Observer:
    """Console, metrics, events and status of one run.

    Args:
        recorder: on rank 0; None elsewhere.
        density: readings that stand on every log line of a sparse run.
    """

    def __init__(
        self,
        rundir: RunDir,
        console: Console,
        recorder: Recorder | None,
        meter: Meter,
        *,
        total_steps: int,
        density: dict[str, float],
    ) -> None:
        self._rundir, self._console, self._recorder, self._meter = rundir, console, recorder, meter
        self._total_steps = total_steps
        self._topology = density
        self._turnover: dict[str, float] = {}

    def started(self, step: int, reason: str) -> None:
        self._event("start" if step == 0 else "resume", step, reason, {})
        self._status("running", step, None, reason)

    def phase_begins(self, step: int, text: str, density: dict[str, float]) -> None:
        """What comes after ``step``, and the readings of its first topology."""
        self._topology, self._turnover = density, {}
        self._event("phase", step, text, {}, echo=text)

    def made_member(self, step: int, text: str) -> None:
        """A member of the ensemble, or its parent, is in place."""
        self._event("member", step, text, {}, echo=text)

    def curve_measured(self, step: int, values: dict[str, float]) -> None:
        """Validation losses along a curve and, to compare, in the middle of the straight line."""
        if self._recorder is not None:
            self._recorder.metrics(step, values)
        along = " ".join(f"{values[f'curve/loss_{place}']:.4f}" for place in ("first", "middle", "last"))
        text = f"losses at r = 0, 0.5 and 1 of the curve {along}; in the middle of the straight line "
        text += f"{values['curve/loss_line']:.4f}"
        self._event("curve", step, text, {}, echo=text)

    def stepped(self, step: int, values: dict[str, float]) -> None:
        values = values | self._topology
        if self._recorder is not None:
            self._recorder.metrics(step, values)
        self._console.step(step, values | self._turnover, eta_seconds=self._meter.eta_seconds())
        self._status("running", step, None, f"training, loss {values['train/loss']:.4f}")

    def topology_changed(self, step: int, values: dict[str, float], digest: str) -> None:
        density = {key: value for key, value in values.items() if key.startswith("sparsity/density")}
        self._topology = density
        self._turnover = {key: value for key, value in values.items() if key not in density}
        if self._recorder is not None:
            self._recorder.metrics(step, self._turnover)
        reason = f"prune rate {values['sparsity/prune_rate']:.3f}, turnover {values['sparsity/turnover']:.2%}"
        if self._recorder is not None:
            self._recorder.event("topology", step, reason, {"digest": digest})

    def stripped(
        self, step: int, values: dict[str, float], density: dict[str, float], text: str, facts: dict[str, object]
    ) -> None:
        """Weights of dead units were removed: its readings, the density since, and both in words."""
        self._topology = density
        if self._recorder is not None:
            self._recorder.metrics(step, values)
        self._event("stripping", step, text, facts, echo=f"stripping at step {step:,}: {text}")

    def validated(self, step: int, values: dict[str, float], figures: dict[str, Path]) -> None:
        """Readings of a validation, and the figures drawn of it (on rank 0) by their names."""
        if self._recorder is not None:
            self._recorder.metrics(step, values)
            for name, path in figures.items():
                self._recorder.image(f"validation/{name}", step, path)
        text = f"validation at step {step:,}: {_in_words(values)}"
        self._event("validation", step, text, {}, echo=text)

    def saved(self, step: int, path: str, seconds: float, held_seconds: float, size: int) -> None:
        """The checkpoint of ``step`` is in place after ``seconds``, ``held_seconds`` of which training was held."""
        text = f"saved {path} ({size / 1e6:.1f} MB in {seconds:.1f} s, training held for {held_seconds:.2f} s)"
        facts = {"path": path, "total_seconds": seconds, "stall_seconds": held_seconds, "bytes": size}
        self._event("checkpoint", step, text, facts, echo=text)
        if self._recorder is not None:
            readings = {"checkpoint/stall_seconds": held_seconds, "checkpoint/total_seconds": seconds}
            self._recorder.metrics(step, readings)

    def flush(self) -> None:
        """Everything told so far survives a kill; to be called before a checkpoint is written."""
        if self._recorder is not None:
            self._recorder.flush()

    def warned(self, step: int, text: str) -> None:
        self._event("warning", step, text, {}, echo=text, level="warning")

    def fault(self, step: int, text: str, facts: dict[str, object], *, echo: bool) -> None:
        """Data that could not be read, or not at once."""
        self._event("data", step, text, facts, echo=text if echo else "", level="warning")

    def stopping(self, step: int, reason: str) -> None:
        self._event("stop", step, reason, {}, echo=f"stopping after step {step:,}: {reason}")

    def ended(self, state: State, step: int, exit_code: int, message: str) -> None:
        """The last word: status and event. Only a save that was in flight may still be told of."""
        self._event("end", step, message, {"state": state, "exit_code": exit_code})
        self._status(state, step, exit_code, message)
        self.flush()

    def close(self) -> None:
        """Nothing more is told."""
        if self._recorder is not None:
            self._recorder.close()

    def _event(
        self, kind: str, step: int, reason: str, facts: dict[str, object], *, echo: str = "", level: str = "info"
    ) -> None:
        if self._recorder is not None:
            self._recorder.event(kind, step, reason, facts)
        if echo:
            self._console.event(echo, level=level)

    def _status(self, state: State, step: int, exit_code: int | None, message: str) -> None:
        if self._recorder is None:
            return
        status = Status(
            state=state,
            step=step,
            total_steps=self._total_steps,
            exit_code=exit_code,
            message=message,
        )
        self._rundir.write_status(status)


def _in_words(values: dict[str, float]) -> str:
    """The headline of a validation: perplexity of text, accuracy of pictures; ensemble first, then the heads."""
    is_text = "validation/perplexity_ensemble" in values
    name, form = ("perplexity", ".2f") if is_text else ("accuracy", ".2%")
    text = f"{name} {values[f'validation/{name}_ensemble']:{form}}"
    heads = [values[key] for key in values if key.startswith(f"validation/{name}_head_")]
    if len(heads) > 1:
        text += " (heads " + " ".join(f"{value:{form}}" for value in heads) + ")"
    if not is_text:
        text += f", loss {values['validation/loss_ensemble']:.3f}, ECE {values['validation/ece_ensemble']:.4f}"
    if "validation/unigram_perplexity" in values:
        text += f", unigram level {values['validation/unigram_perplexity']:.2f}"
    return text
