"""A YAML file and overrides from the command line to a :class:`~nt_pretrain.config.schema.Config`, and back to text.

Everything that is wrong is said at once, each with its place: ``file:line`` or ``command line``.
"""

from __future__ import annotations

import json
import pathlib
from typing import Any

from pydantic import ValidationError

from nt_pretrain.config import allowed, source
from nt_pretrain.config.errors import ConfigErrors
from nt_pretrain.config.schema import Config
from nt_pretrain.config.source import Path, Source
from nt_pretrain.config.suggest import closest, closest_key

COMMAND_LINE = "command line"


class _Places:
    """Where each value was given, and the problems found so far with the order in which they shall be told."""

    def __init__(self, file: str, lines: dict[Path, int]) -> None:
        self.file, self.lines = file, lines
        self.overridden: set[Path] = set()
        self.found: list[tuple[int, str]] = []

    def in_file(self, line: int, text: str) -> None:
        self.found.append((line, f"{self.file}:{line}: {text}"))

    def on_command_line(self, text: str) -> None:
        # After all lines of the file.
        self.found.append((2**31, f"{COMMAND_LINE}: {text}"))

    def at(self, path: Path, text: str) -> None:
        """A problem with the value at ``path``, or with the innermost mapping around it whose place is known."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.overridden:
                return self.on_command_line(text)
            if path[:length] in self.lines:
                return self.in_file(self.lines[path[:length]], text)
        return self.in_file(1, text)

    def messages(self) -> list[str]:
        # A key that is given twice may be wrong twice; sorted() keeps the order within a line.
        return list(dict.fromkeys(text for _, text in sorted(self.found, key=lambda each: each[0])))


def load_config(path: str | pathlib.Path, overrides: list[str]) -> Config:
    """The configuration in the YAML file ``path``, with ``section.key=value`` overrides applied in order.

    Values of overrides are YAML as well; the last override of a key counts.

    Raises:
        ConfigErrors: the file cannot be read, or anything in it or in the overrides is wrong. Checks that concern more
            than one option are made by :mod:`nt_pretrain.config.checks`.
    """
    text = _text_of(pathlib.Path(path))
    read = source.read(text)
    places = _Places(str(path), read.lines)
    for line, problem in read.problems:
        places.in_file(line, problem)
    values = _top_level(read, places)
    for override in overrides:
        _apply(override, values, places)
    config = _validate(values, places)
    if config is None:
        raise ConfigErrors(places.messages())
    return config


def to_yaml(config: Config) -> str:
    """The whole configuration, defaults included, as YAML that :func:`load_config` reads back to an equal one."""
    lines = []
    for section, values in config.model_dump(mode="json").items():
        lines.append(f"{section}:")
        lines += [f"  {key}: {source.write(value)}" for key, value in values.items()]
    return "\n".join(lines) + "\n"


def difference(config: Config) -> list[str]:
    """``section.key = value (default ...)`` for every option that is not at its default."""
    default = Config().model_dump(mode="json")
    return [
        f"{section}.{key} = {source.write(value)} (default {source.write(default[section][key])})"
        for section, values in config.model_dump(mode="json").items()
        for key, value in values.items()
        if value != default[section][key]
    ]


def _text_of(path: pathlib.Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        names = [str(each) for each in sorted(path.parent.glob("*.yaml"))] if path.parent.is_dir() else []
        near = closest(path.stem, [pathlib.Path(each).stem for each in names])
        others = f"; there are: {', '.join(names)}" if names else ""
        hint = f"; did you mean {path.parent / near}.yaml?" if near else others
        raise ConfigErrors([f"{path}: there is no such file{hint}"]) from None
    except IsADirectoryError:
        raise ConfigErrors([f"{path}: is a folder; name a YAML file, such as configs/demo.yaml"]) from None
    except UnicodeDecodeError as error:
        raise ConfigErrors([f"{path}: is not UTF-8 text (byte {error.start})"]) from None
    except OSError as error:
        raise ConfigErrors([f"{path}: cannot be read: {error.strerror}"]) from None


def _top_level(read: Source, places: _Places) -> dict[str, Any]:
    """The sections of the file; an empty section is one of defaults."""
    if read.value is None and not read.problems:
        places.in_file(1, f"the file is empty; a run is described by the sections {', '.join(allowed.sections())}")
    if read.value is not None and not isinstance(read.value, dict):
        places.in_file(1, f"must consist of sections ({', '.join(allowed.sections())}), each with lines 'key: value'")
    values = read.value if isinstance(read.value, dict) else {}
    return {section: {} if value is None else value for section, value in values.items()}


def _apply(override: str, values: dict[str, Any], places: _Places) -> None:
    """Put ``section.key=value`` into ``values``; what is not an option is a problem and changes nothing."""
    dotted, equals, text = override.partition("=")
    path = tuple(dotted.split("."))
    if not equals or not dotted:
        places.on_command_line(f"{override!r} is not of the form section.key=value")
        return
    try:
        allowed.entry(path)
    except (KeyError, IndexError):
        places.on_command_line(_unknown(path))
        return
    read = source.read(text)
    if read.problems:
        places.on_command_line(f"{dotted}: {read.problems[0][1]}")
        return
    inside = values
    for key in path[:-1]:
        inside = inside.setdefault(key, {})
        if not isinstance(inside, dict):
            # The file has a plain value where a section belongs. That is told, and there is nothing to put this into.
            return
    inside[path[-1]] = text if allowed.is_text(path) and isinstance(read.value, int | float) else read.value
    places.overridden = {each for each in places.overridden if each[: len(path)] != path} | {path}
    for each in [each for each in places.lines if each[: len(path)] == path]:
        del places.lines[each]


def _validate(values: dict[str, Any], places: _Places) -> Config | None:
    """The configuration, or None when there are problems, which then stand in ``places``."""
    config = None
    try:
        # JSON in strict mode is what a person means: no "8" for a number, no true for 1, lists for tuples.
        config = Config.model_validate_json(json.dumps(values), strict=True)
    except ValidationError as errors:
        for error in errors.errors(include_url=False):
            path = tuple(str(each) for each in error["loc"] if each != "[key]")
            bad_name = "[key]" in error["loc"] and allowed.has_free_names(path[:2])
            places.at(path, _bad_name(path) if bad_name else _message(path, error["type"], error["input"]))
    return None if places.found else config


def _message(path: Path, kind: str, value: Any) -> str:
    if len(path) == 1 and path[0] in allowed.sections():
        return f"{path[0]}: must be a section with lines 'key: value' below it, not {source.write(value)}"
    if kind == "extra_forbidden" or len(path) == 1:
        return _unknown(path)
    option = path if len(path) == 2 or allowed.is_mapping(path[:2]) else path[:2]
    try:
        words = allowed.in_words(option)
    except KeyError:
        return _unknown(path)
    # Of a list that is too short pydantic names the first missing place, and gives the list.
    index = "" if kind == "missing" else "".join(f"[{each}]" for each in path[len(option) :])
    name = ".".join(option) + index
    return f"{name}: {source.write(value)} is not allowed; it must be {words}{_hint(option, value)}"


def _bad_name(path: Path) -> str:
    return f"{'.'.join(path[:2])}: {path[-1]!r} is not allowed there; it must be {allowed.in_words(path[:2])}"


def _hint(option: Path, value: Any) -> str:
    """What to write instead, where that can be guessed."""
    kinds = {each.get("type") for each in (allowed.entry(option).get("anyOf") or [allowed.entry(option)])}
    if isinstance(value, float) and value.is_integer() and "integer" in kinds:
        return f"; write {int(value)}"
    if isinstance(value, str) and value.lower() in ("on", "yes", "off", "no") and "boolean" in kinds:
        return f"; write {'true' if value.lower() in ('on', 'yes') else 'false'}"
    if isinstance(value, int | float) and "string" in kinds and not allowed.choices(option):
        return f'; write "{value}" in quotes'
    near = closest(value, map(str, allowed.choices(option))) if isinstance(value, str) else None
    return f"; did you mean {near}?" if near else ""


def _unknown(path: Path) -> str:
    name = ".".join(path)
    sections = allowed.sections()
    if name in sections:
        return f"{name}: is a section; write {name}.KEY=value"
    if len(path) == 1 and (near := closest(name, sections)):
        return f"{name}: unknown section; did you mean {near}?"
    near = closest_key(name, allowed.known_keys())
    if near:
        return f"{name}: unknown key; did you mean {near}?"
    if path[0] in sections and len(path) > 1:
        return f"{name}: unknown key; {path[0]} has {', '.join(sections[path[0]])}"
    return f"{name}: unknown section; there are {', '.join(sections)}"
