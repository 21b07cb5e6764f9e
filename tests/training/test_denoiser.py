import numpy as np
import pytest
import torch

from sar_gen.engine import decode
from sar_gen.pipelines import quiet_diffusers
from sar_gen.training.denoiser import LatentSource, RowCache, TextSource, encode_text, scaled, text_width
from tests import tiny

CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=["sdxl", "sd15"])
def pipe(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipes") / request.param
    diffusers = quiet_diffusers()
    if request.param == "sdxl":
        return diffusers.StableDiffusionXLPipeline.from_pretrained(tiny.tiny_sdxl(folder))
    return diffusers.StableDiffusionPipeline.from_pretrained(tiny.tiny_sd15(folder), safety_checker=None)


def text_of(pipe, cache=None, captions=(), trained=False):
    return TextSource(
        pipe, trained=trained, token=None, dtype=torch.float32, device=CPU, cache=cache, captions=captions
    )


def prompt_of(pipe, caption):
    """What the pipeline itself makes of a prompt: context, and pooled output of SDXL."""
    found = pipe.encode_prompt(caption, device=CPU, num_images_per_prompt=1, do_classifier_free_guidance=False)
    return found[0], found[2] if len(found) == 4 else None


@pytest.mark.parametrize("way", ["each time", "kept", "kept on disk", "trained"])
def test_text_is_what_the_pipeline_makes_of_it(pipe, way, tmp_path):
    captions = ("a SAR image of forest", "gorge")
    path = tmp_path / "text.f16" if way == "kept on disk" else None
    cache = RowCache([(text_width(pipe),)] * 3, path, "facts") if way.startswith("kept") else None
    source = text_of(pipe, cache, captions if cache else (), trained=way == "trained")
    for _ in range(2):
        text = source(captions, (64, 64), 0)
        if way == "trained":  # token ids, which the denoiser encodes with the weights of the moment
            text = encode_text(pipe.text_encoder, getattr(pipe, "text_encoder_2", None), text)
        for i, caption in enumerate(captions):
            context, pooled = prompt_of(pipe, caption)
            tolerance = {"atol": 2e-3, "rtol": 1e-3} if path else {"atol": 1e-5, "rtol": 0}
            torch.testing.assert_close(text["context"][i : i + 1], context, **tolerance)
            if pooled is not None:
                torch.testing.assert_close(text["pooled"][i : i + 1], pooled, **tolerance)


def test_dropped_captions_are_what_the_pipeline_gives_without_a_negative_prompt(pipe):
    source = text_of(pipe)
    even, odd = source([None, None], (64, 64), 0), source([None, None], (64, 64), 1)
    empty = prompt_of(pipe, "")[0][0]
    if pipe.config.get("force_zeros_for_empty_prompt"):
        assert not even["context"][0].any()
        assert not even["pooled"][0].any()
        torch.testing.assert_close(even["context"][1], empty)  # the other half: the empty caption
        torch.testing.assert_close(odd["context"][0], empty)
        assert not odd["context"][1].any()
    else:
        torch.testing.assert_close(even["context"], torch.stack([empty, empty]))


def test_sdxl_is_told_the_size(pipe):
    text = text_of(pipe)(["a"], (64, 48), 0)
    if getattr(pipe, "text_encoder_2", None) is None:
        assert "time_ids" not in text
    else:
        assert text["time_ids"].tolist() == [[64, 48, 0, 0, 64, 48]]


def test_latents_decode_to_the_patch_that_was_encoded(pipe):
    """The draw from the posterior is scaled so that the engine's decoder takes the scale off again."""
    random = np.random.default_rng(0)
    pixels = random.random((2, 64, 64)).astype(np.float32)
    source = LatentSource(pipe.vae, encode=lambda p: p, device=CPU, cache=None)
    latents = source(pixels, [0, 1], torch.Generator().manual_seed(0))
    with torch.no_grad():
        grey = torch.from_numpy(pixels).unsqueeze(1).repeat(1, 3, 1, 1) * 2 - 1
        posterior = pipe.vae.encode(grey).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(0))
        plain = posterior.mean + posterior.std * noise
        expected = (pipe.vae.decode(plain[:1]).sample[0] / 2 + 0.5).clamp(0, 1).mean(0)
    torch.testing.assert_close(latents, scaled(pipe.vae, plain))
    np.testing.assert_allclose(decode(pipe, latents[:1], "mean"), expected.numpy(), atol=1e-5)


def test_latents_are_computed_once_in_the_same_company(pipe):
    calls = []
    every = np.random.default_rng(0).random((5, 64, 64)).astype(np.float32)

    def crops(rows):
        calls.append(rows)
        return every[rows]

    def source(cache):
        return LatentSource(pipe.vae, encode=lambda p: p, device=CPU, cache=cache, crops=crops)

    kept = source(RowCache([(2, 4, 8, 8)] * 5, block=2))
    first = kept(every[:0], [4, 0, 0], torch.Generator().manual_seed(0))
    again = kept(every[:0], [4, 0, 0], torch.Generator().manual_seed(0))
    other = kept(every[:0], [4, 0, 0], torch.Generator().manual_seed(1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)  # a draw each time
    assert calls == [[4], [0, 1]]
    elsewhere = source(RowCache([(2, 4, 8, 8)] * 5, block=2))
    elsewhere(every[:0], [3, 1], torch.Generator().manual_seed(0))
    assert torch.equal(elsewhere(every[:0], [4, 0, 0], torch.Generator().manual_seed(0)), first)
    plain = source(None)
    torch.testing.assert_close(plain(every[[4, 0, 0]], [], torch.Generator().manual_seed(0)), first)


def test_rows_on_disk_outlive_the_call_and_not_their_facts(tmp_path):
    path = tmp_path / "cache" / "rows.f16"
    rows = [torch.arange(6.0).reshape(2, 3), torch.full((1,), 0.5)]

    def make(missing):
        made.append(missing)
        return [rows[i] for i in missing]

    made = []
    shapes = [(2, 3), (1,)]
    assert torch.equal(RowCache(shapes, path, {"vae": 1}, block=1).get([1], make)[0].float(), rows[1])
    found = RowCache(shapes, path, {"vae": 1}, block=1).get([1, 0, 1], make)
    assert made == [[1], [0]]
    assert torch.equal(found[1].float(), rows[0])
    RowCache(shapes, path, {"vae": 2}).get([0, 1], make)
    assert made[2:] == [[0, 1]]
