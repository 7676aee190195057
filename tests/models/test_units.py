"""Where hidden units are seen: what is counted there is what the next layer is given."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nt_pretrain.config.schema import ModelSection
from nt_pretrain.models.accounting import shapes_of
from nt_pretrain.models.llama import make_context
from nt_pretrain.models.network import build
from nt_pretrain.models.units import relu_units, units_of

TEXT = dict(vocab_size=50, hidden=32, intermediate=48, layers=3, attention_heads=4, heads=2, blocks_in_head=1)


@pytest.mark.parametrize(
    ("model", "layers", "units"),
    [
        ({**TEXT, "ffn": "relu"}, 4, 4 * 48),
        ({**TEXT, "ffn": "relu2", "blocks_in_head": 3}, 6, 6 * 48),
        ({**TEXT}, 0, 0),
        ({"family": "resnet20", "classes": 5, "heads": 2, "blocks_in_head": 2}, 12, 16 + 48 + 96 + 64 + 4 * 64),
        ({"family": "resnet50", "classes": 5}, 1 + 2 * 16, 64 + 2 * (3 * 64 + 4 * 128 + 6 * 256 + 3 * 512)),
        ({"family": "mlp", "features": 8, "widths": (12, 20, 16), "heads": 2, "blocks_in_head": 1}, 4, 32 + 2 * 16),
        # The first norm of a block is one of a sum.
        ({"family": "wide_resnet28_10", "classes": 5}, 12, 4 * (160 + 320 + 640)),
    ],
)  # fmt: skip
def test_units_are_rows_of_one_weight_and_columns_of_the_next(model: dict, layers: int, units: int) -> None:
    section = ModelSection(**model)
    found, shapes = units_of(section), shapes_of(section)
    assert (len(found), sum(each.count for each in found)) == (layers, units)
    for each in found:
        assert shapes[each.incoming][0] == each.count
        assert not each.outgoing or shapes[each.outgoing][1] == each.count
        assert each.incoming.split(".")[:2] == each.site.split(".")[:2], "in one part"


@pytest.mark.parametrize(
    "model", [{**TEXT, "ffn": "relu"}, {**TEXT, "ffn": "relu2"}, {"family": "resnet20", "classes": 5},
              {"family": "resnet50", "classes": 5, "small_stem": True}, {"family": "wide_resnet28_10", "classes": 5},
              {"family": "mlp", "features": 8, "widths": (12, 20, 16), "blocks_in_head": 1}]
)  # fmt: skip
def test_a_site_is_positive_exactly_where_the_outgoing_layer_is_given_something(model: dict) -> None:
    torch.manual_seed(0)
    section = ModelSection(**model)
    network = build(section)
    modules: dict[str, nn.Module] = dict(network.named_modules())
    positive: dict[str, torch.Tensor] = {}
    given: dict[str, torch.Tensor] = {}
    for units in relu_units(network):
        modules[units.site].register_forward_hook(
            lambda _, __, out, key=units.incoming: positive.update({key: out > 0})
        )  # fmt: skip
        if units.outgoing:
            modules[units.outgoing.removesuffix(".weight")].register_forward_pre_hook(
                lambda _, inputs, key=units.incoming: given.update({key: inputs[0] > 0})
            )
    with torch.no_grad():
        if section.data == "rows":
            network.heads["0"](network.trunk_output(torch.randn(2, 8), None), None)
        elif section.data == "pictures":
            network.heads["0"](network.trunk_output(torch.randn(2, 3, 8, 8), None), None)
        else:
            tokens = torch.randint(0, 50, (2, 7))
            context = make_context(section, tokens)
            network.heads["1"](network.trunk_output(tokens, context), context)
    assert given
    for name, seen in given.items():
        assert torch.equal(seen, positive[name]) and 0 < seen.float().mean() < 1, name


def test_units_of_a_perceptron_are_those_of_its_hidden_layers() -> None:
    torch.manual_seed(0)
    network = build(ModelSection(family="mlp", features=5, widths=(7, 9), classes=3, heads=2, blocks_in_head=1))
    found = relu_units(network)
    assert [(units.incoming, units.count) for units in found] == [
        ("trunk.blocks.0.linear.weight", 7),
        ("heads.0.blocks.0.linear.weight", 9),
        ("heads.1.blocks.0.linear.weight", 9),
    ]
    seen: list[torch.Tensor] = []
    network.get_submodule(found[0].site).register_forward_hook(lambda _, __, out: seen.append(out > 0))
    hidden = network.trunk_output(torch.randn(4, 5), None)
    assert torch.equal(seen[0], hidden > 0) and 0 < seen[0].float().mean() < 1
