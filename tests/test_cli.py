"""The command line as a user runs it, in its own process, on the embedded checkpoint."""

import csv
import dataclasses
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from sar_gen.cli import main
from sar_gen.guides import read_guide, render
from sar_gen.request import GenerationRequest, PatchReady
from sar_gen.settings import ROOT, Settings
from tests import tiny


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def cli(home):
    def run(*arguments, check=True, **environ):
        variables = {"SAR_GEN_HOME": str(home), "SAR_GEN_RUNS": str(home / "runs"), "HF_HUB_OFFLINE": "1"}
        result = subprocess.run(
            [sys.executable, "-m", "sar_gen", *map(str, arguments)],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env={**os.environ, **variables, **environ},
            check=False,
        )
        if check:
            assert result.returncode == 0, result.stderr
        return result

    return run


GORGE = ("generate", "a SAR image of a mountain gorge", "--steps", 6, "--seed", 7)


@pytest.fixture(scope="module")
def gorge(cli):
    """The embedded checkpoint end to end: two patches, judged."""
    result = cli(*GORGE, "--count", 2, "--reference", "s1-gorge", "--json")
    return json.loads(result.stdout)


def test_generate_json_has_the_fixed_shape(gorge):
    assert set(gorge) == {"run", "checkpoint", "strategy", "prompt", "images", "seconds", "report"}
    assert (gorge["checkpoint"], gorge["strategy"]) == ("sar-mini", "foundation")
    assert set(gorge["seconds"]) == {"load", "generate", "save", "compare"}
    assert [set(image) for image in gorge["images"]] == [{"file", "amplitude_file", "seed", "sha256"}] * 2
    assert [image["seed"] for image in gorge["images"]] == [7, 8]


def test_generated_patches_are_sar_like(gorge):
    """Mean and spread of the amplitude are those of speckled ground: not flat, not noise over the whole range."""
    for image in gorge["images"]:
        amplitude = np.load(image["amplitude_file"])
        assert amplitude.dtype == np.float32
        assert amplitude.shape == (256, 256)
        assert 0.05 < amplitude.mean() < 0.6
        assert 0.03 < amplitude.std() < 0.4
        assert Image.open(image["file"]).size == (256, 256)


def test_report_has_every_measure_with_its_floor(gorge):
    measures = gorge["report"]["measures"]
    names = {"wasserstein1", "js_divergence", "kl_divergence", "ks_statistic", "enl", "semantic"} | {
        f"glcm_{name}"
        for name in ("contrast", "dissimilarity", "homogeneity", "asm", "energy", "correlation", "entropy")
    }
    assert names <= set(measures)
    for name in names - {"enl"}:
        measure = measures[name]
        assert measure["floor"] > 0, name
        assert measure["ratio"] == pytest.approx(measure["value"] / measure["floor"])
    assert gorge["report"]["generated_count"] == 2
    assert gorge["report"]["verdict"]


def test_the_same_seed_alone_has_the_same_hash(cli, gorge):
    result = json.loads(cli(*GORGE[:-1], 8, "--json").stdout)
    assert result["images"][0]["sha256"] == gorge["images"][1]["sha256"]


def test_replay_says_that_the_pictures_are_the_same(cli, gorge):
    result = cli("runs", "replay", gorge["run"])
    assert "2 of 2 patches are bit-equal" in result.stderr


def test_compare_a_run_folder_and_a_single_patch(cli, gorge, tmp_path):
    report = json.loads(cli("compare", gorge["run"], "--reference", "s1-gorge", "--json").stdout)
    assert report["measures"] == {k: v for k, v in gorge["report"]["measures"].items() if k != "semantic"}
    html, table = tmp_path / "report.html", tmp_path / "patches.csv"
    result = cli("compare", gorge["run"], "--reference", "s1-forest", "--html", html, "--csv", table)
    assert "wasserstein1" in result.stdout
    assert "worst measure" in result.stdout
    text = html.read_text()
    assert "data:image/png;base64," in text
    assert not re.search(r"""(src|href)="(?!data:|#)|url\(""", text)
    lines = list(csv.DictReader(table.open(newline="")))
    assert len(lines) == 2
    assert float(lines[0]["worst_ratio"]) >= float(lines[1]["worst_ratio"])


def test_compare_part_of_a_raster_of_several_bands(cli, tmp_path):
    rng = np.random.default_rng(0)
    bands = np.stack([level * np.sqrt(rng.gamma(4.0, 0.25, (200, 264))) for level in (100, 40)]).astype(np.float32)
    raster = tmp_path / "scene.tif"
    tifffile.imwrite(raster, bands, photometric="minisblack", planarconfig="separate")
    asked = ("compare", raster, "--reference", "s1-forest", "--encoding", "amplitude", "--json")
    refused = cli(*asked, "--tile", 64, check=False)
    assert refused.returncode == 2
    assert "2 bands" in refused.stderr
    tiles = json.loads(cli(*asked, "--band", 2, "--tile", 64).stdout)
    assert tiles["generated_count"] == 3 * 4
    window = json.loads(cli(*asked, "--band", 2, "--window", 64, 128, 64, 64).stdout)
    assert window["generated_count"] == 1
    [same] = [
        p for p in tiles["patches"] if p["values"]["wasserstein1"] == window["patches"][0]["values"]["wasserstein1"]
    ]
    assert "64" in same["name"]
    assert "128" in same["name"]


def test_patches_agree_better_with_their_own_prompt(cli, gorge):
    values = {}
    for prompt in ("a SAR image of a mountain gorge", "a SAR image of open water"):
        report = json.loads(
            cli("compare", gorge["run"], "--reference", "s1-gorge", "--prompt", prompt, "--features", "--json").stdout
        )
        values[prompt] = report["measures"]["semantic"]["value"]
        assert {"kernel_distance", "density", "coverage"} <= set(report["sets"]["measures"])
        assert len(report["sets"]["memorisation"]["pairs"]) == 2
    assert values["a SAR image of a mountain gorge"] < values["a SAR image of open water"]


def test_compare_with_a_folder_of_ones_own_needs_to_know_what_a_pixel_is(cli, gorge, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    for i in range(3):
        field = np.sqrt(np.random.default_rng(i).gamma(4.0, 0.25, (64, 64)))
        np.save(folder / f"{i}.npy", field.astype(np.float32) * 120)
    refused = cli("compare", gorge["run"], "--reference", folder, check=False)
    assert refused.returncode == 2
    assert len(refused.stderr.strip().splitlines()) == 1
    report = json.loads(
        cli("compare", gorge["run"], "--reference", folder, "--reference-encoding", "amplitude", "--json").stdout
    )
    assert report["reference_count"] == 3


def test_references(cli, tmp_path):
    names = {info["name"] for info in json.loads(cli("references", "list", "--json").stdout)}
    assert {"s1-forest", "s1-gorge", "s1-agriculture", "s1-river", "s1-residential", "s1-vh", "ben-vv"} <= names
    facts = json.loads(cli("references", "show", "s1-forest", "--json").stdout)
    # The data set's own facts: 454 forest patches, 8-bit amplitude scaled by mean + 3 std.
    assert facts["patches"] == 454
    assert facts["glcm"]["contrast"] == pytest.approx(9.1, abs=1.5)
    folder = tmp_path / "mine"
    folder.mkdir()
    np.save(folder / "a.npy", np.random.default_rng(0).random((64, 64), dtype=np.float32))
    cli("references", "add", folder, "--name", "mine", "--encoding", "studio")
    assert "mine" in {info["name"] for info in json.loads(cli("references", "list", "--json").stdout)}
    cli("references", "remove", "mine")
    assert "mine" not in {info["name"] for info in json.loads(cli("references", "list", "--json").stdout)}


def test_a_single_patch_of_ones_own_with_its_scale(cli, tmp_path):
    """An 8-bit decibel picture over [-25, 0] dB: grey 255 is 0 dB, amplitude 1 before the scale."""
    grey = np.random.default_rng(0).integers(60, 180, (64, 64), dtype=np.uint8)
    Image.fromarray(grey).save(tmp_path / "db.png")
    options = ("--encoding", "db", "--db-range", -25, 0, "--scale", 0.2663, 0.1847)
    report = json.loads(cli("compare", tmp_path / "db.png", "--reference", "s1-forest", *options, "--json").stdout)
    amplitude = np.clip(10 ** ((grey / 255 * 25 - 25) / 20) / (0.2663 + 3 * 0.1847), 0, 1)
    assert report["amplitude"]["generated"]["mean"] == pytest.approx(amplitude.mean(), abs=1e-3)
    refused = cli("compare", tmp_path / "db.png", "--reference", "s1-forest", "--scale", 1, 2, check=False)
    assert refused.returncode == 2
    assert "--encoding" in refused.stderr


def test_checkpoints(cli):
    rows = {row["id"]: row for row in json.loads(cli("checkpoints", "list", "--json").stdout)}
    assert rows["sar-mini"]["on_disk"]
    assert {"sdxl-base", "hochstuhl-s1", "hochstuhl-capella"} <= set(rows)
    assert set(json.loads(cli("checkpoints", "verify", "sar-mini", "--json").stdout).values()) == {"ok"}
    assert "sar-mini" in cli("checkpoints", "show", "sar-mini").stdout
    offline = cli("checkpoints", "pull", "sdxl-base", check=False)
    assert offline.returncode in (1, 2)
    assert len(offline.stderr.strip().splitlines()) == 1


def test_runs_list_and_show(cli, gorge):
    ids = [row["id"] for row in json.loads(cli("runs", "list", "--json").stdout)]
    assert os.path.basename(gorge["run"]) in ids
    shown = json.loads(cli("runs", "show", gorge["images"][0]["file"], "--json").stdout)
    assert shown["images"][0]["sha256"] == gorge["images"][0]["sha256"]
    assert "gorge" in cli("runs").stdout


@pytest.mark.parametrize(
    ("arguments", "status", "sentence"),
    [
        (("generate", " "), 2, "prompt is empty"),
        (("generate", "x", "--width", 100000), 2, "width is 100000"),
        (("generate", "x", "--checkpoint", "none"), 2, "'none' is unknown"),
        (("generate", "x", "--checkpoint", "sdxl-base"), 2, "sdxl-base"),
        (("generate", "x", "--reference", "s1-moon"), 2, "s1-moon"),
        (("generate", "x", "--guide", "missing.png"), 2, r"missing.png"),
        (("generate", "x", "--steps", "many"), 2, "--steps"),
        (("compare", "missing", "--reference", "s1-forest"), 2, "missing"),
        (("runs", "show", "missing"), 2, "no run 'missing'"),
        (("checkpoints", "show", "none"), 2, "'none' is unknown"),
        (("generate", "x", "--guide-size"), 2, "There is no guide to take the size from"),
    ],
)
def test_bad_input_is_one_line_with_status_2(cli, arguments, status, sentence):
    result = cli(*arguments, check=False)
    assert result.returncode == status, result.stderr
    assert sentence in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert result.stdout == ""


def test_a_pickle_checkpoint_is_refused(cli, tmp_path):
    folder = tmp_path / "pickled"
    shutil.copytree(ROOT / "checkpoints" / "sar-mini", folder, ignore=shutil.ignore_patterns("*.safetensors"))
    for part, name in [("unet", "diffusion_pytorch_model.bin"), ("vae", "diffusion_pytorch_model.bin")]:
        (folder / part / name).write_bytes(b"\x80\x04.")
    result = cli("checkpoints", "add", folder, check=False)
    assert result.returncode == 2
    assert "safetensors" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


# Guides, on a tiny checkpoint and inside this process


@pytest.fixture(scope="module")
def guided(tmp_path_factory):
    """Settings with a tiny checkpoint, a network on it, and pictures to guide with: ``map.png``, ``sar.png``."""
    root = tmp_path_factory.mktemp("guided")
    base = tiny.checkpoint(root / "checkpoints" / "base")
    tiny.network(root / "checkpoints" / "net", base, title="The net")
    random = np.random.default_rng(0)
    classes = random.integers(0, 6, (3, 5)).astype(np.uint8).repeat(25, 0).repeat(26, 1)
    Image.fromarray(render(classes)).save(root / "map.png")  # 130 x 75 pixels
    Image.fromarray(random.integers(0, 256, (16, 16)).astype(np.uint8)).save(root / "sar.png")
    return Settings(home=root / "home", runs=root / "runs", checkpoints=root / "checkpoints", device="cpu")


@pytest.fixture
def inside(guided, tmp_path, monkeypatch, capsys):
    """Runs a command in this process; returns its status, what it printed and what it said."""
    for name, value in (("HOME", tmp_path / "home"), ("RUNS", guided.runs), ("CHECKPOINTS", guided.checkpoints)):
        monkeypatch.setenv(f"SAR_GEN_{name}", str(value))
    monkeypatch.setenv("SAR_GEN_DEVICE", "cpu")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["sar_gen", *map(str, arguments)])
        status = 0
        try:
            main()
        except SystemExit as end:
            status = end.code
        said = capsys.readouterr()
        return status, said.out, said.err

    return run


ASKED = ("generate", "a river", "--checkpoint", "base", "--steps", 4, "--seed", 5)


def test_generate_with_two_guides(inside, guided):
    pictures = guided.checkpoints.parent
    files = ("--guide", pictures / "map.png", "--guide-kind", "map", "--guide", pictures / "sar.png")
    files += ("--guide-kind", "sar", "--guide-way", "net")
    options = ("--guide-weight", 0.5, "--guide-weight", 1.5, "--guide-start", 0.1, "--guide-end", 0.8)
    status, out, err = inside(*ASKED, *files, *options, "--json")
    assert status == 0, err
    made = json.loads(out)
    assert "snapped to" in err
    assert "Grey 0 to 255" in err
    record = json.loads((Path(made["run"]) / "run.json").read_text())
    keys = ("kind", "way", "weight", "start", "end", "palette", "file")
    assert [tuple(guide[key] for key in keys) for guide in record["guides"]] == [
        ("map", "net", 0.5, 0.1, 0.8, "auto", "guide.png"),
        ("sar", "net", 1.5, 0.1, 0.8, "studio", "guide_1.png"),
    ]
    weights = guided.checkpoints / "net" / "diffusion_pytorch_model.safetensors"
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert record["checkpoint"]["parts"]["guides"] == {"net": {weights.name: digest}}

    # The same by hand, and without the guides.
    from sar_gen.engine import Engine

    engine = Engine(guided)
    guides = tuple(
        dataclasses.replace(read_guide(pictures / f"{kind}.png", kind, 10**6), way="net", weight=w, start=0.1, end=0.8)
        for kind, w in (("map", 0.5), ("sar", 1.5))
    )
    request = GenerationRequest("a river", checkpoint="base", steps=4, seed=5)
    found = [
        next(e.amplitude for e in engine.generate(asked) if isinstance(e, PatchReady))
        for asked in (dataclasses.replace(request, guides=guides), request)
    ]
    engine.close()
    saved = np.load(made["images"][0]["amplitude_file"])
    np.testing.assert_array_equal(saved, found[0])
    assert np.abs(saved - found[1]).max() > 1e-3

    status, _, err = inside("runs", "replay", made["run"])
    assert status == 0, err
    assert "1 of 1 patches are bit-equal" in err


def test_a_scene_as_large_as_its_guide(inside, guided):
    pictures = guided.checkpoints.parent
    status, out, err = inside(*ASKED, "--guide", pictures / "map.png", "--guide-way", "net", "--guide-size", "--json")
    assert status == 0, err
    assert np.load(json.loads(out)["images"][0]["amplitude_file"]).shape == (72, 128)
    assert "overlapping windows" in err


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            ("MAP", "--guide-weight", 1, "--guide-weight", 2),
            "--guide-weight is there 2 times for 1 guide; give it once",
        ),
        (
            ("MAP", "MAP", "MAP", "--guide-kind", "map", "--guide-kind", "sketch"),
            "--guide-kind is there 2 times for 3 guides; give it once, or once for each guide in their order",
        ),
        (("--guide-way", "net"), "--guide-way is there without a guide"),
        (("MAP", "--guide-kind", "depth"), "guide kind 'depth' is unknown"),
        (("MAP", "--guide-way", "none"), "no network 'none' to read the guide; choose one of image-to-image, net"),
        (("MAP", "--guide-palette", "corine"), "palette 'corine' is unknown"),
        (("MAP", "--guide-weight", 3), "weight of the map guide is 3.0; choose 0 to 2"),
        (("MAP", "--guide-start", 0.8, "--guide-end", 0.2), "runs from 0.8 to 0.2 of the steps"),
        (("MAP", "MAP", "--guide-way", "image-to-image"), "goes alone"),
    ],
)
def test_guides_that_cannot_be_are_one_line(inside, guided, options, sentence):
    given = [
        part for o in options for part in (("--guide", guided.checkpoints.parent / "map.png") if o == "MAP" else (o,))
    ]
    status, out, err = inside(*ASKED, *given)
    assert status == 2
    assert sentence in err
    assert len(err.strip().splitlines()) == 1
    assert out == ""


def test_guides_list_show_add_and_remove(inside, guided, tmp_path):
    rows = {row["id"]: row for row in json.loads(inside("guides", "list", "--json")[1])}
    assert set(rows) == {"net", "hochstuhl-s1-ships"}
    assert rows["net"]["on_disk"] is True
    assert rows["net"]["path"] == str(guided.checkpoints / "net")
    assert rows["net"]["kinds"] == {"map": "studio", "optical": "grey", "sar": "linear"}
    assert rows["hochstuhl-s1-ships"]["on_disk"] is False
    lines = inside("guides")[1].splitlines()
    assert [line.split()[0] for line in lines] == ["id", "net", "hochstuhl-s1-ships"]
    assert "map, optical, sar" in lines[1]
    assert "The net" in inside("guides", "show", "net")[1]
    assert json.loads(inside("guides", "show", "net", "--json")[1])["layout"] == "studio"

    mine = tiny.network(tmp_path / "mine", guided.checkpoints / "base", layout="picture")
    (mine / "card.toml").unlink()
    status, _, err = inside("guides", "add", mine, "--kind", "map")
    assert (status, len(err.strip().splitlines())) == (2, 1)
    assert "--base" in err
    options = ("--kind", "map", "--kind", "optical", "--palette", "worldcover", "--base", "base", "--id", "own")
    assert inside("guides", "add", mine, *options)[1] == "Added own (sdxl, on base), which reads map, optical.\n"
    rows = {row["id"]: row for row in json.loads(inside("guides", "list", "--json")[1])}
    assert rows["own"]["kinds"] == {"map": "worldcover", "optical": "optical"}
    # One network that is refused takes no other out of the list.
    (mine / "diffusion_pytorch_model.safetensors").rename(mine / "diffusion_pytorch_model.bin")
    rows = {row["id"]: row for row in json.loads(inside("guides", "list", "--json")[1])}
    assert [rows[name]["on_disk"] for name in ("net", "own")] == [True, False]
    assert inside("guides", "remove", "own")[1] == "Removed own.\n"
    assert "own" not in inside("guides", "list")[1]
    assert mine.is_dir()
    for arguments, words in (
        (("remove", "net"), "was not added with 'guides add'"),
        (("show", "none"), "The network 'none' is unknown; choose one of net, hochstuhl-s1-ships"),
        (("pull", "hochstuhl-s1-ships"), "HF_HUB_OFFLINE forbids"),
    ):
        status, out, err = inside("guides", *arguments)
        assert status in (1, 2)
        assert words in err
        assert len(err.strip().splitlines()) == 1
        assert out == ""
