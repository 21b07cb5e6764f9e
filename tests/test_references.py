import dataclasses
import hashlib
import io
import json
import tarfile

import numpy as np
import pytest
import tifffile
from PIL import Image

from sar_gen import reference_packaged, references
from sar_gen.amplitude import S1_VV, Scale, quantise
from sar_gen.errors import InputError, SarGenError
from sar_gen.patches import Patch, PixelMeaning
from sar_gen.quality.statistics import patch_statistics
from sar_gen.references import (
    add_reference,
    check_comparable,
    from_patches,
    list_references,
    load_reference,
    remove_reference,
)
from sar_gen.settings import Settings

SHIPPED = ("s1-forest", "s1-gorge", "s1-agriculture", "s1-river", "s1-residential", "s1-vh")


@pytest.fixture
def settings(tmp_path):
    return Settings(home=tmp_path / "home", runs=tmp_path / "runs")


def speckle(seed, mean=0.3, side=64):
    generator = np.random.default_rng(seed)
    return (mean * np.sqrt(generator.gamma(4, 1 / 4, (side, side)))).astype(np.float32)


@pytest.fixture
def db_folder(tmp_path):
    """Three float patches in decibels of power, of sigma0 amplitude around 0.3."""
    folder = tmp_path / "tiles"
    folder.mkdir()
    for seed in range(3):
        tifffile.imwrite(folder / f"tile{seed}.tif", (20 * np.log10(speckle(seed))).astype(np.float32))
    return folder


# Shipped


def test_shipped_files_match_the_index():
    folder = Settings().assets / "references"
    index = json.loads((folder / references.INDEX).read_text())
    assert [entry["name"] for entry in index["sets"]] == list(SHIPPED)
    total = sum(path.stat().st_size for path in folder.glob("*.npz"))
    assert total < 3_000_000
    for entry in index["sets"]:
        data = (folder / entry["file"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == entry["sha256"]
        assert "Copernicus" in entry["credit"]
        assert entry["licence"]
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            assert len(file["groups"]) == entry["count"]
            assert len(set(file["groups"])) == entry["groups"]


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_sets_load(name, settings):
    reference = load_reference(name, settings)
    info = {info.name: info for info in list_references(settings)}[name]
    assert (info.title, info.count, info.polarisation) == (
        reference.title, len(reference.statistics), reference.polarisation,
    )  # fmt: skip
    assert reference.encoding == info.encoding == "linear"
    assert reference.patches == ()
    assert not info.has_patches
    assert (reference.statistics.histograms.sum(axis=1) == 256 * 256).all()
    assert np.isfinite(reference.statistics.glcm).all()
    assert reference.scale is not None
    assert len(reference.splits) == info.count
    assert load_reference(name, settings) is reference


def test_shipped_vv_sets_have_the_sources_mean(settings):
    """The scale says mean / (mean + 3 std) = 0.3246 of all train pixels; clipping 3 % at 1 lowers it a little."""
    train = []
    for name in SHIPPED[:-1]:
        reference = load_reference(name, settings)
        assert reference.scale == S1_VV
        rows = [row for row, split in enumerate(reference.splits) if split == "train"]
        train.append(reference.statistics.subset(rows).histograms.sum(axis=0))
        # the held-out patches share no ground with the others
        groups = reference.statistics.groups
        held_out = {group for group, split in zip(groups, reference.splits, strict=True) if split == "reference"}
        assert held_out
        assert not held_out & {groups[row] for row in rows}
    counts = np.sum(train, axis=0)
    mean = (counts * (np.arange(1024) + 0.5) / 1024).sum() / counts.sum()
    assert counts.sum() == 1704 * 256 * 256
    assert mean == pytest.approx(S1_VV.mean / S1_VV.peak, rel=0.02)


def test_train_against_reference_distances_are_those_measured_before(settings):
    """Wasserstein-1 of the pooled amplitudes of both splits, measured independently when the data were prepared."""
    expected = {"gorge": 0.012, "forest": 0.029, "residential": 0.042, "river": 0.058, "agriculture": 0.073}
    for terrain, distance in expected.items():
        reference = load_reference(f"s1-{terrain}", settings)
        train = np.array(reference.splits) == "train"
        shares = reference.statistics.shares
        gap = np.cumsum(shares[train].mean(axis=0) - shares[~train].mean(axis=0))
        assert np.abs(gap).sum() / 1024 == pytest.approx(distance, abs=0.0006)


def test_damaged_or_missing_statistics_are_a_failure(tmp_path, settings):
    assets = tmp_path / "assets"
    (assets / "references").mkdir(parents=True)
    for path in (settings.assets / "references").iterdir():
        (assets / "references" / path.name).write_bytes(path.read_bytes())
    (assets / "references" / "s1-vh.npz").write_bytes(b"PK")
    (assets / "references" / "s1-gorge.npz").unlink()
    broken = dataclasses.replace(settings, assets=assets)
    with pytest.raises(SarGenError, match="damaged"):
        load_reference("s1-vh", broken)
    with pytest.raises(SarGenError, match="missing"):
        load_reference("s1-gorge", broken)
    with pytest.raises(SarGenError, match="cannot be read"):
        list_references(dataclasses.replace(settings, assets=tmp_path / "none"))
    whole = (settings.assets / "references" / "s1-vh.npz").read_bytes()
    changed = bytearray(whole)
    changed[2000:2400] = bytes(400)
    for data in (b"", b"PK", b"text", whole[:-500], bytes(changed)):
        with pytest.raises(SarGenError, match="cannot be read"):
            references.unpack_statistics(data)


# Packaged


@pytest.mark.parametrize(("name", "polarisation"), [("ben-vv", "VV"), ("ben-vh", "VH")])
def test_packaged_patches_load(name, polarisation, settings):
    reference = load_reference(name, settings)
    info = {info.name: info for info in list_references(settings)}[name]
    assert info.has_patches
    assert info.count == len(reference.patches) == 6
    assert reference.polarisation == info.polarisation == polarisation
    assert "BigEarthNet" in reference.credit
    assert "Copernicus" in reference.credit
    for patch in reference.patches:
        assert patch.amplitude.shape == (120, 120)
        assert patch.amplitude.dtype == np.float32
        assert patch.scale == reference.scale
    assert any("Coniferous forest" in patch.name for patch in reference.patches)
    assert len(set(reference.statistics.groups)) == 6


def test_packaged_decibels_become_amplitude_exactly(settings):
    """Independent path: tifffile on the archive, 10 ** (dB / 20) / (mean + 3 std)."""
    archive = reference_packaged._archive()
    amplitudes = {patch.group: patch.amplitude for patch in load_reference("ben-vv", settings).patches}
    vh = {patch.group: patch.amplitude for patch in load_reference("ben-vh", settings).patches}
    linear_vh = []
    with tarfile.open(archive) as tar:
        for member in tar.getmembers():
            if not member.name.endswith(".tif"):
                continue
            group = member.name.split("/")[1]
            decibels = tifffile.imread(io.BytesIO(tar.extractfile(member).read())).astype(float)
            if member.name.endswith("_VV.tif"):
                expected = np.clip(10 ** (decibels / 20) / (S1_VV.mean + 3 * S1_VV.std), 0, 1)
                assert amplitudes[group] == pytest.approx(expected, abs=1e-6)
            else:
                linear_vh.append((group, 10 ** (decibels / 20)))
    pixels = np.concatenate([values.ravel() for _, values in linear_vh])
    for group, values in linear_vh:
        assert vh[group] == pytest.approx(np.clip(values / (pixels.mean() + 3 * pixels.std()), 0, 1), abs=1e-6)


def test_without_the_package_one_sentence(monkeypatch, settings):
    monkeypatch.setattr(reference_packaged, "PACKAGE", "no_such_package")
    reference_packaged.packaged_set.cache_clear()
    assert not [info for info in list_references(settings) if info.name.startswith("ben")]
    with pytest.raises(InputError, match="pip install bigearthnet-common"):
        load_reference("ben-vv", settings)


# The user's own


def test_user_folder_is_added_measured_and_loaded(db_folder, settings):
    info = add_reference(db_folder, "My Forest", PixelMeaning("db"), settings, polarisation="VV", credit="me")
    assert (info.name, info.title, info.count, info.origin) == ("my-forest", "My Forest", 3, "user")
    assert list_references(settings)[-1] == info
    reference = load_reference("my-forest", settings)
    assert (reference.encoding, reference.polarisation, reference.credit) == ("linear", "VV", "me")
    linear = np.stack([speckle(seed) for seed in range(3)]).astype(float)
    peak = linear.mean() + 3 * linear.std()
    assert reference.scale.peak == pytest.approx(peak, rel=1e-5)
    for seed, patch in enumerate(reference.patches):
        assert patch.amplitude == pytest.approx(np.clip(speckle(seed) / peak, 0, 1), abs=1e-5)
    expected = patch_statistics([patch.amplitude for patch in reference.patches])
    assert (reference.statistics.histograms == expected.histograms).all()
    assert check_comparable(reference, "linear", "VV") == []


def test_user_statistics_are_cached(db_folder, settings, monkeypatch):
    add_reference(db_folder, "own", PixelMeaning("db"), settings)
    first = load_reference("own", settings)
    references._cached.cache_clear()
    calls = []
    real = references.build
    monkeypatch.setattr(references, "build", lambda *a, **k: calls.append(a) or real(*a, **k))
    again = load_reference("own", settings)
    assert not calls  # from the cache in the home folder
    assert (again.statistics.histograms == first.statistics.histograms).all()
    assert again.statistics.glcm == pytest.approx(first.statistics.glcm, nan_ok=True)
    assert again.scale == first.scale
    assert len(again.patches) == 3
    assert (again.patches[1].amplitude == first.patches[1].amplitude).all()
    tifffile.imwrite(db_folder / "tile3.tif", (20 * np.log10(speckle(3, 0.5))).astype(np.float32))
    assert len(load_reference("own", settings).statistics) == 4
    assert len(calls) == 1
    for path in (settings.home / "references" / "cache").iterdir():
        path.write_bytes(b"damaged")
    references._cached.cache_clear()
    assert len(load_reference("own", settings).statistics) == 4
    assert len(calls) == 2


def test_uploads_are_copied_and_folders_may_go(db_folder, settings):
    add_reference(db_folder, "kept", PixelMeaning("db"), settings, copy=True)
    add_reference(db_folder, "linked", PixelMeaning("db"), settings)
    for path in db_folder.iterdir():
        path.unlink()
    db_folder.rmdir()
    references._cached.cache_clear()
    assert len(load_reference("kept", settings).patches) == 3
    linked = load_reference("linked", settings)
    assert linked.patches == ()
    assert len(linked.statistics) == 3
    assert "gone" in linked.note
    remove_reference("kept", settings)
    assert "kept" not in {info.name for info in list_references(settings)}
    assert not (settings.home / "references" / "kept").exists()
    with pytest.raises(InputError, match="no reference set"):
        remove_reference("kept", settings)


def test_folders_that_cannot_be_references_are_refused(tmp_path, db_folder, settings):
    greys = tmp_path / "greys"
    greys.mkdir()
    Image.fromarray(quantise(speckle(0))).save(greys / "a.png")
    with pytest.raises(InputError, match="does not say what its pixels mean; say it"):
        add_reference(greys, "greys", None, settings)
    with pytest.raises(InputError, match="does not say what its pixels mean"):
        load_reference(greys, settings)
    with pytest.raises(InputError, match="db_range"):
        add_reference(greys, "greys", PixelMeaning("db"), settings)  # clipped decibels of unknown range
    with pytest.raises(InputError, match="already"):
        add_reference(db_folder, "S1 forest", PixelMeaning("db"), settings)
    with pytest.raises(InputError, match="no usable name"):
        add_reference(db_folder, " - ", PixelMeaning("db"), settings)
    with pytest.raises(InputError, match="not a folder"):
        add_reference(db_folder / "none", "x", PixelMeaning("db"), settings)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InputError, match="no patches"):
        add_reference(empty, "x", PixelMeaning("studio"), settings)
    assert [info.origin for info in list_references(settings)].count("user") == 0
    with pytest.raises(InputError, match="s1-forest, s1-gorge"):
        load_reference("s2-forest", settings)


def test_eight_bit_decibels_of_known_range_are_converted(tmp_path, settings):
    folder = tmp_path / "grey-db"
    folder.mkdir()
    grey = np.random.default_rng(0).integers(60, 200, (32, 32)).astype(np.uint8)
    Image.fromarray(grey).save(folder / "a.png")
    add_reference(folder, "grey-db", PixelMeaning("db", S1_VV, db_range=(-25, 0)), settings)
    references._cached.cache_clear()
    patch = load_reference("grey-db", settings).patches[0]
    assert patch.amplitude == pytest.approx(np.clip(10 ** ((grey / 255 * 25 - 25) / 20) / S1_VV.peak, 0, 1), abs=1e-5)


def test_damaged_list_of_sets_is_reported(settings):
    path = settings.home / "references" / "sets.json"
    path.parent.mkdir(parents=True)
    path.write_text('{"sets": [{}]}')
    with pytest.raises(InputError, match=r"sets\.json"):
        list_references(settings)


def test_a_run_is_a_reference(tmp_path, settings):
    folder = tmp_path / "run"
    folder.mkdir()
    images = []
    for seed in (7, 8):
        amplitude = speckle(seed)
        np.save(folder / f"{seed}.npy", amplitude)
        Image.fromarray(quantise(amplitude)).save(folder / f"{seed}.png")
        images.append({"amplitude_file": f"{seed}.npy", "sha256": hashlib.sha256(amplitude.tobytes()).hexdigest()})
    checkpoint = {"amplitude_encoding": "unknown", "polarisation": None}
    (folder / "run.json").write_text(json.dumps({"images": images, "checkpoint": checkpoint}))
    reference = load_reference(folder, settings)
    assert (reference.name, len(reference.statistics), reference.encoding) == ("run", 2, "unknown")
    assert (reference.patches[0].amplitude == speckle(7)).all()
    single = load_reference(folder / "7.npy", settings)
    assert (single.statistics.histograms[0] == reference.statistics.histograms[0]).all()


# Sets and comparability


def test_from_patches_keeps_groups_and_never_pools(settings):
    patches = [
        Patch(speckle(0), "a", polarisation="VV", group="west", credit="somebody"),
        Patch(speckle(1), "b", polarisation="VV"),
        Patch(speckle(2), "c", polarisation="VV"),
        Patch(speckle(2), "copy of c", polarisation="VV"),
    ]
    reference = from_patches(patches, "mixed")
    assert reference.statistics.groups[0] == "west"
    assert len(set(reference.statistics.groups)) == 3  # a copy shares its original's ground
    assert reference.credit == "somebody"
    with pytest.raises(InputError, match="polarisation"):
        from_patches([patches[0], dataclasses.replace(patches[1], polarisation="VH")], "mixed")
    with pytest.raises(InputError, match="encoding"):
        from_patches([patches[0], dataclasses.replace(patches[1], encoding="db")], "mixed")
    with pytest.raises(InputError, match="no patches"):
        from_patches([], "mixed")


def test_check_comparable(settings):
    forest = load_reference("s1-forest", settings)
    assert check_comparable(forest, "linear", "VV") == []
    assert check_comparable(forest, "linear", None) == []
    assert check_comparable(forest, "linear", "VV+VH") == []
    [unknown] = check_comparable(forest, "unknown", "VV")
    assert "unknown" in unknown
    [polarisation] = check_comparable(forest, "linear", "VH")
    assert "VV" in polarisation
    assert "VH" in polarisation
    assert len(check_comparable(forest, "unknown", "VH")) == 2
    with pytest.raises(InputError, match="cannot be converted exactly"):
        check_comparable(forest, "db", "VV")
    decibels = dataclasses.replace(forest, encoding="db")
    with pytest.raises(InputError, match="cannot be converted exactly"):
        check_comparable(decibels, "linear", "VV")
    assert "ranges" in check_comparable(decibels, "db", "VV")[0]
    assert "reference set's" in check_comparable(dataclasses.replace(forest, encoding="unknown"), "linear", "VV")[0]


def test_statistics_survive_packing():
    rng = np.random.default_rng(0)
    statistics = patch_statistics([rng.random((40, 40)), np.full((40, 40), 0.5)], groups=("a", "b"))
    scale = Scale(1, 2, "x").to_json()
    data = references.pack_statistics(statistics, ["train", "reference"], scale=scale)
    assert data == references.pack_statistics(statistics, ["train", "reference"], scale=scale)
    unpacked, splits, facts = references.unpack_statistics(data)
    for name, array in statistics.arrays.items():
        np.testing.assert_array_equal(getattr(unpacked, name), array)
    assert (unpacked.groups, splits, facts) == (("a", "b"), ("train", "reference"), {"scale": scale})
