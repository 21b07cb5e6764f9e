import pytest
import torch
from safetensors.torch import load_file

from sar_gen import checkpoints
from sar_gen.errors import InputError
from sar_gen.pipelines import PipelineHolder, Placement
from sar_gen.settings import Settings
from sar_gen.training.config import TrainingConfig, check_config
from sar_gen.training.parts import find_base, load_pipeline, lora_of, put_on, save_pipeline, save_strategy
from tests import tiny

FLOAT32 = Placement("cpu", "float32", "none", False, "for a test")
ROWS = (
    "token",
    "unet-lora",
    "unet-full",
    "unet-full+te-full",
    "unet-full+te-lora",
    "unet-lora+te-lora+token",
    "hybrid",
)


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parts")
    tiny.checkpoint(folder / "checkpoints" / "base")
    tiny.checkpoint(folder / "checkpoints" / "older", family="sd15")
    return Settings(home=folder / "home", runs=folder / "runs", checkpoints=folder / "checkpoints", device="cpu")


def config_of(settings, strategy, base="base", **more):
    output = settings.checkpoints / f"{base}-{strategy.replace('+', '-')}"
    table = {"base": base, "strategy": strategy, "output": str(output), "data": {"manifest": "m.jsonl"}, **more}
    return check_config(table, TrainingConfig, "test")


def trained(settings, config, base="base"):
    """Put the strategy on and move everything that it trains."""
    found = find_base(base, settings)
    pipe = load_pipeline(found)
    parts = put_on(pipe, found.spec.family, config.row, config, torch.float32)
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in parts.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=random))
    return pipe, parts


def picture(pipe, prompt):
    return pipe(
        prompt,
        generator=torch.Generator().manual_seed(0),
        num_inference_steps=2,
        guidance_scale=1.5,
        height=64,
        width=64,
        output_type="latent",
    ).images


@pytest.mark.parametrize("strategy", ROWS)
def test_what_the_studio_loads_is_bit_equal_to_what_was_trained(settings, strategy):
    lora = {"unet": {"rank": 4, "alpha": 8}} if "unet-lora" in strategy else {}
    config = config_of(settings, strategy, lora=lora)
    pipe, parts = trained(settings, config)
    card = {"base": "base", "strategy": strategy, "token": "<SAR>" if parts.tokens else None}
    save_strategy(config.output, parts, card, dtype=torch.float32)
    catalogue = checkpoints.catalogue(settings)
    spec = catalogue[config.output.name]  # found by dropping the folder in
    loaded = PipelineHolder().ensure(spec, catalogue, settings, placement=FLOAT32)
    prompt = "a <SAR> image" if parts.tokens else "a SAR image"
    assert torch.equal(picture(pipe, prompt), picture(loaded, prompt))
    assert not torch.equal(picture(pipe, prompt), picture(load_pipeline(find_base("base", settings)), prompt))
    assert checkpoints.verify(spec, settings) == dict.fromkeys(spec.sha256, "ok")


def test_strategies_of_the_other_family(settings):
    config = config_of(settings, "hybrid", base="older")
    pipe, parts = trained(settings, config, "older")
    assert set(parts.trained) == {"unet", "text_encoder", "token"}
    save_strategy(config.output, parts, {"base": "older", "strategy": "hybrid"}, dtype=torch.float32)
    assert set(load_file(config.output / "token.safetensors")) == {"clip_l"}
    catalogue = checkpoints.catalogue(settings)
    loaded = PipelineHolder().ensure(catalogue[config.output.name], catalogue, settings, placement=FLOAT32)
    assert torch.equal(picture(pipe, "a <SAR> image"), picture(loaded, "a <SAR> image"))


def test_what_is_frozen_stays_and_what_is_trained_is_float32(settings):
    config = config_of(settings, "hybrid")
    found = find_base("base", settings)
    pipe = load_pipeline(found)
    parts = put_on(pipe, "sdxl", config.row, config, torch.bfloat16)
    assert {p.dtype for p in parts.parameters()} == {torch.float32}
    counts = {name: sum(p.numel() for p in pipe.unet.parameters()) for name in ("unet",)}
    assert parts.counts["unet"] == counts["unet"]
    frozen = [p for name, p in pipe.text_encoder.named_parameters() if "lora_" not in name and "rows" not in name]
    assert {p.requires_grad for p in frozen} == {False}
    assert torch.bfloat16 in {p.dtype for p in frozen}
    # rank 16 on four projections of 32 x 32 in two layers: 2 * 4 * 16 * (32 + 32)
    assert parts.counts["text_encoder"] == 8192
    assert parts.counts["token"] == 2 * tiny.WIDTH


def test_a_lora_without_a_layer_is_refused(settings):
    config = config_of(settings, "unet-lora", lora={"unet": {"targets": ["to_x"]}})
    with pytest.raises(InputError, match="No layer"):
        put_on(load_pipeline(find_base("base", settings)), "sdxl", config.row, config, torch.float32)


def test_another_rank_keeps_the_scale_of_the_table(settings):
    config = config_of(settings, "unet-lora", lora={"unet": {"rank": 8}})
    lora = lora_of("unet", config.lora["unet"])
    assert lora.alpha / lora.rank == 1.0


def test_a_whole_pipeline_becomes_a_base(settings, tmp_path):
    config = config_of(settings, "unet-full")
    pipe, _ = trained(settings, config)
    weights = {name: tensor.clone() for name, tensor in pipe.unet.state_dict().items()}
    folder = tmp_path / "new-base"
    save_pipeline(folder, pipe, {"family": "sdxl", "strategy": "base", "resolution": 64}, dtype=torch.float16)
    again = find_base(str(folder), settings)
    assert again.spec.id == "new-base"
    for name, tensor in load_pipeline(again).unet.state_dict().items():
        assert torch.equal(tensor, weights[name].half().float())
        assert torch.equal(pipe.unet.state_dict()[name], weights[name])  # and the one in training is as before


def test_a_strategy_is_not_a_base(settings):
    config = config_of(settings, "token")
    _, parts = trained(settings, config)
    save_strategy(config.output, parts, {"base": "base", "strategy": "token"})
    with pytest.raises(InputError, match="train on a base"):
        find_base(config.output.name, settings)


def test_a_base_that_is_nowhere(settings):
    with pytest.raises(InputError, match="unknown"):
        find_base("nothing", settings)
