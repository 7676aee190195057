"""Heads on copies of other members' trunks read what these compute: the same bits, and no forward pass of their own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from nt_pretrain.checkpoint.load import Found, open_checkpoint
from nt_pretrain.config.load import load_config
from nt_pretrain.config.method_section import MethodSection
from nt_pretrain.config.schema import Config
from nt_pretrain.eval.gather import said
from nt_pretrain.eval.voices import Voices
from nt_pretrain.evaluation.chosen import Chosen, chosen_of
from nt_pretrain.evaluation.speakers import find_all, load_all, voices_of
from nt_pretrain.evaluation.trunks import on_shared_trunks, trunks_read
from nt_pretrain.methods.calendar import calendar_of
from nt_pretrain.methods.curve import OnTrunks
from nt_pretrain.methods.manifest import NAME
from nt_pretrain.parallel.batch_norm import statistics_of
from nt_pretrain.parallel.forward import Inputs
from nt_pretrain.parallel.mesh import Ranks, connect
from nt_pretrain.parallel.shard import local
from nt_pretrain.train.blend import state_on_trunks
from tests.conftest import Corpus
from tests.evaluation.members import CHECKPOINT, ROOT, ensemble_of, write_member, write_state
from tests.gloo import run_ranks

pytestmark = pytest.mark.timeout(300)

KINDS = {
    "text": ("configs/tiny.yaml", ["sparsity.density=1", "model.heads=1", "model.blocks_in_head=0"]),
    "rows": ("configs/synth_mlp.yaml", ["model.widths=[16,16,16]", "model.features=6", "model.classes=3"]),
    "pictures": ("configs/images_small.yaml", ["sparsity.density=1", "model.classes=3", "data.picture_size=16"]),
}


def write_run(folder: Path, config: Config, ranks: Ranks) -> Path:
    """Modes that nobody trained, and a bridge on their trunks; returns the ensemble.json."""
    more, paths = {}, {}
    for phase in calendar_of(config):
        alone = phase.config.model_copy(update={"method": MethodSection()})
        place = folder / "members" / phase.name
        if phase.curve is not None:
            continue
        if isinstance(phase.start, OnTrunks):
            names = [mode.name for mode in phase.start.modes]
            more[phase.name] = {"made": {"phase": phase.name, "from": "its seed", "trunks": names, "teacher": {}}}
            founds = [_found(folder / "members" / name, ranks) for name in names]
            write_state(place, state_on_trunks(phase, founds, ranks), alone, ranks)
        else:
            write_member(place, alone, ranks)
        paths[phase.name] = f"members/{phase.name}"
    if ranks.rank == 0:
        ensemble_of(folder, paths, **more)
    dist.barrier(ranks.control)
    return folder / NAME


def _found(folder: Path, ranks: Ranks) -> Found:
    return open_checkpoint(folder / CHECKPOINT, group=ranks.control)


def _batch(config: Config, rank: int) -> Inputs:
    draw = torch.Generator().manual_seed(rank)
    if config.model.data == "text":
        tokens = torch.randint(0, config.model.vocab_size, (3, 17), generator=draw)
        return Inputs.of_text(tokens, torch.zeros_like(tokens))
    labels = torch.randint(0, 3, (5,), generator=draw)
    if config.model.data == "rows":
        return Inputs.of_labelled(torch.randn(5, 6, generator=draw), labels)
    return Inputs.of_labelled(torch.randint(0, 256, (5, 3, 16, 16), generator=draw, dtype=torch.uint8), labels)


def _said(voices: Voices, config: Config, ranks: Ranks) -> tuple[Tensor, int]:
    """Logits of all voices, and how often the trunk of the last part ran."""
    ran: list[int] = []
    handle = voices.parts[-1].model.trunk.register_forward_pre_hook(lambda *_: ran.append(1))
    (found,) = said(voices, [_batch(config, ranks.rank)], ranks)
    handle.remove()
    return found.logits, len(ran)


def _compare(rank: int, world: int, folder: Path, path: str, options: list[str]) -> dict[str, bool]:
    config = load_config(ROOT / path, ["run.device=cpu", "run.threads_per_rank=1", "method.name=bridge", *options])
    ranks = connect(config)
    manifest = write_run(folder, config, ranks)
    chosen = chosen_of(str(manifest), [], data=None, samples=0)
    loaded = load_all(find_all(chosen, ranks), chosen, ranks)
    own = voices_of(chosen, loaded)
    shared = on_shared_trunks(own, chosen, ranks)
    (alone, ran), (together, ran_shared) = _said(own, config, ranks), _said(shared, config, ranks)
    found = {
        "ran alone": ran == 1,
        "not together": ran_shared == 0,
        "same bits": torch.equal(alone, together),
        "voices differ": not torch.equal(alone[0], alone[-1]),
        "hooks are gone": _said(own, config, ranks)[1] == 1,
    }
    # One rank's bits differ: all ranks run the head's own trunk.
    if rank == world - 1:
        bridge = loaded[-1].model
        statistics = statistics_of(bridge)
        value = next(iter(statistics.values())) if statistics else local(next(iter(bridge.trunk.parameters()))).detach()
        value.view(-1)[0] += 1
    changed = on_shared_trunks(own, chosen, ranks)
    return found | {"other bits": not any(part.trunks for part in changed.parts)}


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("text", ["method.members=2"]),
        ("text", ["method.members=3", "method.bridge_type=II", "method.slim=2", "train.precision=bf16"]),
        ("rows", ["method.members=3", "method.bridge_type=II"]),
        ("pictures", ["method.members=2", "method.slim=2"]),
        ("pictures", ["method.members=3", "method.bridge_type=II"]),
    ],
)
def test_features_are_the_same_bits_and_computed_once(
    kind: str, options: list[str], corpus: Corpus, tmp_path: Path
) -> None:
    path, more = KINDS[kind]
    more = [*more, *options, *(corpus.overrides if kind == "text" else [])]
    for found in run_ranks(_compare, 2, tmp_path, path, more, timeout=200):
        assert all(found.values()), found


def _chosen(rank: int, world: int, folder: Path) -> Chosen:
    path, more = KINDS["rows"]
    options = [*more, "run.device=cpu", "run.threads_per_rank=1", "method.name=bridge", "method.members=2"]
    config = load_config(ROOT / path, options)
    return chosen_of(str(write_run(folder, config, connect(config))), [], data=None, samples=0)


def test_trunks_are_known_by_their_hash_and_run_before_those_who_read_them(tmp_path: Path) -> None:
    (chosen,) = run_ranks(_chosen, 1, tmp_path, timeout=100)
    assert [each.name for each in chosen.speakers] == ["mode_0", "mode_1", "bridge_1"]
    assert trunks_read(chosen) == {2: (0,)}
    first, _, bridge = chosen.speakers
    called = replace(first, name="anything")
    assert trunks_read(replace(chosen, speakers=[called, bridge])) == {1: (0,)}
    assert trunks_read(replace(chosen, speakers=[bridge, first])) == {}, "nothing has run before it"
    assert first.listed is not None
    other = replace(first, listed=replace(first.listed, sha256="0" * 64))
    assert trunks_read(replace(chosen, speakers=[other, bridge])) == {}, "another model of the same name"
