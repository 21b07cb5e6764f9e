import json
import tomllib
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from sar_gen.errors import InputError
from sar_gen.quality.semantic import CARD, HELD_OUT, SIDE, auc, load_sarclip, prompt_agreement
from sar_gen.training import captions, sarclip, sarclip_data, sarclip_evaluation
from sar_gen.training.sarclip import Plan
from sar_gen.training.sarclip_data import Record, TrainingData

LIMITS = captions.Thresholds(-10, -9, -8, -7, 2, 2.5, 3, 3.5)
PLAN = Plan(
    size="tiny", steps=40, batch=16, learning_rate=3e-3, warmup=4, ema=0.8, evaluate_every=20, dropout=0.0, unknown=0.0
)


def grey(terrain, rng):
    """Forest is bright, agriculture dark; 8-bit decibels as in SEN1-2."""
    level = 200 if terrain == "forest" else 70
    return np.clip(rng.normal(level, 20, (256, 256)), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    records, pictures = [], []
    for split, count in (("train", 12), ("validation", 6), ("reference", 24)):
        for number in range(count):
            terrain = ("forest", "agriculture")[number % 2]
            pixels = grey(terrain, rng)
            brightness, roughness = captions.sar_descriptors(sarclip_data.amplitude_of(pixels, "VV"))
            facts = captions.facts(
                terrain=terrain, polarisation="VV", water=0, built_up=0, brightness=brightness, roughness=roughness,
                limits=LIMITS,
            )  # fmt: skip
            name = f"{split}-{number}"
            records.append(Record(name, len(records), 0, 0, split, name, terrain, "VV", 0, 0, 0, 0, facts))
            pictures.append(pixels)
    return TrainingData(np.stack(pictures), records)


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    metrics = sarclip.train(data, PLAN, folder / "out", folder / "work", device="cpu", say=lambda text: None)
    return folder / "out", metrics


# Losses and batches ------------------------------------------------------------------------------------------------


def test_with_one_positive_each_the_loss_is_that_of_clip():
    torch = pytest.importorskip("torch")
    logits = torch.randn(5, 5, generator=torch.Generator().manual_seed(0))
    target = torch.arange(5)
    cross = torch.nn.functional.cross_entropy
    expected = (cross(logits, target) + cross(logits.T, target)) / 2
    assert sarclip.contrastive_loss(logits, torch.eye(5)) == pytest.approx(expected.item(), rel=1e-6)


def test_positives_share_the_target_and_the_undecided_are_no_negatives():
    import torch

    logits = torch.tensor([[2.0, 1.0, 5.0], [0.0, 3.0, 1.0], [1.0, 0.0, 2.0]])
    truth = torch.tensor([[1, 1, -1], [0, 1, 0], [0, 0, 1]])

    def shares(values):
        values = np.exp(np.array(values, dtype=float))
        return np.log(values / values.sum())

    rows = [shares([2, 1]).mean(), shares([0, 3, 1])[1], shares([1, 0, 2])[2]]
    columns = [shares([2, 0, 1])[0], shares([1, 3, 0])[:2].mean(), shares([1, 2])[1]]
    expected = -(np.mean(rows) + np.mean(columns)) / 2
    assert sarclip.contrastive_loss(logits, truth).item() == pytest.approx(expected, rel=1e-6)


def test_the_truth_table_is_the_agreement_of_each_pair():
    rng = np.random.default_rng(0)
    known = rng.integers(-1, 2, (20, len(captions.FACTS))).astype(np.int8)
    stated = rng.random((30, len(captions.FACTS))) < 0.15
    table = sarclip.truth_table(known, stated)
    names = np.array(captions.FACTS)
    for i in range(20):
        facts = dict(zip(captions.FACTS, known[i].tolist(), strict=True))
        for j in range(30):
            assert table[i, j] == captions.agreement(facts, names[stated[j]])
    assert set(table.ravel().tolist()) == {-1, 0, 1}


def test_a_batch_depends_on_seed_and_step_only(data):
    records = [data.records[i] for i in data.indices("train")]
    tokenizer = sarclip.build_tokenizer(captions.vocabulary())
    straight = list(sarclip.batches(records, tokenizer, replace(PLAN, steps=4), 0))
    later = next(sarclip.batches(records, tokenizer, replace(PLAN, steps=4), 2))
    assert np.array_equal(straight[2].ids, later.ids)
    assert np.array_equal(straight[2].indices, later.indices)
    assert not np.array_equal(straight[1].indices, straight[2].indices)
    assert (straight[0].truth[np.arange(16), np.arange(16)] == 1).all()  # its own caption is right


def test_sampling_balances_terrains_and_large_groups(data):
    base = data.records[0]
    records = [replace(base, group="large") for _ in range(16)] + [replace(base, group=f"g{i}") for i in range(4)]
    records += [replace(base, terrain="river", group="r")]
    records += [replace(base, terrain="", polarisation="VH", group="s", facts=base.facts)]
    weights = sarclip.sampling_weights(records, vh_share=0.2)
    assert weights.sum() == pytest.approx(1)
    assert weights[-1] == pytest.approx(0.2)
    assert weights[-2] == pytest.approx(0.4)
    assert weights[:16].sum() == pytest.approx(0.4 * 4 / 8)  # sqrt(16) beside four of sqrt(1)


def test_augmentation_crops_only_when_its_strengths_are_zero():
    import torch

    ramp = torch.linspace(0.1, 0.9, 256).expand(3, 256, 256).contiguous()
    none = replace(PLAN, speckle_looks=1e9, gain_db=0.0, masked=0.0)
    pixels = sarclip.augment(ramp, none, torch.Generator().manual_seed(0))
    assert pixels.shape == (3, 2, SIDE // 2, SIDE // 2)
    # Never flipped: brightness still grows from left to right.
    assert (pixels[:, 0].diff(dim=2) > 0).all()
    noisy = sarclip.augment(ramp, replace(none, speckle_looks=20.0), torch.Generator().manual_seed(0))
    spread = 10 ** ((noisy[:, 0] - pixels[:, 0]) * 7 / 10)  # ratio of intensities of 4 x 20 looks
    assert spread.mean().item() == pytest.approx(1, abs=0.01)
    assert spread.var().item() == pytest.approx(1 / 80, rel=0.1)


# Training ----------------------------------------------------------------------------------------------------------


def test_training_learns_and_writes_a_loadable_folder(trained, data):
    out, metrics = trained
    found = metrics["quality"]["zero_shot"]
    assert found["patches"] == 24
    assert found["accuracy"] > 0.9  # of five classes
    assert sorted(path.name for path in out.iterdir()) == [
        "config.json", HELD_OUT, "metrics.json", "model.safetensors", CARD, "tokenizer.json",
    ]  # fmt: skip
    card = tomllib.loads((out / CARD).read_text())
    assert card["quality"]["zero_shot"]["accuracy"] == found["accuracy"]
    assert len(card["calibration"]["vv"]["right"]) == 101
    assert json.loads((out / "metrics.json").read_text())["training"]["last_step"] == 40
    model = load_sarclip(out)
    reference = data.indices("reference")
    amplitudes = data.amplitudes(reference)
    forest = [a for a, i in zip(amplitudes, reference, strict=True) if data.records[i].terrain == "forest"]
    right = prompt_agreement(forest, "a SAR image of forest", model)
    wrong = prompt_agreement(forest, "a SAR image of farmland", model)
    assert right.measure.within
    assert not wrong.measure.within
    assert right.wrong_percentile > 95
    assert wrong.right_percentile < 5
    assert "12 real held-out patches that fit" in right.calibrated_on


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(data, tmp_path):
    from safetensors.numpy import load_file

    plan = replace(PLAN, steps=8, evaluate_every=4)
    kwargs = {"device": "cpu", "say": lambda text: None}
    sarclip.train(data, plan, tmp_path / "a", tmp_path / "work-a", **kwargs)
    first = sarclip.train(data, plan, tmp_path / "b", tmp_path / "work-b", minutes=0, **kwargs)
    assert first["training"]["last_step"] == 1
    second = sarclip.train(data, plan, tmp_path / "b", tmp_path / "work-b", resume=True, **kwargs)
    assert second["training"]["last_step"] == 8
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in "ab")
    # The stopped run validated one step more; what was kept then may only be better, so compare the last state.
    states = [sarclip._Run(plan, "cpu", tmp_path / f"work-{name}" / sarclip.STATE) for name in "ab"]
    assert a.keys() == b.keys()
    for name, value in states[0].averaged.items():
        assert (value - states[1].averaged[name]).abs().max() < 1e-6
    with pytest.raises(InputError, match="another plan"):
        sarclip.train(data, replace(plan, seed=1), tmp_path / "b", tmp_path / "work-b", resume=True, **kwargs)


def test_reference_patches_are_never_drawn(data):
    drawn = set()
    chosen = data.indices("train")
    records = [data.records[i] for i in chosen]
    tokenizer = sarclip.build_tokenizer(captions.vocabulary())
    for batch in sarclip.batches(records, tokenizer, replace(PLAN, steps=20), 0):
        drawn |= {records[i].name for i in batch.indices}
    assert drawn <= {record.name for record in data.records if record.split == "train"}


def test_the_schedule_warms_up_and_cools_down():
    plan = Plan(steps=100, warmup=10)
    assert sarclip.schedule(0, plan) == pytest.approx(0.1)
    assert sarclip.schedule(10, plan) == pytest.approx(1)
    assert sarclip.schedule(55, plan) == pytest.approx(0.02 + 0.98 / 2)
    assert sarclip.schedule(100, plan) == pytest.approx(0.02)


# Data --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """A data folder: 18 pairs in nine groups, the last a reference one, and two scenes."""
    rng = np.random.default_rng(0)
    rows = ["split,terrain,overlap_group,sar,optical"]
    for kind in ("sar", "optical"):
        (tmp_path / kind).mkdir()
    for number in range(18):
        terrain = ("forest", "agriculture")[number % 2]
        group = number // 2
        Image.fromarray(grey(terrain, rng)).save(tmp_path / "sar" / f"p{number:02}.jpg")
        Image.fromarray(np.full((256, 256), 60, np.uint8)).save(tmp_path / "optical" / f"p{number:02}.jpg")
        split = "reference" if group == 8 else "train"
        rows.append(f"{split},{terrain},{group},sar/p{number:02}.jpg,optical/p{number:02}.jpg")
    (tmp_path / "s1_pairs.csv").write_text("\n".join(rows))
    rows = ["scene,sar,optical"]
    for name in ("048", "073"):
        Image.fromarray(rng.integers(0, 255, (512, 512), dtype=np.uint8)).save(tmp_path / "sar" / f"{name}.png")
        Image.fromarray(np.zeros((256, 256, 3), np.uint8)).save(tmp_path / "optical" / f"{name}.jpg")
        rows.append(f"{name},sar/{name}.png,optical/{name}.jpg")
    (tmp_path / "s1_scenes.csv").write_text("\n".join(rows))
    return tmp_path


def test_prepare_keeps_the_pixels_and_splits_by_ground(folder):
    out = folder / "data.npz"
    counts = sarclip_data.prepare(folder, out)
    data = sarclip_data.load(out)
    groups = {}
    for record in data.records:
        groups.setdefault(record.group, set()).add(record.split)
    assert all(len(splits) == 1 for splits in groups.values())
    assert groups["pairs-8"] == {"reference"}
    assert groups["scene-073"] == {"reference"}
    assert groups["scene-048"] == {"train"}
    assert sum(splits == {"validation"} for splits in groups.values()) >= 1
    assert counts["reference"]["patches"] == 2 + 9
    first = next(i for i, record in enumerate(data.records) if record.name == "p00")
    with Image.open(folder / "sar" / "p00.jpg") as image:
        assert np.array_equal(data.grey[first], np.asarray(image))
    crop = next(i for i, record in enumerate(data.records) if record.name == "048-128-256")
    with Image.open(folder / "sar" / "048.png") as image:
        assert np.array_equal(data.grey[crop], np.asarray(image)[128:384, 256:512])
    again = folder / "again.npz"
    sarclip_data.prepare(folder, again)
    assert sarclip_data.load(again).records == data.records


def test_files_that_are_no_training_data_are_refused(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        sarclip_data.load(tmp_path / "none.npz")
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    with pytest.raises(InputError, match="not a SAR-CLIP training file"):
        sarclip_data.load(tmp_path / "other.npz")


def test_the_command_line_says_what_is_wrong(tmp_path, capsys):
    assert sarclip.main(["evaluate", str(tmp_path / "none.npz"), str(tmp_path)]) == 2
    assert "does not exist" in capsys.readouterr().err


# Evaluation --------------------------------------------------------------------------------------------------------


def test_zero_shot_counts():
    images = np.eye(4)[[0, 0, 1, 2, 3, 3]]
    labels = np.array([0, 0, 1, 1, 3, 0])
    found = sarclip_evaluation.zero_shot(images, np.eye(4), labels, list("aabbcc"))
    assert found.accuracy == pytest.approx(4 / 6)
    assert found.balanced == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    assert (found.majority, found.chance) == (0.5, 0.25)
    assert found.confusion.tolist() == [[2, 0, 0, 1], [0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 1]]
    assert found.interval[0] <= found.accuracy <= found.interval[1]


def test_retrieval_and_its_chance():
    rng = np.random.default_rng(0)
    queries = np.eye(3)
    targets = np.array([[0.9, 0.1, 0], [0.8, 0.6, 0], [0.1, 0.2, 0.9], [0.0, 0.3, 0.8]])
    matches = np.array([[1, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]], bool)
    found = sarclip_evaluation.retrieval(queries, targets, matches, (1, 2, 4))
    assert found["queries"] == 2
    assert (found["recall_at_1"], found["recall_at_2"], found["recall_at_4"]) == (0.5, 0.5, 1.0)
    many = rng.random((1, 12)) < 0.4
    draws = [many[0, rng.permutation(12)[:5]].any() for _ in range(4000)]
    chance = sarclip_evaluation.retrieval(np.ones((1, 2)), np.ones((12, 2)), many, (5,))["chance_at_5"]
    assert chance == pytest.approx(np.mean(draws), abs=0.02)


def test_auc_against_all_pairs():
    rng = np.random.default_rng(0)
    right, wrong = rng.integers(0, 6, 40) + 1.0, rng.integers(0, 6, 30) + 0.0
    pairs = np.sign(right[:, None] - wrong[None])
    assert auc(right, wrong) == pytest.approx(((pairs + 1) / 2).mean())


def test_toml_round_trip():
    card = {"title": 'a "quoted" µ', "n": 3, "flag": True, "list": [[1, 2], [3, 4]], "a.b": {"x y": 0.5}}
    assert tomllib.loads(sarclip.toml_text(card)) == {
        "title": 'a "quoted" µ', "n": 3, "flag": True, "list": [[1, 2], [3, 4]], "a": {"b": {"x y": 0.5}},
    }  # fmt: skip
