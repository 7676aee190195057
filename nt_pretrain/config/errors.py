"""What is wrong with a configuration, all of it at once."""

from __future__ import annotations


class ConfigErrors(ValueError):
    """Everything that is wrong with a configuration; ``str()`` is the whole message for people.

    Attributes:
        problems: one line each, e.g. ``configs/x.yaml:12: model.hiden: unknown key; did you mean model.hidden?``
    """

    def __init__(self, problems: list[str]) -> None:
        assert problems, "a configuration without problems is no error"
        self.problems = list(problems)
        count = "1 error" if len(problems) == 1 else f"{len(problems)} errors"
        super().__init__("\n  ".join([f"{count} in the configuration:", *problems]))
