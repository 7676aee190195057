"""Text from a trained ensemble, token by token: the mean of the heads' probabilities, or one head alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from nt_pretrain.config.errors import ConfigErrors
from nt_pretrain.config.schema import Config, ModelSection
from nt_pretrain.data.spelling import Speller
from nt_pretrain.data.tokenizer import Tokenizer, load_tokenizer
from nt_pretrain.evaluation.load import Loaded, find, load
from nt_pretrain.evaluation.plain import make_plain
from nt_pretrain.evaluation.sampling import Sampling, draw, pooled
from nt_pretrain.evaluation.target import Target
from nt_pretrain.models.decode import decode_step, empty_cache, prefill
from nt_pretrain.models.multihead import MultiHead
from nt_pretrain.parallel.mesh import Ranks


@dataclass(frozen=True)
class Wanted:
    """What the command line asks for.

    Attributes:
        tokens: the most that are written; the end of the document may come before.
        head: number of the head that writes; None: the ensemble.
        average: with the moving average of the weights.
    """

    prompt: str
    tokens: int
    sampling: Sampling
    head: int | None = None
    average: bool = False


@dataclass
class Timing:
    """Seconds for the prompt, and for the tokens after the first, which comes with it."""

    prompt: float = 0.0
    steps: float = 0.0
    written: int = 0

    @property
    def tokens_per_second(self) -> float:
        return (self.written - 1) / self.steps if self.steps > 0 else float("nan")


def check(config: Config, wanted: Wanted, *, world: int) -> None:
    """Raises:
    ConfigErrors: the run is not of text, has no such head, or there are several ranks.
    """
    model = config.model
    wrong = [f"{world} ranks were started; text is written by one process, without torchrun"] if world > 1 else []
    if model.classifies:
        wrong.append(f"model.family {model.family} reads {model.data}; only runs of text can write")
    if wanted.head is not None and not 0 <= wanted.head < model.heads:
        wrong.append(f"--head {wanted.head}: there is none; the run has heads 0 to {model.heads - 1}")
    if wrong:
        raise ConfigErrors(wrong)


def run(
    target: Target, config: Config, wanted: Wanted, ranks: Ranks, write: Callable[[str], None],
    tell: Callable[[str], None],
) -> None:  # fmt: skip
    """Load a checkpoint and write text.

    Args:
        ranks: one.
        write: what to do with pieces of the text, the prompt first.
        tell: what to do with lines for people.

    Raises:
        CheckpointError, DataError: the checkpoint or the tokenizer cannot be read.
        ConfigErrors: as :func:`check`.
    """
    check(config, wanted, world=ranks.world)
    loaded = load(find(target, config, ranks), config, ranks, average=wanted.average)
    for skipped in loaded.skipped:
        tell(f"checkpoint skipped: {skipped}")
    make_plain(loaded.model, precision_of(config))
    tokenizer = load_tokenizer(config.data.tokenizer)
    prompt = wanted.prompt.rstrip(" ")
    if prompt != wanted.prompt:
        tell("the blank at the end of the prompt is left out: the first token brings its own")
    tokens = prompt_tokens(tokenizer, prompt)
    if len(tokens) + wanted.tokens > config.data.sequence_length:
        tell(
            f"note: the run was trained on sequences of {config.data.sequence_length:,} tokens; what is written beyond "
            "them tends to be worse"
        )
    write(prompt)
    speller, timing, ended = Speller(tokenizer, at_start=not prompt), Timing(), False
    for token in written(loaded.model, config.model, tokens, wanted, timing):
        ended = token == tokenizer.end
        if ended:
            break
        write(speller.spell(token))
    write(speller.rest())
    write("\n")
    tell(_told(config, loaded, wanted, timing, len(tokens), ended))


def precision_of(config: Config) -> torch.dtype:
    """The type that the run computes with."""
    return {"fp32": torch.float32, "fp64": torch.float64}.get(config.train.precision, torch.bfloat16)


def prompt_tokens(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """Of an empty prompt the end of a document, behind which the next one begins."""
    return [int(each) for each in tokenizer.processor.encode(prompt)] or [tokenizer.end]


def written(
    model: MultiHead, section: ModelSection, prompt: list[int], wanted: Wanted, timing: Timing
) -> Iterator[int]:
    """``wanted.tokens`` tokens that follow ``prompt``; ``timing`` is kept while they are made."""
    heads = None if wanted.head is None else [wanted.head]
    cache = empty_cache(model, section, sequences=1, capacity=len(prompt) + wanted.tokens, heads=heads)
    device = cache.tables[0].device
    begin = time.perf_counter()
    logits = prefill(model, torch.tensor([prompt], device=device), cache)
    token = draw(pooled(logits[:, 0]), wanted.sampling, 0)
    timing.prompt, timing.written = time.perf_counter() - begin, 1
    yield token
    for place in range(1, wanted.tokens):
        begin = time.perf_counter()
        logits = decode_step(model, torch.tensor([token], device=device), cache)
        token = draw(pooled(logits[:, 0]), wanted.sampling, place)
        timing.steps, timing.written = timing.steps + time.perf_counter() - begin, place + 1
        yield token


def _told(config: Config, loaded: Loaded, wanted: Wanted, timing: Timing, prompt: int, ended: bool) -> str:
    kind = ", average of the weights" if loaded.average else ""
    who = f"head {wanted.head}" if wanted.head is not None else f"{config.model.heads} heads"
    lines = [f"{config.run.name}, step {loaded.step:,}{kind}, {who}"]
    if ended:
        lines.append(f"the model ended the document after {timing.written - 1:,} tokens")
    lines.append(f"prompt: {prompt:,} tokens in {timing.prompt:.2f} s")
    if timing.written > 1:
        lines.append(f"{timing.written:,} tokens written, {timing.tokens_per_second:,.1f} tokens/s")
    return "\n".join(lines)
