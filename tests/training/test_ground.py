import numpy as np
import pytest

from sar_gen.errors import InputError
from sar_gen.rasters import Georeference
from sar_gen.training.ground import Extent, blocks_of, groups_of, meet, polarisation_in, splits_of


def laid_out(extents, tile=32, side=64, gap=8, grouping="block"):
    blocks = [block for n, extent in enumerate(extents) for block in blocks_of(n, extent, tile, side, gap, grouping)]
    return blocks, groups_of(extents, blocks, grouping)


def at(x, y, pixel=10.0, crs="EPSG:32633"):
    return Georeference(crs, (pixel, 0, x, 0, -pixel, y))


@pytest.mark.parametrize("stride", [32, 16, 13])
def test_patches_of_different_blocks_never_meet(stride):
    blocks, groups = laid_out([Extent("a.tif", 300, 251, "")])
    owner = np.full((300, 251), -1)
    tiles = 0
    for number, block in enumerate(blocks):
        own = list(block.tiles(32, stride))
        assert len(own) == block.count(32, stride)
        for row, column in own:
            part = owner[row : row + 32, column : column + 32]
            assert part.shape == (32, 32)
            assert set(np.unique(part)) <= {-1, number}
            part[:] = number
            tiles += 1
    assert len(set(groups)) == len(blocks) == 16
    assert (owner[64:72] == -1).all()  # the gap
    assert tiles >= 16 * (1 if stride == 32 else 4)


def test_the_same_ground_in_two_rasters_is_one_group():
    extents = [
        Extent("one.tif", 136, 136, "", at(0, 0)),
        Extent("two.tif", 136, 136, "", at(1000, 0)),  # overlaps the right column of blocks of the first by 36 pixels
        Extent("elsewhere.tif", 136, 136, "", at(90000, 0)),
        Extent("zone.tif", 136, 136, "", at(0, 0, crs="EPSG:32634")),
    ]
    blocks, groups = laid_out(extents)
    named = dict(zip([(block.raster, block.place) for block in blocks], groups, strict=True))
    for row in (0, 1):
        assert named[0, (row, 1)] == named[1, (row, 0)]
        assert named[0, (row, 0)] != named[0, (row, 1)]
    assert named[0, (0, 1)] != named[0, (1, 1)]
    assert len({named[2, place] for place in ((0, 0), (0, 1), (1, 0), (1, 1))}) == 4
    assert len(set(groups)) == 6 + 4 + 4


def test_a_raster_that_is_laid_over_the_gaps_of_another_joins_its_blocks():
    extents = [Extent("one.tif", 64, 136, "", at(0, 0)), Extent("over.tif", 64, 64, "", at(360, 0))]
    assert len(set(laid_out(extents)[1])) == 1


def test_bands_of_one_scene_without_georeference_share_their_blocks():
    extents = [
        Extent("d/scene_VV.tif", 136, 136, "d"), Extent("d/scene_VH.tif", 136, 136, "d"),
        Extent("d/other_VH.tif", 136, 136, "d"),
    ]  # fmt: skip
    _, groups = laid_out(extents)
    assert groups[:4] == groups[4:8]
    assert not set(groups[8:]) & set(groups[:4])


def test_whole_images_and_acquisitions_are_groups():
    extents = [Extent("p/a.tif", 99, 99, "p"), Extent("p/b.tif", 99, 99, "p"), Extent("q/c.tif", 31, 99, "q")]
    blocks, groups = laid_out(extents, grouping="image")
    assert groups == ["p/a.tif", "p/b.tif"]  # the third holds no patch
    assert blocks[0].window == (0, 0, 99, 99)
    assert laid_out(extents, grouping="acquisition")[1] == ["p", "p"]


def test_boxes_that_only_touch_do_not_meet():
    assert not meet((0, 0, 1, 1), (1, 0, 2, 1))
    assert meet((0, 0, 1, 1), (0.9, 0.9, 2, 2))
    assert not meet(None, (0, 0, 1, 1))


def test_splits_get_their_shares_and_at_least_one_group():
    groups = [f"g{i}" for i in range(100)]
    counts = [10 + i % 7 for i in range(100)]
    found = splits_of(groups, counts, (0.8, 0.1, 0.1), 0)
    total = sum(counts)
    for split, share in (("train", 0.8), ("validation", 0.1), ("reference", 0.1)):
        own = sum(count for group, count in zip(groups, counts, strict=True) if found[group] == split)
        assert own / total == pytest.approx(share, abs=0.015)
    assert splits_of(groups, counts, (0.8, 0.1, 0.1), 0) == found != splits_of(groups, counts, (0.8, 0.1, 0.1), 1)
    assert sorted(splits_of(["a", "b", "c"], [90, 5, 5], (0.8, 0.1, 0.1), 0).values()) == [
        "reference", "train", "validation",
    ]  # fmt: skip
    assert splits_of(["a", "b", "c"], [90, 5, 5], (0.8, 0.1, 0.1), 0)["a"] == "train"
    assert set(splits_of(["a", "b"], [1, 1], (1, 0, 0), 0).values()) == {"train"}


def test_shares_and_ground_that_do_not_go_together_are_refused():
    with pytest.raises(InputError, match="There is one piece of ground for 3 splits"):
        splits_of(["a", "a"], [1, 1], (0.8, 0.1, 0.1), 0)
    with pytest.raises(InputError, match="are not shares"):
        splits_of(["a"], [1], (0.8, 0.1, 0.2), 0)


def test_the_polarisation_in_a_name_is_found_where_there_is_one():
    assert polarisation_in("s1a-iw-grd-vv-2020") == "VV"
    assert polarisation_in("scene_vh") == "VH"
    assert polarisation_in("VV_VH") is None
    assert polarisation_in("chevvy") is None
