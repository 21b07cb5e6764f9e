"""Checkpoint folders seen from outside: what they bring, what is missing, what does not fit."""

import dataclasses
import json

import pytest

from sar_gen.errors import InputError
from sar_gen.folders import (
    LORA_FILE,
    check_family,
    check_fits,
    check_pipeline,
    missing_in_pipeline,
    part_bytes,
    pipeline_family,
    strategy_files,
)
from tests import fake

UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def sdxl(tmp_path):
    return fake.pipeline(tmp_path / "sdxl", "sdxl")


@pytest.fixture
def sd15(tmp_path):
    return fake.pipeline(tmp_path / "sd15", "sd15")


def _index(folder, **changed):
    path = folder / "model_index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))


def test_whole_pipelines_are_recognised(sdxl, sd15):
    assert check_pipeline(sdxl) == "sdxl"
    assert check_pipeline(sd15) == "sd15"
    assert missing_in_pipeline(sdxl) == []
    assert part_bytes(sdxl)["unet"] == 2 * 8 * 2048


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"_class_name": "MMDiffPipeline"}, "is a MMDiffPipeline pipeline, which is not loaded"),
        ({"_class_name": ["pipeline", "Mine"]}, "is a custom pipeline"),
        ({"unet": ["my_code", "MyUNet"]}, "wants unet as my_code.MyUNet"),
        ({"unet": ["diffusers", "UNet3DConditionModel"]}, "wants unet as diffusers.UNet3D"),
        ({"extra": ["my_code", "Extra"]}, "wants extra as my_code.Extra"),
        ({"scheduler": ["my_code", "MyScheduler"]}, "wants scheduler as my_code.MyScheduler"),
        ({"scheduler": ["diffusers", "os; Scheduler"]}, "wants scheduler"),
        ({"vae": [None, None]}, "has no vae"),
        ({"tokenizer_2": None}, "has no tokenizer_2"),
    ],
)
def test_pipelines_with_foreign_code_or_without_a_part_are_refused(sdxl, changed, words):
    _index(sdxl, **changed)
    with pytest.raises(InputError, match=words):
        check_pipeline(sdxl)


def test_a_safety_checker_in_the_index_is_no_obstacle(sd15):
    assert not (sd15 / "safety_checker").exists()
    assert check_pipeline(sd15) == "sd15"


@pytest.mark.parametrize(
    "name", ["model_index.json", UNET, "unet/config.json", "tokenizer_2/merges.txt", "scheduler/scheduler_config.json"]
)
def test_missing_files_are_named(sdxl, name):
    (sdxl / name).unlink()
    missing = missing_in_pipeline(sdxl)
    assert len(missing) == 1
    assert missing[0].split("/")[0] == name.split("/")[0]
    with pytest.raises(InputError, match="bring the complete folder"):
        check_pipeline(sdxl)


def test_a_missing_shard_is_noticed(sdxl):
    whole = sdxl / UNET
    whole.rename(whole.with_name("diffusion_pytorch_model-00001-of-00002.safetensors"))
    assert missing_in_pipeline(sdxl) == [UNET]


def test_a_pipeline_of_pickles_is_refused_as_such(sd15):
    (sd15 / UNET).rename(sd15 / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(InputError, match=r"diffusion_pytorch_model\.bin is a pickle checkpoint"):
        check_pipeline(sd15)


def test_damaged_json_and_weights_are_refused(sdxl):
    (sdxl / UNET).write_bytes((sdxl / UNET).read_bytes()[:-5])
    with pytest.raises(InputError, match="cut off or damaged"):
        check_pipeline(sdxl)
    (sdxl / "model_index.json").write_text("not json")
    with pytest.raises(InputError, match=r"model_index\.json is not JSON"):
        check_pipeline(sdxl)
    (sdxl / "model_index.json").write_text("[]")
    with pytest.raises(InputError, match="does not hold a JSON object"):
        check_pipeline(sdxl)


def test_a_strategy_folder_brings_what_lies_in_it(tmp_path, sdxl):
    folder = tmp_path / "mine"
    fake.weights(folder / UNET, {fake.UNET_KEY: (8, 2048)})
    lora = {"text_encoder.q_proj.lora_A.weight": (4, 9), "text_encoder_2.q_proj.lora_A.weight": (4, 9)}
    fake.weights(folder / LORA_FILE, lora)
    fake.weights(folder / "token.safetensors", {"clip_l": (1, 768), "clip_g": (1, 1280)})
    (folder / "optimizer.bin").write_bytes(b"a trainer's state is left alone")
    files = strategy_files(folder)
    assert files.modes() == {"unet": "full", "text_encoder": "lora", "text_encoder_2": "lora", "token": "learned"}
    assert sorted(path.name for path in files.paths()) == sorted(
        ["diffusion_pytorch_model.safetensors", LORA_FILE, "token.safetensors"]
    )
    check_fits(files, sdxl, "sdxl", "Mine")


@pytest.mark.parametrize(
    ("names", "modes"),
    [
        (["encoder.conv_in.weight", "decoder.conv_out.weight"], {"vae_decoder": "full", "vae_encoder": "full"}),
        (["decoder.conv_out.weight", "post_quant_conv.weight"], {"vae_decoder": "full"}),
    ],
)
def test_the_halves_of_a_vae(tmp_path, names, modes):
    fake.weights(tmp_path / "vae" / "diffusion_pytorch_model.safetensors", dict.fromkeys(names, (3, 2, 3, 3)))
    assert strategy_files(tmp_path).modes() == modes


def test_a_single_lora_file_with_any_name(tmp_path):
    path = fake.lora(tmp_path / "My LoRA v2.safetensors")
    assert strategy_files(path).lora == path
    assert strategy_files(tmp_path).lora == path  # alone in a folder it is found
    fake.lora(tmp_path / "another.safetensors")
    with pytest.raises(InputError, match="holds neither a diffusers pipeline"):
        strategy_files(tmp_path)


def test_folders_without_anything_usable_are_refused(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        strategy_files(tmp_path / "nothing")
    with pytest.raises(InputError, match="holds neither a diffusers pipeline"):
        strategy_files(tmp_path)
    (tmp_path / "pytorch_lora_weights.bin").write_bytes(b"\x80\x04")
    with pytest.raises(InputError, match=r"pytorch_lora_weights\.bin is a pickle checkpoint"):
        strategy_files(tmp_path)
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(InputError, match=r"diffusion_pytorch_model\.bin is a pickle"):
        strategy_files(tmp_path)


@pytest.mark.parametrize(
    "shapes", [{"clip_g": (1, 9)}, {"clip_l": (1, 9), "clip_g": (2, 9)}, {"clip_l": (9,)}, {"emb_params": (1, 768)}]
)
def test_tokens_of_another_make_are_refused(tmp_path, shapes):
    fake.weights(tmp_path / "token.safetensors", shapes)
    with pytest.raises(InputError, match=r"token\.safetensors should hold"):
        strategy_files(tmp_path)


@pytest.mark.parametrize(
    "shapes",
    [
        {"encoder.conv_in.lora_A.weight": (2, 3, 3, 3), "encoder.conv_in.lora_B.weight": (2, 2, 1, 1)},
        {"decoder.conv_out.lora_A.weight": (2, 2, 3, 3)},
        {"decoder.conv_out.weight": (3, 2, 3, 3)},
    ],
)
def test_vae_loras_of_another_make_are_refused(tmp_path, shapes):
    fake.weights(tmp_path / "vae" / LORA_FILE, shapes)
    with pytest.raises(InputError, match="should hold pairs decoder"):
        strategy_files(tmp_path)


def test_families_never_mix(tmp_path):
    sd15 = strategy_files(fake.lora(tmp_path / "a.safetensors", context=768))
    sdxl = strategy_files(fake.lora(tmp_path / "b.safetensors", context=2048))
    check_family(sd15, "sd15", "A")
    check_family(sdxl, "sdxl", "B")
    with pytest.raises(
        InputError, match=r"The LoRA of A was made for SD 1\.5 and its base is SDXL; families are never"
    ):
        check_family(sd15, "sdxl", "A")
    with pytest.raises(InputError, match=r"The LoRA of B was made for SDXL and its base is SD 1\.5"):
        check_family(sdxl, "sd15", "B")
    fake.weights(tmp_path / "t" / "token.safetensors", {"clip_l": (1, 768)})
    token = strategy_files(tmp_path / "t")
    with pytest.raises(InputError, match="lacks clip_g"):
        check_family(token, "sdxl", "T")
    check_family(token, "sd15", "T")
    two = dataclasses.replace(token, token_shapes={"clip_l": (1, 768), "clip_g": (1, 1280)})
    with pytest.raises(InputError, match="which has one"):
        check_family(two, "sd15", "T")


def test_shapes_that_do_not_fit_the_base_are_named(tmp_path, sdxl):
    narrow = strategy_files(fake.lora(tmp_path / "a.safetensors", context=576))
    with pytest.raises(InputError, match="text context 576 wide, its base has 2048"):
        check_fits(narrow, sdxl, "sdxl", "A")
    fake.weights(tmp_path / "u" / UNET, {fake.UNET_KEY: (9, 2048)})
    with pytest.raises(
        InputError, match=r"The unet of U does not fit its base \(.*: 9x2048 here, 8x2048 in the base\)"
    ):
        check_fits(strategy_files(tmp_path / "u"), sdxl, "sdxl", "U")
    fake.weights(tmp_path / "v" / UNET, {"something.weight": (9, 2048)})
    with pytest.raises(InputError, match=r": absent here, 8x2048 in the base\)"):
        check_fits(strategy_files(tmp_path / "v"), sdxl, "sdxl", "V")
    fake.weights(tmp_path / "t" / "token.safetensors", {"clip_l": (1, 768), "clip_g": (1, 768)})
    with pytest.raises(InputError, match="768 wide for text_encoder_2, its base has 1280"):
        check_fits(strategy_files(tmp_path / "t"), sdxl, "sdxl", "T")


@pytest.mark.parametrize("prefix", ["", "text_model."])
def test_text_encoders_fit_with_old_and_new_names(tmp_path, sdxl, prefix):
    shapes = {f"{prefix}embeddings.token_embedding.weight": (4, 768), f"{prefix}embeddings.position_ids": (1, 77)}
    fake.weights(tmp_path / "s" / "text_encoder" / "model.safetensors", shapes)
    check_fits(strategy_files(tmp_path / "s"), sdxl, "sdxl", "S")


def test_the_family_comes_from_the_class(sdxl):
    index = json.loads((sdxl / "model_index.json").read_text())
    assert pipeline_family(index, "x") == "sdxl"
