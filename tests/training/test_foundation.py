import dataclasses
import json

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionXLPipeline

from sar_gen import checkpoints
from sar_gen.amplitude import to_model
from sar_gen.errors import InputError
from sar_gen.settings import Settings
from sar_gen.training import foundation
from sar_gen.training.config import DenoiserConfig, RunConfig, VaeConfig
from sar_gen.training.foundation import FoundationConfig, Joined, TextConfig, centre
from tests.training.ground import WORDS, bag_of_words, write_ground

CONFIG = FoundationConfig(
    size="tiny",
    resolution=64,
    batch=4,
    text=TextConfig(steps=4),
    vae=VaeConfig(steps=6, batch=4, crop=64, optical_share=0.5, learning_rate=3e-3, gan=0.0),
    denoiser=DenoiserConfig(steps=6, learning_rate=1e-3),
    steps=2,
)
RUN = RunConfig(save_every=2)
TEXT = {"teacher": bag_of_words, "words": WORDS}


def test_the_embedded_sizes_keep_their_promise():
    with torch.device("meta"):
        unet = foundation.build_unet("mini", latent_channels=16, context=448, pooled=256, sample=32)
        vae = foundation.build_vae("mini")
        toy = foundation.build_unet("toy", latent_channels=8, context=80, pooled=32, sample=8)
    count = sum(parameter.numel() for parameter in unet.parameters())
    assert 20e6 < count <= 25e6
    assert 2 * count < 50e6  # bytes in float16
    assert 2 * sum(parameter.numel() for parameter in vae.parameters()) < 50e6
    assert sum(parameter.numel() for parameter in toy.parameters()) < 8e6
    assert unet.config.cross_attention_dim == 448


def test_the_middle_of_a_picture():
    picture = np.arange(20 * 30, dtype=np.float32).reshape(20, 30)
    assert np.array_equal(centre(picture, 8), picture[6:14, 11:19])
    assert centre(picture, 64).shape == (16, 24)


def test_joined_data_sets_read_on(tmp_path):
    manifest = write_ground(tmp_path / "data", train=2, reference=1)
    sar = foundation.open_split(manifest, "train", "sar", 64)
    optical = foundation.open_split(manifest, "train", "optical", 64, ["river"])
    both = Joined([sar, optical])
    assert [row.modality for row in both.rows] == ["sar"] * 4 + ["optical"] * 2
    assert np.array_equal(both.pixels(3), sar.pixels(3))
    assert np.array_equal(both.pixels(4), optical.pixels(0))
    assert np.array_equal(both.pixels(5), optical.pixels(1))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A foundation that was interrupted in its VAE and in its base."""
    root = tmp_path_factory.mktemp("foundation")
    manifest = write_ground(root / "data")
    folder, output = root / "foundation", root / "checkpoints" / "base"
    settings = Settings(home=root / "home", checkpoints=root / "checkpoints", device="cpu")
    said = []
    text = foundation.text_stage(CONFIG, manifest, folder, device="cpu", say=said.append, **TEXT)
    calls = iter([False, False, False, True])
    first = foundation.vae_stage(
        CONFIG, manifest, folder, RUN, device="cpu", say=said.append, stop=lambda: next(calls, True)
    )
    vae = foundation.vae_stage(CONFIG, manifest, folder, RUN, device="cpu", say=said.append)
    calls = iter([False, True])
    begun = foundation.base_stage(
        CONFIG, manifest, folder, output, RUN, settings, say=said.append, stop=lambda: next(calls, True)
    )
    card = {"licence": "CC BY 4.0", "credit": ["somebody"], "polarisation": "VV"}
    base = foundation.base_stage(CONFIG, manifest, folder, output, RUN, settings, say=said.append, **card)
    return {
        "root": root, "manifest": manifest, "folder": folder, "output": output, "settings": settings, "text": text,
        "first": first, "vae": vae, "begun": begun, "base": base, "said": said,
    }  # fmt: skip


def test_interrupted_stages_go_on(made):
    assert made["text"]["steps"] == 4
    assert made["first"] is None
    assert made["vae"]["steps"] == 6
    assert made["begun"] is None
    assert made["base"]["steps"] == 6
    assert any("Going on after step" in line for line in made["said"])
    json.dumps([made[name] for name in ("text", "vae", "base")], allow_nan=False)


def test_text_that_was_made_before_is_taken_as_it_is(made, tmp_path):
    config = dataclasses.replace(CONFIG, text=TextConfig(folder=made["folder"] / "text"))
    found = foundation.text_stage(config, made["manifest"], tmp_path, device="cpu")
    assert found == made["text"]
    for part in ("text_encoder", "text_encoder_2"):
        file = f"text/{part}/model.safetensors"
        assert (tmp_path / file).read_bytes() == (made["folder"] / file).read_bytes()
    with pytest.raises(InputError, match=r"lacks text\.json"):
        foundation.take_text(tmp_path / "nothing", tmp_path / "text")


def test_latents_have_mean_zero_and_variance_one(made):
    vae = AutoencoderKL.from_pretrained(made["folder"] / "vae")
    parts = [foundation.open_split(made["manifest"], "train", modality, 64) for modality in ("sar", "optical")]
    draws = []
    for part in parts:
        for i, row in enumerate(part.rows):
            grey = part.pixels(i)
            grey = to_model(grey, CONFIG.encoding) if row.modality == "sar" else grey
            with torch.no_grad():
                posterior = vae.encode(torch.from_numpy(2 * grey - 1).expand(1, 3, 64, 64)).latent_dist
            draws.append((posterior.mean, posterior.var))
    mean = torch.cat([one for one, _ in draws]).double()
    variance = torch.cat([one for _, one in draws]).double()
    assert vae.config.scaling_factor == 1
    assert mean.mean(dim=(0, 2, 3)).abs().max() < 1e-3
    total = mean.square().mean(dim=(0, 2, 3)) + variance.mean(dim=(0, 2, 3))
    assert torch.allclose(total, torch.ones_like(total), atol=1e-3)


def test_the_vae_is_measured_on_held_out_sar(made):
    assert made["vae"]["held_out"] == 6
    assert made["vae"]["reconstruction"]
    assert made["vae"]["left_out"] == []


def test_the_base_is_in_the_catalogue_and_its_unet_alone_was_trained(made):
    spec = checkpoints.catalogue(made["settings"])["base"]
    assert (spec.strategy, spec.family, spec.kind) == ("foundation", "sdxl", "pipeline")
    assert (spec.resolution, spec.steps, spec.model_encoding, spec.amplitude_encoding) == (64, 2, "root", "linear")
    assert (spec.licence, spec.credit, spec.polarisation) == ("CC BY 4.0", ("somebody",), "VV")
    assert checkpoints.verify(spec, made["settings"]).values()
    assert set(checkpoints.verify(spec, made["settings"]).values()) == {"ok"}
    start, base = (StableDiffusionXLPipeline.from_pretrained(p) for p in (made["folder"] / "start", made["output"]))
    assert base.config.force_zeros_for_empty_prompt
    scheduler = base.scheduler.config
    assert scheduler._class_name == "DPMSolverMultistepScheduler"
    assert (scheduler.prediction_type, scheduler.rescale_betas_zero_snr) == ("v_prediction", True)
    assert (scheduler.timestep_spacing, scheduler.algorithm_type) == ("trailing", "dpmsolver++")
    for part in ("vae", "text_encoder", "text_encoder_2"):
        for one, other in zip(getattr(start, part).parameters(), getattr(base, part).parameters(), strict=True):
            assert torch.allclose(one.float(), other.float(), atol=1e-3, rtol=1e-3)  # float16 on disk
    moved = [
        (one.float() - other.float()).abs().max()
        for one, other in zip(start.unet.parameters(), base.unet.parameters(), strict=True)
    ]
    assert max(moved) > 1e-3
    assert made["base"]["trainable"].keys() == {"unet"}
