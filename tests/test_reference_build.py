import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
import tracemalloc

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sar_gen import reference_build, references
from sar_gen.amplitude import Scale, normalise, pooled_scale, quantise
from sar_gen.errors import InputError
from sar_gen.patches import PixelMeaning, read_tiles
from sar_gen.quality.statistics import patch_statistics
from sar_gen.reference_build import BuildStoppedError, FolderOptions, build
from sar_gen.references import add_reference, list_references, load_reference
from sar_gen.settings import Settings

POOLED = PixelMeaning("amplitude")
MAX = 1_000_000
CHUNK = 8


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(reference_build, "CHUNK", CHUNK)
    monkeypatch.setattr(reference_build, "SHOWN", 10)


@pytest.fixture
def settings(tmp_path):
    return Settings(home=tmp_path / "home", runs=tmp_path / "runs")


def field(seed, side=32, mean=0.3):
    generator = np.random.default_rng(seed)
    return (mean * np.sqrt(generator.gamma(4, 1 / 4, (side, side)))).astype(np.float32)


@pytest.fixture
def folder(tmp_path):
    """Two and a half chunks of patches."""
    folder = tmp_path / "patches"
    folder.mkdir()
    for seed in range(2 * CHUNK + CHUNK // 2):
        np.save(folder / f"p{seed:04d}.npy", field(seed, mean=0.2 + 0.001 * seed))
    return folder


def same(one, other):
    """Bit for bit."""
    return one.groups == other.groups and all(
        array.tobytes() == other.arrays[name].tobytes() for name, array in one.arrays.items()
    )


def test_the_stream_gives_what_all_at_once_gives(folder, tmp_path):
    built = build(folder, POOLED, FolderOptions(), tmp_path / "partial", max_pixels=MAX)
    units = [np.load(path) for path in sorted(folder.iterdir())]
    scale = pooled_scale(units, "")
    assert built.scales[""].mean == pytest.approx(scale.mean, rel=1e-12)
    assert built.scales[""].std == pytest.approx(scale.std, rel=1e-12)
    assert same(built.statistics, patch_statistics(normalise(unit, built.scales[""]) for unit in units))
    assert built.names == tuple(path.name for path in sorted(folder.iterdir()))
    assert len(built.shown) == reference_build.SHOWN
    assert (built.shown[0], built.shown[-1]) == (built.names[0], built.names[-1])
    assert not (tmp_path / "partial").exists()


def test_progress_counts_every_patch_of_both_passes(folder, tmp_path):
    seen = []
    build(folder, POOLED, FolderOptions(), tmp_path / "partial", max_pixels=MAX, progress=lambda *a: seen.append(a))
    total = len(list(folder.iterdir()))
    counts = [done for done, _ in seen]
    turn = counts.index(total)
    while counts[turn + 1] == total:
        turn += 1
    assert {of for _, of in seen} == {total}
    assert sorted(set(counts[: turn + 1])) == sorted(set(counts[turn + 1 :])) == list(range(1, total + 1))
    assert counts[: turn + 1] == sorted(counts[: turn + 1])
    assert counts[turn + 1 :] == sorted(counts[turn + 1 :])


def test_a_cancelled_build_goes_on_where_it_ended(folder, tmp_path, monkeypatch):
    whole = build(folder, POOLED, FolderOptions(), tmp_path / "whole", max_pixels=MAX)
    stop = threading.Event()
    passes = []

    def late(done, total):
        passes.append(done)
        if passes.count(total) and done == CHUNK + 2:
            stop.set()  # in the second chunk of the second pass

    with pytest.raises(BuildStoppedError, match="go on from there"):
        build(folder, POOLED, FolderOptions(), tmp_path / "partial", max_pixels=MAX, progress=late, cancel=stop)
    read = []
    real = reference_build.read_patch
    monkeypatch.setattr(
        reference_build, "read_patch", lambda path, *a, **k: read.append(path.name) or real(path, *a, **k)
    )
    monkeypatch.setattr(reference_build, "_moments", None)  # the first pass is not made again
    again = build(folder, POOLED, FolderOptions(), tmp_path / "partial", max_pixels=MAX)
    assert sorted(read) == list(whole.names[CHUNK:])
    assert same(again.statistics, whole.statistics)
    assert again == dataclasses.replace(whole, statistics=again.statistics)


def test_a_build_killed_by_the_machine_goes_on_where_it_ended(tmp_path, settings):
    """A real process, killed with SIGKILL while it measures; the same command finishes."""
    folder = tmp_path / "patches"
    folder.mkdir()
    for seed in range(150):  # three chunks of 64
        np.save(folder / f"p{seed:04d}.npy", field(seed))
    whole = dataclasses.replace(settings, home=tmp_path / "other")
    add_reference(folder, "set", POOLED, whole)
    command = [
        sys.executable,
        "-m",
        "sar_gen",
        "references",
        "add",
        folder,
        "--name",
        "set",
        "--encoding",
        "amplitude",
    ]
    environment = {**os.environ, "SAR_GEN_HOME": str(settings.home)}
    partial = settings.home / "references" / "partial"
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline and not list(partial.rglob("[0-9a-f]*.npz")):
        time.sleep(0.001)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    files = sorted(partial.rglob("[0-9a-f]*.*"))
    assert len([file for file in files if file.suffix == ".json"]) == 3
    assert 1 <= len([file for file in files if file.suffix == ".npz"]) < 3
    assert "set" not in {info.name for info in list_references(settings)}
    for file in files:
        os.utime(file, ns=(0, 0))
    process = subprocess.Popen([*command, "--json"], env=environment, stdout=subprocess.PIPE, text=True)
    kept = files[0].parent
    while process.poll() is None and kept.exists() and len(list(kept.glob("[0-9a-f]*.npz"))) < 3:
        assert all(file.stat().st_mtime_ns == 0 for file in files if file.exists())  # never made again
        time.sleep(0.001)
    assert json.loads(process.communicate()[0])["count"] == 150
    assert same(load_reference("set", settings).statistics, load_reference("set", whole).statistics)
    assert not list(partial.iterdir())


def test_changed_files_are_measured_again(folder, tmp_path):
    partial = tmp_path / "partial"
    meaning = PixelMeaning("amplitude", Scale(0.3, 0.15, "known"))

    def stopped(after):
        stop = threading.Event()
        with pytest.raises(BuildStoppedError):
            build(
                folder, meaning, FolderOptions(), partial, max_pixels=MAX, cancel=stop,
                progress=lambda done, _: stop.set() if done >= after else None,
            )  # fmt: skip

    stopped(2 * CHUNK)
    assert len(list(partial.iterdir())) == 2
    np.save(folder / "p0000.npy", field(999))
    for path in partial.iterdir():
        path.write_bytes(path.read_bytes()[:1000])  # damaged too
        break
    built = build(folder, meaning, FolderOptions(), partial, max_pixels=MAX)
    expected = patch_statistics(normalise(np.load(path), meaning.scale) for path in sorted(folder.iterdir()))
    assert same(built.statistics, expected)


def test_memory_does_not_grow_with_the_patches(tmp_path):
    """Statistics of 5 kB a patch, twice while they are joined, are all that grows, not the 36 kB of its pixels."""
    side, peaks = 96, []
    for count in (CHUNK, 25 * CHUNK):
        folder = tmp_path / str(count)
        folder.mkdir()
        np.save(folder / "p0.npy", field(0, side))
        for number in range(1, count):
            os.link(folder / "p0.npy", folder / f"p{number}.npy")
        meaning = PixelMeaning("amplitude", Scale(0.3, 0.15, "known"))
        tracemalloc.start()
        built = build(folder, meaning, FolderOptions(), tmp_path / "partial", max_pixels=MAX).statistics
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    arrays = (getattr(built, one.name) for one in dataclasses.fields(built))
    own = sum(array.nbytes for array in arrays if isinstance(array, np.ndarray)) / (25 * CHUNK)
    assert (peaks[1] - peaks[0]) / (24 * CHUNK) < 2.2 * own
    assert 2.2 * own < side * side * 4 / 3


def test_subfolders_groups_and_scales(tmp_path, settings):
    """Two acquisitions of one ground, one of twice the gain: each its own scale, its ground in one group."""
    folder = tmp_path / "scenes"
    for scene, gain in (("a", 1.0), ("b", 2.0)):
        for cell in ("north", "south"):
            (folder / scene / cell).mkdir(parents=True)
            for number in range(2):
                np.save(folder / scene / cell / f"{number}.npy", gain * field(number, mean=0.3))
    (folder / ".hidden").mkdir()
    np.save(folder / ".hidden" / "x.npy", field(9))
    with pytest.raises(InputError, match="--recursive"):
        add_reference(folder, "flat", POOLED, settings)
    options = FolderOptions(recursive=True, groups="folder", scales="folder")
    info = add_reference(folder, "scenes", POOLED, settings, options=options, sensor="X band", note="Relative.")
    assert info.count == 8
    references._cached.cache_clear()
    reference = load_reference("scenes", settings)
    assert reference.statistics.groups == ("north", "north", "south", "south") * 2
    assert (reference.scale, reference.sensor, reference.note) == (None, "X band", "Relative.")
    histograms = reference.statistics.histograms
    assert (histograms[:4] == histograms[4:]).all()
    assert [patch.scale.mean for patch in reference.patches[::4]] == pytest.approx(
        [np.mean([field(n) for n in range(2)]), 2 * np.mean([field(n) for n in range(2)])]
    )
    pooled = add_reference(folder, "pooled", POOLED, settings, options=FolderOptions(recursive=True))
    histograms = load_reference(pooled.name, settings).statistics.histograms
    assert not (histograms[:4] == histograms[4:]).all()
    # Files that are added later are measured when the set is asked for.
    np.save(folder / "b" / "south" / "2.npy", 2 * field(5))
    assert len(load_reference("scenes", settings).statistics) == 9


def test_files_that_cannot_be_used(tmp_path, settings):
    folder = tmp_path / "mixed"
    folder.mkdir()
    np.save(folder / "a.npy", field(0))
    np.save(folder / "b.npy", np.full((32, 32), np.nan, dtype=np.float32))
    np.save(folder / "c.npy", field(1, side=16))
    np.save(folder / "d.npy", field(2))
    (folder / "e.tif").write_bytes(b"")
    with pytest.raises(InputError, match=r"b\.npy has 1024 of 1024 pixels"):
        add_reference(folder, "mixed", POOLED, settings)
    info = add_reference(folder, "mixed", POOLED, settings, options=FolderOptions(skip=True))
    assert info.count == 2
    reference = load_reference("mixed", settings)
    assert reference.note.startswith("3 files were left out; the first: b.npy has 1024")
    assert reference.scale.mean == pytest.approx(np.mean([field(0), field(2)]))
    for name in ("a", "d"):
        (folder / f"{name}.npy").unlink()
    with pytest.raises(InputError, match="None of the 3 files"):
        add_reference(folder, "none", POOLED, settings, options=FolderOptions(skip=True))
    (folder / "b.npy").unlink()
    with pytest.raises(InputError, match=r"c\.npy: 16 x 16 pixels are too few"):
        add_reference(folder, "small", POOLED, settings)
    np.save(folder / "c.npy", np.zeros((32, 32), dtype=np.float32))
    (folder / "e.tif").unlink()
    with pytest.raises(InputError, match="all zero"):
        add_reference(folder, "dark", POOLED, settings)


def test_a_picture_and_its_amplitude_are_one_patch(tmp_path):
    """Also where they fall into two chunks."""
    folder = tmp_path / "run"
    folder.mkdir()
    for number in range(CHUNK):
        amplitude = field(number)
        np.save(folder / f"{number:03d}.npy", amplitude)
        info = {"sar_gen": json.dumps({"amplitude": {"file": f"{number:03d}.npy", "encoding": "linear"}})}
        text = PngInfo()
        for key, value in info.items():
            text.add_text(key, value)
        Image.fromarray(quantise(amplitude)).save(folder / f"{number:03d}.png", pnginfo=text)
    built = build(folder, None, FolderOptions(), tmp_path / "partial", max_pixels=MAX)
    assert built.names == tuple(f"{number:03d}.npy" for number in range(CHUNK))
    assert same(built.statistics, patch_statistics(field(number) for number in range(CHUNK)))


def test_large_rasters_are_cut_into_tiles(tmp_path, settings):
    """As ``read_tiles`` cuts one raster; the scale is pooled over both."""
    folder = tmp_path / "rasters"
    folder.mkdir()
    rasters = [field(number, 300, 0.2 + 0.1 * number) for number in range(2)]
    rasters[0][:10, :10] = np.nan  # without data
    for number, raster in enumerate(rasters):
        np.save(folder / f"scene{number}.npy", raster)
    seen = []
    options = FolderOptions(tile=64)
    info = add_reference(
        folder, "tiles", POOLED, settings, options=options, progress=lambda done, total: seen.append((done, total))
    )
    assert info.count == 31
    assert {total for _, total in seen} == {32}
    assert len({done for done, _ in seen}) == 32
    references._cached.cache_clear()
    reference = load_reference("tiles", settings)
    scale = pooled_scale([raster[np.isfinite(raster)] for raster in rasters], "")
    assert reference.scale.mean == pytest.approx(scale.mean)
    assert reference.scale.std == pytest.approx(scale.std)
    known = dataclasses.replace(POOLED, scale=reference.scale)
    tiles = [patch for number in range(2) for patch in read_tiles(folder / f"scene{number}.npy", known, 64)]
    expected = patch_statistics([tile.amplitude for tile in tiles], [tile.group for tile in tiles])
    assert same(reference.statistics, expected)
    assert reference.patches[0].name == "scene0_r00000_c00064"
    for patch in reference.patches:
        [tile] = [tile for tile in tiles if tile.name == patch.name]
        assert (patch.amplitude == tile.amplitude).all()


def test_kinds_of_values_are_not_mixed_and_complex_signal_says_what_it_is(tmp_path, settings):
    folder = tmp_path / "mixed"
    folder.mkdir()
    np.save(folder / "a.npy", field(0))
    Image.fromarray(quantise(field(1))).save(folder / "b.png")
    with pytest.raises(InputError, match=r"mixes floats \(a\.npy\), uint8 values \(b\.png\)"):
        add_reference(folder, "mixed", POOLED, settings)
    (folder / "b.png").unlink()
    signal = field(0) * np.exp(1j * field(1)).astype(np.complex64)
    np.save(folder / "a.npy", signal)
    add_reference(folder, "signal", None, settings)
    [patch] = load_reference("signal", settings).patches
    assert patch.amplitude == pytest.approx(normalise(np.abs(signal), patch.scale))
