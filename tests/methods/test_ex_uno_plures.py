"""Ex uno plures as a list of phases, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from nt_pretrain.config.checks import problems
from nt_pretrain.config.schema import Config
from nt_pretrain.methods.calendar import calendar_of
from nt_pretrain.methods.phase import Fresh, Part


def made_by(model: dict[str, Any] | None = None, **method: Any) -> Config:
    sections: dict[str, Any] = {
        "model": {"hidden": 48, "intermediate": 100, "attention_heads": 4} | (model or {}),
        "method": {"name": "ex_uno_plures", "members": 2} | method,
        "train": {"steps": 100}, "optim": {"warmup_steps": 10}, "sparsity": {"density": 0.5},
    }  # fmt: skip
    return Config.model_validate(sections)


def test_each_member_trains_all_steps_as_a_narrower_dense_model_of_one_seed() -> None:
    config = made_by({"heads": 3, "blocks_in_head": 4})
    assert not problems(config)
    phases = calendar_of(config).phases
    assert [(phase.steps, phase.emits, phase.speaks) for phase in phases] == [(100, f"part_{k}", True) for k in (0, 1)]
    for number, phase in enumerate(phases):
        start, own = phase.start, phase.config
        assert isinstance(start, Part) and (start.number, start.of, start.parent) == (number, 2, "")
        assert start.wide.run.seed == config.run.seed != own.run.seed
        assert (own.model.heads, own.model.blocks_in_head, own.sparsity.density) == (1, 0, 1.0)
        assert (own.model.hidden, own.model.intermediate, own.model.attention_heads) == (24, 50, 2)
        assert own.model.head_dim == start.wide.model.head_dim == 12


def test_a_parent_is_trained_for_its_share_or_given() -> None:
    trained = calendar_of(made_by(parent_share=0.2)).phases
    assert (trained[0].name, trained[0].steps, trained[0].speaks) == ("parent", 20, False)
    assert isinstance(trained[0].start, Fresh) and trained[0].config.warmup_steps == 2
    starts = [phase.start for phase in trained[1:]]
    assert all(isinstance(each, Part) and (each.parent, each.given) == ("parent", False) for each in starts)
    given = calendar_of(made_by(parent="runs/wide")).phases
    starts = [phase.start for phase in given]
    assert len(given) == 2
    assert all(isinstance(each, Part) and (each.parent, each.given) == ("runs/wide", True) for each in starts)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (made_by(members=5), "model.attention_heads: 4 units cannot be dealt to 5 members"),
        (made_by(members=1), "method.members: ex_uno_plures is an ensemble, of at least 2 members"),
        (made_by(parent="runs/wide", parent_share=0.1), "method.parent_share: no parent is trained"),
        (made_by({"hidden": 50}), "model.hidden: 50 is not divisible by model.attention_heads 4"),
        (
            Config.model_validate(
                {"model": {"family": "resnet20"}, "method": {"name": "ex_uno_plures", "residual": "whole"}}
            ),
            "method.residual: whole is of text; of resnet20 all channels",
        ),
        (
            Config.model_validate({"method": {"name": "snapshot", "dealing": "sequential"}}),
            "method.dealing: has no effect with method.name: snapshot; it is read by ex_uno_plures",
        ),
        (
            Config.model_validate({"method": {"name": "prune_and_tune", "parent_share": 0}}),
            "method.parent_share: 0 leaves prune_and_tune no trained parent",
        ),
    ],
)
def test_what_does_not_go_together_is_told(config: Config, says: str) -> None:
    assert any(line.startswith(says) for line in problems(config)), problems(config)
