"""What a run is and how good it is: facts, validation readings, curves, and its evaluation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nt_pretrain.config.schema import Config
from nt_pretrain.diversity.markup import cell, element, hint, image, number, paragraph, section, table, text
from nt_pretrain.evaluation.place import FIGURES, RECORD
from nt_pretrain.evaluation.table import COLUMNS, DIVERSITY, GAIN, label_of
from nt_pretrain.methods.manifest import Ensemble
from nt_pretrain.observe.history import Row, last, read_lines, suffixes
from nt_pretrain.observe.log import duration
from nt_pretrain.observe.rundir import RunDir
from nt_pretrain.observe.summary import read_config

READ = {
    "reliability": "Accuracy over confidence; below the diagonal a member is too sure. Grey bars: share of samples.",
    "reliability_calibrated": "The same after temperatures were fitted, on samples that fitted none.",
    "risk_coverage": "Share of wrong answers when only the surest are given, from few (left) to all; lower is better.",
    "disagreement": "Share of samples for which two heads have another first choice; darker is more alike.",
    "mask_overlap": "Jaccard index of the heads' topologies; in brackets what random masks of these densities have.",
    "heads_used": "Quality against the number of heads used; the band spans all subsets of that size.",
    "robustness": "Error under harms of growing severity.",
}
READINGS = (
    ("loss", "loss (nats) ↓", 4), ("perplexity", "perplexity ↓", 2), ("accuracy", "accuracy ↑", 4), ("ece", "ECE ↓", 4),
    ("brier", "Brier ↓", 4),
)  # fmt: skip
"""Of every head and the ensemble: where metrics.jsonl has them."""


def facts(rundir: RunDir, ensemble: Ensemble | None) -> str:
    """A table of what the run is."""
    config, status = read_config(rundir), rundir.read_status()
    rows: list[tuple[str, str]] = []
    if ensemble is not None:
        rows += [("method", str(ensemble.method.get("name", "–"))), ("members", f"{len(ensemble.members)}")]
    if config is not None:
        rows += _of_config(config)
    if status is not None:
        rows.append(("state", f"{status.state} at step {status.step:,} of {status.total_steps:,}"))
    rows += _spent(read_lines(rundir.metrics))
    cells = [[cell(text(name), header=True), cell(text(value))] for name, value in rows]
    whole = table(("", ""), cells) if cells else paragraph("Nothing is known of the run.")
    return section("run", "The run", whole, "" if ensemble is None else _members_made(ensemble))


def numbers(rundir: RunDir, ensemble: Ensemble | None) -> str:
    """Validation readings of every head and the ensemble, newest; "" where there are none."""
    rows = read_lines(rundir.metrics)
    names = [f"head_{head}" for head in suffixes(rows, "validation/loss_head_")]
    names += ["mean_head", "ensemble", "ensemble_logit"]
    found = {name: [last(rows, f"validation/{key}_{name}") for key, _, _ in READINGS] for name in names}
    found = {name: values for name, values in found.items() if any(value is not None for value in values)}
    kept = [at for at in range(len(READINGS)) if any(values[at] is not None for values in found.values())]
    if not found:
        return ""
    lines = []
    for name, values in found.items():
        first = "first" if name == "ensemble" else ""
        line = [cell(element("span", text(label_of(name)), classes=first), header=True)]
        lines.append(line + [cell(number(values[at], READINGS[at][2]), number=True) for at in kept])
    unigram = last(rows, "validation/unigram_perplexity")
    more = [hint(f"Word frequencies alone have a perplexity of {unigram:,.2f}.")] if unigram is not None else []
    words = "The last validation of training. An ensemble is worth its cost where it beats the mean head."
    if ensemble is not None and len(ensemble.members) > 1:
        words = "The last validation of training, of the network trained last, not of the ensemble of all members."
    lead = hint(words)
    whole = table(("", *(READINGS[at][1] for at in kept)), lines)
    return section("numbers", "Validation while it trained", lead, whole, *more)


def curves(picture: Path | None) -> str:
    """The curves that were drawn; "" where there are none."""
    if picture is None or not picture.is_file():
        return ""
    lead = hint(
        "Losses over the optimizer steps: thin lines are training, marked lines validation. Below, where layers are "
        "sparse: density, and the share of units that each topology update replaced."
    )
    return section("curves", "Curves", lead, image(picture.read_bytes(), "training curves", classes="plot"))


def evaluation(rundir: RunDir, ensemble: Ensemble | None) -> str:
    """Tables and figures of the newest evaluation; "" where there is none that can be read."""
    folder, record = _newest(rundir, ensemble is not None)
    if folder is None:
        return ""
    count = f"{record['set']['samples']:,} {record['data']['units']}"
    parts = [hint(f"{folder.name}: {count} of {', '.join(record['data']['locations'])}. Arrows say what is better.")]
    parts += [_members(record["members"], "all samples")]
    calibration = record.get("calibration")
    if calibration:
        parts += [
            _members(calibration["calibrated"], "calibrated, on samples that fitted no temperature"),
        ]
    parts.append(_diversity(record["set"]))
    for name in FIGURES:
        path = folder / name
        if path.is_file():
            below = element("figcaption", text(READ.get(path.stem, "")))
            parts.append(
                element("figure", image(path.read_bytes(), path.stem.replace("_", " "), classes="plot") + below)
            )
    parts += [element("p", text(note), classes="note") for note in record.get("notes", [])]
    return section("evaluation", "Evaluation", *parts)


def _members_made(ensemble: Ensemble) -> str:
    rows = [
        [
            cell(text(each.name), header=True),
            cell("member" if each in ensemble.members else "made on the way"),
            cell(f"{each.step:,}", number=True),
            cell(text(", ".join(f"{key} {value}" for key, value in each.made.items() if not _is_long(value)))),
            cell(text(each.sha256[:12])),
        ]
        for each in [*ensemble.others, *ensemble.members]
    ]
    return table(("", "", "step", "made", "checkpoint"), rows)


def _is_long(value: Any) -> bool:
    return isinstance(value, dict | list) or len(str(value)) > 40


def _of_config(config: Config) -> list[tuple[str, str]]:
    model, sparsity = config.model, config.sparsity
    heads = f"{model.heads} heads" if model.heads > 1 else "1 head"
    rows = [("network", f"{model.family}, {heads}, {model.blocks_in_head} blocks in each head")]
    if model.data == "rows":
        widths = " – ".join(str(width) for width in (model.features, *model.widths, model.classes))
        rows.append(("size", f"{widths} units"))
    if model.data == "text":
        rows.append(("size", f"hidden {model.hidden:,}, {model.layers} blocks, vocabulary {model.vocab_size:,}"))
    if sparsity.density < 1:
        rows.append(
            ("sparsity", f"density {sparsity.density:g}, drop {sparsity.drop}, grow {sparsity.grow} every "
             f"{sparsity.update_every} steps")
        )  # fmt: skip
    rows.append(("optimizer", f"{config.optim.algorithm}, learning rate {config.optim.lr:g}, seed {config.run.seed}"))
    rows.append(("data", ", ".join([config.data.path] if config.data.path else list(config.data.sources.values()))))
    return rows


def _spent(rows: list[Row]) -> list[tuple[str, str]]:
    hours, found = last(rows, "time/hours"), []
    for samples in ("tokens", "pictures", "rows"):
        count = last(rows, f"{samples}/total")
        if count is not None and hours is not None:
            found.append(("trained on", f"{count:,.0f} {samples} in {duration(hours * 3600)}"))
    return found


def _newest(rundir: RunDir, is_ensemble: bool) -> tuple[Path | None, dict[str, Any]]:
    """The evaluation of the latest step, of these the one written last; those of an ensemble's members together have no
    step, and come first for an ensemble.
    """
    found = []
    for path in rundir.evaluation.glob(f"*/{RECORD}") if rundir.evaluation.is_dir() else []:
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            fits = (record["step"] is None) == is_ensemble
            record["set"]["samples"], record["members"], record["data"]["units"], record["data"]["locations"]
            found.append((fits, record["step"] or 0, path.stat().st_mtime, str(path), record))
        except (OSError, ValueError, KeyError, TypeError):
            continue  # of another version, or half written: the page says nothing of it
    if not found:
        return None, {}
    *_, name, record = max(found, key=lambda each: each[:4])
    return Path(name).parent, record


def _members(members: dict[str, dict[str, float | None]], title: str) -> str:
    keys = [key for key in COLUMNS if any(key in values for values in members.values())]
    lines = []
    for name, values in members.items():
        first = "first" if name == "ensemble" else ""
        line = [cell(element("span", text(label_of(name)), classes=first), header=True)]
        for key in keys:
            value = values.get(key)
            digits = 2 if key == "perplexity" else 4
            line.append(cell(number(value if isinstance(value, int | float) else None, digits), number=True))
        lines.append(line)
    return element("h3", text(title)) + table(("", *(COLUMNS[key] for key in keys)), lines)


def _diversity(values: dict[str, Any]) -> str:
    rows = [
        [cell(text(words), header=True), cell(number(values[key], 4), number=True)]
        for key, words in (DIVERSITY | GAIN).items()
        if isinstance(values.get(key), int | float)
    ]
    return element("h3", "diversity and gain") + table(("", ""), rows) if rows else ""
