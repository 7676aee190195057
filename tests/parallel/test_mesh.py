"""How torchrun was started: restarts that cannot work are refused, everything else is let through."""

import pytest

from nt_pretrain.parallel.mesh import launcher_problems


@pytest.mark.parametrize(("restarts", "shared", "refused"), [("3", "True", 1), ("3", "False", 0), ("0", "True", 0)])
def test_restarts_with_a_shared_store_are_refused(
    monkeypatch: pytest.MonkeyPatch, restarts: str, shared: str, refused: int
) -> None:
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", restarts)
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", shared)
    found = launcher_problems()
    assert len(found) == refused
    assert all("export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1" in line for line in found)


def test_a_start_without_torchrun_is_fine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_MAX_RESTARTS", raising=False)
    assert launcher_problems() == []
