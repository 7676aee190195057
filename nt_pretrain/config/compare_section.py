"""What launch/compare.py runs: rows of options, and what is claimed of them. Training itself reads nothing of it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from nt_pretrain.config.section import Positive, Section

Name = Annotated[str, Field(pattern=r"^[^|`]+$")]
"""Of a row, or a claim in words: what may stand in a cell of a Markdown table."""
Measure = Literal["nll", "accuracy", "ece", "brier", "perplexity", "disagreement", "corrupted_nll"]
Claim = tuple[str, Measure, Literal["lower", "higher"], str]


class CompareSection(Section):
    """A grid of runs for launch/compare.py: docs/METHODS.md."""

    rows: dict[Name, tuple[str, ...]] = Field(
        default_factory=dict, description="Name of a row to its options, each section.key=value."
    )
    claims: dict[Name, Claim] = Field(
        default_factory=dict,
        description="A claim in words to what is tested by differences over seeds: [row, measure of its ensemble, "
        "lower or higher, other row].",
    )
    seeds: Positive = Field(2, description="Runs of each row, with seeds 0, 1, ...")
    budget: Literal["steps", "flops"] = Field(
        "steps",
        description="steps: train.steps as configured for every row, which methods share out or repeat; flops: as many "
        "that every row executes as many operations as one dense model in train.steps.",
    )
    harms: str = Field("", description="What launch/evaluate.py --robustness measures; empty: nothing.")
    document: str = Field("", description="Markdown file with a part for these results, between two marks.")
