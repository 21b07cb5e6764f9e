"""What a pixel means: normalised linear amplitude, decibels, quantisation and the views shown on screen.

The studio's amplitude is float32 ``(height, width)``: linear amplitude divided by (mean + 3 std) and clipped to [0, 1]
(arXiv 2506.13307). Mean and standard deviation are one pair for a whole reference set or acquisition, never one for
each patch: that would erase brightness and change every distance. Every measure is computed on amplitude, none on a
view.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sar_gen.errors import InputError

AmplitudeEncoding = Literal["linear", "db", "unknown"]
"""How float values in [0, 1] relate to the signal; ``linear`` is the studio's amplitude."""

ModelEncoding = Literal["linear", "root", "db"]
MODEL_ENCODINGS: dict[ModelEncoding, str] = {
    "linear": "the studio's amplitude itself",
    "root": "its square root",
    "db": "its decibels, -30 to 0 dB",
}
"""The greys that a model may work on inside; the engine gives linear amplitude for each of them."""
MODEL_FLOOR_DB = -30.0
"""Decibels (20 log10 of the studio's amplitude) that are grey 0 in the ``db`` model encoding."""


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


def to_model(amplitude: Any, encoding: str) -> Any:
    """Return the grey that a model of this encoding works on, for the studio's amplitude.

    ``linear``: g = a. ``root``: g = sqrt(a). ``db``: g = 1 + 20 log10(max(a, 10^(-30/20))) / 30, so that -30 to 0 dB
    lie on 0 to 1; all below -30 dB (amplitude 0.0316) is grey 0.

    Args:
        amplitude: numpy array (or what becomes one) or torch tensor of any shape; values outside [0, 1] are clipped.
        encoding: a name of ``MODEL_ENCODINGS``.

    Returns:
        float32 of the same kind and shape, in [0, 1]; a tensor stays on its device and keeps its gradient.

    Raises:
        InputError: the encoding is unknown.
    """
    check_model_encoding(encoding)
    values, library = _unit_float32(amplitude)
    if encoding == "root":
        return library.sqrt(values)
    if encoding == "db":
        decibels = 20.0 * library.log10(values.clip(10.0 ** (MODEL_FLOOR_DB / 20.0), None))
        return (1.0 - decibels / MODEL_FLOOR_DB).clip(0.0, 1.0)
    return values


def from_model(grey: Any, encoding: str) -> Any:
    """Return the studio's amplitude for the grey that a model of this encoding made; the inverse of ``to_model``.

    ``linear``: a = g. ``root``: a = g^2. ``db``: a = 10^(30 (g - 1) / 20), continuous down to grey 0, which gives
    10^(-30/20) = 0.0316 and not 0: a jump there would turn the decoder's smallest ripple at black into a step of
    0.03. So amplitude comes back exactly (to rounding) from ``linear`` and ``root``; from ``db`` as max(a, 0.0316).

    Args:
        grey: numpy array (or what becomes one) or torch tensor of any shape; values outside [0, 1] are clipped.
        encoding: a name of ``MODEL_ENCODINGS``.

    Returns:
        float32 of the same kind and shape, in [0, 1]; a tensor stays on its device and keeps its gradient.

    Raises:
        InputError: the encoding is unknown.
    """
    check_model_encoding(encoding)
    values, library = _unit_float32(grey)
    if encoding == "root":
        return values * values
    if encoding == "db":
        # exp of a float32 array: numpy would widen 10.0 ** array in some versions, torch takes no plain number
        return library.exp((1.0 - values) * (MODEL_FLOOR_DB / 20.0 * float(np.log(10.0))))
    return values


def check_model_encoding(encoding: str) -> None:
    """Check the name of a model encoding.

    Raises:
        InputError: it is unknown.
    """
    if encoding not in MODEL_ENCODINGS:
        raise InputError(f"The model encoding {encoding!r} is unknown; choose one of {', '.join(MODEL_ENCODINGS)}.")


def _unit_float32(values: Any) -> tuple[Any, Any]:
    """Return values clipped to [0, 1] in float32 and the library (numpy or torch) whose functions take them."""
    torch = sys.modules.get("torch")  # whoever has a tensor has imported it
    if torch is not None and isinstance(values, torch.Tensor):
        return values.float().clip(0.0, 1.0), torch
    return np.clip(np.asarray(values, dtype=np.float32), 0.0, 1.0), np


def grey_picture(amplitude: NDArray[Any]) -> NDArray[np.uint8]:
    """Return amplitude as a picture of three equal channels, ``(height, width, 3)`` uint8."""
    return np.repeat(quantise(amplitude)[..., None], 3, axis=2)


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
