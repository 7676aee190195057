"""What an option accepts, in words."""

from __future__ import annotations

import pytest

from nt_pretrain.config import allowed
from nt_pretrain.config.schema import Config


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("model.hidden", "a whole number >= 1 (default 768)"),
        ("model.kv_heads", "a whole number >= 1 or null (default null)"),
        ("model.document_mask", "true or false (default false)"),
        ("sparsity.density", "a number > 0 and <= 1 (default 1.0)"),
        ("sparsity.unit", "one of 1, 16, 32, 64, 128 (default 1)"),
        ("sparsity.drop", "one of magnitude, soft_magnitude (default magnitude)"),
        (
            "sparsity.group_density",
            "a mapping of embedding, attention, ffn, stem, conv1x1, conv3x3, downsample, linear, output to a number > 0"
            " and <= 1",
        ),
        ("sparsity.group_density.ffn", "a number > 0 and <= 1"),
        ("data.sources", "a mapping of names of the form ^[A-Za-z0-9_-]+$ to text"),
        ("data.sources.books", "text"),
        (
            "data.curriculum",
            "a mapping of steps >= 2 to a mapping of names of the form ^[A-Za-z0-9_-]+$ to a number >= 0",
        ),
        ("data.curriculum.100.books", "a number >= 0"),
        ("optim.betas", "a list of 2, each a number >= 0 and <= 1 (default [0.9, 0.95])"),
        ("optim.milestones", "a list, each a number > 0 and < 1 (default [0.3333, 0.6667, 0.8889])"),
        ("data.path", "text (default data/text)"),
    ],
)
def test_in_words(path: str, words: str) -> None:
    assert allowed.in_words(tuple(path.split("."))) == words


def test_every_option_can_be_described() -> None:
    for key in allowed.known_keys():
        assert allowed.in_words(tuple(key.split(".")))


def test_every_option_says_what_it_means() -> None:
    for section, model in allowed.section_models().items():
        for name, field in model.model_fields.items():
            assert field.description, f"{section}.{name} has no description"


def test_no_such_option() -> None:
    for path in (
        ("model", "hiden"),
        ("mdel", "hidden"),
        ("model", "hidden", "x"),
        ("sparsity", "group_density", "norm"),
    ):
        with pytest.raises(KeyError):
            allowed.entry(path)
    assert list(allowed.sections()) == list(Config.model_fields)
