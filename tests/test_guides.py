import itertools
import json

import numpy as np
import pytest
from PIL import Image, ImageDraw
from scipy.stats import gamma, kstest

from sar_gen import guides
from sar_gen.errors import InputError
from sar_gen.guides import CLASSES, Law, load_palette, load_statistics, prepare_guide, snap, start_amplitude
from sar_gen.request import Guide

COLOURS = {entry.name: entry.colour for entry in load_palette().classes}
WHITE = (255, 255, 255)
WATER, FIELDS, FOREST, ROAD = (CLASSES.index(name) for name in ("water", "fields", "forest", "road"))


def drawn(ground, figures, side=128, oversampling=4):
    """An anti-aliased drawing: ``figures`` draws on a canvas whose sides are 1."""
    size = side * oversampling
    image = Image.new("RGB", (size, size), ground)
    figures(ImageDraw.Draw(image), size)
    return np.asarray(image.resize((side, side), Image.Resampling.BOX))


def river(draw, size, colour=COLOURS["water"], width=0.12):
    x = np.linspace(-0.1, 1.1, 50)
    points = [(a * size, (0.5 + 0.2 * np.sin(6 * a)) * size) for a in x]
    draw.line(points, fill=colour, width=int(width * size), joint="curve")


# Palette and snapping


def test_palette_colours_survive_blending():
    """Of the blends of two colours at most a sixth may lie nearest to a third; cf. the palette's own note."""
    colours = np.array([*COLOURS.values(), WHITE], dtype=float)
    t = np.linspace(0, 1, 256)[:, None]
    shares = []
    for i, j in itertools.combinations(range(len(colours)), 2):
        blends = colours[i] * (1 - t) + colours[j] * t
        nearest = np.linalg.norm(blends[:, None] - colours, axis=2).argmin(axis=1)
        shares.append(np.mean((nearest != i) & (nearest != j)))
        assert np.linalg.norm(colours[i] - colours[j]) > 2 * guides.FAR
    assert max(shares) <= 1 / 6
    assert sum(shares) < 1


@pytest.mark.parametrize(("ground", "line"), itertools.permutations([*COLOURS, "white"], 2))
def test_edges_never_become_a_third_class(ground, line):
    colours = {**COLOURS, "white": WHITE}
    image = drawn(colours[ground], lambda draw, size: river(draw, size, colours[line]))
    hard = np.asarray(Image.fromarray(image)).copy()
    snapped = snap(image)
    names = np.where(snapped.painted, np.array(CLASSES)[snapped.classes], "white")
    assert set(names.ravel()) == {ground, line}
    # every pixel that is more than 90 % one colour is that colour
    pure = np.linalg.norm(hard.astype(float) - colours[line], axis=2) < 0.1 * np.linalg.norm(
        np.subtract(colours[ground], colours[line], dtype=float)
    )
    assert (names[pure] == line).all()


def test_thin_lines_keep_their_class():
    image = drawn(COLOURS["fields"], lambda draw, size: draw.line([(0, size // 3), (size, size)], COLOURS["road"], 12))
    classes = snap(image).classes
    assert set(np.unique(classes)) == {FIELDS, ROAD}
    assert (classes == ROAD).any(axis=0).all()  # an unbroken line crosses every column


def test_map_of_pure_colours_comes_back_exactly():
    classes = np.random.default_rng(0).integers(0, len(CLASSES), (40, 30)).astype(np.uint8)
    picture = guides.render(classes)
    assert picture.shape == (40, 30, 3)
    assert (guides.snap_to_palette(picture) == classes).all()


def test_transparent_and_white_canvas_count_as_background():
    image = np.zeros((16, 16, 4), dtype=np.uint8)  # black, but transparent
    image[4:8, 4:8] = (*COLOURS["water"], 255)
    snapped = snap(image)
    assert snapped.painted.sum() == 16
    assert (snapped.classes[~snapped.painted] == FIELDS).all()
    assert (snap(guides.flatten(image)).classes == snapped.classes).all()


# Fields


def test_gamma_of_normal_has_the_gamma_law():
    normal = np.random.default_rng(1).standard_normal(20000)
    values = guides._gamma_of_normal(normal, 2.5)
    assert kstest(values, gamma(2.5, scale=1 / 2.5).cdf).pvalue > 0.01
    at = np.array([-5.0, -1.0, 0.3, 5.0])
    from scipy.stats import norm

    exact = gamma(0.8, scale=1 / 0.8).isf(norm.sf(at))
    assert guides._gamma_of_normal(at, 0.8) == pytest.approx(exact, rel=1e-3)


def test_correlated_normal_has_the_correlation_asked_for():
    generator = np.random.default_rng(2)
    products = np.zeros(12)
    for _ in range(12):
        field = guides._correlated_normal((256, 200), lambda d: np.exp(-d / 5), 20, generator)
        assert field.shape == (256, 200)
        products += [(field[:, : 200 - lag] * field[:, lag:]).mean() / 12 for lag in range(12)]
    assert products == pytest.approx(np.exp(-np.arange(12) / 5), abs=0.05)
    # cut from a larger torus: opposite edges are strangers
    edges = [guides._correlated_normal((64, 64), lambda d: np.exp(-d / 5), 20, generator) for _ in range(60)]
    assert abs(np.mean([(e[:, 0] * e[:, -1]).mean() for e in edges])) < 0.1


def test_impossible_correlations_keep_the_variance():
    """A disk is no correlation function: its spectrum is negative in places, and what is cut there is made up for."""
    generator = np.random.default_rng(4)
    fields = [guides._correlated_normal((128, 128), lambda d: (d < 6).astype(float), 6, generator) for _ in range(8)]
    assert np.var(fields) == pytest.approx(1, abs=0.05)


LAW = Law(0.02, 3.0, 3.0, 4.5, (1.0, 0.7, 0.3))


def test_uniform_field_follows_its_law():
    """Mean m and relative variance 1/L + 1/a + 1/(La) of the product of two independent Gamma variables."""
    fields = [guides.intensity_field(LAW, (512, 512), np.random.default_rng(seed)) for seed in range(4)]
    intensity = np.stack(fields)
    assert intensity.mean() == pytest.approx(0.02, rel=0.02)
    expected = 1 / 4.5 + 1 / 3 + 1 / (4.5 * 3)
    assert LAW.relative_variance == pytest.approx(expected)
    assert intensity.var() / intensity.mean() ** 2 == pytest.approx(expected, rel=0.05)


def test_speckle_has_the_looks_and_correlation():
    speckle = guides.speckle_field(LAW, (512, 512), np.random.default_rng(3))
    assert speckle.mean() == pytest.approx(1, rel=0.01)
    assert speckle.mean() ** 2 / speckle.var() == pytest.approx(4.5, rel=0.03)
    z = speckle - speckle.mean()
    lag1 = (z[:, 1:] * z[:, :-1]).mean() / z.var()
    lag4 = (z[:, 4:] * z[:, :-4]).mean() / z.var()
    assert lag1 == pytest.approx(0.7, abs=0.03)
    assert abs(lag4) < 0.02


@pytest.mark.parametrize("name", CLASSES)
def test_shipped_classes_keep_their_law_in_the_start(name):
    law = load_statistics().laws[name]
    start = start_amplitude(np.full((384, 384), CLASSES.index(name), np.uint8), 5)
    assert start.dtype == np.float32
    assert 0 <= start.min() <= start.max() <= 1
    # the bright end is clipped at 1, so the expectation is of min(I, 1), by sampling the law itself
    generator = np.random.default_rng(0)
    sample = law.mean_intensity * generator.gamma(law.looks, 1 / law.looks, 400_000)
    if law.texture_order is not None:
        sample *= generator.gamma(law.texture_order, 1 / law.texture_order, 400_000)
    sample = np.minimum(sample, 1)
    intensity = start.astype(float) ** 2
    assert intensity.mean() == pytest.approx(sample.mean(), rel=0.06)
    enl = intensity.mean() ** 2 / intensity.var()
    assert enl == pytest.approx(sample.mean() ** 2 / sample.var(), rel=0.15)


def test_start_is_deterministic_and_seeded():
    classes = guides.snap_to_palette(drawn(COLOURS["fields"], river))
    first = start_amplitude(classes, 1)
    assert (first == start_amplitude(classes, 1)).all()
    assert (first != start_amplitude(classes, 2)).mean() > 0.9
    # far from the river the fields are the same as without it
    alone = start_amplitude(np.full_like(classes, FIELDS), 1)
    assert (alone[:10, :10] == first[:10, :10]).all()
    assert start_amplitude(classes, 1, (64, 96)).shape == (64, 96)


def test_brightness_order_of_classes():
    means = {
        name: start_amplitude(np.full((256, 256), number, np.uint8), 0).mean() for number, name in enumerate(CLASSES)
    }
    assert means["water"] < means["road"] < means["fields"] < means["bare"] < means["forest"] < means["urban"]


def test_transition_is_one_to_two_pixels():
    classes = np.full((64, 4000), WATER, dtype=np.uint8)
    classes[32:] = FOREST
    laws = {name: Law(0.01, None, 0, 1e4, (1.0,)) for name in CLASSES}
    laws["forest"] = Law(0.49, None, 0, 1e4, (1.0,))
    profile = (start_amplitude(classes, 0, laws=laws).astype(float) ** 2).mean(axis=1)
    share = (profile - 0.01) / 0.48
    inside = np.flatnonzero((share > 0.1) & (share < 0.9))
    assert 1 <= inside.size <= 2
    assert share[28] < 0.01
    assert share[35] > 0.99


# Preparing


def test_river_is_a_dark_band_in_the_start():
    prepared = prepare_guide(Guide("sketch", drawn(COLOURS["fields"], river)), 256, 256, 7)
    assert prepared.start.shape == (256, 256)
    assert prepared.shown.shape == (256, 256, 3)
    water = (prepared.shown == COLOURS["water"]).all(axis=2)
    assert 0.05 < water.mean() < 0.3
    assert prepared.start[water].mean() < 0.4 * prepared.start[~water].mean()
    assert "128 x 128 to 256 x 256" in prepared.note
    assert len(prepared.sha256) == 64


def test_notes_say_what_was_done():
    image = drawn(WHITE, lambda draw, size: draw.rectangle([0, 0, size // 2, size // 4], COLOURS["road"]))
    prepared = prepare_guide(Guide("sketch", image), 128, 128, 0)
    assert "Unpainted canvas" in prepared.note
    assert "fields" in prepared.note
    assert "assumed" in prepared.note
    wide = prepare_guide(Guide("map", drawn(COLOURS["forest"], river)), 256, 128, 0)
    assert "proportions" in wide.note


@pytest.mark.parametrize(
    ("kind", "image", "words"),
    [
        ("sketch", np.full((32, 32, 3), 255, np.uint8), "Nothing is painted"),
        ("sketch", np.zeros((32, 32, 4), np.uint8), "Nothing is painted"),
        ("map", np.full((32, 32, 3), (128, 128, 128), np.uint8), "not in the palette"),
        ("sketch", np.zeros((2, 32, 3), np.uint8), "at least"),
        ("sketch", np.zeros((32, 32, 3), np.float32), "8-bit"),
        ("sketch", np.zeros((32, 32, 5), np.uint8), "8-bit"),
        ("sar", np.full((32, 32, 3), 90, np.uint8), "flat"),
        ("optical", np.full((32, 32, 3), 90, np.uint8), "flat"),
        ("sar", np.random.default_rng(0).integers(0, 255, (32, 32, 3)).astype(np.uint8), "colour"),
    ],
)
def test_bad_guides_are_refused(kind, image, words):
    with pytest.raises(InputError, match=words):
        prepare_guide(Guide(kind, image), 64, 64, 0)


def test_huge_sketch_is_snapped_at_a_smaller_size():
    image = np.full((3000, 4096, 3), COLOURS["forest"], np.uint8)
    image[1000:2000] = COLOURS["water"]
    prepared = prepare_guide(Guide("map", image), 64, 48, 0)
    assert (prepared.shown[24] == COLOURS["water"]).all()
    assert (prepared.shown[[2, -3]] == COLOURS["forest"]).all()


def test_resize_map_takes_the_nearest():
    classes = np.array([[0, 1], [2, 3]], dtype=np.uint8)
    assert (guides.resize_map(classes, (4, 6)) == np.repeat(np.repeat(classes, 2, 0), 3, 1)).all()
    assert (guides.resize_map(np.arange(9).reshape(3, 3), (1, 1)) == 4).all()


def test_resize_amplitude_averages_power_and_enlarges_smoothly():
    amplitude = np.random.default_rng(0).random((64, 48)).astype(np.float32)
    small = guides.resize_amplitude(amplitude, (32, 12))
    blocks = (amplitude.astype(float) ** 2).reshape(32, 2, 12, 4).mean(axis=(1, 3))
    assert small == pytest.approx(np.sqrt(blocks), abs=1e-4)
    ramp = np.tile(np.linspace(0.1, 0.9, 32, dtype=np.float32), (32, 1))
    large = guides.resize_amplitude(ramp, (64, 96))
    assert large.shape == (64, 96)
    assert np.diff(large[30, 10:-10]).min() > 0
    mixed = guides.resize_amplitude(amplitude, (128, 24))
    assert mixed.shape == (128, 24)
    assert (mixed**2).mean() == pytest.approx((amplitude**2).mean(), rel=0.05)


def test_sar_guide_is_its_grey_as_amplitude():
    grey = np.random.default_rng(1).integers(10, 250, (32, 32)).astype(np.uint8)
    prepared = prepare_guide(Guide("sar", np.repeat(grey[..., None], 3, 2)), 32, 32, 0)
    assert prepared.start == pytest.approx(grey / 255, abs=1e-6)
    enlarged = prepare_guide(Guide("sar", np.repeat(grey[..., None], 3, 2)), 64, 64, 0)
    assert "enlarged" in enlarged.note
    assert enlarged.start.mean() == pytest.approx(grey.mean() / 255, abs=0.02)


def test_optical_guide_is_rough_and_says_so():
    """Dark smooth ground becomes water; the rest takes the brightness law of real SAR."""
    generator = np.random.default_rng(3)
    scene = generator.normal(140, 25, (128, 128, 3)).clip(0, 255)
    scene[:, :50] = 40
    prepared = prepare_guide(Guide("optical", scene.astype(np.uint8)), 128, 128, 0)
    assert "rough rule" in prepared.note
    assert "ControlNet" in prepared.note
    statistics = load_statistics()
    water = prepared.start[:, :40].astype(float) ** 2
    assert water.mean() == pytest.approx(statistics.laws["water"].mean_intensity, rel=0.1)
    land = prepared.start[:, 43:].astype(float) ** 2  # the water mask ends where roughness of the shore begins
    law = np.trapezoid(statistics.local_intensity, dx=1 / (len(statistics.local_intensity) - 1))
    assert land.mean() == pytest.approx(law, rel=0.15)


def test_optical_order_ranks_rough_above_smooth():
    values = np.full((64, 64), 0.6)
    values[:, 32:] += np.random.default_rng(0).normal(0, 0.1, (64, 32))
    order, water = guides.optical_order(values)
    assert not water.any()
    assert np.median(order[:, 40:]) > order[:, :20].max()
    ranks = guides._ranks(np.array([3.0, 1.0, 1.0, 2.0]))
    assert ranks == pytest.approx([1.0, 0.375, 0.375, 0.75])


# Files


def test_read_guide(tmp_path):
    image = drawn(COLOURS["fields"], river)
    Image.fromarray(image).save(tmp_path / "map.png")
    assert (guides.read_guide(tmp_path / "map.png", "map", 10**6).image == image).all()
    alpha = np.dstack([image, np.full(image.shape[:2], 255, np.uint8)])
    alpha[:20] = 0
    Image.fromarray(alpha).save(tmp_path / "alpha.png")
    assert (guides.read_guide(tmp_path / "alpha.png", "sketch", 10**6).image[:20] == 255).all()
    indexed = Image.fromarray(image).quantize(8)
    indexed.save(tmp_path / "indexed.png")
    assert guides.read_guide(tmp_path / "indexed.png", "map", 10**6).image.shape == image.shape
    np.save(tmp_path / "sar.npy", np.full((16, 16), 0.5, np.float32))
    guide = guides.read_guide(tmp_path / "sar.npy", "sar", 10**6)
    assert guide.image.shape == (16, 16, 3)
    assert (guide.image == 128).all()


def test_unreadable_guides_are_refused(tmp_path):
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("hello")
    image = Image.fromarray(drawn(COLOURS["fields"], river))
    image.save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:300])
    Image.fromarray(np.zeros((16, 16), np.uint16)).save(tmp_path / "deep.png")
    for name, words in (
        ("empty.png", "cannot be read"), ("text.png", "cannot be read"), ("cut.png", "cannot be read"),
        ("missing.png", "not a file"), ("deep.png", "8-bit"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=words):
            guides.read_guide(tmp_path / name, "map", 10**6)
    with pytest.raises(InputError, match="limit"):
        guides.read_guide(tmp_path / "whole.png", "map", 1000)


# Shipped numbers


def test_class_statistics_mark_what_is_assumed():
    data = json.loads(guides.STATISTICS_FILE.read_text())
    assert set(data["classes"]) == set(CLASSES)
    assert [name for name, law in data["classes"].items() if not law["measured"]] == ["road"]
    assert "ASSUMED" in data["classes"]["road"]["source"]
    assert data["encoding"] == "linear"
    assert "Copernicus" in data["credit"]
    quantiles = data["local_intensity"]["quantiles"]
    assert quantiles == sorted(quantiles)
    for name, law in load_statistics().laws.items():
        assert 3 < law.looks < 6, name  # Sentinel-1 IW GRD: 4.4 nominal
        assert law.speckle_correlation[0] == 1
        assert list(law.speckle_correlation) == sorted(law.speckle_correlation, reverse=True)
