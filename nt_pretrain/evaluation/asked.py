"""What an evaluation was asked for: two records with the same words here may be compared, or replace one another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nt_pretrain.config.load import load_config
from nt_pretrain.config.schema import Config
from nt_pretrain.eval.harms import Harm
from nt_pretrain.evaluation.chosen import Chosen
from nt_pretrain.evaluation.target import Target

SECTIONS_WITHOUT_EFFECT = {"parallel", "checkpoint", "observe"}
OPTIONS_WITHOUT_EFFECT = {
    "run": {"dir", "threads_per_rank"},
    "data": {
        "workers", "prefetch_batches", "stall_seconds", "reader_restarts", "cache_dir", "cache_gb", "retries",
        "read_timeout_seconds", "slowest_kb_per_second",
    },
    "eval": {"sequences", "micro_batch"},
}  # fmt: skip
"""By section: they change no value of an evaluation, or, the sequences, stand in the record as samples."""
WHERE = {"path", "sources", "weights", "curriculum"}
"""Options of ``data`` that ``--data`` replaces."""


@dataclass(frozen=True)
class Options:
    """What a command line asks for beside the checkpoint and its configuration.

    Attributes:
        out: folder of what is written; None: ``evaluation/step_N`` in the run's folder, with ``-average`` or the name
            of other data than the run's behind it.
        data: another prepared corpus than the run's, or None.
        share: of the samples that temperatures are fitted on; 0: none are.
        average: measure the moving average of the weights instead of these.
        foreign: a prepared corpus whose samples are to be told from those of the run's, or None.
        harms: names of harms with commas between, or "all"; None for none.
        domains: prepared corpora to measure beside the run's own.
        dropout: rate and passes of MC dropout, or None.
        figures: whether to draw them.
        norms: training pictures on which running statistics of batch norms are measured again; 0: they stay.
    """

    out: Path | None
    data: str | None
    share: float
    foreign: str | None
    average: bool = False
    harms: str | None = None
    domains: tuple[str, ...] = ()
    norms: int = 0
    dropout: tuple[float, int] | None = None
    figures: bool = True


def asked_of(chosen: Chosen, options: Options, harms: Sequence[Harm]) -> dict[str, Any]:
    """What was asked for, as JSON: the same on any number of ranks and for any batch size."""
    first, config = chosen.speakers[0], chosen.config
    asked = {
        "share": options.share,
        "samples": config.eval.sequences or None,
        "norms": options.norms or None,
        "average": options.average,
        "data": options.data,
        "ood": options.foreign,
        "harms": list(dict.fromkeys(harm.name for harm in harms)),
        "domains": list(options.domains),
        "precision": config.train.precision,
        "overrides": _overrides(first.target, config, other_data=options.data is not None),
    }
    if options.dropout is not None:
        asked["dropout"] = {"rate": options.dropout[0], "passes": options.dropout[1]}
    if chosen.manifest is None:
        return asked
    members = [{"name": each.name, "heads": list(each.heads), "sha256": each.listed.sha256 if each.listed else ""}
               for each in chosen.speakers]  # fmt: skip
    return asked | {"members": members}


def _overrides(target: Target, config: Config, *, other_data: bool) -> dict[str, Any]:
    """Options that differ from those of the run and may change a value."""
    own = load_config(target.rundir.config, []).model_dump(mode="json")
    found: dict[str, Any] = {}
    for section, values in config.model_dump(mode="json").items():
        without_effect = OPTIONS_WITHOUT_EFFECT.get(section, set()) | (WHERE if other_data else set())
        for key, value in values.items():
            if section not in SECTIONS_WITHOUT_EFFECT and key not in without_effect and value != own[section][key]:
                found[f"{section}.{key}"] = value
    return found
