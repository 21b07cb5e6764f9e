import shutil

import pytest
import torch

from sar_gen.compiling import Compiler
from sar_gen.pipelines import load_pipeline
from tests import tiny


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compiling")
    tiny.tiny_sdxl(folder / "base")
    return load_pipeline(folder / "base", "sdxl", None, torch.float32)


def made(pipe, guidance=1.0):
    return pipe(
        "a river", num_inference_steps=2, guidance_scale=guidance, width=64, height=64, output_type="latent",
        generator=torch.Generator().manual_seed(1),
    ).images  # fmt: skip


def test_blocks_are_eager_until_all_is_compiled_and_the_same_picture_after(pipe):
    said = []
    compiler = Compiler(say=said.append, backend="aot_eager")
    eager = made(pipe)
    with compiler.blocks(pipe.unet) as used:
        first = made(pipe)
    assert not used
    assert torch.equal(first, eager)
    compiler.wait()
    assert compiler.failure is None
    assert (compiler.waiting, len(said)) == (0, compiler.ready + 1)
    assert said[-1].startswith("The denoiser is compiled")
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    with compiler.blocks(pipe.unet) as used:
        second = made(pipe)
    assert used
    assert (second - eager).abs().max() < 1e-5 * eager.abs().max()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == before
    assert all("forward" not in module.__dict__ for module in pipe.unet.modules())


def test_new_weights_and_a_shape_seen_before_compile_nothing_anew(pipe):
    compiler = Compiler(backend="aot_eager")
    for guidance in (1.0, 3.0):  # one row, two rows
        with compiler.blocks(pipe.unet):
            made(pipe, guidance)
        compiler.wait()
    ready = compiler.ready
    with torch.no_grad():
        for parameter in pipe.unet.parameters():
            parameter.mul_(0.9)
    with compiler.blocks(pipe.unet):
        changed = made(pipe, 3.0)
    compiler.wait()
    assert compiler.ready == ready
    assert (changed - made(pipe, 3.0)).abs().max() < 1e-5 * changed.abs().max()


def test_what_cannot_be_compiled_stays_eager_and_says_why(pipe):
    compiler = Compiler(backend="no-such-backend")
    eager = made(pipe)
    for _ in range(2):
        with compiler.blocks(pipe.unet) as used:
            assert torch.equal(made(pipe), eager)
        compiler.wait()
        assert not used
    assert "no-such-backend" in compiler.failure
    assert (compiler.ready, compiler.waiting) == (0, 0)


def test_blocks_that_look_alike_but_hold_other_values_are_compiled_apart():
    from diffusers.models.resnet import ResnetBlock2D

    options = {"in_channels": 8, "temb_channels": None, "groups": 2}
    blocks = torch.nn.ModuleList([ResnetBlock2D(**options, output_scale_factor=factor) for factor in (1, 1.0, 2.0)])
    blocks.requires_grad_(False).eval()
    given = torch.randn((1, 8, 4, 4), generator=torch.Generator().manual_seed(0))
    assert len({repr(block) for block in blocks}) == 1
    compiler = Compiler(backend="aot_eager")
    with torch.no_grad():
        wanted = [block(given, None) for block in blocks]
        for ready in (0, 3):
            before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
            with compiler.blocks(blocks) as used:
                found = [block(given, None) for block in blocks]
                assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == before
            compiler.wait()
            assert used == ready
            assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))
    assert compiler.ready == 3


def test_more_versions_than_torch_keeps_by_itself_stay_compiled():
    from diffusers.models.resnet import ResnetBlock2D

    block = torch.nn.ModuleList([ResnetBlock2D(in_channels=8, temb_channels=None, groups=2)]).requires_grad_(False)
    compiler = Compiler(backend="aot_eager")
    sides = range(2, 14)
    with torch.no_grad():
        for used in (0, 12):
            before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
            with compiler.blocks(block) as ready:
                for side in sides:
                    block[0](torch.ones(1, 8, side, side), None)
            assert ready == used
            assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == before
            compiler.wait()
            assert compiler.failure is None


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles for the CPU by g++")
def test_a_block_is_compiled_by_inductor_and_kept_on_disk(tmp_path, monkeypatch):
    from diffusers.models.resnet import ResnetBlock2D

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    block = torch.nn.Sequential(ResnetBlock2D(in_channels=8, temb_channels=None, groups=2)).eval()
    block[0].requires_grad_(False)
    block.forward = lambda given: block[0](given, None)
    compiler = Compiler(tmp_path)
    given = torch.randn((1, 8, 4, 4), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = block(given)
        with compiler.blocks(block):
            block(given)
        compiler.wait()
        assert compiler.failure is None
        with compiler.blocks(block) as used:
            found = block(given)
    assert used
    assert (found - wanted).abs().max() < 1e-5
    assert any(path.is_file() for path in tmp_path.rglob("*"))
