import io
import json
import threading

import numpy as np
import pytest
import tifffile

from sar_gen.errors import InputError, SarGenError
from sar_gen.open_data import stac
from sar_gen.open_data.scenes import Search, parse_bbox
from sar_gen.reference_build import BuildStoppedError
from sar_gen.references import list_references, load_reference, pulled_folder, remove_reference
from tests.open_data.conftest import speckle

LEFT, TOP, STEP, SIDE = 500_000, 5_300_000, 10, 2048
NODATA = -32768.0


@pytest.fixture
def warp():
    return pytest.importorskip("rasterio.warp")


@pytest.fixture(scope="module")
def acquisitions(cog):
    """Pixels, and bytes of the file, of two acquisitions of one ground."""
    made = {}
    for number in (1, 2):
        pixels = speckle((SIDE, SIDE), number)
        pixels[:600] = NODATA  # north of this row there are no data
        made[number] = (pixels, cog(pixels, LEFT, TOP, STEP, nodata=NODATA))
    return made


@pytest.fixture
def catalogue(served, acquisitions):
    """A STAC API with the two acquisitions, on pages of one item."""
    for number, (_, data) in acquisitions.items():
        served.files[f"/data/{number}_vv.tif"] = data

    def item(number):
        return {
            "type": "Feature",
            "id": f"S1A_{number}",
            "properties": {
                "datetime": f"2023-06-0{number}T05:00:00Z",
                "constellation": "Sentinel-1",
                "sar:instrument_mode": "IW",
                "sar:frequency_band": "C",
            },
            "assets": {
                "tilejson": {"href": "x"},
                "vv": {"href": f"/data/{number}_vv.tif", "raster:bands": [{"spatial_resolution": 10}]},
                "vh": {"href": f"../data/{number}_vh.tif"},
            },
        }

    served.add_json(
        "/api/collections/sentinel-1-rtc",
        {"license": "CC-BY-4.0", "providers": [{"name": "ESA"}, {"name": "A test"}]},
    )
    served.add_json("/api/collections/mystery", {"license": "proprietary"})
    more = {"rel": "next", "href": "/api/page2", "method": "POST", "body": {"token": "next:2"}}
    served.add_json("/api/search", {"features": [item(2)], "links": [more]})
    served.add_json("/api/page2", {"features": [item(1)], "links": []})
    served.scenes = {f"S1A_{number}": pixels for number, (pixels, _) in acquisitions.items()}
    return served


def box(warp, first_column, first_row, last_column, last_row):
    """Return the degrees that lie around pixels of the scenes."""
    longitudes, latitudes = warp.transform(
        "EPSG:32632",
        "EPSG:4326",
        [LEFT + first_column * STEP, LEFT + last_column * STEP],
        [TOP - last_row * STEP, TOP - first_row * STEP],
    )
    return (longitudes[0], latitudes[0], longitudes[1], latitudes[1])


def pull(catalogue, settings, wanted, name="rtc", **more):
    return stac.pull_s1_rtc(wanted, name, settings, url=f"{catalogue.url}/api", size=128, **more)


def test_a_box_is_read_by_ranges_and_becomes_a_set(catalogue, settings, warp):
    wanted = Search(box(warp, 700, 900, 1200, 1300), "2023-06-01", "2023-06-30", "vv")
    info = pull(catalogue, settings, wanted)
    assert (info.name, info.polarisation, info.encoding, info.has_patches) == ("rtc", "VV", "linear", True)
    assert info in list_references(settings)
    reference = load_reference("rtc", settings)
    assert reference.licence == "CC-BY-4.0"
    assert reference.credit == "Contains modified Copernicus Sentinel data 2023; ESA, A test."
    assert reference.sensor == "Sentinel-1, IW, C band"
    assert "intensity" in reference.note

    # The patches are those of the sources, pixel for pixel, on the lattice of the coordinate system.
    folder = pulled_folder("rtc", settings)
    files = sorted(folder.rglob("*.tif"))
    assert len(files) == info.count == len(reference.statistics)
    places = set()
    for file in files:
        row, column = int(file.stem[1:7]), int(file.stem[8:])
        assert (LEFT / STEP + column) % 128 == 0
        assert (-TOP / STEP + row) % 128 == 0
        assert 700 <= column + 64 <= 1200
        assert 900 <= row + 64 <= 1300
        source = catalogue.scenes[file.parent.parent.name]
        assert (tifffile.imread(file) == source[row : row + 128, column : column + 128]).all()
        places.add((row, column))
    assert len(files) == 2 * len(places) == 2 * 4 * 4

    # Amplitude is the root of power, scaled by one pair over all pixels of the set.
    power = np.stack([tifffile.imread(file) for file in files]).astype(float)
    amplitude = np.sqrt(power)
    assert reference.scale.mean == pytest.approx(amplitude.mean(), rel=1e-6)
    assert reference.scale.std == pytest.approx(amplitude.std(), rel=1e-6)
    expected = np.clip(amplitude[0] / (amplitude.mean() + 3 * amplitude.std()), 0, 1)
    assert reference.patches[0].amplitude == pytest.approx(expected, abs=1e-6)

    # Both acquisitions of one place are one group, and one place is in one group only.
    cells = {}
    for file in files:
        cells.setdefault(file.name, set()).add(file.parent.name)
    assert all(len(cell) == 1 for cell in cells.values())
    assert set(reference.statistics.groups) == {cell for found in cells.values() for cell in found}

    # Of each file: the header, and the blocks that the patches touch (3 x 3 of 8 x 8), in ranges of 16 kB.
    for number in (1, 2):
        data = catalogue.files[f"/data/{number}_vv.tif"]
        with tifffile.TiffFile(io.BytesIO(data)) as tiff:
            sizes = np.array(tiff.pages.first.databytecounts).reshape(8, 8)
        assert catalogue.bytes_sent[f"/data/{number}_vv.tif"] <= sizes[3:6, 2:5].sum() + 3 * 2 * 16384 + 16384
        assert catalogue.bytes_sent[f"/data/{number}_vv.tif"] < 0.25 * len(data)
    [search] = [path for path, _ in catalogue.requests if path.startswith("/api/search")]
    assert "datetime=2023-06-01T00%3A00%3A00Z%2F2023-06-30T23%3A59%3A59Z" in search
    assert ("/api/page2", {"token": "next:2"}) in catalogue.requests
    remove_reference("rtc", settings)
    assert not folder.exists()


def test_patches_without_data_are_left_out(catalogue, settings, warp):
    wanted = Search(box(warp, 700, 300, 1000, 1000), limit=1)
    info = pull(catalogue, settings, wanted)
    rows = {int(file.stem[1:7]) for file in pulled_folder("rtc", settings).rglob("*.tif")}
    assert min(rows) >= 600
    assert info.count == len(rows) * 2
    with pytest.raises(InputError, match="no whole patch with data"):
        pull(catalogue, settings, Search(box(warp, 700, 100, 1000, 400)), "empty")
    assert "empty" not in {info.name for info in list_references(settings)}


def test_a_pull_that_broke_goes_on_where_it_ended(catalogue, settings, warp):
    wanted = Search(box(warp, 700, 900, 1400, 1400))
    pull(catalogue, settings, wanted, "whole")
    whole = load_reference("whole", settings)
    stop = threading.Event()
    with pytest.raises(BuildStoppedError, match="goes on from there"):
        pull(
            catalogue, settings, wanted, "broken",
            progress=lambda done, total: stop.set() if done > total / 4 else None, cancel=stop,
        )  # fmt: skip
    kept = {file: file.stat().st_mtime_ns for file in pulled_folder("broken", settings).rglob("*.tif")}
    assert 0 < len(kept) < len(whole.statistics)
    catalogue.add_json("/api/search", {"features": [], "links": [{"rel": "next", "href": "/api/page2"}]})
    pull(catalogue, settings, wanted, "broken")  # the catalogue answers otherwise now: the plan is kept
    again = load_reference("broken", settings)
    assert all(file.stat().st_mtime_ns == time for file, time in kept.items())
    assert again.statistics.groups == whole.statistics.groups
    for name, array in whole.statistics.arrays.items():
        assert (array == again.statistics.arrays[name])[~np.isnan(array)].all()


def test_a_scene_that_is_gone_is_one_sentence_without_its_token(catalogue, settings, warp, monkeypatch):
    wanted = Search(box(warp, 700, 900, 1200, 1300))
    del catalogue.files["/data/1_vv.tif"]
    monkeypatch.setattr(stac, "signed", lambda url, *_: f"{url}?sig=secret")
    with pytest.raises(SarGenError, match="S1A_1 cannot be read") as told:
        pull(catalogue, settings, wanted)
    assert "secret" not in str(told.value)


def test_what_the_pixels_are_is_never_guessed(catalogue, settings, warp):
    wanted = Search(box(warp, 700, 900, 1200, 1300))
    with pytest.raises(InputError, match="does not say what the pixels"):
        pull(catalogue, settings, wanted, collection="mystery")
    info = pull(catalogue, settings, wanted, collection="mystery", encoding="amplitude")
    assert load_reference(info.name, settings).licence == "proprietary"
    answer = json.loads(catalogue.files["/api/search"])
    answer["features"][0]["assets"]["vv"]["raster:bands"][0]["unit"] = "dB"
    answer["links"] = []
    catalogue.add_json("/api/search", answer)
    found = stac.search(f"{catalogue.url}/api", "sentinel-1-rtc", wanted)
    assert found.encoding == "db"


def test_searches_that_fail_say_why(served):
    wanted = Search((8, 47, 9, 48))
    url = f"{served.url}/api"
    with pytest.raises(InputError, match="has nothing at"):
        stac.search(url, "sentinel-1-rtc", wanted)
    served.add_json("/api/collections/sentinel-1-rtc", {})
    served.add_json("/api/search", {"features": []})
    with pytest.raises(InputError, match="no scene in that box"):
        stac.search(url, "sentinel-1-rtc", wanted)
    served.add_json("/api/search", {"features": [{"id": "a", "assets": {"hh": {"href": "a.tif"}}}]})
    with pytest.raises(InputError, match="None of the 1 scenes found is VV"):
        stac.search(url, "sentinel-1-rtc", wanted)
    served.add_json("/api/search", {"features": [{"id": "a", "assets": {"vv": {"href": "file:///etc/passwd"}}}]})
    with pytest.raises(InputError, match="not open over http"):
        stac.search(url, "sentinel-1-rtc", wanted)
    served.files["/api/search"] = b"<html>"
    with pytest.raises(InputError, match="no STAC API"):
        stac.search(url, "sentinel-1-rtc", wanted)
    served.refuse.add("/api/search")
    with pytest.raises(SarGenError, match="asks for a key"):
        stac.search(url, "sentinel-1-rtc", wanted)
    with pytest.raises(SarGenError, match="cannot be reached"):
        stac.search("http://127.0.0.1:9/api", "sentinel-1-rtc", wanted)
    with pytest.raises(InputError, match="not open over http"):
        stac.search("s3://bucket", "sentinel-1-rtc", wanted)


def test_planetary_computer_addresses_are_signed(served, monkeypatch):
    served.add_json("/token/sentinel-1-rtc", {"token": "sv=1&sig=abc"})
    monkeypatch.setattr(stac, "PC_TOKEN", served.url + "/token/{collection}")
    url = "https://sentinel1euwestrtc.blob.core.windows.net/a.tif"
    tokens = {}
    for _ in range(2):
        assert stac.signed(url, tokens, "sentinel-1-rtc", stac.DEFAULT_URL) == f"{url}?sv=1&sig=abc"
    assert len(served.requests) == 1
    assert stac.signed(url, tokens, "sentinel-1-rtc", "https://example.org/stac") == url
    assert stac.signed("https://example.org/a.tif", tokens, "c", stac.DEFAULT_URL) == "https://example.org/a.tif"


def test_boxes_and_dates_are_checked():
    assert parse_bbox("8.4, 47.3,8.6,47.5") == (8.4, 47.3, 8.6, 47.5)
    for text in ("", "1,2,3", "1,2,3,x", "8,47,7,48", "8,48,9,47", "nan,1,2,3", "170,0,190,1"):
        with pytest.raises(InputError, match="west,south,east,north"):
            parse_bbox(text)
    with pytest.raises(InputError, match="YYYY-MM-DD"):
        Search((8, 47, 9, 48), first="June")
    with pytest.raises(InputError, match="VV, VH, HH, HV"):
        Search((8, 47, 9, 48), polarisation="V")
