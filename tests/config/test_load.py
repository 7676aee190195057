"""Files and overrides to configurations, and the exact words when something is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nt_pretrain.config.errors import ConfigErrors
from nt_pretrain.config.load import difference, load_config, to_yaml
from nt_pretrain.config.schema import Config, RunSection, SparsitySection


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Writes a file x.yaml into the current folder and gives its name."""
    monkeypatch.chdir(tmp_path)

    def make(text: str) -> str:
        Path("x.yaml").write_text(text, encoding="utf-8")
        return "x.yaml"

    return make


def problems(path: str, *overrides: str) -> list[str]:
    with pytest.raises(ConfigErrors) as caught:
        load_config(path, list(overrides))
    return caught.value.problems


def test_values_defaults_and_an_empty_section(write) -> None:
    config = load_config(write("run:\n  name: a\noptim:\n  lr: 1e-3\n  betas: [0.9, 0.999]\ndata:\n"), [])
    assert (config.run.name, config.optim.lr, config.optim.betas) == ("a", 1e-3, (0.9, 0.999))
    assert config.data == Config().data
    assert difference(config) == ["run.name = a (default run)", "optim.betas = [0.9, 0.999] (default [0.9, 0.95])"]


def test_overrides(write) -> None:
    path = write("train:\n  steps: 5\nsparsity:\n  group_density:\n    attention: 0.7\n")
    config = load_config(
        path,
        ["train.steps=6", "train.steps=7", "sparsity.group_density.ffn=0.5", "optim.betas=[0.8, 0.9]", "run.name=350"],
    )
    assert config.train.steps == 7, "the last one counts"
    assert config.sparsity.group_density == {"attention": 0.7, "ffn": 0.5}
    assert config.optim.betas == (0.8, 0.9)
    assert config.run.name == "350", "on the command line a text needs no quotes"
    for milestones in ((), (0.5,), (0.1, 0.2, 0.3, 0.4)):
        listed = load_config(path, [f"optim.milestones={list(milestones)}"])
        assert listed.optim.milestones == milestones, "a list of any length"
        assert load_config(write(to_yaml(listed)), []) == listed
    path = write("train:\n  steps: 5\nsparsity:\n  group_density:\n    attention: 0.7\n")
    replaced = load_config(path, ["sparsity.group_density={output: 0.3}"])
    assert replaced.sparsity.group_density == {"output": 0.3}


def test_an_override_repairs_the_file(write) -> None:
    assert load_config(write("train:\n  steps: many\n"), ["train.steps=7"]).train.steps == 7


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("model:\n  hiden: 3", "x.yaml:2: model.hiden: unknown key; did you mean model.hidden?"),
        ("model:\n  lr: 3", "x.yaml:2: model.lr: unknown key; did you mean optim.lr?"),
        (
            "checkpoint:\n  zzz: 3",
            "x.yaml:2: checkpoint.zzz: unknown key; checkpoint has "
            "save_every_steps, save_every_minutes, keep, asynchronous",
        ),
        ("\nmdel:\n  hidden: 3", "x.yaml:2: mdel: unknown section; did you mean model?"),
        (
            "zzz: 1",
            "x.yaml:1: zzz: unknown section; there are run, model, sparsity, stripping, method, data, optim, "
            "train, parallel, checkpoint, eval, observe, compare",
        ),
        ("train: 5", "x.yaml:1: train: must be a section with lines 'key: value' below it, not 5"),
        (
            "model:\n  layers: 2\n  hidden: big",
            "x.yaml:3: model.hidden: big is not allowed; it must be a whole number >= 1 (default 768)",
        ),
        (
            'model:\n  hidden: "64"',
            "x.yaml:2: model.hidden: '64' is not allowed; it must be a whole number >= 1 (default 768)",
        ),
        (
            "model:\n  heads: true",
            "x.yaml:2: model.heads: true is not allowed; it must be a whole number >= 1 (default 1)",
        ),
        (
            "model:\n  document_mask: on",
            "x.yaml:2: model.document_mask: on is not allowed; it must be true or false (default false); write true",
        ),
        (
            "model:\n  document_mask: 1",
            "x.yaml:2: model.document_mask: 1 is not allowed; it must be true or false (default false)",
        ),
        (
            "train:\n  steps: 1e3",
            "x.yaml:2: train.steps: 1000.0 is not allowed; it must be a whole number >= 1 (default 1000); write 1000",
        ),
        (
            "data:\n  path: 7",
            'x.yaml:2: data.path: 7 is not allowed; it must be text (default data/text); write "7" in quotes',
        ),
        (
            "run:\n  name: a/b",
            "x.yaml:2: run.name: a/b is not allowed; it must be text of the form ^[A-Za-z0-9._-]+$ (default run)",
        ),
        (
            "sparsity:\n  density: 0",
            "x.yaml:2: sparsity.density: 0 is not allowed; it must be a number > 0 and <= 1 (default 1.0)",
        ),
        (
            "sparsity:\n  density: 1.5",
            "x.yaml:2: sparsity.density: 1.5 is not allowed; it must be a number > 0 and <= 1 (default 1.0)",
        ),
        (
            "sparsity:\n  unit: 20",
            "x.yaml:2: sparsity.unit: 20 is not allowed; it must be one of 1, 16, 32, 64, 128 (default 1)",
        ),
        (
            "sparsity:\n  drop: magnitde",
            "x.yaml:2: sparsity.drop: magnitde is not allowed; it must be one of magnitude, soft_magnitude "
            "(default magnitude); did you mean magnitude?",
        ),
        (
            "sparsity:\n  group_density:\n    fnn: 0.5",
            "x.yaml:3: sparsity.group_density.fnn: unknown key; did you mean sparsity.group_density.ffn?",
        ),
        (
            "sparsity:\n  group_density: {ffn: 2}",
            "x.yaml:2: sparsity.group_density.ffn: 2 is not allowed; it must be a number > 0 and <= 1",
        ),
        (
            "sparsity:\n  group_density: 0.5",
            "x.yaml:2: sparsity.group_density: 0.5 is not allowed; it must be a mapping of embedding, attention, ffn, "
            "stem, conv1x1, conv3x3, downsample, linear, output to a number > 0 and <= 1",
        ),
        (
            "optim:\n  betas: [0.9]",
            "x.yaml:2: optim.betas: [0.9] is not allowed; it must be a list of 2, each a number >= 0 and <= 1 "
            "(default [0.9, 0.95])",
        ),
        (
            "optim:\n  betas: [0.9, two]",
            "x.yaml:2: optim.betas[1]: two is not allowed; it must be a list of 2, each a number >= 0 and <= 1 "
            "(default [0.9, 0.95])",
        ),
        (
            "optim:\n  milestones: 0.5",
            "x.yaml:2: optim.milestones: 0.5 is not allowed; it must be a list, each a number > 0 and < 1 (default "
            "[0.3333, 0.6667, 0.8889])",
        ),
        (
            "optim:\n  milestones:\n    - 0.5\n    - 1",
            "x.yaml:2: optim.milestones[1]: 1 is not allowed; it must be a list, each a number > 0 and < 1 (default "
            "[0.3333, 0.6667, 0.8889])",
        ),
        (
            "optim:\n  algorithm: sdg",
            "x.yaml:2: optim.algorithm: sdg is not allowed; it must be one of adamw, sgd (default adamw); did you mean "
            "sgd?",
        ),
        ("optim:\n  lr: 1\n  lr: 2", "x.yaml:3: optim.lr: given twice, first on line 2; delete one of them"),
        ("run:\n  name: a: b", "x.yaml:2: not valid YAML: mapping values are not allowed here (column 10)"),
        (
            "# nothing",
            "x.yaml:1: the file is empty; a run is described by the sections run, model, sparsity, stripping, method, "
            "data, optim, train, parallel, checkpoint, eval, observe, compare",
        ),
        (
            "- run",
            "x.yaml:1: must consist of sections (run, model, sparsity, stripping, method, data, optim, "
            "train, parallel, checkpoint, eval, observe, compare), each with lines 'key: value'",
        ),
    ],
)
def test_one_clear_message(write, lines: str, message: str) -> None:
    assert problems(write(lines)) == [message]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.stpes=10", "command line: train.stpes: unknown key; did you mean train.steps?"),
        ("steps=10", "command line: steps: unknown key; did you mean train.steps?"),
        ("model.hidden.x=1", "command line: model.hidden.x: unknown key; did you mean model.hidden?"),
        ("train.steps", "command line: 'train.steps' is not of the form section.key=value"),
        ("=1", "command line: '=1' is not of the form section.key=value"),
        ("train=3", "command line: train: is a section; write train.KEY=value"),
        (
            "train.steps=",
            "command line: train.steps: null is not allowed; it must be a whole number >= 1 (default 1000)",
        ),
        (
            "train.steps=[1",
            "command line: train.steps: not valid YAML: expected ',' or ']', but got '<stream end>' (column 3)",
        ),
        (
            "observe.tensorboard=off",
            "command line: observe.tensorboard: off is not allowed; it must be true or false (default true); "
            "write false",
        ),
        (
            "sparsity.group_density.ffn=0",
            "command line: sparsity.group_density.ffn: 0 is not allowed; it must be a number > 0 and <= 1",
        ),
        (
            "sparsity.group_density={ffn: 0}",
            "command line: sparsity.group_density.ffn: 0 is not allowed; it must be a number > 0 and <= 1",
        ),
    ],
)
def test_one_clear_message_for_the_command_line(write, override: str, message: str) -> None:
    assert problems(write("run:\n  name: a\n"), override) == [message]


def test_all_at_once_in_the_order_of_the_file(write) -> None:
    path = write("train:\n  steps: no\nmodel:\n  hiden: 1\n  heads: 0\n  heads: 1\nmdel: {}\n")
    with pytest.raises(ConfigErrors) as caught:
        load_config(path, ["sparsity.density=1.5", "train.stpes=10"])
    assert str(caught.value).splitlines() == [
        "7 errors in the configuration:",
        "  x.yaml:2: train.steps: no is not allowed; it must be a whole number >= 1 (default 1000)",
        "  x.yaml:4: model.hiden: unknown key; did you mean model.hidden?",
        "  x.yaml:5: model.heads: 0 is not allowed; it must be a whole number >= 1 (default 1)",
        "  x.yaml:6: model.heads: given twice, first on line 5; delete one of them",
        "  x.yaml:7: mdel: unknown section; did you mean model?",
        "  command line: train.stpes: unknown key; did you mean train.steps?",
        "  command line: sparsity.density: 1.5 is not allowed; it must be a number > 0 and <= 1 (default 1.0)",
    ]


def test_a_section_that_is_none_is_told_once_whatever_is_overridden(write) -> None:
    expected = ["x.yaml:1: train: must be a section with lines 'key: value' below it, not 5"]
    assert problems(write("train: 5"), "train.steps=3") == expected


def test_files_that_cannot_be_read(write) -> None:
    write("run:\n")
    assert problems("xx.yaml") == ["xx.yaml: there is no such file; did you mean x.yaml?"]
    assert problems("demo.yaml") == ["demo.yaml: there is no such file; there are: x.yaml"]
    assert problems("nowhere/demo.yaml") == ["nowhere/demo.yaml: there is no such file"]
    assert problems(".") == [".: is a folder; name a YAML file, such as configs/demo.yaml"]
    Path("x.yaml").write_bytes(b"run:\n  name: \xff\n")
    assert problems("x.yaml") == ["x.yaml: is not UTF-8 text (byte 13)"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    name=st.from_regex(r"[A-Za-z0-9._-]{1,8}", fullmatch=True),
    folder=st.text(st.characters(codec="utf-8", exclude_categories=("C", "Zl", "Zp"))),
    density=st.floats(min_value=1e-6, max_value=1.0),
)
def test_what_is_saved_is_read_back(tmp_path: Path, name: str, folder: str, density: float) -> None:
    run = RunSection(name=name, dir=folder)
    config = Config(run=run, sparsity=SparsitySection(density=density, group_density={"ffn": density}))
    path = tmp_path / "saved.yaml"
    path.write_text(to_yaml(config), encoding="utf-8")
    assert load_config(path, []) == config
