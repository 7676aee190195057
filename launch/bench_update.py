"""What a topology update costs, part by part: the verb `update` of launch/bench.py."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch
from bench_step import EVERY, SHAPES, Ours, models_of, our_config
from bench_timing import measure, ratio

from nt_pretrain.config.schema import SparsitySection
from nt_pretrain.parallel.growth import GrowthScores
from nt_pretrain.parallel.mesh import connect
from nt_pretrain.train.change import change_topology


class Parts:
    """The update of one model, cut in two."""

    def __init__(self, model: Ours) -> None:
        self.model = model
        self.scores: GrowthScores | None = None

    def gradients(self) -> None:
        self.scores = None
        self.model.gradients(0)

    def gradients_with_scores(self) -> None:
        """The same with what growth needs: nothing more for masks, whose gradients are dense."""
        self.scores = self.model.gradients(EVERY)
        if self.scores is not None:
            # Or whatever is timed next would go on computing dense gradients.
            self.scores.listen(self.model.state.model, on=False)

    def move(self) -> None:
        """Drop, grow, settle values and moments, tell the other ranks."""
        model = self.model
        change_topology(model.state, model.config, model.ranks, EVERY, self.scores)


def bench_update(name: str, precision: str, repeats: int) -> dict[str, object]:
    """Time the parts of an update of every sparse backend; prints a table, returns it for JSON."""
    shape = SHAPES[name]
    ranks = connect(our_config(shape, precision, heads=1, sparsity=SparsitySection()))
    sequences, length = shape.batch
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, shape.vocabulary, (sequences, length + 1), generator=generator)
    models = models_of(shape, precision, ranks, tokens)
    sparse = {key: Parts(model) for key, model in models.items() if not key.startswith("dense")}
    variants: dict[str, Callable[[], None]] = {}
    before: dict[str, Callable[[], None]] = {}
    for key, parts in sparse.items():
        variants |= {f"{key}: step": parts.model.step, f"{key}: gradients": parts.gradients}
        variants |= {f"{key}: gradients, scores": parts.gradients_with_scores, f"{key}: drop and grow": parts.move}
        before[f"{key}: drop and grow"] = parts.gradients_with_scores
    times = measure(variants, before, repeats)
    print(f"{name} {precision}, {sequences} x {length} tokens, {torch.get_num_threads()} thread(s), {repeats} repeats")
    found: dict[str, dict[str, dict[str, float]]] = {}
    for key in sparse:
        step, plain = f"{key}: step", f"{key}: gradients"
        seconds = statistics.median(cpu for cpu, _ in times[step])
        scores = ratio(times, f"{key}: gradients, scores", plain)
        moves = ratio(times, f"{key}: drop and grow", step)
        share = statistics.median(cpu for cpu, _ in times[plain]) / seconds * (scores["cpu"] - 1) + moves["cpu"]
        print(
            f"  {key:14s} step {seconds:7.3f} CPU s; gradients with growth scores {scores['cpu']:.3f} of those without "
            f"({scores['least']:.3f} to {scores['largest']:.3f}); drop and grow {moves['cpu']:.3f} of a step "
            f"({moves['least']:.3f} to {moves['largest']:.3f}); every {EVERY} steps {share / EVERY:.2%} of the time"
        )
        found[key] = {"scores": scores, "moves": moves}
    return {"model": name, "precision": precision, "times": times, "parts": found}
