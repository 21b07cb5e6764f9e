"""Measures in words: their names, and how a value reads beside what real patches differ by."""

from __future__ import annotations

from sar_gen.quality.report import Measure, QualityReport

NAMES = {
    "nearness": ("Nearness", "mean of the main measures, each in floors"),
    "wasserstein1": ("Wasserstein-1", "distance of the amplitude histograms"),
    "js_divergence": ("Jensen-Shannon", "divergence of the amplitude histograms"),
    "kl_divergence": ("Kullback-Leibler", "divergence of the amplitude histograms"),
    "ks_statistic": ("Kolmogorov-Smirnov", "largest gap of the cumulative histograms"),
    "glcm_contrast": ("GLCM contrast", "grey difference of neighbours, squared"),
    "glcm_dissimilarity": ("GLCM dissimilarity", "grey difference of neighbours"),
    "glcm_homogeneity": ("GLCM homogeneity", "how alike neighbours are"),
    "glcm_asm": ("GLCM ASM", "angular second moment: how uniform"),
    "glcm_energy": ("GLCM energy", "root of ASM"),
    "glcm_correlation": ("GLCM correlation", "how linear neighbours depend"),
    "glcm_entropy": ("GLCM entropy", "how random the texture is"),
    "enl": ("Looks (ENL)", "equivalent number of looks on homogeneous ground"),
    "speckle_correlation": ("Speckle correlation", "how neighbouring speckle depends on homogeneous ground"),
    "spectrum": ("Power spectrum", "distance of the power spectra over the size of structure"),
    "spectrum_direction": ("Spectrum by direction", "distance of the power spectra over direction"),
    "block_edges": ("Block edges", "grid of 8 x 8 pixels, as JPEG leaves it, beyond the real patches'"),
    "semantic": ("Prompt agreement", "1 - mean cosine of patches and prompt in SAR-CLIP's features"),
    "kernel_distance": ("Kernel distance", "MMD² of the sets in SAR-CLIP's features"),
    "density": ("Density", "generated patches near real ones in SAR-CLIP's features"),
    "coverage": ("Coverage", "share of real patches with a generated one near them"),
}
"""Title and meaning of the measures."""


def title_of(name: str) -> str:
    """Return the title of a measure; one that has none is called by its name."""
    return NAMES[name][0] if name in NAMES else name.replace("_", " ")


def meaning_of(name: str) -> str:
    """Return what a measure is, in a few words; empty where nothing is known of it."""
    return NAMES[name][1] if name in NAMES else ""


def reading(measure: Measure) -> tuple[str, str]:
    """Return ``(class, words)``: how a value compares with what real patches differ by.

    The class is ``good`` (within the real spread), ``fair`` (up to twice the floor), ``poor`` or ``none``.
    """
    if measure.value is None:
        return "none", "not measurable"
    if measure.floor is None or (measure.ratio is None and measure.floor_95 is None):
        return "none", "no floor"
    direction = ""
    if measure.relative is not None:
        direction = f", {abs(measure.relative):.0%} too {'high' if measure.relative > 0 else 'low'}"
    if measure.ratio is not None and measure.ratio <= 1:
        return "good", "as real to real"
    if measure.within:
        return "good", "within the real spread"
    if measure.ratio is not None and measure.ratio <= 2:
        return "fair", f"somewhat off{direction}"
    return "poor", f"off{direction}"


def verdict_class(report: QualityReport) -> str:
    """Return the colour of a verdict: the reading of the amplitudes, but no ``good`` where any measure is beyond."""
    lead = reading(report.measures["wasserstein1"])[0] if "wasserstein1" in report.measures else "none"
    beyond = any(measure.within is False for measure in report.measures.values())
    return "fair" if lead == "good" and beyond else lead


def number(value: float | None) -> str:
    """Return three significant digits, or a dash."""
    if value is None or value != value:
        return "–"
    return f"{value:.3g}"
