"""Code that a page shows is the code of the program."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"<!-- source: (\S+) -->\n```python\n(.*?)```", re.DOTALL)
SHOWN = [(page, *each) for page in sorted((ROOT / "docs").glob("*.md")) for each in BLOCK.findall(page.read_text())]


@pytest.mark.parametrize(("page", "path", "code"), SHOWN, ids=[f"{page.name}-{path}" for page, path, _ in SHOWN])
def test_shown_code_is_the_source(page: Path, path: str, code: str) -> None:
    assert code in (ROOT / path).read_text(), f"{page.name} shows what {path} does not say; copy it again"


def test_the_walk_through_a_method_shows_one_whole_file_of_less_than_sixty_lines() -> None:
    shown = {path: code for page, path, code in SHOWN if page.name == "ADD_A_METHOD.md"}
    whole = [path for path, code in shown.items() if code == (ROOT / path).read_text()]
    assert whole == ["nt_pretrain/methods/independent.py"]
    assert len(shown[whole[0]].splitlines()) < 60
