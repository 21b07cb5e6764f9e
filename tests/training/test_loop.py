import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from sar_gen import checkpoints
from sar_gen.errors import InputError
from sar_gen.request import GenerationRequest, PatchReady
from sar_gen.training.loop import train
from sar_gen.training.state import read_journal, seed_of

ROOT = Path(__file__).resolve().parents[2]


def run(place, config, **options):
    return train(config, place.settings, say=lambda text: None, **options)


class StopAfter:
    """Ends a call after so many steps."""

    def __init__(self, steps):
        self.left = steps

    def __call__(self):
        self.left -= 1
        return self.left <= 0


def weights(folder):
    return {
        f"{path.relative_to(folder)}:{name}": tensor
        for path in sorted(folder.rglob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }


def same(one, other):
    assert one.keys() == other.keys()
    return all(bool((one[name] == other[name]).all()) for name in one)


def test_a_trained_strategy_is_in_the_catalogue_and_generates(place):
    config = place.config("hybrid")
    result = run(place, config)
    assert result.finished
    assert (result.step, len(result.losses)) == (4, 4)
    assert np.isfinite(result.losses).all()
    assert set(result.trainable) == {"unet", "text_encoder", "text_encoder_2", "token"}
    spec = checkpoints.catalogue(place.settings)["hybrid"]
    assert (spec.base, spec.strategy, spec.token, spec.amplitude_encoding) == ("base", "hybrid", "<SAR>", "linear")
    from sar_gen.engine import Engine

    engine = Engine(place.settings)
    request = GenerationRequest("a <SAR> image of forest", checkpoint="base", strategy="hybrid", steps=2)
    made = [event for event in engine.generate(request) if isinstance(event, PatchReady)]
    assert made[0].amplitude.shape == (64, 64)


def test_the_loss_falls_on_what_is_seen_again_and_again(place):
    config = place.config(
        "unet-full", data={"batch": 8, "caption_dropout": 0.0}, denoiser={"steps": 80, "learning_rate": 3e-3}
    )
    losses = run(place, config).losses
    assert np.mean(losses[-20:]) < 0.8 * np.mean(losses[:10])


@pytest.mark.parametrize("strategy", ["hybrid", "unet-lora"])
@pytest.mark.parametrize("cache", ["memory", "disk", "none"])
def test_a_run_that_was_stopped_goes_on_exactly(place, strategy, cache):
    tables = {
        "data": {"cache": cache, "caption_dropout": 0.3},
        "denoiser": {"steps": 5, "accumulate": 2, "ema": 0.9, "schedule": "cosine", "warmup": 1, "noise_offset": 0.1},
    }
    whole = run(place, place.config(strategy, "whole", **tables))
    config = place.config(strategy, "pieces", **tables)
    first = run(place, config, stop=StopAfter(3))
    assert (first.finished, first.step, first.folder) == (False, 3, None)
    assert not config.output.exists()
    second = run(place, config, resume=True)
    assert second.finished
    assert second.losses == whole.losses
    assert same(weights(place.settings.checkpoints / "whole"), weights(config.output))


def test_a_budget_of_time_ends_a_call(place):
    config = place.config("unet-lora")
    assert run(place, config, minutes=0.0).step == 1
    assert run(place, config, minutes=0.0, resume=True).step == 2
    with pytest.raises(InputError, match="--resume"):
        run(place, config)
    with pytest.raises(InputError, match="other settings"):
        run(place, place.config("unet-lora", run={"seed": 1}), resume=True)
    assert run(place, config, resume=True).finished


def test_step_and_seed_alone_decide(place):
    one, other = (run(place, place.config("unet-lora", name)) for name in ("one", "other"))
    assert one.losses == other.losses
    assert run(place, place.config("unet-lora", "third", run={"seed": 1})).losses != one.losses
    assert seed_of(0, 1, 2) != seed_of(0, 2, 1)


def test_latents_and_text_kept_or_not_give_the_same_run(place):
    losses = {
        cache: run(place, place.config("unet-full", cache, data={"cache": cache})).losses
        for cache in ("none", "memory")
    }
    np.testing.assert_allclose(losses["none"], losses["memory"], rtol=1e-4)


def test_averaged_weights_are_what_is_written(place):
    plain, averaged = (
        run(place, place.config("unet-full", name, denoiser={"ema": ema}))
        for name, ema in (("plain", 0.0), ("ema", 0.999))
    )
    base = load_file(place.settings.checkpoints / "base" / "unet" / "diffusion_pytorch_model.safetensors")
    moved = {
        result.folder.name: sum(
            float((tensor - base[name.split(":")[1]]).abs().sum()) for name, tensor in weights(result.folder).items()
        )
        for result in (plain, averaged)
    }
    assert plain.losses == averaged.losses  # the average does not change the training
    assert 0 < moved["ema"] < moved["plain"]


def test_another_noise_schedule_is_written_with_the_strategy(place):
    config = place.config(
        "unet-full", denoiser={"prediction": "v_prediction", "zero_terminal_snr": True, "min_snr_gamma": 5.0}
    )
    run(place, config)
    from sar_gen.folders import read_json

    found = read_json(config.output / "scheduler" / "scheduler_config.json")
    assert (found["prediction_type"], found["rescale_betas_zero_snr"]) == ("v_prediction", True)
    assert found["timestep_spacing"] == "trailing"


def test_a_whole_pipeline_is_a_base_to_train_on(place):
    run(place, place.config("unet-full", "second-base", whole=True))
    spec = checkpoints.catalogue(place.settings)["second-base"]
    assert (spec.kind, spec.base, spec.resolution) == ("pipeline", "second-base", 64)
    result = run(place, place.config("unet-lora", "on-second", base="second-base"))
    assert checkpoints.catalogue(place.settings)["on-second"].base == "second-base"
    assert result.finished


def test_validation_logs_the_studios_measures(place):
    config = place.config(
        "unet-lora", run={"validate_every": 2, "previews": 2, "preview_steps": 2, "reference": "reference"}
    )
    run(place, config)
    lines = [line["validation"] for line in read_journal(config.work) if "validation" in line]
    assert len(lines) == 2
    assert {"wasserstein1", "glcm_contrast", "enl"} & set(lines[0]) >= {"wasserstein1", "glcm_contrast"}
    assert len(list((config.work / "previews").glob("*.png"))) == 2


def test_tensorboard_has_the_losses_and_measures(place):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = place.config(
        "unet-lora", run={"tensorboard": True, "validate_every": 4, "previews": 2, "preview_steps": 2}
    )
    result = run(place, config)
    events = EventAccumulator(str(config.work / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4]
    np.testing.assert_allclose([event.value for event in events.Scalars("loss")], result.losses, rtol=1e-6)
    assert len(events.Scalars("validation.wasserstein1")) == 1


def test_streamed_shards_are_trained_on_and_gone_on_with(place):
    from sar_gen.training.manifest import read_manifest
    from sar_gen.training.shards import write_index, write_shard

    rows = [row for row in read_manifest(place.data) if row.split == "train"]
    entries = [write_shard(place.data / f"train-{n}.tar", rows[4 * n : 4 * n + 4], place.data) for n in range(2)]
    write_index(place.data, entries)
    tables = {"data": {"manifest": None, "shards": str(place.data / "train-*.tar")}}
    whole = run(place, place.config("unet-lora", "whole", **tables))
    config = place.config("unet-lora", "pieces", **tables)
    run(place, config, stop=StopAfter(2))
    assert run(place, config, resume=True).losses == whole.losses
    with pytest.raises(InputError, match=r"data\.manifest"):
        run(place, place.config("vae-decoder", **tables))


@pytest.mark.parametrize(
    ("strategy", "tables", "words"),
    [
        ("unet-full", {"lora": {"unet": {"rank": 2}}}, "no LoRA there"),
        ("unet-lora", {"data": {"flips": ["horizontal"]}}, "data.cache"),
        ("unet-lora", {"whole": True}, "trained whole"),
        ("unet-lora", {"denoiser": {"zero_terminal_snr": True}}, "v_prediction"),
        ("unet-lora", {"base": "nothing"}, "unknown"),
        ("unet-lora", {"denoiser": {"eight_bit": True}}, "bitsandbytes"),
        ("unet-lora", {"data": {"split": "nothing"}}, "nothing"),
        ("unet-lora", {"data": {"modality": "optical"}}, "optical"),
        ("unet-lora", {"run": {"validate_every": 1, "reference": "nothing"}}, "nothing|prompts"),
    ],
)
def test_what_cannot_be_trained_is_said_before_any_work(place, strategy, tables, words):
    with pytest.raises(InputError, match=words):
        run(place, place.config(strategy, **tables))
    assert not list(place.settings.checkpoints.glob("*.work/states"))


CONFIG = """
base = "base"
strategy = "hybrid"
output = "checkpoints/{name}"
[data]
manifest = "data/manifest.jsonl"
batch = 2
[denoiser]
steps = {steps}
learning_rate = 1e-3
[run]
save_every = 2
save_type = "float32"
"""


def start(place, name, steps, *more, launch=()):
    folder = place.settings.checkpoints.parent
    path = folder / f"{name}.toml"
    path.write_text(CONFIG.format(name=name, steps=steps))
    environment = {
        **os.environ,
        "SAR_GEN_CHECKPOINTS": str(place.settings.checkpoints),
        "SAR_GEN_HOME": str(place.settings.home),
        "SAR_GEN_DEVICE": "cpu",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    command = [*(launch or (sys.executable, "-m", "sar_gen")), "train", str(path), *more]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_a_killed_run_loses_only_the_steps_since_its_last_state(place):
    """SIGKILL in the middle of a long run; the same command with --resume gives the unbroken run's weights."""
    process = start(place, "killed", 400)
    work = place.settings.checkpoints / "killed.work"
    deadline = time.monotonic() + 300
    while not list(work.glob("states/step-*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (place.settings.checkpoints / "killed").exists()
    reached = max(int(path.name.removeprefix("step-")) for path in work.glob("states/step-*"))
    assert 0 < reached < 400
    steps = reached + 3
    # The same settings but for the number of steps, which constant rates do not look at.
    text = (work / "config.json").read_text()
    (work / "config.json").write_text(text.replace('"steps": 400', f'"steps": {steps}'))
    process = start(place, "killed", steps, "--resume")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    # In a process like the other two: with another number of threads sums have other last bits.
    process = start(place, "unbroken", steps)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert same(*(weights(place.settings.checkpoints / name) for name in ("killed", "unbroken")))
    assert "killed" in out


def test_two_processes_train_one_strategy(place):
    """Data parallel on two CPU processes (gloo), started by accelerate's own launcher.

    The launcher starts several processes only where it is told of several GPUs; that they calculate on the CPU is the
    studio's own setting.
    """
    launch = (
        str(Path(sys.executable).with_name("accelerate")),
        *("launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no"),
        *("--dynamo_backend", "no", "--main_process_port", "0", "-m", "sar_gen"),
    )
    process = start(place, "two", 3, launch=launch)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert [line["step"] for line in read_journal(place.settings.checkpoints / "two.work")] == [1, 2, 3]
    spec = checkpoints.catalogue(place.settings)["two"]
    assert checkpoints.verify(spec, place.settings) == dict.fromkeys(spec.sha256, "ok")
    # Each process has patches and noise of its own, so the mean loss is not that of one process.
    alone = run(place, place.config("hybrid", "alone", denoiser={"steps": 3}))
    assert read_journal(place.settings.checkpoints / "two.work")[0]["loss"] != alone.losses[0]
