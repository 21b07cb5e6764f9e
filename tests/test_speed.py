import copy

import numpy as np
import pytest
import torch

from sar_gen.forwards import replaced
from sar_gen.pipelines import load_pipeline
from sar_gen.speed import (
    StepClock,
    guided,
    is_on,
    narrow_decoder,
    narrowed,
    reused,
    set_fused,
    set_layout,
    wide_decoder,
)
from tests import tiny


@pytest.fixture(scope="module", params=["sdxl", "sd15"])
def loaded(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("speed") / request.param
    (tiny.tiny_sdxl if request.param == "sdxl" else tiny.tiny_sd15)(folder)
    return load_pipeline(folder, request.param, None, torch.float32)


@pytest.fixture
def pipe(loaded):
    """A pipeline whose UNet may be changed."""
    kept = loaded.unet
    loaded.unet = copy.deepcopy(kept)
    yield loaded
    loaded.unet = kept


def made(pipe, steps=4, guidance=3.0, clock=None, **options):
    def count(_, step, __, tensors):
        if clock is not None:
            clock.step = step + 1
        return tensors

    return pipe(
        "a river", num_inference_steps=steps, guidance_scale=guidance, width=64, height=64, output_type="latent",
        generator=torch.Generator().manual_seed(1), callback_on_step_end=count, **options,
    ).images  # fmt: skip


def inputs(pipe, rows, seed=0):
    draw = torch.Generator().manual_seed(seed)
    width = pipe.unet.config.cross_attention_dim
    given = {"encoder_hidden_states": torch.randn((rows, 77, width), generator=draw)}
    if pipe.unet.config.addition_embed_type:
        pooled = pipe.text_encoder_2.config.projection_dim
        ids = torch.tensor([[64.0, 64, 0, 0, 64, 64]]).repeat(rows, 1)
        given["added_cond_kwargs"] = {"text_embeds": torch.randn((rows, pooled), generator=draw), "time_ids": ids}
    sample = torch.randn((rows, pipe.unet.config.in_channels, 8, 8), generator=draw)
    return sample, given


def rows_seen(pipe):
    seen = []
    return seen, pipe.unet.conv_in.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))


def test_replaced_puts_back_a_classes_forward_and_a_hooks_one():
    layer = torch.nn.Linear(2, 2)
    with replaced(layer, lambda plain: lambda given: plain(given) + 1):
        assert torch.equal(layer(torch.zeros(1, 2)), layer.bias[None] + 1)
    assert "forward" not in layer.__dict__
    layer.forward = hook = lambda given: given
    with pytest.raises(ZeroDivisionError), replaced(layer, lambda plain: lambda given: plain(given) + 1):
        _ = 1 / 0
    assert layer.forward is hook


def test_a_narrow_unet_gives_float32_and_rounds_only_inside(pipe):
    pipe.unet.to(torch.bfloat16)
    sample, given = inputs(pipe, 2)
    narrow = {
        name: value.bfloat16() if name == "encoder_hidden_states" else {k: v.bfloat16() for k, v in value.items()}
        for name, value in given.items()
    }
    with torch.no_grad():
        wanted = pipe.unet(sample.bfloat16(), torch.tensor(500), **narrow).sample
        with narrowed(pipe.unet):
            found = pipe.unet(sample, torch.tensor(500), **given).sample
    assert found.dtype == torch.float32
    assert torch.equal(found, wanted.float())
    with narrowed(pipe.unet):
        latents = made(pipe)
    assert latents.dtype == torch.float32


def test_guidance_in_no_step_is_the_prompt_alone_and_in_all_steps_as_ever(pipe):
    clock = StepClock()
    with guided(pipe, 0.0, 0.0, clock):
        never = made(pipe, clock=clock)
    clock.step = 0
    with guided(pipe, 0.0, 1.0, clock):
        always = made(pipe, clock=clock)
    assert torch.equal(always, made(pipe))
    alone = made(pipe, guidance=1.0)
    assert (never - alone).abs().max() < 1e-5 * alone.abs().max()
    assert (never - always).abs().max() > 1e-2


def test_the_unconditional_branch_is_computed_within_the_interval_only(pipe):
    seen, hook = rows_seen(pipe)
    clock = StepClock()
    with guided(pipe, 0.25, 0.75, clock):
        made(pipe, clock=clock)
    hook.remove()
    assert seen == [1, 2, 2, 1]


def test_features_are_used_again_where_nothing_changed_and_give_the_same(pipe):
    sample, given = inputs(pipe, 2)
    clock, calls = StepClock(), []
    hook = pipe.unet.mid_block.resnets[0].register_forward_pre_hook(lambda *_: calls.append(1))
    with torch.no_grad(), reused(pipe.unet, 2, clock):
        first = pipe.unet(sample, torch.tensor(500), **given).sample
        clock.step = 1
        second = pipe.unet(sample, torch.tensor(500), **given).sample
        half = pipe.unet(sample[1:], torch.tensor(500), **{k: second_half(v) for k, v in given.items()}).sample
        other = pipe.unet(sample + 1, torch.tensor(500), **given).sample
        assert len(calls) == 1
        clock.step = 2
        pipe.unet(sample, torch.tensor(500), **given)
        assert len(calls) == 2
    hook.remove()
    assert torch.equal(first, second)
    assert (half - first[1:]).abs().max() < 1e-5
    assert (other - first).abs().max() > 1e-3  # the first level sees the new latents


def second_half(value):
    return value[1:] if isinstance(value, torch.Tensor) else {name: one[1:] for name, one in value.items()}


def test_more_rows_than_were_kept_are_computed_anew(pipe):
    clock = StepClock(step=1)
    with torch.no_grad(), reused(pipe.unet, 2, clock):
        sample, given = inputs(pipe, 1)
        pipe.unet(sample, torch.tensor(500), **given)
        sample, given = inputs(pipe, 2, seed=3)
        found = pipe.unet(sample, torch.tensor(500), **given).sample
    with torch.no_grad():
        assert torch.equal(found, pipe.unet(sample, torch.tensor(500), **given).sample)


def test_reuse_goes_with_a_guidance_interval(pipe):
    clock = StepClock()
    seen, hook = rows_seen(pipe)
    with reused(pipe.unet, 2, clock), guided(pipe, 0.5, 1.0, clock):
        latents = made(pipe, clock=clock)
    hook.remove()
    assert seen == [1, 1, 2, 2]
    assert torch.isfinite(latents).all()


def test_fused_projections_give_the_same_and_follow_new_weights(pipe):
    plain = made(pipe)
    set_fused(pipe.unet, True)
    assert any("to_qkv" in name for name, _ in pipe.unet.named_modules())
    assert (made(pipe) - plain).abs().max() < 1e-4 * plain.abs().max()
    with torch.no_grad():
        for name, parameter in pipe.unet.named_parameters():
            if ".to_q.weight" in name:
                parameter.mul_(-1)
    set_fused(pipe.unet, True)
    changed = made(pipe)
    set_fused(pipe.unet, False)
    assert not any("to_qkv" in name for name, _ in pipe.unet.named_modules())
    assert (made(pipe) - changed).abs().max() < 1e-4 * plain.abs().max()
    assert (changed - plain).abs().max() > 1e-3


def test_a_unet_with_a_lora_is_not_fused(pipe):
    from peft import LoraConfig

    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False))
    before = made(pipe)
    set_fused(pipe.unet, True)
    assert torch.equal(made(pipe), before)


def test_the_layout_is_set_and_taken_back(pipe):
    plain = made(pipe)
    set_layout(pipe.unet, True)
    assert pipe.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    assert (made(pipe) - plain).abs().max() < 1e-4 * plain.abs().max()
    set_layout(pipe.unet, False)
    assert torch.equal(made(pipe), plain)


def test_a_narrow_decoder_is_near_has_no_steps_and_changes_no_weight(pipe):
    vae = pipe.vae
    before = {name: tensor.clone() for name, tensor in vae.state_dict().items()}
    latents = torch.randn((1, vae.config.latent_channels, 8, 8), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = vae.decode(latents).sample
        with narrow_decoder(vae):
            found = vae.decode(latents).sample.float()
        rounded = copy.deepcopy(vae).bfloat16().decode(latents.bfloat16()).sample.float()
    assert (found - wanted).abs().max() < 0.05 * wanted.abs().max()
    assert len(np.unique(found.numpy())) > 5 * len(np.unique(rounded.numpy()))
    assert all(torch.equal(tensor, before[name]) for name, tensor in vae.state_dict().items())
    with torch.no_grad():
        assert torch.equal(vae.decode(latents).sample, wanted)


def test_a_wide_decoder_gives_its_weights_back(pipe):
    vae = copy.deepcopy(pipe.vae).bfloat16()
    before = {name: tensor.clone() for name, tensor in vae.state_dict().items()}
    with wide_decoder(vae):
        assert vae.dtype == torch.float32
    assert vae.dtype == torch.bfloat16
    assert all(torch.equal(tensor, before[name]) for name, tensor in vae.state_dict().items())


def test_where_a_switch_is_on():
    assert [is_on(where, cuda) for where in ("off", "gpu", "on") for cuda in (False, True)] == [
        False, False, False, True, True, True,
    ]  # fmt: skip
