import pytest
import torch
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler

from sar_gen.errors import InputError
from sar_gen.training.losses import noise_schedule, offset_noise, sampling_scheduler, zero_terminal

CONFIG = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}


def draw(seed=0, shape=(4, 3, 8, 8)):
    random = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=random), torch.randn(shape, generator=random)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("zero", [False, True])
def test_noising_and_targets_are_those_of_diffusers(prediction, zero):
    if zero and prediction == "epsilon":
        pytest.skip("refused, see below")
    schedule = noise_schedule(CONFIG, prediction, zero)
    theirs = DDPMScheduler(**CONFIG, prediction_type=prediction, rescale_betas_zero_snr=zero)
    latents, noise = draw()
    timesteps = torch.tensor([0, 1, 500, 999])
    torch.testing.assert_close(
        schedule.noised(latents, noise, timesteps), theirs.add_noise(latents, noise, timesteps), atol=2e-4, rtol=0
    )
    expected = noise if prediction == "epsilon" else theirs.get_velocity(latents, noise, timesteps)
    torch.testing.assert_close(schedule.target(latents, noise, timesteps), expected, atol=2e-4, rtol=0)


def test_zero_terminal_snr_ends_in_pure_noise_and_begins_where_it_did():
    plain = noise_schedule(CONFIG, "v_prediction", False).cumulated.double()
    zero = zero_terminal(plain)
    assert zero[-1] == 0
    assert zero[0].item() == pytest.approx(plain[0].item())
    assert (zero.diff() < 0).all()
    # sqrt(a) of the two are one linear map of each other
    slope = (zero.sqrt()[0] - zero.sqrt()[500]) / (plain.sqrt()[0] - plain.sqrt()[500])
    assert slope.item() == pytest.approx(((zero.sqrt()[0]) / (plain.sqrt()[0] - plain.sqrt()[-1])).item())


def test_zero_terminal_snr_cannot_be_learned_with_epsilon():
    with pytest.raises(InputError, match="v_prediction"):
        noise_schedule(CONFIG, "epsilon", True)


def test_min_snr_weights_the_clean_estimate():
    """An error d of the clean estimate is -sqrt(SNR) d of the noise and -sqrt(SNR + 1) d of the velocity."""
    gamma = 5.0
    timesteps = torch.tensor([3, 200, 600, 990])
    for prediction in ("epsilon", "v_prediction"):
        schedule = noise_schedule(CONFIG, prediction)
        latents, noise = draw()
        noisy = schedule.noised(latents, noise, timesteps)
        a = schedule.cumulated[timesteps].view(-1, 1, 1, 1)
        wrong = latents + 0.01  # a clean estimate that is off by 0.01
        implied = (noisy - a.sqrt() * wrong) / (1 - a).sqrt()
        given = implied if prediction == "epsilon" else a.sqrt() * implied - (1 - a).sqrt() * wrong
        loss = (given - schedule.target(latents, noise, timesteps)).square().mean(dim=(1, 2, 3))
        snr = (a / (1 - a)).flatten()
        expected = snr.clamp(max=gamma) * 0.01**2
        torch.testing.assert_close(schedule.weights(timesteps, gamma) * loss, expected, rtol=0.02, atol=1e-9)
    assert (schedule.weights(timesteps, 0.0) == 1).all()


def test_min_snr_is_finite_at_zero_terminal_snr():
    schedule = noise_schedule(CONFIG, "v_prediction", True)
    weights = schedule.weights(torch.tensor([0, 999]), 5.0)
    assert weights.isfinite().all()
    assert weights[1] == 0


def test_offset_noise_moves_whole_channels():
    noise, _ = draw(shape=(64, 4, 16, 16))
    moved = offset_noise(noise, 0.5, torch.Generator().manual_seed(1))
    offsets = (moved - noise)[..., :1, :1]
    torch.testing.assert_close(moved - noise, offsets.expand_as(noise), atol=1e-6, rtol=0)
    assert offsets.std().item() == pytest.approx(0.5, rel=0.15)
    assert torch.equal(offset_noise(noise, 0.0, torch.Generator()), noise)


def test_the_scheduler_is_changed_only_where_the_training_did():
    own = DPMSolverMultistepScheduler(**CONFIG)
    assert sampling_scheduler(own, noise_schedule(own.config)) is None
    changed = sampling_scheduler(own, noise_schedule(own.config, "v_prediction", True))
    assert changed.config.prediction_type == "v_prediction"
    assert changed.config.rescale_betas_zero_snr
    assert changed.config.timestep_spacing == "trailing"
    assert sampling_scheduler(changed, noise_schedule(changed.config)) is None
