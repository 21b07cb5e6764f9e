"""The sensitivity command on a small folder laid out like the real data, and its parts on sets of known answer."""

import csv
import json

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from sar_gen import sensitivity
from sar_gen.amplitude import S1_VV
from sar_gen.errors import InputError
from sar_gen.guides import Law, intensity_field
from sar_gen.quality import report
from sar_gen.quality.faults import FAULTS
from sar_gen.quality.statistics import patch_statistics
from sar_gen.reference_statistics import TERRAINS, read_pairs

SIDE = 64
GROUPS = 6
PATCHES = 9
LAW = Law(0.06, None, 0.0, 4.5, (1.0, 0.6, 0.2))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Nine patches on six grounds for each terrain; gorge is four times as bright as the others."""
    folder = tmp_path_factory.mktemp("data")
    generator = np.random.default_rng(0)
    rows = []
    for terrain in TERRAINS:
        for number in range(PATCHES):
            intensity = intensity_field(LAW, (SIDE, SIDE), generator) * (4 if terrain == "gorge" else 1)
            intensity *= 10 ** generator.normal(0, 0.02)
            grey = np.rint(np.clip((10 * np.log10(intensity * S1_VV.peak**2) + 25) / 25, 0, 1) * 255)
            name = f"{terrain}_{number:02}.png"
            Image.fromarray(grey.astype(np.uint8)).save(folder / name)
            split = "train" if number % GROUPS < 2 else "reference"
            rows.append([split, terrain, f"{terrain}-{number % GROUPS}", name, name])
    with (folder / "s1_pairs.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["split", "terrain", "overlap_group", "sar", "optical"], *rows])
    return folder


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    """Features in which every terrain but one is noise about the same place; river lies elsewhere."""
    path = tmp_path_factory.mktemp("features") / "features.safetensors"
    generator = np.random.default_rng(1)
    centres = {name: np.eye(8)[1 if name == "river" else 0] for name in TERRAINS}
    rows = {f"s1-{n}": (c + 0.3 * generator.normal(size=(PATCHES, 8))) for n, c in centres.items()}
    save_file({name: values.astype(np.float16) for name, values in rows.items()}, path)
    return path


@pytest.fixture(scope="module")
def made(data, features, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sensitivity, "HALVES", 3)
        arguments = ["--out", str(out), "--count", "3", "--splits", "200", "--features", str(features)]
        assert sensitivity.main([str(data), *arguments]) == 0
    return json.loads((out / "sensitivity.json").read_text()), (out / "sensitivity.md").read_text()


@pytest.fixture(scope="module")
def real():
    generator = np.random.default_rng(3)
    levels = 0.2 * (1 + 0.1 * generator.normal(size=24))
    patches = [np.clip(level * np.sqrt(generator.gamma(4, 0.25, (64, 64))), 0, 1) for level in levels]
    return patch_statistics(patches, [str(i // 2) for i in range(24)])


def test_faults_with_a_known_mark_are_noticed(made):
    data, _ = made
    pooled = data["pooled"]
    assert [fault["name"] for fault in data["faults"]] == [fault.name for fault in FAULTS]
    assert pooled["blur"]["spectrum"] > 5
    assert pooled["blur"]["speckle_correlation"] > 5
    assert pooled["add_speckle"]["enl"] > 1.5
    assert pooled["despeckle"]["enl"] > 5
    assert pooled["brightness"]["wasserstein1"] > 5
    assert pooled["upsample"]["spectrum"] > 5
    assert pooled["jpeg"]["block_edges"] > 5
    assert pooled["add_speckle"]["block_edges"] < 1.5
    # Speckle has no look direction: no measure may claim to see it.
    assert max(value for value in pooled["flip"].values() if value is not None) < 1
    # Brightness leaves the spectrum over the mean as it was, but for what it clips.
    assert pooled["brightness"]["spectrum"] < 1


def test_another_terrain_is_noticed_where_it_differs(made):
    data, _ = made
    terrains = data["terrains"]
    assert terrains["gorge"]["ratios"]["terrain"]["wasserstein1"] > 5
    assert terrains["forest"]["other_terrains"]["gorge"]["wasserstein1"] > 5
    assert terrains["forest"]["other_terrains"]["river"]["wasserstein1"] < 1.5
    assert set(terrains["forest"]["other_terrains"]) == set(TERRAINS) - {"forest"}


def test_kernel_distance_is_that_of_the_features(made, data):
    table, text = made
    forest = table["terrains"]["forest"]
    assert forest["other_terrains"]["river"]["kernel_distance"] > 3
    assert forest["other_terrains"]["gorge"]["kernel_distance"] < 1.5
    assert table["terrains"]["river"]["ratios"]["terrain"]["kernel_distance"] > 3
    assert "kernel_distance" not in forest["ratios"]["blur"]
    assert table["kernel_distance_held_out"]["river"]["forest"] > 1.5
    assert "that it was not trained on" in text
    pairs = {name: [pair for pair in read_pairs(data) if pair.terrain == name] for name in TERRAINS}
    assert sensitivity.read_features(sensitivity.FEATURES, pairs) is None  # of the real data, not of these patches
    assert sensitivity.read_features(data / "none.safetensors", pairs) is None


def test_kernel_distances_of_splits():
    """Two patches on either side, one kernel value each: within, within, and four across."""
    features = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    drawn, others = np.array([[1.0, 1, 0, 0]]), np.array([[0.0, 0, 1, 1]])
    (value,) = sensitivity.kernel_distances(features, drawn, features, list("abcd"), others)
    squares = {"near": 2.0, "far": 4.0}  # neighbours on the circle, and opposite points
    bandwidth = np.median([2, 4, 2, 2, 4, 2]) ** 0.5
    kernel = {name: np.exp(-square / (2 * bandwidth**2)) for name, square in squares.items()}
    across = (kernel["far"] + kernel["near"]) * 2 / 4
    assert value == pytest.approx(2 * kernel["near"] - 2 * across)


def test_real_patches_exceed_the_floor_as_often_as_it_promises(made):
    data, _ = made
    shares = []
    for terrain in data["terrains"].values():
        assert (terrain["patches"], terrain["groups"], terrain["patches_with_faults"]) == (9, 6, 9)
        shares += terrain["real_beyond_floor"]["other_splits"].values()
        assert {*terrain["real_beyond_floor"]["other_ground"], "kernel_distance"} == set(terrain["floor_95"])
    assert np.mean(shares) == pytest.approx(0.05, abs=0.02)


def test_the_document_says_what_it_rests_on(made):
    data, text = made
    assert "SEN1-2 (Schmitt, Hughes, Zhu 2018), CC BY 4.0; contains modified Copernicus Sentinel data" in text
    assert "--count 3 --splits 200" in text
    assert "3 at a time" in text
    for name in ("wasserstein1", "spectrum", "speckle_correlation"):
        value = data["pooled"]["blur"][name]
        cell = f"{value:.2f}" if value < 10 else f"{value:.0f}"
        row = next(line for line in text.splitlines() if line.startswith(f"| `{name}` "))
        assert row.split(" | ")[1] == (f"**{cell}**" if value >= 1.5 else cell)
    assert "/work" not in text


def test_floors_are_those_of_the_report(real):
    """The splits are drawn as the report draws its own: same seed, same floors."""
    expected = report.floors(real, 5, draws=60, seed=9)
    found = sensitivity.floors_95(real, 5, 60, 9)
    assert set(found) == set(expected)
    for name, floor in expected.items():
        assert found[name] == pytest.approx(floor[1])


def test_splits_keep_ground_apart(real):
    groups = np.array(real.groups)
    eligible = np.arange(0, 24, 3)
    splits = sensitivity.weights_of_splits(["x", *real.groups], 5, 50, 0, np.append(0, eligible + 1))
    sides = [side[:, 1:] > 0 for side in splits]
    assert set(np.flatnonzero(sides[0].sum(axis=0))) <= set(eligible)
    for drawn, others in zip(*sides, strict=True):
        assert not set(groups[drawn]) & set(groups[others])
        assert drawn.sum() <= 5


def test_distances_of_splits_are_those_of_the_report(real):
    splits = sensitivity.weights_of_splits(real.groups, 4, 3, 1)
    rows = sensitivity.distances(real, splits[0], real, splits[1])
    for split in range(3):
        made, others = (real.subset(np.flatnonzero(w[split]).tolist()) for w in splits)
        measures = report.compare(made, others, reference_name="r", draws=2).measures
        assert set(measures) == set(rows)
        for name, measure in measures.items():
            assert rows[name][split] == pytest.approx(measure.value)


def test_faults_are_given_to_some_patches_of_each_group(data, monkeypatch):
    monkeypatch.setattr(sensitivity, "FAULTY_A_GROUP", 1)
    pairs = [pair for pair in read_pairs(data) if pair.terrain == "river"]
    terrain = sensitivity.measure_terrain(pairs)
    assert len(terrain.chosen) == GROUPS
    assert {terrain.real.groups[row] for row in terrain.chosen} == {pair.group for pair in pairs}
    assert set(terrain.faulty) == {fault.name for fault in FAULTS} - {"terrain"}
    flipped = terrain.faulty["flip"]
    assert (flipped.histograms == terrain.real.histograms[terrain.chosen]).all()
    assert flipped.groups == tuple(terrain.real.groups[row] for row in terrain.chosen)


def test_too_little_ground_is_refused(data, tmp_path, capsys):
    rows = (data / "s1_pairs.csv").read_text().splitlines()
    few = [row for row in rows if "river-" not in row or "river-0" in row]
    (tmp_path / "s1_pairs.csv").write_text("\n".join(few) + "\n")
    for path in data.glob("*.png"):
        (tmp_path / path.name).symlink_to(path)
    with pytest.raises(InputError, match="terrain 'river'"):
        sensitivity.measure(tmp_path, 2, 20)
    with pytest.raises(SystemExit) as stopped:
        sensitivity.main([str(data), "--count", "0", "--out", str(tmp_path / "out")])
    assert stopped.value.code == 2
    assert "--count of 1 or more" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
