"""Phases of every method, from the configuration alone."""

import itertools
from typing import get_args

import pytest

from nt_pretrain.config.checks import missing_files, problems
from nt_pretrain.config.load import load_config
from nt_pretrain.config.method_section import MethodName, MethodSection
from nt_pretrain.config.schema import Config
from nt_pretrain.methods.calendar import ENSEMBLES, READ_BY, calendar_of, method_problems
from nt_pretrain.methods.phase import Clone, Continue, Fresh, Slice
from nt_pretrain.sparsity.schedule import is_update_step, overall_density, prune_rate
from nt_pretrain.train.lr import learning_rate

METHODS = get_args(MethodName)


def config(*options: str) -> Config:
    found = load_config("configs/demo.yaml", ["train.steps=100", "optim.warmup_steps=10", *options])
    assert not (wrong := method_problems(found)), wrong
    return found


def test_every_option_says_which_methods_read_it() -> None:
    assert {*READ_BY, "name", "members"} == set(MethodSection.model_fields)
    for option, readers in READ_BY.items():
        assert set(readers) <= set(METHODS)
        text = MethodSection.model_fields[option].description or ""
        of_one = [name for name in readers if name in text]
        assert of_one or option.startswith(("annealing", "tune", "child")), f"{option} names none of {readers}"


@pytest.mark.parametrize("name", METHODS)
def test_phases_follow_one_another_and_name_what_they_leave(name: str) -> None:
    calendar = calendar_of(config(f"method.name={name}"))
    before = 0
    for phase in calendar:
        assert phase.before == before and phase.steps > 0
        before = phase.last
    assert calendar.total_steps == before
    assert not isinstance(calendar.phases[0].start, Continue)
    made: list[str] = []
    for phase in calendar:
        if isinstance(phase.start, Clone):
            assert phase.start.parent in made, "parents come first"
        made += [phase.emits] if phase.emits else []
    speaking = [phase.emits for phase in calendar if phase.emits and phase.speaks]
    heads = calendar.phases[-1].config.model.voices
    if name in ENSEMBLES:
        assert len(speaking) == 3 or (not speaking and heads == 3), "three members, or heads, of the demo's"


@pytest.mark.parametrize("name", ["edst", "snapshot", "fge"])
def test_one_run_shares_out_its_steps(name: str) -> None:
    assert calendar_of(config(f"method.name={name}")).total_steps == 100


@pytest.mark.parametrize("name", ["deep_ensemble", "dst_ensemble"])
def test_independent_members_have_all_steps_each_and_seeds_of_their_own(name: str) -> None:
    calendar = calendar_of(config(f"method.name={name}"))
    assert [phase.steps for phase in calendar] == [100] * 3
    assert all(phase.start == Fresh() for phase in calendar)
    seeds = {phase.config.run.seed for phase in calendar}
    others = {phase.config.run.seed for phase in calendar_of(config(f"method.name={name}", "run.seed=1"))}
    assert len(seeds) == 3 and not seeds & others, "nor those of another run"


def test_cosine_cycles_start_at_the_full_rate_and_end_at_none() -> None:
    first, second, _ = calendar_of(config("method.name=snapshot"))
    peak = first.config.optim.lr
    assert learning_rate(first.config, 1) == pytest.approx(peak / 10), "only the first warms up"
    assert learning_rate(second.config, 1) > 0.99 * peak
    assert learning_rate(second.config, second.steps) < 1e-12


def test_an_escape_is_one_update_in_the_first_step_of_a_refinement() -> None:
    explore, first, second, _ = calendar_of(config("method.name=edst", "sparsity.update_every=7"))
    assert not is_update_step(explore.config_at(1), 1) and not is_update_step(first.config_at(1), 1)
    assert is_update_step(second.config_at(1), 1) and prune_rate(second.config_at(1), 1) == 0.8
    assert not is_update_step(second.config_at(2), 2) and is_update_step(second.config_at(7), 7)
    assert prune_rate(second.config_at(7), 7) < 0.5, "by its own schedule, which starts anew"
    assert [learning_rate(second.config, step) for step in (1, second.steps)] == pytest.approx(
        [0.1 * explore.config.optim.lr, 0.01 * explore.config.optim.lr]
    )


@pytest.mark.parametrize("units", [0, 1, 7, 100, 12345])
@pytest.mark.parametrize("children", [2, 3, 8])
def test_slices_that_meet_leave_no_unit_out(units: int, children: int) -> None:
    ends = [Slice("random", part / children, (part + 1) / children).units(units) for part in range(children)]
    assert ends[0][0] == 0 and ends[-1][1] == units
    assert all(one[1] == other[0] for one, other in itertools.pairwise(ends))
    assert max(end - begin for begin, end in ends) - min(end - begin for begin, end in ends) <= 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["method.name=snapshot", "method.escape_rate=0.3"], "method.escape_rate: has no effect with method.name: sn"),
        (["method.name=rigl", "sparsity.density=1"], "sparsity.density: 1 leaves method.name: rigl nothing"),
        (["method.name=edst", "method.members=1"], "method.members: edst is an ensemble, of at least 2"),
        (["method.name=treenet", "model.blocks_in_head=2", "model.layers=2"], "leave treenet no trunk"),
        (["method.name=snapshot", "train.steps=2"], "train.steps: 2 are too few for method.name: snapshot"),
        (["method.name=prune_and_tune", "method.tune_share=0.001"], "method.tune_share: 0.001 of 200 train.steps is n"),
        (["method.name=subnetworks", "method.child_density=0.2"], "method.child_density: method.sample: partition de"),
        (["method.name=subnetworks", "method.noise=0.2"], "method.noise: has no effect with method.sample: partition"),
        (["method.name=subnetworks", "method.sample=noise", "method.annealing=random"], "none to anneal away"),
        (["method.name=subnetworks", "method.sample=noise", "method.child_density=0.2"], "sample: noise decides it"),
        (["method.name=subnetworks", "method.annealing_share=0.2"], "method.annealing_share: has no effect without m"),
        (["method.name=prune_and_tune", "method.parent=x", "method.parent_share=0.2"], "no parent is trained, since"),
    ],
)
def test_what_does_not_fit_is_named(options: list[str], words: str) -> None:
    problems = method_problems(load_config("configs/demo.yaml", options))
    assert any(words in problem for problem in problems), problems


ONLY = {
    ("mimo", "configs/demo.yaml"): "is for pictures and rows, not for text",
    ("lora_ensemble", "configs/resnet50_imagenet.yaml"): "adds to attention, which resnet50 has not",
    ("lora_ensemble", "configs/compare_tabular.yaml"): "adds to attention, which mlp has not",
}
"""Methods that are of some kinds of models only."""


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(
    "path", ["configs/demo.yaml", "configs/resnet50_imagenet.yaml", "configs/compare_tabular.yaml"]
)
def test_every_method_fits_every_kind_of_model_and_schedule(name: str, path: str) -> None:
    options = [f"method.name={name}", "train.global_batch=64", "train.micro_batch=16", "train.steps=1000"]
    options += ["optim.warmup_steps=5"]
    wrong = problems(load_config(path, options), world_size=1)
    if (name, path) in ONLY:
        assert len(wrong) == 1 and ONLY[name, path] in wrong[0], wrong
    else:
        assert wrong == []


def test_a_refinement_keeps_the_density_that_exploration_came_down_to() -> None:
    falling = ["sparsity.density_schedule=cosine", "sparsity.density_start=0.8", "sparsity.density=0.5"]
    explore, *refinements = calendar_of(config("method.name=edst", "sparsity.stop_fraction=1", *falling))
    assert overall_density(explore.config, 0) == 0.8 and overall_density(explore.config, explore.steps) == 0.5
    for phase in refinements:
        assert {overall_density(phase.config_at(step), step) for step in range(1, phase.steps + 1)} == {0.5}


def test_weights_that_rest_in_an_annealing_are_never_taken_for_warm_inactive_ones() -> None:
    """Steps with warm moments zero what is not active: between two draws that would be most of the network."""
    warm = ["sparsity.grown_moments=warm", "method.annealing=random", "method.name=prune_and_tune"]
    annealed = [phase for phase in calendar_of(config(*warm)) if phase.annealing is not None]
    assert annealed and all(phase.config.sparsity.grown_moments != "warm" for phase in annealed)


def test_a_parent_and_modes_that_are_not_there_are_told_before_anything_starts() -> None:
    found = load_config("configs/demo.yaml", ["method.name=prune_and_tune", "method.parent=runs/nowhere"])
    assert "method.parent: there is no run or checkpoint runs/nowhere" in missing_files(found)
    found = load_config("configs/demo.yaml", ["method.name=bridge", "method.modes=[runs/nowhere,tests]"])
    assert [line for line in missing_files(found) if "method" in line] == [
        "method.modes: there is no run or checkpoint runs/nowhere"
    ]
