import json

import numpy as np
import pytest
import tifffile

from sar_gen.training.manifest import read_manifest


@pytest.fixture
def raster(tmp_path):
    values = np.random.default_rng(0).gamma(2, 20, (160, 160)).astype(np.float32)
    tifffile.imwrite(tmp_path / "a_VV.tif", values)
    return tmp_path / "a_VV.tif"


def test_prepare_prints_json_and_nothing_else(run, raster, tmp_path):
    status, out, _ = run(
        "prepare", raster, tmp_path / "data", "--tile", 32, "--block", 2, "--gap", 0, "--encoding", "amplitude",
        "--scale", "40,30", "--split", 0.6, 0.2, 0.2, "--json",
    )  # fmt: skip
    summary = json.loads(out)
    assert (status, summary["patches"]) == (0, 25)
    (scale,) = summary["scales"].values()
    assert (scale["mean"], scale["std"]) == (40, 30)
    rows = read_manifest(tmp_path / "data")
    assert {split: sum(row.split == split for row in rows) for split in summary["splits"]} == summary["splits"]


def test_prepare_prints_a_table(run, raster, tmp_path):
    status, out, err = run(
        "prepare", raster, tmp_path / "data", "--tile", 32, "--block", 2, "--encoding", "amplitude", "--shards", 5
    )
    assert (status, err) == (0, "")
    assert "train-000000.tar" in out


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--scale", "large"), "The scale 'large' is unknown; give image, acquisition, or MEAN,STD."),
        (("--groups", "town"), "The groups 'town' are unknown; choose block, image or acquisition."),
        (("--pack", 3), "Only --sen12 packs pictures; leave out --pack."),
        (("--sen12",), "s1_pairs.csv is missing; give the folder that holds it."),
        (("--tile", 33), "Patches of 33 pixels cannot be trained on; give a multiple of 8 from 32 on."),
    ],
)
def test_bad_input_is_one_line_and_status_2(run, raster, tmp_path, options, sentence):
    status, out, err = run("prepare", raster, tmp_path / "data", "--encoding", "amplitude", *options)
    assert (status, out) == (2, "")
    assert err.strip().endswith(sentence)
    assert len(err.strip().splitlines()) == 1


def test_the_command_line_starts_without_torch():
    import subprocess
    import sys

    code = "import sys, sar_gen.cli; sys.exit('torch' in sys.modules or 'pyarrow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
