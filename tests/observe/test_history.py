from __future__ import annotations

from pathlib import Path

from nt_pretrain.observe.history import event_steps, last, read_lines, series, suffixes

ROWS = [
    {"step": 20, "train/loss": 2.0, "train/loss_head_10": 1.0},
    {"step": 10, "train/loss": 3.0, "train/loss_head_2": 1.0},
    {"step": 30, "train/loss": None, "sparsity/density_ffn": 0.5},
    {"step": 30, "validation/loss_ensemble": 1.5, "sparsity/density_attention": 0.5},
]


def test_series_is_in_order_and_skips_what_is_not_there() -> None:
    assert series(ROWS, "train/loss") == ([10, 20], [3.0, 2.0])
    assert series(ROWS, "absent") == ([], [])


def test_last_value() -> None:
    assert last(ROWS, "train/loss") == 2.0
    assert last(ROWS, "absent") is None


def test_heads_are_sorted_as_numbers_and_groups_as_words() -> None:
    assert suffixes(ROWS, "train/loss_head_") == ["2", "10"]
    assert suffixes(ROWS, "sparsity/density_") == ["attention", "ffn"]


def test_absent_and_half_written_files(tmp_path: Path) -> None:
    assert read_lines(tmp_path / "absent.jsonl") == []
    (tmp_path / "cut.jsonl").write_text('{"step": 1}\n{"ste')
    assert read_lines(tmp_path / "cut.jsonl") == [{"step": 1}]


def test_events_of_steps_made_twice_count_once(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    steps = [("topology", 20), ("topology", 40), ("resume", 25), ("topology", 40)]
    path.write_text("".join(f'{{"kind": "{kind}", "step": {step}}}\n' for kind, step in steps))
    assert event_steps(path, "topology") == [20, 40]
