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

from sar_gen import plots
from sar_gen.errors import InputError
from sar_gen.plots import (
    AXES,
    density_curves,
    figure_png,
    histogram_figure,
    law_label,
    spectrum_figure,
    texture_figure,
)
from sar_gen.quality import GLCM_NAMES, patch_statistics
from sar_gen.quality.laws import LawFit, fit_laws, law_pdf
from sar_gen.quality.report import compare
from sar_gen.quality.spectrum import FREQUENCIES, patch_spectra, pooled, spectrum_distance


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
    assert tuple(name.removeprefix("glcm_") for _, name in plots._ROWS[:-1]) == GLCM_NAMES


def test_texture_dots_stand_at_the_distance_in_real_deviations(generated, real):
    report = compare(generated, real, reference_name="x")
    (axes,) = texture_figure(generated, real, report=report).axes
    dots = {}
    for collection in axes.collections:
        offsets = collection.get_offsets()
        if len(offsets) == 1 and collection.get_sizes()[0] > 40:
            dots[int(offsets[0][1])] = (offsets[0][0], collection.get_facecolor()[0])
    for row, (_, name) in enumerate(plots._ROWS):
        measure = report.measures[name]
        z = (measure.generated - measure.reference) / measure.spread.std
        assert dots[row][0] == pytest.approx(np.clip(z, -4, 4))
    filled = [not np.allclose(colour[:3], 1) for _, colour in (dots[row] for row in sorted(dots))]
    assert filled == [report.measures[name].within is False for _, name in plots._ROWS]
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


@pytest.mark.parametrize(("colours", "page"), [(plots._LIGHT, "#ffffff"), (plots._DARK, "#1b2025")])
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
def spectra():
    smooth = [np.clip((p[:, 1:] + p[:, :-1]) / 2, 0, 1) for p in rayleigh(3, mode=0.25, seed=1)]
    return patch_spectra(smooth), patch_spectra(rayleigh(12, size=96))


@pytest.mark.parametrize("axis", AXES)
def test_best_two_laws_are_drawn_over_the_density(generated, real, fits, axis):
    (axes,) = histogram_figure(generated, real, axis=axis, fits=fits[::-1]).axes
    lines = {line.get_label(): line for line in axes.lines}
    drawn = [lines[law_label(fit)] for fit in fits[:2]]
    assert len(axes.lines) == 2 + 3 + 2
    assert fits[0].name == "rayleigh"
    assert all(line.is_dashed() for line in drawn)
    assert drawn[0]._unscaled_dash_pattern != drawn[1]._unscaled_dash_pattern
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
    assert "Rayleigh" in texts(overlaid)


def test_zeros_take_their_share_from_the_law(generated):
    patches = np.stack(rayleigh(4))
    patches[:2] = 0
    (fit,) = fit_laws(patches, ["rayleigh"])
    (axes,) = histogram_figure(generated, None, fits=[fit]).axes
    (line,) = [line for line in axes.lines if line.get_label() == "Rayleigh"]
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


def test_spectrum_draws_decibels_of_the_pooled_power(spectra):
    made, real = spectra
    figure = spectrum_figure(made, real, labels=("made", "Sentinel-1"))
    radial, angular = figure.axes
    lines = {line.get_label(): line for line in radial.lines}
    for label, side in (("made (3 patches)", made), ("Sentinel-1 (12 patches)", real)):
        x, y = lines[label].get_data()
        expected = 10 * np.log10(pooled(side.radial)[np.isin(FREQUENCIES, x)])
        np.testing.assert_allclose(y, expected)
    band = radial.collections[0].get_paths()[0].get_extents()
    assert band.y1 >= lines["Sentinel-1 (12 patches)"].get_ydata().max()
    # Averaged along rows, the made patches lack variation along a row: low at 0° and 180°, high at 90°.
    turned = {line.get_label(): line.get_ydata() for line in angular.lines}["made (3 patches)"]
    assert turned[0] == turned[-1] < -1
    assert turned[18] > 1
    distance = spectrum_distance(pooled(made.radial), pooled(real.radial))
    assert f"apart by {distance:.1f} dB" in texts(figure)


def test_spectrum_of_odd_sets_can_be_drawn(spectra):
    made, real = spectra
    alone = spectrum_figure(made, None)
    assert not any(said.startswith("apart") for said in texts(alone))
    assert len(alone.axes[0].lines) == 1
    small = patch_spectra([rayleigh(1, size=16)[0], np.full((16, 16), 0.3)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for figure in (spectrum_figure(small, real), spectrum_figure(made, small), spectrum_figure(made, made)):
            figure_png(figure, 50)
    constant = patch_spectra([np.full((32, 32), 0.3)])
    assert len(spectrum_figure(made, constant).axes[0].lines) == 1
    for nothing in (constant, patch_spectra([])):
        with pytest.raises(InputError, match="no generated patch with a spectrum"):
            spectrum_figure(nothing, real)


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("kind", [*AXES, "laws", "texture", "spectrum", "spectrum alone"])
def test_all_text_lies_inside_the_picture_and_apart(generated, real, fits, spectra, kind, dark):
    if kind == "texture":
        figure = texture_figure(generated, real, dark=dark)
    elif kind.startswith("spectrum"):
        figure = spectrum_figure(spectra[0], None if kind.endswith("alone") else spectra[1], dark=dark)
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
