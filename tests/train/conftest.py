from pathlib import Path

import pytest

from launch.prepare import main
from tests.data.photos import write_classes


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some small pictures of each of ``photos.CLASSES``, prepared."""
    folder = tmp_path_factory.mktemp("pictures")
    write_classes(folder / "train", 12)
    write_classes(folder / "test", 4, seed=50)
    out = folder / "prepared"
    arguments = ["images", str(folder / "train"), "--validation", str(folder / "test"), "--out", str(out)]
    assert main([*arguments, "--workers", "1"]) == 0
    return out
