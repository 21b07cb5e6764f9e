"""Training of the VAE: what is trained and only that, runs that go on, folded scales, files that the studio loads."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file

from sar_gen.amplitude import to_model
from sar_gen.checkpoints import scan
from sar_gen.errors import InputError
from sar_gen.pipelines import PipelineHolder
from sar_gen.settings import Settings
from sar_gen.strategies import strategy
from sar_gen.training import loop
from sar_gen.training.config import TrainingConfig, VaeConfig, check_config
from sar_gen.training.state import STATES
from sar_gen.training.vae import (
    Crops,
    build_vae,
    fold_latent_scale,
    latent_scale,
    lora_targets,
    put_trainable,
    save_vae,
    train_vae,
)
from tests import tiny

QUICK: dict[str, Any] = {"steps": 4, "batch": 2, "crop": 32, "learning_rate": 1e-3, "spectrum": 0.1, "gan_start": 0.5}


@dataclass(frozen=True)
class Row:
    """What is read of a ``PatchRow``."""

    key: str
    height: int
    width: int
    modality: str = "sar"


class Speckle:
    """Four-look speckle on a slope, one patch in three optical: smooth waves."""

    def __init__(self, count: int = 6, side: int = 48) -> None:
        self.rows = [Row(f"p{i}", side, side, "optical" if i % 3 == 2 else "sar") for i in range(count)]

    def pixels(self, index: int) -> np.ndarray:
        row = self.rows[index]
        if row.modality == "optical":
            return np.tile(0.5 + 0.5 * np.sin(np.arange(row.width) / 5 + index), (row.height, 1)).astype(np.float32)
        random = np.random.default_rng(index)
        level = np.linspace(0.1, 0.5, row.width)
        speckle = np.sqrt(random.gamma(4, 1 / 4, (row.height, row.width)))
        return np.clip(level * speckle, 0, 1).astype(np.float32)


def config(name: str, lora: dict[str, Any] | None = None, run: dict[str, Any] | None = None, **vae: Any) -> Any:
    table = {"base": "b", "strategy": name, "output": "out", "data": {"manifest": "m"}, "vae": {**QUICK, **vae}}
    table |= {"run": run or {}, "lora": {"vae_decoder": lora} if lora else {}}
    return check_config(table, TrainingConfig, "test")


def seeded(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return build_vae("tiny")


def train(vae: Any, settings: Any, work: Path, **options: Any) -> Any:
    return train_vae(settings, vae, settings.row, Speckle(), work=work, device="cpu", **options)


def plain(vae: Any) -> dict[str, torch.Tensor]:
    return {name.replace(".base_layer", ""): value.clone() for name, value in vae.state_dict().items()}


def differing(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> set[str]:
    return {name for name in one.keys() & other.keys() if not torch.equal(one[name], other[name])}


@pytest.mark.parametrize(
    ("name", "halves"),
    [
        ("vae-decoder", {"decoder", "post_quant_conv"}),
        ("vae-full", {"encoder", "quant_conv", "decoder", "post_quant_conv"}),
        ("vae-decoder-lora", set()),
    ],
)
def test_only_what_the_strategy_says_is_trained(name: str, halves: set[str], tmp_path: Path) -> None:
    vae = seeded()
    before = plain(vae)
    settings = config(name)
    result = train(vae, settings, tmp_path)
    after = plain(vae)
    assert {key.split(".")[0] for key in differing(before, after)} == halves
    assert result.finished
    assert result.step == 4
    assert len(result.losses) == 4
    if name == "vae-decoder-lora":
        added = {key for key in after if "lora_B" in key}
        assert added
        assert all(after[key].abs().max() > 0 for key in added)
        added_a = {key for key in after if "lora_A" in key}
        assert result.trainable == sum(after[key].numel() for key in added | added_a)
    else:
        assert result.trainable == sum(value.numel() for key, value in before.items() if key.split(".")[0] in halves)
    assert all(parameter.dtype == torch.float32 for parameter in vae.parameters())


@pytest.mark.parametrize("name", ["vae-full", "vae-decoder-lora"])
def test_a_run_that_was_cut_off_becomes_the_run_it_would_have_been(name: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"ema": 0.5, "schedule": "cosine", "warmup": 1}
    lora = {"rank": 2, "dropout": 0.3} if name == "vae-decoder-lora" else None
    settings = config(name, lora, **options)
    whole = seeded()
    unbroken = train(whole, settings, tmp_path / "whole")
    for stopped_after in (1, 3):  # before and after the discriminator has joined in
        asked = iter(range(10))
        cut = seeded()
        work = tmp_path / f"cut{stopped_after}"
        first = train(cut, settings, work, stop=lambda asked=asked, n=stopped_after: next(asked) >= n)
        assert not first.finished
        assert first.step == stopped_after
        other = seeded()
        second = train(other, settings, work, resume=True)
        assert second.finished
        assert second.losses == unbroken.losses
        assert not differing(plain(other), plain(whole))


def test_a_run_with_other_settings_is_not_gone_on_with(tmp_path: Path) -> None:
    train(seeded(), config("vae-decoder", gan=0.0), tmp_path, stop=iter([False, True]).__next__)
    with pytest.raises(InputError, match="unfinished run"):
        train(seeded(), config("vae-decoder", gan=0.0), tmp_path)
    with pytest.raises(InputError, match=r"other settings \(vae\.l1\)"):
        train(seeded(), config("vae-decoder", gan=0.0, l1=0.5), tmp_path, resume=True)


def test_a_state_holds_trained_parameters_only(tmp_path: Path) -> None:
    settings = config("vae-decoder-lora", run={"save_every": 2, "keep_last": 1}, ema=0.9)
    train(seeded(), settings, tmp_path)
    (state,) = (tmp_path / STATES).iterdir()
    assert state.name == "step-00000004"
    weights = load_file(state / "vae.safetensors")
    assert weights
    assert all(".lora_A." in name or ".lora_B." in name for name in weights)
    assert not list(state.glob("model*.safetensors"))


def test_reconstruction_gets_better_and_averages_are_what_is_kept(tmp_path: Path) -> None:
    settings = config("vae-full", steps=25, gan=0.0, spectrum=0.0, learning_rate=3e-3, kl=1e-6)
    vae = seeded()
    result = train(vae, settings, tmp_path / "one")
    assert np.mean(result.losses[-5:]) < 0.7 * np.mean(result.losses[:5])
    averaged = seeded()
    train(averaged, config("vae-full", gan=0.0, ema=0.999), tmp_path / "two")
    raw = seeded()
    train(raw, config("vae-full", gan=0.0), tmp_path / "three")
    start = plain(seeded())["decoder.conv_out.weight"]
    assert 0 < (averaged.decoder.conv_out.weight - start).norm() < (raw.decoder.conv_out.weight - start).norm()


@pytest.mark.parametrize("run", [{"precision": "bf16"}, {"gradient_checkpointing": True}])
def test_precision_and_checkpointing_change_little(run: dict[str, Any], tmp_path: Path) -> None:
    exact = train(seeded(), config("vae-decoder"), tmp_path / "plain")
    found = train(seeded(), config("vae-decoder", run=run), tmp_path / "other")
    assert found.losses == pytest.approx(exact.losses, rel=0.05)


def test_no_time_no_step(tmp_path: Path) -> None:
    result = train(seeded(), config("vae-decoder"), tmp_path, minutes=0)
    assert not result.finished
    assert result.step == 0
    assert result.losses == ()


def test_what_cannot_be_trained_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="trains nothing of the VAE"):
        train(seeded(), config("unet-full"), tmp_path)
    with pytest.raises(InputError, match="64 pixels a side"):
        train(seeded(), config("vae-decoder", crop=64), tmp_path)
    with pytest.raises(InputError, match="No layer of the VAE's decoder is named to_z"):
        train(seeded(), config("vae-decoder-lora", {"targets": ["to_z"]}), tmp_path)
    with pytest.raises(InputError, match="optical_share"):
        train(seeded(), config("vae-decoder", optical_share=0.1), tmp_path)
    with pytest.raises(InputError, match="eight_bit needs"):
        train(seeded(), config("vae-decoder", eight_bit=True), tmp_path)


def test_crops_follow_from_seed_and_step() -> None:
    data = Speckle()
    crops = Crops(data, VaeConfig(crop=32, optical_share=0.5), 4, 7, "root")
    one, again, other = crops.batch(3), crops.batch(3), crops.batch(4)
    assert one.shape == (4, 3, 32, 32)
    assert one.dtype == torch.float32
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert torch.equal(one[:, 0], one[:, 2])
    assert one.min() >= -1
    assert one.max() <= 1
    assert not torch.equal(crops.batch(3, process=1), one)
    assert [torch.equal(a, crops.batch(i)) for i, a in enumerate(crops.batches(0, 3))] == [True] * 3
    # SAR comes first and in the model's grey; optical grey comes as it is: rows of the waves are all alike.
    sar = [2 * to_model(data.pixels(i), "root") - 1 for i in (0, 1, 3, 4)]
    windows = [np.lib.stride_tricks.sliding_window_view(patch, (32, 32)).reshape(-1, 32 * 32) for patch in sar]
    flat = np.concatenate(windows)
    assert all((np.abs(flat - crop[0].numpy().ravel()).max(axis=1) < 1e-6).any() for crop in one[:2])
    assert torch.equal(one[2:, :, :1].expand(-1, -1, 32, -1), one[2:])


def test_flips_only_where_asked_for() -> None:
    data = Speckle(count=1, side=32)
    plain_crops = Crops(data, VaeConfig(crop=32), 8, 0, "linear")
    assert all(torch.equal(crop, plain_crops.batch(0)[0]) for crop in plain_crops.batch(0))
    flipped = Crops(data, VaeConfig(crop=32), 8, 0, "linear", ("vertical",)).batch(0)
    original = plain_crops.batch(0)[0]
    assert {torch.equal(crop, original) for crop in flipped} == {True, False}
    assert all(torch.equal(crop, original) or torch.equal(crop, original.flip(1)) for crop in flipped)


@pytest.mark.parametrize(
    "normalisation",
    [
        {"scaling_factor": 0.13025},
        {"scaling_factor": 0.5, "shift_factor": 0.1},
        {"scaling_factor": 0.2, "latents_mean": [0.1, -0.2, 0.3, 0.0], "latents_std": [1.5, 2.0, 0.5, 1.0]},
    ],
)
def test_folding_standardises_latents_and_leaves_pictures(normalisation: dict[str, Any]) -> None:
    torch.manual_seed(1)
    vae = _tiny_with(**normalisation).double()
    pictures = torch.stack([torch.rand(3, 64, 64) * (i + 1) / 4 - 0.5 for i in range(8)]).double()
    noise = torch.randn(8, 4, 8, 8).double()
    single = copy.deepcopy(vae).float()
    made = []
    with torch.inference_mode():
        for folded in (False, True):
            if folded:
                fold_latent_scale(vae, *latent_scale(vae, pictures.split(4)))
                fold_latent_scale(single, *latent_scale(single, pictures.split(4)))
            posterior = vae.encode(pictures).latent_dist
            draws = posterior.mean + posterior.std * noise
            in_single = single.decode(single.encode(pictures.float()).latent_dist.mean).sample
            made.append((vae.decode(posterior.mean).sample, vae.decode(draws).sample, in_single))
    before, after = made
    assert torch.allclose(before[0], after[0], atol=1e-9)
    assert torch.allclose(before[1], after[1], atol=1e-9)  # draws too: mean and spread have moved together
    assert torch.allclose(before[2], after[2], atol=2e-5)  # the rounding of float32
    mean, std = latent_scale(vae, [pictures])
    offset = torch.tensor(vae.config.latents_mean or [vae.config.shift_factor or 0.0] * 4)
    spread = torch.tensor(vae.config.latents_std or [1.0] * 4)
    assert list(vae.config.latents_std or []) == normalisation.get("latents_std", [])
    assert torch.allclose((mean - offset) * vae.config.scaling_factor / spread, torch.zeros(4).double(), atol=1e-5)
    assert torch.allclose(std * vae.config.scaling_factor / spread, torch.ones(4).double(), atol=1e-4)


def test_latent_scale_is_that_of_draws() -> None:
    vae = seeded().eval()
    pictures = torch.rand(4, 3, 32, 32)
    mean, std = latent_scale(vae, [pictures[:1], pictures[1:]])
    random = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        posterior = vae.encode(pictures).latent_dist
        draws = torch.stack([posterior.sample(random) for _ in range(400)])
    assert torch.allclose(mean.float(), draws.mean(dim=(0, 1, 3, 4)), atol=0.02)
    assert torch.allclose(std.float(), draws.std(dim=(0, 1, 3, 4)), rtol=0.02)


def test_a_vae_whose_scale_cannot_be_folded_is_refused() -> None:
    vae = _tiny_with(use_quant_conv=False)
    with pytest.raises(InputError, match="lacks quant_conv"):
        fold_latent_scale(vae, torch.zeros(4), torch.ones(4))
    with pytest.raises(InputError, match="same everywhere"):
        fold_latent_scale(seeded(), torch.zeros(4), torch.tensor([1.0, 0.0, 1.0, 1.0]))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.checkpoint(tmp_path_factory.mktemp("checkpoints") / "base")


@pytest.mark.parametrize("name", ["vae-decoder", "vae-full", "vae-decoder-lora"])
def test_the_studio_decodes_as_the_trained_vae_does(name: str, base: Path, tmp_path: Path) -> None:
    vae = AutoencoderKL.from_pretrained(base / "vae")
    settings = config(name, steps=2, learning_rate=5e-3)
    train(vae, settings, tmp_path / "work")
    folder = base.parent / name
    path = save_vae(vae, settings.row, folder, torch.float32)
    tiny.write_card(folder, id=name, base=base.name, strategy=name)
    keys = set(load_file(path))
    if name == "vae-decoder":
        assert all(key.startswith(("decoder.", "post_quant_conv.")) for key in keys)
    elif name == "vae-full":
        assert keys == set(vae.state_dict())
    studio = Settings(checkpoints=base.parent, device="cpu")
    catalogue, problems = scan(studio)
    assert not problems
    holder = PipelineHolder()
    loaded = holder.ensure(catalogue[name], catalogue, studio).vae
    latents, pictures = torch.randn(1, 4, 8, 8), torch.randn(1, 3, 64, 64)
    untouched = AutoencoderKL.from_pretrained(base / "vae")
    with torch.inference_mode():
        expected, found = vae.decode(latents).sample, loaded.decode(latents).sample
        assert not torch.allclose(found, untouched.decode(latents).sample, atol=1e-3)
        if name == "vae-decoder-lora":
            assert torch.allclose(found, expected, atol=1e-5)
        else:
            assert torch.equal(found, expected)
        assert torch.equal(loaded.encode(pictures).latent_dist.mean, vae.encode(pictures).latent_dist.mean)


def test_saved_type_is_the_one_asked_for(tmp_path: Path) -> None:
    vae = seeded()
    path = save_vae(vae, strategy("vae-decoder"), tmp_path, torch.float16)
    tensors = load_file(path)
    assert {value.dtype for value in tensors.values()} == {torch.float16}
    assert torch.equal(tensors["decoder.conv_in.weight"], vae.decoder.conv_in.weight.half())
    with pytest.raises(InputError, match="trains nothing of the VAE"):
        save_vae(vae, strategy("unet-lora"), tmp_path, torch.float16)


def test_lora_settings_override_the_strategy_and_stay_in_the_decoder() -> None:
    vae = seeded()
    settings = config("vae-decoder-lora", {"rank": 3, "alpha": 6.0, "targets": ["conv1", "post_quant_conv"]})
    names = lora_targets(settings, vae)
    assert "post_quant_conv" in names
    assert all(n.startswith("decoder.") for n in names if n != "post_quant_conv")
    before = copy.deepcopy(vae)
    trained = put_trainable(vae, settings.row, settings)
    assert all(p.shape[0] == 3 for name, p in trained.items() if ".lora_A." in name)
    latents = torch.randn(1, 4, 4, 4)
    with torch.inference_mode():  # B starts at zero
        assert torch.equal(vae.decode(latents).sample, before.decode(latents).sample)
    assert {name for name, p in vae.named_parameters() if p.requires_grad} == set(trained)


def test_vaes_that_can_be_built() -> None:
    vae = build_vae("mini")
    assert 9e6 < sum(p.numel() for p in vae.parameters()) < 13e6
    assert vae.config.latent_channels == 16
    assert vae.config.scaling_factor == 1.0
    with torch.inference_mode():
        assert vae.encode(torch.zeros(1, 3, 64, 64)).latent_dist.mean.shape == (1, 16, 8, 8)
    with pytest.raises(InputError, match="unknown"):
        build_vae("huge")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["vae-decoder-lora", "vae-full"])
def test_the_studios_training_writes_a_checkpoint(name: str, place: Any) -> None:
    settings = place.config(name, vae={**QUICK, "steps": 2, "gan": 0.0})
    result = loop.train(settings, place.settings, say=lambda _: None)
    assert result.finished
    catalogue, problems = scan(place.settings)
    assert not problems
    assert PipelineHolder().ensure(catalogue[name], catalogue, place.settings).vae is not None


def _tiny_with(**changes: Any) -> Any:
    plain_config = {name: value for name, value in build_vae("tiny").config.items() if not name.startswith("_")}
    return AutoencoderKL(**{**plain_config, **changes}).eval()
