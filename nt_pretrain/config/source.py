"""YAML text to values that remember their lines, and back.

The values are those of YAML 1.2, which is what people expect: ``1e-3`` is a number (PyYAML reads a string), ``on``,
``off``, ``yes`` and ``no`` are strings (PyYAML reads booleans), ``1:30``, ``010`` and dates are strings. Keys are
strings, a key given twice is an error, and anchors, aliases and tags are not supported: one file says everything once.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field

import yaml

Path = tuple[str, ...]
"""Keys from the outside in, e.g. ``("sparsity", "group_density", "ffn")``."""

Value = None | bool | int | float | str | list["Value"] | dict[str, "Value"]

# Tag, form of the plain scalars it covers, and the characters such a scalar can begin with (PyYAML's index).
_SCALARS = (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(?:0|[1-9][0-9_]*)", list("-+0123456789")),
    (
        "float",
        r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?|[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+",
        list("-+.0123456789"),
    ),
)  # fmt: skip


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict = {}  # noqa: RUF012 - PyYAML's own declaration

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()
        for what, mark in (("anchor", "anchors (&) and aliases (*)"), ("tag", "tags (!)")):
            if getattr(event, what, None) is not None:
                raise yaml.MarkedYAMLError(problem=f"{mark} are not supported", problem_mark=event.start_mark)
        return super().compose_node(parent, index)


class _Dumper(yaml.SafeDumper):
    """Quotes exactly the strings that the loader would read as something else."""

    yaml_implicit_resolvers: dict = {}  # noqa: RUF012 - PyYAML's own declaration


for _tag, _form, _first in _SCALARS:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_form})$"), _first)


@dataclass
class Source:
    """Values of a YAML text, the line (from 1) on which each key stands, and what is wrong with the text."""

    value: Value = None
    lines: dict[Path, int] = field(default_factory=dict)
    problems: list[tuple[int, str]] = field(default_factory=list)


def read(text: str) -> Source:
    """Read YAML; never raises. A syntax error leaves ``value`` None and is the only problem."""
    source = Source()
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        source.value = None if node is None else _construct(loader, node, (), source)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        hint = "; indent with spaces, not tabs" if "\\t" in str(error.problem) else ""
        where = f" (column {mark.column + 1})" if mark else ""
        source.problems = [(mark.line + 1 if mark else 1, f"not valid YAML: {error.problem}{where}{hint}")]
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        source.problems = [(line, f"not valid YAML: the character {chr(error.character)!r} is not allowed")]
    return source


def write(value: Value) -> str:
    """One line of YAML that :func:`read` turns into ``value`` again."""
    text = yaml.dump(
        value, Dumper=_Dumper, default_flow_style=True, allow_unicode=True, width=math.inf, sort_keys=False
    )
    return text.removesuffix("\n").removesuffix("\n...")


def _construct(loader: _Loader, node: yaml.Node, path: Path, source: Source) -> Value:
    line = node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        return _construct_mapping(loader, node, path, source)
    if isinstance(node, yaml.SequenceNode):
        return [_construct(loader, item, path, source) for item in node.value]
    value = loader.construct_object(node)
    # Tags are refused, so only what _SCALARS covers comes out. JSON, by which the schema is checked, has no infinity.
    if isinstance(value, float) and not math.isfinite(value):
        source.problems.append((line, f"{'.'.join(path)}: {node.value} is not a finite number"))
        return None
    return value


def _construct_mapping(loader: _Loader, node: yaml.MappingNode, path: Path, source: Source) -> dict[str, Value]:
    values: dict[str, Value] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            source.problems.append((line, "a key must be a word, not a list or a mapping"))
            continue
        here = (*path, key_node.value)
        if key_node.value in values:
            first = source.lines[here]
            source.problems.append((line, f"{'.'.join(here)}: given twice, first on line {first}; delete one of them"))
            continue
        source.lines[here] = line
        values[key_node.value] = _construct(loader, value_node, here, source)
    return values
