"""What does not fit together about lines of blocks and about layers of which only the active blocks exist."""

from __future__ import annotations

from nt_pretrain.config.schema import Config
from nt_pretrain.models.groups import balance_of
from nt_pretrain.sparsity.block_budget import line_budgets
from nt_pretrain.sparsity.block_update import ensure_possible
from nt_pretrain.sparsity.csr_topology import ensure_possible as ensure_single_possible

Shapes = dict[str, tuple[int, ...]]


def backend_problems(config: Config) -> list[str]:
    """Options of ``sparsity`` that the backend or the balance cannot go with, one line each."""
    sparsity = config.sparsity
    block, line = sparsity.backend == "block", sparsity.balance == "line"
    if sparsity.density == 1.0:
        found = [("backend: block", block, "masked"), ("balance: line", line, "layer")]
        return [
            f"sparsity.{key} has no effect while sparsity.density is 1 (a dense run); set {default}"
            for key, on, default in found
            if on
        ]
    if block and config.model.data == "rows":
        return [
            f"sparsity.backend: block is for layers without biases, and those of model.family: {config.model.family} "
            "have some; set sparsity.backend: masked"
        ]
    if line:
        try:
            ensure_possible(sparsity)
        except ValueError as error:
            return [str(error)]
    elif block and sparsity.unit == 1:
        return _single_problems(config)
    elif block:
        return [
            "sparsity.backend: block needs as many blocks in every line, for its parameters to keep their shape; set "
            "sparsity.balance: line"
        ]
    return []


def _single_problems(config: Config) -> list[str]:
    """What cannot go with single weights of which only the active ones exist."""
    found = []
    try:
        ensure_single_possible(config.sparsity)
    except ValueError as error:
        found.append(str(error))
    if config.model.sees_pictures:
        found.append(
            f"sparsity.backend: block with unit: 1 is for matrices, and model.family: {config.model.family} is made of "
            "convolutions; set sparsity.backend: masked"
        )
    if config.parallel.tensor > 1:
        found.append(
            f"parallel.tensor: {config.parallel.tensor} ranks would not hold as many single weights each after every "
            "update (sparsity.backend: block, unit: 1); set parallel.tensor: 1, or blocks: sparsity.unit=64 "
            "sparsity.balance=line"
        )
    if config.run.device == "cuda":
        found.append(
            "run.device: cuda, but single weights (sparsity.backend: block, unit: 1) run on the CPU only; set "
            "run.device: cpu, sparsity.backend: masked, or blocks: sparsity.unit=128 sparsity.balance=line"
        )
    return found


def dense_options(config: Config) -> list[str]:
    """Options of a command line that make a sparse run dense."""
    sparsity = config.sparsity
    found = ["sparsity.density=1"]
    found += ["sparsity.backend=masked"] if sparsity.backend == "block" else []
    found += ["sparsity.balance=layer"] if sparsity.balance == "line" else []
    return found + (["sparsity.group_density={}"] if sparsity.group_density else [])


def tensor_problems(config: Config, shapes: Shapes) -> list[str]:
    """Layers of which ``parallel.tensor`` ranks cannot get as many lines of blocks each; the first is named."""
    sparsity, ranks = config.sparsity, config.parallel.tensor
    if sparsity.backend != "block" or sparsity.unit == 1 or ranks == 1:
        return []
    for name, budget in line_budgets(shapes, sparsity).items():
        if budget.lines % ranks:
            word = "rows" if balance_of(name) == "row" else "columns"
            return [
                f"parallel.tensor: {name} has {budget.lines} block {word} of {sparsity.unit} (sparsity.unit), which "
                f"{ranks} ranks cannot share equally; choose a smaller sparsity.unit or fewer ranks"
            ]
    return []
