"""The engine on tiny random pipelines: events, seeds, stopping, queueing, memory, failures."""

import dataclasses
import hashlib
import re
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from PIL import Image

from sar_gen import checkpoints, speed, steering
from sar_gen import engine as engine_module
from sar_gen.amplitude import from_model, to_model
from sar_gen.compiling import Compiler
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
    tiny.network(root / "checkpoints" / "net", root / "checkpoints" / "base", warnings=["It is a test."])
    tiny.network(root / "checkpoints" / "other-net", root / "checkpoints" / "base", seed=30, layout="picture")
    tiny.network(root / "checkpoints" / "old-net", root / "checkpoints" / "old")
    for encoding in ("root", "db"):  # the same weights as base, another meaning of their grey
        tiny.checkpoint(root / "checkpoints" / encoding, model_encoding=encoding)
    broken = tiny.checkpoint(root / "checkpoints" / "broken")
    weights = broken / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    return Settings(home=root / "home", runs=root / "runs", checkpoints=root / "checkpoints", device="cpu")


@pytest.fixture(scope="module")
def engine(settings):
    return Engine(settings)


def guide(kind="map", way="net", seed=0, side=64, **options):
    """A guide by a network: a map of blocks of classes, or a random picture of 8 x 8 pixels."""
    from sar_gen.guides import render

    random = np.random.default_rng(seed)
    if kind == "map":
        image = render(random.integers(0, 6, (8, 8)).astype(np.uint8).repeat(side // 8, 0).repeat(side // 8, 1))
    else:
        image = random.integers(0, 256, (16, 16, 3)).astype(np.uint8)
        image = image if kind == "optical" else image[..., :1].repeat(3, 2)
    return Guide(kind, image, way=way, **options)


def guided(*guides, **options):
    return dataclasses.replace(REQUEST, guides=guides, **options)


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


@pytest.mark.parametrize(
    ("steps", "looks"), [(2, [1]), (4, [2]), (8, [2, 4, 6]), (20, [5, 10, 15]), (50, [12, 24, 36, 48])]
)
def test_a_patch_of_few_steps_has_few_previews(steps, looks):
    every = engine_module.preview_steps(steps)
    assert [step for step in range(1, steps) if step % every == 0] == looks


def stock_picture(settings, dtype=torch.float32, **options):
    stock = StableDiffusionXLPipeline.from_pretrained(
        settings.checkpoints / "base", dtype=dtype, add_watermarker=False
    )
    stock.set_progress_bar_config(disable=True)
    given = {
        "num_inference_steps": 3,
        "guidance_scale": 1.5,
        "width": 64,
        "height": 64,
        "output_type": "np",
        **options,
    }
    image = stock("a river", negative_prompt=None, generator=torch.Generator().manual_seed(5), **given).images[0]
    return image.mean(-1)


def test_equals_the_stock_pipeline(engine, settings):
    """The plain profile's settings in diffusers' own pipeline give the same picture, to the last bits."""
    _, patches = run(engine, dataclasses.replace(REQUEST, profile="plain"), previews=True)
    np.testing.assert_allclose(patches[0], stock_picture(settings), atol=1e-6)


@pytest.mark.parametrize("more", [{}, {"fused_projections": "on"}, {"channels_last": "on"}, {"wide_sampler": False}])
def test_exact_in_float32_equals_the_stock_pipeline(engine, settings, more):
    request = dataclasses.replace(REQUEST, profile="exact", switches={"precision": "float32", **more})
    _, patches = run(engine, request)
    np.testing.assert_allclose(patches[0], stock_picture(settings), atol=1e-5)


def test_exact_in_16_bits_is_as_near_to_float32_as_the_stock_pipeline_in_16_bits_and_repeats_itself(
    engine, settings, monkeypatch
):
    monkeypatch.setattr(speed, "bfloat16_is_native", lambda: True)
    wide = stock_picture(settings)
    request = dataclasses.replace(REQUEST, profile="exact")
    _, patches = run(engine, request)
    assert engine.identity()["placement"]["unet"] == "bfloat16"
    mine, theirs = (np.abs(one - wide) for one in (patches[0], stock_picture(settings, torch.bfloat16)))
    assert 0 < mine.max() <= 1.5 * theirs.max()
    assert mine.mean() <= theirs.mean()
    np.testing.assert_array_equal(run(engine, request)[1][0], patches[0])
    monkeypatch.setattr(speed, "bfloat16_is_native", lambda: False)
    _, narrow = run(engine, request)
    np.testing.assert_allclose(narrow[0], wide, atol=1e-5)
    assert engine.identity()["placement"]["unet"] is None


def test_fast_is_near_and_makes_fewer_steps(engine):
    request = dataclasses.replace(REQUEST, steps=None, guidance=3.0)
    events, plain = run(engine, dataclasses.replace(request, profile="plain"))
    whole = sum(isinstance(event, Step) for event in events)
    events, fast = run(engine, dataclasses.replace(request, profile="fast"))
    assert sum(isinstance(event, Step) for event in events) == round(0.8 * whole)
    assert 0 < np.abs(fast[0] - plain[0]).mean() < 0.1


@pytest.mark.parametrize(
    "switches",
    [{"reuse": 2}, {"guidance_start": 0.4, "guidance_end": 0.7}, {"decoder": "narrow"}, {"graphs": True}],
)
def test_every_switch_goes_with_guides_large_scenes_and_the_other_family(engine, switches):
    for request in (
        guided(guide(), steps=4),
        dataclasses.replace(REQUEST, width=128, height=96),
        dataclasses.replace(REQUEST, checkpoint="old"),
        dataclasses.replace(REQUEST, checkpoint="tuned", count=2),
    ):
        events, patches = run(engine, dataclasses.replace(request, switches=switches, guidance=3.0))
        assert isinstance(events[-1], Done)
        assert all(np.isfinite(patch).all() for patch in patches.values())


def test_compiling_begins_with_the_warm_up_is_announced_and_is_used_from_the_next_picture_on(settings, monkeypatch):
    """What a GPU does, on a CPU and by a backend that is quick to compile."""
    monkeypatch.setattr(engine_module, "is_on", lambda where, cuda: where != "off")
    engine = Engine(settings)
    engine._compiler = compiler = Compiler(say=engine._announce, backend="aot_eager")
    try:
        engine.warm_up("base")
        eager = run(engine, dataclasses.replace(REQUEST, switches={"compiled": "off"}))[1][0]
        engine.wait_compiled(300)
        assert compiler.failure is None
        ready = compiler.ready
        assert ready > 4
        assert "The denoiser is compiled" in engine.state.message
        compiled = run(engine)[1][0]
        engine.wait_compiled(300)
        assert compiler.ready == ready  # the rehearsal had the shapes of the request
        np.testing.assert_allclose(compiled, eager, atol=0.01)
        tuned = run(engine, dataclasses.replace(REQUEST, checkpoint="tuned"))  # its LoRA layers are eager for now
        assert isinstance(tuned[0][-1], Done)
    finally:
        engine.close()


def test_the_text_of_a_prompt_is_computed_once_for_a_strategy(engine, monkeypatch):
    computed = []
    plain = engine_module.encode_text
    monkeypatch.setattr(engine_module, "encode_text", lambda *given: (computed.append(given), plain(*given))[1])
    engine._texts.clear()
    for request in (REQUEST, dataclasses.replace(REQUEST, seed=9, count=2), dataclasses.replace(REQUEST, steps=2)):
        run(engine, request)
    assert len(computed) == 1
    run(engine, dataclasses.replace(REQUEST, negative="sar"))
    run(engine, dataclasses.replace(REQUEST, checkpoint="tuned"))
    assert len(computed) == 3


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
    events, weak = run(engine, dataclasses.replace(REQUEST, guides=(guide,), strength=0.2, steps=10))
    _, strong = run(engine, dataclasses.replace(REQUEST, guides=(guide,), strength=1.0, steps=10))
    assert {e.steps for e in events if isinstance(e, Step)} == {2}
    assert np.abs(weak[0] - strong[0]).max() > 1e-3


def test_a_long_prompt_says_what_is_not_used(engine):
    prompt = "sar " * 80 + "tail"
    events, _ = run(engine, dataclasses.replace(REQUEST, prompt=prompt))
    notices = [e.message for e in events if isinstance(e, Notice)]
    assert len(notices) == 1
    assert "longer than the text encoder's 77" in notices[0]
    assert notices[0].endswith("tail'.")


@pytest.mark.parametrize("kept", [False, True])
def test_out_of_memory_is_tried_once_more_lighter_then_names_the_knob(engine, monkeypatch, kept):
    """What is kept beside the checkpoint goes first, and the same mode is tried once more."""
    run(engine)
    engine._holder.free_kept()
    if kept:
        for checkpoint in ("old", "base"):
            run(engine, dataclasses.replace(REQUEST, checkpoint=checkpoint))
        assert engine._holder.kept["memory"] > 0
    calls, lights = [], []
    load = Engine._load
    monkeypatch.setattr(Engine, "_load", lambda self, *args: (lights.append(args[-1]), load(self, *args))[1])

    def hungry(self, *args):
        calls.append(args)
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Engine, "_denoise", hungry)
    events, _ = run(engine)
    assert lights == ([False, False, True] if kept else [False, True])
    assert len(calls) == len(lights)
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
        (
            dataclasses.replace(REQUEST, guides=(Guide("sketch", np.full((64, 64, 3), 255, np.uint8)),)),
            "drawing is empty",
        ),
        (dataclasses.replace(REQUEST, guides=(guide("map", way="nothing"),)), "no network 'nothing'"),
        (dataclasses.replace(REQUEST, guides=(guide("map", way="old-net"),)), "they never mix"),
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
        REQUEST, checkpoint="base" if encoding == "linear" else encoding, guides=(guide,), strength=0.5
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


# Networks that read guides


@pytest.mark.parametrize("kind", ["map", "optical", "sar"])
def test_a_network_steers_and_without_weight_it_does_not(engine, kind):
    _, plain = run(engine)
    events, steered = run(engine, guided(guide(kind)))
    _, other = run(engine, guided(guide(kind, seed=1)))
    _, off = run(engine, guided(guide(kind, weight=0.0)))
    np.testing.assert_array_equal(off[0], plain[0])
    assert np.abs(steered[0] - plain[0]).max() > 1e-3
    assert np.abs(steered[0] - other[0]).max() > 1e-4  # it is this guide that steers
    notices = [e.message for e in events if isinstance(e, Notice)]
    assert len(notices) == 2
    assert notices[1] == "It is a test."
    np.testing.assert_array_equal(run(engine, guided(guide(kind)))[1][0], steered[0])
    np.testing.assert_array_equal(run(engine)[1][0], plain[0])


def test_a_guided_request_equals_the_stock_controlnet_pipeline(engine, settings):
    from diffusers import ControlNetModel, StableDiffusionXLControlNetPipeline

    asked = guided(guide("optical", "other-net", weight=0.7, start=0.25, end=0.75), steps=4, profile="plain")
    _, patches = run(engine, asked)
    folder = settings.checkpoints
    stock = StableDiffusionXLControlNetPipeline.from_pretrained(
        folder / "base", controlnet=ControlNetModel.from_pretrained(folder / "other-net"), add_watermarker=False
    )
    stock.set_progress_bar_config(disable=True)
    picture = Image.fromarray(asked.guides[0].image).resize((64, 64), Image.Resampling.BICUBIC)
    image = stock(
        "a river",
        image=torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 255,
        controlnet_conditioning_scale=0.7,
        control_guidance_start=0.25,
        control_guidance_end=0.75,
        num_inference_steps=4,
        guidance_scale=1.5,
        generator=torch.Generator().manual_seed(5),
        output_type="np",
    ).images[0]
    np.testing.assert_allclose(patches[0], image.mean(-1), atol=1e-6)


def test_a_guide_acts_from_its_start_to_its_end(engine):
    steps = {"steps": 4}
    _, plain = run(engine, dataclasses.replace(REQUEST, **steps))
    _, whole = run(engine, guided(guide(), **steps))
    _, late = run(engine, guided(guide(start=0.5), **steps))
    _, early = run(engine, guided(guide(end=0.5), **steps))
    _, never = run(engine, guided(guide(end=0.2), **steps))  # not one of four steps lies within a fifth of them
    np.testing.assert_array_equal(never[0], plain[0])
    pictures = [plain[0], whole[0], late[0], early[0]]
    for i, one in enumerate(pictures):
        assert all(np.abs(one - another).max() > 1e-4 for another in pictures[i + 1 :])


def test_two_guides_add_up(engine):
    one, two = guide("map"), guide("optical", "other-net", weight=0.5)
    _, both = run(engine, guided(one, two))
    _, turned = run(engine, guided(two, one))
    np.testing.assert_array_equal(both[0], turned[0])
    for alone in (one, two):
        assert np.abs(run(engine, guided(alone))[1][0] - both[0]).max() > 1e-4
    # A network's part is proportional to its weight: twice half of it is the whole.
    half = guide("map", weight=0.5)
    np.testing.assert_allclose(run(engine, guided(half, half))[1][0], run(engine, guided(one))[1][0], atol=1e-5)


def test_a_guided_patch_of_a_batch_equals_the_same_seed_alone(engine):
    _, batch = run(engine, guided(guide(), count=3))
    _, alone = run(engine, guided(guide(), seed=7))
    np.testing.assert_array_equal(batch[2], alone[0])
    assert np.abs(batch[0] - batch[2]).max() > 0.01


def test_a_real_batch_with_a_guide_agrees_to_rounding(engine, monkeypatch):
    _, one_by_one = run(engine, guided(guide(), count=2))
    monkeypatch.setattr(engine_module, "batch_size", lambda *_: 2)
    _, batched = run(engine, guided(guide(), count=2))
    for i in range(2):
        np.testing.assert_allclose(batched[i], one_by_one[i], atol=1e-3)


def test_the_identity_names_the_networks_in_use_by_their_hash(engine, settings):
    name = "diffusion_pytorch_model.safetensors"
    run(engine, guided(guide(), guide("optical", "other-net")))
    assert engine.identity()["guides"] == {
        folder: {name: hashlib.sha256((settings.checkpoints / folder / name).read_bytes()).hexdigest()}
        for folder in ("net", "other-net")
    }
    run(engine, guided(guide(), guide("optical", "other-net", weight=0.0)))
    assert set(engine.identity()["guides"]) == {"net"}
    run(engine)
    assert "guides" not in engine.identity()


def test_networks_work_with_strategies_and_of_another_family(engine):
    tuned = dataclasses.replace(REQUEST, strategy="unet-lora")
    _, plain = run(engine, tuned)
    _, steered = run(engine, dataclasses.replace(tuned, guides=(guide(),)))
    assert np.abs(steered[0] - plain[0]).max() > 1e-3
    old = dataclasses.replace(REQUEST, checkpoint="old")
    _, plain = run(engine, old)
    _, steered = run(engine, dataclasses.replace(old, guides=(guide(way="old-net"),)))
    assert np.abs(steered[0] - plain[0]).max() > 1e-3


def test_a_network_whose_file_changed_is_loaded_anew(settings, tmp_path):
    shutil.copytree(settings.checkpoints / "base", tmp_path / "base")
    folder = tiny.network(tmp_path / "net", tmp_path / "base")
    engine = Engine(dataclasses.replace(settings, checkpoints=tmp_path, home=tmp_path / "home"))
    _, before = run(engine, guided(guide()))
    tiny.network(folder, tmp_path / "base", seed=77)
    _, after = run(engine, guided(guide()))
    assert np.abs(before[0] - after[0]).max() > 1e-4
    engine.close()


def test_image_to_image_equals_the_stock_pipeline(engine, settings):
    from diffusers import StableDiffusionXLImg2ImgPipeline

    from sar_gen.guides import prepare_guide

    start = guide("map", way="image-to-image")
    _, patches = run(engine, guided(start, steps=6, strength=0.5, profile="plain"))
    stock = StableDiffusionXLImg2ImgPipeline.from_pretrained(settings.checkpoints / "base", add_watermarker=False)
    stock.set_progress_bar_config(disable=True)
    grey = prepare_guide(start, 64, 64, 5).start
    image = stock(
        "a river",
        image=torch.from_numpy(grey)[None, None].repeat(1, 3, 1, 1),
        strength=0.5,
        num_inference_steps=6,
        guidance_scale=1.5,
        generator=torch.Generator().manual_seed(5),
        output_type="np",
    ).images[0]
    np.testing.assert_allclose(patches[0], image.mean(-1), atol=1e-6)


# Scenes larger than the checkpoint's size


def test_a_large_scene_has_the_size_asked_for_and_is_the_same_again(engine):
    scene = dataclasses.replace(REQUEST, width=160, height=96)
    events, first = run(engine, scene)
    assert first[0].shape == (96, 160)
    assert first[0].dtype == np.float32
    assert 0 <= first[0].min() < first[0].max() <= 1
    notices = [e.message for e in events if isinstance(e, Notice)]
    assert len(notices) == 1
    assert re.fullmatch(
        r"The scene of 160 x 96 pixels is larger than the checkpoint's 64: it is made of some \d+ overlapping windows "
        r"a step\.",
        notices[0],
    )
    assert not any("windows" in e.message for e in run(engine)[0] if isinstance(e, Notice))
    np.testing.assert_array_equal(run(engine, scene)[1][0], first[0])
    _, batch = run(engine, dataclasses.replace(scene, seed=4, count=2))
    np.testing.assert_array_equal(batch[1], first[0])
    assert np.abs(batch[0] - first[0]).max() > 0.01
    # It is smooth over its windows: a seam would show as a jump along a line, far above the mean step of its rows.
    steps = np.abs(np.diff(first[0], axis=1)).mean(axis=0)
    assert steps.max() < 3 * np.median(steps)


def test_a_large_scene_follows_its_guide_where_it_is(engine):
    """The right half of the map is another one: the left of the scene changes less than the right."""
    scene = {"width": 192, "height": 64}
    images = [guide(seed=seed).image for seed in (0, 1, 2)]
    one, other = (np.concatenate([images[0], images[k], images[k]], axis=1) for k in (1, 2))
    _, plain = run(engine, dataclasses.replace(REQUEST, **scene))
    found = [run(engine, guided(Guide("map", image, way="net"), **scene))[1][0] for image in (one, other)]
    assert found[0].shape == (64, 192)
    assert np.abs(found[0] - plain[0]).max() > 1e-3
    difference = np.abs(found[0] - found[1])
    assert difference[:, :16].mean() < 0.2 * difference[:, 128:].mean()


def test_stop_takes_effect_between_two_windows_of_a_large_scene(engine, monkeypatch):
    _, before = run(engine)
    scene = dataclasses.replace(REQUEST, width=512, height=512)
    cancel, windows, decoded = threading.Event(), [], []
    predict, decode_part = steering._predict, engine_module.decode

    def counted(*arguments):
        windows.append(arguments)
        if len(windows) == 5:
            cancel.set()
        return predict(*arguments)

    monkeypatch.setattr(steering, "_predict", counted)
    events, patches = run(engine, scene, cancel=cancel)
    assert len(windows) == 5  # of some hundred of the first step alone
    assert patches == {}
    assert isinstance(events[-1], Stopped)
    assert events[-1].finished == 0
    assert not any(isinstance(e, Step) for e in events)

    cancel.clear()
    monkeypatch.setattr(steering, "_predict", predict)
    monkeypatch.setattr(
        engine_module, "decode", lambda *a: (decoded.append(a), len(decoded) == 3 and cancel.set(), decode_part(*a))[2]
    )
    events, patches = run(
        engine, dataclasses.replace(scene, width=256, height=256, steps=1), cancel=cancel, previews=False
    )
    assert len(decoded) == 3  # of 49
    assert patches == {}
    assert isinstance(events[-1], Stopped)
    monkeypatch.undo()
    np.testing.assert_array_equal(run(engine)[1][0], before[0])


def test_image_to_image_makes_large_scenes_too(engine):
    start = guide("sar", way="image-to-image", side=128)
    events, patches = run(engine, guided(start, width=128, height=64, strength=0.4, steps=5))
    assert patches[0].shape == (64, 128)
    assert {e.steps for e in events if isinstance(e, Step)} == {2}


def test_a_guide_that_acts_in_no_step_is_named() -> None:
    """Of two steps, 0.1 to 0.6 holds neither 0 to 0.5 nor 0.5 to 1."""
    from sar_gen.engine import idle_notices

    guide = Guide("map", np.zeros((8, 8, 3), np.uint8), way="net", start=0.1, end=0.6)
    request = dataclasses.replace(REQUEST, guides=(guide,), steps=2)
    assert "none of the 2 steps" in idle_notices(request)[0]
    assert idle_notices(dataclasses.replace(request, steps=4)) == []
    assert idle_notices(dataclasses.replace(request, guides=(dataclasses.replace(guide, way="image-to-image"),))) == []
