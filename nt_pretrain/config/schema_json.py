"""The JSON schema of configurations, for editors: ``configs/schema.json``.

The first line of each file in ``configs/`` names it, so that an editor with a YAML language server completes keys,
shows their meaning and underlines mistakes. A test fails when the file is older than the schema.
"""

from __future__ import annotations

import json
from pathlib import Path

from nt_pretrain.config.allowed import json_schema


def text() -> str:
    """Contents of ``configs/schema.json``."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **json_schema()}
    return json.dumps(schema, indent=2) + "\n"


def write(path: str | Path) -> None:
    """Write the JSON schema to ``path``."""
    Path(path).write_text(text(), encoding="utf-8")
