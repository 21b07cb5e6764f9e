import json

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image
from scipy.stats import gamma, kstest

from sar_gen import guides
from sar_gen.errors import InputError
from sar_gen.guides import CLASSES, Law, load_statistics, prepare_guide, read_guide, start_amplitude
from sar_gen.palettes import NODATA
from sar_gen.request import Guide
from tests.drawings import COLOURS, WHITE, drawn, river

FIELDS, FOREST, WATER = (CLASSES.index(name) for name in ("fields", "forest", "water"))


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
        ("map", np.zeros((32, 32), np.uint8), "one band of numbers"),
        ("drawing", np.zeros((32, 32, 3), np.uint8), "kind"),
        ("sar", np.full((32, 32, 3), 90, np.uint8), "flat"),
        ("optical", np.full((32, 32, 3), 90, np.uint8), "flat"),
        ("sar", np.random.default_rng(0).integers(0, 255, (32, 32, 3)).astype(np.uint8), "colour"),
    ],
)
def test_bad_guides_are_refused(kind, image, words):
    with pytest.raises(InputError, match=words):
        prepare_guide(Guide(kind, image), 64, 64, 0)


def test_maps_of_other_makers_start_as_the_studios():
    codes = np.full((64, 64), 80, np.uint8)  # WorldCover: water
    codes[:, 32:] = 10  # trees
    prepared = prepare_guide(Guide("map", codes, palette="worldcover", notes=("It was turned upright.",)), 64, 64, 3)
    assert (prepared.shown[:, :32] == COLOURS["water"]).all()
    assert (prepared.shown[:, 32:] == COLOURS["forest"]).all()
    assert prepared.note.startswith("It was turned upright. The map was read by the codes of ESA WorldCover")
    same = np.zeros((64, 64), np.uint8)
    same[:, 32:] = FOREST
    assert (prepared.start == start_amplitude(same, 3)).all()
    picture = np.where(codes[..., None] == 80, np.uint8([0, 100, 200]), np.uint8([0, 100, 0]))
    for palette in ("auto", "worldcover"):
        again = prepare_guide(Guide("sketch", picture, palette=palette), 64, 64, 3)
        assert (again.shown == prepared.shown).all()
        assert "The drawing was read by the colours of ESA WorldCover" in again.note


def test_a_map_of_one_class_is_allowed_and_said():
    prepared = prepare_guide(Guide("map", np.full((32, 32, 3), COLOURS["forest"], np.uint8)), 64, 64, 0)
    assert "one class all over" in prepared.note
    assert (prepared.shown == COLOURS["forest"]).all()


def test_alpha_of_optical_and_sar_guides_is_black():
    scene = np.random.default_rng(0).integers(100, 200, (32, 32, 1)).astype(np.uint8)
    image = np.concatenate([scene, scene, scene, np.full_like(scene, 255)], axis=2)
    image[:8, :, 3] = 0
    for kind in ("optical", "sar"):
        checked = guides.check_image(Guide(kind, image))
        assert checked.shape == (32, 32, 3)
        assert (checked[:8] == 0).all()
        assert (checked[8:] == image[8:, :, :3]).all()
        assert guides.check_image(Guide(kind, scene[..., 0])).shape == (32, 32, 3)
    assert guides.check_image(Guide("map", scene[..., 0])).ndim == 2
    assert (prepare_guide(Guide("sar", image), 32, 32, 0).start[:8] == 0).all()


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

LIMIT = 10**6


def scene(shape=(40, 48), top=200):
    """A made-up optical scene, uint16 ``(height, width, 3)``, with one glint far above the rest."""
    values = np.random.default_rng(0).integers(top // 4, top, (*shape, 3)).astype(np.uint16)
    values[3, 3, 0] = 60000
    return values


def read(path, kind, palette="studio"):
    return read_guide(path, kind, LIMIT, palette)


def test_read_guide(tmp_path):
    image = drawn(COLOURS["fields"], river)
    Image.fromarray(image).save(tmp_path / "map.png")
    guide = read(tmp_path / "map.png", "map")
    assert (guide.image == image).all()
    assert (guide.name, guide.notes, guide.palette) == ("map.png", (), "studio")
    alpha = np.dstack([image, np.full(image.shape[:2], 255, np.uint8)])
    alpha[:20] = 0
    Image.fromarray(alpha).save(tmp_path / "alpha.png")
    assert (read(tmp_path / "alpha.png", "sketch").image[:20] == 255).all()
    indexed = Image.fromarray(image).quantize(8)
    indexed.save(tmp_path / "indexed.png")
    assert read(tmp_path / "indexed.png", "map").image.shape == image.shape
    np.save(tmp_path / "sar.npy", np.full((16, 16), 0.5, np.float32))
    guide = read(tmp_path / "sar.npy", "sar")
    assert guide.image.shape == (16, 16, 3)
    assert (guide.image == 128).all()


def test_unreadable_guides_are_refused(tmp_path):
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "folder.png").mkdir()
    image = Image.fromarray(drawn(COLOURS["fields"], river))
    image.save(tmp_path / "whole.png")
    image.save(tmp_path / "whole.jpg")
    image.save(tmp_path / "whole.tif")
    tifffile.imwrite(tmp_path / "values.tif", np.zeros((64, 64), np.uint16))
    for kind in ("png", "jpg"):
        (tmp_path / f"cut.{kind}").write_bytes((tmp_path / f"whole.{kind}").read_bytes()[:700])
    (tmp_path / "cut.tif").write_bytes((tmp_path / "values.tif").read_bytes()[:-100])
    (tmp_path / "header.tif").write_bytes(b"II*\0\xff\xff\0\0")
    for name, words in (
        ("empty.png", "it is empty"), ("text.png", "cannot be read"), ("cut.png", "cannot be read"),
        ("cut.jpg", "cannot be read"), ("cut.tif", "damaged"), ("header.tif", "damaged"),
        ("missing.png", "not a file"), ("folder.png", "not a file"),
    ):  # fmt: skip
        for kind in ("map", "optical"):
            with pytest.raises(InputError, match=words) as refusal:
                read(tmp_path / name, kind)
            assert name in str(refusal.value)
    for name in ("whole.png", "whole.tif", "values.tif"):
        with pytest.raises(InputError, match=r"(128 x 128|64 x 64) pixels; the limit is 1,000"):
            read_guide(tmp_path / name, "map", 1000)
    with pytest.raises(InputError, match="palette 'corine' is unknown"):
        read(tmp_path / "whole.png", "map", "corine")


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_and_said(tmp_path, suffix, orientation):
    """The picture as it is meant, stored under each orientation by undoing what the orientation asks for."""
    meant = np.zeros((32, 48, 3), np.uint8)
    meant[:16, :24], meant[16:, 24:] = COLOURS["water"], COLOURS["forest"]
    undone = {
        1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1), 6: lambda a: np.rot90(a, 1), 7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
        8: lambda a: np.rot90(a, -1),
    }[orientation]  # fmt: skip
    picture = Image.fromarray(np.ascontiguousarray(undone(meant)))
    exif = Image.Exif()
    exif[274] = orientation
    picture.save(tmp_path / f"turned.{suffix}", exif=exif, **({"quality": 95} if suffix == "jpg" else {}))
    for kind in ("map", "optical"):
        guide = read(tmp_path / f"turned.{suffix}", kind)
        assert guide.image.shape == meant.shape
        assert np.abs(guide.image.astype(int) - meant).mean() < (8 if suffix == "jpg" else 0.01)
        assert bool(guide.notes) == (orientation > 1)
        assert not guide.notes or "turned upright" in guide.notes[0]


def test_indexed_pictures(tmp_path):
    image = np.full((16, 16, 3), COLOURS["forest"], np.uint8)
    image[:4] = COLOURS["water"]
    indexed = Image.fromarray(image).quantize(4)
    clear = int(np.asarray(indexed)[0, 0])
    indexed.save(tmp_path / "clear.png", transparency=clear)
    guide = read(tmp_path / "clear.png", "map")
    assert (guide.image[:4] == 255).all()  # unpainted
    assert (guide.image[4:] == COLOURS["forest"]).all()
    guide = read(tmp_path / "clear.png", "optical")
    assert (guide.image[:4] == 0).all()
    assert guide.notes == ("Transparent pixels (25%) became black.",)


def test_indices_are_codes_where_the_colours_say_nothing(tmp_path):
    """Class numbers in an indexed PNG of arbitrary colours, as segmentation tools write them."""
    codes = np.full((16, 16), 80, np.uint8)
    codes[:4] = 10
    picture = Image.fromarray(codes).convert("P")
    picture.putpalette(np.random.default_rng(0).integers(0, 255, 768).astype(np.uint8).tobytes())
    picture.save(tmp_path / "any.png")
    guide = read(tmp_path / "any.png", "map", "worldcover")
    assert (guide.image == codes).all()
    assert "indices were taken for the class codes" in guide.notes[0]
    assert read(tmp_path / "any.png", "map", "dynamicworld").image.ndim == 3  # 80 is no code of it
    assert read(tmp_path / "any.png", "map", "auto").image.ndim == 3
    table = np.zeros((256, 3), np.uint8)
    table[[10, 80]] = (0, 100, 0), (0, 100, 200)  # its own colours: either way is the same
    picture.putpalette(table.tobytes())
    picture.save(tmp_path / "own.png")
    guide = read(tmp_path / "own.png", "map", "worldcover")
    assert guide.notes == ()
    assert (guide.image[0, 0] == (0, 100, 0)).all()


def test_one_band_pictures_are_codes_for_maps_and_grey_for_optical(tmp_path):
    codes = np.full((16, 16), 80, np.uint8)
    codes[:4] = 10
    Image.fromarray(codes).save(tmp_path / "codes.png")
    guide = read(tmp_path / "codes.png", "map", "worldcover")
    assert guide.image.shape == (16, 16)
    assert (guide.image == codes).all()
    assert (read(tmp_path / "codes.png", "optical").image == codes[..., None]).all()
    Image.fromarray(codes).save(tmp_path / "key.png", transparency=10)
    assert (read(tmp_path / "key.png", "map", "worldcover").image[:4] == NODATA).all()
    alpha = np.full((16, 16), 255, np.uint8)
    alpha[8:] = 0
    Image.merge("LA", [Image.fromarray(codes), Image.fromarray(alpha)]).save(tmp_path / "la.png")
    guide = read(tmp_path / "la.png", "map", "worldcover")
    assert (guide.image[:8] == codes[:8]).all()
    assert (guide.image[8:] == NODATA).all()
    guide = read(tmp_path / "la.png", "optical")
    assert (guide.image[8:] == 0).all()
    assert "50%" in guide.notes[0]


def test_black_and_white_pictures(tmp_path):
    Image.fromarray(np.arange(256).reshape(16, 16) % 3 == 0).save(tmp_path / "bit.png")
    with pytest.raises(InputError, match="1 bit"):
        read(tmp_path / "bit.png", "map")
    guide = read(tmp_path / "bit.png", "optical")
    assert set(np.unique(guide.image)) == {0, 255}
    assert "1 bit" in guide.notes[0]


def test_colours_of_print_are_converted(tmp_path):
    image = np.full((16, 16, 3), COLOURS["forest"], np.uint8)
    Image.fromarray(image).convert("CMYK").save(tmp_path / "print.tif")
    Image.fromarray(image).convert("CMYK").save(tmp_path / "print.jpg", quality=95)
    for name in ("print.tif", "print.jpg"):
        guide = read(tmp_path / name, "map")
        assert guide.notes == ("Its CMYK colours were converted to RGB.",)
        assert np.abs(guide.image.astype(int) - image).max() < 12


def test_of_several_pictures_the_first_is_used(tmp_path):
    first, second = (Image.new("RGB", (16, 16), COLOURS[name]) for name in ("water", "forest"))
    first.save(tmp_path / "two.gif", save_all=True, append_images=[second])
    first.save(tmp_path / "two.png", save_all=True, append_images=[second])
    first.save(tmp_path / "two.tif", save_all=True, append_images=[second])
    for name in ("two.gif", "two.png", "two.tif"):
        guide = read(tmp_path / name, "map")
        assert (guide.image == COLOURS["water"]).all(), name
        assert guide.notes == ("The file holds 2 pictures; the first is used.",)
    tifffile.imwrite(tmp_path / "pages.tif", np.stack([np.full((16, 16), k, np.uint8) for k in (80, 10)]))
    guide = read(tmp_path / "pages.tif", "map", "worldcover")
    assert (guide.image == 80).all()
    assert guide.notes == ("The file holds 2 images; the first is used.",)
    assert (read(tmp_path / "pages.tif", "optical").image == 80).all()


def test_optical_of_16_bits_keeps_its_colours(tmp_path):
    """All bands divided by one number, so that their proportions stay; a glint is clipped instead of darkening all."""
    values = scene(top=3000)
    top = np.percentile(values, 99.9)
    expected = np.clip(values / top * 255, 0, 255)
    assert 2900 < top < 3100
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb")
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(values))
    for name in ("a.tif", "a.png"):
        guide = read(tmp_path / name, "optical")
        assert guide.image.dtype == np.uint8
        assert guide.image == pytest.approx(expected, abs=0.51)
        divided = f"Its values (uint16) were divided by {top:.4g}, their 99.9th percentile, to make 8 bits."
        assert guide.notes == (divided,)
        assert guide.notes[0] in prepare_guide(guide, 64, 64, 0).note
    # one band, also as Pillow's own 16-bit mode, and floats with a hole
    Image.fromarray(values[..., 0]).save(tmp_path / "grey.png")
    grey = read(tmp_path / "grey.png", "optical")
    assert (grey.image[..., 0] == grey.image[..., 2]).all()
    assert grey.image[..., 0] == pytest.approx(
        np.clip(values[..., 0] / np.percentile(values[..., 0], 99.9) * 255, 0, 255), abs=0.51
    )
    holed = values[..., 0].astype(np.float32) / 10000
    holed[:2] = np.nan
    tifffile.imwrite(tmp_path / "float.tif", holed)
    guide = read(tmp_path / "float.tif", "optical")
    assert (guide.image[:2] == 0).all()
    assert guide.image[2:].max() == 255
    assert "without data (5%) became black" in guide.notes[1]
    tifffile.imwrite(tmp_path / "dark.tif", np.zeros((16, 16), np.uint16))
    with pytest.raises(InputError, match="no values above 0"):
        read(tmp_path / "dark.tif", "optical")


def test_deep_map_pictures(tmp_path):
    image = drawn(COLOURS["fields"], river)
    (tmp_path / "deep.png").write_bytes(imagecodecs.png_encode(image.astype(np.uint16) * 257))
    guide = read(tmp_path / "deep.png", "map")
    assert (guide.image == image).all()
    assert guide.notes == ("Its 16 bits a colour were reduced to the upper 8.",)
    tifffile.imwrite(tmp_path / "deep.tif", image.astype(np.uint16) * 257, photometric="rgb")
    with pytest.raises(InputError, match="3 bands of values"):
        read(tmp_path / "deep.tif", "map")


@pytest.mark.parametrize("dtype", ["uint16", "int16", "int32", "float32", "float64"])
def test_codes_of_other_types(tmp_path, dtype):
    codes = np.full((16, 16), 17, dtype)
    codes[:4] = 12
    tifffile.imwrite(tmp_path / "codes.tif", codes)
    np.save(tmp_path / "codes.npy", codes)
    for name in ("codes.tif", "codes.npy"):
        guide = read(tmp_path / name, "map", "igbp")
        assert guide.image.dtype == np.uint8
        assert (guide.image == codes).all()
        assert guide.notes == (f"Its values ({dtype}) are whole numbers up to 255 and were taken for class codes.",)
    codes[0, 0] = 300
    tifffile.imwrite(tmp_path / "big.tif", codes)
    with pytest.raises(InputError, match="from 12 to 300, and class codes are whole numbers from 0 to 255"):
        read(tmp_path / "big.tif", "map", "igbp")
    if dtype == "uint16":
        Image.fromarray(codes).save(tmp_path / "big.png")
        with pytest.raises(InputError, match="from 12 to 300"):
            read(tmp_path / "big.png", "map", "igbp")
    if dtype.startswith("float"):
        codes[0, 0] = 12.5
        tifffile.imwrite(tmp_path / "half.tif", codes)
        with pytest.raises(InputError, match="fractions"):
            read(tmp_path / "half.tif", "map", "igbp")
        codes[0, 0] = np.nan
        tifffile.imwrite(tmp_path / "nan.tif", codes)
        assert read(tmp_path / "nan.tif", "map", "igbp").image[0, 0] == NODATA


def test_no_data_of_a_geotiff_is_no_data(tmp_path):
    codes = np.full((16, 16), 1, np.uint8)
    codes[:4] = 99
    tifffile.imwrite(tmp_path / "map.tif", codes, extratags=[(42113, "s", 0, "99", True)], metadata=None)
    guide = read(tmp_path / "map.tif", "map", "dynamicworld")
    assert (guide.image[:4] == NODATA).all()
    assert "Ground without data (25%)" in prepare_guide(guide, 64, 64, 0).note


def test_geotiff_with_a_colour_table(tmp_path):
    """As WorldCover's own tiles are: codes as indices into a table of colours."""
    rasterio = pytest.importorskip("rasterio")
    codes = np.random.default_rng(0).choice(np.array([0, 10, 40, 80], np.uint8), (64, 64))
    path = tmp_path / "ESA_WorldCover.tif"
    with rasterio.open(
        path, "w", driver="GTiff", width=64, height=64, count=1, dtype="uint8", nodata=0, compress="deflate",
        tiled=True, blockxsize=32, blockysize=32, photometric="palette",
    ) as file:  # fmt: skip
        file.write(codes, 1)
        file.write_colormap(1, {0: (0, 0, 0, 0), 10: (0, 100, 0), 40: (240, 150, 255), 80: (0, 100, 200)})
    for palette in ("worldcover", "auto"):
        prepared = prepare_guide(read(path, "map", palette), 64, 64, 0)
        expected = {0: "fields", 10: "forest", 40: "fields", 80: "water"}
        for code, name in expected.items():
            assert (prepared.shown[codes == code] == COLOURS[name]).all(), (palette, code)


def test_land_cover_of_sen12ms_is_igbp(tmp_path):
    """Four bands of 16 bits, the first of which holds IGBP codes, whichever of the two names was chosen."""
    bands = np.stack([np.full((16, 16), value, np.uint16) for value in (8, 41, 9, 10)])
    tifffile.imwrite(tmp_path / "ROIs_lc.tif", bands, planarconfig="separate", photometric="minisblack")
    for palette in ("sen12ms", "igbp"):
        guide = read(tmp_path / "ROIs_lc.tif", "map", palette)
        assert guide.palette == "igbp"
        assert (guide.image == 8).all()
        assert "IGBP codes" in guide.notes[0]
        assert (prepare_guide(guide, 64, 64, 0).shown == COLOURS["forest"]).all()  # woody savanna, not snow
    with pytest.raises(InputError, match="4 bands of values"):
        read(tmp_path / "ROIs_lc.tif", "map", "worldcover")


def test_bands_of_an_optical_geotiff(tmp_path):
    def write(name, count, names=(), dtype=np.uint16):
        values = np.stack([scene()[..., 0] // 2 + 100 * k for k in range(count)]).astype(dtype)
        inside = "".join(
            f'<Item name="DESCRIPTION" sample="{k}" role="description">{text}</Item>' for k, text in enumerate(names)
        )
        tags = [(42112, "s", 0, f"<GDALMetadata>{inside}</GDALMetadata>", True)] if names else []
        tifffile.imwrite(
            tmp_path / name, values, planarconfig="separate", photometric="minisblack", extratags=tags, metadata=None
        )
        return values

    def order(name):
        """Which of the bands, each brighter by 100 than the one before, are red, green and blue."""
        guide = read(tmp_path / name, "optical")
        return np.argsort(np.median(guide.image.reshape(-1, 3), axis=0)).tolist(), guide.notes[0]

    write("level2.tif", 12)
    assert order("level2.tif") == ([2, 1, 0], order("level2.tif")[1])
    assert "fourth, third and second" in order("level2.tif")[1]
    assert "level 2A" in order("level2.tif")[1]
    write("level1.tif", 13)
    assert "level 1C" in order("level1.tif")[1]
    write("named.tif", 4, ("B2", "B3", "B4", "B8"))
    assert order("named.tif") == ([2, 1, 0], "Its bands B4, B3 and B2 are used as red, green and blue.")
    write("words.tif", 4, ("Red", "Green", "Blue", "NIR"))
    assert order("words.tif")[0] == [0, 1, 2]
    write("three.tif", 3)
    assert order("three.tif") == ([0, 1, 2], "Its three bands are used as red, green and blue, in this order.")
    for count, names in ((2, ()), (4, ()), (4, ("VV", "VH", "a", "b"))):
        write("what.tif", count, names)
        with pytest.raises(InputError, match="cannot be told; save these three"):
            read(tmp_path / "what.tif", "optical")


def test_what_is_not_shown_upright_or_is_signal_is_refused(tmp_path):
    tifffile.imwrite(tmp_path / "turned.tif", scene()[..., 0], extratags=[(274, "H", 1, 6, True)])
    tifffile.imwrite(tmp_path / "signal.tif", np.ones((16, 16), np.complex64))
    for kind in ("map", "optical"):
        with pytest.raises(InputError, match="save it upright"):
            read(tmp_path / "turned.tif", kind)
        with pytest.raises(InputError, match="choose 'sar'"):
            read(tmp_path / "signal.tif", kind)


def test_mask_of_channels_is_laid_over_black(tmp_path):
    mask = np.zeros((16, 16, 4), np.uint8)
    mask[:8] = (255, 0, 0, 255)
    Image.fromarray(mask).save(tmp_path / "mask.png")
    guide = read(tmp_path / "mask.png", "map", "water-ship-land")
    assert (guide.image[8:] == 0).all()
    assert "Unpainted canvas (50%)" in prepare_guide(guide, 64, 64, 0).note


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
