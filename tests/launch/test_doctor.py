"""The command line of the doctor: what it prints, refuses and returns."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

import pytest

from tests.contract import ROOT


@dataclass
class Done:
    returncode: int
    stdout: str
    stderr: str


class Doctor:
    """The command line in this process, which is ten times faster than one of its own."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        spec = importlib.util.spec_from_file_location("doctor", ROOT / "launch" / "doctor.py")
        assert spec is not None and spec.loader is not None
        self._module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self._module)
        self._capsys = capsys

    def __call__(self, config: str, *arguments: str) -> Done:
        try:
            code = self._module.main([str(ROOT / config), *arguments])
        except SystemExit as error:
            code = error.code
        told = self._capsys.readouterr()
        return Done(int(code), told.out, told.err)


@pytest.fixture
def doctor(capsys: pytest.CaptureFixture[str]) -> Doctor:
    return Doctor(capsys)


def test_it_tells_all_of_one_world(doctor: Doctor) -> None:
    done = doctor("configs/demo.yaml", "--world", "4", "--gpu", "a100-40g", "parallel.tensor=2")
    assert done.returncode == 0, done.stderr
    assert "mesh of 4 ranks: 2 shard x 2 tensor" in done.stdout
    for row in ("weights", "moments", "topology", "gradients", "activations, gathered weights, logits", "peak"):
        assert f"\n  {row}  " in done.stdout
    for row in ("shard", "tensor", "topology update, at most", "step", "tokens per day", "one checkpoint"):
        assert f"\n  {row}  " in done.stdout
    assert "a100-40g has" in done.stdout and "fits, with" in done.stdout
    last = done.stdout.splitlines()[-1]
    command = f"launch/pretrain.py {ROOT}/configs/demo.yaml parallel.tensor=2"
    assert last == f"to train: torchrun --nnodes 1 --nproc-per-node 4 {command}"


def test_several_worlds_make_a_table(doctor: Doctor) -> None:
    done = doctor("configs/demo.yaml", "--world", "2,64", "--grow-batch")
    assert done.returncode == 0, done.stderr
    rows = {line.split(" | ")[0].strip("| "): line for line in done.stdout.splitlines() if line.startswith("| ")}
    assert rows["ranks"] == "| ranks | 2 | 64 |"
    assert rows["sequences per step"] == "| sequences per step | 32 | 512 |", "64 ranks of one micro-batch of 8"
    assert "sent along shard" in rows and "tokens per day" in rows


@pytest.mark.long
def test_too_little_memory_is_told_with_what_helps(doctor: Doctor) -> None:
    huge = ["train.global_batch=16384", "train.micro_batch=16384"]
    done = doctor("configs/demo.yaml", "--world", "1", "--gpu", "a100-40g", *huge)
    assert done.returncode == 2
    assert "DOES NOT FIT" in done.stdout and "parallel.activation_checkpoint=full" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--world", "3"], "3 ranks: train.global_batch: 32 is not divisible by 3 ranks"),
        (["--world", "4", "parallel.head=2"], "parallel.head: 2 does not divide model.heads 3"),
        (["--world", "4", "train.stpes=3"], "train.stpes: unknown key; did you mean train.steps?"),
        (["--world", "0"], "argument --world: invalid worlds value: '0'"),
        (["--world", "4", "--gpu", "h100"], "argument --gpu: invalid choice: 'h100'"),
    ],
)
def test_errors_are_told_without_a_traceback(doctor: Doctor, arguments: list[str], expected: str) -> None:
    done = doctor("configs/demo.yaml", *arguments)
    assert done.returncode == 2
    assert expected in done.stderr and "Traceback" not in done.stderr


def test_it_times_this_machine_and_says_what_to_use(doctor: Doctor) -> None:
    done = doctor("configs/tiny.yaml", "--here", "--seconds", "1", "model.hidden=64", "model.intermediate=96")
    assert done.returncode == 0, done.stderr
    assert "ways to multiply sparse weights here:" in done.stdout and "\n  compiled CPU kernels " in done.stdout
    assert "calibrating: 1 of 5 kinds of matrices" in done.stderr
    assert "not timed: 1 sparse embeddings or convolutions (trunk.embedding.weight)" in done.stdout
    assert "\nfastest: " in done.stdout and "\nto use it: sparsity.backend=" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--here", "sparsity.density=1"], "sparsity.density is 1: no layer is sparse"),
        (["--here", "model.heads=0"], "model.heads"),
        (["--here", "--world", "4"], "not allowed with argument"),
        ([], "one of the arguments --world --here is required"),
    ],
)
def test_what_cannot_be_timed_is_told(doctor: Doctor, arguments: list[str], expected: str) -> None:
    done = doctor("configs/tiny.yaml", *arguments)
    assert done.returncode == 2
    assert expected in done.stderr and "Traceback" not in done.stderr
