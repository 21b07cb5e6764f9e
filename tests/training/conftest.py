"""A tiny base and a tiny data set on disk: what a training run needs, in a second."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sar_gen.settings import Settings
from sar_gen.training.config import TrainingConfig, check_config
from sar_gen.training.manifest import PatchRow, write_manifest
from tests import tiny

SIDE = 64


@dataclass(frozen=True)
class Place:
    """Settings whose catalogue has the tiny base ``base``, and the folder of a data set."""

    settings: Settings
    data: Path

    def config(self, strategy: str, name: str | None = None, **tables) -> TrainingConfig:
        """Return a run of two patches a step; tables override single values."""
        output = self.settings.checkpoints / (name or strategy.replace("+", "-"))
        defaults = {
            "base": "base",
            "strategy": strategy,
            "output": str(output),
            "data": {"manifest": str(self.data / "manifest.jsonl"), "batch": 2},
            "denoiser": {"steps": 4, "learning_rate": 1e-3},
            "run": {"save_type": "float32", "save_every": 2},
        }
        table = {key: value for key, value in tables.items() if not isinstance(value, dict)}
        for key in {*defaults, *tables}:
            default, own = defaults.get(key), tables.get(key)
            table[key] = {**(default or {}), **own} if isinstance(own, dict) else own if own is not None else default
        return check_config(table, TrainingConfig, "test")


def write_data(folder: Path, patches: int = 8, side: int = SIDE, optical: bool = False) -> None:
    """Write square-root Gamma speckle of four looks, bright forest and dark farmland, with a manifest.

    With ``optical`` each patch has a dark half (the left one of patches of even number) in SAR and in optical grey.
    """
    random = np.random.default_rng(0)
    rows = []
    for split, count in (("train", patches), ("validation", 4), ("reference", 4)):
        for i in range(count):
            terrain = ("forest", "agriculture")[i % 2]
            level = 0.4 if terrain == "forest" else 0.15
            amplitude = np.clip(level * np.sqrt(random.gamma(4, 1 / 4, (side, side))), 0, 1)
            key = f"{split}-{i}"
            picture = None
            if optical:
                half = slice(0, side // 2) if i % 2 == 0 else slice(side // 2, side)
                amplitude[:, half] *= 0.3
                grey = random.integers(120, 140, (side, side), dtype=np.uint8)
                grey[:, half] = 40
                picture = f"optical/{key}.png"
                (folder / "optical").mkdir(parents=True, exist_ok=True)
                Image.fromarray(grey).save(folder / picture)
            (folder / "patches").mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.rint(amplitude * 65535).astype(np.uint16)).save(folder / "patches" / f"{key}.png")
            captions = (f"a SAR image of {terrain}", f"a radar image of {terrain}, VV")
            rows.append(
                PatchRow(
                    key,
                    f"patches/{key}.png",
                    side,
                    side,
                    split,
                    key,
                    captions,
                    terrain,
                    "VV",
                    source=f"{key}.png",
                    optical=picture,
                )
            )
    write_manifest(folder / "manifest.jsonl", rows)


@pytest.fixture
def place(tmp_path):
    tiny.checkpoint(tmp_path / "checkpoints" / "base")
    write_data(tmp_path / "data")
    settings = Settings(
        home=tmp_path / "home", runs=tmp_path / "runs", checkpoints=tmp_path / "checkpoints", device="cpu"
    )
    return Place(settings, tmp_path / "data")
