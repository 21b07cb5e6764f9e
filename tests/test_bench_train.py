"""The bench of training at the tiny size on a CPU: every kind of row does its real work."""

import dataclasses
import gc
import json

import pytest
import torch

from sar_gen.bench import train
from sar_gen.bench.train import ROWS, Plan, bench_train, row_of
from sar_gen.errors import InputError
from sar_gen.settings import Settings
from sar_gen.strategies import LORA

CPU = Settings(device="cpu")
TINY = Plan(size="tiny", batch=2, rounds=2, steps=1)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    out = tmp_path_factory.mktemp("bench") / "out.json"
    rows = ("hybrid", "unet-lora", "plain:unet-lora", "plain:unet-lora:encoding", "check:hybrid")
    return out, bench_train(CPU, TINY, rows=rows, out=out)


def test_the_studio_and_the_plain_recipe_train_the_same(measured):
    _, found = measured
    ours, plain = found.rows["unet-lora"], found.rows["plain:unet-lora"]
    assert ours["trained"] == plain["trained"] == found.rows["plain:unet-lora:encoding"]["trained"]
    for row in (ours, plain, found.rows["hybrid"]):
        assert row["low"] <= row["seconds"] <= row["high"]
        assert row["steps_per_second"] == pytest.approx(1 / row["seconds"])
        assert row["patches_per_second"] == pytest.approx(2 / row["seconds"])
        assert row["reserved_bytes"] is None  # that is CUDA's
    # The loss of a network that knows nothing is about the noise's variance.
    assert 0.5 < plain["first_loss"] < 2
    assert 0.5 < ours["first_loss"] < 2


def test_hybrid_trains_the_unet_both_encoders_and_the_token(measured):
    _, found = measured
    rank = LORA["text_encoder"].rank
    lora = 2 * 4 * rank * (16 + 16)  # layers, projections, and A and B of 16 x 16
    trained = found.rows["hybrid"]["trained"]
    assert (trained["text_encoder"], trained["text_encoder_2"], trained["token"]) == (lora, lora, 2 * 16)
    assert trained["unet"] > 2_000_000


def test_what_was_saved_is_loaded_bit_equal(measured):
    _, found = measured
    check = found.rows["check:hybrid"]
    assert check["equal"] == check["tensors"] > 900
    assert check["output_equal"]
    assert check["changed"] > 500
    assert found.failed == []
    assert check["bytes"] > 2 * 2_000_000


def unets():
    from diffusers import UNet2DConditionModel

    gc.collect()
    return sum(isinstance(thing, UNet2DConditionModel) for thing in gc.get_objects())


def test_a_difference_is_found_and_nothing_of_a_row_is_left(monkeypatch, tmp_path):
    """One number of what was trained changes after saving: the check says so."""
    before = unets()
    real = train._round_as_saved

    def off_by_a_bit(parts):
        real(parts)
        with torch.no_grad():
            next(iter(parts.pipe.unet.parameters()))[0, 0].mul_(1.001)

    monkeypatch.setattr(train, "_round_as_saved", off_by_a_bit)
    found = bench_train(CPU, TINY, rows=["check:token"], work=tmp_path)
    row = found.rows["check:token"]
    assert (row["tensors"] - row["equal"], row["output_equal"]) == (1, False)
    assert found.failed == ["check:token"]
    assert unets() == before


def test_rows_that_are_there_are_kept_and_those_without_time_are_named(measured):
    out, found = measured
    assert json.loads(out.read_text())["rows"] == found.rows
    again = bench_train(CPU, TINY, rows=("hybrid", "token", "unet-full"), out=out, minutes=0)
    assert again.rows == found.rows
    assert again.not_run == ("token", "unet-full")
    assert again.sentences()[-1] == "Not run: token, unet-full."
    header, *lines = again.table()
    assert [line[0] for line in lines] == [name for name in found.rows if not name.startswith("check:")]
    ratio = found.rows["unet-lora"]["steps_per_second"] / found.rows["plain:unet-lora"]["steps_per_second"]
    assert dict(zip(header, lines[1], strict=True))["steps/s to plain"] == f"{ratio:.2f}"


def test_results_of_another_plan_are_not_mixed(measured):
    out, _ = measured
    with pytest.raises(InputError, match="other batch"):
        bench_train(CPU, dataclasses.replace(TINY, batch=3), rows=["token"], out=out)
    with pytest.raises(InputError, match="not a result"):
        bench_train(CPU, TINY, rows=["token"], out=_written(out.with_name("other.json"), "[]"))


@pytest.mark.parametrize(
    "name", ["nothing", "vae-full", "base", "plain:hybrid", "plain:unet-full:encoding", "hybrid:fast", "check:token:x"]
)
def test_unknown_rows_are_refused(name):
    with pytest.raises(InputError):
        row_of(name)


def test_every_strategy_of_the_denoising_side_is_a_row():
    names = {row_of(name).strategy for name in ROWS}
    assert names >= {
        "token",
        "unet-lora",
        "unet-full",
        "unet-full+te-full",
        "unet-full+te-lora",
        "unet-lora+te-lora+token",
        "hybrid",
    }


def _written(path, text):
    path.write_text(text)
    return path
