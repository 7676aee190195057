"""What does not go together with stripping, in the exact words a person reads."""

from __future__ import annotations

from typing import Any

import pytest

from nt_pretrain.config.checks import problems
from nt_pretrain.config.schema import Config

SMALL = {"vocab_size": 256, "hidden": 64, "intermediate": 128, "layers": 3, "attention_heads": 4, "ffn": "relu"}
BLOCKS = (
    "whose layers keep their number of active units; set sparsity.backend: masked, unit: 1 and balance: layer"
)  # fmt: skip


def config(**sections: dict[str, Any]) -> Config:
    return Config.model_validate({**sections, "model": SMALL | sections.get("model", {})})


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"stripping": {"every_steps": 10}, "model": {"ffn": "swiglu"}},
            "stripping.every_steps: the units of model.ffn: swiglu are never exactly 0, so none could be dead; set "
            "model.ffn: relu or relu2, or stripping.every_steps: 0",
        ),
        (
            {"stripping": {"every_steps": 10, "window_steps": 11}},
            "stripping.window_steps: 11 exceeds stripping.every_steps 10, but each step counts for one removal only; 0 "
            "counts all steps since the one before",
        ),
        (
            {"stripping": {"quantile": 0.1}},
            "stripping.quantile: has no effect while stripping.every_steps is 0; set that, or leave quantile out",
        ),
        (
            {"stripping": {"every_steps": 10}, "sparsity": {"density": 0.5, "unit": 32}},
            "stripping.every_steps: single weights are removed for good, with which sparsity.unit: 32 cannot go, "
            + BLOCKS,
        ),
        (
            {"stripping": {"every_steps": 10}, "sparsity": {"density": 0.5, "backend": "block"}},
            "stripping.every_steps: single weights are removed for good, with which sparsity.backend: block cannot go, "
            + BLOCKS,
        ),
        (
            {"stripping": {"every_steps": 10}, "parallel": {"compile": True}},
            "stripping.every_steps: compiled blocks do not tell which of their units are active; set parallel.compile: "
            "false",
        ),
    ],
)  # fmt: skip
def test_one_clear_message(sections: dict[str, Any], message: str) -> None:
    assert problems(config(**sections), world_size=1) == [message]


def test_what_goes_together() -> None:
    assert problems(config(stripping={"every_steps": 10, "window_steps": 10, "threshold": 0.01}), world_size=2) == []
    assert problems(config(stripping={"every_steps": 10}, sparsity={"density": 0.2, "scope": "heads"},
                           model={"heads": 2, "blocks_in_head": 1}), world_size=2) == []  # fmt: skip
    pictures = Config.model_validate({"model": {"family": "resnet20"}, "stripping": {"every_steps": 10}})
    assert problems(pictures, world_size=1) == []


def test_pictures_have_no_feed_forward_layer() -> None:
    found = problems(Config.model_validate({"model": {"family": "resnet20", "ffn": "relu"}}), world_size=1)
    assert found == ["model.ffn: relu has no effect with model.family resnet20; leave it out"]
