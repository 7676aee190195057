"""launch/generate.py: what the ensemble of a run writes is what its whole forward pass says, and words for mistakes."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import torch

from nt_pretrain.data.tokenizer import load_tokenizer
from nt_pretrain.evaluation.assemble import gathered
from nt_pretrain.evaluation.chosen import chosen_of
from nt_pretrain.evaluation.generate import Wanted, prompt_tokens, run
from nt_pretrain.evaluation.sampling import Sampling, pooled
from nt_pretrain.evaluation.speakers import find_all, load_all, voices_of
from nt_pretrain.methods.manifest import Ensemble, write_ensemble
from nt_pretrain.models.llama import make_context
from nt_pretrain.parallel.mesh import connect
from tests import warm
from tests.conftest import Corpus
from tests.gloo import run_ranks
from tests.train import launches

ROOT = Path(__file__).resolve().parents[2]
PROMPT = "the king went"
BLOCKS = ["sparsity.backend=block", "sparsity.balance=line", "sparsity.unit=16", "sparsity.density=0.5"]

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def masked(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two ranks."""
    folder = tmp_path_factory.mktemp("runs") / "masked"
    options = ["train.steps=4", "optim.warmup_steps=2", "eval.every_steps=0", "train.ema_decay=0.5"]
    launches.finish(launches.start(2, folder, *corpus.overrides, *options), folder)
    return folder


@pytest.fixture(scope="module")
def blocks(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with layers of blocks."""
    folder = tmp_path_factory.mktemp("runs") / "blocks"
    options = ["train.steps=2", "optim.warmup_steps=1", "eval.every_steps=0", *BLOCKS]
    launches.finish(launches.start(1, folder, *corpus.overrides, *options), folder)
    return folder


def both_rank(
    rank: int, world: int, words: str, head: int | None, average: bool, tokens: int
) -> tuple[str, list[str], str]:
    """What is written and told; and the most likely text by whole forward passes of the model that FSDP2 holds."""
    chosen = chosen_of(words, [], data=None, samples=0)
    ranks = connect(chosen.config)
    text: list[str] = []
    told: list[str] = []
    run(chosen, Wanted(PROMPT, tokens, Sampling(temperature=0.0), head, average), ranks, text.append, told.append)
    chosen = chosen if head is None else chosen.only(head)
    voices = voices_of(chosen, load_all(find_all(chosen, ranks), chosen, ranks, average=average))
    tokenizer = load_tokenizer(chosen.config.data.tokenizer)
    so_far = prompt_tokens(tokenizer, PROMPT)
    for _ in range(tokens):
        inputs = torch.tensor([so_far])
        logits = []
        for part in voices.parts:
            context = make_context(part.config.model, torch.zeros_like(inputs))
            with torch.no_grad():
                hidden = part.model.trunk_output(inputs, context)
                logits += [part.model.heads[str(number)](hidden, context)[0, -1] for number in part.heads]
        so_far.append(int(pooled(torch.stack(logits)).argmax()))
        if so_far[-1] == tokenizer.end:
            break
    return "".join(text), told, tokenizer.processor.decode(so_far)


@pytest.mark.parametrize(("head", "average"), [(None, False), (1, True)])
def test_it_writes_what_the_whole_forward_pass_says(masked: Path, head: int | None, average: bool) -> None:
    text, told, expected = run_ranks(both_rank, 1, str(masked), head, average, 12, timeout=120)[0]
    assert text == expected + "\n"
    assert text.startswith(PROMPT) and len(text) > len(PROMPT) + 5
    who = "head 1" if head == 1 else "3 heads"
    assert any(f"step 4{', average of the weights' if average else ''}, {who}" in line for line in told)


def test_layers_of_blocks(blocks: Path) -> None:
    text, told, expected = run_ranks(both_rank, 1, str(blocks), None, False, 6, timeout=120)[0]
    assert text == expected + "\n"
    assert "tokens/s" in told[-1]


@pytest.mark.parametrize(("head", "who"), [(None, "6 heads"), (4, "blocks, head 1")])
def test_members_of_an_ensemble_write_together_or_one_alone(
    masked: Path, blocks: Path, tmp_path: Path, head: int | None, who: str
) -> None:
    chosen = gathered([str(masked), str(blocks)], tmp_path, lambda line: None)
    members = [each.listed for each in chosen.speakers if each.listed]
    manifest = write_ensemble(tmp_path, Ensemble({"name": "together"}, "probability", members))
    text, told, expected = run_ranks(both_rank, 1, str(manifest), head, False, 8, timeout=120)[0]
    assert text == expected + "\n"
    assert any(f"{manifest}, {who}" in line for line in told)


def launch(*arguments: str, cold: bool = False) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    words = [str(ROOT / "launch" / "generate.py"), *arguments]
    return warm.run(words, cwd=ROOT, env=environment, timeout=200, cold=cold)


def test_the_command(masked: Path) -> None:
    command = [str(masked), PROMPT, "--tokens", "40", "--temperature", "1.5"]
    first, again, other = launch(*command, cold=True), launch(*command), launch(*command, "--seed", "1")
    for each in (first, again, other):
        assert each.returncode == 0, each.stderr
        assert each.stdout.startswith(PROMPT) and each.stdout.endswith("\n")
        assert "Traceback" not in each.stderr
        assert "tokens/s" in each.stderr
        assert each.stderr.splitlines()[-1].startswith(
            f"next: python launch/generate.py {masked} 'the king went' --seed"
        )
    assert first.stdout == again.stdout != other.stdout


def test_a_new_document_and_one_that_is_too_long(masked: Path) -> None:
    done = launch(str(masked / "checkpoints" / "step_00000004"), "", "--tokens", "90", "--seed", "3")
    assert done.returncode == 0, done.stderr
    assert not done.stdout.startswith(" ")
    assert "was trained on sequences of 32 tokens" in done.stderr


def test_bf16(blocks: Path) -> None:
    done = launch(str(blocks), PROMPT, "train.precision=bf16", "--tokens", "4")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(PROMPT)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--head", "3"], "--head 3: there is none; the run has heads 0 to 2"),
        (["--top-p", "0"], "argument --top-p: invalid share value: '0'"),
        (["--temperature", "-1"], "argument --temperature: invalid temperature value: '-1'"),
        (["--tokens", "0"], "argument --tokens: invalid count value: '0'"),
        (["parallel.tensor=2"], "parallel.tensor=2: an evaluation shards over the ranks it is started on"),
    ],
)
def test_mistakes_that_need_no_checkpoint(
    masked: Path, arguments: list[str], words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "launch"))
    import generate

    try:
        code = generate.main([str(masked), PROMPT, *arguments])
    except SystemExit as left:  # argparse's way
        code = left.code
    told = capsys.readouterr()
    assert (code, told.out) == (2, "")
    assert words in told.err and "Traceback" not in told.err


@pytest.mark.parametrize(
    ("option", "code", "words"),
    [
        ("data.tokenizer=nowhere.model", 3, "tokenizer nowhere.model cannot be loaded"),
        ("model.hidden=48", 4, "belongs to another model"),
    ],
)
def test_mistakes(masked: Path, option: str, code: int, words: str) -> None:
    done = launch(str(masked), PROMPT, option)
    assert (done.returncode, done.stdout) == (code, "")
    assert words in done.stderr and "Traceback" not in done.stderr
