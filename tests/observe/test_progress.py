"""Progress where there is no terminal: lines on standard error, not too many."""

from __future__ import annotations

import pytest

from nt_pretrain.observe import progress


def test_lines_every_so_often(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    with progress.shown_progress() as show:
        for done in range(1, 26):
            clock[0] += 1.0
            show("measuring", done, 25)
        clock[0] += 11.0
        show("drawing", 3, 0)
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert [line.split(",")[0] for line in lines] == ["measuring: 11 of 25", "measuring: 22 of 25", "drawing: 3"]
