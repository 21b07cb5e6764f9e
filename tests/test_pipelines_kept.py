"""What is kept beside the checkpoint in use: copies of parts, LoRA layers, other bases; and that it goes."""

from __future__ import annotations

import dataclasses
import gc
import weakref

import pytest
import torch
from safetensors.torch import load_file, save_file

from sar_gen import checkpoints, pipelines
from sar_gen.deltas import make_deltas
from sar_gen.pipelines import PipelineHolder, Placement
from sar_gen.settings import Settings
from tests import tiny

PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")
WAYS = ("full", "delta", "lora-a", "lora-b", "lora-c", "hybrid", "decoder")


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """Three bases, and strategies on the first: whole parts, deltas, LoRAs of one shape (a, b) and of another (c)."""
    root = tmp_path_factory.mktemp("kept")
    folder = root / "checkpoints"
    base = tiny.checkpoint(folder / "base")
    tiny.checkpoint(folder / "other", seed=6)
    tiny.checkpoint(folder / "old", "sd15", seed=5)
    for name, strategy in (("full", "unet-full+te-full"), ("hybrid", "hybrid"), ("decoder", "vae-decoder-lora")):
        tiny.strategy_folder(folder / name, base, strategy, seed=len(name))
    tiny.strategy_folder(root / "whole" / "delta", base, "unet-full", seed=40)
    # Half of the UNet is the base's: the delta leaves it out.
    tuned, whole = load_file(base / "unet" / tiny.WEIGHTS["unet"]), root / "whole" / "delta" / "unet"
    moved = load_file(whole / tiny.WEIGHTS["unet"])
    tuned |= {name: tensor for name, tensor in moved.items() if name.startswith(("down_blocks.", "mid_block."))}
    save_file(tuned, whole / tiny.WEIGHTS["unet"])
    make_deltas(base, root / "whole" / "delta", folder / "delta", bits=8)
    for name, parts, rank in (("a", PARTS, 2), ("b", PARTS, 2), ("c", ("unet",), 4)):
        lora = tiny.add_lora(folder / f"lora-{name}", base, set(parts) - {"vae"}, rank=rank, seed=ord(name))
        tiny.write_card(lora.parent, id=lora.parent.name, base="base", strategy="unet-lora")
    return Settings(home=root / "home", runs=root / "runs", checkpoints=folder, device="cpu", keep_gb=1.0)


@pytest.fixture(scope="module")
def catalogue(settings):
    return checkpoints.catalogue(settings)


@pytest.fixture
def holder():
    holder = PipelineHolder()
    yield holder
    holder.free()


@pytest.fixture(scope="module")
def fresh(settings, catalogue):
    """The weights of each checkpoint, loaded by a holder that has seen nothing before and keeps nothing."""
    found = {}
    for name in ("base", "other", "old", *WAYS):
        holder = PipelineHolder()
        found[name] = _weights(holder.ensure(catalogue[name], catalogue, _keeping(settings, 0)))
        holder.free()
    return found


def _keeping(settings, amount):
    return dataclasses.replace(settings, keep_gb=amount, keep_gpu_gb=amount)


def _weights(pipe):
    found = {}
    for part in PARTS:
        if getattr(pipe, part, None) is not None:
            found |= {f"{part}.{name}": tensor.clone() for name, tensor in getattr(pipe, part).state_dict().items()}
    return found


def _equal(one, other):
    return one.keys() == other.keys() and all(
        tensor.dtype == other[name].dtype and torch.equal(tensor, other[name]) for name, tensor in one.items()
    )


def _no_files(monkeypatch):
    """Let reading weights from files be a failure."""
    for name in ("copy_weights", "apply_delta", "load_lora", "load_pipeline"):
        monkeypatch.setattr(pipelines, name, lambda *_, name=name: pytest.fail(f"{name} was called"))


@pytest.mark.parametrize("one", WAYS)
@pytest.mark.parametrize("other", ["delta", "lora-a", "hybrid"])
def test_there_and_back_and_there_are_the_tensors_of_a_fresh_load(one, other, holder, settings, catalogue, fresh):
    for name in (one, other, one, "base", other, one, other, "base"):
        assert _equal(_weights(holder.ensure(catalogue[name], catalogue, settings)), fresh[name]), name


@pytest.mark.parametrize("name", [way for way in WAYS if way != "decoder"])
def test_going_back_reads_no_weights(name, holder, settings, catalogue, fresh, monkeypatch):
    for seen in ("base", name, "base"):
        pipe = holder.ensure(catalogue[seen], catalogue, settings)
    addresses = {key: tensor.data_ptr() for key, tensor in pipe.unet.state_dict().items()}
    _no_files(monkeypatch)
    assert _equal(_weights(holder.ensure(catalogue[name], catalogue, settings)), fresh[name])
    assert _equal(_weights(holder.ensure(catalogue["base"], catalogue, settings)), fresh["base"])
    assert {key: tensor.data_ptr() for key, tensor in pipe.unet.state_dict().items()} == addresses


def test_loras_of_one_shape_share_their_layers(holder, settings, catalogue, fresh):
    from peft.tuners.tuners_utils import BaseTunerLayer

    def layers(pipe):
        return {
            (part, name): (id(layer), layer.lora_A["strategy"].weight.data_ptr())
            for part in PARTS
            for name, layer in getattr(pipe, part).named_modules()
            if isinstance(layer, BaseTunerLayer)
        }

    seen = {}
    for name in ("lora-a", "lora-b", "base", "lora-c", "lora-a", "lora-b", "lora-c", "base", "lora-b"):
        pipe = holder.ensure(catalogue[name], catalogue, settings)
        assert _equal(_weights(pipe), fresh[name])
        seen.setdefault(name, layers(pipe))
        assert layers(pipe) == seen[name]
    assert seen["lora-a"] == seen["lora-b"]
    assert seen["base"] == {}
    assert seen["lora-c"]
    assert seen["lora-c"].keys() <= seen["lora-a"].keys()
    assert not set(seen["lora-c"].values()) & set(seen["lora-a"].values())


def test_each_lora_has_its_own_scale_and_configuration_in_shared_layers(tmp_path, holder, settings, catalogue):
    """Two kohya files of one shape whose alphas differ: 1/4 and 2 times the product."""
    specs, scales = {}, {"quarter": 0.25, "twice": 2.0}
    for name, scale in scales.items():
        path = tiny.add_lora(
            tmp_path / name, settings.checkpoints / "base", ("unet",), "kohya", rank=4, alpha=4 * scale
        )
        specs[name] = dataclasses.replace(catalogue["lora-a"], id=name, kind="lora", path=path)
    shared = None
    for name in ("quarter", "twice", "quarter", "twice"):
        pipe = holder.ensure(specs[name], catalogue, settings)
        found = pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_q
        assert found.scaling["strategy"] == scales[name]
        config = pipe.unet.peft_config["strategy"]
        assert config.lora_alpha / config.r == scales[name]
        shared = shared or found
        assert found is shared


def test_a_layer_that_moved_is_not_put_around_the_old_one(holder, settings, catalogue, fresh):
    pipe = holder.ensure(catalogue["lora-a"], catalogue, settings)
    holder.ensure(catalogue["base"], catalogue, settings)
    block = pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn1
    new = torch.nn.Linear(block.to_q.in_features, block.to_q.out_features, bias=False)
    new.load_state_dict(block.to_q.state_dict())
    block.to_q = new
    pipe = holder.ensure(catalogue["lora-a"], catalogue, settings)
    assert _equal(_weights(pipe), fresh["lora-a"])
    assert block.to_q.get_base_layer() is new


def test_kept_values_are_those_of_the_dtype(holder, settings, catalogue):
    """A copy in float32 is not written into a bfloat16 pipeline, nor the other way round."""
    for dtype in ("bfloat16", "float32", "bfloat16"):
        placement = Placement("cpu", dtype, "none", False, "test")
        bare = PipelineHolder().ensure(
            catalogue["delta"], catalogue, _keeping(settings, 0), placement=placement
        )  # fmt: skip
        for name in ("delta", "base", "delta"):
            pipe = holder.ensure(catalogue[name], catalogue, settings, placement=placement)
        assert pipe.unet.dtype == getattr(torch, dtype)
        assert _equal(_weights(pipe), _weights(bare))


def test_copies_are_within_the_budget_and_counted(holder, settings, catalogue, fresh):
    size = sum(tensor.numel() * tensor.element_size() for name, tensor in fresh["base"].items() if "unet" in name)
    room = 2.5 * size / 1e9
    seen = []
    for name in ("base", "delta", "base", "lora-a", "full", "hybrid", "base", "delta"):
        pipe = holder.ensure(catalogue[name], catalogue, _keeping(settings, room))
        assert _equal(_weights(pipe), fresh[name])
        seen.append(holder.kept["memory"])
        assert seen[-1] <= room * 1e9
    assert max(seen) > size
    holder.ensure(catalogue["base"], catalogue, _keeping(settings, 0))
    assert holder.kept == {"memory": 0, "gpu": 0}


def test_a_base_that_was_in_use_is_kept_with_what_was_on_it(holder, settings, catalogue, fresh, monkeypatch):
    pipe = holder.ensure(catalogue["hybrid"], catalogue, settings)
    identity = holder.identity()
    view = holder.image_to_image()
    said: list[str] = []
    holder.ensure(catalogue["old"], catalogue, settings, say=said.append)
    assert not [text for text in said if text.startswith("Freeing")]
    weights = sum(tensor.numel() * tensor.element_size() for tensor in fresh["base"].values())
    assert holder.kept["memory"] >= weights
    with monkeypatch.context() as patch:
        _no_files(patch)
        said.clear()
        assert holder.ensure(catalogue["hybrid"], catalogue, settings, say=said.append) is pipe
        assert said == ["Checking the files of hybrid."]
    assert holder.identity() == identity
    assert view.unet is pipe.unet
    assert _equal(_weights(pipe), fresh["hybrid"])
    # Another strategy than the one that was on it, on the way back.
    holder.ensure(catalogue["old"], catalogue, settings)
    assert holder.ensure(catalogue["delta"], catalogue, settings) is pipe
    assert _equal(_weights(pipe), fresh["delta"])


def test_the_base_that_was_used_longest_ago_goes_and_is_dead(holder, settings, catalogue, fresh):
    size = {
        name: sum(tensor.numel() * tensor.element_size() for tensor in fresh[name].values())
        for name in ("base", "other", "old")
    }
    one = _keeping(settings, 1.1 * max(size.values()) / 1e9)
    first = weakref.ref(holder.ensure(catalogue["base"], catalogue, one).unet)
    second = weakref.ref(holder.ensure(catalogue["other"], catalogue, one).unet)
    assert first() is not None
    holder.ensure(catalogue["old"], catalogue, one)
    gc.collect()
    assert first() is None
    assert second() is not None
    assert size["other"] <= holder.kept["memory"] <= one.keep_gb * 1e9
    holder.ensure(catalogue["base"], catalogue, one)  # loaded again; "old" is kept, "other" had to go for it
    gc.collect()
    assert second() is None


def test_free_frees_what_is_kept_too(holder, settings, catalogue):
    parts = []
    for name in ("base", "delta", "lora-a", "other", "old"):
        pipe = holder.ensure(catalogue[name], catalogue, settings)
        parts += [weakref.ref(getattr(pipe, part)) for part in PARTS if getattr(pipe, part, None) is not None]
    copies = [weakref.ref(holder._in_memory.get(key)) for key in holder._in_memory]
    assert len(copies) > 3
    holder.free()
    gc.collect()
    assert not [ref for ref in (*parts, *copies) if ref() is not None]
    assert holder.kept == {"memory": 0, "gpu": 0}
    assert holder.placement is None
    # ``pipe`` is still held here, but emptied.
    assert pipe.unet is None


def test_free_kept_leaves_what_is_in_use(holder, settings, catalogue, fresh):
    assert not holder.free_kept()
    holder.ensure(catalogue["other"], catalogue, settings)
    pipe = holder.ensure(catalogue["delta"], catalogue, settings)
    assert holder.free_kept()
    assert holder.kept == {"memory": 0, "gpu": 0}
    assert holder.ensure(catalogue["delta"], catalogue, settings) is pipe
    assert _equal(_weights(holder.ensure(catalogue["base"], catalogue, settings)), fresh["base"])


def test_what_is_kept_goes_when_memory_runs_out(holder, settings, catalogue, fresh, monkeypatch):
    load, seen = PipelineHolder._load_base, []

    def short(self):
        seen.append(self.kept["memory"])
        if seen[-1]:
            raise MemoryError
        load(self)

    holder.ensure(catalogue["delta"], catalogue, settings)
    monkeypatch.setattr(PipelineHolder, "_load_base", short)
    said: list[str] = []
    pipe = holder.ensure(catalogue["other"], catalogue, settings, say=said.append)
    assert _equal(_weights(pipe), fresh["other"])
    assert len(seen) == 2
    assert "Memory ran out; freeing what was kept." in said
    assert holder.placement.dtype == "float32"  # not the lighter mode


def test_a_new_base_has_room_before_another_one_is_kept(holder, settings, catalogue, monkeypatch):
    """Free memory that is too little for the new base beside the kept one: the kept one goes."""
    gone, free = [], pipelines._free_memory
    holder.ensure(catalogue["base"], catalogue, settings)
    unet = weakref.ref(holder._pipe.unet)
    monkeypatch.setattr(
        pipelines, "_free_memory", lambda device: free(device) if unet() is None else (gone.append(1), 10_000)[1]
    )
    holder.ensure(catalogue["other"], catalogue, settings)
    assert unet() is None
    assert gone


def test_a_light_pipeline_leaves_nothing_kept(holder, settings, catalogue):
    holder.ensure(catalogue["other"], catalogue, settings)
    holder.ensure(catalogue["delta"], catalogue, settings)
    assert holder.kept["memory"]
    holder.ensure(catalogue["base"], catalogue, settings, light=True)
    assert holder.kept["memory"] == 0


def test_another_version_of_a_kept_base_is_not_used(tmp_path, holder, settings, catalogue):
    import shutil

    folder = tmp_path / "mine"
    shutil.copytree(settings.checkpoints / "base", folder)
    spec = dataclasses.replace(catalogue["base"], id="mine", path=folder, sha256={})
    mine = {**catalogue, "mine": spec}
    first = holder.ensure(spec, mine, settings)
    holder.ensure(catalogue["other"], mine, settings)
    weights = folder / "unet" / tiny.WEIGHTS["unet"]
    tensors = {name: tensor + 1 for name, tensor in load_file(weights).items()}
    save_file(tensors, weights)
    pipe = holder.ensure(spec, mine, settings)
    assert pipe is not first
    assert first.unet is None
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in pipe.unet.state_dict().items())


def test_offloaded_pipelines_switch_as_quickly(holder, settings, catalogue, fresh, monkeypatch):
    placement = Placement("cpu", "float32", "model", False, "test")
    for name in ("base", "delta", "lora-a", "base"):
        holder.ensure(catalogue[name], catalogue, settings, placement=placement)
    _no_files(monkeypatch)
    for name in ("delta", "lora-a", "base"):
        pipe = holder.ensure(catalogue[name], catalogue, settings, placement=placement)
        assert _equal(_weights(pipe), fresh[name])
        assert hasattr(pipe.unet, "_hf_hook")


def test_projections_that_were_fused_meanwhile_are_not_part_of_a_copy(holder, settings, catalogue, fresh):
    """As the engine does on a GPU: fused while one strategy is on, and not while another one is."""
    pipe = holder.ensure(catalogue["base"], catalogue, settings)
    for name in ("full", "base", "delta", "full", "base"):
        pipe.unet.fuse_qkv_projections()
        assert any("to_qkv" in key for key in pipe.unet.state_dict())
        holder.ensure(catalogue[name], catalogue, settings)
        pipe.unet.unfuse_qkv_projections()
        for module in pipe.unet.modules():
            for fused in ("to_qkv", "to_kv"):
                if hasattr(module, fused):
                    delattr(module, fused)
        assert _equal(_weights(pipe), fresh[name])
        holder.ensure(catalogue["lora-a"], catalogue, settings)
        holder.ensure(catalogue[name], catalogue, settings)
        assert _equal(_weights(pipe), fresh[name])


def test_for_a_gpu_the_base_is_copied_before_it_is_replaced(holder, settings, catalogue, fresh, monkeypatch):
    monkeypatch.setattr(PipelineHolder, "_pinned", property(lambda self: True))
    plain, asked = pipelines.copied, []
    monkeypatch.setattr(pipelines, "copied", lambda tensors, pinned: (asked.append(pinned), plain(tensors))[1])
    holder.ensure(catalogue["delta"], catalogue, settings)
    assert asked == [True, True]
    _no_files(monkeypatch)
    assert _equal(_weights(holder.ensure(catalogue["base"], catalogue, settings)), fresh["base"])


def test_where_there_is_no_memory_for_a_copy_files_are_read(holder, settings, catalogue, fresh, monkeypatch):
    def refuse(*_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(pipelines, "copied", refuse)
    monkeypatch.setattr(pipelines, "values_of", refuse)
    for name in ("delta", "base", "lora-a", "lora-b", "delta"):
        assert _equal(_weights(holder.ensure(catalogue[name], catalogue, settings)), fresh[name])
    assert holder.kept["memory"] == 0
