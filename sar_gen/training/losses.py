"""The denoising loss: noising, what is predicted, and how a step is weighted. Pure functions on torch tensors.

With a = the cumulated product of (1 - beta) at a timestep, the noised latents are ``sqrt(a) x + sqrt(1 - a) e``
(arXiv 2006.11239, equation 4), and the signal-to-noise ratio is ``a / (1 - a)``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch

from sar_gen.errors import InputError

Prediction = Literal["epsilon", "v_prediction"]


@dataclass(frozen=True)
class NoiseSchedule:
    """What a base was trained with.

    Attributes:
        cumulated: float32 ``(timesteps,)``, a at each timestep; 0 at the last one with zero terminal SNR.
        prediction: what the denoiser gives: the noise, or the velocity ``sqrt(a) e - sqrt(1 - a) x``
            (arXiv 2202.00512).
    """

    cumulated: torch.Tensor
    prediction: Prediction

    def noised(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """Return the latents at these timesteps, one a row of ``(n, c, h, w)``."""
        signal, share = self._shares(timesteps, latents)
        return signal * latents + share * noise

    def target(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """Return what the denoiser should give, ``(n, c, h, w)``."""
        if self.prediction == "epsilon":
            return noise
        signal, share = self._shares(timesteps, latents)
        return signal * noise - share * latents

    def weights(self, timesteps: torch.Tensor, gamma: float) -> torch.Tensor:
        """Return the min-SNR weight of each timestep (arXiv 2303.09556): min(SNR, gamma) on the clean estimate.

        The error of the noise is SNR times that of the clean estimate, the error of the velocity SNR + 1 times; so the
        weight is divided by that. ``gamma`` 0 weighs all alike.
        """
        if not gamma:
            return torch.ones_like(timesteps, dtype=torch.float32)
        a = self.cumulated.to(timesteps.device)[timesteps]
        ratio = a / (1 - a)
        return ratio.clamp(max=gamma) / (ratio if self.prediction == "epsilon" else ratio + 1)

    def _shares(self, timesteps: torch.Tensor, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        a = self.cumulated.to(timesteps.device)[timesteps].view(-1, 1, 1, 1)
        return a.sqrt().to(like.dtype), (1 - a).sqrt().to(like.dtype)


def noise_schedule(
    config: Any, prediction: Prediction | None = None, zero_terminal_snr: bool | None = None
) -> NoiseSchedule:
    """Return the noise schedule of a scheduler's configuration, with what a run changes.

    Args:
        config: of a diffusers scheduler (a mapping).
        prediction: ``None`` keeps the configuration's.
        zero_terminal_snr: ``None`` keeps the configuration's.

    Raises:
        InputError: zero terminal SNR with epsilon: pure noise says nothing of the picture, so only v can be learned
            there (arXiv 2305.08891).
    """
    from diffusers import DDPMScheduler

    kept = {
        name: config[name] for name in ("beta_start", "beta_end", "beta_schedule", "trained_betas") if name in config
    }
    kept["num_train_timesteps"] = config.get("num_train_timesteps", 1000)
    chosen = prediction or config.get("prediction_type", "epsilon")
    zero = config.get("rescale_betas_zero_snr", False) if zero_terminal_snr is None else zero_terminal_snr
    if chosen not in ("epsilon", "v_prediction"):
        raise InputError(f"The base predicts {chosen!r}; epsilon and v_prediction can be trained.")
    if zero and chosen == "epsilon":
        raise InputError("Zero terminal SNR needs v_prediction; set denoiser.prediction, or leave it out.")
    cumulated = DDPMScheduler(**kept, rescale_betas_zero_snr=False).alphas_cumprod.double()
    if zero:
        cumulated = zero_terminal(cumulated)
    return NoiseSchedule(cumulated.float(), chosen)


def zero_terminal(cumulated: torch.Tensor) -> torch.Tensor:
    """Return cumulated products whose square roots are shifted to end at 0 and scaled to begin where they did.

    arXiv 2305.08891, algorithm 1.
    """
    root = cumulated.sqrt()
    first, last = root[0].clone(), root[-1].clone()
    return ((root - last) * (first / (first - last))) ** 2


def offset_noise(noise: torch.Tensor, strength: float, generator: torch.Generator) -> torch.Tensor:
    """Return noise ``(n, c, h, w)`` with one more normal number, times ``strength``, added to each whole channel.

    It lets a model learn pictures that are dark or bright as a whole (N. Guttenberg, "Diffusion with offset noise",
    2023).
    """
    if not strength:
        return noise
    shape = (*noise.shape[:2], 1, 1)
    return noise + strength * torch.randn(shape, generator=generator, device=noise.device, dtype=noise.dtype)


def sampling_scheduler(own: Any, schedule: NoiseSchedule) -> Any:
    """Return the scheduler that samples what was trained, ``None`` where the base's own does.

    Args:
        own: the base's, a diffusers scheduler.
        schedule: that was trained.
    """
    ends_in_noise = float(schedule.cumulated[-1]) == 0.0
    before = own.config.get("prediction_type", "epsilon"), bool(own.config.get("rescale_betas_zero_snr", False))
    if before == (schedule.prediction, ends_in_noise):
        return None
    changes: dict[str, Any] = {"prediction_type": schedule.prediction, "rescale_betas_zero_snr": ends_in_noise}
    if ends_in_noise:
        changes["timestep_spacing"] = "trailing"  # sampling must begin at the last timestep (arXiv 2305.08891)
    return type(own).from_config(own.config, **changes)
