import sys

import numpy as np
import pytest
import tifffile

from sar_gen.errors import InputError, SarGenError
from sar_gen.open_data import umbra
from sar_gen.open_data.pull import usable
from sar_gen.open_data.scenes import Search
from sar_gen.references import load_reference, pulled_folder
from tests.open_data.conftest import speckle

WEST, NORTH, STEP, SIDE = 10.0, 50.0, 5e-6, 1024  # about half a metre a pixel


def grey(seed, gain):
    """Eight-bit amplitude, of ground that is brighter to the east, with an empty corner."""
    amplitude = np.sqrt(speckle((SIDE, SIDE), seed)) * np.linspace(0.5, 1.5, SIDE)
    levels = np.clip(amplitude * gain, 1, 255).astype(np.uint8)
    levels[:200, :200] = 0
    return levels


@pytest.fixture
def index(served, cog, tmp_path):
    """An index of three acquisitions on the local server: two of one place, one elsewhere."""
    umbra_py = pytest.importorskip("umbra_py")
    path = tmp_path / "catalog.db"
    served.pixels = {}
    with umbra_py.CatalogIndex(path) as made:
        for number, (gain, polarisation, west) in enumerate([(300, "VV", WEST), (150, "VV", WEST), (200, "HH", WEST)]):
            stem = f"2024-05-0{number + 1}-10-00-00_UMBRA-04"
            served.pixels[stem] = grey(number, gain)
            file = f"/data/{stem}/{stem}_GEC.tif"
            served.files[file] = cog(served.pixels[stem], west, NORTH, STEP, crs="EPSG:4326")
            right, bottom = west + SIDE * STEP, NORTH - SIDE * STEP
            ring = [[west, bottom], [right, bottom], [right, NORTH], [west, NORTH], [west, bottom]]
            document = {
                "id": stem,
                "geometry": {"type": "Polygon", "coordinates": [ring]},
                "bbox": [west, bottom, right, NORTH],
                "properties": {
                    "datetime": f"2024-05-0{number + 1}T10:00:00Z",
                    "sar:polarizations": [polarisation],
                    "platform": "Umbra-04",
                },
                "assets": {
                    "gec": {"href": served.url + file, "type": "image/tiff", "umbra-py:filename": f"{stem}_GEC.tif"}
                },
            }
            made.add(umbra_py.UmbraItem.from_dict(document, href=f"{served.url}/data/{stem}/{stem}.stac.v2.json"))
    return path


def box(first_column, first_row, last_column, last_row):
    return (
        WEST + first_column * STEP, NORTH - last_row * STEP, WEST + last_column * STEP, NORTH - first_row * STEP,
    )  # fmt: skip


def test_umbra_acquisitions_become_a_set_with_a_scale_each(served, index, settings):
    wanted = Search(box(0, 0, 512, 512), "2024-05-01", "2024-05-31")
    info = umbra.pull_umbra(wanted, "Harbour", settings, size=128, index=index)
    reference = load_reference("harbour", settings)
    assert (info.title, reference.polarisation, reference.encoding) == ("Harbour", "VV", "linear")
    assert (reference.licence, "CC BY 4.0" in reference.credit) == ("CC BY 4.0", True)
    assert "not calibrated" in reference.note
    assert reference.scale is None  # one an acquisition

    files = sorted(pulled_folder("harbour", settings).rglob("*.tif"))
    scenes = {file.parent.parent.name for file in files}
    assert scenes == {"2024-05-01-10-00-00_UMBRA-04", "2024-05-02-10-00-00_UMBRA-04"}
    for scene in scenes:
        own = {file: tifffile.imread(file) for file in files if file.parent.parent.name == scene}
        for file, patch in own.items():
            row, column = int(file.stem[1:7]), int(file.stem[8:])
            assert patch.dtype == np.uint8
            assert (patch == served.pixels[scene][row : row + 128, column : column + 128]).all()
            assert (patch == 0).mean() <= 0.01  # the empty corner is left out
        pixels = np.stack(list(own.values())).astype(float)
        for shown in (patch for patch in reference.patches if patch.path in own):
            expected = np.clip(own[shown.path] / (pixels.mean() + 3 * pixels.std()), 0, 1)
            assert shown.amplitude == pytest.approx(expected, abs=1e-6)
            assert shown.scale.mean == pytest.approx(pixels.mean())
    # The gains of 300 and 150 are gone: both acquisitions have one mean amplitude.
    means = {
        scene: np.mean([p.amplitude.mean() for p in reference.patches if scene in str(p.path)]) for scene in scenes
    }
    assert max(means.values()) == pytest.approx(min(means.values()), rel=0.02)
    hh = "/data/2024-05-03-10-00-00_UMBRA-04/2024-05-03-10-00-00_UMBRA-04_GEC.tif"
    assert not served.bytes_sent[hh]
    for scene in scenes:
        path = f"/data/{scene}/{scene}_GEC.tif"
        assert 0 < served.bytes_sent[path] < 0.5 * len(served.files[path])


def test_searches_that_find_nothing_say_so(index, settings, tmp_path):
    with pytest.raises(InputError, match="no open VV image"):
        umbra.search(Search((20, 50, 21, 51)), index=index)
    with pytest.raises(InputError, match="no open VH image"):
        umbra.search(Search(box(0, 0, 512, 512), polarisation="VH"), index=index)
    with pytest.raises(InputError, match="no open VV image"):
        umbra.search(Search(box(0, 0, 512, 512), first="2025-01-01"), index=index)
    assert [scene.date for scene in umbra.search(Search(box(0, 0, 512, 512), limit=1), index=index)] == ["2024-05-02"]
    with pytest.raises(InputError, match="There is no index"):
        umbra.search(Search(box(0, 0, 512, 512)), index=tmp_path / "none.db")
    (tmp_path / "damaged.db").write_bytes(b"no database" * 100)
    with pytest.raises(SarGenError, match="cannot be used"):
        umbra.search(Search(box(0, 0, 512, 512)), index=tmp_path / "damaged.db")


def test_without_the_extra_one_sentence_names_the_command(settings, monkeypatch):
    monkeypatch.setitem(sys.modules, "umbra_py", None)
    with pytest.raises(InputError, match=r"pip install \"umbra-py\[load\]\""):
        umbra.pull_umbra(Search((8, 47, 9, 48)), "x", settings)


def test_what_counts_as_data():
    pixels = np.full((100, 100), 5.0, dtype=np.float32)
    assert usable(pixels, None)
    assert not usable(pixels, 5.0)
    pixels[0] = 0
    assert usable(pixels, 0.0)  # dark ground: one pixel in a hundred
    pixels[1, 0] = 0
    assert not usable(pixels, None)
    for bad in (np.nan, np.inf, -1.0):
        pixels = np.full((100, 100), 5.0, dtype=np.float32)
        pixels[3, 3] = bad
        assert not usable(pixels, None)
