from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from nt_pretrain.observe.environment import collect
from nt_pretrain.observe.rundir import RunDir


def test_facts_are_json_and_name_versions_and_hardware(tmp_path: Path) -> None:
    RunDir(tmp_path).write_environment(collect())
    facts = json.loads((tmp_path / "environment.json").read_text())
    assert facts["packages"]["torch"] == torch.__version__
    assert facts["hardware"]["threads"] >= 1
    assert facts["hardware"]["memory_bytes"] > 2**20
    assert facts["hardware"]["gpus"] == [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]


def test_only_torchruns_variables_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "do-not-write-me")
    monkeypatch.setenv("HF_TOKEN", "nor-me")
    facts = collect()
    assert facts["torchrun"]["WORLD_SIZE"] == "8"
    assert "do-not-write-me" not in json.dumps(facts)
    assert "nor-me" not in json.dumps(facts)
