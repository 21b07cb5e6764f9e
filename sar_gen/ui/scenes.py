"""Scenes that the training set does not hold, as class maps with a prompt: ``assets/guides/examples``."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sar_gen.settings import Settings


@dataclass(frozen=True)
class Scene:
    """One scene.

    Attributes:
        name: for people.
        prompt: that goes with it.
        file: the class map, a PNG in the studio's colours.
        kind: ``sketch``: it is laid into the editor; ``map``: too large for that, it is given as an image.
        why: why the training set does not hold it.
    """

    name: str
    prompt: str
    file: Path
    kind: str
    why: str

    def pixels(self) -> NDArray[np.uint8]:
        """Return the map, ``(height, width, 3)`` uint8."""
        with Image.open(self.file) as image:
            return np.asarray(image.convert("RGB"))


def load_scenes(settings: Settings) -> list[Scene]:
    """Return the scenes in the order in which they are shown."""
    folder = settings.assets / "guides" / "examples"
    rows = json.loads((folder / "examples.json").read_text(encoding="utf-8"))
    return [Scene(row["name"], row["prompt"], folder / row["file"], row["kind"], row["why"]) for row in rows]
