"""Ex uno plures (arXiv 2106.04767): one model's units are dealt to M members, each a narrower model trained on its own.

**This is our reconstruction.** The paper's abstract is all that could be had: members are non-overlapping dropout masks
that a pruning strategy computes, trained independently; one model's parameters hold them all. Ours is the rest:

- The pruning score of a unit is the L1 norm of its incoming weights, at the model's initial values or after a short
  training of it (``parent_share``), or in a finished model (``parent``). ``sequential`` gives the first member the best
  n / M units, the second the best of the remainder, as pruning again and again does; ``interleaved`` makes members of
  equal quality.
- Every unit belongs to exactly one member, and a weight between units of two members to nobody. The residual stream is
  units too: members are 1 / M as wide everywhere, first and last layer and norms included, so all members together have
  no more parameters than the model (but for the bias of an output layer, which each has, and gains and biases of norms,
  which are dealt). A hidden layer costs 1 / M of its multiply-adds, embedding and output layer of a LLaMA and the first
  and last layer of other networks as much as before. Norms have statistics of their own units.
- ``residual: whole``, of a LLaMA, deals feed-forward units and attention heads only. A member then computes exactly
  what the model does without the others' units, norms included; but it has embedding, norms and output layer of its
  own: M times theirs in parameters, M times the output layer in multiply-adds, and the blocks save nothing. They are
  not shared, since members are trained one after the other, and what the first has learnt must not move afterwards.
- Members are packed: ordinary dense models of smaller matrices, so that the saving is real. They start from the
  model's values and train ``train.steps`` steps each, on data of their own.
"""

from __future__ import annotations

from nt_pretrain.config.schema import Config
from nt_pretrain.methods.phase import Fresh, Part, Phase, of_length, seed_of
from nt_pretrain.methods.settings import dense, members_of, single
from nt_pretrain.models.partition import narrower, undealable


def phases(config: Config) -> list[Phase]:
    """The wide model's short training, where there is one, then M members."""
    method, wide, members = config.method, single(dense(config)), members_of(config)
    found, parent = [], method.parent
    if not parent and method.parent_share:
        steps = max(1, round(method.parent_share * config.total_steps))
        # The whole schedule in a shorter time, warm-up too.
        warmup = {"optim.warmup_steps": round(method.parent_share * config.warmup_steps)}
        found.append(Phase("parent", of_length(wide, steps, warmup), Fresh(), emits="parent", speaks=False))
        parent = "parent"
    for number in range(members):
        model = narrower(wide.model, number, members, method.residual)
        own = of_length(wide, config.total_steps, {"run.seed": seed_of(config, number + 1)})
        start = Part(wide, number, members, method.dealing, method.residual, parent, given=bool(method.parent))
        name = f"part_{number}"
        found.append(Phase(name, own.model_copy(update={"model": model}), start, emits=name))
    return found


def unfitting(config: Config) -> list[str]:
    """What does not go together, one line each."""
    method, found = config.method, []
    if method.parent and method.parent_share:
        found.append("method.parent_share: no parent is trained, since method.parent is given; leave one of them out")
    if config.model.data != "text" and method.residual == "whole":
        found.append(
            f"method.residual: whole is of text; of {config.model.family} all channels or hidden units are dealt"
        )
    return found + undealable(config.model, members_of(config), method.residual)
