"""A tiny checkpoint with a strategy, and plans for it: a set is made in a second or two."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from sar_gen.augment.plan import Plan
from sar_gen.settings import Settings
from sar_gen.training.config import check_config
from tests import tiny


@dataclass(frozen=True)
class Place:
    """Settings whose catalogue has the tiny base ``base`` with the strategy ``unet-lora``."""

    settings: Settings

    def plan(self, out: Path, **tables) -> Plan:
        """Return a plan of two classes; tables replace the defaults."""
        defaults = {
            "name": "tiny-set",
            "out": str(out),
            "checkpoint": "base",
            "seed": 50,
            "shards": 4,
            "prompts": ["a {style} of {place}", "{place}, {class}"],
            "vocabulary": {"style": ["SAR image", "radar image"]},
            "classes": [
                {"name": "forest", "count": 5, "vocabulary": {"place": ["trees", "a wood"]}},
                {"name": "Dry land", "count": 4, "vocabulary": {"place": ["sand"]}},
            ],
        }
        return check_config({**defaults, **tables}, Plan, "test.toml")


@pytest.fixture(scope="session")
def place(tmp_path_factory) -> Place:
    root = tmp_path_factory.mktemp("augment")
    base = tiny.checkpoint(root / "checkpoints" / "base", licence="Apache-2.0", credit=["Somebody, CC BY 4.0."])
    tiny.strategy_folder(root / "checkpoints" / "tuned", base, "unet-lora")
    return Place(Settings(home=root / "home", runs=root / "runs", checkpoints=root / "checkpoints", device="cpu"))


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    """A maker sets torch's threads; the other tests get theirs back."""
