"""An evaluation as JSON: the same bytes on every number of ranks and for every batch size."""

from __future__ import annotations

import json
import math
from typing import Any

from torch import Tensor

from nt_pretrain.eval.calibration import reliability
from nt_pretrain.eval.diversity import disagreement_matrix
from nt_pretrain.eval.measure import Measures, quality_by_heads, values_of
from nt_pretrain.eval.ood import auroc, fpr95
from nt_pretrain.evaluation.evaluate import Calibration, Evaluation, Foreign

DEFINITIONS = 1
"""Version of the definitions in docs/EVALUATION.md; values of another version are not comparable."""


def record_of(found: Evaluation, asked: dict[str, Any]) -> dict[str, Any]:
    """Everything that was found, by the names of docs/EVALUATION.md; and what was asked for."""
    config = found.chosen.config
    values = values_of(found.whole)
    return {
        "definitions": DEFINITIONS,
        "asked": asked,
        **_who(found),
        "weights": "average" if found.checkpoints[0].average else "last",
        "norms_measured_on": found.checkpoints[0].norms or None,
        "heads": found.whole.heads,
        "voices": list(found.whole.names),
        "ensemble": config.eval.ensemble,
        "data": {
            "locations": found.data.locations,
            "fingerprints": found.data.fingerprints,
            "first": config.eval.sequences or None,
            "units": found.data.units,
        },
        "set": values.pop("set"),
        "members": values,
        "heads_used": quality_by_heads(found.whole),
        "disagreement": _rows(disagreement_matrix(found.whole.diversity)),
        "mask_overlap": None
        if found.overlap is None
        else {"jaccard": _rows(found.overlap[0]), "expected": _rows(found.overlap[1])},
        "calibration": None if found.calibration is None else _calibration(found.calibration),
        "reliability": _reliability(found.whole),
        "foreign": None if found.foreign is None else foreign_values(found.whole, found.foreign),
        "robustness": None if found.robustness is None else found.robustness.to_json(),
        "costs": found.costs,
        "notes": found.notes,
    }


def _who(found: Evaluation) -> dict[str, Any]:
    """Which checkpoint, or which of an ensemble's members, by what they are known by."""
    chosen = found.chosen
    if chosen.manifest is None:
        (one,) = found.checkpoints
        return {"run": chosen.config.run.name, "step": one.step, "topology_digest": one.digest}
    path, ensemble = chosen.manifest
    members = [
        {
            "name": each.name, "path": each.listed.path if each.listed else "", "step": one.step,
            "sha256": each.listed.sha256 if each.listed else "", "heads": list(each.heads),
            "topology_digest": one.digest,
        }
        for each, one in zip(chosen.speakers, found.checkpoints, strict=True)
    ]  # fmt: skip
    name = path.absolute().parent.name
    return {"run": name, "step": None, "topology_digest": None, "method": ensemble.method, "ensemble_of": members}


def to_text(record: dict[str, Any]) -> str:
    """Strict JSON: a value that is no number is null, one beyond all numbers the word Infinity in quotes."""
    return json.dumps(_strict(record), indent=1, allow_nan=False) + "\n"


def foreign_values(whole: Measures, foreign: Foreign) -> dict[str, Any]:
    """AUROC and FPR95 of every member, and ``mean_head``; nan where a sample was broken."""
    broken = int(whole.classification.counts[1]) + foreign.broken
    members: dict[str, dict[str, float]] = {}
    for index, name in enumerate(whole.members):
        inside = whole.classification.confidences[index, :, 0].cpu()
        outside = foreign.confidences[index]
        members[name] = {
            "auroc": math.nan if broken else auroc(inside, outside),
            "fpr95": math.nan if broken else fpr95(inside, outside),
        }
    heads = [members[name] for name in whole.names]
    members["mean_head"] = {key: sum(head[key] for head in heads) / len(heads) for key in heads[0]}
    return {"locations": foreign.locations, "samples": int(foreign.confidences[0].sum()), "members": members}


def _calibration(calibration: Calibration) -> dict[str, Any]:
    names = calibration.raw.members
    raw, calibrated = values_of(calibration.raw), values_of(calibration.calibrated)
    samples = raw.pop("set")["samples"]
    calibrated.pop("set")
    fitted = calibration.temperatures
    return {
        "fitted_on": fitted.samples,
        "reported_on": samples,
        "temperatures": dict(zip(names, fitted.values.tolist(), strict=True)),
        "undecided": [names[member] for member in fitted.undecided],
        "raw": raw,
        "calibrated": calibrated,
        "reliability": _reliability(calibration.calibrated),
    }


def _reliability(measures: Measures) -> dict[str, list[dict[str, float]]]:
    return {
        name: [
            {"confidence": confidence, "accuracy": accuracy, "samples": samples}
            for confidence, accuracy, samples in reliability(measures.classification.bins[index])
        ]
        for index, name in enumerate(measures.members)
    }


def _rows(matrix: Tensor) -> list[list[float]]:
    return matrix.tolist()


def _strict(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _strict(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    return value
