"""Loading, switching and freeing pipelines, on tiny random checkpoints."""

from __future__ import annotations

import dataclasses
import gc
import json
import subprocess
import sys
import weakref

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from sar_gen import checkpoints, pipelines
from sar_gen.errors import InputError, SarGenError
from sar_gen.pipelines import BASE, PipelineHolder, Placement, changes, choose_placement, resolve_device
from sar_gen.settings import ROOT, Settings
from sar_gen.strategies import STRATEGIES
from tests import tiny

# A network that reads guides is no strategy that a pipeline is switched to: it goes beside any of them.
ON_BASE = [name for name in STRATEGIES if name not in ("base", "foundation", "control")]
PROMPT = "a <SAR> sar"
GB = 1_000_000_000


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """Settings with two tiny bases, one of each family, and a strategy folder for each row of the table."""
    root = tmp_path_factory.mktemp("tiny")
    base = tiny.checkpoint(root / "checkpoints" / "base")
    tiny.checkpoint(root / "checkpoints" / "old", "sd15", seed=5)
    for name in ON_BASE:
        tiny.strategy_folder(root / "checkpoints" / _id(name), base, name)
    return Settings(home=root / "home", runs=root / "runs", checkpoints=root / "checkpoints", device="cpu")


@pytest.fixture(scope="module")
def forgetful(settings):
    """The same, and nothing is kept beside the checkpoint in use."""
    return dataclasses.replace(settings, keep_gb=0, keep_gpu_gb=0)


@pytest.fixture(scope="module")
def catalogue(settings):
    found, problems = checkpoints.scan(settings)
    assert not problems
    return found


@pytest.fixture
def holder():
    holder = PipelineHolder()
    yield holder
    holder.free()


@pytest.fixture(scope="module")
def base_output(settings, catalogue):
    holder = PipelineHolder()
    return _picture(holder.ensure(catalogue["base"], catalogue, settings))


def _id(strategy):
    return "s-" + strategy.replace("+", "-")


def _picture(pipe, prompt=PROMPT, steps=2):
    generator = torch.Generator().manual_seed(0)
    size = {"height": tiny.SIZE, "width": tiny.SIZE}
    return pipe(prompt, num_inference_steps=steps, generator=generator, output_type="np", **size).images[0]


def _weights(pipe):
    parts = ("unet", "vae", "text_encoder", "text_encoder_2")
    return {
        f"{part}.{name}": tensor.clone() for part in parts for name, tensor in getattr(pipe, part).state_dict().items()
    }


def _same_weights(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("name", ON_BASE)
def test_switching_there_back_and_there_again_is_exact(name, holder, settings, catalogue, base_output):
    base, spec = catalogue["base"], catalogue[_id(name)]
    pipe = holder.ensure(base, catalogue, settings)
    before = _weights(pipe)
    modules = {part: getattr(pipe, part) for part in ("unet", "vae", "text_encoder", "text_encoder_2", "tokenizer")}

    first = _picture(holder.ensure(spec, catalogue, settings))
    assert not np.array_equal(first, base_output), "the strategy does nothing"

    pipe = holder.ensure(base, catalogue, settings)
    assert np.array_equal(_picture(pipe), base_output)
    assert _same_weights(_weights(pipe), before)
    assert all(getattr(pipe, part) is module for part, module in modules.items())

    again = _picture(holder.ensure(spec, catalogue, settings))
    fresh_holder = PipelineHolder()
    fresh = _picture(fresh_holder.ensure(spec, catalogue, settings))
    assert np.array_equal(again, first)
    assert np.array_equal(fresh, first)


@pytest.mark.parametrize(
    ("one", "other"), [("hybrid", "unet-lora"), ("unet-full+te-full", "hybrid"), ("vae-full", "vae-decoder-lora")]
)
def test_switching_between_strategies_equals_a_fresh_load(one, other, holder, settings, catalogue):
    holder.ensure(catalogue[_id(one)], catalogue, settings)
    switched = _picture(holder.ensure(catalogue[_id(other)], catalogue, settings))
    fresh = _picture(PipelineHolder().ensure(catalogue[_id(other)], catalogue, settings))
    assert np.array_equal(switched, fresh)


def test_only_what_differs_is_written(holder, forgetful, catalogue, monkeypatch):
    holder.ensure(catalogue["base"], catalogue, forgetful)
    written = []
    copy_weights = pipelines.copy_weights
    monkeypatch.setattr(
        pipelines,
        "copy_weights",
        lambda module, files: (written.append(type(module).__name__), copy_weights(module, files)),
    )
    monkeypatch.setattr(PipelineHolder, "_load_base", lambda self: pytest.fail("the base was loaded again"))
    said: list[str] = []
    holder.ensure(catalogue[_id("vae-decoder")], catalogue, forgetful, say=said.append)
    assert written == ["AutoencoderKL", "AutoencoderKL"]  # the base's, then the decoder's
    assert said[-1] == "Switching to s-vae-decoder: VAE."
    written.clear()
    said.clear()
    holder.ensure(catalogue[_id("vae-decoder")], catalogue, forgetful, say=said.append)
    assert written == []
    assert said == []
    holder.ensure(catalogue[_id("unet-lora")], catalogue, forgetful)
    assert written == ["AutoencoderKL"]


def test_a_retrained_file_is_loaded_again(tmp_path, holder, settings, catalogue):
    folder = tmp_path / "mine"
    tiny.add_full(folder, settings.checkpoints / "base", "unet", seed=50)
    spec = dataclasses.replace(catalogue[_id("unet-full")], path=folder)
    first = _picture(holder.ensure(spec, catalogue, settings))
    tiny.add_full(folder, settings.checkpoints / "base", "unet", seed=51)
    assert not np.array_equal(_picture(holder.ensure(spec, catalogue, settings)), first)


def test_another_base_is_loaded_after_the_old_one_is_dead(holder, forgetful, catalogue, monkeypatch):
    import diffusers

    kept = holder.ensure(catalogue[_id("hybrid")], catalogue, forgetful)  # the caller forgets to let go
    view = holder.image_to_image()
    old = [weakref.ref(getattr(kept, part)) for part in ("unet", "vae", "text_encoder", "text_encoder_2")]
    load = diffusers.StableDiffusionPipeline.from_pretrained
    alive = []

    def from_pretrained(*args, **kwargs):
        alive.append([ref() is not None for ref in old])
        return load(*args, **kwargs)

    monkeypatch.setattr(diffusers.StableDiffusionPipeline, "from_pretrained", from_pretrained)
    said: list[str] = []
    pipe = holder.ensure(catalogue["old"], catalogue, forgetful, say=said.append)
    assert alive == [[False] * 4]
    assert view.unet is None
    assert said[1] == "Freeing base."
    assert said[2].startswith("Loading old: CPU, float32, ")
    assert _picture(pipe, "a sar").shape == (tiny.SIZE, tiny.SIZE, 3)
    assert pipe.safety_checker is None


def test_free_lets_everything_go(holder, settings, catalogue):
    pipe = holder.ensure(catalogue[_id("token")], catalogue, settings)
    unet = weakref.ref(pipe.unet)
    del pipe
    holder.free()
    gc.collect()
    assert unet() is None
    assert holder.placement is None
    assert holder.identity() == {}
    with pytest.raises(SarGenError, match="No checkpoint is loaded"):
        holder.image_to_image()


@pytest.mark.parametrize("name", ["hybrid", "old"])
def test_image_to_image_shares_every_part(name, holder, settings, catalogue):
    pipe = holder.ensure(catalogue[name if name in catalogue else _id(name)], catalogue, settings)
    view = holder.image_to_image()
    assert all(view.components[name] is part for name, part in pipe.components.items())
    start = torch.full((1, 3, tiny.SIZE, tiny.SIZE), 0.5)
    generator = torch.Generator().manual_seed(0)
    made = view(
        "a sar", image=start, strength=0.5, num_inference_steps=2, generator=generator, output_type="np"
    ).images
    assert made.shape == (1, tiny.SIZE, tiny.SIZE, 3)
    if "text_encoder_2" in pipe.components:
        assert view.config.force_zeros_for_empty_prompt is True
        assert view.watermark is None


def test_identity_names_base_strategy_and_the_hash_of_each_file(holder, settings, catalogue):
    import hashlib

    holder.ensure(catalogue[_id("hybrid")], catalogue, settings)
    identity = holder.identity()
    assert (identity["base"], identity["strategy"], identity["family"]) == ("base", "hybrid", "sdxl")
    assert set(identity["parts"]) == {"unet", "vae", "text_encoder", "text_encoder_2", "lora", "token"}
    token = (settings.checkpoints / _id("hybrid") / "token.safetensors").read_bytes()
    assert identity["parts"]["token"] == {"token.safetensors": hashlib.sha256(token).hexdigest()}
    unet = (settings.checkpoints / _id("hybrid") / "unet" / tiny.WEIGHTS["unet"]).read_bytes()
    assert identity["parts"]["unet"] == {tiny.WEIGHTS["unet"]: hashlib.sha256(unet).hexdigest()}
    json.dumps(identity)


def _with_lora(tmp_path, settings, catalogue, style, parts, family="sdxl"):
    base = settings.checkpoints / ("base" if family == "sdxl" else "old")
    path = tiny.add_lora(tmp_path / style, base, parts, style, seed=7, name="a lora.safetensors")
    return dataclasses.replace(
        catalogue[_id("unet-lora")], id=f"lora-{style}", kind="lora", path=path, base=base.name, family=family
    )


def _embeddings(pipe):
    words = pipe.tokenizer("a sar", padding="max_length", return_tensors="pt").input_ids
    encoders = [pipe.text_encoder, *([pipe.text_encoder_2] if hasattr(pipe, "text_encoder_2") else [])]
    with torch.no_grad():
        return [encoder(words)[0].clone() for encoder in encoders]


def test_every_style_of_lora_keys_changes_both_text_encoders_alike(tmp_path, holder, settings, catalogue):
    plain = _embeddings(holder.ensure(catalogue["base"], catalogue, settings))
    parts = ("unet", "text_encoder", "text_encoder_2")
    found = {}
    for style in ("diffusers", "old", "kohya"):
        spec = _with_lora(tmp_path, settings, catalogue, style, parts)
        pipe = holder.ensure(spec, catalogue, settings)
        embeddings = _embeddings(pipe)
        assert all(not torch.equal(now, before) for now, before in zip(embeddings, plain, strict=True)), style
        found[style] = (_picture(pipe), *embeddings)
    for style in ("old", "kohya"):
        assert all(np.allclose(a, b, atol=1e-5) for a, b in zip(found[style], found["diffusers"], strict=True)), style


def test_the_alpha_of_a_kohya_file_scales_it(tmp_path, holder, settings, catalogue):
    """alpha / rank = 1/4 equals a diffusers file whose B is a quarter (arXiv 2106.09685; kohya's networks/lora.py)."""
    parts, base = ("unet", "text_encoder", "text_encoder_2"), settings.checkpoints / "base"
    kohya = tiny.add_lora(tmp_path / "kohya", base, parts, "kohya", rank=4, alpha=1.0)
    plain = tiny.add_lora(tmp_path / "plain", base, parts, rank=4)
    save_file({k: v / 4 if ".lora_B." in k else v for k, v in load_file(plain).items()}, plain)
    found = []
    for path in (kohya, plain):
        spec = dataclasses.replace(catalogue[_id("unet-lora")], kind="lora", path=path)
        pipe = holder.ensure(spec, catalogue, settings)
        found.append((_picture(pipe), *_embeddings(pipe)))
    assert all(np.allclose(a, b, atol=1e-5) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("style", ["diffusers", "kohya"])
def test_lora_on_sd15(tmp_path, style, holder, settings, catalogue):
    pipe = holder.ensure(catalogue["old"], catalogue, settings)
    plain = _picture(pipe, "a sar")
    spec = _with_lora(tmp_path, settings, catalogue, style, ("unet", "text_encoder"), "sd15")
    assert not np.array_equal(_picture(holder.ensure(spec, catalogue, settings), "a sar"), plain)
    assert np.array_equal(_picture(holder.ensure(catalogue["old"], catalogue, settings), "a sar"), plain)


def test_a_lora_is_the_product_of_its_matrices(tmp_path, holder, settings, catalogue):
    """The picture with a UNet LoRA equals the one of a whole UNet with B A added to its weights by hand."""
    spec = _with_lora(tmp_path, settings, catalogue, "diffusers", ("unet",))
    with_lora = _picture(holder.ensure(spec, catalogue, settings))
    lora = load_file(spec.path)
    unet = load_file(settings.checkpoints / "base" / "unet" / tiny.WEIGHTS["unet"])
    for key in lora:
        if key.endswith(".lora_A.weight"):
            name = key.removeprefix("unet.").removesuffix(".lora_A.weight")
            unet[f"{name}.weight"] += lora[key.replace("lora_A", "lora_B")] @ lora[key]
    (tmp_path / "merged" / "unet").mkdir(parents=True)
    save_file(unet, tmp_path / "merged" / "unet" / tiny.WEIGHTS["unet"])
    merged = dataclasses.replace(catalogue[_id("unet-full")], path=tmp_path / "merged")
    assert np.allclose(_picture(holder.ensure(merged, catalogue, settings)), with_lora, atol=1e-4)


def _trained_lora(folder, base, rank, alpha):
    """Write a LoRA as diffusers' training scripts do, its configuration in the metadata; return PEFT's own tensors."""
    from diffusers import StableDiffusionXLPipeline
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    pipe = StableDiffusionXLPipeline.from_pretrained(base)
    attention = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1"]
    targets = {
        "unet": ["to_q", "to_k", "to_v", "to_out.0", "ff.net.2", "conv1", "conv_shortcut", "downsamplers.0.conv"],
        "text_encoder": attention,
        "text_encoder_2": attention,
    }
    options, tensors = {}, {}
    random = torch.Generator().manual_seed(3)
    for part, names in targets.items():
        module = getattr(pipe, part)
        module.add_adapter(LoraConfig(r=rank, lora_alpha=alpha, target_modules=names), adapter_name="trained")
        for name, parameter in module.named_parameters():
            if "lora_" in name:
                parameter.data = 0.1 * torch.randn(parameter.shape, generator=random)
        state = get_peft_model_state_dict(module, adapter_name="trained")
        tensors |= {f"{part}.{name}": tensor.clone() for name, tensor in state.items()}
        config = module.peft_config["trained"].to_dict()
        options[f"{part}_lora_layers"] = convert_state_dict_to_diffusers(state)
        options[f"{part}_lora_adapter_metadata"] = {
            name: sorted(value) if isinstance(value, set) else value for name, value in config.items()
        }
    pipe.save_lora_weights(folder, **options)
    return tensors


def _layer_inputs(layer, random):
    weight = layer.weight
    if weight.dim() == 2:
        return torch.randn(5, weight.shape[1], generator=random)
    return torch.randn(1, weight.shape[1], 8, 8, generator=random)


def test_alpha_over_rank_of_the_metadata_scales_every_layer_also_convolutions(tmp_path, holder, settings, catalogue):
    """alpha = 2 rank: each layer gives what W + 2 B A gives (arXiv 2106.09685), in the UNet and both text encoders."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    tensors = _trained_lora(tmp_path / "lora", settings.checkpoints / "base", rank=4, alpha=8)
    path = tmp_path / "lora" / "pytorch_lora_weights.safetensors"
    assert "lora_adapter_metadata" in json.dumps(pipelines.read_header(path).metadata)
    spec = dataclasses.replace(catalogue[_id("unet-lora")], kind="lora", path=path)
    pipe = holder.ensure(spec, catalogue, settings)
    random = torch.Generator().manual_seed(4)
    kinds, seen = set(), 0
    for part in ("unet", "text_encoder", "text_encoder_2"):
        for name, layer in getattr(pipe, part).named_modules():
            if not isinstance(layer, BaseTunerLayer):
                continue
            seen += 1
            a, b = (tensors[f"{part}.{name}.lora_{letter}.weight"] for letter in "AB")
            original = layer.get_base_layer()
            added = (b.flatten(1) @ a.flatten(1)).reshape(original.weight.shape)
            merged = original.weight + 2.0 * added
            x = _layer_inputs(original, random)
            with torch.no_grad():
                if merged.dim() == 2:
                    wanted = torch.nn.functional.linear(x, merged, original.bias)
                else:
                    options = {"stride": original.stride, "padding": original.padding}
                    wanted = torch.nn.functional.conv2d(x, merged, original.bias, **options)
                torch.testing.assert_close(layer(x), wanted, atol=1e-4, rtol=1e-4)
            kinds.add((part, tuple(merged.shape[2:]), getattr(original, "stride", None)))
    assert seen == len(tensors) // 2
    assert {("unet", (3, 3), (1, 1)), ("unet", (3, 3), (2, 2)), ("unet", (1, 1), (1, 1)), ("unet", (), None)} <= kinds


def test_the_picture_of_a_lora_with_alpha_equals_that_of_merged_weights(tmp_path, holder, settings, catalogue):
    tensors = _trained_lora(tmp_path / "lora", settings.checkpoints / "base", rank=2, alpha=4)
    with_lora = _picture(holder.ensure(_on_base(catalogue, tmp_path / "lora", "lora"), catalogue, settings))
    for part in ("unet", "text_encoder", "text_encoder_2"):
        whole = load_file(settings.checkpoints / "base" / part / tiny.WEIGHTS[part])
        names = {key.removeprefix("text_model."): key for key in whole}
        for key, down in tensors.items():
            if key.startswith(f"{part}.") and key.endswith(".lora_A.weight"):
                name = key.removeprefix(f"{part}.").removesuffix(".lora_A.weight").removeprefix("text_model.")
                up, place = tensors[key.replace("lora_A", "lora_B")], names[f"{name}.weight"]
                whole[place] = whole[place] + 2.0 * (up.flatten(1) @ down.flatten(1)).reshape(whole[place].shape)
        (tmp_path / "merged" / part).mkdir(parents=True)
        save_file(whole, tmp_path / "merged" / part / tiny.WEIGHTS[part])
    merged = _picture(holder.ensure(_on_base(catalogue, tmp_path / "merged", "merged"), catalogue, settings))
    assert np.allclose(with_lora, merged, atol=1e-4)
    plain = _picture(holder.ensure(catalogue["base"], catalogue, settings))
    assert np.abs(with_lora - plain).max() > 0.01


def _on_base(catalogue, folder, id):
    return dataclasses.replace(catalogue[_id("unet-full")], id=id, kind="strategy", path=folder, sha256={})


@pytest.mark.parametrize("alpha", [None, 4.0])
def test_a_vae_lora_of_every_kind_of_layer_is_exact(tmp_path, holder, settings, catalogue, alpha):
    """W + (alpha / rank) B A for linear layers and convolutions; alpha is the rank where the file gives none."""
    random = torch.Generator().manual_seed(5)
    base = load_file(settings.checkpoints / "base" / "vae" / tiny.WEIGHTS["vae"])
    tensors, expected = {}, {}
    for key, weight in base.items():
        if not key.startswith(("decoder.", "post_quant_conv.")) or weight.dim() < 2 or not key.endswith(".weight"):
            continue
        name, (out, into, *kernel) = key.removesuffix(".weight"), weight.shape
        a = torch.randn(2, into, *kernel, generator=random)
        b = torch.randn(out, 2, *(1 for _ in kernel), generator=random)
        tensors |= {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}
        if alpha is not None:
            tensors[f"{name}.alpha"] = torch.tensor(alpha)
        scale = 1.0 if alpha is None else alpha / 2
        expected[key] = weight + scale * torch.einsum("or,ri...->oi...", b.flatten(1), a)
    (tmp_path / "vae").mkdir()
    save_file(tensors, tmp_path / "vae" / "pytorch_lora_weights.safetensors")
    pipe = holder.ensure(_on_base(catalogue, tmp_path, "decoder"), catalogue, settings)
    found = pipe.vae.state_dict()
    assert {weight.dim() for weight in expected.values()} == {2, 4}
    for key, weight in base.items():
        torch.testing.assert_close(found[key], expected.get(key, weight), atol=1e-5, rtol=1e-5)


def test_a_vae_lora_is_the_product_of_its_matrices_times_alpha_over_rank(holder, settings, catalogue):
    pipe = holder.ensure(catalogue[_id("vae-decoder-lora")], catalogue, settings)
    lora = load_file(settings.checkpoints / _id("vae-decoder-lora") / "vae" / "pytorch_lora_weights.safetensors")
    base = load_file(settings.checkpoints / "base" / "vae" / tiny.WEIGHTS["vae"])
    a, b = lora["decoder.conv_in.lora_A.weight"], lora["decoder.conv_in.lora_B.weight"]
    # A convolution by A and then by the 1x1 B is one convolution: compare on a random input.
    x = torch.randn(1, a.shape[1], 9, 9)
    added = torch.nn.functional.conv2d(torch.nn.functional.conv2d(x, a, padding=1), b) * (1.0 / 2.0)
    wanted = torch.nn.functional.conv2d(x, base["decoder.conv_in.weight"], padding=1) + added
    found = torch.nn.functional.conv2d(x, pipe.vae.decoder.conv_in.weight, padding=1)
    assert torch.allclose(found, wanted, atol=1e-4)
    assert torch.equal(pipe.vae.encoder.conv_in.weight, base["encoder.conv_in.weight"])


def test_token_rows_are_found_by_the_prompt_in_both_encoders(tmp_path, holder, settings, catalogue):
    tiny.add_token(tmp_path / "two", rows=2, seed=9)
    rows = load_file(tmp_path / "two" / "token.safetensors")
    spec = dataclasses.replace(catalogue[_id("token")], path=tmp_path / "two", token="<SAR>")
    pipe = holder.ensure(spec, catalogue, settings)
    for encoder, words, key in (("text_encoder", "tokenizer", "clip_l"), ("text_encoder_2", "tokenizer_2", "clip_g")):
        tokenizer, table = getattr(pipe, words), getattr(pipe, encoder).get_input_embeddings().weight
        prompt = pipe.maybe_convert_prompt("a <SAR> field", tokenizer)
        ids = tokenizer(prompt).input_ids
        added = [i for i in ids if i >= len(tiny.tokenizer())]
        assert torch.equal(table[added], rows[key])
    assert len(tiny.tokenizer()) == len(holder.ensure(catalogue["base"], catalogue, settings).tokenizer)


def test_a_token_that_the_base_knows_is_refused_and_the_base_is_there(holder, settings, catalogue, base_output):
    spec = dataclasses.replace(catalogue[_id("token")], token="sar</w>")
    with pytest.raises(InputError, match=r"knows sar</w> already.*; base is loaded instead\."):
        holder.ensure(spec, catalogue, settings)
    assert np.array_equal(_picture(holder.ensure(catalogue["base"], catalogue, settings)), base_output)


def test_a_lora_layer_without_a_place_is_refused_and_the_base_is_there(
    tmp_path, holder, settings, catalogue, base_output
):
    path = tiny.add_lora(tmp_path, settings.checkpoints / "base", ("unet",))
    tensors = load_file(path)
    tensors["unet.down_blocks.7.attn2.to_q.lora_A.weight"] = torch.zeros(2, 16)
    tensors["unet.down_blocks.7.attn2.to_q.lora_B.weight"] = torch.zeros(16, 2)
    save_file(tensors, path)
    spec = dataclasses.replace(catalogue[_id("unet-lora")], path=tmp_path)
    holder.ensure(catalogue[_id("hybrid")], catalogue, settings)
    with pytest.raises(InputError, match=r"layers of the LoRA .* fit the base\); base is loaded instead\."):
        holder.ensure(spec, catalogue, settings)
    assert holder.identity()["checkpoint"] == "base"
    assert np.array_equal(_picture(holder._pipe), base_output)


def test_a_strategy_that_does_not_fit_is_refused_before_anything_is_touched(tmp_path, holder, settings, catalogue):
    loaded = _picture(holder.ensure(catalogue[_id("hybrid")], catalogue, settings))
    tiny.tiny_sdxl(tmp_path / "wide", unet_width=24)
    spec = dataclasses.replace(catalogue[_id("unet-full")], id="wide", title="Wide", path=tmp_path / "strategy")
    tiny.add_full(spec.path, tmp_path / "wide", "unet")
    with pytest.raises(InputError, match=r"The unet of Wide does not fit its base \(.* 96 here, 64 in the base\)"):
        holder.ensure(spec, catalogue, settings)
    assert holder.identity()["strategy"] == "hybrid"
    assert np.array_equal(_picture(holder._pipe), loaded)


def test_a_failure_in_the_middle_of_a_part_restores_the_base(holder, settings, catalogue, base_output, monkeypatch):
    copy_weights = pipelines.copy_weights

    def failing(module, files):
        copy_weights(module, files)
        if any(_id("unet-full") in str(path) for path in files):
            raise OSError("the disk is gone")

    holder.ensure(catalogue["base"], catalogue, settings)
    monkeypatch.setattr(pipelines, "copy_weights", failing)
    with pytest.raises(SarGenError, match=r"s-unet-full could not be loaded \(the disk is gone\); base is loaded"):
        holder.ensure(catalogue[_id("unet-full")], catalogue, settings)
    assert np.array_equal(_picture(holder._pipe), base_output)


def test_when_the_base_cannot_be_restored_nothing_is_loaded(holder, forgetful, catalogue, monkeypatch):
    holder.ensure(catalogue["base"], catalogue, forgetful)

    def failing(module, files):
        raise OSError("the disk is gone")

    monkeypatch.setattr(pipelines, "copy_weights", failing)
    with pytest.raises(SarGenError, match="nothing is loaded"):
        holder.ensure(catalogue[_id("unet-full")], catalogue, forgetful)
    assert holder.placement is None
    monkeypatch.undo()
    assert holder.ensure(catalogue[_id("unet-full")], catalogue, forgetful).unet is not None


def test_out_of_memory_frees_and_passes_through(holder, settings, catalogue, monkeypatch):
    def failing(self):
        raise MemoryError

    monkeypatch.setattr(PipelineHolder, "_load_base", failing)
    with pytest.raises(MemoryError):
        holder.ensure(catalogue["base"], catalogue, settings)
    assert holder.placement is None


def test_every_part_is_in_the_dtype_of_the_placement(tmp_path, holder, settings, catalogue):
    """Text encoders whose configuration names float16 are cast; a float32 file is rounded once, to nearest."""
    import shutil

    folder = tmp_path / "half"
    shutil.copytree(settings.checkpoints / "base", folder)
    config = folder / "text_encoder" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "dtype": "float16"}))
    spec = dataclasses.replace(catalogue["base"], id="half", base="half", path=folder)
    pipe = holder.ensure(spec, {**catalogue, "half": spec}, settings)
    assert {parameter.dtype for parameter in pipe.text_encoder.parameters()} == {torch.float32}

    brain = Placement("cpu", "bfloat16", "none", False, "test")
    pipe = holder.ensure(catalogue[_id("unet-full")], catalogue, settings, placement=brain)
    file = load_file(settings.checkpoints / _id("unet-full") / "unet" / tiny.WEIGHTS["unet"])
    assert all(torch.equal(tensor, file[name].bfloat16()) for name, tensor in pipe.unet.state_dict().items())
    for part in ("text_encoder", "text_encoder_2", "vae"):
        assert {parameter.dtype for parameter in getattr(pipe, part).parameters()} == {torch.bfloat16}


def test_a_light_pipeline_is_kept_until_it_is_freed(holder, settings, catalogue):
    pipe = holder.ensure(catalogue["base"], catalogue, settings)
    assert holder.placement.dtype == "float32"
    light = holder.ensure(catalogue["base"], catalogue, settings, light=True)
    assert light is not pipe
    assert holder.placement.dtype == "bfloat16"
    assert holder.placement.vae_tiling
    assert light.vae.use_tiling
    assert holder.ensure(catalogue["base"], catalogue, settings) is light
    holder.free()
    holder.ensure(catalogue["base"], catalogue, settings)
    assert holder.placement.dtype == "float32"


def test_switching_and_image_to_image_work_when_offloaded(holder, settings, catalogue, base_output):
    """A part at a time, to and from the same CPU: the hooks are accelerate's own. Numbers agree to rounding only,
    because moved weights lie at other addresses and other vector loops are taken."""
    placement = Placement("cpu", "float32", "model", False, "test")
    plain = _picture(PipelineHolder().ensure(catalogue[_id("hybrid")], catalogue, settings))
    pipe = holder.ensure(catalogue["base"], catalogue, settings, placement=placement)
    assert hasattr(pipe.unet, "_hf_hook")
    assert np.allclose(_picture(pipe), base_output, atol=1e-5)
    pipe = holder.ensure(catalogue[_id("hybrid")], catalogue, settings, placement=placement)
    assert hasattr(pipe.unet, "_hf_hook")
    assert np.allclose(_picture(pipe), plain, atol=1e-5)
    view = holder.image_to_image()
    start = torch.full((1, 3, tiny.SIZE, tiny.SIZE), 0.5)
    for _ in range(2):
        made = view("a sar", image=start, strength=0.5, num_inference_steps=2, output_type="np").images
        assert made.shape == (1, tiny.SIZE, tiny.SIZE, 3)
        assert np.allclose(_picture(pipe), plain, atol=1e-5)
    pipe = holder.ensure(catalogue["base"], catalogue, settings, placement=placement)
    assert np.allclose(_picture(pipe), base_output, atol=1e-5)
    unet = weakref.ref(pipe.unet)
    holder.free()
    assert unet() is None


def test_layers_on_no_device_are_never_written_to(holder, settings, catalogue, monkeypatch):
    """Sequential offload keeps weights on the meta device: a switch loads the base again before it."""
    from diffusers import StableDiffusionXLPipeline

    events = []
    monkeypatch.setattr(
        StableDiffusionXLPipeline,
        "enable_sequential_cpu_offload",
        lambda self, device: events.append(f"placed {device}"),
    )
    load, copy_weights = PipelineHolder._load_base, pipelines.copy_weights
    monkeypatch.setattr(PipelineHolder, "_load_base", lambda self: (events.append("loaded"), load(self))[1])
    monkeypatch.setattr(pipelines, "copy_weights", lambda *a: (events.append("written"), copy_weights(*a))[1])
    placement = Placement("cpu", "float32", "sequential", True, "test")
    for name in ("base", _id("unet-full"), _id("unet-full"), "base"):
        holder.ensure(catalogue[name], catalogue, settings, placement=placement)
    assert events == ["loaded", "placed cpu", "loaded", "written", "placed cpu", "loaded", "placed cpu"]


def test_a_scheduler_of_the_strategy_is_used_and_taken_back(tmp_path, holder, settings, catalogue):
    from diffusers import EulerDiscreteScheduler

    tiny.add_full(tmp_path, settings.checkpoints / "base", "unet")
    EulerDiscreteScheduler(prediction_type="v_prediction").save_pretrained(tmp_path / "scheduler")
    spec = dataclasses.replace(catalogue[_id("unet-full")], path=tmp_path)
    scheduler = holder.ensure(catalogue["base"], catalogue, settings).scheduler
    pipe = holder.ensure(spec, catalogue, settings)
    assert type(pipe.scheduler) is EulerDiscreteScheduler
    assert pipe.scheduler.config.prediction_type == "v_prediction"
    assert holder.ensure(catalogue["base"], catalogue, settings).scheduler is scheduler


@pytest.mark.parametrize(
    ("current", "target", "expected"),
    [
        ({}, {}, ()),
        ({"unet": "a"}, {"unet": "a"}, ()),
        ({}, {"unet": "a"}, ("unet",)),
        ({"unet": "a"}, {}, ("unet",)),
        ({"unet": "a"}, {"unet": "b", "vae": "c"}, ("unet", "vae")),
        ({"lora": "a"}, {"lora": "a", "vae": "b"}, ("vae",)),
        ({"lora": "a"}, {"lora": "a", "unet": "b"}, ("unet", "lora")),
        ({"token": "a", "lora": "l"}, {"text_encoder": "b", "lora": "l"}, ("text_encoder", "token", "lora")),
        ({"token": "a"}, {"token": "a", "text_encoder_2": "b"}, ("text_encoder_2", "token")),
        ({"token": "a"}, {"token": "a", "unet": "b"}, ("unet",)),
        ({"unet": BASE, "lora": BASE}, {}, ()),
    ],
)
def test_changes(current, target, expected):
    assert changes(current, target) == expected


PARTS = {"unet": 5 * GB, "text_encoder": GB // 4, "text_encoder_2": int(1.4 * GB), "vae": GB // 6}


@pytest.mark.parametrize(
    ("free", "offload", "tiling"),
    [(78, "none", False), (12, "none", False), (9, "none", True), (7, "model", True), (4, "sequential", True)],
)
def test_placement_on_a_gpu_follows_the_free_memory(free, offload, tiling):
    placement = choose_placement("cuda", free_memory=free * GB, parts=PARTS)
    assert (placement.offload, placement.vae_tiling, placement.dtype) == (offload, tiling, "bfloat16")
    assert f"{free}.0 GB free" in placement.reason
    assert choose_placement("cuda:1", free_memory=free * GB, parts=PARTS, bf16=False).dtype == "float16"


def test_light_is_lighter_and_less_memory_never_heavier():
    order = {("none", False): 0, ("none", True): 1, ("model", True): 2, ("sequential", True): 3}
    ranks = []
    for free in range(40, -1, -1):
        plain = choose_placement("cuda", free_memory=free * GB, parts=PARTS)
        light = choose_placement("cuda", free_memory=free * GB, parts=PARTS, light=True)
        rank, light_rank = (order[p.offload, p.vae_tiling] for p in (plain, light))
        assert light_rank > rank or rank == 3
        assert light_rank >= 2
        ranks.append(rank)
    assert ranks == sorted(ranks)
    assert set(ranks) == {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("free", "dtype", "tiling"), [(30, "float32", False), (18, "float32", True), (8, "bfloat16", True)]
)
def test_a_cpu_always_gets_an_answer(free, dtype, tiling):
    placement = choose_placement("cpu", free_memory=free * GB, parts=PARTS)
    assert (placement.device, placement.offload, placement.dtype, placement.vae_tiling) == (
        "cpu",
        "none",
        dtype,
        tiling,
    )
    assert choose_placement("cpu", free_memory=0, parts={}).device == "cpu"


@pytest.mark.parametrize(
    ("name", "words"), [("tpu", "is unknown"), ("cuda:x", "is unknown"), ("cuda:97", "is not there")]
)
def test_devices_that_are_not_there_are_named(name, words):
    assert resolve_device("cpu") == "cpu"
    with pytest.raises(InputError, match=f"'{name}' {words}"):
        resolve_device(name)


def test_the_embedded_checkpoint_loads_and_generates_without_a_word_on_stderr(tmp_path):
    code = """
import torch
from sar_gen.settings import Settings
from sar_gen import checkpoints
from sar_gen.pipelines import PipelineHolder
settings = Settings.from_env()
catalogue = checkpoints.catalogue(settings)
pipe = PipelineHolder().ensure(catalogue["sar-mini"], catalogue, settings)
made = pipe("a SAR image of forest", num_inference_steps=1, guidance_scale=1.5, height=256, width=256,
            generator=torch.Generator().manual_seed(0), output_type="np").images[0]
assert made.shape == (256, 256, 3) and 0 < made.mean() < 1, made.mean()
"""
    environment = {
        "SAR_GEN_HOME": str(tmp_path),
        "SAR_GEN_DEVICE": "cpu",
        "HF_HUB_OFFLINE": "1",
        "PATH": "/usr/bin:/bin",
    }
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_pooled_text_ends_at_the_end_of_text_and_not_at_a_token(tmp_path):
    """CLIP's own configurations say 2 for the end of text, and transformers then pools at the highest id."""
    from diffusers import StableDiffusionXLPipeline

    pipe = StableDiffusionXLPipeline.from_pretrained(tiny.tiny_sdxl(tmp_path / "base"))
    encoder, tokenizer = pipe.text_encoder_2, pipe.tokenizer_2
    for module in encoder.modules():
        if getattr(module, "eos_token_id", None) is not None:
            module.eos_token_id = 2

    def pooled(tokenizer, text):
        return encoder(tokenizer(text, padding="max_length", return_tensors="pt").input_ids)[0]

    before = pooled(tokenizer, "a b")
    larger = pipelines.add_token(encoder, tokenizer, "<SAR>", torch.randn(1, tiny.WIDTH, generator=torch.Generator()))
    assert torch.equal(pooled(larger, "a b"), before)
    assert not torch.allclose(pooled(larger, "a <SAR> b"), pooled(larger, "a <SAR> c"))
