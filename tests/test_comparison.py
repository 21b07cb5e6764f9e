"""Comparisons of Gamma speckle whose differences are known."""

import csv
import dataclasses
import io
import json

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from sar_gen import comparison
from sar_gen.amplitude import Scale
from sar_gen.comparison import compare_patches, patch_rows, pooled_fits, to_csv, to_json
from sar_gen.errors import InputError
from sar_gen.patches import Patch
from sar_gen.quality import patch_statistics
from sar_gen.quality.distribution import wasserstein1
from sar_gen.quality.report import compare, floors
from sar_gen.references import from_patches
from sar_gen.settings import Settings


def speckle(count, looks=4.0, level=0.25, wobble=0.05, seed=0, side=64):
    rng = np.random.default_rng(seed)
    levels = level * (1 + wobble * rng.normal(size=count))
    fields = [m * np.sqrt(rng.gamma(looks, 1 / looks, (side, side))) for m in levels]
    return [np.clip(field, 0, 1).astype(np.float32) for field in fields]


@pytest.fixture(scope="module")
def reference():
    patches = [Patch(a, f"real-{i}", group=str(i // 2), polarisation="VV") for i, a in enumerate(speckle(24))]
    return from_patches(patches, "field")


@pytest.fixture(scope="module")
def compared(reference):
    good, other = speckle(2, seed=5)
    smooth = np.sqrt(gaussian_filter(other.astype(np.float64) ** 2, 1.0)).astype(np.float32)
    bright = np.clip(2 * good, 0, 1)
    flat = np.full_like(good, 0.25)
    patches = [Patch(a, n, polarisation="VV") for a, n in ((good, "good"), (bright, "bright"), (smooth, "smooth"))]
    patches.append(Patch(flat, "flat", polarisation="VV"))
    said = []
    return compare_patches(patches, reference, settings=Settings(), say=said.append), said


def test_the_report_is_that_of_compare(compared, reference):
    found, said = compared
    again = compare(found.statistics, reference.statistics, reference_name="field")
    assert found.report == again
    assert said[0] == "Measuring patch 1 of 4"


def test_rows_stand_worst_first_and_name_the_fault(compared):
    found, _ = compared
    assert [row.name for row in found.rows][-1] == "good"
    rows = {row.name: row for row in found.rows}
    assert rows["good"].ratio < 0.5 * min(row.ratio for row in found.rows if row.name != "good")
    assert rows["smooth"].ratios["spectrum"] > 3
    assert rows["smooth"].ratios["wasserstein1"] < rows["smooth"].ratios["enl"]
    assert rows["bright"].ratios["wasserstein1"] > 3
    assert rows["flat"].values["enl"] is None
    assert rows["flat"].ratios["spectrum"] is None
    ratios = [row.ratio for row in found.rows]
    assert ratios == sorted(ratios, reverse=True)
    for row in found.rows:
        assert found.patches[row.index].name == row.name
        assert row.ratio == row.ratios[row.worst] == max(r for r in row.ratios.values() if r is not None)


def test_values_of_a_row_are_distances_of_the_single_patch(compared, reference):
    found, _ = compared
    row = next(row for row in found.rows if row.name == "bright")
    real = reference.statistics.histograms.sum(axis=0, dtype=float)
    expected = wasserstein1(found.statistics.histograms[row.index], real)
    assert row.values["wasserstein1"] == pytest.approx(expected)
    assert row.ratios["wasserstein1"] == pytest.approx(expected / floors(reference.statistics, 1)["wasserstein1"][1])
    alone = compare(found.statistics.subset([row.index]), reference.statistics, reference_name="field")
    for name, measure in alone.measures.items():
        assert row.values[name] == pytest.approx(measure.value, nan_ok=True), name


def test_fits_find_the_law_of_the_speckle(reference):
    best = pooled_fits(patch_statistics(speckle(4, wobble=0.0, seed=3)))[0]
    assert best.looks == pytest.approx(4, rel=0.1)
    assert {fit.name for fit in pooled_fits(reference.statistics)} >= {"nakagami", "k", "g0"}
    assert pooled_fits(patch_statistics([np.full((64, 64), 0.25)])) == ()


def test_json_is_strict_and_whole(compared):
    found, _ = compared
    data = json.loads(json.dumps(to_json(found), allow_nan=False))
    assert set(data) >= {"reference", "measures", "verdict", "warnings", "laws", "patches", "sets"}
    assert [patch["name"] for patch in data["patches"]] == [row.name for row in found.rows]
    assert data["laws"]["reference"][0]["law"] == found.reference_fits[0].name


def test_csv_has_a_line_a_patch(compared):
    found, _ = compared
    lines = list(csv.DictReader(io.StringIO(to_csv(found))))
    assert [line["patch"] for line in lines] == [row.name for row in found.rows]
    for line, row in zip(lines, found.rows, strict=True):
        assert line["worst"] == row.worst
        assert float(line["wasserstein1"]) == pytest.approx(row.values["wasserstein1"], rel=1e-5)
        assert (line["enl"] == "") == (row.values["enl"] is None)


def test_one_reference_patch_gives_values_without_ratios(reference):
    one = reference.statistics.subset([0])
    [row] = patch_rows(patch_statistics(speckle(1, seed=9)), one, ["a"])
    assert row.worst == ""
    assert row.ratio is None
    assert row.values["wasserstein1"] > 0


def test_other_polarisation_is_warned_of(reference):
    found = compare_patches([Patch(speckle(1)[0], "a", polarisation="VH")], reference, settings=Settings())
    assert any("VH" in warning and "VV" in warning for warning in found.warnings)


def test_two_scales_are_warned_of(reference):
    def warnings(scale):
        patch = Patch(speckle(1)[0], "a", polarisation="VV", scale=scale)
        scaled = dataclasses.replace(reference, scale=Scale(1.0, 0.5, "the field's pixels"))
        return [w for w in compare_patches([patch], scaled, settings=Settings()).warnings if "scale" in w]

    assert warnings(None) == warnings(Scale(1.0, 0.5, "other pixels, same numbers")) == []
    [warning] = warnings(Scale(3.0, 1.5, "their own pixels"))
    assert "their own pixels" in warning
    assert "the field's pixels" in warning


def test_what_cannot_be_compared_is_refused(reference):
    with pytest.raises(InputError, match="no patch"):
        compare_patches([], reference, settings=Settings())
    with pytest.raises(InputError, match="cannot be converted exactly"):
        compare_patches([Patch(speckle(1)[0], "a", encoding="db")], reference, settings=Settings())


def test_an_exception_of_the_listener_ends_the_work(reference):
    class StopError(Exception):
        pass

    def say(_):
        raise StopError

    with pytest.raises(StopError):
        compare_patches([Patch(speckle(1)[0], "a")], reference, settings=Settings(), say=say)


def test_progress_is_said_now_and_then(reference, monkeypatch):
    monkeypatch.setattr(comparison, "SAY_EVERY", 2)
    said = []
    patches = [Patch(a, str(i)) for i, a in enumerate(speckle(5))]
    compare_patches(patches, reference, settings=Settings(), say=said.append)
    assert [line for line in said if line.startswith("Measuring")] == [f"Measuring patch {i} of 5" for i in (1, 3, 5)]
