"""How many units each layer keeps: exact integers, from shapes and a density alone.

Erdos-Renyi-Kernel allocation (Mocanu et al. 2018, Evci et al. 2020 "RigL"): a layer of shape s with N = product(s)
elements gets density proportional to sum(s) / N; layers that would exceed 1 are dense, and their surplus is spread
over the rest. For a convolution [n_out, n_in, k_h, k_w] that is (n_out + n_in + k_h + k_w) / (n_out n_in k_h k_w).
NeuroTrails (arXiv 2505.17909) applies it to every matrix and convolution of the whole multi-head model at once.

Blocks of a convolution are b outputs x b input channels at one place of its kernel: it is the matrix
[n_out, k_h * k_w * n_in], one place after another. In networks of convolutions the layers that have no such blocks (the
stem, which has three input channels, and the classifier, whose classes are what the data makes them) stay dense and
count for no density, as those outside of ``sparsity.scope`` do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from nt_pretrain.config.schema import SparsitySection
from nt_pretrain.models.groups import group_of, part_of


@dataclass(frozen=True)
class LayerBudget:
    """The exact number of active units a layer keeps.

    Attributes:
        stripped: of the others those that may never be active again (:mod:`nt_pretrain.sparsity.stripping`).
    """

    shape: tuple[int, ...]
    unit: int
    units: int
    active: int
    stripped: int = 0

    @property
    def density(self) -> float:
        """Realised density, ``active / units``."""
        return self.active / self.units

    @property
    def possible(self) -> int:
        """Units that are active or may become so."""
        return self.units - self.stripped


def sparse_names(shapes: dict[str, tuple[int, ...]], scope: str, unit: int = 1) -> list[str]:
    """Names of the parameters that are sparse under ``sparsity.scope``, in the order given. Norms never are, nor, with
    units of blocks, those named by :func:`names_without_blocks`.
    """
    without = names_without_blocks(shapes, scope, unit)
    return [name for name in _in_scope(shapes, scope) if name not in without]


def names_without_blocks(shapes: dict[str, tuple[int, ...]], scope: str, unit: int) -> list[str]:
    """Names of the parameters in a network of convolutions that stay dense because ``sparsity.unit`` makes no blocks of
    them: convolutions with channels that it does not divide, and classifiers.
    """
    if unit == 1 or not any(len(shape) > 2 for shape in shapes.values()):
        return []
    return [
        name
        for name in _in_scope(shapes, scope)
        if len(shapes[name]) == 2 or shapes[name][0] % unit or shapes[name][1] % unit
    ]


def _in_scope(shapes: dict[str, tuple[int, ...]], scope: str) -> list[str]:
    names = [name for name, shape in shapes.items() if len(shape) >= 2]
    if scope in ("heads", "head_blocks"):
        names = [name for name in names if part_of(name) != "trunk"]
    if scope in ("no_vocab", "head_blocks"):
        names = [name for name in names if group_of(name) not in ("embedding", "output")]
    return names


def plan_budgets(
    shapes: dict[str, tuple[int, ...]], sparsity: SparsitySection, *, density: float | None = None
) -> dict[str, LayerBudget]:
    """Budget of every sparse layer.

    Args:
        shapes: parameter name to shape, the whole model.
        sparsity: the section of the configuration.
        density: overall density over the sparse layers; default ``sparsity.density``.

    Returns:
        Name to budget; layers with equal shape (and group override) get equal budgets, whatever the order.

    Raises:
        ValueError: group densities leave a density outside (0, 1] for the rest; a unit does not fit a matrix, or none
            of the convolutions.
    """
    density = sparsity.density if density is None else density
    names = sparse_names(shapes, sparsity.scope, sparsity.unit)
    if not names and names_without_blocks(shapes, sparsity.scope, sparsity.unit):
        raise ValueError(
            f"sparsity.unit: no convolution has channels that are divisible into blocks of {sparsity.unit}, so nothing "
            "would be sparse; choose a smaller one"
        )
    sizes = {name: math.prod(shapes[name]) for name in names}
    fixed = {
        name: sparsity.group_density[group] for name in names if (group := group_of(name)) in sparsity.group_density
    }
    free = [name for name in names if name not in fixed]
    densities: dict[str, float] = dict(fixed)
    if free:
        left = density * sum(sizes.values()) - sum(fixed[name] * sizes[name] for name in fixed)
        share = left / sum(sizes[name] for name in free)
        if not 0.0 < share <= 1.0 + 1e-12:
            raise ValueError(
                f"sparsity.group_density leaves density {share:.4f} for the other layers, which must lie in (0, 1]; "
                f"change sparsity.density ({density}) or the group densities"
            )
        share = min(share, 1.0)
        if sparsity.distribution == "erk":
            densities |= erk_densities({name: shapes[name] for name in free}, share)
        else:
            densities |= dict.fromkeys(free, share)
    return {name: _budget(name, shapes[name], sparsity.unit, densities[name]) for name in names}


def erk_densities(shapes: dict[str, tuple[int, ...]], density: float) -> dict[str, float]:
    """Erdos-Renyi-Kernel densities of ``shapes`` whose size-weighted mean is ``density``."""
    size = {name: math.prod(shape) for name, shape in shapes.items()}
    raw = {name: sum(shape) / size[name] for name, shape in shapes.items()}
    dense: set[str] = set()
    while len(dense) < len(shapes):
        rest = [name for name in shapes if name not in dense]
        # fsum: the result must not depend on the order of the layers.
        wanted = math.fsum(density * size[n] for n in rest) - (1.0 - density) * sum(size[n] for n in dense)
        epsilon = wanted / sum(sum(shapes[n]) for n in rest)
        largest = max(raw[n] for n in rest)
        if epsilon * largest <= 1.0:
            return {name: 1.0 if name in dense else epsilon * raw[name] for name in shapes}
        dense |= {name for name in rest if raw[name] == largest}
    return dict.fromkeys(shapes, 1.0)


def _budget(name: str, shape: tuple[int, ...], unit: int, density: float) -> LayerBudget:
    if any(extent % unit for extent in shape[:2]):
        raise ValueError(f"{name}: shape {list(shape)} is not divisible into {unit} x {unit} blocks (sparsity.unit)")
    units = math.prod(shape) // (unit * unit)
    return LayerBudget(shape, unit, units, min(units, max(1, math.floor(density * units + 0.5))))
