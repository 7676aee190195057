"""Text from a trained ensemble, token by token: the mean of the heads' probabilities, or one head alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from nt_pretrain.config.errors import ConfigErrors
from nt_pretrain.config.schema import Config
from nt_pretrain.data.spelling import Speller
from nt_pretrain.data.tokenizer import Tokenizer, load_tokenizer
from nt_pretrain.eval.members import label_of
from nt_pretrain.eval.voices import Part, Voices
from nt_pretrain.evaluation.chosen import Chosen
from nt_pretrain.evaluation.load import Loaded
from nt_pretrain.evaluation.plain import make_plain
from nt_pretrain.evaluation.sampling import Sampling, draw, pooled
from nt_pretrain.evaluation.speakers import find_all, load_all, voices_of
from nt_pretrain.models.decode import empty_cache, prefill
from nt_pretrain.models.member_network import member_network, plain_section
from nt_pretrain.parallel.mesh import Ranks


@dataclass(frozen=True)
class Wanted:
    """What the command line asks for.

    Attributes:
        tokens: the most that are written; the end of the document may come before.
        head: number of the head that writes, counted over all members of an ensemble; None: the ensemble.
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


def check(chosen: Chosen, wanted: Wanted, *, world: int) -> Chosen:
    """Who writes: all that were chosen, or one head.

    Raises:
        ConfigErrors: the run is not of text, has no such head, or there are several ranks.
    """
    model = chosen.config.model
    wrong = [f"{world} ranks were started; text is written by one process, without torchrun"] if world > 1 else []
    if model.classifies:
        wrong.append(f"model.family {model.family} reads {model.data}; only runs of text can write")
    if wrong:
        raise ConfigErrors(wrong)
    return chosen if wanted.head is None else chosen.only(wanted.head)


def run(
    chosen: Chosen, wanted: Wanted, ranks: Ranks, write: Callable[[str], None],
    tell: Callable[[str], None],
) -> None:  # fmt: skip
    """Load a checkpoint, or the members of an ensemble, and write text.

    Args:
        ranks: one.
        write: what to do with pieces of the text, the prompt first.
        tell: what to do with lines for people.

    Raises:
        CheckpointError, DataError: the checkpoint or the tokenizer cannot be read.
        ConfigErrors: as :func:`check`.
    """
    chosen = check(chosen, wanted, world=ranks.world)
    config = chosen.config
    if chosen.why:
        tell(chosen.why)
    loaded = load_all(find_all(chosen, ranks), chosen, ranks, average=wanted.average)
    for each, one in zip(chosen.speakers, loaded, strict=True):
        for skipped in one.skipped:
            tell(f"checkpoint skipped: {skipped}")
        make_plain(one.model, precision_of(each.config))
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
    for token in written(each_alone(voices_of(chosen, loaded)), tokens, wanted, timing):
        ended = token == tokenizer.end
        if ended:
            break
        write(speller.spell(token))
    write(speller.rest())
    write("\n")
    tell(_told(chosen, loaded, wanted, timing, len(tokens), ended))


def precision_of(config: Config) -> torch.dtype:
    """The type that the run computes with."""
    return {"fp32": torch.float32, "fp64": torch.float64}.get(config.train.precision, torch.bfloat16)


def prompt_tokens(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """Of an empty prompt the end of a document, behind which the next one begins."""
    return [int(each) for each in tokenizer.processor.encode(prompt)] or [tokenizer.end]


def each_alone(voices: Voices) -> Voices:
    """The same voices, members that share weights as plain networks of their own: caches are of one network each."""
    parts = []
    for part in voices.parts:
        model = part.config.model
        if model.sharing == "none":
            parts.append(part)
            continue
        config = part.config.model_copy(update={"model": plain_section(model)})
        parts += [Part(member_network(part.model, model, each), config, (0,)) for each in part.heads]
    return Voices(tuple(parts), voices.names)


def written(voices: Voices, prompt: list[int], wanted: Wanted, timing: Timing) -> Iterator[int]:
    """``wanted.tokens`` tokens that follow ``prompt``; ``timing`` is kept while they are made.

    Args:
        voices: of plain models; each token is that of the mean of their probabilities.
    """
    caches = [
        empty_cache(
            part.model, part.config.model, sequences=1, capacity=len(prompt) + wanted.tokens, heads=part.heads
        )
        for part in voices.parts
    ]  # fmt: skip
    device = caches[0].tables[0].device

    def next_token(read: list[int], place: int) -> int:
        tokens = torch.tensor([read], device=device)
        logits = [prefill(part.model, tokens, cache)[:, 0] for part, cache in zip(voices.parts, caches, strict=True)]
        return draw(pooled(torch.cat(logits)), wanted.sampling, place)

    begin = time.perf_counter()
    token = next_token(prompt, 0)
    timing.prompt, timing.written = time.perf_counter() - begin, 1
    yield token
    for place in range(1, wanted.tokens):
        begin = time.perf_counter()
        token = next_token([token], place)
        timing.steps, timing.written = timing.steps + time.perf_counter() - begin, place + 1
        yield token


def _told(chosen: Chosen, loaded: Sequence[Loaded], wanted: Wanted, timing: Timing, prompt: int, ended: bool) -> str:
    kind = ", average of the weights" if loaded[0].average else ""
    who = label_of(chosen.voices[0]) if wanted.head is not None else f"{len(chosen.voices)} heads"
    if chosen.manifest is None:
        lines = [f"{chosen.config.run.name}, step {loaded[0].step:,}{kind}, {who}"]
    else:
        lines = [f"{chosen.manifest[0]}{kind}, {who}"]
    if ended:
        lines.append(f"the model ended the document after {timing.written - 1:,} tokens")
    lines.append(f"prompt: {prompt:,} tokens in {timing.prompt:.2f} s")
    if timing.written > 1:
        lines.append(f"{timing.written:,} tokens written, {timing.tokens_per_second:,.1f} tokens/s")
    return "\n".join(lines)
