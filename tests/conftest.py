"""A small prepared corpus that several tests share, made with the same commands a user types."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from nt_pretrain.sparsity.kernels import build

ROOT = Path(__file__).resolve().parents[1]
COMPUTE = {"evaluation", "launch", "rehearsal", "sparsity", "train"}
"""Folders of tests whose processes multiply sparse layers."""
TOGETHER = ("tests/sparsity/kernels/",)
"""Folders whose files share what is slow to make: compiled kernels."""


@pytest.fixture(scope="session", autouse=True)
def kernels(request: pytest.FixtureRequest) -> None:
    """The sparse kernels are compiled before the first test with a timeout needs them; most runs find them ready."""
    if any(COMPUTE & set(item.path.parts) for item in request.session.items):
        build.compiled()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """``make test``: a file stays in one process, and so does a folder whose fixture takes as long as its tests."""
    from xdist.scheduler import LoadFileScheduling

    class ByFile(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            path = nodeid.split("::", 1)[0]
            return next((folder for folder in TOGETHER if path.startswith(folder)), path)

    return ByFile(config, log)


SUBJECTS = [
    "the king",
    "a shepherd",
    "my brother",
    "the old prophet",
    "her servant",
    "the people",
    "a stranger",
    "the watchman",
]
VERBS = [
    "went up to",
    "spoke against",
    "remembered",
    "gathered before",
    "turned away from",
    "built",
    "blessed",
    "could not find",
]
OBJECTS = [
    "the city",
    "the mountain",
    "an altar",
    "the gate",
    "their fathers",
    "the river",
    "a great house",
    "the wilderness",
]
ENDINGS = [
    "in the morning",
    "and rejoiced",
    "for many days",
    "as it was written",
    "with all his heart",
    "and was silent",
]


@dataclass(frozen=True)
class Corpus:
    """A prepared corpus of about 400 short documents with a tokenizer of 320 pieces."""

    text: Path
    data: Path
    tokenizer: Path

    @property
    def overrides(self) -> list[str]:
        return [f"data.path={self.data}", f"data.tokenizer={self.tokenizer}", "model.vocab_size=320"]


def documents(count: int, seed: int) -> list[str]:
    """Texts of a little grammar, the same on every machine."""
    draw = random.Random(seed)

    def pick(words: list[str]) -> str:
        return words[int(draw.random() * len(words))]

    texts = []
    for number in range(count):
        sentences = 2 + int(draw.random() * 12)
        lines = [f"{pick(SUBJECTS)} {pick(VERBS)} {pick(OBJECTS)} {pick(ENDINGS)}." for _ in range(sentences)]
        texts.append(f"chapter {number}. " + " ".join(lines))
    return texts


def command(*arguments: str, cwd: Path = ROOT, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """Run ``python ARGUMENTS`` as a user would, with one thread; the output is part of a failure's message."""
    done = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, timeout=timeout, check=False
    )
    assert done.returncode == 0, f"{arguments} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("corpus")
    text = folder / "texts.jsonl"
    text.write_text("".join(json.dumps({"text": each}) + "\n" for each in documents(400, 0)), encoding="utf-8")
    found = Corpus(text, folder / "data", folder / "small.model")
    command("launch/prepare.py", "text", str(text), "--out", str(found.data), "--name", "small")
    command(
        "launch/prepare.py", "tokenizer", str(found.data), "--out", str(found.tokenizer), "--vocab-size", "320",
        "--kind", "unigram",
    )  # fmt: skip
    return found
