"""No record of another evaluation is written over, and no figure of another one stays."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nt_pretrain.evaluation.place import FIGURES, RECORD, free_folder, remove_figures
from nt_pretrain.evaluation.run import _figures
from tests.evaluation.test_table import made


def evaluated(folder: Path, asked: dict[str, Any]) -> None:
    folder.mkdir(parents=True)
    (folder / RECORD).write_text(json.dumps({"step": 4, "asked": asked}))


def test_the_first_folder_that_is_free_or_asked_for_alike(tmp_path: Path) -> None:
    wanted = tmp_path / "step_00000004"
    assert free_folder(wanted, {"share": 0.2}) == (wanted, "")
    evaluated(wanted, {"share": 0.2, "domains": ["a"]})
    assert free_folder(wanted, {"share": 0.2, "domains": ("a",)}) == (wanted, ""), "the same as JSON"
    folder, why = free_folder(wanted, {"share": 0.0, "domains": ["a"]})
    assert folder == tmp_path / "step_00000004-2"
    assert f"{wanted / RECORD} is of another evaluation (share 0.2, now 0.0)" in why and str(folder) in why
    evaluated(folder, {"share": 0.0, "domains": ["a"]})
    assert free_folder(wanted, {"share": 0.0, "domains": ["a"]})[0] == folder
    assert free_folder(wanted, {"share": 0.5, "domains": []})[0] == tmp_path / "step_00000004-3"


def test_a_record_that_does_not_say_is_kept(tmp_path: Path) -> None:
    for number, content in enumerate(['{"step": 4}', "half of a rec", "[]", '{"asked": 3}']):
        wanted = tmp_path / str(number)
        wanted.mkdir()
        (wanted / RECORD).write_text(content)
        folder, why = free_folder(wanted, {"share": 0.2})
        assert folder == tmp_path / f"{number}-2" and "cannot be read from it" in why


def test_only_figures_of_an_evaluation_are_removed(tmp_path: Path) -> None:
    for name in (*FIGURES, "holiday.png", RECORD):
        (tmp_path / name).write_text("")
    assert remove_figures(tmp_path) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["holiday.png", RECORD])


def test_every_figure_is_known_and_one_that_cannot_be_drawn_costs_the_figures_only(tmp_path: Path) -> None:
    told = _figures(made(), tmp_path)
    assert told.startswith(f"figures in {tmp_path}: reliability.png, risk_coverage.png")
    assert {path.name for path in tmp_path.iterdir()} == set(FIGURES) - {"robustness.png"}
    (tmp_path / "mask_overlap.png").unlink()
    (tmp_path / "mask_overlap.png").mkdir()  # in the way
    told = _figures(made(), tmp_path)
    assert told.startswith("no figures: ") and "mask_overlap.png" in told
    assert [path.name for path in tmp_path.iterdir()] == ["mask_overlap.png"]
    (problem,) = remove_figures(tmp_path)
    assert "mask_overlap.png" in problem
