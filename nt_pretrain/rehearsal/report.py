"""A rehearsal and its forecast as text: one world in full, several as a table of what grows."""

from __future__ import annotations

from nt_pretrain.config.mesh import MeshSizes
from nt_pretrain.rehearsal.forecast import Forecast
from nt_pretrain.rehearsal.machines import Machine
from nt_pretrain.rehearsal.step import Rehearsal
from nt_pretrain.rehearsal.watch import Sent
from nt_pretrain.train.plan import Plan, readable_bytes

RESERVE = 0.1
"""Share of the device's memory left to libraries and fragmentation."""

Rows = list[tuple[str, str]]


def fits(rehearsal: Rehearsal, machine: Machine) -> bool:
    return rehearsal.memory.peak <= machine.memory * (1 - RESERVE)


def in_full(rehearsal: Rehearsal, forecast: Forecast, machine: Machine) -> str:
    """All that is known of one world."""
    memory, plan = rehearsal.memory, rehearsal.plan
    held: Rows = [
        ("weights", readable_bytes(memory.weights)),
        ("moments", readable_bytes(memory.moments)),
        *([("moving average of the weights", readable_bytes(memory.average))] if memory.average else []),
        ("topology", readable_bytes(memory.topology)),
        ("copy that a checkpoint is written from", readable_bytes(memory.snapshot)),
        ("gradients", readable_bytes(memory.gradients)),
        ("whole gradients, kept between micro-batches", readable_bytes(memory.kept)),
        ("activations, gathered weights, logits", readable_bytes(memory.working)),
        ("peak of a step", readable_bytes(memory.step)),
        *([("peak of a step after which blocks grow", readable_bytes(memory.growing_step))] if memory.growing else []),
        ("topology update, beside what is stored (estimate)", readable_bytes(memory.update)),
        ("validation, beside what is stored (estimate)", readable_bytes(memory.validation)),
        ("peak", readable_bytes(memory.peak)),
        (f"{machine.name} has", f"{readable_bytes(int(machine.memory))}: {_verdict(rehearsal, machine)}"),
    ]
    sent: Rows = [
        (axis, f"{_sent(found)}   {_time(forecast.traffic[axis])}") for axis, found in rehearsal.traffic.items()
    ] or [("nothing", "one rank")]
    if plan.topology_updates:
        sent.append(("topology update, at most", f"{_sent(rehearsal.update)}   {_time(forecast.update)}"))
    share = forecast.update_share / forecast.step
    times: Rows = [
        ("matrix products", _time(forecast.compute)),
        ("optimizer", _time(forecast.optimizer)),
        ("communication that nothing hides", _time(forecast.exposed)),
        ("topology updates, on average", f"{_time(forecast.update_share)} ({share:.2%})"),
        ("copies for checkpoints, on average", _time(forecast.save_share)),
        ("step", _time(forecast.step)),
        (f"{plan.samples} per second", f"{forecast.tokens_per_step / forecast.step:,.0f}"),
        (f"{plan.samples} per day", f"{forecast.tokens_per_day / 1e9:,.2f} billion"),
        (_mfu(plan), f"{forecast.mfu:.1%}"),
        ("whole run", f"{plan.total_steps * forecast.step / 3600:,.1f} hours"),
    ]
    tables: tuple[tuple[str, Rows], ...] = (
        (f"mesh of {plan.sizes.world:,} ranks: {_mesh(plan.sizes)}, micro-batches a step: {plan.accumulation}", []),
        ("memory of rank 0 (counted in a step without values)", held),
        ("sent by rank 0 in one step: bytes, collectives, time if nothing hides it", sent),
        (f"time of one step (forecast from the stated rates of {machine.name})", times),
        ("disk", [("one checkpoint", readable_bytes(plan.checkpoint_bytes))]),
    )
    return "\n\n".join(_table(title, rows) for title, rows in tables)


def growth(found: list[tuple[Rehearsal, Forecast]], machine: Machine) -> str:
    """A Markdown table, one column for each world."""
    columns = [
        {
            "ranks": f"{rehearsal.plan.sizes.world:,}",
            "mesh": _mesh(rehearsal.plan.sizes),
            "sequences per step": f"{rehearsal.plan.sequences_per_rank * rehearsal.plan.sizes.data:,}",
            "micro-batches": f"{rehearsal.plan.accumulation}",
            "weights, moments, topology": readable_bytes(rehearsal.memory.stored - rehearsal.memory.snapshot),
            "gradients kept between micro-batches": readable_bytes(rehearsal.memory.kept),
            "activations, gathered weights, logits": readable_bytes(rehearsal.memory.working),
            "peak memory": readable_bytes(rehearsal.memory.peak),
            f"fits {machine.name}": "yes" if fits(rehearsal, machine) else "**no**",
            **{f"sent along {axis}": _sent(rehearsal.traffic.get(axis, Sent())) for axis in _axes(found)},
            "sent by an update, at most": _sent(rehearsal.update),
            "products": _time(forecast.compute),
            "communication that nothing hides": _time(forecast.exposed),
            "topology updates, share": f"{forecast.update_share / forecast.step:.2%}",
            "step": _time(forecast.step),
            f"{rehearsal.plan.samples} per day": f"{forecast.tokens_per_day / 1e9:,.1f} billion",
            _mfu(rehearsal.plan): f"{forecast.mfu:.1%}",
            "one checkpoint": readable_bytes(rehearsal.plan.checkpoint_bytes),
        }
        for rehearsal, forecast in found
    ]
    lines = [[name, *(column[name] for column in columns)] for name in columns[0]]
    text = ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join([text[0], "| --- |" + " ---: |" * len(columns), *text[1:]])


def _axes(found: list[tuple[Rehearsal, Forecast]]) -> list[str]:
    return list(dict.fromkeys(axis for rehearsal, _ in found for axis in rehearsal.traffic))


def _verdict(rehearsal: Rehearsal, machine: Machine) -> str:
    if fits(rehearsal, machine):
        return f"fits, with {readable_bytes(int(machine.memory - rehearsal.memory.peak))} to spare"
    advice = []
    if rehearsal.plan.accumulation > 1:
        advice.append("more ranks or a larger train.micro_batch, so that no whole gradient has to be kept")
    advice += ["a smaller train.micro_batch", "parallel.activation_checkpoint=full", "more shards"]
    return f"DOES NOT FIT (a tenth is kept free); try {', '.join(advice)}"


def _mfu(plan: Plan) -> str:
    return f"MFU, {'active' if plan.executes_active else 'dense'} operations"


def _mesh(sizes: MeshSizes) -> str:
    axes = {"replicate": sizes.replicate, "shard": sizes.shard, "head": sizes.head, "tensor": sizes.tensor}
    return " x ".join(f"{size} {axis}" for axis, size in axes.items() if size > 1) or "1"


def _sent(sent: Sent) -> str:
    return f"{readable_bytes(sent.bytes)} in {sent.calls:,}"


def _time(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"


def _table(title: str, rows: Rows) -> str:
    width = max((len(name) for name, _ in rows), default=0)
    return "\n".join([title, *(f"  {name:<{width}}  {value}" for name, value in rows)])
