"""Quantised deltas: what they hold, how far they are off, and loading them onto the base they were made on."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import subprocess
import sys
import tomllib

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from sar_gen import checkpoints, deltas, folders
from sar_gen.deltas import DELTA_FILE, apply_delta, delta_facts, dequantise, error, make_deltas, quantise, write_delta
from sar_gen.errors import InputError
from sar_gen.files import sha256_of
from sar_gen.pipelines import PipelineHolder
from sar_gen.settings import ROOT, Settings
from tests import tiny

PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """A base, another one, three strategies with whole parts, and each as deltas of 8 and of 4 bits."""
    root = tmp_path_factory.mktemp("deltas")
    own = root / "checkpoints"
    base = tiny.checkpoint(own / "base")
    tiny.checkpoint(own / "other", seed=9)
    for id, strategy in (("both", "unet-full+te-full"), ("decoder", "vae-decoder"), ("vae", "vae-full")):
        tiny.strategy_folder(own / id, base, strategy)
        for bits in (8, 4):
            make_deltas(base, own / id, own / f"{id}-{bits}", bits)
            tiny.write_card(own / f"{id}-{bits}", id=f"{id}-{bits}", base="base", strategy=strategy)
    return Settings(home=root / "home", runs=root / "runs", checkpoints=own, device="cpu")


@pytest.fixture(scope="module")
def catalogue(settings):
    found, problems = checkpoints.scan(settings)
    assert not problems
    return found


def _weights(pipe):
    return {f"{part}.{name}": t.clone() for part in PARTS for name, t in getattr(pipe, part).state_dict().items()}


def _same(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def _pair(shape, spread=1e-3, seed=0):
    random = torch.Generator().manual_seed(seed)
    base = {"w.weight": 0.05 * torch.randn(shape, generator=random)}
    return base, {"w.weight": base["w.weight"] + spread * torch.randn(shape, generator=random)}


@pytest.mark.parametrize("shape", [(40, 64), (33, 100), (16, 8, 3, 3), (2048, 1)])
@pytest.mark.parametrize("spread", [1e-7, 1e-3, 1.0])
def test_eight_bits_are_off_by_half_a_step_at_most(shape, spread):
    base, tuned = _pair(shape, spread)
    held = quantise(base, tuned, 8)
    codes, scales = held["w.weight::codes"], held["w.weight::scales"]
    rows, columns = shape[0], math.prod(shape[1:])
    assert (codes.dtype, tuple(codes.shape)) == (torch.int8, (rows, columns))
    assert (scales.dtype, tuple(scales.shape)) == (torch.float16, (rows, -(-columns // 64)))
    true = (tuned["w.weight"] - base["w.weight"]).flatten(1).double().numpy()
    found = dequantise(held, "w.weight", shape, 8).flatten(1).double().numpy()
    steps = np.repeat(scales.double().numpy() * 2.0**-15, 64, axis=1)[:, :columns]
    assert np.all(np.abs(found - true) <= steps / 2 * (1 + 1e-5))
    largest = np.array([np.abs(row[i : i + 64]).max() for row in true for i in range(0, columns, 64)])
    # The step is the largest change over 127, rounded up to float16: 11 significant bits, multiples of 2^-24 at least.
    np.testing.assert_allclose(scales.double().numpy().ravel() * 2.0**-15, largest / 127, rtol=2**-10, atol=2**-39)
    assert np.all(scales.double().numpy().ravel() * 2.0**-15 * 127 >= largest * (1 - 1e-6))


def test_four_bits_are_off_by_half_a_step_where_nothing_is_clipped():
    base, tuned = _pair((50, 200))
    held = quantise(base, tuned, 4)
    packed, scales = held["w.weight::codes"], held["w.weight::scales"]
    assert (packed.dtype, tuple(packed.shape)) == (torch.uint8, (50, 100))
    # Unpacked by hand: low half first, 8 added.
    bytes_ = packed.numpy()
    codes = np.stack([bytes_ & 15, bytes_ >> 4], axis=2).reshape(50, 200).astype(int) - 8
    assert codes.min() == -7
    assert codes.max() == 7
    steps = np.repeat(scales.double().numpy() * 2.0**-15, 64, axis=1)[:, :200]
    found = dequantise(held, "w.weight", (50, 200), 4).double().numpy()
    np.testing.assert_allclose(found, codes * steps, rtol=1e-6)
    true = (tuned["w.weight"] - base["w.weight"]).double().numpy()
    inside = np.abs(true) <= 7.5 * steps
    assert inside.mean() > 0.98
    assert np.all(np.abs(found - true)[inside] <= steps[inside] / 2 * (1 + 1e-5))


def test_the_error_of_normal_changes_is_that_of_a_uniform_quantiser():
    """A step s spreads the error evenly over s: its root mean square is s / sqrt(12)."""
    base, tuned = _pair((256, 512))
    for bits, expected in ((8, 0.0057), (4, 0.103)):
        held = quantise(base, tuned, bits, clips=(1.0,))
        steps = held["w.weight::scales"].double() * 2.0**-15
        found = error(base, tuned, held, bits)
        by_form = float(steps.square().mean().div(12).sqrt()) / 1e-3
        assert found.delta == pytest.approx(by_form, rel=0.01)
        assert found.delta == pytest.approx(expected, rel=0.1)
        assert found.weights == pytest.approx(found.delta * 1e-3 / math.hypot(0.05, 1e-3), rel=0.02)


def test_clipping_helps_at_four_bits_and_never_hurts_a_group():
    base, tuned = _pair((128, 256))
    tuned["w.weight"][:, ::64] += 3e-3  # one outlier a group
    plain, best = (quantise(base, tuned, 4, clips=clips) for clips in ((1.0,), deltas.CLIPS[4]))
    true = tuned["w.weight"] - base["w.weight"]
    wrong = [
        (dequantise(held, "w.weight", (128, 256), 4) - true).square().unflatten(1, (-1, 64)).sum(2)
        for held in (plain, best)
    ]
    assert bool((wrong[1] <= wrong[0] * (1 + 1e-5)).all())
    assert error(base, tuned, best, 4).delta < 0.97 * error(base, tuned, plain, 4).delta


def test_small_tensors_are_plain_and_what_did_not_change_is_left_out():
    random = torch.Generator().manual_seed(1)
    base = {
        "norm.weight": torch.ones(2000),
        "tiny.weight": torch.randn(8, 8, generator=random),
        "big.weight": torch.randn(64, 64, generator=random),
        "same.weight": torch.randn(64, 64, generator=random),
        "text_model.embeddings.position_ids": torch.arange(4),
    }
    tuned = {name: t + 0.1 for name, t in base.items() if name != "same.weight"} | {"same.weight": base["same.weight"]}
    held = quantise(base, tuned, 8)
    assert sorted(held) == [
        "big.weight::codes",
        "big.weight::scales",
        "norm.weight::difference",
        "tiny.weight::difference",
    ]
    for name in ("norm.weight", "tiny.weight"):
        assert torch.equal(dequantise(held, name, base[name].shape, 8), tuned[name] - base[name])


def test_a_change_of_low_rank_is_kept_as_a_product_and_comes_back_whole():
    random = torch.Generator().manual_seed(0)
    base = {"weight": torch.randn((48, 32, 3, 3), generator=random), "bias": torch.randn(48, generator=random)}
    change = torch.randn((48, 2), generator=random) @ torch.randn((2, 288), generator=random)
    tuned = {"weight": base["weight"] + 0.01 * change.view(48, 32, 3, 3), "bias": base["bias"] + 1}
    delta = quantise(base, tuned, 8, rank=2)
    assert {key: tuple(tensor.shape) for key, tensor in delta.items()} == {
        "weight::up": (48, 2), "weight::down": (2, 288), "bias::difference": (48,),
    }  # fmt: skip
    assert error(base, tuned, delta, 8).delta < 2e-3  # float16's
    found = dequantise(delta, "weight", (48, 32, 3, 3), 8)
    assert (found - (tuned["weight"] - base["weight"])).abs().max() < 2e-3 * (0.01 * change).abs().max()


def test_of_a_full_change_the_largest_singular_values_are_kept():
    random = torch.Generator().manual_seed(1)
    change = torch.randn((40, 64), generator=random, dtype=torch.float64).float()
    base, tuned = {"w": torch.zeros(40, 64)}, {"w": change}
    values = torch.linalg.svdvals(change)
    wanted = math.sqrt(float(values[4:].square().sum() / values.square().sum()))
    assert error(base, tuned, quantise(base, tuned, 8, rank=4), 8).delta == pytest.approx(wanted, rel=1e-3)


def test_where_a_product_would_be_larger_it_is_codes():
    base, tuned = {"w": torch.zeros(40, 64)}, {"w": torch.ones(40, 64)}
    assert set(quantise(base, tuned, 8, rank=20)) == {"w::codes", "w::scales"}


def test_a_low_rank_delta_loads_and_is_checked(settings, catalogue, tmp_path):
    base = settings.checkpoints / "base"
    out = tmp_path / "checkpoints" / "small"
    [report, *_] = make_deltas(base, settings.checkpoints / "both", out, 8, rank=1)
    assert report.bytes_after < report.bytes_before
    tiny.write_card(out, id="small", base="base", strategy="unet-full+te-full")
    both = dataclasses.replace(settings, checkpoint_folders=(tmp_path / "checkpoints",))
    found = checkpoints.catalogue(both)
    pipe = PipelineHolder().ensure(found["small"], found, both)
    place, weights = out / "unet" / DELTA_FILE, dict(pipe.unet.state_dict())
    delta = load_file(place)
    name = next(key for key in delta if key.endswith("::up")).removesuffix("::up")
    old = next(t for path in (base / "unet").glob("*.safetensors") for k, t in load_file(path).items() if k == name)
    wanted = old + (delta[f"{name}::up"].float() @ delta[f"{name}::down"].float()).view_as(old)
    assert torch.equal(weights[name], wanted)
    cut = {key: tensor[:, :-1] if key == f"{name}::down" else tensor for key, tensor in delta.items()}
    write_delta(place, {key: tensor.contiguous() for key, tensor in cut.items()}, 8, delta_facts(place).base_sha256)
    with pytest.raises(InputError, match="does not fit its base"):
        folders.check_fits(folders.strategy_files(out), base, "sdxl", "small")


def test_groups_without_change_stay_exactly_as_they_are():
    base, tuned = _pair((32, 128))
    tuned["w.weight"][:, 64:] = base["w.weight"][:, 64:]
    for bits in (4, 8):
        assert bool((dequantise(quantise(base, tuned, bits), "w.weight", (32, 128), bits)[:, 64:] == 0).all())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: {"else.weight": t["w.weight"]}, "no place of its shape"),
        (lambda t: {"w.weight": t["w.weight"][:5]}, "no place of its shape"),
        (lambda t: {"w.weight": t["w.weight"] * float("nan")}, "not numbers"),
        (lambda t: {"w.weight": t["w.weight"] + 1000}, "more than a delta can hold"),
    ],
)
def test_what_is_no_delta_is_refused(change, words):
    base, tuned = _pair((40, 64))
    with pytest.raises(InputError, match=words):
        quantise(base, change(tuned), 4)
    with pytest.raises(InputError, match="5 bits"):
        quantise(base, tuned, 5)


def test_size_is_the_formula_and_four_bits_are_about_half(tmp_path):
    """25 million weights are 25.8 MB at 8 bits and 13.3 MB at 4: N (bits / 8 + 2 / 64) bytes."""
    base, tuned = _pair((512, 512))
    sizes = {}
    for bits in (8, 4):
        path = tmp_path / str(bits) / DELTA_FILE
        write_delta(path, quantise(base, tuned, bits), bits, ["0" * 64])
        header = int.from_bytes(path.read_bytes()[:8], "little")
        sizes[bits] = path.stat().st_size - 8 - header
        assert sizes[bits] == 512 * 512 * (bits / 8 + 2 / 64)
        assert header < 600
    assert sizes[4] / sizes[8] == pytest.approx(0.515, abs=0.001)
    assert pytest.approx(25.8e6, rel=2e-3) == 25e6 * (1 + 2 / 64)
    assert pytest.approx(13.3e6, rel=2e-3) == 25e6 * (0.5 + 2 / 64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_apply_writes_base_plus_delta_in_float32_then_casts(tmp_path, dtype):
    random = torch.Generator().manual_seed(2)
    base = {"weight": torch.randn(48, 80, generator=random).half(), "bias": torch.randn(48, generator=random).half()}
    tuned = {name: t.float() + 0.01 * torch.randn(t.shape, generator=random) for name, t in base.items()}
    save_file(base, tmp_path / "model.safetensors")
    held = quantise(base, tuned, 4)
    write_delta(tmp_path / DELTA_FILE, held, 4, [sha256_of(tmp_path / "model.safetensors")])
    module = torch.nn.Linear(80, 48).to(dtype)
    apply_delta(module, [tmp_path / "model.safetensors"], tmp_path / DELTA_FILE)
    for name, tensor in module.state_dict().items():
        expected = base[name].float() + dequantise(held, name, base[name].shape, 4)
        assert torch.equal(tensor, expected.to(dtype))
    with pytest.raises(InputError, match="no place"):
        apply_delta(torch.nn.Linear(80, 47), [tmp_path / "model.safetensors"], tmp_path / DELTA_FILE)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("name", ["both", "decoder", "vae"])
def test_a_delta_loads_as_base_plus_delta_and_comes_off_exactly(name, bits, settings, catalogue):
    holder = PipelineHolder()
    before = _weights(holder.ensure(catalogue["base"], catalogue, settings))
    on = _weights(holder.ensure(catalogue[f"{name}-{bits}"], catalogue, settings))
    whole = _weights(holder.ensure(catalogue[name], catalogue, settings))
    again = _weights(holder.ensure(catalogue[f"{name}-{bits}"], catalogue, settings))
    after = _weights(holder.ensure(catalogue["base"], catalogue, settings))
    holder.free()
    assert _same(before, after)
    assert _same(on, again)
    assert not _same(on, before)
    assert not _same(on, whole)
    folder = settings.checkpoints / f"{name}-{bits}"
    expected = dict(before)
    for path in folder.glob(f"*/{DELTA_FILE}"):
        part, held = path.parent.name, load_file(path)
        for tensor in delta_facts(path).names:
            key = next(k for k in (f"{part}.{tensor}", f"{part}.text_model.{tensor}") if k in expected)
            expected[key] = before[key] + dequantise(held, tensor, before[key].shape, bits)
    assert _same(on, expected)
    true = torch.cat([(whole[k] - before[k]).flatten() for k in before])
    found = torch.cat([(on[k] - before[k]).flatten() for k in before])
    assert float((found - true).norm() / true.norm()) < {8: 0.006, 4: 0.11}[bits]


def test_the_rewritten_folder_has_the_same_parts_and_a_card_that_holds(settings, tmp_path):
    source = tiny.strategy_folder(tmp_path / "hybrid", settings.checkpoints / "base", "unet-full+te-full")
    tiny.add_token(source)
    tiny.add_vae_lora(source, settings.checkpoints / "base")
    (source / "card.toml").write_text('# made by hand\nid = "hybrid" # its name\nbase = "base"\n')
    reports = make_deltas(settings.checkpoints / "base", source, tmp_path / "small", 4)
    assert [report.part for report in reports] == ["unet", "text_encoder", "text_encoder_2"]
    small = tmp_path / "small"
    names = sorted(path.relative_to(small).as_posix() for path in small.rglob("*") if path.is_file())
    assert names == [
        "card.toml",
        "text_encoder/delta.safetensors",
        "text_encoder_2/delta.safetensors",
        "token.safetensors",
        "unet/delta.safetensors",
        "vae/pytorch_lora_weights.safetensors",
    ]
    assert not list(tmp_path.glob(".*"))
    assert (small / "card.toml").read_text().startswith('# made by hand\nid = "hybrid" # its name')
    card = tomllib.loads((small / "card.toml").read_text())
    assert card["sha256"] == {name: sha256_of(small / name) for name in names if name != "card.toml"}
    assert folders.strategy_files(small).modes() == folders.strategy_files(source).modes()
    for report in reports:
        assert report.bytes_before == (source / report.part / tiny.WEIGHTS[report.part]).stat().st_size
        assert report.bytes_after == (small / report.part / DELTA_FILE).stat().st_size
        assert 0.05 < report.error.delta < 0.13
        assert report.error.delta <= report.unclipped_error
    with pytest.raises(InputError, match="there already"):
        make_deltas(settings.checkpoints / "base", source, small, 4)
    with pytest.raises(InputError, match="no whole part"):
        make_deltas(settings.checkpoints / "base", small, tmp_path / "twice", 4)


def test_a_decoder_delta_is_a_decoder_strategy(settings):
    assert folders.strategy_files(settings.checkpoints / "decoder-4").modes() == {"vae_decoder": "full"}
    assert folders.strategy_files(settings.checkpoints / "vae-4").modes() == {
        "vae_decoder": "full",
        "vae_encoder": "full",
    }


def _on(settings, tmp_path, base):
    """Return settings with copies of the delta strategy ``both-8`` and of ``base``, under the name that it wants."""
    own = tmp_path / "checkpoints"
    shutil.copytree(settings.checkpoints / base, own / "base")
    shutil.copytree(settings.checkpoints / "both-8", own / "both-8")
    if base != "base":
        tiny.write_card(own / "base", id="base", family="sdxl", strategy="base", amplitude_encoding="linear")
    return dataclasses.replace(settings, home=tmp_path / "home", checkpoints=own)


def test_a_delta_on_another_base_is_refused_and_the_base_stays(settings, tmp_path):
    there = _on(settings, tmp_path, "other")
    catalogue = checkpoints.catalogue(there)
    holder = PipelineHolder()
    before = _weights(holder.ensure(catalogue["base"], catalogue, there))
    with pytest.raises(InputError, match=r"The unet delta of both-8 was made on other weights than its base has"):
        holder.ensure(catalogue["both-8"], catalogue, there)
    assert _same(before, _weights(holder.ensure(catalogue["base"], catalogue, there)))
    holder.free()
    found = checkpoints.verify(catalogue["both-8"], there)
    assert set(found.values()) == {"made on another base"}
    shutil.move(there.checkpoints / "both-8", tmp_path / "mine")
    with pytest.raises(InputError, match="made on other weights"):
        checkpoints.add_checkpoint(tmp_path / "mine", there)


def test_add_and_verify_take_deltas(settings, tmp_path):
    there = _on(settings, tmp_path, "base")
    shutil.move(there.checkpoints / "both-8", tmp_path / "mine")
    (tmp_path / "mine" / "card.toml").unlink()
    spec = checkpoints.add_checkpoint(tmp_path / "mine", there, base="base")
    assert (spec.id, spec.kind, spec.strategy) == ("mine", "strategy", "unet-full+te-full")
    names = {f"{part}/{DELTA_FILE}" for part in ("unet", "text_encoder", "text_encoder_2")}
    assert checkpoints.verify(spec, there) == dict.fromkeys(names, "no hash is stated")
    hashed = dataclasses.replace(spec, sha256={name: sha256_of(tmp_path / "mine" / name) for name in names})
    assert checkpoints.verify(hashed, there) == dict.fromkeys(names, "ok")


def test_the_record_names_base_and_delta(settings, catalogue):
    holder = PipelineHolder()
    holder.ensure(catalogue["both-4"], catalogue, settings)
    parts = holder.identity()["parts"]
    holder.free()
    paths = [
        settings.checkpoints / "base/unet" / tiny.WEIGHTS["unet"],
        settings.checkpoints / "both-4/unet" / DELTA_FILE,
    ]
    assert parts["unet"] == {path.name: sha256_of(path) for path in paths}
    assert list(parts["vae"]) == [tiny.WEIGHTS["vae"]]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-100]), "cut off"),
        (lambda path: save_file(load_file(path), path), "not a quantised delta"),
        (lambda path: _rewrite(path, bits="5"), "does not state bits"),
        (lambda path: _rewrite(path, base_sha256=""), "does not state bits"),
        (lambda path: _rewrite(path, bits="4"), "as codes and scales"),
        (lambda path: _rewrite(path, drop="::scales"), "as codes and scales"),
        (lambda path: shutil.copy(path, path.with_name(tiny.WEIGHTS["unet"])), "keep one of the two"),
    ],
)
def test_a_damaged_delta_is_one_sentence(settings, tmp_path, damage, words):
    folder = tmp_path / "both-8"
    shutil.copytree(settings.checkpoints / "both-8", folder)
    damage(folder / "unet" / DELTA_FILE)
    with pytest.raises(InputError, match=words):
        folders.strategy_files(folder)


def _rewrite(path, drop=None, **metadata):
    from sar_gen.weights import read_header

    tensors = {name: t for name, t in load_file(path).items() if drop is None or not name.endswith(drop)}
    save_file(tensors, path, {**read_header(path).metadata, **metadata})


def test_a_tensor_that_the_base_lacks_is_refused_from_the_header(settings, tmp_path):
    folder = tmp_path / "both-8"
    shutil.copytree(settings.checkpoints / "both-8", folder)
    path = folder / "unet" / DELTA_FILE
    facts = delta_facts(path)
    tensors = {name.replace("conv_in", "conv_inn"): tensor for name, tensor in load_file(path).items()}
    write_delta(path, tensors, facts.bits, facts.base_sha256)
    with pytest.raises(InputError, match=r"unet delta of mine does not fit its base \(conv_inn.*not in the base"):
        folders.check_fits(folders.strategy_files(folder), settings.checkpoints / "base", "sdxl", "mine")


def test_the_command_writes_a_folder_and_tells_the_error(settings, tmp_path, capsys):
    given = [str(settings.checkpoints / name) for name in ("base", "decoder")]
    command = [sys.executable, "-m", "sar_gen.deltas", *given, tmp_path / "out", "--bits", "4", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    (part,) = json.loads(done.stdout)["parts"]
    assert part["part"] == "vae"
    assert part["bytes_after"] == (tmp_path / "out" / "vae" / DELTA_FILE).stat().st_size
    assert deltas.main([*given, str(tmp_path / "out")]) == 2
    problem = capsys.readouterr().err
    assert problem.count("\n") == 1
    assert "there already" in problem
    assert deltas.main([*given, str(tmp_path / "eight")]) == 0
    assert capsys.readouterr().out.startswith("vae: ")
