"""The picture of a benchmark shows every ratio there is, and says when there is none."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "launch"))
from bench_figure import draw, ratios

RATIO = {"cpu": 0.9, "least": 0.8, "largest": 1.1, "wall": 0.9}


def test_every_ratio_is_drawn(tmp_path: Path) -> None:
    result = {
        "precision": "fp32",
        "ratios": {"a / b": RATIO},
        "rows": [{"layer": "csr", "density": 0.1, "ratio": RATIO}],
    }
    assert [label for label, _ in ratios(result, ())] == ["fp32 a / b", "fp32 csr 0.1"]
    draw([result], tmp_path / "bench.png")
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")


def test_nothing_to_draw_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no ratios"):
        draw([{"times": {"a": [(1.0, 1.0)]}}], tmp_path / "bench.png")
