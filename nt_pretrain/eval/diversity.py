"""How differently the heads of an ensemble predict: sums over samples and pairs of heads.

Disagreement and KL are those of Fort, Hu and Lakshminarayanan (arXiv 1912.02757) and FreeTickets (Liu et al., ICLR
2022); mutual information is that of Lakshminarayanan et al. (NeurIPS 2017) and Malinin and Gales (ICLR 2021), Jensen
and Shannon's divergence that of Lin (1991). Divergences are of calibrated heads where the predictions were made with
temperatures.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from nt_pretrain.eval.exact import COLUMNS, carried, fixed_sums, mean_of, row_sum
from nt_pretrain.eval.members import Predictions


@dataclass
class DiversitySums:
    """Sums over the samples seen so far, for M heads; all int64, so two of them add up element by element.

    ``counts`` [2]: samples, broken samples. ``wrong`` [M, M]: samples that both heads got wrong; the diagonal has the
    errors of one. ``differ`` [M, M]: samples where first choices differ. ``kl``, ``jensen_shannon``, ``cosine`` and
    ``centred_cosine`` [M, M, 4]: fixed-point sums, of kl for ordered pairs, of the others above the diagonal.
    ``mutual_information`` [4]: fixed-point sum.
    """

    counts: Tensor
    wrong: Tensor
    differ: Tensor
    kl: Tensor
    jensen_shannon: Tensor
    cosine: Tensor
    centred_cosine: Tensor
    mutual_information: Tensor

    @staticmethod
    def zeros(heads: int, *, device: torch.device | str = "cpu") -> DiversitySums:
        """Empty sums."""

        def table(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=torch.int64, device=device)

        pairs = (heads, heads)
        return DiversitySums(
            counts=table(2),
            wrong=table(*pairs),
            differ=table(*pairs),
            kl=table(*pairs, COLUMNS),
            jensen_shannon=table(*pairs, COLUMNS),
            cosine=table(*pairs, COLUMNS),
            centred_cosine=table(*pairs, COLUMNS),
            mutual_information=table(COLUMNS),
        )

    def add(self, piece: Predictions) -> None:
        """Add some samples."""
        device, heads = self.counts.device, piece.heads
        p = piece.p[:heads]
        choice = piece.logits.argmax(-1)
        wrong = (choice != piece.labels).long()
        self.counts += torch.tensor([len(piece.labels), piece.broken], device=device)
        self.wrong += (wrong[:, None] & wrong[None]).sum(-1).to(device)
        self.differ += (choice[:, None] != choice[None]).sum(-1).to(device)
        entropy = torch.stack([_entropy(p[head], piece.logp[head]) for head in range(heads)])
        pooled = p[0].clone()
        for each in p[1:]:
            pooled += each
        pooled /= heads
        spread = _entropy(pooled, pooled.log())
        for each in entropy:
            spread = spread - each / heads
        self.mutual_information = carried(self.mutual_information + fixed_sums(spread.clamp_min(0.0)).to(device))
        self._add_pairs(piece, entropy)

    def _add_pairs(self, piece: Predictions, entropy: Tensor) -> None:
        heads = piece.heads
        p, logp, plain = piece.p, piece.logp, piece.logits
        centred = [_centred(each) for each in plain]
        ordered = list(itertools.permutations(range(heads), 2))
        above = list(itertools.combinations(range(heads), 2))
        halves = []
        for a, b in above:
            both = (p[a] + p[b]) / 2.0
            halves.append((_entropy(both, both.log()) - (entropy[a] + entropy[b]) / 2.0).clamp_min(0.0))
        for table, pairs, values in (
            (self.kl, ordered, [_kl(p[a], logp[a], logp[b]) for a, b in ordered]),
            (self.jensen_shannon, above, halves),
            (self.cosine, above, [_cosine(plain[a], plain[b]) for a, b in above]),
            (self.centred_cosine, above, [_cosine(centred[a], centred[b]) for a, b in above]),
        ):
            if pairs:
                rows, columns = zip(*pairs, strict=True)
                # One call for all pairs: the cost of small batches is that of calls.
                added = table[rows, columns] + fixed_sums(torch.stack(values)).to(table.device)
                table[rows, columns] = carried(added)


def diversity_values(sums: DiversitySums) -> dict[str, float]:
    """Means over samples and pairs of heads; divergences in nats.

    ``disagreement`` is over pairs of different heads; ``disagreement_with_diagonal`` is the NeuroTrails code's mean
    over the whole M x M matrix with its zero diagonal, (M - 1) / M of it. ``kl`` is over ordered pairs, which is the
    mean of the symmetrised one. Empty for one head; nan without samples or with broken ones, ``error_correlation``
    also where a head is always or never right, the cosines also where a logit is -inf.
    """
    heads = len(sums.wrong)
    if heads < 2:
        return {}
    samples, broken = (int(value) for value in sums.counts)
    count = 0 if broken else samples
    above = list(itertools.combinations(range(heads), 2))
    ordered = list(itertools.permutations(range(heads), 2))
    differ = sum(int(sums.differ[pair]) for pair in above)
    disagreement = differ / (len(above) * count) if count else math.nan
    return {
        "disagreement": disagreement,
        "disagreement_with_diagonal": disagreement * (heads - 1) / heads,
        "kl": _mean([mean_of(sums.kl[pair], count) for pair in ordered]),
        "jensen_shannon": _mean([mean_of(sums.jensen_shannon[pair], count) for pair in above]),
        "mutual_information": mean_of(sums.mutual_information, count),
        "logit_cosine": _mean([mean_of(sums.cosine[pair], count) for pair in above]),
        "logit_cosine_centred": _mean([mean_of(sums.centred_cosine[pair], count) for pair in above]),
        "error_correlation": _mean([_correlation(sums.wrong, pair, count) for pair in above]),
    }


def disagreement_matrix(sums: DiversitySums) -> Tensor:
    """Share of samples on which first choices differ, fp64 [M, M], for a heat map."""
    samples, broken = (int(value) for value in sums.counts)
    return sums.differ.double().cpu() / (math.nan if broken or not samples else samples)


def _correlation(wrong: Tensor, pair: tuple[int, int], count: int) -> float:
    """Pearson correlation (phi) of the errors of two heads, from counts."""
    first, second, both = int(wrong[pair[0], pair[0]]), int(wrong[pair[1], pair[1]]), int(wrong[pair])
    scale = first * (count - first) * second * (count - second)
    return (count * both - first * second) / math.sqrt(scale) if count and scale > 0 else math.nan


def _entropy(p: Tensor, logp: Tensor) -> Tensor:
    return -row_sum(torch.where(p > 0, p * logp, 0.0))


def _kl(p: Tensor, logp: Tensor, logq: Tensor) -> Tensor:
    return row_sum(torch.where(p > 0, p * (logp - logq), 0.0)).clamp_min(0.0)


def _centred(logits: Tensor) -> Tensor:
    """Less the mean over classes, which no probability depends on."""
    return logits - (row_sum(logits) / logits.shape[-1])[..., None]


def _cosine(first: Tensor, second: Tensor) -> Tensor:
    """Cosine over classes; 0 where a vector is zero, as no direction is alike."""
    norms = row_sum(first * first).sqrt() * row_sum(second * second).sqrt()
    cosine = row_sum(first * second) / norms
    return torch.where(norms == 0, 0.0, cosine.clamp(-1.0, 1.0))


def _mean(values: list[float]) -> float:
    # fsum refuses an infinity beside a nan.
    return math.nan if any(map(math.isnan, values)) else sum(values) / len(values)
