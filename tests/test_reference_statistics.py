import csv
import json

import numpy as np
import pytest
from PIL import Image

from sar_gen import reference_statistics as build
from sar_gen.amplitude import S1_VH, S1_VV
from sar_gen.errors import InputError
from sar_gen.guides import Law, intensity_field, load_palette
from sar_gen.quality.statistics import patch_statistics
from sar_gen.references import unpack_statistics

SIDE = 128
LAW = Law(0.06, 2.5, 4.0, 4.5, (1.0, 0.7, 0.35, 0.1))
SMOOTH = Law(0.06, None, 0.0, 4.5, LAW.speckle_correlation)


def grey_of_intensity(intensity):
    """8-bit decibels as in s1_pairs, of squared studio amplitude."""
    sigma0 = 10 * np.log10(intensity * S1_VV.peak**2)
    return np.rint(np.clip((sigma0 + 25) / 25, 0, 1) * 255).astype(np.uint8)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A small folder laid out like the real data: two splits and two patches each of every terrain, one scene."""
    folder = tmp_path_factory.mktemp("data")
    generator = np.random.default_rng(0)
    rows = []
    for terrain in build.TERRAINS:
        for number, split in enumerate(("train", "train", "reference")):
            intensity = intensity_field(LAW, (SIDE, SIDE), generator)
            if terrain == "forest" and split == "train":
                intensity = intensity_field(SMOOTH, (SIDE, SIDE), generator)  # ground to take the looks from
            optical = generator.normal(60, 8, (SIDE, SIDE))
            if terrain == "river":
                water = Law(0.006, None, 0.0, 4.5, LAW.speckle_correlation)
                intensity[:, :70] = intensity_field(water, (SIDE, 70), generator)
            if terrain == "residential":
                optical[:64, :64] = generator.choice([40, 240], (64, 64))
                intensity[:64, :64] *= 3
            names = [f"{kind}/{terrain}_{number}.png" for kind in ("sar", "optical")]
            for name, picture in zip(names, (grey_of_intensity(intensity), optical.clip(0, 255)), strict=True):
                (folder / name).parent.mkdir(exist_ok=True)
                Image.fromarray(picture.astype(np.uint8)).save(folder / name)
            rows.append([split, terrain, f"g{number}", *names])
    with (folder / "s1_pairs.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["split", "terrain", "overlap_group", "sar", "optical"], *rows])
    scene = generator.integers(0, 256, (512, 600)).astype(np.uint8)
    Image.fromarray(scene).save(folder / "scene.png")
    with (folder / "s1_scenes.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["scene", "sar"], ["048", "scene.png"]])
    return folder


@pytest.fixture(scope="module")
def built(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    return build.build_references(data, out), out


def test_pairs_are_decibels_and_scenes_linear():
    grey = np.array([[0, 102, 204, 255]], dtype=np.uint8)
    sigma0_db = np.array([[-25.0, -15.0, -5.0, 0.0]])
    assert build.pair_sigma0_db(grey) == pytest.approx(sigma0_db)
    peak = 0.266341 + 3 * 0.184718
    assert build.pair_amplitude(grey) == pytest.approx(np.minimum(10 ** (sigma0_db / 20) / peak, 1), abs=1e-6)
    assert build.pair_amplitude(grey).max() == 1
    scene = np.arange(512 * 600, dtype=np.int64).reshape(512, 600) % 256
    crops = build.scene_crops(scene.astype(np.uint8))
    assert len(crops) == 4
    assert crops[3] == pytest.approx(np.minimum(scene[256:, 256:512] / 250.5, 1), abs=1e-6)
    assert S1_VH.peak == pytest.approx(250.5)


def test_index_and_statistics_of_a_small_folder(data, built):
    index, out = built
    assert json.loads((out / "index.json").read_text()) == index
    names = [entry["name"] for entry in index["sets"]]
    assert names == ["s1-forest", "s1-gorge", "s1-agriculture", "s1-river", "s1-residential", "s1-vh"]
    forest, vh = index["sets"][0], index["sets"][-1]
    assert (forest["count"], forest["groups"], forest["splits"]) == (3, 3, {"reference": 1, "train": 2})
    assert (vh["count"], vh["groups"], vh["splits"], vh["polarisation"]) == (4, 1, {}, "VH")
    statistics, splits, _ = unpack_statistics((out / forest["file"]).read_bytes())
    assert splits == ("train", "train", "reference")
    assert statistics.groups == ("g0", "g1", "g2")
    greys = [np.asarray(Image.open(data / "sar" / f"forest_{n}.png")).astype(float) for n in range(3)]
    amplitudes = [np.clip(10 ** ((grey / 255 * 25 - 25) / 20) / S1_VV.peak, 0, 1).astype(np.float32) for grey in greys]
    expected = patch_statistics(amplitudes, ["g0", "g1", "g2"])
    assert (statistics.histograms == expected.histograms).all()
    assert statistics.glcm == pytest.approx(expected.glcm)
    assert statistics.enl == pytest.approx(expected.enl, nan_ok=True)


def test_the_same_data_give_the_same_files(data, built, tmp_path):
    _, out = built
    build.build_references(data, tmp_path)
    for path in out.iterdir():
        assert path.read_bytes() == (tmp_path / path.name).read_bytes()
    assert build.build_class_statistics(data) == build.build_class_statistics(data)


def test_class_statistics_of_a_small_folder(data):
    statistics = build.build_class_statistics(data)
    assert statistics["patches"] == 10  # train only
    classes = statistics["classes"]
    assert {name for name, law in classes.items() if law["measured"]} == set(classes) - {"road"}
    assert classes["fields"]["mean_intensity"] == pytest.approx(0.06, rel=0.25)
    assert classes["urban"]["mean_intensity"] > 2 * classes["fields"]["mean_intensity"]
    assert "2 windows" in classes["urban"]["source"]
    assert classes["water"]["mean_intensity"] == pytest.approx(0.006, rel=0.1)
    assert classes["water"]["texture_order"] is None
    assert classes["road"]["mean_intensity"] == pytest.approx(classes["fields"]["mean_intensity"] * 10**-0.4, rel=1e-3)
    references = {entry.name: entry.reference for entry in load_palette().classes}
    assert {name: law["reference"] for name, law in classes.items()} == references
    assert set(statistics["optical"]["rank_correlation"]) == set(build.TERRAINS)


def test_looks_and_speckle_correlation_come_back():
    """Of 2 % quiet windows among textured ones the sensor's speckle is found."""
    generator = np.random.default_rng(1)
    quiet = np.sqrt(intensity_field(SMOOTH, (64, 128), generator))
    textured = np.sqrt(intensity_field(LAW, (640, 640), generator))
    windows = build._stack([build.log_windows(part) for part in (quiet, textured)])
    assert len(windows.mean) == 102
    looks, correlation = build.sensor_speckle(windows)
    assert looks == pytest.approx(4.5, rel=0.1)
    assert correlation[:4] == pytest.approx(LAW.speckle_correlation, abs=0.05)


def test_class_law_comes_back():
    windows = build.log_windows(np.sqrt(intensity_field(LAW, (768, 768), np.random.default_rng(2))))
    law = build.class_law(windows, LAW.looks, LAW.speckle_correlation)
    assert law["mean_intensity"] == pytest.approx(0.06, rel=0.07)
    assert law["texture_order"] == pytest.approx(2.5, rel=0.15)
    assert law["texture_length"] == pytest.approx(4, rel=0.25)
    smooth = build.log_windows(np.sqrt(intensity_field(SMOOTH, (768, 768), np.random.default_rng(2))))
    law = build.class_law(smooth, SMOOTH.looks, SMOOTH.speckle_correlation)
    assert law["texture_order"] is None
    assert law["mean_intensity"] == pytest.approx(0.06, rel=0.02)


def test_inverse_trigamma():
    """psi1(1) = pi^2 / 6, psi1(1/2) = pi^2 / 2, psi1(2) = pi^2 / 6 - 1."""
    assert build.inverse_trigamma(np.pi**2 / 6) == pytest.approx(1)
    assert build.inverse_trigamma(np.pi**2 / 2) == pytest.approx(0.5)
    assert build.inverse_trigamma(np.pi**2 / 6 - 1) == pytest.approx(2)


def test_water_is_dark_smooth_and_large():
    generator = np.random.default_rng(3)
    sigma0 = 10 * np.log10(0.05 * generator.gamma(4.5, 1 / 4.5, (256, 256)))
    rows, columns = np.mgrid[:256, :256]
    lake = np.hypot(rows - 100, columns - 100) < 60
    pond = np.hypot(rows - 220, columns - 220) < 20
    dark = 10 * np.log10(0.006 * generator.gamma(4.5, 1 / 4.5, (256, 256)))
    sigma0 = np.where(lake | pond, dark, sigma0)
    mask = build.water_mask(sigma0)
    assert (mask & ~lake).sum() < 0.01 * lake.sum()
    assert (mask & lake).sum() > 0.8 * lake.sum()
    assert not mask[pond].any()  # too small
    rough = dark + generator.normal(0, 4, dark.shape)
    assert not build.water_mask(np.where(lake, rough, sigma0)).any()


def test_wrong_data_are_refused(data, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        build.main([str(tmp_path), "--assets", str(tmp_path / "assets")])
    assert stopped.value.code == 2
    assert "s1_pairs.csv is missing" in capsys.readouterr().err
    assert not (tmp_path / "assets").exists()
    (tmp_path / "s1_pairs.csv").write_text("split,terrain\ntrain,forest\n")
    with pytest.raises(InputError, match="overlap_group"):
        build.read_pairs(tmp_path)
    lines = (data / "s1_pairs.csv").read_text().replace("river", "lake")
    (tmp_path / "s1_pairs.csv").write_text(lines)
    with pytest.raises(InputError, match="cannot be read"):
        build.build_class_statistics(tmp_path)


def test_command_writes_what_the_studio_loads(data, tmp_path, capsys):
    assert build.main([str(data), "--assets", str(tmp_path)]) == 0
    assert "s1-vh: 4 patches" in capsys.readouterr().out
    from sar_gen.guides import load_statistics

    assert load_statistics(tmp_path / "guides" / "class_statistics.json").laws["forest"].looks > 1
    assert (tmp_path / "references" / "index.json").is_file()
