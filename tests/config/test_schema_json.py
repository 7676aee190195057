"""The schema for editors is the schema."""

from __future__ import annotations

from pathlib import Path

from nt_pretrain.config.schema_json import text, write

FILE = Path(__file__).resolve().parents[2] / "configs" / "schema.json"


def test_the_file_is_fresh() -> None:
    assert FILE.read_text(encoding="utf-8") == text(), (
        "configs/schema.json is older than nt_pretrain/config/schema.py; make it anew: .venv/bin/python -c "
        "\"from nt_pretrain.config.schema_json import write; write('configs/schema.json')\""
    )


def test_write(tmp_path: Path) -> None:
    write(tmp_path / "schema.json")
    assert (tmp_path / "schema.json").read_text(encoding="utf-8") == text()
