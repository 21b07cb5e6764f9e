"""The engine on tiny random pipelines: events, seeds, stopping, queueing, memory, failures."""

import dataclasses
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline

from sar_gen import checkpoints
from sar_gen import engine as engine_module
from sar_gen.amplitude import from_model, to_model
from sar_gen.engine import Engine, batch_size, decode
from sar_gen.errors import InputError
from sar_gen.pipelines import Placement
from sar_gen.request import (
    Done,
    Failed,
    GenerationRequest,
    Guide,
    Loading,
    Notice,
    PatchReady,
    Preview,
    Queued,
    Step,
    Stopped,
)
from sar_gen.settings import Settings
from tests import tiny

REQUEST = GenerationRequest("a river", checkpoint="base", seed=5, steps=3)


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    root = tmp_path_factory.mktemp("engine")
    tiny.checkpoint(root / "checkpoints" / "base")
    tiny.checkpoint(root / "checkpoints" / "old", "sd15", seed=5)
    tiny.strategy_folder(root / "checkpoints" / "tuned", root / "checkpoints" / "base", "unet-lora")
    for encoding in ("root", "db"):  # the same weights as base, another meaning of their grey
        tiny.checkpoint(root / "checkpoints" / encoding, model_encoding=encoding)
    broken = tiny.checkpoint(root / "checkpoints" / "broken")
    weights = broken / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    return Settings(home=root / "home", runs=root / "runs", checkpoints=root / "checkpoints", device="cpu")


@pytest.fixture(scope="module")
def engine(settings):
    return Engine(settings)


def run(engine, request=REQUEST, **options):
    events = list(engine.generate(request, **options))
    return events, {e.index: e.amplitude for e in events if isinstance(e, PatchReady)}


def test_events_of_a_whole_request(engine):
    events, patches = run(engine, dataclasses.replace(REQUEST, count=2, steps=4))
    kinds = [type(e) for e in events]
    assert kinds[-1] is Done
    assert Preview in kinds
    assert [e.seed for e in events if isinstance(e, PatchReady)] == [5, 6]
    steps = [e for e in events if isinstance(e, Step)]
    assert [(e.first, e.step, e.steps) for e in steps] == [(i, k, 4) for i in (0, 1) for k in (1, 2, 3, 4)]
    assert steps[-1].eta == 0
    assert all(a.dtype == np.float32 and a.shape == (64, 64) for a in patches.values())
    assert all(0 <= a.min() < a.max() <= 1 for a in patches.values())
    assert events[-1].seconds["generate"] > 0


def test_equals_the_stock_pipeline(engine, settings):
    """The same settings in diffusers' own pipeline give the same picture, bit for bit."""
    _, patches = run(engine, previews=True)
    stock = StableDiffusionXLPipeline.from_pretrained(
        settings.checkpoints / "base", dtype=torch.float32, add_watermarker=False
    )
    stock.set_progress_bar_config(disable=True)
    image = stock(
        "a river",
        negative_prompt=None,
        num_inference_steps=3,
        guidance_scale=1.5,
        width=64,
        height=64,
        generator=torch.Generator().manual_seed(5),
        output_type="np",
    ).images[0]
    np.testing.assert_allclose(patches[0], image.mean(-1), atol=1e-6)


def test_an_empty_negative_prompt_is_the_zero_branch_and_a_full_one_is_not(engine):
    _, empty = run(engine)
    _, blank = run(engine, dataclasses.replace(REQUEST, negative="   "))
    _, full = run(engine, dataclasses.replace(REQUEST, negative="sar"))
    np.testing.assert_array_equal(empty[0], blank[0])
    assert np.abs(empty[0] - full[0]).max() > 1e-4


def test_patch_of_a_batch_equals_the_same_seed_alone(engine):
    _, batch = run(engine, dataclasses.replace(REQUEST, count=3))
    for i in range(3):
        _, alone = run(engine, dataclasses.replace(REQUEST, seed=5 + i))
        np.testing.assert_array_equal(batch[i], alone[0])
    assert np.abs(batch[0] - batch[1]).max() > 0.01


def test_a_real_batch_agrees_to_rounding(engine, monkeypatch):
    """What a GPU does: several patches in one call."""
    _, one_by_one = run(engine, dataclasses.replace(REQUEST, count=3))
    monkeypatch.setattr(engine_module, "batch_size", lambda *_: 2)
    events, batched = run(engine, dataclasses.replace(REQUEST, count=3))
    assert {(e.first, e.size) for e in events if isinstance(e, Step)} == {(0, 2), (2, 1)}
    for i in range(3):
        np.testing.assert_allclose(batched[i], one_by_one[i], atol=1e-3)


def test_previews_do_not_change_the_picture(engine):
    _, with_previews = run(engine, dataclasses.replace(REQUEST, steps=8), previews=True)
    events, without = run(engine, dataclasses.replace(REQUEST, steps=8), previews=False)
    assert not any(isinstance(e, Preview) for e in events)
    np.testing.assert_array_equal(with_previews[0], without[0])


@pytest.mark.parametrize("scheduler", ["default", "dpm++", "ddim", "euler"])
def test_every_scheduler_gives_a_picture_and_leaves_the_default(engine, scheduler):
    _, before = run(engine)
    _, patches = run(engine, dataclasses.replace(REQUEST, scheduler=scheduler))
    assert patches[0].std() > 0
    _, after = run(engine)
    np.testing.assert_array_equal(before[0], after[0])


def test_stop_takes_effect_within_one_step_and_keeps_finished_patches(engine):
    cancel = threading.Event()
    seen = []
    for event in engine.generate(dataclasses.replace(REQUEST, count=3, steps=40), cancel=cancel, previews=False):
        seen.append(event)
        if isinstance(event, Step) and event.first == 1 and event.step == 2:
            cancel.set()
    assert isinstance(seen[-1], Stopped)
    assert seen[-1].finished == 1
    # Steps that were already in the queue when Stop was pressed may still come, but nothing near the 40 of the patch.
    assert max(e.step for e in seen if isinstance(e, Step) and e.first == 1) < 20
    _, patches = run(engine)
    assert len(patches) == 1


def test_leaving_the_iterator_stops_the_work(engine):
    events = engine.generate(dataclasses.replace(REQUEST, count=50, steps=40))
    assert any(isinstance(event, Step) for event in (next(events) for _ in range(10)))
    events.close()
    started = time.monotonic()
    assert run(engine)[1]
    assert time.monotonic() - started < 20


def test_a_second_request_waits_its_turn_and_can_be_stopped_while_waiting(engine):
    cancel = threading.Event()
    first = engine.generate(dataclasses.replace(REQUEST, count=60, steps=50), cancel=cancel)
    next(first)
    second_cancel = threading.Event()
    second = engine.generate(REQUEST, cancel=second_cancel)
    assert next(second) == Queued(1)
    second_cancel.set()
    assert list(second) == [Stopped(0)]
    third = engine.generate(REQUEST)
    assert next(third) == Queued(1)
    cancel.set()
    assert isinstance(list(first)[-1], Stopped)
    assert isinstance(list(third)[-1], Done)


def test_a_stopped_request_is_followed_by_any_thread(engine):
    """A web server takes each step of an iterator on whichever thread is free; none may be left holding the lock."""

    def on_a_new_thread(work):
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(work).result(timeout=20)

    first_cancel, second_cancel = threading.Event(), threading.Event()
    first = engine.generate(dataclasses.replace(REQUEST, count=60, steps=50), cancel=first_cancel)
    on_a_new_thread(lambda: next(first))
    second = engine.generate(REQUEST, cancel=second_cancel)
    assert on_a_new_thread(lambda: next(second)) == Queued(1)
    second_cancel.set()
    assert on_a_new_thread(lambda: next(second)) == Stopped(0)
    assert on_a_new_thread(lambda: list(second)) == []
    first_cancel.set()
    assert isinstance(on_a_new_thread(lambda: list(first))[-1], Stopped)


def test_switching_strategy_and_family(engine):
    _, base = run(engine)
    events, tuned = run(engine, dataclasses.replace(REQUEST, strategy="unet-lora"))
    assert any(isinstance(e, Loading) and "LoRA" in e.message for e in events)
    assert engine.identity()["strategy"] == "unet-lora"
    assert np.abs(tuned[0] - base[0]).max() > 1e-4
    assert run(engine, dataclasses.replace(REQUEST, checkpoint="old"))[1][0].shape == (64, 64)
    np.testing.assert_array_equal(run(engine)[1][0], base[0])


def test_a_guide_starts_from_the_drawing(engine):
    image = np.full((64, 64, 3), 255, np.uint8)
    image[:, 24:40] = (31, 119, 180)
    guide = Guide("sketch", image)
    from sar_gen.guides import load_palette

    image[:, 24:40] = load_palette().classes[0].colour
    events, weak = run(engine, dataclasses.replace(REQUEST, guide=guide, strength=0.2, steps=10))
    _, strong = run(engine, dataclasses.replace(REQUEST, guide=guide, strength=1.0, steps=10))
    assert {e.steps for e in events if isinstance(e, Step)} == {2}
    assert np.abs(weak[0] - strong[0]).max() > 1e-3


def test_a_long_prompt_says_what_is_not_used(engine):
    prompt = "sar " * 80 + "tail"
    events, _ = run(engine, dataclasses.replace(REQUEST, prompt=prompt))
    notices = [e.message for e in events if isinstance(e, Notice)]
    assert len(notices) == 1
    assert "longer than the text encoder's 77" in notices[0]
    assert notices[0].endswith("tail'.")


def test_out_of_memory_is_tried_once_more_lighter_then_names_the_knob(engine, monkeypatch):
    calls = []

    def hungry(self, *args):
        calls.append(args)
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Engine, "_denoise", hungry)
    events, _ = run(engine)
    assert len(calls) == 2
    assert any(isinstance(e, Notice) and "lighter" in e.message for e in events)
    assert isinstance(events[-1], Failed)
    assert "--device cpu" in events[-1].message
    monkeypatch.undo()
    assert isinstance(run(engine)[0][-1], Done)


def test_out_of_memory_once_recovers(engine, monkeypatch):
    real = Engine._denoise
    failed = []

    def once(self, *args):
        if not failed:
            failed.append(True)
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, *args)

    monkeypatch.setattr(Engine, "_denoise", once)
    events, patches = run(engine)
    assert isinstance(events[-1], Done)
    assert 0 in patches


def test_bad_requests_raise_before_any_work(engine):
    for request, sentence in [
        (dataclasses.replace(REQUEST, prompt=""), "prompt is empty"),
        (dataclasses.replace(REQUEST, checkpoint="none"), "unknown"),
        (dataclasses.replace(REQUEST, strategy="hybrid"), "hybrid"),
        (dataclasses.replace(REQUEST, guide=Guide("sketch", np.full((64, 64, 3), 255, np.uint8))), "drawing|empty"),
    ]:
        with pytest.raises(InputError, match=sentence):
            engine.generate(request)


def test_truncated_weights_are_one_sentence_and_the_engine_goes_on(engine):
    try:
        events = list(engine.generate(dataclasses.replace(REQUEST, checkpoint="broken")))
        message = events[-1].message
        assert isinstance(events[-1], Failed)
    except InputError as error:
        message = str(error)
    assert "diffusion_pytorch_model.safetensors" in message
    assert "\n" not in message
    assert isinstance(run(engine)[0][-1], Done)


def test_an_unexpected_error_is_a_sentence_not_a_crash(engine, monkeypatch):
    def broken(*_):
        raise RuntimeError("something\nodd")

    monkeypatch.setattr(engine_module, "decode", broken)
    events, _ = run(engine, previews=False)
    assert events[-1] == Failed("RuntimeError: something odd", 0)
    monkeypatch.undo()
    assert isinstance(run(engine)[0][-1], Done)


def test_nan_from_the_decoder_is_refused(settings):
    pipe = StableDiffusionXLPipeline.from_pretrained(settings.checkpoints / "base", dtype=torch.float32)
    with pytest.raises(engine_module.SarGenError, match="not numbers"):
        decode(pipe, torch.full((1, 4, 8, 8), float("nan")), "mean")


def test_bf16_weights_decode_in_float32_and_come_back(settings):
    pipe = StableDiffusionXLPipeline.from_pretrained(settings.checkpoints / "base", dtype=torch.bfloat16)
    before = {name: value.clone() for name, value in pipe.vae.state_dict().items()}
    channels = pipe.vae.config.latent_channels
    latents = torch.randn(1, channels, 8, 8, generator=torch.Generator().manual_seed(0))
    amplitude = decode(pipe, latents.bfloat16(), "mean")
    # bfloat16 has 8 significant bits: a float32 picture holds many more distinct values than it could.
    assert len(np.unique(amplitude)) > amplitude.size // 2
    after = pipe.vae.state_dict()
    assert all(value.dtype == torch.bfloat16 for value in after.values() if value.is_floating_point())
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_warm_up_tells_how_it_goes(settings):
    engine = Engine(settings)
    engine.warm_up("base")
    deadline = time.monotonic() + 60
    while engine.state.status != "ready" and time.monotonic() < deadline:
        time.sleep(0.05)
    assert engine.state.status == "ready"
    assert engine.state.device == "cpu"
    assert engine.state.dtype == "float32"
    engine.warm_up("nothing")
    while engine.state.status != "failed" and time.monotonic() < deadline:
        time.sleep(0.05)
    assert "nothing" in engine.state.message
    engine.free()
    assert engine.state.status == "idle"


def test_batch_size_by_device_and_size():
    def placed(device, offload="none"):
        return Placement(device, "bfloat16", offload, False, "")

    assert batch_size(placed("cpu"), 64 * 64) == 1
    assert batch_size(placed("cuda"), 1024 * 1024) == 4
    assert batch_size(placed("cuda"), 256 * 256) == 16
    assert batch_size(placed("cuda:1"), 2048 * 2048) == 1
    assert batch_size(placed("cuda", "model"), 256 * 256) == 1


def test_noise_of_a_seed_is_the_same_in_every_dtype(settings):
    """bfloat16 holds 8 significant bits of the float32 numbers; torch's own bfloat16 draw gives unrelated ones."""
    draws = {}
    for dtype in (torch.float32, torch.bfloat16):
        pipe = StableDiffusionXLPipeline.from_pretrained(settings.checkpoints / "base", dtype=dtype)
        generators = [torch.Generator().manual_seed(seed) for seed in (5, 6)]
        draws[dtype] = engine_module.initial_noise(pipe, generators, 64, 64)
        assert draws[dtype].dtype == dtype
    assert draws[torch.float32].shape == (2, pipe.unet.config.in_channels, 8, 8)
    torch.testing.assert_close(draws[torch.bfloat16].float(), draws[torch.float32], rtol=2**-8, atol=0)


@pytest.mark.parametrize("encoding", ["root", "db"])
def test_a_model_of_another_grey_gives_linear_amplitude(settings, encoding):
    engine = Engine(settings)  # the others' may hold the base lightly, after running out of memory
    plain_events, plain = run(engine, dataclasses.replace(REQUEST, steps=4))
    events, patches = run(engine, dataclasses.replace(REQUEST, steps=4, checkpoint=encoding))
    assert np.array_equal(patches[0], from_model(plain[0], encoding))
    assert not np.array_equal(patches[0], plain[0])
    looks, plain_looks = ([e.amplitude for e in some if isinstance(e, Preview)] for some in (events, plain_events))
    assert looks
    for look, plain_look in zip(looks, plain_looks, strict=True):
        assert np.array_equal(look, from_model(plain_look, encoding))


@pytest.mark.parametrize("encoding", ["linear", "root", "db"])
def test_a_guide_reaches_the_vae_in_the_grey_of_the_model(engine, settings, encoding, monkeypatch):
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    picture[...] = picture[..., :1]
    guide = Guide("sar", picture)
    request = dataclasses.replace(
        REQUEST, checkpoint="base" if encoding == "linear" else encoding, guide=guide, strength=0.5
    )
    seen = []
    original = engine_module.guide_tensor
    monkeypatch.setattr(engine_module, "guide_tensor", lambda *a: (seen.append(original(*a)), seen[-1])[1])
    events, patches = run(engine, request, previews=False)
    assert isinstance(events[-1], Done)
    assert patches[0].shape == (64, 64)
    expected = to_model(picture[..., 0].astype(np.float32) / 255, encoding)
    assert seen[0].dtype == torch.float32
    assert seen[0].shape == (1, 3, 64, 64)
    for channel in seen[0][0].numpy():
        np.testing.assert_allclose(channel, expected, atol=1e-6)


def test_a_strategy_works_on_the_grey_of_its_base_unless_it_says_otherwise(settings, tmp_path):
    base = tiny.checkpoint(tmp_path / "checkpoints" / "base", model_encoding="db")
    tiny.strategy_folder(tmp_path / "checkpoints" / "same", base, "unet-lora")
    other = tiny.strategy_folder(tmp_path / "checkpoints" / "other", base, "unet-lora")
    tiny.write_card(other, id="other", base="base", strategy="unet-lora", model_encoding="root")
    unknown = tiny.strategy_folder(tmp_path / "checkpoints" / "unknown", base, "unet-lora")
    tiny.write_card(unknown, id="unknown", base="base", strategy="unet-lora", model_encoding="log")
    mixed = tiny.strategy_folder(tmp_path / "checkpoints" / "mixed", base, "unet-lora")
    tiny.write_card(mixed, id="mixed", base="base", strategy="unet-lora", amplitude_encoding="db")
    found, problems = checkpoints.scan(dataclasses.replace(settings, checkpoints=tmp_path / "checkpoints"))
    assert {name: found[name].model_encoding for name in ("base", "same", "other")} == {
        "base": "db",
        "same": "db",
        "other": "root",
    }
    assert found["sdxl-base"].model_encoding == "linear"
    assert len(problems) == 2
    assert "set amplitude_encoding = 'linear' too" in problems[0]
    assert "model_encoding = 'log'" in problems[1]
