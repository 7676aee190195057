"""Bridge networks on two ranks: ends of curves, gradients of control points, frozen trunks, kills in either phase."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nt_pretrain.config.load import load_config
from nt_pretrain.evaluation.chosen import chosen_of
from nt_pretrain.evaluation.costs import costs_of_chosen, read_alone, steps_of
from nt_pretrain.methods.calendar import calendar_of, method_problems
from nt_pretrain.methods.curve import shares_at
from nt_pretrain.models.loss import IGNORED
from nt_pretrain.models.network import build, context_of
from nt_pretrain.observe.history import read_lines
from nt_pretrain.observe.rundir import RunDir
from nt_pretrain.parallel.forward import Inputs, Start
from nt_pretrain.parallel.mesh import connect
from nt_pretrain.train.blend import summed
from nt_pretrain.train.costs import costs_of
from nt_pretrain.train.curve import OnCurve, losses_on
from nt_pretrain.train.state import fresh_state
from nt_pretrain.train.step import accumulate_gradients
from nt_pretrain.train.teacher import beta, divergence, mixed
from nt_pretrain.train.validation import Validation
from tests.conftest import Corpus, command
from tests.data.rowsets import prepared
from tests.gloo import RanksFailed, run_ranks
from tests.train.method_runs import assert_same_ensembles, manifest, member, train, train_with_kills

pytestmark = pytest.mark.timeout(400)
TEXT = ["method.name=bridge", "train.steps=8", "sparsity.density=1"]


def write_config(folder: Path) -> Path:
    """A perceptron of three hidden layers on three clouds of rows."""
    data, path = prepared(folder), folder / "rows.yaml"
    path.write_text(
        "model: {family: mlp, features: 6, classes: 3, widths: [16, 16, 16]}\n"
        "train: {steps: 60, global_batch: 16, micro_batch: 4}\n"
        "optim: {algorithm: sgd, lr: 0.1, clip: 0, min_lr_ratio: 0}\n"
        f"data: {{path: {data}, lanes: 8, workers: 0}}\n"
        "checkpoint: {save_every_steps: 0}\n"
        "eval: {every_steps: 0, micro_batch: 20, figures: false}\n"
        "observe: {log_every_steps: 1, tensorboard: false}\n"
        "run: {device: cpu, threads_per_rank: 1}\n"
    )
    return path


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The configuration, and a run of type I with a control."""
    folder = tmp_path_factory.mktemp("bridge")
    config = write_config(folder)
    options = ["method.name=bridge", "method.members=2", "method.control=true", "method.mixup=0.4", "method.slim=2"]
    train(
        folder / "run", [*options, "train.steps=40", "train.global_batch=16", "eval.sequences=40"], config=str(config)
    )
    return config, folder / "run"


def test_ends_of_the_curve_are_the_modes_and_its_middle_lies_below_the_straight_line(rows: tuple[Path, Path]) -> None:
    lines = read_lines(RunDir(rows[1]).metrics)
    loss = {line["step"]: line["validation/loss_ensemble"] for line in lines if "validation/loss_ensemble" in line}
    (curve,) = (line for line in lines if "curve/loss_line" in line)
    assert (curve["step"], curve["curve/loss_first"], curve["curve/loss_last"]) == (120, loss[40], loss[80])
    assert curve["curve/loss_middle"] == loss[120], "what is validated is the middle, not the control point"
    assert curve["curve/loss_middle"] < 0.7 * curve["curve/loss_line"]


def test_a_curve_that_was_measured_before_a_kill_is_not_measured_again(rows: tuple[Path, Path], tmp_path: Path) -> None:
    """Killed between the line of its losses and the next checkpoint."""
    options = ["method.name=bridge", "method.members=2", "train.steps=4", "train.global_batch=16", "checkpoint.keep=99"]
    train(tmp_path / "run", options, ranks=1, config=str(rows[0]))
    rundir = RunDir(tmp_path / "run")
    for path in rundir.checkpoints.glob("step_*"):
        if int(path.name.removeprefix("step_")) > 12:
            shutil.rmtree(path)
    train(tmp_path / "run", options, ranks=1, config=str(rows[0]))
    for key in ("curve/loss_line", "validation/loss_ensemble"):
        assert [line["step"] for line in read_lines(rundir.metrics) if key in line].count(12) == 1, key
    # Killed before that line was written.
    lines = [line for line in rundir.metrics.read_text().splitlines() if '"curve/loss_line"' not in line]
    rundir.metrics.write_text("".join(f"{line}\n" for line in lines))
    for path in rundir.checkpoints.glob("step_*"):
        if int(path.name.removeprefix("step_")) > 12:
            shutil.rmtree(path)
    train(tmp_path / "run", options, ranks=1, config=str(rows[0]))
    assert [line["step"] for line in read_lines(rundir.metrics) if "curve/loss_line" in line] == [12]


def test_each_point_of_a_curve_is_a_place_of_its_own(tmp_path: Path) -> None:
    """A watchdog that is told of all four as one would find that nothing moves."""
    (told,) = run_ranks(_places, 1, str(write_config(tmp_path)), str(tmp_path / "run"), timeout=100)
    assert told == [f"measuring the curve, point {number} of 4" for number in (1, 2, 3, 4)]


def _places(rank: int, world: int, path: str, folder: str) -> list[str]:
    config = load_config(path, ["method.name=bridge", "method.members=2", "eval.sequences=20"])
    ranks = connect(config)
    phase = calendar_of(config).phases[2]
    assert phase.curve is not None
    state = fresh_state(phase.config, ranks)
    end = {name: shard.detach().clone() for name, shard in state.optimizer.shards.items()}
    validation = Validation(phase.config, state, ranks, RunDir(folder), print)
    told: list[str] = []
    losses_on(OnCurve(phase.curve, state, (end, end), phase.config, ranks), validation, told.append)
    return told


def test_a_bridge_learns_from_a_frozen_trunk_and_its_divergence_falls(rows: tuple[Path, Path]) -> None:
    _, run = rows
    listed = manifest(run)
    assert [each.name for each in listed.members] == ["mode_0", "bridge_1"]
    assert [each.name for each in listed.others] == ["mode_1", "curve_1", "control"]
    bridge, control = listed.members[1].made, listed.others[2].made
    assert bridge["teacher"] == {"mode_0": 0.25, "curve_1": 0.5, "mode_1": 0.25} and bridge["trunks"] == ["mode_0"]
    assert control["teacher"] == {"mode_0": 1.0} and control["seed"] == bridge["seed"]
    mode, head = member(run, "mode_0"), member(run, "bridge_1")
    trunk = [name for name in head if name.startswith("model.trunk.")]
    assert len(trunk) == 4 and all(torch.equal(head[name], mode[name]) for name in trunk)
    assert head["model.heads.0.blocks.0.linear.weight"].shape == (8, 16)
    losses = {line["step"]: line["train/loss"] for line in read_lines(RunDir(run).metrics) if "train/loss" in line}
    for first in (121, 161):
        assert sum(losses[first + 30 + k] for k in range(10)) < 0.5 * sum(losses[first + k] for k in range(10))


def test_an_ensemble_with_a_bridge_is_evaluated_and_other_runs_lend_their_modes(
    rows: tuple[Path, Path], tmp_path: Path
) -> None:
    config, run = rows
    command("launch/evaluate.py", str(run), "--out", str(tmp_path / "found"))
    found = json.loads((tmp_path / "found" / "evaluation.json").read_text())
    assert "bridge_1" in json.dumps(found)
    # One forward pass of the trunk serves both: what is counted is executed.
    costs = costs_of(load_config(run / "config.yaml", []))
    rows = found["costs"]["members"] | {"all": found["costs"]["ensemble"]}
    for name, cost in (costs.members | {"all": costs.ensemble}).items():
        assert rows[name]["parameters"] == {"total": cost.parameters.total, "active": cost.parameters.active}
        assert rows[name]["inference"] == {"counted": cost.inference.active, "executed": cost.inference_executed}
        assert rows[name]["training"] == {"counted": cost.training.active, "executed": cost.executed}
    assert found["costs"]["dense"]["training"]["executed"] == costs.dense.executed
    given = f"method.modes=[{run}/members/mode_0,{run}/members/mode_1]"
    options = ["method.name=bridge", "method.members=2", given, "train.steps=4", "train.global_batch=16"]
    train(tmp_path / "lent", options, config=str(config))
    listed = manifest(tmp_path / "lent")
    assert [each.name for each in listed.members] == ["mode_0", "bridge_1"]
    assert listed.members[0].sha256 == manifest(run).members[0].sha256
    assert [each.name for each in listed.others] == ["mode_1", "curve_1"]
    chosen = chosen_of(str(tmp_path / "lent"), [], data=None, samples=0)
    costs = costs_of_chosen(chosen, steps_of(chosen), shared=read_alone(chosen))
    assert costs["members"]["mode_0"]["training"] is None and "mode_0: its training is not known here" in costs["notes"]
    head = 2 * (16 * 16 + 16 * 3)
    assert costs["members"]["bridge_1"]["inference"] == {"counted": head, "executed": head}
    assert f"the training of {run}/members/mode_1, which the run was given, is not counted" in costs["notes"]


def test_modes_may_be_moved_and_not_be_others(rows: tuple[Path, Path], tmp_path: Path) -> None:
    config, run = rows
    for name in ("mode_0", "mode_1", "curve_1"):
        shutil.copytree(run / "members" / name, tmp_path / "here" / name)
    options = ["method.name=bridge", "method.members=2", "train.steps=4", "train.global_batch=16", "checkpoint.keep=99"]

    def given(folder: str, *names: str) -> list[str]:
        return [*options, "method.modes=[" + ",".join(f"{tmp_path}/{folder}/{name}" for name in names) + "]"]

    train(tmp_path / "run", given("here", "mode_0", "mode_1"), ranks=1, config=str(config))
    for path in RunDir(tmp_path / "run").checkpoints.glob("step_*"):
        if int(path.name.removeprefix("step_")) > 6:
            shutil.rmtree(path)  # as killed amid the bridge
    (tmp_path / "here").rename(tmp_path / "there")
    with pytest.raises(RanksFailed, match=r"curve_1 is not .*mode_1, which .*ensemble.json lists as mode_1"):
        train(tmp_path / "run", given("there", "mode_0", "curve_1"), ranks=1, config=str(config))
    train(tmp_path / "run", given("there", "mode_0", "mode_1"), ranks=1, config=str(config))
    assert manifest(tmp_path / "run").members[1].name == "bridge_1"


def test_killed_amid_a_curve_and_amid_a_bridge_of_both_trunks(corpus: Corpus, tmp_path: Path) -> None:
    options = [*corpus.overrides, *TEXT, "method.members=3", "method.bridge_type=II", "method.slim=2"]
    train(tmp_path / "undisturbed", options)
    resumed = train_with_kills(tmp_path / "killed", options, [20, 28])
    assert 16 < resumed[0] < 24 < resumed[1] < 32
    assert_same_ensembles(tmp_path / "undisturbed", tmp_path / "killed")
    run = tmp_path / "undisturbed"
    assert [each.name for each in manifest(run).members] == ["mode_0", "mode_1", "bridge_1"]
    bridge = member(run, "bridge_1")
    assert not any(name.startswith("first_moment") for name in bridge)
    for number in (0, 1):
        mode = member(run, f"mode_{number}")
        for name in [name for name in bridge if name.startswith(f"model.trunk.parts.{number}.")]:
            assert torch.equal(bridge[name], mode[name.replace(f"parts.{number}.", "")])


def test_bridges_of_pictures_leave_running_statistics_of_trunks_alone_killed_or_not(tmp_path: Path) -> None:
    for split, count in (("train", 64), ("test", 24)):
        for number in range(count):
            file = tmp_path / split / ("dark", "light")[number % 2] / f"{number:03d}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            noise = np.random.Generator(np.random.PCG64(number)).integers(0, 120, (16, 16, 3)) + 100 * (number % 2)
            Image.fromarray(noise.astype(np.uint8)).save(file)
    data = tmp_path / "prepared"
    arguments = ["images", str(tmp_path / "train"), "--validation", str(tmp_path / "test"), "--out", str(data)]
    command("launch/prepare.py", *arguments, "--workers", "1")
    options = [
        f"data.path={data}", "model.classes=2", "train.steps=5", "train.micro_batch=2", "data.picture_size=16",
        "data.picture_shorter=16", "sparsity.density=1", "method.name=bridge", "method.members=2", "method.slim=2",
        "method.mixup=0.4", "run.device=cpu", "eval.sequences=24", "data.window=64",
    ]  # fmt: skip
    config = "configs/images_small.yaml"
    train(tmp_path / "undisturbed", options, config=config)
    # In the bridge, whose teacher's running statistics are measured again.
    (resumed,) = train_with_kills(tmp_path / "killed", options, [19], config=config)
    assert 15 < resumed < 20
    assert_same_ensembles(tmp_path / "undisturbed", tmp_path / "killed")
    mode, bridge = (member(tmp_path / "undisturbed", name) for name in ("mode_0", "bridge_1"))
    names = [name for name in bridge if name.startswith("model.trunk.")]
    assert any("running_var" in name for name in names)
    assert all(torch.equal(bridge[name], mode[name]) for name in names)


def test_a_bridge_costs_its_head_and_is_trained_without_backward_passes_of_trunk_and_teacher() -> None:
    options = ["model.widths=[64,64,64]", "method.name=bridge", "method.members=2", "method.slim=2", "train.steps=10"]
    costs = costs_of(load_config("configs/synth_mlp.yaml", options))
    trunk, head, mode = 32 * 64 + 64 * 64, 64 * 32 + 32 * 10, 32 * 64 + 2 * 64 * 64 + 64 * 10
    assert costs.members["bridge_1"].inference.total == 2 * head
    assert costs.members["bridge_1"].executed == 2 * (trunk + 3 * head + mode) * 640
    assert costs.ensemble.inference.total == 2 * (mode + head)
    assert costs.ensemble.executed == (3 * 6 * mode + 2 * (trunk + 3 * head + mode)) * 640


@pytest.mark.parametrize("path", ["configs/tiny.yaml", "configs/synth_mlp.yaml", "configs/images_small.yaml"])
def test_a_head_on_two_trunks_sees_the_features_of_both(path: str) -> None:
    options = ["model.heads=1", "model.blocks_in_head=1", "model.trunks=2", "model.head_slim=2", "sparsity.density=1"]
    model = load_config(path, options).model
    torch.manual_seed(0)
    network = build(model).eval()
    kinds = {"text": torch.randint(0, 512, (2, 8)), "rows": torch.randn(2, 32), "pictures": torch.randn(2, 3, 16, 16)}
    inputs = kinds[model.data]
    context = context_of(model, torch.zeros(2, 8, dtype=torch.int64) if model.data == "text" else None)
    with torch.no_grad():
        before = network.heads["0"](network.trunk_output(inputs, context), context)
        for part in network.trunk.parts:
            values = [parameter.clone() for parameter in part.parameters()]
            for parameter in part.parameters():
                parameter.mul_(1.5).add_(0.1)
            assert not torch.allclose(network.heads["0"](network.trunk_output(inputs, context), context), before)
            for parameter, value in zip(part.parameters(), values, strict=True):
                parameter.copy_(value)


def test_the_gradient_of_the_control_point_is_that_of_finite_differences(tmp_path: Path) -> None:
    assert all(run_ranks(_differences, 2, str(write_config(tmp_path)), timeout=100))


def _differences(rank: int, world: int, path: str) -> bool:
    options = ["method.name=bridge", "method.members=2", "train.precision=fp64", "model.widths=[8,8]"]
    config = load_config(path, options)
    ranks = connect(config)
    phase = calendar_of(config).phases[2]
    assert phase.curve is not None and phase.name == "curve_1"
    states = [fresh_state(replace(phase, config=phase.config).config, ranks)]
    for seed in (7, 8):
        run = phase.config.run.model_copy(update={"seed": seed})
        states.append(fresh_state(phase.config.model_copy(update={"run": run}), ranks))
    state, first, last = states
    ends = tuple({name: shard.detach() for name, shard in each.optimizer.shards.items()} for each in (first, last))
    curve = OnCurve(phase.curve, state, (ends[0], ends[1]), phase.config, ranks)
    draw = torch.Generator().manual_seed(rank)
    batch = Inputs(torch.randn(8, 6, generator=draw), torch.randint(0, 3, (8,), generator=draw), None)

    def loss() -> float:
        with curve.for_step(3):
            return accumulate_gradients(state.model, phase.config, batch, ranks).per_head[0]

    before = {name: shard.detach().clone() for name, shard in state.optimizer.shards.items()}
    loss()
    gradients = {name: x.clone() for name, x in state.optimizer.gradients().items()}
    assert all(torch.equal(before[name], shard) for name, shard in state.optimizer.shards.items()), "phi is back"
    # Along one direction, the same on both ranks: each moves its own part of it.
    direction = {name: x.sign() for name, x in gradients.items()}
    slope = torch.tensor(sum(float((x * direction[name]).sum()) for name, x in gradients.items()), dtype=torch.float64)
    torch.distributed.all_reduce(slope)
    moved = []
    for size in (1e-5, -1e-5):
        with torch.no_grad():
            for name, shard in state.optimizer.shards.items():
                shard.copy_(before[name] + size * direction[name])
        moved.append(loss())
    return abs((moved[0] - moved[1]) / 2e-5 - float(slope)) < 1e-5 * abs(float(slope))


def test_shares_are_exact_at_the_ends() -> None:
    x, phi, y = (torch.randn(100, generator=torch.Generator().manual_seed(k)) for k in range(3))
    for r, end in ((0.0, x), (1.0, y)):
        assert torch.equal(summed(list(zip((x, phi, y), shares_at(r), strict=True))), end)


def test_divergence_is_of_the_teacher_from_the_head_where_there_is_a_target() -> None:
    teacher, said = torch.tensor([[0.0, 1.0], [2.0, 0.0]]), torch.tensor([[0.5, 0.0], [1.0, 0.0]])
    start = Start(said, said, None, torch.tensor([1, IGNORED]))
    p, q = teacher[0].softmax(0), said[0].softmax(0)
    expected = (p * (p / q).log()).sum()
    torch.testing.assert_close(divergence(teacher, lambda x, context: x, start), expected)


def test_mixing_shares_follow_their_distribution_and_mix_neighbours() -> None:
    share = beta(3, torch.arange(20_000), 0.4)
    assert float(share.min()) >= 0 and float(share.max()) <= 1
    # Beta(a, a) has mean 1/2 and variance 1 / (4 (2 a + 1)).
    assert abs(float(share.mean()) - 0.5) < 0.01 and abs(float(share.var()) - 1 / 7.2) < 0.003
    assert torch.equal(beta(3, torch.arange(10, 20), 0.4), share[10:20])
    batch = Inputs(torch.tensor([[0.0], [10.0]]), torch.zeros(2, dtype=torch.int64), None)
    assert mixed(batch, torch.tensor([0.25, 0.25])).inputs.tolist() == [[7.5], [2.5]]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["method.members=4", "method.bridge_type=II"], "3, 5, ...; not 4"),
        (["method.bridge_blocks=3"], "leave no trunk"),
        (["method.mixup=0.4"], "tokens cannot be mixed"),
        (["train.ema_decay=0.9"], "train.ema_decay: does not go"),
        (["method.modes=[a]"], "1 are given, 2 needed"),
        (["method.modes=[a,a]"], "a, a: each only once"),
    ],
)
def test_what_does_not_fit_is_told(options: list[str], said: str) -> None:
    config = load_config("configs/tiny.yaml", ["method.name=bridge", "method.members=2", *options])
    assert any(said in line for line in method_problems(config)), method_problems(config)


def test_a_sample_alone_has_nobody_to_be_mixed_with() -> None:
    options = ["method.name=bridge", "method.members=2", "method.mixup=0.4", "method.bridge_blocks=1"]
    for size, wrong in ((1, True), (2, False)):
        config = load_config("configs/synth_mlp.yaml", [*options, f"train.micro_batch={size}"])
        told = [line for line in method_problems(config) if "no neighbour" in line]
        assert bool(told) == wrong
