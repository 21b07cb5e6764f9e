from collections import Counter

import numpy as np
import pytest

from sar_gen.errors import InputError
from sar_gen.training.captioning import (
    STYLES,
    Seen,
    VlmCaptioner,
    attribute_facts,
    bare_description,
    captions_of,
    described,
    label_captions,
    optical_attributes,
    optical_facts,
    read_labels,
)
from sar_gen.training.captions import Thresholds, facts, stated_facts

LIMITS = Thresholds(-10, -9, -8, -7, 2, 2.5, 3, 3.5)


def known(**changes):
    values = {"terrain": "river", "polarisation": "VV", "water": 0.2, "built_up": 0.2, "brightness": -12.0}
    return facts(**{**values, "roughness": 4.0, "limits": LIMITS, **changes})


@pytest.mark.parametrize("modality", ["sar", "optical"])
def test_every_caption_says_what_it_is_of_and_states_true_facts_only(modality):
    facts_ = known() if modality == "sar" else optical_facts(known())
    stated = Counter()
    for seed in range(80):
        made = captions_of(facts_, modality, str(seed))
        assert made == captions_of(facts_, modality, str(seed))
        assert len(set(made)) == len(made) == 6
        for text in made:
            assert ("SAR" in text) == (modality == "sar")
            assert ("optical" in text or "aerial" in text) == (modality == "optical")
            found = stated_facts(text)
            assert all(facts_[name] == 1 for name in found), text
            stated.update(found)
    seen = {"river", "water", "buildings"}
    assert set(stated) == (seen | {"vv", "dark", "rough"} if modality == "sar" else seen)
    assert captions_of(facts_, modality, "0")[0] == f"{STYLES[modality][0]} of a river"


def test_polarised_captions_always_state_it():
    vh = known(terrain=None, polarisation="VH", water=0.8, built_up=0.0)
    texts = [text for seed in range(30) for text in captions_of(vh, "sar", str(seed), polarised=True)]
    assert all("VH" in text for text in texts)
    assert 0.3 < np.mean(["VV" in text for seed in range(60) for text in captions_of(known(), "sar", str(seed))]) < 0.7


def test_little_that_is_known_makes_few_captions():
    assert captions_of({}, "sar", "x")[0] == "a SAR image"
    assert set(captions_of({}, "optical", "x")) <= set(STYLES["optical"])


def test_attributes_of_any_place_claim_no_more_than_is_shown():
    seen = attribute_facts(
        terrain=None, polarisation="HH", seen=Seen(0.7, 0.0), brightness=-12, roughness=1, limits=LIMITS
    )
    true = {name for name, value in seen.items() if value == 1}
    assert true == {"water", "open water", "dark", "smooth"}
    assert (seen["vv"], seen["forest"], seen["open land"], seen["buildings"]) == (0, -1, -1, 0)
    nothing = attribute_facts(
        terrain="gorge", polarisation=None, seen=None, brightness=-8.5, roughness=2.7, limits=LIMITS
    )
    assert {name for name, value in nothing.items() if value == 1} == {"gorge"}
    assert (nothing["forest"], nothing["water"], nothing["vv"]) == (0, -1, -1)


def test_water_needs_picture_and_radar_and_buildings_the_picture():
    random = np.random.default_rng(0)
    smooth = np.full((64, 64), 40, np.uint8)
    town = (random.integers(0, 2, (64, 64)) * 180 + 40).astype(np.uint8)
    dark, bright = np.full((64, 64), 0.05, np.float32), np.full((64, 64), 0.5, np.float32)
    assert optical_attributes(smooth, dark) == Seen(1.0, 0.0)
    assert optical_attributes(smooth, bright) == Seen(0.0, 0.0)
    assert optical_attributes(town, dark) == optical_attributes(town, bright) == Seen(0.0, 1.0)
    assert optical_attributes(smooth, np.full((128, 128), 0.05, np.float32)) == Seen(1.0, 0.0)


def test_a_label_of_other_words_is_said_as_it_is():
    assert label_captions("oil tank farm", "VV", "x") == (
        "a SAR image of oil tank farm", "a SAR patch of oil tank farm", "a SAR scene of oil tank farm",
        "a SAR image of oil tank farm, VV polarisation", "a SAR patch of oil tank farm, VV polarisation",
        "a SAR scene of oil tank farm, VV polarisation",
    )  # fmt: skip
    assert label_captions("Forest", "VV", "x")[0] == "a SAR image of forest"
    assert label_captions("quay", "VV", "x", modality="optical")[1] == "an aerial photograph of quay"


def test_labels_are_found_by_patch_or_file(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text("\ufefffile,terrain\nscene.tif,forest\nscene-r00000-c00000,river\n", encoding="utf-8")
    labels = read_labels(path)
    assert labels.of("scene-r00000-c00000", "scene.tif") == ("river", ())
    assert labels.of("scene-r00000-c00256", "sub/scene.tif", "scene") == ("forest", ())
    assert labels.of("other") == (None, ())
    path.write_text("file,terrain\na,forest\na,river\n")
    with pytest.raises(InputError, match="calls a both 'forest' and 'river'"):
        read_labels(path)
    path.write_text("name,terrain\na,forest\n")
    with pytest.raises(InputError, match="needs a column 'file'"):
        read_labels(path)


@pytest.mark.parametrize(
    ("said", "bare"),
    [
        ("a satellite image of green fields", "green fields"),
        ("This image shows an aerial view of a river. It is wide.", "a river"),
        ("The image is a black and white photograph of a town", "a town"),
        ("An aerial photo showing farmland with 3.5 km of canals.", "farmland with 3.5 km of canals"),
        ("green fields beside\n a river", "green fields beside a river"),
        ("USA flag", "USA flag"),
        ("A", "a"),
    ],
)
def test_a_description_stands_without_its_beginning(said, bare):
    assert bare_description(said) == bare
    assert described(bare, "sar", "VV")[0] == f"a SAR image of {bare}"


# Tiny models of both kinds that transformers has: with an image alone, and with a chat -------------------------------


@pytest.fixture(scope="module")
def blip(tmp_path_factory):
    import torch
    from transformers import BertTokenizer, BlipConfig, BlipForConditionalGeneration, BlipProcessor
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    folder = tmp_path_factory.mktemp("blip")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "green", "fields", "river", "town", "roads"]
    layers = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**layers, "vocab_size": len(words), "encoder_hidden_size": 16, "max_position_embeddings": 64}
    text |= {"bos_token_id": 2, "eos_token_id": 3, "sep_token_id": 3, "pad_token_id": 0}
    config = BlipConfig(text_config=text, vision_config={**layers, "image_size": 32, "patch_size": 16})
    torch.manual_seed(1)
    BlipForConditionalGeneration(config).save_pretrained(folder)
    tokenizer = BertTokenizer(vocab={word: number for number, word in enumerate(words)})
    BlipProcessor(BlipImageProcessorPil(size={"height": 32, "width": 32}), tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor, PreTrainedTokenizerFast
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    folder = tmp_path_factory.mktemp("llava")
    words = ["<pad>", "<unk>", "<s>", "</s>", "<image>", "USER:", "ASSISTANT:", "green", "fields", "river", "town"]
    plain = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token="<pad>", unk_token="<unk>", bos_token="<s>", eos_token="</s>",
        additional_special_tokens=["<image>"],
    )  # fmt: skip
    layers = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    text = {**layers, "model_type": "llama", "vocab_size": len(words), "num_hidden_layers": 1, "eos_token_id": 3}
    vision = {**layers, "model_type": "clip_vision_model", "num_hidden_layers": 1, "image_size": 32, "patch_size": 16}
    config = LlavaConfig(
        vision_config=vision, text_config=text | {"num_key_value_heads": 2, "bos_token_id": 2, "pad_token_id": 0},
        image_token_index=4, vision_feature_layer=-1,
    )  # fmt: skip
    torch.manual_seed(3)
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    images = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    template = (
        "{% for m in messages %}USER: {% for c in m['content'] %}"
        "{% if c['type'] == 'image' %}<image> {% else %}{{ c['text'] }} {% endif %}{% endfor %}{% endfor %}ASSISTANT:"
    )
    LlavaProcessor(
        images, tokenizer, patch_size=16, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        image_token="<image>", chat_template=template,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def greedy(captioner, inputs, start, count):
    """Return the most likely tokens one after the other, by whole forward passes."""
    import torch

    ids = start
    with torch.no_grad():
        for _ in range(count):
            logits = captioner._model(**{**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}).logits
            ids = torch.cat([ids, logits[:, -1:].argmax(-1)], dim=1)
            if int(ids[0, -1]) == 3:
                break
    return captioner._processor.batch_decode(ids[:, start.shape[1] :], skip_special_tokens=True)[0]


@pytest.mark.parametrize("colour", [True, False])
def test_a_chat_model_says_its_most_likely_words(llava, colour):
    from PIL import Image

    shape = (48, 48, 3) if colour else (48, 48)
    picture = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    captioner = VlmCaptioner(str(llava))
    words = captioner.describe(picture)
    prompt = f"USER: <image> {captioner.PROMPT} ASSISTANT:"
    inputs = captioner._processor(images=Image.fromarray(picture).convert("RGB"), text=prompt, return_tensors="pt")
    expected = greedy(captioner, inputs, inputs["input_ids"], captioner.TOKENS)
    assert words == bare_description(expected) != ""
    assert "twelve" not in words  # the prompt is not part of it


def test_an_image_to_text_model_needs_no_prompt(blip):
    picture = np.random.default_rng(0).integers(0, 256, (40, 60), dtype=np.uint8)
    captioner = VlmCaptioner(str(blip))
    words = captioner.describe(picture)
    assert words
    assert set(words.split()) <= {"green", "fields", "river", "town", "roads"}
    assert VlmCaptioner(str(blip)).describe(picture) == words


def test_models_that_are_not_safe_or_not_there_are_refused(tmp_path, blip):
    import shutil

    import torch

    with pytest.raises(InputError, match="neither a folder nor a hub id"):
        VlmCaptioner("just-a-word")
    with pytest.raises(InputError, match="cannot be used to caption"):
        VlmCaptioner("nobody/no-such-model")  # offline
    shutil.copytree(blip, tmp_path / "pickled")
    (tmp_path / "pickled" / "model.safetensors").unlink()
    torch.save({}, tmp_path / "pickled" / "pytorch_model.bin")
    with pytest.raises(InputError, match="cannot be used to caption"):
        VlmCaptioner(str(tmp_path / "pickled"))


def test_described_pictures_are_prepared_and_kept(tmp_path, blip):
    import tifffile
    from PIL import Image

    from sar_gen.training.manifest import read_manifest
    from sar_gen.training.prepare import PrepareOptions, _Described, prepare

    random = np.random.default_rng(0)
    (tmp_path / "optical").mkdir()
    tifffile.imwrite(tmp_path / "a_VV.tif", random.gamma(1, 1, (64, 64)).astype(np.float32))
    Image.fromarray(random.integers(0, 256, (64, 64), dtype=np.uint8)).save(tmp_path / "optical" / "a.png")
    options = PrepareOptions(
        tile=32, encoding="amplitude", captions=f"vlm:{blip}", optical=tmp_path / "optical", split=(1, 0, 0)
    )
    prepare(tmp_path / "a_VV.tif", tmp_path / "out", options)
    captioner = VlmCaptioner(str(blip))
    rows = {row.key: row for row in read_manifest(tmp_path / "out")}
    assert len(rows) == 8
    for row in rows.values():
        picture = row.file if row.modality == "optical" else row.optical
        words = captioner.describe(np.asarray(Image.open(tmp_path / "out" / picture)))
        assert row.captions[0] == f"{'a SAR' if row.modality == 'sar' else 'an optical'} image of {words}"
    lines = tmp_path / "described.jsonl"
    lines.write_text('{"a": "a field"}\n{"b": "cut')
    said = _Described(captioner, lines)
    assert said.of("a", tmp_path / "none") == "a field"
    assert lines.read_text() == '{"a": "a field"}\n'  # the line that was cut off is gone
