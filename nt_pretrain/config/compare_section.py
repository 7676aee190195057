"""What launch/compare.py runs: rows of options, and what is claimed of them. Training itself reads nothing of it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from nt_pretrain.config.section import Positive, Section

Measure = Literal["nll", "accuracy", "ece", "brier", "perplexity", "disagreement", "corrupted_nll"]


class Claim(Section):
    """That one row is lower or higher than another in some measure of the ensemble, by more than chance."""

    says: str = Field(description="The claim in words.")
    row: str = Field(description="Name of a row.")
    measure: Measure = Field(description="Of the ensemble; disagreement is of its members.")
    compared: Literal["lower", "higher"] = Field(description="What the row is claimed to be.")
    than: str = Field(description="Name of the other row.")


class CompareSection(Section):
    """A grid of runs for launch/compare.py: docs/METHODS.md."""

    rows: dict[str, tuple[str, ...]] = Field(
        default_factory=dict, description="Name of a row to its options, each section.key=value."
    )
    claims: tuple[Claim, ...] = Field((), description="What is tested of the results, by differences over seeds.")
    seeds: Positive = Field(2, description="Runs of each row, with seeds 0, 1, ...")
    budget: Literal["steps", "flops"] = Field(
        "steps",
        description="steps: train.steps as configured for every row, which methods share out or repeat; flops: as many "
        "that every row executes as many operations as one dense model in train.steps.",
    )
    harms: str = Field("", description="What launch/evaluate.py --robustness measures; empty: nothing.")
    document: str = Field("", description="Markdown file with a part for these results, between two marks.")
