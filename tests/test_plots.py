"""Densities against closed forms; figures by what they draw; legibility by measuring it."""

import io
import subprocess
import sys
import warnings

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from PIL import Image

from sar_gen.errors import InputError
from sar_gen.plots import (
    AXES,
    MAPS,
    density_curves,
    direction_figure,
    figure_png,
    histogram_figure,
    law_label,
    looks_view,
    map_figure,
    ratio_view,
    speckle_figure,
    spectrum_figure,
    texture_figure,
    texture_maps_view,
    windows_view,
)
from sar_gen.plots.maps import OUTLINE, UNKNOWN
from sar_gen.plots.style import DARK, LIGHT
from sar_gen.plots.texture import _ROWS
from sar_gen.quality import patch_statistics
from sar_gen.quality.laws import LawFit, fit_laws, law_pdf
from sar_gen.quality.report import DESCRIPTORS, compare
from sar_gen.quality.speckle import LooksEstimate, equivalent_looks, looks_map, ratio_statistics, speckle_correlation
from sar_gen.quality.spectrum import FREQUENCIES, patch_spectra, pooled, spectrum_distance
from sar_gen.quality.texture import DIRECTIONS, DISTANCES, GLCM_NAMES, MAP_NAMES, glcm_by_direction, glcm_maps


def rayleigh(count, mode=0.2, seed=0, size=64):
    rng = np.random.default_rng(seed)
    return [np.clip(rng.rayleigh(mode, (size, size)), 0, 1) for _ in range(count)]


@pytest.fixture(scope="module")
def real():
    return patch_statistics(rayleigh(12, size=96))


@pytest.fixture(scope="module")
def generated():
    return patch_statistics(rayleigh(3, mode=0.25, seed=1))


@pytest.mark.parametrize("axis", AXES)
def test_density_and_clipped_share_make_one(axis):
    patches = [np.clip(patch, 0.02, 1) for patch in rayleigh(4, mode=0.35)]
    curves = density_curves(patch_statistics(patches), axis)
    step = curves.x[1] - curves.x[0]
    clipped = np.mean([(p >= 1023 / 1024).mean() for p in patches])
    assert curves.clipped == pytest.approx(clipped)
    assert curves.pooled.sum() * step + curves.clipped == pytest.approx(1, abs=2e-3)
    np.testing.assert_allclose(curves.patches.mean(axis=0), curves.pooled, atol=1e-9)


def test_density_follows_the_rayleigh_law(real):
    curves = density_curves(real, "linear")
    law = curves.x / 0.2**2 * np.exp(-((curves.x / 0.2) ** 2) / 2)
    assert np.abs(curves.pooled - law).max() < 0.06 * law.max()
    decibels = density_curves(real, "db")
    amplitude = 10 ** (decibels.x / 20)
    law = amplitude**2 / 0.2**2 * np.exp(-((amplitude / 0.2) ** 2) / 2) * np.log(10) / 20
    assert np.abs(decibels.pooled - law).max() < 0.06 * law.max()


def test_levels_of_8_bit_decibels_do_not_show_as_a_comb():
    grey = np.arange(256.0).repeat(64).reshape(128, 128)  # every level as often
    curves = density_curves(patch_statistics([10 ** ((grey / 255 * 25 - 25) / 20)]), "linear")
    inside = (curves.x > 0.5) & (curves.x < 0.95)
    law = 20 / np.log(10) / 25 / curves.x[inside]
    assert np.abs(curves.pooled[inside] / law - 1).max() < 0.1


@pytest.mark.parametrize("axis", AXES)
def test_histogram_draws_both_sides_and_the_band(generated, real, axis):
    figure = histogram_figure(generated, real, axis=axis, labels=("made", "Sentinel-1"))
    (axes,) = figure.axes
    legend = {text.get_text() for text in axes.get_legend().get_texts()}
    assert legend == {"made (3 patches)", "Sentinel-1 (12 patches)", "5–95 % of Sentinel-1 patches"}
    curves = {line.get_label(): line.get_ydata() for line in axes.lines}
    np.testing.assert_array_equal(curves["made (3 patches)"], density_curves(generated, axis).pooled)
    np.testing.assert_array_equal(curves["Sentinel-1 (12 patches)"], density_curves(real, axis).pooled)
    assert len(axes.lines) == 2 + 3  # and the single generated patches
    assert axes.get_yscale() == ("log" if axis == "log" else "linear")
    band = axes.collections[0].get_paths()[0].get_extents()
    assert band.y1 == pytest.approx(np.percentile(density_curves(real, axis).patches, 95, axis=0).max())


def test_histogram_without_reference_or_with_one_patch(generated, real):
    assert len(histogram_figure(generated, None).axes[0].collections) == 0
    alone = histogram_figure(generated.subset([0]), real.subset([0]))
    assert len(alone.axes[0].collections) == 0  # no band of one patch
    assert len(alone.axes[0].lines) == 2
    with pytest.raises(InputError, match="linear, log, db"):
        histogram_figure(generated, real, axis="square")
    with pytest.raises(InputError, match="no generated patch"):
        histogram_figure(generated.subset([]), real)


def texts(figure):
    return [text.get_text() for text in figure.findobj(Text) if text.get_text() and text.get_visible()]


def test_texture_rows_name_every_descriptor_with_its_figures(generated, real):
    report = compare(generated, real, reference_name="x")
    shown = texts(texture_figure(generated, real, report=report))
    contrast = report.measures["glcm_contrast"]
    assert {"Contrast", "Dissimilarity", "Homogeneity", "ASM", "Energy", "Correlation", "Entropy"} <= set(shown)
    assert f"{contrast.generated:.1f}" in shown
    assert f"{contrast.reference:.1f}" in shown
    assert f"{100 * contrast.relative:+.0f} %" in shown
    assert tuple(name for _, name in _ROWS) == DESCRIPTORS


def test_texture_dots_stand_at_the_distance_in_real_deviations(generated, real):
    report = compare(generated, real, reference_name="x")
    (axes,) = texture_figure(generated, real, report=report).axes
    dots = {}
    for collection in axes.collections:
        offsets = collection.get_offsets()
        if len(offsets) == 1 and collection.get_sizes()[0] > 40:
            dots[int(offsets[0][1])] = (offsets[0][0], collection.get_facecolor()[0])
    for row, (_, name) in enumerate(_ROWS):
        measure = report.measures[name]
        z = (measure.generated - measure.reference) / measure.spread.std
        assert dots[row][0] == pytest.approx(np.clip(z, -4, 4))
    filled = [not np.allclose(colour[:3], 1) for _, colour in (dots[row] for row in sorted(dots))]
    assert filled == [report.measures[name].within is False for _, name in _ROWS]
    assert any(filled)
    assert not all(filled)


def test_texture_of_odd_sets_can_be_drawn(real):
    flat = patch_statistics([np.full((32, 32), 0.3)])
    shown = texts(texture_figure(flat, real))
    assert "–" in shown  # no correlation, no ENL
    assert "one real patch: no spread" in texts(texture_figure(real.subset([0]), real.subset([1])))
    assert "one real patch: no spread" in texts(texture_figure(real.subset([0]), flat))
    figure_png(texture_figure(flat, flat), 50)
    figure_png(histogram_figure(flat, flat, axis="db"), 50)


def luminance(colour):
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


def contrast_ratio(a, b):
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize(("colours", "page"), [(LIGHT, "#ffffff"), (DARK, "#1b2025")])
def test_colours_can_be_read(colours, page):
    """WCAG 2: 4.5 for text, 3 for lines against the page and against the band that they cross."""
    for text in (colours.text, colours.muted, colours.generated, colours.real):
        assert contrast_ratio(text, page) >= 4.5
    for line in (colours.generated, colours.real):
        assert contrast_ratio(line, colours.band) >= 3


@pytest.fixture(scope="module")
def fits():
    return fit_laws(np.stack(rayleigh(3, mode=0.25, seed=1)))


@pytest.fixture(scope="module")
def smooth():
    """Patches whose neighbours along rows are averaged."""
    return [np.clip((p[:, 1:] + p[:, :-1]) / 2, 0, 1) for p in rayleigh(3, mode=0.25, seed=1)]


@pytest.fixture(scope="module")
def smoothed(smooth):
    return patch_statistics(smooth)


def label_of(fit):
    return f"{law_label(fit)} · KS {fit.ks:.3f}"


@pytest.mark.parametrize("axis", AXES)
def test_best_three_laws_are_drawn_over_the_density(generated, real, fits, axis):
    (axes,) = histogram_figure(generated, real, axis=axis, fits=fits[::-1]).axes
    lines = {line.get_label(): line for line in axes.lines}
    drawn = [lines[label_of(fit)] for fit in fits[:3]]
    assert len(axes.lines) == 2 + 3 + 3
    assert fits[0].name == "rayleigh"
    assert all(line.is_dashed() for line in drawn)
    assert len({line._unscaled_dash_pattern for line in drawn}) == 3
    # The law is a density over what the axis shows, and lies on the density of the pixels it was fitted to.
    x, y = drawn[0].get_data()
    assert np.sum(y) * (x[1] - x[0]) == pytest.approx(1, abs=0.01)
    made = lines["generated (3 patches)"].get_ydata()
    assert np.abs(y - made).max() < 0.08 * made.max()
    if axis == "linear":
        np.testing.assert_allclose(y, law_pdf(fits[0], x))


def test_laws_leave_the_rest_of_the_figure_as_it_is(generated, real, fits):
    plain, overlaid = histogram_figure(generated, real), histogram_figure(generated, real, fits=fits[:1])
    sides = {text.get_text() for text in plain.axes[0].get_legend().get_texts()}
    assert {text.get_text() for text in overlaid.axes[0].get_legend().get_texts()} == sides
    heights = [f.axes[0].get_position().height * f.get_figheight() for f in (plain, overlaid)]
    assert heights[0] == pytest.approx(heights[1])
    assert label_of(fits[0]) in texts(overlaid)


def test_zeros_take_their_share_from_the_law(generated):
    patches = np.stack(rayleigh(4))
    patches[:2] = 0
    (fit,) = fit_laws(patches, ["rayleigh"])
    (axes,) = histogram_figure(generated, None, fits=[fit]).axes
    (line,) = [line for line in axes.lines if line.get_label() == label_of(fit)]
    x, y = line.get_data()
    assert np.sum(y) * (x[1] - x[0]) == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(
    ("name", "looks", "texture", "label"),
    [
        ("rayleigh", 1.0, None, "Rayleigh"),
        ("lognormal", None, None, "log-normal"),
        ("nakagami", 3.96, None, "Nakagami: 4.0 looks"),
        ("k", 4.1, 1.46, "K law: 4.1 looks, texture = 1.5"),
        ("k", 4.1, 3100.0, "K law: 4.1 looks, no texture"),
        ("g0", 4.1, -2.9, "G0 law: 4.1 looks, α = −2.9"),
    ],
)
def test_laws_are_named_with_looks_and_texture(name, looks, texture, label):
    assert law_label(LawFit(name, {}, 0, 0, 0, looks, texture, 0, 0, 0, 0)) == label


def test_spectrum_draws_decibels_of_the_pooled_power(smooth, smoothed, real):
    figure = spectrum_figure(smoothed, real, labels=("made", "Sentinel-1"))
    radial, angular = figure.axes
    lines = {line.get_label(): line for line in radial.lines}
    for label, side in (
        ("made (3 patches)", patch_spectra(smooth)),
        ("Sentinel-1 (12 patches)", patch_spectra(rayleigh(12, size=96))),
    ):
        x, y = lines[label].get_data()
        expected = 10 * np.log10(pooled(side.radial)[np.isin(FREQUENCIES, x)])
        np.testing.assert_allclose(y, expected, atol=1e-4)
    band = radial.collections[0].get_paths()[0].get_extents()
    assert band.y1 >= lines["Sentinel-1 (12 patches)"].get_ydata().max()
    # Averaged along rows, the made patches lack variation along a row: low at 0° and 180°, high at 90°.
    turned = {line.get_label(): line.get_ydata() for line in angular.lines}["made (3 patches)"]
    assert turned[0] == turned[-1] < -1
    assert turned[18] > 1
    distance = spectrum_distance(pooled(smoothed.radial), pooled(real.radial))
    assert f"apart by {distance:.1f} dB" in texts(figure)
    measures = compare(smoothed, real, reference_name="x").measures
    for name in ("spectrum", "spectrum_direction"):
        assert f"apart by {measures[name].value:.1f} dB" in texts(figure)


def test_spectrum_of_odd_sets_can_be_drawn(smoothed, real):
    alone = spectrum_figure(smoothed, None)
    assert not any(said.startswith("apart") for said in texts(alone))
    assert len(alone.axes[0].lines) == 1
    small = patch_statistics([rayleigh(1, size=32)[0], np.full((32, 32), 0.3)])
    constant = patch_statistics([np.full((32, 32), 0.3)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for figure in (
            spectrum_figure(small, real),
            spectrum_figure(smoothed, small),
            spectrum_figure(smoothed, smoothed),
            speckle_figure(smoothed, small),
            speckle_figure(smoothed.subset([0]), None),
            direction_figure(small, real),
            direction_figure(constant, constant),
            direction_figure(smoothed, None),
        ):
            figure_png(figure, 50)
    assert len(spectrum_figure(smoothed, constant).axes[0].lines) == 1
    for nothing in (constant, patch_statistics([])):
        with pytest.raises(InputError, match="no generated patch with a spectrum"):
            spectrum_figure(nothing, real)
        with pytest.raises(InputError, match="no homogeneous ground"):
            speckle_figure(nothing, real)
    with pytest.raises(InputError, match="no generated patch"):
        direction_figure(patch_statistics([]), real)


def test_speckle_draws_the_correlation_along_rows_and_columns(smooth, smoothed, real):
    figure = speckle_figure(smoothed, real)
    expected = [speckle_correlation(patch) for patch in smooth]
    for axes, name in zip(figure.axes, ("along_rows", "along_columns"), strict=True):
        assert axes.get_title(loc="left") == name.replace("_", " ")
        lines = {line.get_label(): line for line in axes.lines}
        x, y = lines["generated (3 patches)"].get_data()
        np.testing.assert_array_equal(x, [1, 2, 3, 4])
        of_patches = np.stack([getattr(correlation, name)[1:] for correlation in expected])
        np.testing.assert_allclose(y, of_patches.mean(axis=0), atol=1e-5)
        band = axes.collections[0].get_paths()[0].get_extents()
        true = lines["real (12 patches)"].get_ydata()
        assert band.y0 <= true.min()
        assert band.y1 >= true.max()
        assert axes.get_ylim()[0] <= min(y.min(), band.y0)
    along, across = (axes.lines[-2].get_ydata()[0] for axes in figure.axes)
    assert along > 0.3 > across  # neighbours that were averaged depend on each other
    assert figure.axes[0].get_ylim() == figure.axes[1].get_ylim()


def test_directions_draw_each_descriptor_over_the_distance_on_the_ground(smooth, smoothed, real):
    figure = direction_figure(smoothed, real)
    assert len(figure.axes) == 8
    every = np.stack([glcm_by_direction(patch) for patch in smooth]).mean(axis=0)  # (distance, direction, descriptor)
    rows = {"contrast": [0, *range(1, 4)], "correlation": range(4, 8)}
    for descriptor, places in rows.items():
        for direction, place in enumerate(places):
            lines = {line.get_label(): line for line in figure.axes[place].lines}
            x, y = lines["generated (3 patches)"].get_data()
            diagonal = "diagonal" in DIRECTIONS[direction]
            # A diagonal neighbour at distance 2 is rounded to the one at distance 1, and drawn once.
            np.testing.assert_allclose(x, np.sqrt(2) * np.array([1, 3, 6]) if diagonal else DISTANCES)
            values = every[:, direction, GLCM_NAMES.index(descriptor)]
            np.testing.assert_allclose(y, values[[0, 2, 3]] if diagonal else values, rtol=1e-5)
            assert "5–95 % of real patches" in figure.axes[place].get_legend_handles_labels()[1]
    assert {axes.get_ylim() for axes in figure.axes[1:4]} == {figure.axes[0].get_ylim()}


def test_windows_are_outlined_where_the_looks_come_from():
    amplitude = rayleigh(1, size=128)[0].astype(np.float32)
    estimate = LooksEstimate(1.0, np.array([[0, 0], [7, 0], [50, 60]]), 7)
    shown = windows_view(amplitude, estimate)
    assert (shown.shape, shown.dtype) == ((128, 128, 3), np.uint8)
    drawn = (shown == OUTLINE).all(axis=2)
    expected = np.zeros((128, 128), dtype=bool)
    expected[0:14, 0:7] = True  # two windows that touch, with one outline
    expected[1:13, 1:6] = False
    expected[50:57, 60:67] = True
    expected[51:56, 61:66] = False
    np.testing.assert_array_equal(drawn, expected)
    grey = shown[~drawn]
    np.testing.assert_array_equal(grey, np.rint(amplitude[~drawn] * 255).astype(np.uint8)[:, None].repeat(3, 1))
    twice = windows_view(amplitude, estimate, enlarge=2)
    assert twice.shape == (256, 256, 3)
    assert (twice == OUTLINE).all(axis=2).sum() == 2 * (28 + 14) - 4 + 4 * 14 - 4
    found = equivalent_looks(amplitude)
    assert len(found.windows)
    covered = (windows_view(amplitude, found) == OUTLINE).all(axis=2)
    assert covered.any()
    nothing = windows_view(np.full((64, 64), 0.5), equivalent_looks(np.full((64, 64), 0.5)))
    assert (nothing == 128).all()


def test_maps_have_one_scale_for_every_patch():
    """A pixel's colour follows from its value alone, brighter for larger values."""
    seen = {}
    for mode in (0.15, 0.3):
        amplitude = rayleigh(1, mode=mode, size=96)[0]
        values = {"looks": (looks_map(amplitude), looks_view(amplitude))}
        for name, of_name in zip(MAP_NAMES, glcm_maps(amplitude), strict=True):
            values[name] = (of_name, texture_maps_view(amplitude, name))
        ratio = ratio_statistics(amplitude).ratio
        values["ratio"] = (ratio, ratio_view(ratio))
        for name, (numbers, shown) in values.items():
            assert (shown.shape, shown.dtype) == ((96, 96, 3), np.uint8)
            assert (shown[~np.isfinite(numbers)] == UNKNOWN).all()
            assert not (shown[np.isfinite(numbers)] == UNKNOWN).all(axis=1).any()
            pairs = zip(numbers[np.isfinite(numbers)].tolist(), map(tuple, shown[np.isfinite(numbers)]), strict=True)
            seen.setdefault(name, []).extend(pairs)
    assert set(seen) == set(MAPS)
    for name, pairs in seen.items():
        pairs.sort(key=lambda pair: pair[0])
        light = [np.dot(colour, (0.2126, 0.7152, 0.0722)) for _, colour in pairs]
        assert np.diff(light).min() > -1.5, name
        assert light[-1] - light[0] > 20, name
    with pytest.raises(InputError, match="contrast, dissimilarity, homogeneity, correlation"):
        texture_maps_view(np.zeros((32, 32)), "entropy")
    with pytest.raises(InputError, match="no map"):
        map_figure("entropy")


def test_the_scale_names_its_ends():
    shown = texts(map_figure("looks"))
    assert {"≤ 0.5", "≥ 32", "local looks (ENL, windows of 7 × 7)"} <= set(shown)
    scale = MAPS["looks"]
    np.testing.assert_allclose(scale.shares(np.array([0.1, 0.5, 4, 32, 99])), [0, 0, 0.5, 1, 1])


DRAWN = {
    "texture": texture_figure,
    "spectrum": spectrum_figure,
    "speckle": speckle_figure,
    "direction": direction_figure,
}


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("kind", [*AXES, "laws", *DRAWN, "spectrum alone", *(f"map {name}" for name in MAPS)])
def test_all_text_lies_inside_the_picture_and_apart(generated, real, smoothed, fits, kind, dark):
    if kind in DRAWN:
        figure = DRAWN[kind](smoothed, real, dark=dark)
    elif kind == "spectrum alone":
        figure = spectrum_figure(smoothed, None, dark=dark)
    elif kind.startswith("map"):
        figure = map_figure(kind.split()[1], dark=dark)
    elif kind == "laws":
        widest = [fit for fit in fits if fit.name in ("k", "g0")]
        figure = histogram_figure(generated, real, fits=widest, dark=dark)
    else:
        figure = histogram_figure(generated, real, axis=kind, dark=dark)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    width, height = canvas.get_width_height()
    boxes = []
    for text in figure.findobj(Text):
        if text.get_text().strip() and text.get_visible():
            box = text.get_window_extent(canvas.get_renderer())
            assert box.x0 >= 0, text
            assert box.y0 >= 0, text
            assert box.x1 <= width, text
            assert box.y1 <= height, text
            boxes.append((text.get_text(), box))
    for i, (one, a) in enumerate(boxes):
        for other, b in boxes[i + 1 :]:
            apart = a.x1 <= b.x0 + 1 or b.x1 <= a.x0 + 1 or a.y1 <= b.y0 + 1 or b.y1 <= a.y0 + 1
            assert apart, f"{one!r} overlaps {other!r}"


def test_png_is_transparent_repeatable_and_sized_for_the_panel(generated, real):
    data = figure_png(histogram_figure(generated, real), 200)
    assert data == figure_png(histogram_figure(generated, real), 200)
    image = Image.open(io.BytesIO(data))
    assert image.width == 960
    assert image.mode == "RGBA"
    assert image.getpixel((3, 3))[3] == 0


def test_pyplot_is_never_imported():
    code = "import sys, sar_gen.plots; sys.exit('matplotlib.pyplot' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
