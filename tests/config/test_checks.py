"""Options that are allowed but do not fit together, in the exact words a person reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nt_pretrain.config.batch import fitting_world_sizes
from nt_pretrain.config.checks import missing_files, problems
from nt_pretrain.config.schema import Config

SMALL = {"vocab_size": 256, "hidden": 64, "intermediate": 128, "layers": 3, "attention_heads": 4}


def config(**sections: dict[str, Any]) -> Config:
    return Config.model_validate({**sections, "model": SMALL | sections.get("model", {})})


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("blocks", [0, 1, 3])
def test_every_split_is_possible(heads: int, blocks: int) -> None:
    assert problems(config(model={"heads": heads, "blocks_in_head": blocks}), world_size=1) == []


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"model": {"hidden": 100, "attention_heads": 12}},
            "model.hidden: 100 is not divisible by model.attention_heads 12; nearest widths that are: 96 and 108",
        ),
        (
            {"model": {"hidden": 60, "attention_heads": 4}},
            "model.hidden: 60 / model.attention_heads 4 = 15 dimensions per attention head, which rotary positions "
            "need to be even; nearest widths that fit: 56 and 64",
        ),
        (
            {"model": {"attention_heads": 3, "head_width": 7}},
            "model.head_width: 7 must be even, as rotary positions need; nearest that are: 6 and 8",
        ),
        (
            {"model": {"kv_heads": 3}},
            "model.kv_heads: 3 does not divide model.attention_heads 4; these do: 1, 2, 4",
        ),
        (
            {"model": {"blocks_in_head": 5}},
            "model.blocks_in_head: 5 exceeds model.layers 3; a head owns 0 (only its norm and output layer) to 3 "
            "blocks (a deep ensemble)",
        ),
        (
            {"sparsity": {"density": 0.5, "backend": "block"}, "run": {"device": "cuda"}},
            "run.device: cuda, but single weights (sparsity.backend: block, unit: 1) run on the CPU only; set "
            "run.device: cpu, sparsity.backend: masked, or blocks: sparsity.unit=128 sparsity.balance=line",
        ),
        (
            {"sparsity": {"density": 0.5, "backend": "block", "grown_moments": "warm"}},
            "sparsity.grown_moments: warm is not possible with the block backend: it needs moments of weights that are "
            "not active; set mean or zero",
        ),
        (
            {"sparsity": {"density": 0.5, "unit": 64}, "model": {"intermediate": 172}},
            "sparsity.unit: model.intermediate 172 is not divisible into blocks of 64; nearest that are: 128 and 192",
        ),
        (
            {"sparsity": {"density": 0.5, "unit": 32}, "model": {"vocab_size": 250}},
            "sparsity.unit: model.vocab_size 250 is not divisible into blocks of 32; nearest that are: 224 and 256, or "
            "sparsity.scope: no_vocab",
        ),
        (
            {"sparsity": {"density": 0.5, "unit": 32}, "model": {"kv_heads": 1}},
            "sparsity.unit: model.kv_heads * head width 16 is not divisible into blocks of 32; nearest that are: 32",
        ),
        (
            {"sparsity": {"density": 0.1, "group_density": {"ffn": 1.0}}},
            "sparsity.group_density leaves density -0.7100 for the other layers, which must lie in (0, 1]; change "
            "sparsity.density (0.1) or the group densities",
        ),
        (
            {"sparsity": {"group_density": {"ffn": 0.5}}},
            "sparsity.group_density: has no effect while sparsity.density is 1 (a dense run); lower the density",
        ),
        (
            {"sparsity": {"density": 0.5, "scope": "no_vocab", "group_density": {"output": 0.5}}},
            "sparsity.group_density.output: has no effect, since sparsity.scope: no_vocab leaves no output layer "
            "sparse; sparse groups are attention, ffn",
        ),
        (
            {"sparsity": {"density": 0.5, "scope": "no_vocab", "group_density": {"attention": 0.25, "ffn": 0.25}}},
            "sparsity.group_density: fixes every group, which gives density 0.2500, but sparsity.density is 0.5; set "
            "it to 0.2500 or leave one group out",
        ),
        (
            {"sparsity": {"backend": "block"}},
            "sparsity.backend: block has no effect while sparsity.density is 1 (a dense run); set masked",
        ),
        (
            {"sparsity": {"balance": "line"}},
            "sparsity.balance: line has no effect while sparsity.density is 1 (a dense run); set layer",
        ),
        (
            {"sparsity": {"density": 0.5, "unit": 16, "backend": "block"}},
            "sparsity.backend: block needs as many blocks in every line, for its parameters to keep their shape; set "
            "sparsity.balance: line",
        ),
        (
            {"sparsity": {"density": 0.5, "balance": "line"}},
            "sparsity.unit: 1 is not possible with sparsity.balance: line: single weights are no blocks; set 16, 32, "
            "64 or 128",
        ),
        (
            {"sparsity": {"density": 0.5, "unit": 16, "balance": "line", "grown_moments": "warm"}},
            "sparsity.grown_moments: warm is not possible with sparsity.balance: line: it needs moments of blocks "
            "that are not active; set mean or zero",
        ),
        (
            {"sparsity": {"density": 0.5, "unit": 16, "balance": "line", "density_schedule": "cosine"}},
            "sparsity.density_schedule: cosine is not possible with sparsity.balance: line: every line keeps its "
            "number of blocks, with which parameters have their shape; set constant",
        ),
        (
            {"sparsity": {"density": 0.01, "unit": 16, "balance": "line", "scope": "no_vocab"}},
            "sparsity.density asks for 4.8 active blocks of 16 x 16, and one in each line of each layer makes 120; "
            "raise sparsity.density or choose a smaller sparsity.unit",
        ),
        (
            {"sparsity": {"density": 0.5, "scope": "head_blocks"}},
            "sparsity.scope: head_blocks leaves no layer that could be sparse (model.blocks_in_head 0); choose another "
            "scope, or set sparsity.density to 1 for a dense run",
        ),
        (
            {"sparsity": {"density": 0.99, "unit": 32, "balance": "line", "scope": "no_vocab"}},
            "sparsity.density: 0.99 makes every unit of every layer active (sparsity.unit 32, sparsity.balance line), "
            "so none could move; lower it, or set 1 for a dense run",
        ),
        (
            {"optim": {"warmup_steps": 100}, "train": {"steps": 100}},
            "optim.warmup_steps: 100 of 100 training steps (train.steps) leave none at the full learning rate; a tenth "
            "would be 10",
        ),
        (
            {"optim": {"warmup_steps": 900, "schedule": "wsd"}},
            "optim.decay_fraction: 0.2 of 1,000 steps and 900 steps of warm-up are more than the whole run; at most "
            "0.09 fits",
        ),
        (
            {"sparsity": {"density": 0.5, "prune_rate": 0.0}},
            "sparsity.prune_rate_end: 0.005 exceeds sparsity.prune_rate 0.0, but the rate falls over the run; lower "
            "it, or set sparsity.prune_rate_schedule: constant",
        ),
        (
            {"sparsity": {"density": 0.5, "density_schedule": "cosine", "stop_fraction": 0.75}},
            "sparsity.stop_fraction: 0.75 ends topology updates before sparsity.density_schedule reaches "
            "sparsity.density 0.5 at the last step; set stop_fraction: 1",
        ),
        (
            {"optim": {"schedule": "step", "milestones": (0.5, 0.25, 0.5)}},
            "optim.milestones: [0.5, 0.25, 0.5] must ascend; in order: [0.25, 0.5]",
        ),
        (
            {"optim": {"schedule": "step", "milestones": (0.04, 0.5), "warmup_steps": 50}},
            "optim.milestones: 0.04 of 1,000 steps is step 40, amid the 50 steps of optim.warmup_steps; at least 0.05 "
            "fits",
        ),
        ({"optim": {"milestones": (0.5,)}}, "optim.milestones: has no effect with optim.schedule: cosine"),
        (
            {"optim": {"decay_factor": 0.2, "schedule": "wsd"}},
            "optim.decay_factor: has no effect with optim.schedule: wsd",
        ),
        (
            {"optim": {"min_lr_ratio": 0.0, "schedule": "step"}},
            "optim.min_lr_ratio: has no effect with optim.schedule: step",
        ),
        ({"optim": {"momentum": 0.8}}, "optim.momentum: has no effect with optim.algorithm: adamw"),
        ({"optim": {"nesterov": False}}, "optim.nesterov: has no effect with optim.algorithm: adamw"),
        (
            {"optim": {"algorithm": "sgd", "betas": (0.9, 1.0)}},
            "optim.betas: has no effect with optim.algorithm: sgd",
        ),
        ({"optim": {"algorithm": "sgd", "eps": 1e-6}}, "optim.eps: has no effect with optim.algorithm: sgd"),
        (
            {"optim": {"algorithm": "sgd"}, "sparsity": {"density": 0.5, "grow": "momentum"}},
            "sparsity.grow: momentum needs sparsity.grown_moments: warm; otherwise inactive weights have no momentum",
        ),
        ({"optim": {"betas": (0.9, 1.0)}}, "optim.betas: 1.0 must be below 1, or the moments never move"),
        ({"run": {"name": ".."}}, "run.name: '..' names no folder of its own below run.dir"),
    ],
)
def test_one_clear_message(sections: dict[str, Any], message: str) -> None:
    assert problems(config(**sections), world_size=1) == [message]


@pytest.mark.parametrize(
    ("sections", "world_size", "messages"),
    [
        (
            {"train": {"global_batch": 96, "micro_batch": 4}},
            5,
            [
                "train.global_batch: 96 is not divisible by 5 ranks x train.micro_batch 4 = 20; world sizes that fit "
                "this configuration: 1, 2, 4, 8; nearest global batches that fit: 80 and 100",
                "data.lanes: 32 lanes of data cannot be divided among 5 ranks; world sizes that fit this "
                "configuration: 1, 2, 4, 8",
            ],
        ),
        (
            {"train": {"global_batch": 32, "micro_batch": 8}},
            8,
            [
                "train.global_batch: 32 is not divisible by 8 ranks x train.micro_batch 8 = 64; world sizes that fit "
                "this configuration: 1, 2, 4; micro-batches that fit 8 ranks: 1, 2, 4; nearest global batches that "
                "fit: 64",
            ],
        ),
        (
            {"train": {"global_batch": 96, "micro_batch": 4}},
            3,
            [
                "data.lanes: 32 lanes of data cannot be divided among 3 ranks; world sizes that fit this "
                "configuration: 1, 2, 4, 8; or set data.lanes to one of 3, 6, 12, 24, 48, 96 (another order of the "
                "data)",
            ],
        ),
        (
            {"train": {"global_batch": 96, "micro_batch": 4}, "data": {"lanes": 24}},
            3,
            [],
        ),
        (
            {
                "train": {"global_batch": 96, "micro_batch": 4},
                "data": {"lanes": 24},
                "parallel": {"deterministic_reduce": True},
            },
            3,
            [
                "parallel.deterministic_reduce: needs a power of two of ranks, since only then is an average over "
                "ranks exact, not 3; world sizes that fit this configuration: 1, 2, 4, 8. Keep train.micro_batch the "
                "same at every world size",
            ],
        ),
        (
            {"train": {"global_batch": 30, "micro_batch": 4}},
            None,
            [
                "train.global_batch: 30 is not divisible by train.micro_batch 4; micro-batches that fit: 1, 2, 3, 5, "
                "6, 10, 15, 30; nearest global batches that fit: 28 and 32",
            ],
        ),
        (
            {"data": {"lanes": 7}},
            2,
            ["data.lanes: 7 does not divide train.global_batch 32; these do: 1, 2, 4, 8, 16, 32; 0 chooses"],
        ),
    ],
)
def test_ranks_and_batches(sections: dict[str, Any], world_size: int | None, messages: list[str]) -> None:
    assert problems(config(**sections), world_size=world_size) == messages


def test_the_world_sizes_that_are_named_do_fit() -> None:
    for batch, micro, lanes in [(96, 4, 0), (96, 4, 48), (512, 16, 0), (40, 1, 20)]:
        found = config(train={"global_batch": batch, "micro_batch": micro}, data={"lanes": lanes})
        fitting = [size for size in range(1, batch + 1) if not problems(found, world_size=size)]
        assert fitting == fitting_world_sizes(found)


def test_everything_that_does_not_fit_is_said_at_once() -> None:
    wrong = config(
        model={"blocks_in_head": 9, "kv_heads": 3},
        optim={"warmup_steps": 5000, "betas": (1.0, 0.9)},
        train={"global_batch": 30, "micro_batch": 4},
    )
    keys = [line.split(":")[0] for line in problems(wrong, world_size=1)]
    assert keys == [
        "model.kv_heads", "model.blocks_in_head", "optim.warmup_steps", "train.global_batch", "optim.betas",
    ]  # fmt: skip


@pytest.mark.parametrize(("steps", "density", "total"), [(7, 0.07, 100), (35, 0.07, 500), (10_000, 0.9, 11_111)])
def test_steps_over_density_are_exact(steps: int, density: float, total: int) -> None:
    train = {"steps": steps, "steps_over_density": True}
    assert Config.model_validate({"train": train, "sparsity": {"density": density}}).total_steps == total


MESHES: list[tuple[dict[str, Any], int | None, str]] = [
    (
        {"model": {"heads": 3}, "parallel": {"head": 2}},
        None,
        "parallel.head: 2 does not divide model.heads 3; these do: 1",
    ),
    (
        {"parallel": {"tensor": 5}},
        None,
        "parallel.tensor: 5 does not divide model.attention_heads 12, model.kv_heads 12",
    ),
    ({"parallel": {"tensor": 2, "compile": True}}, None, "parallel.compile: does not go with parallel.tensor above 1"),
    ({"parallel": {"tensor": 2, "cpu_offload": True}}, None, "parallel.cpu_offload: does not go with parallel.tensor"),
    (
        {"parallel": {"tensor": 2, "deterministic_reduce": True}},
        None,
        "parallel.deterministic_reduce: holds for the axes replicate and shard;",
    ),
    ({"parallel": {"replicate": 2}}, 3, "parallel: replicate 2 x shard any x head 1 x tensor 1 do not make 3 ranks"),
    ({"parallel": {"shard": 4}}, 2, "parallel: replicate 1 x shard 4 x head 1 x tensor 1 do not make 2 ranks"),
]


@pytest.mark.parametrize(("sections", "world_size", "message"), MESHES)
def test_a_mesh_that_does_not_fit(sections: dict[str, Any], world_size: int | None, message: str) -> None:
    (found,) = problems(Config.model_validate(sections), world_size=world_size)
    assert found.startswith(message)


def test_object_stores_are_refused_by_name() -> None:
    (message,) = problems(Config.model_validate({"run": {"dir": "s3://bucket/runs"}}), world_size=1)
    assert message.startswith("run.dir: s3://bucket/runs lies in an object store, which is not read")
    remote = Config.model_validate({"data": {"path": "s3://bucket/c4"}})
    assert problems(remote, world_size=1) == []
    assert [each.split(":")[0] for each in missing_files(remote)] == ["data.tokenizer"], "the corpus is asked at start"


TWO = {"web": "data/web", "books": "data/books"}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"weights": {"web": 1.0}}, "data.weights: has no effect without data.sources"),
        ({"curriculum": {5: {"web": 1.0}}}, "data.curriculum: has no effect without data.sources"),
        ({"sources": TWO, "weights": {"web": 1.0, "boks": 1.0}}, "data.weights.boks: no source of data.sources has "
         "this name; did you mean books?"),
        ({"sources": TWO, "weights": {"web": 0.0, "books": 0.0}}, "data.weights: some source must have a weight"),
        ({"sources": TWO, "weights": {"web": 1.0, "books": 0.0005}}, "data.weights: books: less than one sequence in "),
        ({"sources": TWO, "weights": {"web": 1.0}}, "data.weights: books: never read; give a weight"),
        ({"sources": TWO, "curriculum": {5000: {"web": 1.0}}}, "data.curriculum: steps 5000 lie after the last step"),
        ({"path": "file:///data/x"}, "data.path: write /data/x instead of file:///data/x"),
        ({"picture_area": [0.5, 0.2]}, "data.picture_area: [0.5, 0.2] must be"),
        ({"picture_size": 300}, "data.picture_size: 300 pixels cannot be cut out of data.picture_shorter 256"),
        ({"stall_seconds": 120}, "data.stall_seconds: 120 s for each of 4 attempts"),
    ],
)  # fmt: skip
def test_data_options_that_do_not_fit(data: dict[str, Any], message: str) -> None:
    family = "resnet18" if any(key.startswith("picture") for key in data) else "llama"
    (found,) = problems(Config.model_validate({"data": data, "model": {"family": family}}), world_size=1)
    assert found.startswith(message)


@pytest.mark.parametrize(
    ("sections", "messages"),
    [
        (
            {"model": {"family": "resnet50", "hidden": 512, "layers": 24}, "data": {"sequence_length": 64}},
            ["model.hidden: 512 has no effect with model.family resnet50", "model.layers: 24", "data.sequence_length"],
        ),
        (
            {"model": {"classes": 10}, "data": {"picture_size": 64}, "train": {"label_smoothing": 0.1}},
            ["model.classes: 10 has no effect with model.family llama", "data.picture_size", "train.label_smoothing"],
        ),
        (
            {
                "model": {"family": "wide_resnet28_10", "blocks_in_head": 13, "small_stem": True},
                "train": {"precision": "pure_bf16"},
                "parallel": {"tensor": 2, "activation_checkpoint": "selective"},
            },
            [
                "parallel.activation_checkpoint: selective is of feed-forward layers",
                "train.precision: pure_bf16 does not go with wide_resnet28_10",
                "model.blocks_in_head: 13 of the 12 blocks",
                "model.small_stem: has no effect",
                "parallel.tensor: 2 divides the matrix products of a llama",
            ],
        ),
    ],
)
def test_what_does_not_fit_the_family(sections: dict[str, Any], messages: list[str]) -> None:
    found = problems(Config.model_validate(sections), world_size=None)
    assert len(found) == len(messages)
    assert all(any(line.startswith(message) for line in found) for message in messages)


def test_a_source_may_come_in_later() -> None:
    data = {"sources": TWO, "weights": {"web": 1.0}, "curriculum": {500: {"books": 1.0}}}
    assert problems(Config.model_validate({"data": data}), world_size=1) == []


def test_the_recipe_of_an_image_model_fits() -> None:
    optim = {"algorithm": "sgd", "lr": 0.256, "momentum": 0.875, "weight_decay": 3e-5, "schedule": "step"}
    found = config(optim=optim | {"milestones": (0.25, 0.5, 0.75), "warmup_steps": 250}, train={"ema_decay": 0.999})
    assert problems(found, world_size=1) == []


def test_warmup_is_measured_against_the_steps_that_are_trained() -> None:
    over = {"train": {"steps": 100, "steps_over_density": True}, "sparsity": {"density": 0.5}}
    assert problems(config(**over, optim={"warmup_steps": 99}), world_size=1) == []


def test_missing_files_name_the_command_that_makes_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = config(data={"path": "data/mine", "tokenizer": "tokenizers/mine.model"})
    assert problems(run, world_size=1) == [], "a plan can be made without any data"
    assert missing_files(run) == [
        "data.path: data/mine is no prepared corpus, data/mine/train/manifest.json is missing; make it: "
        "python launch/prepare.py text YOUR_TEXTS --out data/mine --name mine",
        "data.tokenizer: there is no file tokenizers/mine.model; make it: python launch/prepare.py tokenizer data/mine "
        "--out tokenizers/mine.model --vocab-size 256",
    ]
    for part in ("train", "validation"):
        Path(f"data/mine/{part}").mkdir(parents=True)
        Path(f"data/mine/{part}/manifest.json").write_text("{}")
    Path("tokenizers").mkdir()
    Path("tokenizers/mine.model").touch()
    assert missing_files(run) == []


def test_tensor_ranks_share_out_whole_lines_of_blocks() -> None:
    sparse = {"density": 0.5, "unit": 32, "balance": "line"}
    cut = config(sparsity=sparse | {"backend": "block"}, parallel={"tensor": 4})
    assert problems(cut, world_size=4) == [
        "parallel.tensor: trunk.blocks.0.attention.query.weight has 2 block rows of 32 (sparsity.unit), which 4 ranks "
        "cannot share equally; choose a smaller sparsity.unit or fewer ranks"
    ]
    assert problems(config(sparsity=sparse, parallel={"tensor": 4}), world_size=4) == []


def test_whole_blocks_in_every_line_do_not_contradict_the_density_that_all_groups_were_given() -> None:
    sparse = {"density": 0.3, "unit": 16, "balance": "line", "scope": "no_vocab"}
    groups = {"attention": 0.3, "ffn": 0.3}
    assert problems(config(sparsity=sparse | {"group_density": groups}), world_size=1) == []
    (message,) = problems(config(sparsity=sparse | {"group_density": groups | {"ffn": 0.6}}), world_size=1)
    assert message.startswith("sparsity.group_density: fixes every group, which gives density 0.4")
