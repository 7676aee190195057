"""What of the options of ``data`` does not fit together."""

from __future__ import annotations

from nt_pretrain.config.numbers import listed
from nt_pretrain.config.schema import Config
from nt_pretrain.config.suggest import closest


def data_problems(config: Config) -> list[str]:
    """One line each."""
    data = config.data
    found = _mixture(config)
    low, high = data.picture_area
    if low == 0.0 or low > high:
        found.append(f"data.picture_area: [{low:g}, {high:g}] must be a share above 0 and one that is not smaller")
    if data.picture_size > data.picture_shorter:
        found.append(
            f"data.picture_size: {data.picture_size} pixels cannot be cut out of data.picture_shorter "
            f"{data.picture_shorter}"
        )
    attempts = data.reader_restarts + 1
    if data.stall_seconds * attempts >= config.parallel.timeout_seconds:
        found.append(
            f"data.stall_seconds: {data.stall_seconds:g} s for each of {attempts} attempts (data.reader_restarts) are "
            f"not below parallel.timeout_seconds {config.parallel.timeout_seconds}: other ranks would give up before"
        )
    paths = {"data.path": data.path} | {f"data.sources.{name}": path for name, path in data.sources.items()}
    found += [f"{key}: write {path.removeprefix('file://')} instead of {path}" for key, path in paths.items()
              if path.startswith("file://")]  # fmt: skip
    return found


def _mixture(config: Config) -> list[str]:
    data = config.data
    if not data.sources:
        return [
            f"data.{key}: has no effect without data.sources" for key in ("weights", "curriculum") if getattr(data, key)
        ]
    found = []
    phases = {"data.weights": data.weights or dict.fromkeys(data.sources, 1.0)}
    phases |= {f"data.curriculum.{step}": weights for step, weights in data.curriculum.items()}
    for where, weights in phases.items():
        for name in weights:
            if name not in data.sources:
                near = closest(name, data.sources)
                hint = f"did you mean {near}?" if near else f"there are {', '.join(data.sources)}"
                found.append(f"{where}.{name}: no source of data.sources has this name; {hint}")
        total = sum(weights.values())
        if total == 0.0:
            found.append(f"{where}: some source must have a weight above 0")
            continue
        small = [name for name, weight in weights.items() if 0.0 < weight / total < 0.001]
        if small:
            found.append(
                f"{where}: {', '.join(small)}: less than one sequence in 1,000, and shares are kept in thousandths; "
                f"give 0, or at least {total / 1000:g}"
            )
    unused = [name for name in data.sources if not any(weights.get(name) for weights in phases.values())]
    if unused and not found:
        found.append(f"data.weights: {', '.join(unused)}: never read; give a weight, or take it out of data.sources")
    late = [step for step in data.curriculum if step > config.total_steps]
    if late:
        found.append(f"data.curriculum: steps {listed(late)} lie after the last step {config.total_steps:,}")
    return found
