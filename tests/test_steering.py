"""Steering against diffusers' own ControlNet and T2I-Adapter pipelines, and windows against closed forms."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from sar_gen.conditioning import GuideImage
from sar_gen.steering import Steer, decode_windows, steered, window_weight
from tests import tiny

SIDE = tiny.SIZE


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("steering")
    tiny.tiny_sdxl(folder / "sdxl")
    tiny.tiny_sd15(folder / "sd15")
    for family in ("sdxl", "sd15"):
        tiny.network(folder / f"{family}-net", folder / family, layout="picture")
        tiny.network(folder / f"{family}-other", folder / family, seed=30, layout="picture")
    tiny.adapter(folder / "sd15-adapter", folder / "sd15")
    return folder


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (2, SIDE, SIDE, 3), dtype=np.uint8)


def guide_image(picture: np.ndarray) -> GuideImage:
    return GuideImage("optical", "picture", picture)


def tensor(picture: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(picture).permute(2, 0, 1).float().div(255).unsqueeze(0)


def call(pipe: Any, **options: Any) -> np.ndarray:
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(5)
    return pipe(
        "a b c",
        num_inference_steps=5,
        guidance_scale=2.0,
        width=SIDE,
        height=SIDE,
        generator=generator,
        output_type="np",
        **options,
    ).images


@pytest.mark.parametrize("family", ["sdxl", "sd15"])
def test_a_controlnet_steers_as_in_diffusers(made: Path, pictures: np.ndarray, family: str) -> None:
    import diffusers

    name = "StableDiffusionXL" if family == "sdxl" else "StableDiffusion"
    net = diffusers.ControlNetModel.from_pretrained(made / f"{family}-net")
    options = {"safety_checker": None} if family == "sd15" else {}
    pipe = getattr(diffusers, f"{name}Pipeline").from_pretrained(made / family, **options)
    stock = getattr(diffusers, f"{name}ControlNetPipeline").from_pretrained(made / family, controlnet=net, **options)
    wanted = call(
        stock,
        image=tensor(pictures[0]),
        controlnet_conditioning_scale=0.7,
        control_guidance_start=0.2,
        control_guidance_end=0.8,
    )
    with steered(pipe, [Steer(net, guide_image(pictures[0]), 0.7, 0.2, 0.8)], SIDE // 8):
        found = call(pipe)
    np.testing.assert_array_equal(found, wanted)
    assert np.abs(found - call(pipe)).max() > 1e-3  # it does something, and only while it lasts


def test_two_controlnets_steer_as_in_diffusers(made: Path, pictures: np.ndarray) -> None:
    from diffusers import ControlNetModel, StableDiffusionXLControlNetPipeline, StableDiffusionXLPipeline

    nets = [ControlNetModel.from_pretrained(made / name) for name in ("sdxl-net", "sdxl-other")]
    stock = StableDiffusionXLControlNetPipeline.from_pretrained(made / "sdxl", controlnet=nets)
    wanted = call(stock, image=[tensor(p) for p in pictures], controlnet_conditioning_scale=[0.5, 1.5])
    pipe = StableDiffusionXLPipeline.from_pretrained(made / "sdxl")
    steers = [Steer(net, guide_image(p), w) for net, p, w in zip(nets, pictures, (0.5, 1.5), strict=True)]
    with steered(pipe, steers, SIDE // 8):
        np.testing.assert_array_equal(call(pipe), wanted)


def test_an_adapter_steers_as_in_diffusers(made: Path, pictures: np.ndarray) -> None:
    from diffusers import (
        StableDiffusionAdapterPipeline,
        StableDiffusionPipeline,
        T2IAdapter,
        UNet2DConditionModel,
    )

    # Adapters are made for UNets whose last level alone has no attention, as that of Stable Diffusion 1.5.
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        block_out_channels=(16, 32),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=tiny.WIDTH,
        attention_head_dim=8,
        norm_num_groups=8,
        sample_size=SIDE // 8,
    )
    options = {"unet": unet, "safety_checker": None}
    adapter = T2IAdapter.from_pretrained(made / "sd15-adapter")
    stock = StableDiffusionAdapterPipeline.from_pretrained(made / "sd15", adapter=adapter, **options)
    wanted = call(stock, image=tensor(pictures[0]), adapter_conditioning_scale=0.8)
    pipe = StableDiffusionPipeline.from_pretrained(made / "sd15", **options)
    with steered(pipe, [Steer(adapter, guide_image(pictures[0]), 0.8)], SIDE // 8):
        found = call(pipe)
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    assert np.abs(found - call(pipe)).max() > 1e-3


def test_what_was_patched_is_put_back_after_an_error(made: Path) -> None:
    from diffusers import StableDiffusionXLPipeline

    pipe = StableDiffusionXLPipeline.from_pretrained(made / "sdxl")
    before = pipe.unet.forward

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), steered(pipe, [], SIDE // 16, tick=stop):
        call(pipe)
    assert pipe.unet.forward == before
    assert "forward" not in pipe.unet.__dict__


class Pointwise(torch.nn.Module):
    """A denoiser that looks at each latent pixel alone: windows must not change what it gives."""

    def forward(self, sample: torch.Tensor, timestep: Any, context: torch.Tensor, **_: Any) -> tuple[torch.Tensor]:
        return (torch.sin(3 * sample) + context.mean(dim=(1, 2)).view(-1, 1, 1, 1),)


class Pipe:
    """What ``steered`` looks at in a pipeline."""

    def __init__(self) -> None:
        self.unet = Pointwise()
        self.vae_scale_factor = 8
        self.scheduler = type("S", (), {"timesteps": list(range(4))})()


@pytest.mark.parametrize("at_once", [1, 3])
def test_windows_of_a_pointwise_denoiser_join_to_what_it_gives_of_the_whole(at_once: int) -> None:
    pipe = Pipe()
    sample, context = torch.randn(2, 4, 40, 27), torch.randn(2, 5, 6)
    whole = pipe.unet(sample, 1, context)[0]
    with steered(pipe, [], 8, at_once=at_once):
        for _ in range(4):
            joined = pipe.unet(sample, 1, encoder_hidden_states=context, return_dict=False)[0]
            torch.testing.assert_close(joined, whole, atol=2e-6, rtol=1e-5)


def test_the_network_of_a_window_gets_its_own_part_of_the_guide() -> None:
    """A network that adds its guide to the denoiser must add it where it is."""

    class Adds(torch.nn.Module):
        config: ClassVar = {"conditioning_channels": 3}
        dtype = torch.float32

        def forward(self, sample: Any, timestep: Any, controlnet_cond: torch.Tensor, **options: Any) -> Any:
            small = torch.nn.functional.avg_pool2d(controlnet_cond, 8).mean(1, keepdim=True)
            return [options["conditioning_scale"] * small], torch.zeros(1)

    class Sums(torch.nn.Module):
        def forward(self, sample: torch.Tensor, timestep: Any, context: Any, **options: Any) -> tuple[torch.Tensor]:
            return (sample + options["down_block_additional_residuals"][0],)

    pipe = Pipe()
    pipe.unet = Sums()  # type: ignore[assignment]
    picture = np.random.default_rng(1).integers(0, 256, (160, 96, 3), dtype=np.uint8)
    sample = torch.zeros(2, 1, 20, 12)
    with steered(pipe, [Steer(Adds(), GuideImage("optical", "picture", picture), 2.0)], 8):
        found = pipe.unet(sample, 0, encoder_hidden_states=torch.zeros(2, 1, 1), return_dict=False)[0]
    wanted = 2 * picture.reshape(20, 8, 12, 8, 3).mean(axis=(1, 3, 4)) / 255
    np.testing.assert_allclose(found[0, 0].numpy(), wanted, atol=1e-5)
    np.testing.assert_allclose(found[1, 0].numpy(), wanted, atol=1e-5)


def test_windows_of_a_pointwise_decoder_join_to_what_it_gives_of_the_whole() -> None:
    latents = torch.rand(1, 1, 37, 50)

    def decode(part: torch.Tensor) -> np.ndarray:
        return np.repeat(np.repeat(part[0, 0].numpy() ** 2, 8, 0), 8, 1)

    found = decode_windows(decode, latents, 8, 8)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, decode(latents), atol=1e-6)


def test_neighbouring_windows_weigh_together_to_one() -> None:
    weight = window_weight(32, 32)[16]
    overlap = 8
    np.testing.assert_allclose((weight[-overlap:] + weight[:overlap]).numpy(), 1, atol=1e-6)
