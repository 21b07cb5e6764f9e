"""What a pixel means: normalised linear amplitude, decibels, quantisation and the views shown on screen.

The studio's amplitude is float32 ``(height, width)``: linear amplitude divided by (mean + 3 std) and clipped to [0, 1]
(arXiv 2506.13307). Mean and standard deviation are one pair for a whole reference set or acquisition, never one for
each patch: that would erase brightness and change every distance. Every measure is computed on amplitude, none on a
view.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sar_gen.errors import InputError

AmplitudeEncoding = Literal["linear", "db", "unknown"]
"""How float values in [0, 1] relate to the signal; ``linear`` is the studio's amplitude."""


@dataclass(frozen=True)
class Scale:
    """The pair that brings linear amplitude to [0, 1].

    Attributes:
        mean: mean linear amplitude, in the unit of the values it is applied to.
        std: standard deviation of the same pixels.
        source: which pixels, and in which unit.
    """

    mean: float
    std: float
    source: str

    def __post_init__(self) -> None:
        if not (np.isfinite(self.mean) and np.isfinite(self.std) and self.std >= 0 and self.mean + 3 * self.std > 0):
            raise InputError(
                f"The scale (mean {self.mean}, standard deviation {self.std}) is not usable; "
                "give the mean and standard deviation of linear amplitude over a whole set of patches."
            )

    @property
    def peak(self) -> float:
        """The linear amplitude that becomes 1: mean + 3 std."""
        return self.mean + 3 * self.std

    def to_json(self) -> dict[str, Any]:
        """Return the scale as JSON data."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Scale:
        """Return the scale that ``to_json`` wrote.

        Raises:
            InputError: a field is missing or not a number.
        """
        try:
            return cls(float(data["mean"]), float(data["std"]), str(data.get("source", "")))
        except (KeyError, TypeError, ValueError) as error:
            raise InputError("The scale is not usable; it needs the numbers 'mean' and 'std'.") from error


# All pixels of the 1,704 train patches of SEN1-2 (8-bit, sigma0 of -25 to 0 dB over 0 to 255) as linear amplitude;
# the peak is 0.8205.
S1_VV = Scale(0.266341, 0.184718, "SEN1-2 train split, VV, sigma0 amplitude")
# The scenes carry no calibration: VH amplitudes are comparable with each other only.
S1_VH = Scale(110.1, 46.8, "Sentinel-1 GRD VH, 8-bit grey of the Los Angeles scenes, relative (uncalibrated)")


def pooled_scale(arrays: Iterable[ArrayLike], source: str) -> Scale:
    """Return one scale over all pixels of a set or an acquisition.

    Args:
        arrays: linear amplitudes of any shape, or complex signal, of which the modulus is taken.
        source: what the pixels are, for the record.

    Raises:
        InputError: there is no pixel, a value is not finite, or all are zero.
    """
    count = 0
    mean = 0.0
    spread = 0.0  # sum of squared deviations from the running mean (Chan, Golub, LeVeque 1979)
    for array in arrays:
        values = _real(array).astype(np.float64)
        if not values.size:
            continue
        own = float(values.mean())
        delta = own - mean
        total = count + values.size
        spread += float(np.square(values - own).sum()) + delta**2 * count * values.size / total
        mean += delta * values.size / total
        count = total
    if not count:
        raise InputError("There are no pixels to take a scale from; give at least one patch.")
    return Scale(mean, (spread / count) ** 0.5, source)


def normalise(values: ArrayLike, scale: Scale) -> NDArray[np.float32]:
    """Return linear amplitude (or the modulus of complex signal) as the studio's amplitude in [0, 1]."""
    return np.clip(_real(values).astype(np.float64) / scale.peak, 0, 1).astype(np.float32)


def _real(values: ArrayLike) -> NDArray[Any]:
    array = np.asarray(values)
    return np.abs(array) if np.iscomplexobj(array) else array


def db_to_linear(db: ArrayLike) -> NDArray[Any]:
    """Return linear amplitude of decibels of power (sigma0 in dB): ``10 ** (db / 20)``."""
    return np.power(10.0, np.asarray(db) / 20.0)


def linear_to_db(amplitude: ArrayLike, floor_db: float = -40.0) -> NDArray[Any]:
    """Return decibels of linear amplitude, ``20 log10``, not below ``floor_db``."""
    return 20.0 * np.log10(np.maximum(np.asarray(amplitude), 10.0 ** (floor_db / 20.0)))


def quantise(amplitude: ArrayLike, bits: Literal[8, 16] = 8) -> NDArray[Any]:
    """Return amplitude in [0, 1] rounded to the levels 0 to ``2**bits - 1`` (uint8 or uint16)."""
    top = 2**bits - 1
    levels = np.rint(np.clip(np.asarray(amplitude, dtype=np.float64), 0, 1) * top)
    return levels.astype(np.uint8 if bits == 8 else np.uint16)


def _linear(amplitude: NDArray[Any], _: float | None) -> NDArray[Any]:
    return amplitude * 255.0


def _db(amplitude: NDArray[Any], _: float | None, floor_db: float = -40.0) -> NDArray[Any]:
    return (linear_to_db(amplitude, floor_db) / -floor_db + 1.0) * 255.0


def _gamma(amplitude: NDArray[Any], _: float | None) -> NDArray[Any]:
    return np.sqrt(amplitude) * 255.0


def _density(
    amplitude: NDArray[Any], data_mean: float | None, dmin: float = 30.0, mmult: float = 40.0
) -> NDArray[Any]:
    """Logarithmic stretch as sarpy's ``remap.Density``: ``dmin`` at 0.8 of the mean, 255 at ``mmult`` times that."""
    mean = float(amplitude.mean()) if data_mean is None else data_mean
    if mean <= 0:
        return np.zeros(amplitude.shape)
    low = 0.8 * mean
    slope = (255.0 - dmin) / np.log10(mmult)
    return slope * np.log10(np.maximum(amplitude, 1e-5) / low) + dmin


@dataclass(frozen=True)
class View:
    """One display remap: its title, what it does, and grey values 0 to 255 of amplitude and data mean."""

    title: str
    summary: str
    remap: Callable[[NDArray[Any], float | None], NDArray[Any]]


VIEWS: dict[str, View] = {
    "linear": View("Linear", "amplitude 0 to 1 as black to white; exactly the quantised amplitude", _linear),
    "db": View("Decibels", "-40 to 0 dB as black to white", _db),
    "density": View("Density", "logarithmic stretch around the mean (sarpy's Density)", _density),
    "gamma": View("Gamma", "square root of amplitude: lifts the dark parts", _gamma),
}


def view(amplitude: ArrayLike, remap: str = "linear", data_mean: float | None = None) -> NDArray[np.uint8]:
    """Return an 8-bit picture of amplitude, to be looked at and never measured.

    Args:
        amplitude: ``(height, width)``, values in [0, 1].
        remap: a name from ``VIEWS``.
        data_mean: mean amplitude that data-dependent remaps use; share one so that several patches are shown alike.

    Raises:
        InputError: the remap is unknown.
    """
    if remap not in VIEWS:
        raise InputError(f"The view {remap!r} is unknown; choose one of {', '.join(VIEWS)}.")
    values = np.clip(np.asarray(amplitude, dtype=np.float64), 0, 1)
    return np.rint(np.clip(VIEWS[remap].remap(values, data_mean), 0, 255)).astype(np.uint8)
