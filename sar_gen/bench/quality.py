"""What judging costs beside the plain way: SciPy and scikit-image as their manuals show them, on the same patches.

The plain way computes the same measures where those libraries have them, and no floors, K and G0 laws or speckle
correlation, which they lack: its ratio flatters it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sar_gen.bench.timing import Bench, alternate
from sar_gen.comparison import patch_rows, pooled_fits
from sar_gen.quality.distribution import BINS
from sar_gen.quality.report import compare
from sar_gen.quality.speckle import WINDOW
from sar_gen.quality.spectrum import ANGULAR_BINS, RADIAL_BINS
from sar_gen.quality.statistics import patch_statistics
from sar_gen.quality.texture import ANGLES, DISTANCES, GLCM_NAMES, LEVELS, MAP_WINDOW, glcm_maps
from sar_gen.references import load_reference
from sar_gen.settings import Settings

LAW_PIXELS = 65_536
MAP_SIDE = 48
"""The plain way to a local GLCM map takes a matrix a pixel: 17 minutes for 1024 x 1024."""


def bench_quality(settings: Settings, small: int = 64, large: int = 1024, rounds: int = 3) -> tuple[Bench, ...]:
    """Time one large patch against a stored reference, ``small`` patches of 256 x 256, and a local GLCM map.

    The patches are Gamma speckle of four looks on textured ground; what they show does not change what they cost.
    """
    rng = np.random.default_rng(0)
    reference = load_reference("s1-forest", settings)
    one, many = _field(rng, large), [_field(rng, 256) for _ in range(small)]
    real = rng.choice(
        (np.arange(BINS) + 0.5) / BINS, one.size, p=(counts := reference.statistics.histograms.sum(0)) / counts.sum()
    )

    def ours() -> None:
        statistics = patch_statistics([one])
        compare(statistics, reference.statistics, reference_name=reference.name)
        patch_rows(statistics, reference.statistics, ["one"])
        pooled_fits(statistics)

    def plain() -> None:
        _plain_statistics(one)
        _plain_distances(one, real)
        _plain_fits(one, rng)

    crop = one[:MAP_SIDE, :MAP_SIDE]
    return (
        alternate(
            f"One patch of {large} x {large} against {reference.name} ({len(reference.statistics)} patches): "
            "measures, floors, laws",
            {"SciPy, scikit-image (no floors, no K, no G0)": plain, "studio, with floors and all laws": ours},
            rounds,
        ),
        alternate(
            f"Statistics of {small} patches of 256 x 256",
            {
                "SciPy, scikit-image": lambda: [_plain_statistics(patch) for patch in many],
                "studio": lambda: patch_statistics(many),
            },
            rounds,
        ),
        alternate(
            f"Local GLCM map of {MAP_SIDE} x {MAP_SIDE} pixels, windows of {MAP_WINDOW}",
            {"scikit-image, a matrix a window": lambda: _plain_map(crop), "studio": lambda: glcm_maps(crop)},
            rounds,
        ),
    )


def _field(rng: np.random.Generator, side: int) -> NDArray[np.float32]:
    from scipy.ndimage import gaussian_filter

    ground = np.exp(gaussian_filter(rng.normal(size=(side, side)), 8) * 8)
    return np.clip(0.2 * np.sqrt(ground * rng.gamma(4, 1 / 4, (side, side))), 0, 1).astype(np.float32)


def _plain_statistics(amplitude: NDArray[np.float32]) -> dict[str, Any]:
    """Return what ``patch_statistics`` keeps, without the speckle correlation."""
    from scipy.ndimage import uniform_filter
    from scipy.stats import gaussian_kde
    from skimage.feature import graycomatrix, graycoprops

    grey = np.minimum(amplitude * LEVELS, LEVELS - 1).astype(np.uint8)
    matrix = graycomatrix(grey, DISTANCES, ANGLES, levels=LEVELS, symmetric=True, normed=True)
    intensity = amplitude.astype(np.float64) ** 2
    mean = uniform_filter(intensity, WINDOW)
    variance = uniform_filter(intensity**2, WINDOW) - mean**2
    looks = (mean**2 / np.maximum(variance, 1e-12)).ravel()[:: WINDOW**2]
    axis = np.linspace(0, np.percentile(looks, 99.5), 512)
    relative = amplitude / amplitude.mean()
    window = np.outer(np.hanning(amplitude.shape[0]), np.hanning(amplitude.shape[1]))
    power = np.abs(np.fft.fft2((relative - relative.mean()) * window)) ** 2
    down, right = (np.fft.fftfreq(side) for side in amplitude.shape)
    frequency = np.hypot(down[:, None], right[None])
    angle = np.degrees(np.arctan2(down[:, None], right[None])) % 180
    return {
        "histogram": np.histogram(amplitude, bins=BINS, range=(0, 1))[0],
        "glcm": [graycoprops(matrix, "ASM" if name == "asm" else name) for name in GLCM_NAMES],
        "enl": axis[gaussian_kde(looks)(axis).argmax()],
        "radial": np.histogram(frequency, RADIAL_BINS, (0, 0.5), weights=power)[0],
        "angular": np.histogram(angle, ANGULAR_BINS, (0, 180), weights=power)[0],
    }


def _plain_distances(made: NDArray[np.float32], real: NDArray[np.float64]) -> None:
    from scipy.spatial.distance import jensenshannon
    from scipy.stats import entropy, ks_2samp, wasserstein_distance

    made = made.ravel()
    wasserstein_distance(made, real)
    ks_2samp(made, real)
    counts = [np.histogram(values, bins=64, range=(0, 1))[0] + 1e-6 for values in (made, real)]
    jensenshannon(*counts, base=2)
    entropy(counts[1], counts[0])


def _plain_fits(amplitude: NDArray[np.float32], rng: np.random.Generator) -> None:
    from scipy import stats

    pixels = rng.choice(amplitude.ravel(), min(LAW_PIXELS, amplitude.size), replace=False)
    pixels = pixels[(pixels > 0) & (pixels < 1)].astype(np.float64)
    for law in (stats.rayleigh, stats.nakagami, stats.lognorm, stats.weibull_min):
        parameters = law.fit(pixels, floc=0)
        law.logpdf(pixels, *parameters).sum()
        stats.kstest(pixels, law.cdf, args=parameters)


def _plain_map(amplitude: NDArray[np.float32], names: Sequence[str] = GLCM_NAMES[:3]) -> NDArray[np.float64]:
    from skimage.feature import graycomatrix, graycoprops

    grey = np.minimum(amplitude * LEVELS, LEVELS - 1).astype(np.uint8)
    windows = np.lib.stride_tricks.sliding_window_view(grey, (MAP_WINDOW, MAP_WINDOW))
    found = np.empty((len(names), *windows.shape[:2]))
    for row, column in np.ndindex(*windows.shape[:2]):
        matrix = graycomatrix(windows[row, column], [1], ANGLES, levels=LEVELS, symmetric=True, normed=True)
        found[:, row, column] = [graycoprops(matrix, name).mean() for name in names]
    return found
