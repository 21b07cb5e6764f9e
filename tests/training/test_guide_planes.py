import dataclasses

import numpy as np
import pytest
from PIL import Image

from sar_gen.conditioning import PLANES
from sar_gen.guides import CLASSES
from sar_gen.training.config import GuidesConfig
from sar_gen.training.dataset import open_manifest
from sar_gen.training.guide_planes import GuidePlanes, degraded, jittered, row_map, row_optical
from tests.training.conftest import SIDE, write_data


@pytest.fixture
def paired(place):
    write_data(place.data, optical=True)
    return place


def source(place, **guides):
    config = place.config("control", "guides", guides=guides)
    return GuidePlanes(open_manifest(config.data, SIDE, 0), config)


def kinds_of(batch):
    return [
        tuple(name for name in ("map", "optical", "sar") if one[PLANES.index(f"has {name}")].all()) for one in batch
    ]


def test_each_patch_has_one_kind_or_none_in_the_shares_asked_for(paired):
    give = source(paired, dropped=0.25)
    kinds = [kind for number in range(30) for kind in kinds_of(give(range(8), number))]
    counts = {kind: kinds.count(kind) / len(kinds) for kind in set(kinds)}
    assert set(counts) == {(), ("map",), ("optical",), ("sar",)}
    for share in counts.values():
        assert share == pytest.approx(0.25, abs=0.12)


def test_batch_and_place_alone_decide(paired):
    one, other = source(paired), source(paired)
    np.testing.assert_array_equal(one([0, 1, 2], 5), other([0, 1, 2], 5))
    assert np.abs(one([0, 1, 2], 5) - one([0, 1, 2], 6)).max() > 0
    assert np.abs(one([0, 1, 2], 5) - one([0, 1, 2], 5, rank=1)).max() > 0


def test_a_map_is_one_class_a_pixel_and_made_once(paired):
    give = source(paired, kinds=["map"], dropped=0.0)
    made = give([0, 1], 0)
    assert made.shape == (2, len(PLANES), SIDE, SIDE)
    np.testing.assert_array_equal(made[:, : len(CLASSES)].sum(axis=1), 1)
    folder = paired.settings.checkpoints / "guides.work" / "maps"
    files = {path: path.stat().st_mtime_ns for path in folder.glob("*.png")}
    assert len(files) == 2
    np.testing.assert_array_equal(source(paired, kinds=["map"], dropped=0.0)([0, 1], 0), made)
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*.png")} == files


def test_optical_and_coarse_sar_lie_where_the_patch_does(paired):
    """The dark half of the patch is dark in its guides: the left one of even patches, the right one of odd ones."""
    for kind in ("optical", "sar"):
        made = source(paired, kinds=[kind], dropped=0.0, jitter=0.0)([0, 1], 0)[:, PLANES.index(kind)]
        left, right = made[:, :, : SIDE // 2 - 4].mean(axis=(1, 2)), made[:, :, SIDE // 2 + 4 :].mean(axis=(1, 2))
        assert left[0] < 0.6 * right[0]
        assert right[1] < 0.6 * left[1]


def test_a_window_of_a_scene_takes_its_own_part_of_a_coarser_optical_picture(tmp_path):
    from sar_gen.training.manifest import PatchRow

    random = np.random.default_rng(1)
    optical = random.integers(0, 256, (64, 96, 3), dtype=np.uint8)
    Image.fromarray(np.zeros((128, 192), np.uint8)).save(tmp_path / "sar.png")
    Image.fromarray(optical).save(tmp_path / "optical.png")
    row = PatchRow(
        "a", "sar.png", 64, 64, "train", "g", source="sar.png", row=32, column=96, optical="optical.png",
    )  # fmt: skip
    found = row_optical(row, tmp_path, (32, 32), {})
    # The centre crop of 32 pixels begins at 48, 112 in SAR: 24, 56 in the picture, which is half as fine.
    part = optical[24:40, 56:72].astype(float) @ [0.2126, 0.7152, 0.0722] / 255
    assert found.shape == (32, 32)
    assert found.reshape(16, 2, 16, 2).mean() == pytest.approx(part.mean(), abs=0.02)
    assert np.corrcoef(found.reshape(16, 2, 16, 2).mean(axis=(1, 3)).ravel(), part.ravel())[0, 1] > 0.95
    assert row_map(row, tmp_path, tmp_path / "maps", (32, 32), {}).shape == (32, 32)


def test_jitter_is_gain_and_gamma():
    grey = np.linspace(0.05, 0.6, 50, dtype=np.float32)[None]
    config = GuidesConfig(jitter=0.2)
    found = jittered(grey, config, np.random.default_rng(3))
    slope, offset = np.polyfit(np.log(grey[0]), np.log(found[0]), 1)
    assert np.exp(-0.2) <= slope <= np.exp(0.2)
    assert np.exp(-0.2) <= np.exp(offset) <= np.exp(0.2)
    np.testing.assert_allclose(np.log(found[0]), slope * np.log(grey[0]) + offset, atol=1e-4)
    np.testing.assert_allclose(jittered(grey, dataclasses.replace(config, jitter=0.0), np.random.default_rng(3)), grey)


def test_coarse_sar_keeps_the_power_and_has_the_speckle_asked_for():
    """A flat field: coarse pixels of mean power p and L looks have variance p^2 / L."""
    amplitude = np.full((256, 256), 0.4, np.float32)
    config = GuidesConfig(factors=(4.0, 4.0), looks=(20.0, 20.0))
    found = degraded(amplitude, config, np.random.default_rng(0))
    assert np.square(found).mean() == pytest.approx(0.16, rel=0.03)
    small = np.square(found).reshape(64, 4, 64, 4)[:, 1:3, :, 1:3].mean(axis=(1, 3))
    looks = small.mean() ** 2 / small.var()
    assert 12 < looks < 40  # Lanczos between the coarse pixels averages a little
    smoother = degraded(amplitude, dataclasses.replace(config, looks=(1e6, 1e6)), np.random.default_rng(0))
    np.testing.assert_allclose(smoother, 0.4, atol=0.01)
