"""Fixtures that many tests share."""

import os
from pathlib import Path

import pytest

SHARED_DATA = Path(__file__).resolve().parent.parent.parent / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real tissue; a test that needs it skips where it is absent."""
    folder = Path(os.environ.get("GENERAG_SHARED_DATA", SHARED_DATA))
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} does not exist")
    return folder
