"""What an evaluation was asked for: what may change a value, and nothing that may not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nt_pretrain.config.load import load_config, to_yaml
from nt_pretrain.evaluation.asked import Options, asked_of
from nt_pretrain.evaluation.chosen import chosen_of
from nt_pretrain.evaluation.harmed import harms_named

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    config = load_config(ROOT / "configs" / "tiny.yaml", ["parallel.replicate=2", "parallel.compile=true"])
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    return tmp_path


def asked(
    run: Path, overrides: list[str], *, data: str | None = None, samples: int = 0, harms: str | None = None
) -> dict[str, Any]:
    chosen = chosen_of(str(run), overrides, data=data, samples=samples)
    options = Options(None, data, 0.2, None, harms=harms, domains=("far",))
    return asked_of(chosen, options, harms_named(harms, chosen.config))


def test_everything_that_was_asked_for(run: Path) -> None:
    found = asked(run, ["train.precision=bf16", "eval.ensemble=logit"], data="other", samples=7, harms="swap,drop")
    assert found == {
        "share": 0.2, "samples": 7, "norms": None, "average": False, "data": "other", "ood": None,
        "harms": ["swap", "drop"], "domains": ["far"], "precision": "bf16",
        "overrides": {"train.precision": "bf16", "eval.ensemble": "logit"},
    }  # fmt: skip


def test_ranks_batches_and_readers_are_not_asked_for(run: Path) -> None:
    same = ["eval.micro_batch=3", "run.threads_per_rank=1", "data.workers=0", "parallel.cpu_offload=true"]
    assert asked(run, same) == asked(run, [])
    assert asked(run, ["data.path=elsewhere"])["overrides"] == {"data.path": "elsewhere"}
    assert asked(run, [], harms="swap,drop") == asked(run, [], harms="drop,swap")
