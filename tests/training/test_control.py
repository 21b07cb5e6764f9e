"""A ControlNet as one more trainable part: trained, stopped and gone on with, written, found and used."""

import dataclasses

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel

from sar_gen import checkpoints, guide_networks
from sar_gen.conditioning import PLANES, planes
from sar_gen.engine import Engine
from sar_gen.errors import InputError
from sar_gen.request import GenerationRequest, Guide, PatchReady
from sar_gen.training.config import TrainingConfig, read_config
from sar_gen.training.loop import drawn_timesteps, train
from sar_gen.training.parts import EMBEDDED, find_base, load_pipeline, new_control
from tests.training.conftest import SIDE, write_data
from tests.training.test_loop import ROOT, StopAfter, run, same, weights


@pytest.fixture
def paired(place):
    """The place with optical halves."""
    write_data(place.data, optical=True)
    return place


def config(place, name="guides", **tables):
    tables.setdefault("guides", {})
    return place.config("control", name, **tables)


@pytest.mark.parametrize("attention", [False, True])
def test_an_untrained_network_changes_nothing_and_begins_as_the_encoder(place, attention):
    unet = load_pipeline(find_base("base", place.settings)).unet
    control = new_control(unet, attention=attention)
    sample, timesteps = torch.randn(2, 4, 8, 8), torch.tensor([3, 900])
    context, added = torch.randn(2, 77, 64), {"text_embeds": torch.randn(2, 32), "time_ids": torch.randn(2, 6)}
    guide = torch.rand(2, len(PLANES), 64, 64)
    with torch.no_grad():
        down, middle = control(sample, timesteps, context, guide, added_cond_kwargs=added, return_dict=False)
        plain = unet(sample, timesteps, context, added_cond_kwargs=added).sample
        steered = unet(
            sample, timesteps, context, added_cond_kwargs=added, down_block_additional_residuals=down,
            mid_block_additional_residual=middle,
        ).sample  # fmt: skip
    assert torch.equal(plain, steered)
    theirs = unet.state_dict()
    name = "down_blocks.1.resnets.0.conv1.weight"
    assert torch.equal(control.state_dict()[name], theirs[name])
    has_attention = any("attentions" in key for key in control.state_dict())
    assert has_attention is attention


def test_the_guide_reaches_the_encoder_from_the_first_step_on(place):
    """Not through zeros: what the embedding gives of a random guide has the spread that is asked for."""
    unet = load_pipeline(find_base("base", place.settings)).unet
    control = new_control(unet, attention=False)
    guide = torch.rand(2, len(PLANES), 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        given = control.controlnet_cond_embedding(guide)
        other = control.controlnet_cond_embedding(torch.zeros_like(guide))
    assert given.std().item() == pytest.approx(EMBEDDED, rel=0.3)
    assert other.abs().max() < 1e-6


def test_a_trained_network_is_found_and_changes_what_the_studio_makes(paired):
    settings = config(paired, denoiser={"steps": 6, "learning_rate": 1e-2})
    base = weights(paired.settings.checkpoints / "base")
    result = run(paired, settings)
    assert result.finished
    assert set(result.trainable) == {"control"}
    assert same(base, weights(paired.settings.checkpoints / "base"))
    catalogue = checkpoints.catalogue(paired.settings)
    assert "guides" not in catalogue
    known, problems = guide_networks.scan(paired.settings, catalogue)
    assert not problems
    network = known["guides"]
    assert (network.base, network.layout, network.default_for) == ("base", "studio", ())
    assert network.kinds == {"map": "studio", "optical": "grey", "sar": "coarse, linear"}
    # What is read back is what was trained, to the last bit.
    loaded = ControlNetModel.from_pretrained(settings.output)
    assert loaded.config.conditioning_channels == len(PLANES)
    # Until its card says otherwise, image-to-image stays the default.
    assert guide_networks.ways(known, catalogue["base"], "map") == ["image-to-image", "guides"]
    engine = Engine(paired.settings)
    picture = np.zeros((SIDE, SIDE, 3), np.uint8)
    picture[:, : SIDE // 2] = 200

    def make(**options):
        request = GenerationRequest("a SAR image of forest", checkpoint="base", steps=2, seed=4, **options)
        return next(event.amplitude for event in engine.generate(request) if isinstance(event, PatchReady))

    plain = make()
    guided = make(guides=(Guide("optical", picture, way="guides"),))
    engine.close()
    assert np.abs(plain - guided).max() > 0


def test_the_loss_falls_on_what_is_seen_again_and_again(paired):
    tables = {"data": {"batch": 4, "caption_dropout": 0.0}, "denoiser": {"steps": 80, "learning_rate": 3e-3}}
    losses = run(paired, config(paired, **tables)).losses
    assert np.mean(losses[-20:]) < 0.8 * np.mean(losses[:10])


@pytest.mark.parametrize("cache", ["memory", "disk"])
def test_a_run_that_was_stopped_goes_on_exactly(paired, cache):
    tables = {"data": {"cache": cache}, "denoiser": {"steps": 5, "accumulate": 2, "ema": 0.9}}
    whole = run(paired, config(paired, "whole", **tables))
    pieces = config(paired, "pieces", **tables)
    assert not run(paired, pieces, stop=StopAfter(3)).finished
    second = run(paired, pieces, resume=True)
    assert second.losses == whole.losses
    assert same(weights(paired.settings.checkpoints / "whole"), weights(pieces.output))


def test_a_network_can_be_trained_further(paired):
    first = config(paired, "first", denoiser={"steps": 2, "learning_rate": 1e-2})
    run(paired, first)
    still = {"denoiser": {"steps": 1, "learning_rate": 1e-30, "weight_decay": 0.0}}
    further = config(paired, "further", guides={"start": str(first.output)}, **still)
    run(paired, further)
    assert same(weights(first.output), weights(further.output))
    with pytest.raises(InputError, match="no network to start from"):
        run(paired, config(paired, "wrong", guides={"start": str(paired.data)}))


def test_gradient_checkpointing_and_bf16_run(paired):
    result = run(paired, config(paired, run={"gradient_checkpointing": True, "precision": "bf16"}))
    assert np.isfinite(result.losses).all()


@pytest.mark.parametrize(
    ("tables", "sentence"),
    [
        ({"whole": True}, "alone"),
        ({"data": {"flips": ["horizontal"], "cache": "none"}}, "without flips"),
        ({"data": {"cache": "none"}}, "cache"),
        ({"run": {"validate_every": 2}}, "validate_every"),
    ],
)
def test_what_a_network_cannot_be_trained_with_is_refused(paired, tables, sentence):
    with pytest.raises(InputError, match=sentence):
        run(paired, config(paired, **tables))


def test_data_without_optical_halves_are_refused_but_for_coarse_sar(place):
    with pytest.raises(InputError, match="optical"):
        run(place, config(place))
    assert run(place, config(place, "sar", guides={"kinds": ["sar"]})).finished


@pytest.mark.parametrize("name", ["guides-embedded", "guides-embedded-cpu", "guides-embedded-cpu-further"])
def test_the_shipped_configurations_are_of_a_network_for_the_embedded_base(name):
    found = read_config(ROOT / "sar_gen" / "training" / "configs" / f"{name}.toml", TrainingConfig)
    assert (found.base, found.strategy) == ("sar-mini", "control")
    assert set(found.guides.kinds) == {"map", "optical", "sar"}


def test_the_strategy_trains_alone():
    from sar_gen.strategies import strategy

    assert strategy("control").trained() == {"control": "full"}
    both = strategy("unet-lora+control")
    assert both.trained() == {"unet": "lora", "control": "full"}


def test_a_joined_strategy_is_refused(paired):
    joined = dataclasses.replace(config(paired), strategy="unet-lora+control")
    with pytest.raises(InputError, match="alone"):
        train(joined, paired.settings, say=lambda _: None)


def test_cubic_timesteps_follow_their_law():
    """P(t < x T) = P(1 - u^3 < x) = 1 - (1 - x)^(1/3)."""
    drawn = drawn_timesteps("cubic", 1000, 200_000, torch.Generator().manual_seed(0)).numpy()
    for share in (0.1, 0.5, 0.9):
        assert (drawn < share * 1000).mean() == pytest.approx(1 - (1 - share) ** (1 / 3), abs=0.005)
    assert drawn.min() >= 0
    assert drawn.max() <= 999


def test_planes_of_another_kind_are_nought():
    made = planes("sar", np.full((4, 4), 0.5, np.float32))
    assert made[PLANES.index("sar")].min() == made[PLANES.index("sar")].max() == 0.5
    assert made[PLANES.index("has sar")].min() == 1
    assert np.abs(made).sum() == 16 * 1.5
