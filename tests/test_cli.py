"""The command line as a user runs it, in its own process, on the embedded checkpoint."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tifffile
from PIL import Image

from sar_gen.settings import ROOT


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
