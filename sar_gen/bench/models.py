"""What a bench is run on: the chosen checkpoint, or a Stable Diffusion XL of random weights."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

from sar_gen.settings import Settings

Size = Literal["full", "tiny"]


def measured(settings: Settings, size: Size | None, place: Path) -> Settings:
    """Return settings whose ``checkpoint`` is what is measured.

    Args:
        settings: device and checkpoint.
        size: of an SDXL of random weights, made in ``place`` where it is not there yet: pictures are noise, and cost
            what real ones do. ``None`` leaves the checkpoint.
        place: folder that holds ``checkpoints`` and the studio's home of the run.
    """
    made = place / "checkpoints"
    found = dataclasses.replace(settings, home=place / "home", checkpoint_folders=(*settings.checkpoint_folders, made))
    made.mkdir(parents=True, exist_ok=True)
    if size is None:
        return found
    from sar_gen.pipelines import resolve_device
    from sar_gen.training.sdxl_random import make_sdxl

    name = f"sdxl-random-{size}"
    if not (made / name / "model_index.json").is_file():
        make_sdxl(made / name, size, device=resolve_device(settings.device))
    return dataclasses.replace(found, checkpoint=name)
