from pathlib import Path

import pytest

from launch.prepare import main


@pytest.fixture(scope="session")
def synth(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The made-up task of rows, prepared."""
    folder = tmp_path_factory.mktemp("synth")
    assert main(["synth", "--out", str(folder)]) == 0
    return folder
