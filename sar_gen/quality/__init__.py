"""Measures of how close generated amplitude is to real SAR: pure functions on float arrays, without torch."""

from sar_gen.quality.distribution import BINS
from sar_gen.quality.statistics import PatchStatistics, concat, patch_statistics
from sar_gen.quality.texture import GLCM_NAMES

__all__ = ["BINS", "GLCM_NAMES", "PatchStatistics", "concat", "patch_statistics"]
