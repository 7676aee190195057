"""The estimate of memory against what a block really saves, and against counting by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from nt_pretrain.config.load import load_config
from nt_pretrain.config.mesh import mesh_sizes
from nt_pretrain.config.schema import Config
from nt_pretrain.eval.metrics import TokenSums
from nt_pretrain.methods.calendar import calendar_of
from nt_pretrain.methods.phase import Phase, changed
from nt_pretrain.methods.settings import single
from nt_pretrain.models.accounting import shapes_of
from nt_pretrain.models.llama import Block, make_context
from nt_pretrain.parallel.forward import Start
from nt_pretrain.parallel.mesh import connect
from nt_pretrain.parallel.shard import local, sharded_model
from nt_pretrain.sparsity.budget import plan_budgets
from nt_pretrain.train.beside_memory import distillation_bytes, plan_of
from nt_pretrain.train.memory import Memory, checkpoint_bytes, element_bytes, estimate, saved_per_token_of_block
from nt_pretrain.train.phase_plan import render_run
from nt_pretrain.train.plan import make_plan, readable_bytes
from nt_pretrain.train.teacher import divergence
from tests.gloo import run_ranks


def config(**sections: dict) -> Config:
    model = dict(vocab_size=100, hidden=32, intermediate=48, layers=4, attention_heads=4, heads=3, blocks_in_head=2)
    return Config.model_validate(
        {"data": {"sequence_length": 16}, **sections, "model": model | sections.get("model", {})}
    )


def memory(found: Config, *, world_size: int = 1, accumulation: int = 1) -> Memory:
    shapes = shapes_of(found.model)
    budgets = plan_budgets(shapes, found.sparsity) if found.sparsity.density < 1 else {}
    return estimate(found, shapes, budgets, mesh_sizes(found, world_size), accumulation=accumulation)


@pytest.mark.parametrize(("kv_heads", "ffn"), [(None, "swiglu"), (2, "swiglu"), (None, "relu"), (None, "relu2")])
def test_activations_are_what_a_block_saves(kv_heads: int | None, ffn: str) -> None:
    model = config(
        model={"hidden": 256, "intermediate": 688, "attention_heads": 8, "kv_heads": kv_heads, "ffn": ffn}
    ).model
    block, (sequences, length) = Block(model), (2, 128)
    context = make_context(model, torch.zeros(sequences, length, dtype=torch.long))
    not_counted = {tensor.data_ptr() for tensor in (*block.parameters(), context.cos, context.sin)}
    saved: dict[int, int] = {}

    def remember(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in not_counted:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    x = torch.randn(sequences, length, model.hidden, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
        kept = block(x, context)
    assert kept.requires_grad
    assert sum(saved.values()) == pytest.approx(4 * sequences * length * saved_per_token_of_block(model), rel=0.01)


def test_what_is_stored_is_divided_among_ranks() -> None:
    found = config(sparsity={"density": 0.5})
    shapes = shapes_of(found.model)
    parameters = sum(torch.Size(shape).numel() for shape in shapes.values())
    matrices = sum(torch.Size(shape).numel() for shape in shapes.values() if len(shape) == 2)
    one, four = memory(found), memory(found, world_size=4)
    assert one.weights == 4 * parameters and one.moments == 8 * parameters and one.topology == 2 * matrices
    assert four.weights == pytest.approx(one.weights / 4, abs=4)
    assert four.moments == pytest.approx(one.moments / 4, abs=8)
    assert four.topology == pytest.approx(one.topology / 4, abs=2 * len(shapes))
    assert four.activations == one.activations


def test_blocks_need_little_and_every_rank_holds_all_of_them() -> None:
    found = config(sparsity={"density": 0.5, "unit": 16, "scope": "no_vocab"})
    shapes = {name: shape for name, shape in shapes_of(found.model).items() if "attention." in name or "ffn." in name}
    units = sum(torch.Size(shape).numel() for shape in shapes.values()) // 256
    assert memory(found).topology == memory(found, world_size=4).topology == 2 * units


def test_accumulation_keeps_a_whole_gradient() -> None:
    found = config()
    parameters = sum(torch.Size(shape).numel() for shape in shapes_of(found.model).values())
    assert memory(found, world_size=4, accumulation=2).gradients == pytest.approx(4 * parameters * 1.25, abs=4)
    assert memory(found, world_size=4).gradients < 4 * parameters


@pytest.mark.parametrize(
    ("precision", "exact", "expected"),
    [
        ("fp32", False, (4, 4, 4)),
        ("bf16", False, (2, 4, 4)),
        ("pure_bf16", False, (2, 2, 2)),
        ("bf16", True, (2, 4, 8)),
    ],
)
def test_bytes_of_an_element(precision: str, exact: bool, expected: tuple[int, int, int]) -> None:
    assert element_bytes(config(train={"precision": precision}, parallel={"deterministic_reduce": exact})) == expected


def test_peak_is_the_largest_of_backward_update_and_validation() -> None:
    parts = dict(weights=1, gathered=10, gradients=2, moments=3, topology=4, activations=100, loss=1000)
    assert Memory(**parts, update=5, validation=6).peak == 1120
    assert Memory(**parts, update=9999, validation=6).peak == 10009
    assert Memory(**parts, update=5, validation=9999).peak == 10017


@pytest.mark.parametrize("heads", [1, 2])
def test_validation_is_counted_as_it_is_measured(heads: int) -> None:
    """The largest tensors alive at once in TokenSums.add, with a generator as validation gives it."""
    found = config(model={"vocab_size": 4000, "heads": heads}, eval={"micro_batch": 4})
    tokens, vocabulary = 4 * found.data.sequence_length, found.model.vocab_size
    sums = TokenSums(torch.zeros(heads, dtype=torch.float64))
    targets = torch.zeros(tokens, dtype=torch.int64)
    with torch.profiler.profile(profile_memory=True) as profile:
        sums.add((torch.randn(tokens, vocabulary) for _ in range(heads)), targets)
    used, most = 0, 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            used += event.nbytes()
            most = max(most, used)
    assert most == pytest.approx(memory(found).validation, rel=0.02)


def test_what_is_offloaded_leaves_the_device() -> None:
    on = config(run={"device": "cuda"}, parallel={"cpu_offload": True}, sparsity={"density": 0.5})
    off = config(run={"device": "cuda"}, sparsity={"density": 0.5})
    found = memory(on)
    assert found.host == found.weights + found.moments + found.topology
    assert found.peak == memory(off).peak - found.host
    assert memory(config(run={"device": "cpu"}, parallel={"cpu_offload": True})).host == 0, "it is there already"


def test_a_checkpoint_holds_weights_moments_and_flags() -> None:
    found = config(sparsity={"density": 0.5})
    shapes = shapes_of(found.model)
    parameters = sum(torch.Size(shape).numel() for shape in shapes.values())
    budgets = plan_budgets(shapes, found.sparsity)
    assert checkpoint_bytes(found, shapes, budgets) == 12 * parameters + 2 * sum(b.units for b in budgets.values())


@pytest.mark.parametrize(
    ("optim", "train", "weight", "average"),
    [
        ({"algorithm": "sgd"}, {}, 8, 0),
        ({"algorithm": "sgd"}, {"ema_decay": 0.9}, 12, 4),
        ({}, {"ema_decay": 0.9}, 16, 4),
        ({"algorithm": "sgd"}, {"ema_decay": 0.9, "precision": "pure_bf16"}, 8, 4),
        ({"algorithm": "sgd"}, {"ema_decay": 0.9, "precision": "fp64"}, 24, 8),
    ],
)
def test_moments_and_average_are_counted(optim: dict, train: dict, weight: int, average: int) -> None:
    found = config(optim=optim, train=train, run={"device": "cpu"})
    parameters = sum(torch.Size(shape).numel() for shape in shapes_of(found.model).values())
    assert checkpoint_bytes(found, shapes_of(found.model), {}) == weight * parameters == memory(found).snapshot
    assert memory(found).average == average * parameters
    assert memory(found).weights + memory(found).moments + memory(found).average == weight * parameters


def test_weights_wait_while_their_average_is_validated() -> None:
    big = {"micro_batch": 512}
    with_one, without = config(train={"ema_decay": 0.9}, eval=big), config(eval=big)
    more = memory(with_one).peak - memory(without).peak
    # The average itself, once more in the copy for the background, and the weights.
    assert more == memory(with_one).swapped + 2 * memory(with_one).average == 3 * memory(without).weights


def test_the_copy_for_the_background_is_as_large_as_what_is_saved() -> None:
    found = config(sparsity={"density": 0.5}, run={"device": "cpu"})
    waited_for = config(sparsity={"density": 0.5}, run={"device": "cpu"}, checkpoint={"asynchronous": False})
    shapes = shapes_of(found.model)
    budgets = plan_budgets(shapes, found.sparsity)
    assert memory(found).snapshot == checkpoint_bytes(found, shapes, budgets)
    assert memory(waited_for).snapshot == 0
    assert memory(found).peak - memory(waited_for).peak == memory(found).snapshot
    on_gpu = config(sparsity={"density": 0.5}, run={"device": "cuda"})
    assert memory(on_gpu).snapshot == 0, "there it is in the memory of the host"


def _bridge(*options: str) -> list[Phase]:
    own = ["method.name=bridge", "method.members=2", "sparsity.density=1", "run.device=cpu", *options]
    return list(calendar_of(load_config("configs/tiny.yaml", own)))


def _beside(rank: int, world: int) -> list[tuple[int, int, int, int]]:
    """By phase: estimated and real bytes of this rank's frozen weights."""
    found = []
    for phase in _bridge()[2:]:
        ranks = connect(phase.config)
        model = sharded_model(phase.config if phase.curve is not None else single(phase.config), ranks)
        shards = sum(local(each).nbytes for each in model.parameters())
        memory = plan_of(phase, world).memory
        # Two ends and the control point; or a teacher.
        real = 3 * shards if phase.curve is not None else shards
        found.append((memory.beside, real, memory.peak - make_plan(phase.config, world).memory.peak, memory.teaching))
    return found


def test_ends_of_a_curve_and_a_teacher_lie_beside_the_state() -> None:
    for curve, bridge in run_ranks(_beside, 2, timeout=100):
        assert curve[0] == pytest.approx(curve[1], rel=0.01)
        assert (curve[2], curve[3]) == (curve[0], 0)
        assert bridge[0] == pytest.approx(bridge[1], rel=0.01)
        assert bridge[2] == bridge[0] + bridge[3] and bridge[3] > 0
    mode, *_ = _bridge()
    assert plan_of(mode, 2) == make_plan(mode.config, 2), "others have nothing beside"


def test_what_is_offloaded_lies_beside_the_state_on_the_host() -> None:
    curve = _bridge()[2]
    config = changed(curve.config, {"run.device": "cuda", "parallel.cpu_offload": True})
    phase = replace(curve, config=config)
    assert plan_of(phase, 1).memory.peak == make_plan(config, 1).memory.peak


def test_the_dry_run_says_how_much_each_phase_takes() -> None:
    config = load_config("configs/tiny.yaml", ["method.name=bridge", "method.members=2", "sparsity.density=1"])
    rows = {line.split()[0]: line for line in render_run(config, 1).splitlines() if "(does not speak)" in line}
    for phase in calendar_of(config):
        if phase.name in ("mode_1", "curve_1"):
            assert readable_bytes(plan_of(phase, 1).memory.peak) in rows[phase.name]


def test_a_divergence_needs_what_is_measured() -> None:
    """The largest tensors alive at once in the loss of a bridge and its backward pass."""
    found = config(model={"vocab_size": 4000}, train={"micro_batch": 4})
    rows, vocabulary = 4 * found.data.sequence_length, found.model.vocab_size
    targets = torch.zeros(rows, dtype=torch.int64)
    with torch.profiler.profile(profile_memory=True) as profile:
        teacher = torch.randn(1, rows, vocabulary)
        start = Start(torch.empty(0), torch.randn(1, rows, vocabulary, requires_grad=True), None, targets)
        divergence(teacher, lambda x, context: x, start).backward()
    used, most = 0, 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            used += event.nbytes()
            most = max(most, used)
    assert most == pytest.approx(distillation_bytes(found), rel=0.05)
