"""The experiment on small sets whose terrains are stripes along rows, along columns, and none."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from sar_gen.errors import InputError
from sar_gen.files import write_atomic
from sar_gen.patches import npy_bytes
from sar_gen.training import augmentation
from sar_gen.training.augmentation import AugmentationConfig, ClassifierSettings, Trial, chosen, run, trials
from sar_gen.training.config import read_config
from sar_gen.training.manifest import PatchRow, write_manifest
from tests.training.test_classifier import stripes

pytestmark = pytest.mark.usefixtures("one_thread")


def write_set(folder, counts, split_of, seed):
    rows = []
    for number, (terrain, count) in enumerate(counts.items()):
        for place, picture in enumerate(stripes(count, seed + number, along=number)):
            key = f"{terrain}-{place}"
            write_atomic(folder / f"{key}.npy", npy_bytes(picture))
            split = split_of(place)
            rows.append(PatchRow(key, f"{key}.npy", 32, 32, split, f"{split}-{terrain}-{place // 2}", terrain=terrain))
    write_manifest(folder / "manifest.jsonl", rows)
    return folder / "manifest.jsonl"


@pytest.fixture
def config(tmp_path):
    terrains = {"rows": 12, "columns": 12}
    real = write_set(tmp_path / "real", terrains, lambda place: "reference" if place >= 8 else "train", 0)
    generated = write_set(tmp_path / "generated", {"rows": 6, "columns": 5}, lambda _: "train", 50)
    return AugmentationConfig(
        real=real, generated=generated, work=tmp_path / "work", output=tmp_path / "out", terrains=("rows", "columns"),
        shots=(2, 4), seeds=2, left_out=("columns",), left_out_shots=4, polarisation=None, real_known=99,
        processes=1, classifier=ClassifierSettings(steps=3, batch=4, looks=1, widths=(4, 4, 8, 8)),
    )  # fmt: skip


def test_every_arm_is_trained_once_and_scored(config):
    said = []
    report = run(config, say=said.append)
    assert report["done"] == report["wanted"] == len(trials(config)) == 2 * (2 * 4 + 3 + 2)
    assert report["counts"]["real"] == {"rows": 8, "columns": 8}
    assert report["counts"]["test"] == {"rows": 4, "columns": 4}
    assert report["counts"]["generated"] == {"rows": 6, "columns": 5}
    for row in report["rows"]:
        assert row["seeds"] == 2
        assert np.mean([row["recalls"][name]["value"] for name in ("rows", "columns")]) == pytest.approx(
            row["accuracy"]["value"]
        )
    assert json.loads((config.output / "table.json").read_text()) == report
    assert "on 99 real patches" in (config.output / "table.md").read_text()
    assert (config.output / "accuracy.png").read_bytes().startswith(b"\x89PNG")


def test_a_cut_off_experiment_goes_on_and_comes_to_the_same(config):
    whole = run(dataclasses.replace(config, work=config.work / "whole"))
    asked = iter([False] * 5 + [True])
    first = run(config, stop=lambda: next(asked))
    assert (first["done"], first["wanted"]) == (5, 26)
    assert "not run" in (config.output / "table.md").read_text()
    results = config.work / "results.jsonl"
    results.write_bytes(results.read_bytes()[:-7])  # killed while it wrote the fifth line
    said = []
    assert run(config, say=said.append)["rows"] == whole["rows"]
    assert sum("seed" in text for text in said) == 22
    lines = [
        json.loads(line)
        for line in results.read_bytes().split(b"\n")
        if line.startswith(b'{"arm"') and line.endswith(b"}")
    ]
    assert len(lines) == 26


def test_two_processes_come_to_the_same_as_one(config):
    config = dataclasses.replace(config, shots=(2,), seeds=1, left_out=())
    one = run(config)
    two = run(dataclasses.replace(config, processes=2, work=config.work / "two"))
    assert two["rows"] == one["rows"]


def test_results_of_another_set_are_not_mixed_in(config):
    run(config, stop=lambda: True)
    other = dataclasses.replace(config, classifier=dataclasses.replace(config.classifier, steps=7))
    with pytest.raises(InputError, match="results of other patches or settings"):
        run(other)


def test_arms_differ_in_nothing_but_what_they_add(config):
    pools = augmentation.Pools(config, 1, lambda _: None)
    [real, classical, both] = (
        pools.of(Trial(arm, 4, 1), config) for arm in ("real", "real + classical", "real + generated")
    )
    for place in range(2):
        np.testing.assert_array_equal(real[place][0], classical[place][0])
        np.testing.assert_array_equal(real[place][0], both[place][0])
        assert len(real[place]) == len(classical[place]) == 1
        assert len(both[place]) == 2
    assert [len(one[0]) for one in pools.of(Trial("all real", 0, 1), config)] == [8, 8]
    assert [[len(pool) for pool in one] for one in pools.of(Trial("generated", 0, 1), config)] == [[6], [5]]
    # Of the terrain without real patches there are generated ones alone.
    for arm, rows in (("columns left out", [4]), ("without real columns", [4, 6])):
        assert [[len(pool) for pool in one] for one in pools.of(Trial(arm, 4, 1), config)] == [rows, [5]]


def test_few_patches_lie_on_as_many_pieces_of_ground_as_possible():
    groups = ["a"] * 6 + ["b"] * 3 + ["c"]
    for seed in range(5):
        assert {groups[place] for place in chosen(groups, 3, seed)} == {"a", "b", "c"}
        assert [groups[place] for place in chosen(groups, 5, seed)].count("b") == 2
        assert chosen(groups, 5, seed)[:3] == chosen(groups, 3, seed)
        assert sorted(chosen(groups, 10, seed)) == list(range(10))
    with pytest.raises(InputError, match="10 real patches of a class, fewer than 11"):
        chosen(groups, 11, 0)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"terrains": ("rows", "sea"), "left_out": ()}, "no patch of the terrain 'sea' in .*, split 'train'"),
        ({"test": "validation"}, "no patch of the terrain 'rows' in .*, split 'validation'"),
        ({"shots": (9,)}, "8 real patches of a class, fewer than 9"),
    ],
)
def test_what_is_not_there_is_said(config, changes, sentence):
    with pytest.raises(InputError, match=sentence):
        run(dataclasses.replace(config, **changes))
    assert not (config.work / "results.jsonl").exists()


def test_the_settings_that_ship_can_be_read():
    config = read_config(augmentation.CONFIG, AugmentationConfig)
    assert config.shots == (5, 10, 20, 50)
    assert config.seeds == 5
    assert set(config.left_out) == {"river", "residential"}
    assert config.generated == Path(augmentation.CONFIG).parents[3] / "outputs" / "five-terrains" / "manifest.jsonl"
