import json
from pathlib import Path

import pytest

from nt_pretrain.config.errors import ConfigErrors
from nt_pretrain.methods.manifest import NAME, Ensemble, Member, read_ensemble, write_ensemble

ENSEMBLE = Ensemble(
    method={"name": "prune_and_tune"},
    combiner="probability",
    members=[Member("a", "members/a", 4, "0" * 64, None, {"part": [0, 2]}), Member("b", "members/b", 8, "1" * 64, [1])],
    others=[Member("parent", "members/parent", 2, "2" * 64)],
)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = write_ensemble(tmp_path, ENSEMBLE)
    assert path == tmp_path / NAME and read_ensemble(path) == ENSEMBLE
    assert sorted(each.name for each in tmp_path.iterdir()) == [NAME]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": 9}, "format 9"),
        ({"members": [{"name": "a"}]}, "missing"),
        ({"combiner": None, "members": 3}, "of another kind"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, change: dict[str, object], words: str) -> None:
    path = write_ensemble(tmp_path, ENSEMBLE)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ConfigErrors, match=words):
        read_ensemble(path)


def test_a_missing_or_damaged_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigErrors, match="there is no such ensemble"):
        read_ensemble(tmp_path / NAME)
    (tmp_path / NAME).write_text("{")
    with pytest.raises(ConfigErrors, match="no readable JSON"):
        read_ensemble(tmp_path / NAME)


def test_two_members_of_one_name_are_refused(tmp_path: Path) -> None:
    path = write_ensemble(tmp_path, Ensemble({}, "logit", [ENSEMBLE.members[0]] * 2))
    with pytest.raises(ConfigErrors, match="a name of its own"):
        read_ensemble(path)
