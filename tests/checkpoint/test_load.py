"""Loading at any number of ranks, broken checkpoints that are named and skipped, tensors that do not fit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from nt_pretrain.checkpoint.errors import CheckpointError
from nt_pretrain.checkpoint.load import Found, load_tensors, newest_valid, open_checkpoint
from nt_pretrain.checkpoint.manifest import read_manifest
from tests.checkpoint.samples import expect, load_newest, placed, save_steps, whole
from tests.gloo import run_ranks

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Steps 10 and 20, saved by 4 ranks. Not to be changed."""
    root = tmp_path_factory.mktemp("saved")
    run_ranks(save_steps, 4, root, [10, 20])
    return root


@pytest.fixture
def root(saved: Path, tmp_path: Path) -> Path:
    """A copy of these two to damage."""
    return Path(shutil.copytree(saved, tmp_path / "checkpoints"))


def find(rank: int, world: int, root: Path) -> Found | None:
    return newest_valid(root, group=dist.group.WORLD)


def message_of_find(rank: int, world: int, root: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        newest_valid(root, group=dist.group.WORLD)
    return str(caught.value)


def message_of_open(rank: int, world: int, path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path, group=dist.group.WORLD)
    return str(caught.value)


def message_of_misfit(rank: int, world: int, path: Path) -> str:
    tensors = whole(0)
    tensors["model.weight"] = torch.zeros(7, 6)
    tensors["model.norm"] = torch.zeros(6, dtype=torch.float32)
    tensors["model.two_rows"] = torch.zeros(2, 3)
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    with pytest.raises(CheckpointError) as caught:
        load_tensors(path, placed(tensors, world))
    assert torch.equal(before["count"], tensors["count"]), "nothing may be read when something does not fit"
    return str(caught.value)


def load_one(rank: int, world: int, path: Path) -> bytes:
    count = {"count": torch.zeros((), dtype=torch.int64)}
    load_tensors(path, count)
    return bytes(count["count"].reshape(1).view(torch.uint8).tolist())


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_saved_at_4_loads_bit_by_bit(saved: Path, world: int) -> None:
    found = expect(run_ranks(load_newest, world, saved), 20)
    assert found.path == saved / "step_00000020"
    assert found.world_size == 4
    assert found.skipped == []


def test_saved_at_1_loads_at_4(tmp_path: Path) -> None:
    run_ranks(save_steps, 1, tmp_path, [3])
    expect(run_ranks(load_newest, 4, tmp_path), 3)


def test_nothing_saved_is_none(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    assert run_ranks(find, 2, tmp_path / "absent") == [None, None]
    assert run_ranks(find, 2, tmp_path) == [None, None]


def flip_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def cut_last_byte(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def append(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"more")


DATA = "__1_0.distcp"
FAULTS: list[tuple[str, Callable[[Path], object], str]] = [
    (DATA, flip_bit, f"{DATA} is damaged: its length is right"),
    (DATA, truncate, f"{DATA} is truncated: "),
    (DATA, append, f"{DATA} is longer than it was written: "),
    (DATA, Path.unlink, f"{DATA} is missing"),
    (".metadata", flip_bit, ".metadata is damaged"),
    (".metadata", Path.unlink, ".metadata is missing"),
    ("state.json", flip_bit, "state.json is damaged"),
    ("state.json", Path.unlink, "state.json is missing"),
    ("manifest.json", truncate, "manifest.json is damaged, it is not JSON"),
    ("manifest.json", cut_last_byte, "manifest.json is damaged, its own hash"),
    ("manifest.json", Path.unlink, "there is no manifest.json: not a checkpoint of this program, or not a whole one"),
    ("__4_0.distcp", Path.touch, "__4_0.distcp does not belong to it"),
    ("strange", Path.mkdir, "strange does not belong to it"),
]


@pytest.mark.parametrize(("name", "fault", "message"), FAULTS, ids=[f"{f.__name__} {n}" for n, f, _ in FAULTS])
def test_broken_one_is_named_and_skipped(root: Path, name: str, fault: Callable[[Path], object], message: str) -> None:
    fault(root / "step_00000020" / name)
    found = expect(run_ranks(load_newest, 2, root), 10)
    assert len(found.skipped) == 1
    assert found.skipped[0].startswith(f"{root / 'step_00000020'} cannot be used: ")
    assert message in found.skipped[0]


def change_manifest(path: Path, change: dict[str, object]) -> None:
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"identity": {"model": "another"}}, "its own hash does not fit its content"),
        ({"format": 2}, "has format 2, this program reads format 1; use the version of the program that wrote it"),
    ],
)
def test_changed_manifest(root: Path, change: dict[str, object], message: str) -> None:
    change_manifest(root / "step_00000020" / "manifest.json", change)
    [found, _] = run_ranks(find, 2, root)
    assert found.step == 10
    assert message in found.skipped[0]


def test_renamed_folder(root: Path) -> None:
    (root / "step_00000020").rename(root / "step_00000030")
    [found] = run_ranks(find, 1, root)
    assert found.step == 10
    assert "says step 20, the folder is named step_00000030" in found.skipped[0]


def test_foreign_folder(root: Path) -> None:
    (root / "step_00000030").mkdir()
    (root / "step_00000030" / "model.safetensors").touch()
    (root / "step_40").mkdir()
    [found] = run_ranks(find, 1, root)
    assert found.step == 20
    assert "not a checkpoint of this program" in found.skipped[0]


def test_unfinished_save_is_named_and_left_alone(root: Path) -> None:
    (root / "step_00000030.tmp").mkdir()
    [found] = run_ranks(find, 1, root)
    assert found.step == 20
    assert found.skipped == [f"{root / 'step_00000030.tmp'} is of a save that has not finished"]
    assert (root / "step_00000030.tmp").exists()


def test_all_broken_is_an_error_that_names_all(root: Path) -> None:
    flip_bit(root / "step_00000010" / DATA)
    truncate(root / "step_00000020" / "__3_0.distcp")
    messages = run_ranks(message_of_find, 2, root)
    assert messages[0] == messages[1]
    assert "step_00000020 cannot be used: __3_0.distcp is truncated" in messages[0]
    assert f"step_00000010 cannot be used: {DATA} is damaged" in messages[0]
    assert "To start from step 0 move them away first." in messages[0]


def test_open_names_all_missing_files(root: Path) -> None:
    for name in ("__0_0.distcp", DATA):
        (root / "step_00000020" / name).unlink()
    messages = run_ranks(message_of_open, 2, root / "step_00000020")
    assert messages[0] == messages[1]
    assert "__0_0.distcp is missing; __1_0.distcp is missing" in messages[0]


def test_misfit_names_tensors_with_both_shapes(saved: Path) -> None:
    messages = run_ranks(message_of_misfit, 2, saved / "step_00000020")
    assert messages[0] == messages[1]
    assert "model.weight: shape [7, 5] in the checkpoint, [7, 6] here" in messages[0]
    assert "model.norm: torch.float64 in the checkpoint, torch.float32 here" in messages[0]
    assert "model.two_rows [2, 3]: not in the checkpoint (it has model.one_row)" in messages[0]
    assert "Use the configuration it was saved with" in messages[0]


def test_some_of_the_tensors_may_be_read_alone(saved: Path) -> None:
    wanted = bytes(whole(20)["count"].reshape(1).view(torch.uint8).tolist())
    assert run_ranks(load_one, 2, saved / "step_00000020") == [wanted, wanted]


def test_manifest_describes_every_file(saved: Path) -> None:
    folder = saved / "step_00000010"
    manifest = read_manifest(folder)
    assert set(manifest.files) == {path.name for path in folder.iterdir()} - {"manifest.json"}
    assert manifest.torch == torch.__version__
