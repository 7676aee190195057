"""The figures of an evaluation. Needs matplotlib (extra ``report``), so it is imported only where they are drawn."""

from __future__ import annotations

from pathlib import Path

from nt_pretrain.eval.diversity import disagreement_matrix
from nt_pretrain.eval.figures import draw_heads_used, draw_pairs, draw_reliability, draw_risk_coverage
from nt_pretrain.eval.measure import quality_by_heads
from nt_pretrain.eval.members import head_names
from nt_pretrain.eval.robustness_figure import draw_robustness
from nt_pretrain.evaluation.evaluate import Evaluation


def draw_all(found: Evaluation, folder: Path) -> list[Path]:
    """Draw what there is to draw into ``folder``; returns the files. Pairs of heads need two heads."""
    sums, heads = found.whole.classification, found.whole.names
    # Numbers are enough where all are heads of one checkpoint.
    names = () if heads == head_names(len(heads)) else heads
    drawn = [
        draw_reliability(sums, folder / "reliability.png", heads),
        draw_risk_coverage(sums, folder / "risk_coverage.png", heads),
    ]
    if found.calibration is not None:
        calibrated = found.calibration.calibrated.classification
        drawn.append(draw_reliability(calibrated, folder / "reliability_calibrated.png", heads))
    if found.whole.heads > 1:
        differ = disagreement_matrix(found.whole.diversity)
        title = "disagreement of heads\nshare of samples with another first choice"
        drawn.append(draw_pairs(differ, folder / "disagreement.png", title=title, names=names))
        drawn.append(draw_heads_used(quality_by_heads(found.whole), folder / "heads_used.png"))
    if found.overlap is not None:
        jaccard, expected = found.overlap
        title = "overlap of the heads' masks\nJaccard index (of random masks)"
        drawn.append(draw_pairs(jaccard, folder / "mask_overlap.png", title=title, expected=expected, names=names))
    if found.robustness is not None and found.robustness.kinds:
        drawn.append(draw_robustness(found.robustness, folder / "robustness.png"))
    return drawn
