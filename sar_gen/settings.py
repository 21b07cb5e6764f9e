"""Paths, device and limits. Every field can be set with ``SAR_GEN_<FIELD>`` in the environment."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sar_gen.errors import InputError
from sar_gen.profiles import DEFAULT_PROFILE, profile

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
        profile: how fast and how exactly pictures are made, a name of ``profiles.PROFILES``.
        max_pixels: largest image that is read, in pixels.
        max_count: most patches in one request.
        max_cells: most cells in one grid.
        max_side: largest side of a generated patch, in pixels.
        keep_gb: most memory of the machine, in GB (1e9 bytes), for what is kept beside the checkpoint in use, so that
            going back to it is quick: parts of strategies and, on a CPU, other bases. 0 keeps nothing; half of what is
            free when left out.
        keep_gpu_gb: the same on a GPU, for other bases.
        backend: address of an engine elsewhere (``python -m sar_gen serve``) that generates in place of this machine;
            empty: none.
        backend_token: what it asks for, or, on the side that serves, what is asked for; empty: nothing.
    """

    home: Path = Path.home() / ".sar-studio"
    runs: Path = ROOT / "outputs"
    checkpoints: Path = ROOT / "checkpoints"
    checkpoint_folders: tuple[Path, ...] = ()
    assets: Path = ROOT / "assets"
    device: str = "auto"
    checkpoint: str = "sar-mini"
    profile: str = DEFAULT_PROFILE
    max_pixels: int = 100_000_000
    max_count: int = 64
    max_cells: int = 200
    max_side: int = 4096
    keep_gb: float | None = None
    keep_gpu_gb: float | None = None
    backend: str = ""
    backend_token: str = dataclasses.field(default="", repr=False)

    def here(self) -> Settings:
        """Return the settings without a backend: for what works with this machine's own checkpoints."""
        return dataclasses.replace(self, backend="")

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Settings:
        """Return the defaults, overridden by ``SAR_GEN_<FIELD>`` variables.

        Raises:
            InputError: there is no such profile; a number is not one, or negative; or not a positive whole number
                where it has to be.
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
            elif "float" in str(field.type):
                values[field.name] = _amount(name, text)
            else:
                values[field.name] = text
        if "profile" in values:
            profile(str(values["profile"]))
        return cls(**values)  # type: ignore[arg-type]


def _amount(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < math.inf:
        raise InputError(f"{name} is {text!r}; set it to a number of 0 or more, such as 2.5.")
    return value
