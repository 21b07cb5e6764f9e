import os

# Before any library reads it: tests never reach for a network.
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest

from sar_gen.settings import Settings


@pytest.fixture
def settings(tmp_path):
    """Settings with a home and a runs folder of their own."""
    return Settings(home=tmp_path / "home", runs=tmp_path / "runs", device="cpu")
