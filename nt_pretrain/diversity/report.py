"""The page of a run or an ensemble: what is read, compared and drawn, and in which order it stands there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nt_pretrain.config.errors import ConfigErrors
from nt_pretrain.data.tokenizer import load_tokenizer
from nt_pretrain.diversity import (
    section_costs,
    section_features,
    section_maps,
    section_numbers,
    section_run,
    section_text,
)
from nt_pretrain.diversity.inside import Inside, Progress, compare
from nt_pretrain.diversity.markup import element, text
from nt_pretrain.diversity.members import Opened, open_voices, parts_of
from nt_pretrain.diversity.page import page
from nt_pretrain.diversity.probe import Probe, probe_set
from nt_pretrain.methods.manifest import NAME, Ensemble, read_ensemble
from nt_pretrain.observe.rundir import RunDir, write_atomic
from nt_pretrain.observe.summary import title
from nt_pretrain.parallel.mesh import connect, device_problems

FILE = "index.html"
Part = tuple[str, str, str]


@dataclass(frozen=True)
class Wanted:
    """What a page is asked for.

    Attributes:
        path: a run's folder, a checkpoint's, or an ensemble.json.
        rundir: whose curves and evaluation are shown, and where the page is written.
        samples: probe samples.
        units: that are drawn in each block.
        overrides: options in the place of those of the run.
        without: why there is to be no look inside, in words; "": there is to be one.
    """

    path: Path
    rundir: RunDir
    samples: int
    units: int
    overrides: tuple[str, ...] = ()
    without: str = ""


def write_report(wanted: Wanted, curves: Path | None, progress: Progress, tell: Callable[[str], None]) -> Path:
    """Write ``report/index.html``; returns its path.

    Args:
        curves: the picture of the curves, if it could be drawn.
        tell: what to do with lines for people.

    Raises:
        ConfigErrors, CheckpointError, DataError: what was asked for cannot be read. The page is written before, without
            a look inside.
    """
    rundir = wanted.rundir
    ensemble = _ensemble(wanted.path)
    parts: list[Part] = [
        ("run", "run", section_run.facts(rundir, ensemble)),
        ("numbers", "validation", section_run.numbers(rundir, ensemble)),
        ("curves", "curves", section_run.curves(curves)),
        ("evaluation", "evaluation", section_run.evaluation(rundir, ensemble)),
        ("costs", "costs", section_costs.costs(str(wanted.path), list(wanted.overrides))),
    ]
    heading = title(rundir)
    rundir.report.mkdir(parents=True, exist_ok=True)
    target = rundir.report / FILE
    # Whatever goes wrong inside, the rest can be read.
    _write(target, heading, parts, ["The look inside the members is not written yet, or could not be."])
    if wanted.without:
        return _write(target, heading, parts, [f"Without a look inside the members: {wanted.without}."])
    opened, more = _inside(wanted, progress)
    for note in opened.notes:
        tell(note)
    return _write(target, heading, [*parts, *more], opened.notes)


def _inside(wanted: Wanted, progress: Progress) -> tuple[Opened, list[Part]]:
    checkpoints = parts_of(wanted.path, list(wanted.overrides), wanted.samples)
    config = checkpoints[0].config
    if wrong := device_problems(config):
        raise ConfigErrors(wrong)
    ranks = connect(config)
    if ranks.world > 1:
        raise ConfigErrors([f"{ranks.world} ranks were started; a report takes one process, without torchrun"])
    opened = open_voices(checkpoints, ranks)
    probe = probe_set(config, ranks)
    try:
        inside = compare(opened.voices, probe.batches, progress)
    except ValueError as error:
        raise ConfigErrors([f"--samples {wanted.samples}: {error}"]) from None
    parts: list[Part] = [
        ("inside", "representations", section_numbers.likeness(opened.voices, inside)),
        ("topology", "topologies", section_numbers.overlaps(opened.voices)),
    ]
    units = wanted.units
    if probe.is_pictures:
        parts.append(("maps", "where voices look", section_maps.maps(opened.voices, probe, progress)))
        if units:
            drawn = section_features.features(opened.voices, inside, probe, units, progress)
            parts.append(("features", "features", drawn))
    elif probe.is_text:
        parts += _text(opened, probe, inside, units, progress)
    return opened, parts


def _text(opened: Opened, probe: Probe, inside: Inside, units: int, progress: Progress) -> list[Part]:
    tokenizer = load_tokenizer(opened.config.data.tokenizer)
    parts = [("tokens", "tokens", section_text.coloured(opened.voices, probe, tokenizer, progress))]
    if units:
        parts.append(("units", "units", section_text.answers(opened.voices, inside, probe, tokenizer, units, progress)))
    return parts


def _ensemble(path: Path) -> Ensemble | None:
    manifest = path if path.name == NAME else path / NAME
    return read_ensemble(manifest) if manifest.is_file() or path.name == NAME else None


def _write(target: Path, heading: str, parts: list[Part], notes: list[str]) -> Path:
    lead = "".join(element("p", text(note), classes="note") for note in notes)
    write_atomic(target, page(heading, lead, [part for part in parts if part[2]]))
    return target
