"""What each option accepts, in words, read from the schema itself so that messages cannot fall behind it."""

from __future__ import annotations

from functools import cache
from typing import Any

from nt_pretrain.config.schema import Config
from nt_pretrain.config.source import Path, write


@cache
def json_schema() -> dict[str, Any]:
    """JSON schema of :class:`~nt_pretrain.config.schema.Config`."""
    return Config.model_json_schema()


def sections() -> dict[str, list[str]]:
    """Section name to its keys, both in the order of the schema."""
    return {name: list(model.model_fields) for name, model in section_models().items()}


def section_models() -> dict[str, Any]:
    """Section name to its pydantic model."""
    return {name: field.annotation for name, field in Config.model_fields.items()}


def known_keys() -> list[str]:
    """Every ``section.key``, and ``section.key.entry`` where a key is itself a mapping."""
    keys = []
    for section, names in sections().items():
        for name in names:
            keys.append(f"{section}.{name}")
            keys += [f"{section}.{name}.{each}" for each in _fixed_names(entry((section, name)))]
    return keys


def entry(path: Path) -> dict[str, Any]:
    """JSON schema of one option.

    Raises:
        KeyError: there is none.
    """
    definition = json_schema()["properties"][path[0]]["$ref"].rsplit("/", 1)[1]
    found = json_schema()["$defs"][definition]["properties"][path[1]]
    for name in path[2:]:
        fixed = _fixed_names(found)
        if found.get("type") != "object" or (fixed and name not in fixed):
            raise KeyError(".".join(path))
        found = _inside(found)
    return found


def has_free_names(path: Path) -> bool:
    """Whether the option at ``path`` is a mapping whose names are the user's own, such as ``data.sources``."""
    return is_mapping(path) and not _fixed_names(entry(path))


def is_mapping(path: Path) -> bool:
    """Whether the option at ``path`` is a mapping, such as ``sparsity.group_density``."""
    return entry(path).get("type") == "object"


def is_text(path: Path) -> bool:
    """Whether the option takes any text, so that ``run.name=350`` on a command line needs no quotes."""
    return entry(path).get("type") == "string" and not choices(path)


def in_words(path: Path) -> str:
    """What the option accepts, e.g. ``a number > 0 and <= 1 (default 1.0)``."""
    schema = entry(path)
    default = f" (default {write(schema['default'])})" if "default" in schema else ""
    return _words(schema) + default


def choices(path: Path) -> list[Any]:
    """The allowed values of an option that has a fixed list of them; empty for the others."""
    return entry(path).get("enum", [])


def _words(schema: dict[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(_words(each) for each in schema["anyOf"])
    if "enum" in schema:
        return "one of " + ", ".join(map(str, schema["enum"]))
    if "prefixItems" in schema:
        items = schema["prefixItems"]
        if all(item == items[0] for item in items):
            return f"a list of {len(items)}, each {_words(items[0])}"
        return f"a list of {len(items)}: {'; '.join(map(_words, items))}"
    if schema["type"] == "array":
        return f"a list, each {_words(schema['items'])}"
    if schema["type"] == "object":
        names = ", ".join(_fixed_names(schema)) or _free_names(schema)
        return f"a mapping of {names} to {_words(_inside(schema))}"
    nouns = {
        "integer": "a whole number",
        "number": "a number",
        "boolean": "true or false",
        "string": "text",
        "null": "null",
    }
    words = nouns[schema["type"]]
    bounds = {"minimum": ">=", "exclusiveMinimum": ">", "exclusiveMaximum": "<", "maximum": "<="}
    limits = [f"{sign} {schema[bound]:g}" for bound, sign in bounds.items() if bound in schema]
    pattern = f" of the form {schema['pattern']}" if "pattern" in schema else ""
    return words + (f" {' and '.join(limits)}" if limits else "") + pattern


def _fixed_names(schema: dict[str, Any]) -> list[str]:
    """The names that a mapping may have; empty where they are free, or where it is no mapping."""
    names: list[str] = schema.get("propertyNames", {}).get("enum", [])
    return names


def _free_names(schema: dict[str, Any]) -> str:
    return (
        f"names of the form {next(iter(schema['patternProperties']))}"
        if "patternProperties" in schema
        else "steps >= 2"
    )


def _inside(schema: dict[str, Any]) -> dict[str, Any]:
    """Schema of the values of a mapping."""
    values: dict[str, Any] = schema.get("additionalProperties") or next(iter(schema["patternProperties"].values()))
    return values
