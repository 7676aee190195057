"""Every file in configs/ is a run that could start, and the README and the comments say the truth about it."""

from __future__ import annotations

from pathlib import Path

import pytest

from nt_pretrain.config.checks import problems
from nt_pretrain.config.load import load_config
from nt_pretrain.config.schema import Config
from nt_pretrain.train.plan import make_plan, render

FOLDER = Path(__file__).resolve().parents[2] / "configs"
FILES = sorted(FOLDER.glob("*.yaml"))
WORLD_SIZES = {
    "quality": (1,),
    "quality_units": (1,),
    "wrn28_cifar": (1,),
    "images_small": (1, 2),
    "synth_mlp": (1,),
    "compare_tabular": (1,),
    "compare_text": (1,),
    "llama1b": (8, 64),
    "llama7b": (64, 128),
    "llama350m": (1, 8, 32),
}
SMALL_WORLDS = (1, 2, 4)


def load(name: str) -> Config:
    return load_config(FOLDER / f"{name}.yaml", [])


def test_all_are_there() -> None:
    assert {file.stem for file in FILES} >= {
        "demo", "tiny", "llama20m", "llama60m", "llama130m", "llama350m", "llama1b", "llama7b",
        "llama130m_dense", "llama130m_treenet", "llama130m_ensemble", "llama130m_sparse",
        "resnet50_imagenet", "resnet50_imagenet_dense", "resnet50_imagenet_treenet", "resnet50_imagenet_ensemble",
        "wrn28_cifar", "images_small", "synth_mlp",
    }  # fmt: skip


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_it_can_start(file: Path) -> None:
    config = load_config(file, [])
    assert config.run.name == file.stem
    for world_size in WORLD_SIZES.get(file.stem, SMALL_WORLDS):
        assert problems(config, world_size=world_size) == []
        text = render(make_plan(config, world_size), config)
        assert f"run {file.stem}:" in text


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_it_names_its_schema_and_its_source(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert text.startswith("# yaml-language-server: $schema=schema.json\n")
    if file.stem.startswith(("llama", "resnet50", "wrn28")):
        assert "NeuroTrails, arXiv 2505.17909" in text
    assert all(len(line) <= 120 for line in text.splitlines())


@pytest.mark.parametrize(
    ("name", "total", "active"),
    [
        ("llama130m_dense", 134_105_856, 134_105_856),
        ("llama130m_treenet", 296_530_176, 296_530_176),
        ("llama130m_ensemble", 402_317_568, 402_317_568),
        ("llama130m", 296_530_176, 266_881_690),
        ("llama350m", 836_750_336, 753_087_078),
        ("llama1b", 3_080_837_120, 2_772_776_960),
        ("llama7b", 15_500_668_928, 13_950_663_885),
        ("resnet50_imagenet_dense", 25_556_032, 25_556_032),
        ("resnet50_imagenet_treenet", 74_338_368, 74_338_368),
        ("resnet50_imagenet_ensemble", 3 * 25_556_032, 3 * 25_556_032),
        ("resnet50_imagenet", 74_338_368, 22_258_848 + 142_208),
        # The reference's heads share one final norm of 640 channels; here each has its own.
        ("wrn28_cifar", 106_325_884 + 2 * 2 * 640, 21_302_818 + 2 * 2 * 640),
    ],
)
def test_parameters_are_those_of_the_paper(name: str, total: int, active: int) -> None:
    everything = make_plan(load(name), 1).accounts.all
    assert everything.total == total
    # The paper's code draws each weight with its layer's probability; budgets are whole numbers per layer.
    assert abs(everything.active - active) <= 200


def test_the_baselines_of_130m_differ_in_nothing_else() -> None:
    reference = load("llama130m")
    for name in ("llama130m_dense", "llama130m_treenet", "llama130m_ensemble", "llama130m_sparse"):
        other = load(name)
        assert (other.train, other.optim, other.data, other.eval) == (
            reference.train, reference.optim, reference.data, reference.eval,
        )  # fmt: skip
        same = {"heads": reference.model.heads, "blocks_in_head": reference.model.blocks_in_head}
        assert other.model.model_copy(update=same) == reference.model


def test_the_baselines_of_resnet50_differ_in_nothing_else() -> None:
    reference = load("resnet50_imagenet")
    for name in ("dense", "treenet", "ensemble"):
        other = load(f"resnet50_imagenet_{name}")
        assert (other.train, other.optim, other.data, other.eval, other.parallel) == (
            reference.train, reference.optim, reference.data, reference.eval, reference.parallel,
        )  # fmt: skip
        assert other.sparsity.density == 1.0
        same = {"heads": reference.model.heads, "blocks_in_head": reference.model.blocks_in_head}
        assert other.model.model_copy(update=same) == reference.model


def test_the_recipe_of_the_paper_for_pictures() -> None:
    imagenet, cifar = make_plan(load("resnet50_imagenet"), 4), make_plan(load("wrn28_cifar"), 1)
    assert (imagenet.total_steps, imagenet.topology_updates) == (1_000_800, 1_000)
    assert (cifar.total_steps, cifar.topology_updates) == (175_500, 175)
    # Multiply-adds of the active weights, once forward and twice backward.
    assert imagenet.flops_per_sample_active == pytest.approx(6 * 4.290e9, rel=1e-3)
    assert cifar.flops_per_sample_active == pytest.approx(6 * 3.582e9, rel=1e-3)
    assert imagenet.total_steps == 200 * (1_281_167 // 256) and cifar.total_steps == 450 * (50_000 // 128)


def test_the_recipe_of_the_paper() -> None:
    plan = make_plan(load("llama350m"), 8)
    assert (plan.total_steps, plan.warmup_steps, plan.topology_updates) == (11_111, 1_111, 222)
    assert plan.samples_per_step == 131_072
