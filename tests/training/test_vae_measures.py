"""What is measured of reconstructions: perfect ones are 1, smooth ones lose contrast and gain looks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

from sar_gen.training.vae import build_vae
from sar_gen.training.vae_measures import block_code, fidelity, main, reconstruct, reconstruction


def speckle(seed: int, side: int = 64) -> NDArray[np.float32]:
    random = np.random.default_rng(seed)
    field = gaussian_filter(random.gamma(4, 1 / 4, (side, side)), 0.6)
    return np.clip(0.35 * np.sqrt(field), 0, 1).astype(np.float32)


PATCHES = [speckle(i) for i in range(3)]


def test_what_is_kept_whole_measures_one() -> None:
    found = fidelity(PATCHES, PATCHES)
    ratios = ("contrast", "homogeneity", "energy", "correlation", "enl", "speckle_correlation", "std", "mean")
    assert [found[name] for name in ratios] == pytest.approx([1.0] * 8)
    assert found["spectrum_db"] == found["fine_db"] == found["blocks_db"] == 0
    assert found["psnr"] == pytest.approx(120)


def test_smoothing_lowers_contrast_and_raises_looks() -> None:
    found = fidelity(PATCHES, [gaussian_filter(patch, 0.8) for patch in PATCHES])
    assert found["contrast"] < 0.6
    assert found["enl"] > 1.3
    assert found["homogeneity"] > 1.05
    assert found["fine_db"] < -3


def test_psnr_is_that_of_a_peak_of_one() -> None:
    assert fidelity(PATCHES, [patch + np.float32(0.01) for patch in PATCHES])["psnr"] == pytest.approx(40, abs=0.01)


@pytest.mark.parametrize("encoding", ["linear", "root"])
def test_all_components_of_a_block_lose_nothing(encoding: str) -> None:
    code = block_code(PATCHES, encoding, components=64)
    assert np.allclose(code(PATCHES[0]), PATCHES[0], atol=1e-5)
    few = block_code(PATCHES, encoding, components=8)
    assert fidelity(PATCHES, [few(patch) for patch in PATCHES])["contrast"] < 0.5


def test_reconstruction_is_that_of_the_posterior_mean() -> None:
    torch.manual_seed(0)
    vae = build_vae("tiny").eval()
    made = reconstruct(vae, PATCHES[0], "root")
    grey = torch.from_numpy(np.sqrt(PATCHES[0]))
    with torch.inference_mode():
        picture = vae.decode(vae.encode((2 * grey - 1).expand(1, 3, 64, 64)).latent_dist.mean).sample
    expected = ((picture.mean(dim=1)[0] + 1) / 2).clamp(0, 1).square().numpy()
    assert np.allclose(made, expected, atol=1e-6)
    assert reconstruction(vae, PATCHES[:1], "root", "cpu") == fidelity(PATCHES[:1], [made])


def test_command_prints_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    build_vae("tiny").save_pretrained(tmp_path / "checkpoint" / "vae")
    lines = ["split,terrain,overlap_group,sar,optical"]
    for i, split in enumerate(("train", "train", "reference")):
        Image.fromarray(np.rint(255 * speckle(i)).astype(np.uint8)).save(tmp_path / f"{i}.png")
        lines.append(f"{split},forest,{i},{i}.png,{i}.png")
    (tmp_path / "s1_pairs.csv").write_text("\n".join(lines) + "\n")
    assert main([str(tmp_path / "checkpoint"), str(tmp_path), "--patches", "1"]) == 0
    table = json.loads(capsys.readouterr().out)
    assert list(table) == ["vae (linear)", "pca (linear)", "pca (root)", "pca (db)"]
    assert table["pca (linear)"]["psnr"] > table["vae (linear)"]["psnr"]
    assert main([str(tmp_path), str(tmp_path)]) == 2
