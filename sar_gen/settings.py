"""Paths, device and limits. Every field can be set with ``SAR_GEN_<FIELD>`` in the environment."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sar_gen.errors import InputError

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Settings:
    """Where things are and how much is allowed.

    Attributes:
        home: the user's own additions (checkpoints, references).
        runs: where runs are written.
        checkpoints: embedded checkpoints, one diffusers folder each, with its ``card.toml``.
        checkpoint_folders: further folders that hold checkpoint folders, such as where training writes; in the
            environment separated as in ``PATH`` (``:``, on Windows ``;``).
        assets: palettes, presets, reference statistics.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        checkpoint: id of the checkpoint that is chosen at start.
        max_pixels: largest image that is read, in pixels.
        max_count: most patches in one request.
        max_side: largest side of a generated patch, in pixels.
    """

    home: Path = Path.home() / ".sar-studio"
    runs: Path = ROOT / "outputs"
    checkpoints: Path = ROOT / "checkpoints"
    checkpoint_folders: tuple[Path, ...] = ()
    assets: Path = ROOT / "assets"
    device: str = "auto"
    checkpoint: str = "sar-mini"
    max_pixels: int = 100_000_000
    max_count: int = 64
    max_side: int = 4096

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Settings:
        """Return the defaults, overridden by ``SAR_GEN_<FIELD>`` variables.

        Raises:
            InputError: a number is not a positive whole number.
        """
        environ = os.environ if environ is None else environ
        values: dict[str, object] = {}
        for field in dataclasses.fields(cls):
            name = f"SAR_GEN_{field.name.upper()}"
            text = environ.get(name)
            if not text:
                continue
            if isinstance(field.default, tuple):
                parts = [part for part in text.split(os.pathsep) if part.strip()]
                values[field.name] = tuple(Path(part.strip()).expanduser().resolve() for part in parts)
            elif isinstance(field.default, Path):
                values[field.name] = Path(text).expanduser().resolve()
            elif isinstance(field.default, int):
                if not text.isdigit() or int(text) < 1:
                    raise InputError(f"{name} is {text!r}; set it to a whole number of 1 or more.")
                values[field.name] = int(text)
            else:
                values[field.name] = text
        return cls(**values)  # type: ignore[arg-type]
