import json

import numpy as np
import pytest

from sar_gen.comparison import with_prompt
from sar_gen.errors import InputError
from sar_gen.files import sha256_of
from sar_gen.quality import semantic
from sar_gen.quality.report import compare
from sar_gen.quality.semantic import CARD, SIDE, load_sarclip, prompt_agreement
from sar_gen.quality.statistics import patch_statistics
from sar_gen.training.captions import FACTS, vocabulary
from sar_gen.training.sarclip import SIZES, build_model, build_tokenizer, toml_text


def write_clip(folder, *, card=True, seed=0):
    """Write a tiny random CLIP; with a card it is one of ours."""
    tokenizer = build_tokenizer(vocabulary())
    build_model(SIZES["tiny"], tokenizer.get_vocab_size(), 0.0, seed).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    if card:
        write_card(folder)
    return folder


def write_card(folder, **changes):
    scores = np.linspace(0.2, 0.6, 101).round(4).tolist()
    wrong = np.linspace(-0.4, 0.3, 101).round(4).tolist()
    card = {
        "title": "Tiny",
        "sar_trained": True,
        "input": {"side": SIDE, "looks": semantic.LOOKS, "channels": semantic.CHANNELS},
        "calibration.forest": {"patches": 40, "auc": 0.9, "right": scores, "wrong": wrong},
        "calibration.vv": {"patches": 12, "auc": 0.6, "right": scores, "wrong": wrong},
        "sha256": {"model.safetensors": sha256_of(folder / "model.safetensors")},
    }
    (folder / CARD).write_text(toml_text(card | changes))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def model(folder):
    return load_sarclip(folder)


@pytest.fixture(scope="module")
def patches():
    rng = np.random.default_rng(0)
    return [rng.gamma(4, 0.05, (256, 256)).clip(0, 1).astype(np.float32) for _ in range(3)]


# Features ----------------------------------------------------------------------------------------------------------


def test_features_are_unit_and_scores_are_cosines(model, patches):
    images = model.image_features(patches)
    texts = model.text_features(["a SAR image of forest", "a river"])
    assert images.shape == (3, 16)
    assert np.linalg.norm(images, axis=1) == pytest.approx(1, abs=1e-5)
    assert model.score(patches, "a river") == pytest.approx(images @ texts[1], abs=1e-6)
    # Alone or among others, a patch and a text have the same features.
    assert model.image_features(patches[1:2])[0] == pytest.approx(images[1], abs=1e-5)
    assert model.text_features(["a river"])[0] == pytest.approx(texts[1], abs=1e-5)


def test_our_features_are_those_of_the_library(model, patches):
    import torch

    tile = torch.from_numpy(patches[0][:SIDE, :SIDE].copy())[None]
    ids = torch.from_numpy(semantic.token_ids(model.tokenizer, ["a SAR image of forest"], 32))
    with torch.inference_mode():
        out = model.model(input_ids=ids, pixel_values=semantic.sar_pixels(tile))
    assert model.image_features([tile[0].numpy()])[0] == pytest.approx(out.image_embeds[0].numpy(), abs=1e-5)
    assert model.text_features(["a SAR image of forest"])[0] == pytest.approx(out.text_embeds[0].numpy(), abs=1e-5)


def test_pixels_are_multilooked_decibels_and_their_local_spread():
    import torch

    rng = np.random.default_rng(1)
    amplitude = rng.random((SIDE, SIDE)).astype(np.float32)
    pixels = semantic.sar_pixels(torch.from_numpy(amplitude)[None])[0].numpy()
    half = SIDE // 2
    intensity = (amplitude.astype(np.float64) ** 2).reshape(half, 2, half, 2).mean(axis=(1, 3))
    db = 10 * np.log10(intensity + 1e-3)
    assert pixels[0] == pytest.approx((db + 10) / 7, abs=1e-4)
    window = db[20 - 3 : 20 + 4, 31 - 3 : 31 + 4]
    assert pixels[1, 20, 31] == pytest.approx((window.std() - 3) / 2, abs=1e-4)


@pytest.mark.parametrize(("size", "count"), [((224, 224), 1), ((256, 256), 4), ((64, 300), 2), ((4000, 224), 8)])
def test_tiles_cover_a_patch(size, count):
    seen = np.arange(size[0] * size[1], dtype=np.float32).reshape(size)
    tiles = semantic.tiles_of(seen)
    assert len(tiles) == count
    assert all(tile.shape == (SIDE, SIDE) for tile in tiles)
    if max(size) <= semantic.MAX_TILES * SIDE:
        assert np.array_equal(np.unique(np.concatenate(tiles)), seen.ravel())
    else:
        assert tiles[0][0, 0] == seen[0, 0]
        assert tiles[-1][-1, -1] == seen[-1, -1]


@pytest.mark.parametrize(
    ("patch", "words"),
    [
        (np.zeros((32, 256)), "too small"),
        (np.zeros((256, 256, 3)), "shape"),
        (np.full((256, 256), np.nan), "NaN"),
        (np.zeros((256, 256), np.complex64), "real amplitude"),
    ],
)
def test_patches_that_say_nothing_are_refused(model, patch, words):
    with pytest.raises(InputError, match=words):
        model.image_features([patch])


def test_long_texts_keep_their_end(model):
    ids = semantic.token_ids(model.tokenizer, ["forest " * 100, "forest"], 32)
    assert ids.shape == (2, 32)
    assert ids[0, -1] == 3  # the end token, where the text is read
    assert ids[1].tolist()[:4] == [2, ids[0, 1], 3, 0]


def test_features_are_remembered_of_known_weights_only(folder, patches):
    from dataclasses import replace

    model = load_sarclip(folder)
    assert model.weights == sha256_of(folder / "model.safetensors")
    found = model.image_features([patches[0], patches[1], patches[0]])
    assert np.array_equal(found[0], found[2])
    assert len(model._known) == 2
    # A patch of other pixels, or another shape of the same, is another patch; mirrored it has other features.
    other = model.image_features([patches[0][:, ::-1], patches[0].reshape(128, 512)])
    assert len(model._known) == 4
    assert not np.allclose(other, found[:2], atol=1e-3)
    training = replace(model, weights="")
    training.image_features(patches[:1])
    assert not training._known  # its weights change


def test_what_is_remembered_is_bounded(folder, patches, monkeypatch):
    monkeypatch.setattr(semantic, "REMEMBERED", 2)
    model = load_sarclip(folder)
    found = model.image_features(patches)
    assert len(model._known) == 2
    assert model.image_features(patches) == pytest.approx(found, abs=1e-6)


def test_batches_change_nothing(folder, patches, monkeypatch):
    found = load_sarclip(folder).image_features(patches)
    monkeypatch.setattr(semantic, "BATCH_CPU", 3)
    monkeypatch.setattr(semantic, "BATCH", 2)
    assert load_sarclip(folder).image_features(patches) == pytest.approx(found, abs=1e-5)


# Reading a score ---------------------------------------------------------------------------------------------------


def test_a_score_is_read_by_right_and_wrong_captions(model, patches):
    found = prompt_agreement(patches, "a SAR image of forest", model)
    score = float(found.scores.mean())
    assert "(forest)" in found.calibrated_on
    assert found.right_percentile == pytest.approx(np.clip((score - 0.2) / 0.4 * 100, 0, 100), abs=0.1)
    assert found.wrong_percentile == pytest.approx(np.clip((score + 0.4) / 0.7 * 100, 0, 100), abs=0.1)
    measure = found.measure
    assert measure.value == pytest.approx(1 - score)
    # Right captions score uniformly between 0.2 and 0.6.
    assert measure.floor == pytest.approx(0.6, abs=0.04)
    assert measure.floor_95 == pytest.approx(0.78, abs=0.02)
    assert measure.reference == pytest.approx(0.4)
    assert measure.interval[0] < measure.floor < measure.floor_95 < measure.interval[1]
    assert found.calibration is model.calibration["forest"]
    assert measure.ratio == pytest.approx(measure.value / measure.floor)
    assert found.notes == ("Few real patches fit the prompt, so it is read by " + found.calibrated_on + ".",)


@pytest.fixture(scope="module")
def with_held_out(model):
    """30 held-out patches: the first 20 forest, of which 12 are bright, the others farmland."""
    from dataclasses import replace

    rng = np.random.default_rng(3)
    features = rng.normal(size=(30, 16))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    none = dict.fromkeys(FACTS, 0) | {"vv": 1}
    facts = [none | ({"forest": 1, "bright": int(i < 12)} if i < 20 else {"agriculture": 1}) for i in range(30)]
    return replace(model, held_out=semantic.HeldOut(features.astype(np.float32), tuple(facts)))


def test_the_same_prompt_is_scored_with_real_patches(with_held_out, patches):
    held_out = with_held_out.held_out
    for prompt, right, wrong in (
        ("a forest", slice(0, 20), slice(20, 30)),
        ("a bright SAR image of woodland", slice(0, 12), slice(12, 30)),
    ):
        scores = held_out.features @ with_held_out.text_features([prompt])[0]
        found = prompt_agreement(patches, prompt, with_held_out)
        value = found.scores.mean()
        assert found.right_percentile == pytest.approx(100 * (scores[right] <= value).mean(), abs=8)
        assert found.wrong_percentile == pytest.approx(100 * (scores[wrong] <= value).mean(), abs=8)
        assert found.measure.reference == pytest.approx(scores[right].mean(), abs=0.02)
        assert found.calibrated_on.startswith(f"{right.stop} real held-out patches")
        auc = (np.sign(scores[right][:, None] - scores[wrong][None]) / 2 + 0.5).mean()
        assert any("little weight" in note for note in found.notes) == (auc < semantic.WEAK_AUC)


def test_few_fitting_patches_are_not_enough(with_held_out, patches):
    found = prompt_agreement(patches, "a dark SAR image of forest", with_held_out)
    assert "plain captions" in found.calibrated_on


def test_held_out_features_round_trip(with_held_out, tmp_path):
    semantic.write_held_out(tmp_path / semantic.HELD_OUT, with_held_out.held_out)
    read = semantic.read_held_out(tmp_path / semantic.HELD_OUT)
    assert read.facts == with_held_out.held_out.facts
    assert read.features == pytest.approx(with_held_out.held_out.features, abs=1e-3)


def test_the_floor_of_one_patch_is_wider_than_that_of_many(with_held_out, patches):
    one = prompt_agreement(patches[:1], "forest", with_held_out).measure
    many = prompt_agreement(patches * 10, "forest", with_held_out).measure
    assert one.floor_95 > many.floor_95 + 0.05


def test_real_patches_of_the_user_are_the_floor(model, patches):
    found = prompt_agreement(patches, "forest", model, reference=patches)
    assert found.measure.floor == pytest.approx(1 - found.scores.mean(), abs=0.01)
    assert found.measure.within
    assert "3 given real patches" in found.calibrated_on


def test_unknown_words_are_told(model, patches):
    found = prompt_agreement(patches, "a forest with giraffes in the evening", model)
    assert found.unknown_words == ("giraffes", "evening")
    assert "'giraffes' and 'evening'" in found.notes[0]
    nothing = prompt_agreement(patches, "giraffes in the evening", model)
    assert nothing.measure.value is None
    assert nothing.right_percentile is None
    assert "says nothing" in nothing.text


def test_a_prompt_without_a_ground_is_read_by_its_polarisation_with_a_warning(model, patches):
    found = prompt_agreement(patches, "a bright SAR image", model)
    assert found.calibrated_on == "plain captions of 12 real held-out patches (VV)"
    assert any("60%" in note for note in found.notes)
    vh = prompt_agreement(patches, "a bright VH image", model)
    assert vh.measure.floor is None
    assert "without calibration" in vh.text


def test_the_measure_takes_its_place_in_a_report(model, patches):
    found = prompt_agreement(patches, "forest", model)
    statistics = patch_statistics(patches, ["a", "b", "c"])
    report = with_prompt(
        compare(statistics, statistics, reference_name="same"), patches, "forest", model, polarisation=None
    )
    json.dumps(report.to_json(), allow_nan=False)
    assert report.measures["semantic"] == found.measure
    assert f"Prompt: {found.text}" in report.notes


@pytest.mark.parametrize(("amplitudes", "prompt"), [([], "forest"), ([np.zeros((256, 256))], " , ")])
def test_nothing_to_compare_is_refused(model, amplitudes, prompt):
    with pytest.raises(InputError):
        prompt_agreement(amplitudes, prompt, model)


# Loading -----------------------------------------------------------------------------------------------------------


def test_the_shipped_place_is_named_when_it_is_empty(settings):
    from dataclasses import replace

    with pytest.raises(InputError, match="SAR-CLIP is not in"):
        load_sarclip(None, replace(settings, checkpoints=settings.home / "none"))


def test_a_general_clip_is_labelled(tmp_path, patches):
    from transformers import CLIPConfig, CLIPModel

    tokenizer = build_tokenizer(vocabulary())
    towers = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = towers | {"vocab_size": tokenizer.get_vocab_size(), "eos_token_id": 3, "bos_token_id": 2, "pad_token_id": 0}
    config = CLIPConfig(
        text_config=text, vision_config=towers | {"image_size": 48, "patch_size": 16}, projection_dim=8
    )
    CLIPModel(config).save_pretrained(tmp_path)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    model = load_sarclip(tmp_path)
    assert model.label.endswith("(not SAR-trained)")
    found = prompt_agreement(patches, "forest", model)
    assert "not SAR-trained" in found.text
    assert found.measure.floor is None
    assert load_sarclip(tmp_path, sar_trained=True).label == tmp_path.name


@pytest.mark.parametrize("source", ["no such thing", "/nowhere/at/all"])
def test_sources_that_are_nothing_are_refused(source):
    with pytest.raises(InputError, match="neither a folder nor a hub id"):
        load_sarclip(source)


def test_only_whole_safe_weights_are_loaded(tmp_path):
    folder = write_clip(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    weights = (folder / "model.safetensors").read_bytes()

    (folder / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "code.Model"}}))
    with pytest.raises(InputError, match="not a plain CLIP"):
        load_sarclip(folder)
    (folder / "config.json").write_text(json.dumps(config))

    changed = bytearray(weights)
    changed[-1] ^= 1
    (folder / "model.safetensors").write_bytes(bytes(changed))
    with pytest.raises(InputError, match="not the file that its card describes"):
        load_sarclip(folder)
    (folder / "model.safetensors").write_bytes(weights[:-10])
    with pytest.raises(InputError, match="cut off"):
        load_sarclip(folder)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"PK\x03\x04")
    with pytest.raises(InputError, match="pickle"):
        load_sarclip(folder)


def test_a_card_for_another_input_is_refused(tmp_path):
    folder = write_clip(tmp_path)
    write_card(folder, input={"side": 100, "looks": 1, "channels": 2})
    with pytest.raises(InputError, match="image input"):
        load_sarclip(folder)


def test_importing_brings_no_torch():
    import subprocess
    import sys

    code = "import sys, sar_gen.quality.semantic; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
