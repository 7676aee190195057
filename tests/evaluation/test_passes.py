"""launch/evaluate.py --dropout: passes of one network with other units dropped are its voices, alike on any ranks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nt_pretrain.evaluation.asked import Options
from nt_pretrain.evaluation.chosen import chosen_of
from nt_pretrain.evaluation.run import run
from nt_pretrain.parallel.mesh import connect
from tests.conftest import Corpus
from tests.evaluation.members import ensemble_of, write_members
from tests.gloo import run_ranks

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def folder(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("passes")
    options = {"one": ["model.heads=1", "model.blocks_in_head=1"], "two": ["model.heads=2", "run.seed=1"]}
    members = {str(folder / name): [*corpus.overrides, *more] for name, more in options.items()}
    run_ranks(write_members, 1, members, "configs/tiny.yaml", timeout=120)
    ensemble_of(folder, {name: name for name in options})
    return folder


def evaluated(rank: int, world: int, asked: dict[str, tuple[str, Any]]) -> dict[str, tuple[list[str], bytes]]:
    """The lines and the record of every (words, dropout), written to the folder it is given by."""
    found = {}
    for out, (words, dropout) in asked.items():
        chosen = chosen_of(words, ["run.threads_per_rank=1"], data=None, samples=6)
        lines: list[str] = []
        run(chosen, Options(Path(out), None, 0.0, None, dropout=dropout), connect(chosen.config), lines.append)
        found[out] = lines, (Path(out) / "evaluation.json").read_bytes()
    return found


def test_passes_are_voices_and_the_same_on_one_and_two_ranks(folder: Path, tmp_path: Path) -> None:
    asked = {
        str(tmp_path / "plain"): (str(folder / "two"), None),
        str(tmp_path / "zero"): (str(folder / "two"), (0.0, 2)),
        str(tmp_path / "some"): (str(folder / "one"), (0.2, 3)),
        str(tmp_path / "all"): (str(folder), (0.2, 2)),
    }
    (found,) = run_ranks(evaluated, 1, asked, timeout=200)
    plain, zero, some, every = (json.loads(text) for _, text in found.values())
    # Nothing is dropped: all passes say what the heads say.
    assert zero["voices"] == ["head_0.pass_0", "head_1.pass_0", "head_0.pass_1", "head_1.pass_1"]
    for voice in zero["voices"]:
        assert zero["members"][voice] == plain["members"][voice.split(".")[0]], voice
    assert zero["members"]["ensemble"]["nll"] == pytest.approx(plain["members"]["ensemble"]["nll"], rel=1e-12)
    assert plain["mask_overlap"] is not None and zero["mask_overlap"] is None
    assert some["voices"] == ["pass_0", "pass_1", "pass_2"] and some["asked"]["dropout"] == {"rate": 0.2, "passes": 3}
    losses = {some["members"][voice]["nll"] for voice in some["voices"]}
    assert len(losses) == 3 and some["set"]["disagreement"] > 0 and some["set"]["ensemble_gain"] > 0
    assert len(every["voices"]) == 6 and {"one.pass_1", "two.head_1.pass_0"} < set(every["voices"])
    lines, text = found[str(tmp_path / "some")]
    shown = "\n".join(lines)
    assert "3 passes with units dropped at rate 0.2: " in shown and "\n  pass 1 " in shown
    out = tmp_path / "on two"
    for two in run_ranks(evaluated, 2, {str(out): (str(folder / "one"), (0.2, 3))}, timeout=200):
        assert two[str(out)][1] == text
