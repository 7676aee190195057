"""What those that speak cost, counted and executed: the table that an evaluation prints too."""

from __future__ import annotations

from nt_pretrain.checkpoint.errors import CheckpointError
from nt_pretrain.config.errors import ConfigErrors
from nt_pretrain.diversity.markup import cell, hint, section, table, text
from nt_pretrain.evaluation.chosen import chosen_of
from nt_pretrain.evaluation.cost_table import columns, figure, lines, rows
from nt_pretrain.evaluation.costs import costs_of_chosen, read_alone, steps_of


def costs(words: str, overrides: list[str]) -> str:
    """Of what ``words`` name (a run, a checkpoint, an ensemble), without loading it; "" where it has no checkpoint yet.

    A choice that cannot be made is told by the look inside, which makes the same; here it costs the table alone.
    """
    try:
        chosen = chosen_of(words, overrides, data=None, samples=0)
        steps = steps_of(chosen)
        if not all(steps):
            return ""
        found = costs_of_chosen(chosen, steps, shared=read_alone(chosen))
    except (ConfigErrors, CheckpointError) as error:
        return section("costs", "Costs", hint(f"Not known: {error}"))
    wanted, body = columns(found), []
    for label, row in rows(found).items():
        figures = [figure(kind, (row[kind] or {}).get(how)) for kind, how in wanted]
        body.append([cell(text(label), header=True), *(cell(text(each), number=True) for each in figures)])
    return section("costs", "Costs", table(("", *wanted.values()), body), *(hint(line) for line in lines(found)))
