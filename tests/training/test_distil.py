import dataclasses

import pytest
import torch
from safetensors.torch import load_file

from sar_gen import checkpoints
from sar_gen.engine import Engine
from sar_gen.errors import InputError
from sar_gen.request import GenerationRequest, PatchReady
from sar_gen.training.config import check_config
from sar_gen.training.distil import (
    DistilConfig,
    distil,
    make_trajectories,
    one_step_target,
    shards,
    student_scheduler,
    student_timesteps,
)
from sar_gen.training.losses import NoiseSchedule, noise_schedule
from sar_gen.training.state import read_journal
from tests.training.test_loop import StopAfter, same, weights

V = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
}
EPSILON = {**V, "prediction_type": "epsilon", "rescale_betas_zero_snr": False}


def config(place, name="turbo", **tables):
    table = {
        "base": "base",
        "strategy": "turbo",
        "output": str(place.settings.checkpoints / name),
        "prompts": ["forest", "a river"],
        "teacher": {"steps": 4, "trajectories": 6, "batch": 4},
        "student": {"steps": 2, "updates": 4, "batch": 3, "learning_rate": 1e-3},
        "run": {"save_type": "float32", "save_every": 2},
    }
    return check_config({k: {**v, **tables[k]} if k in tables else v for k, v in table.items()}, DistilConfig, "test")


def run(place, config, **options):
    return distil(config, place.settings, say=lambda text: None, **options)


@pytest.mark.parametrize("scheduler", [V, EPSILON])
@pytest.mark.parametrize("segment", [1, 2, 3])
def test_a_ddim_step_of_diffusers_arrives_where_the_target_says(scheduler, segment):
    sampler = student_scheduler(scheduler)
    times = [*student_timesteps(scheduler, 4), -1]
    generator = torch.Generator().manual_seed(segment)
    before, after = torch.randn((2, 1, 4, 8, 8), generator=generator)
    t, s = torch.tensor([times[segment]]), torch.tensor([times[segment + 1]])
    found = one_step_target(noise_schedule(scheduler), before, after, t, s)
    sampler.set_timesteps(4)
    arrived = sampler.step(found, times[segment], before).prev_sample
    assert (arrived - after).abs().max() < 2e-5


def test_from_pure_noise_the_velocity_is_the_clean_picture_reversed():
    schedule = noise_schedule(V)
    noise, clean = torch.randn((2, 1, 4, 8, 8), generator=torch.Generator().manual_seed(0))
    a = schedule.cumulated[499].double()
    after = (a.sqrt() * clean + (1 - a).sqrt() * noise).float()
    found = one_step_target(schedule, noise, after, torch.tensor([999]), torch.tensor([499]))
    assert (found + clean).abs().max() < 1e-4


def test_the_students_timesteps_are_among_the_teachers():
    from diffusers import DPMSolverMultistepScheduler

    teacher = DPMSolverMultistepScheduler(**V, timestep_spacing="trailing")
    teacher.set_timesteps(12)
    assert student_timesteps(V, 4) == [999, 749, 499, 249]
    assert [int(t) for t in teacher.timesteps[::3]] == [999, 749, 499, 249]


def test_trajectories_end_where_the_teachers_own_pipeline_ends(place):
    from sar_gen.training.distil import encode_prompts
    from sar_gen.training.parts import find_base, load_pipeline
    from sar_gen.training.state import Clock

    chosen = config(place)
    base = find_base("base", place.settings)
    pipe = load_pipeline(base)
    texts = encode_prompts(pipe, chosen.prompts, both=True)
    side = base.spec.resolution
    made = make_trajectories(pipe, chosen, texts, 3.0, side, Clock(None), lambda text: None, lambda: False)
    assert made == 6
    kept = load_file(shards(chosen.work)[1])
    assert kept["prompts"].tolist() == [0, 1]
    stock = load_pipeline(base)
    latents = stock(
        ["forest", "a river"], latents=kept["latents"][:, 0].float(), num_inference_steps=4, guidance_scale=3.0,
        width=side, height=side, output_type="latent",
    ).images  # fmt: skip
    # the noise was kept in float16
    assert (latents - kept["latents"][:, -1].float()).abs().max() < 0.02 * latents.abs().max()


def test_a_turbo_strategy_is_in_the_catalogue_and_generates_with_its_own_steps(place):
    chosen = config(place, student={"updates": 30, "learning_rate": 3e-3})
    result = run(place, chosen)
    assert (result.trajectories, result.step, result.folder) == (6, 30, chosen.output)
    losses = [line["loss"] for line in read_journal(chosen.work)]
    assert losses[-1] < 0.7 * losses[0]
    spec = checkpoints.catalogue(place.settings)["turbo"]
    assert (spec.base, spec.strategy, spec.steps, spec.guidance) == ("base", "turbo", 2, 1.0)
    engine = Engine(place.settings)
    try:
        events = list(engine.generate(GenerationRequest("forest", checkpoint="turbo")))
        assert any(isinstance(event, PatchReady) for event in events)
        assert type(engine._holder._pipe.scheduler).__name__ == "DDIMScheduler"
    finally:
        engine.close()


def test_a_run_that_was_cut_off_twice_ends_with_the_same_weights(place):
    whole = run(place, config(place, "whole"))
    chosen = config(place, "pieces")
    first = run(place, chosen, stop=StopAfter(2))  # in the trajectories
    assert (first.folder, first.trajectories) == (None, 4)
    second = run(place, chosen, resume=True, stop=StopAfter(3))  # in the training
    assert second.folder is None
    assert 0 < second.step < 4
    third = run(place, chosen, resume=True)
    assert same(weights(whole.folder), weights(third.folder))


def test_low_rank_additions_begin_where_a_whole_student_is_and_stay_low(place):
    whole = run(place, config(place, "whole"))
    small = config(place, "small", student={"start": str(whole.folder), "rank": 2})
    small = dataclasses.replace(small, trajectories=config(place, "whole").work)
    result = run(place, small)
    assert shards(small.work) == []  # the others' trajectories are used
    base = load_file(next((place.settings.checkpoints / "base" / "unet").glob("*.safetensors")))
    tuned = load_file(next((result.folder / "unet").glob("*.safetensors")))
    assert tuned.keys() == base.keys()
    ranks = [
        int(torch.linalg.matrix_rank((tuned[name] - base[name]).flatten(1), rtol=1e-3))
        for name in base
        if base[name].ndim >= 2
    ]
    assert max(ranks) == 2
    assert sum(rank > 0 for rank in ranks) > 0.9 * len(ranks)
    again = run(place, small, resume=True)
    assert same(weights(result.folder), weights(again.folder))


def test_low_rank_additions_of_the_whole_rank_are_the_student_itself(place):
    from sar_gen.training.distil import add_low_rank
    from sar_gen.training.parts import find_base, load_pipeline

    pipe = load_pipeline(find_base("base", place.settings))
    generator = torch.Generator().manual_seed(0)
    tuned = {
        name: tensor + 0.01 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in pipe.unet.state_dict().items()
    }
    names = [name for name, parameter in pipe.unet.named_parameters() if parameter.ndim >= 2]
    layers = add_low_rank(pipe.unet, tuned, 10_000)
    assert len(layers) == len(names)
    for name in names:
        found = dict(pipe.unet.named_modules())[name.removesuffix(".weight")]
        assert (found.weight - tuned[name]).abs().max() < 1e-4


def test_it_refuses_what_it_cannot_do(place):
    with pytest.raises(InputError, match=r"multiple of student\.steps"):
        config(place, teacher={"steps": 5})
    with pytest.raises(InputError, match=r"rank needs student\.start"):
        config(place, student={"rank": 2})
    run(place, config(place), stop=StopAfter(4))
    other = dataclasses.replace(config(place), prompts=("lake",))
    with pytest.raises(InputError, match="unfinished run"):
        run(place, other)


def test_a_schedule_of_known_shares_gives_a_target_by_hand():
    schedule = NoiseSchedule(torch.tensor([0.64, 0.36]), "v_prediction")  # a, b: 0.8, 0.6; then 0.6, 0.8
    before, after = torch.full((1, 1, 1, 1), 2.0), torch.full((1, 1, 1, 1), 3.0)
    # x_s = (0.8 * 0.6 + 0.6 * 0.8) x_t + (0.6 * 0.6 - 0.8 * 0.8) v = 0.96 x_t - 0.28 v
    found = one_step_target(schedule, before, after, torch.tensor([1]), torch.tensor([0]))
    assert found.item() == pytest.approx((0.96 * 2 - 3) / 0.28, rel=1e-5)
