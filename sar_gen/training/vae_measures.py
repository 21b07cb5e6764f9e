"""How well a VAE keeps SAR patches: what is left of their texture, speckle and spectrum after encoding and decoding.

    python -m sar_gen.training.vae_measures CHECKPOINT_FOLDER DATA_FOLDER [--patches N] [--encoding ENCODING]

prints the reconstruction of the ``reference`` patches of ``DATA_FOLDER/s1_pairs.csv`` by the checkpoint's VAE and, as
what a linear code of the same size does, that by a principal component analysis of 8 x 8 blocks in each encoding.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sar_gen.amplitude import from_model, to_model
from sar_gen.errors import InputError, SarGenError
from sar_gen.quality.blocks import block_edges
from sar_gen.quality.speckle import equivalent_looks, speckle_correlation
from sar_gen.quality.spectrum import FREQUENCIES, patch_spectra, pooled, spectrum_distance
from sar_gen.quality.texture import GLCM_NAMES, glcm_descriptors
from sar_gen.reference_statistics import pair_amplitude, read_grey, read_pairs

ENCODINGS = ("linear", "root", "db")
BLOCK = 8
FINE = 0.25
"""Frequencies above this, in cycles a pixel, are structure under 4 pixels: speckle."""


def reconstruction(
    vae: Any, amplitudes: Sequence[NDArray[np.float32]], encoding: str, device: str
) -> dict[str, float]:
    """Encode and decode patches and return ``fidelity`` of what comes out; the posterior's mean is decoded.

    Args:
        vae: AutoencoderKL, in the dtype that it is to be measured in.
        amplitudes: ``(h, w)`` studio amplitude, sides divisible by 8.
        encoding: of the model's grey.
        device: to calculate on; the VAE is moved there.
    """
    vae = vae.to(device).eval()
    return fidelity(amplitudes, [reconstruct(vae, amplitude, encoding) for amplitude in amplitudes])


def reconstruct(vae: Any, amplitude: NDArray[np.float32], encoding: str) -> NDArray[np.float32]:
    """Return what the VAE makes of one patch: ``(h, w)`` studio amplitude, mean of the three channels."""
    import torch

    parameter = next(vae.parameters())
    grey = torch.from_numpy(np.ascontiguousarray(to_model(amplitude, encoding), dtype=np.float32))
    pixels = (2 * grey - 1).expand(1, 3, *grey.shape).to(parameter.device, parameter.dtype)
    with torch.inference_mode():
        decoded = vae.decode(vae.encode(pixels).latent_dist.mode()).sample
    made = decoded.float().mean(dim=1)[0].add(1).div(2).clamp(0, 1).cpu().numpy()
    return np.asarray(from_model(made, encoding), dtype=np.float32)


def fidelity(real: Sequence[NDArray[np.float32]], made: Sequence[NDArray[np.float32]]) -> dict[str, float]:
    """Compare patches with their reconstructions, in linear amplitude.

    Returns:
        ``psnr``: mean over patches, dB, of a peak of 1. ``contrast``, ``homogeneity``, ``energy``, ``correlation``
        (GLCM, ``quality.texture``), ``enl`` and ``speckle_correlation`` (at 1 pixel, both directions,
        ``quality.speckle``), ``std`` and ``mean`` of amplitude: mean over the patches of the reconstructions divided
        by that of the originals, so 1 is perfect; of ``enl`` the medians, since on a few patches its mode lies far
        out. Patches where either side is undefined are left out.
        ``spectrum_db``: root mean square difference of the mean radial spectra (``quality.spectrum``); ``fine_db``:
        mean difference of theirs above 0.25 cycles a pixel, below 0 where fine structure is lost. ``blocks_db``: by
        how much the grid of 8 x 8 pixels stands out more than in the originals.
    """
    rows = {side: np.array([_measures(patch) for patch in patches]) for side, patches in (("r", real), ("m", made))}
    known = np.isfinite(rows["r"]) & np.isfinite(rows["m"])
    ratios = [
        _typical(name, rows["m"][fine, i]) / _typical(name, rows["r"][fine, i]) if fine.any() else float("nan")
        for i, (name, fine) in enumerate(zip(_NAMES, known.T, strict=True))
    ]
    errors = [np.square(m.astype(np.float64) - r).mean() for r, m in zip(real, made, strict=True)]
    spectra = {side: pooled(patch_spectra(patches).radial) for side, patches in (("r", real), ("m", made))}
    with np.errstate(divide="ignore", invalid="ignore"):
        decibels = 10 * np.log10(spectra["m"] / spectra["r"])
    edges = [block_edges(m) - block_edges(r) for r, m in zip(real, made, strict=True)]
    found = {"psnr": np.mean([-10 * np.log10(max(error, 1e-12)) for error in errors])}
    found |= dict(zip(_NAMES, ratios, strict=True))
    found |= {
        "spectrum_db": spectrum_distance(spectra["m"], spectra["r"]),
        "fine_db": np.nanmean(decibels[FREQUENCIES > FINE]),
        "blocks_db": np.nanmean(edges),
    }
    return {name: float(value) for name, value in found.items()}


_NAMES = ("contrast", "homogeneity", "energy", "correlation", "enl", "speckle_correlation", "std", "mean")


def _typical(name: str, values: NDArray[np.float64]) -> float:
    return float(np.median(values) if name == "enl" else np.mean(values))


def _measures(amplitude: NDArray[np.float32]) -> list[float]:
    glcm = dict(zip(GLCM_NAMES, glcm_descriptors(amplitude), strict=True))
    looks = equivalent_looks(amplitude)
    speckle = speckle_correlation(amplitude, estimate=looks)
    near = (speckle.along_rows[1] + speckle.along_columns[1]) / 2
    return [*(glcm[name] for name in _NAMES[:4]), looks.looks, near, float(amplitude.std()), float(amplitude.mean())]


def block_code(
    train: Iterable[NDArray[np.float32]], encoding: str, components: int = 16, block: int = BLOCK
) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    """Return a function that keeps some principal components of each ``block`` x ``block`` pixels of a patch.

    The best linear code of as many numbers as a VAE's latents, by squared error in the encoding's grey: a yardstick.

    Args:
        train: ``(h, w)`` studio amplitude that the components are found in; a few hundred do.
        encoding: of the grey that is coded.
        components: numbers a block.
        block: side, in pixels; sides of patches are divisible by it.
    """
    count, first, second = 0, np.zeros(block**2), np.zeros((block**2, block**2))
    for amplitude in train:
        rows = _blocks(to_model(amplitude, encoding), block)
        count, first, second = count + len(rows), first + rows.sum(axis=0), second + rows.T @ rows
    mean = first / count
    basis = np.linalg.eigh(second / count - np.outer(mean, mean))[1][:, -components:]

    def code(amplitude: NDArray[np.float32]) -> NDArray[np.float32]:
        rows = _blocks(to_model(amplitude, encoding), block) - mean
        made = np.clip(rows @ basis @ basis.T + mean, 0, 1)
        height, width = amplitude.shape
        grid = made.reshape(height // block, width // block, block, block).swapaxes(1, 2)
        return np.asarray(from_model(grid.reshape(height, width).astype(np.float32), encoding), dtype=np.float32)

    return code


def _blocks(grey: NDArray[Any], block: int) -> NDArray[np.float64]:
    height, width = grey.shape
    cut = grey.reshape(height // block, block, width // block, block).swapaxes(1, 2)
    return cut.reshape(-1, block**2).astype(np.float64)


def split_patches(folder: Path, split: str, count: int) -> list[NDArray[np.float32]]:
    """Return studio amplitude of up to ``count`` patches of ``s1_pairs.csv``, spread evenly over the split.

    Raises:
        InputError: there are none.
    """
    pairs = [pair for pair in read_pairs(folder) if pair.split == split]
    if not pairs:
        raise InputError(f"{folder / 's1_pairs.csv'} has no patch of the split {split!r}; give another data folder.")
    places = np.linspace(0, len(pairs) - 1, min(count, len(pairs))).round().astype(int)
    return [pair_amplitude(read_grey(pairs[i].sar)) for i in places]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table as JSON; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m sar_gen.training.vae_measures", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("checkpoint", type=Path, help="pipeline folder, or the folder of its VAE")
    parser.add_argument("data", type=Path, help="folder with s1_pairs.csv")
    parser.add_argument("--encoding", choices=ENCODINGS, default="linear", help="of the VAE's grey (default: linear)")
    parser.add_argument("--patches", type=int, default=128, help="held-out patches (default: 128)")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(arguments)
    try:
        vae = _load(options.checkpoint)
        held_out = split_patches(options.data, "reference", options.patches)
        train = split_patches(options.data, "train", 256)
        table = {f"vae ({options.encoding})": reconstruction(vae, held_out, options.encoding, options.device)}
        for encoding in ENCODINGS:
            code = block_code(train, encoding, vae.config.latent_channels)
            table[f"pca ({encoding})"] = fidelity(held_out, [code(patch) for patch in held_out])
    except SarGenError as error:
        print(error, file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    print(json.dumps({name: {k: round(v, 4) for k, v in row.items()} for name, row in table.items()}, indent=1))
    return 0


def _load(folder: Path) -> Any:
    import torch
    from diffusers import AutoencoderKL

    place = folder / "vae" if (folder / "vae").is_dir() else folder
    if not (place / "config.json").is_file():
        raise InputError(f"{folder} holds no VAE (vae/config.json); give a pipeline folder.")
    return AutoencoderKL.from_pretrained(place, torch_dtype=torch.float32, local_files_only=True)


if __name__ == "__main__":
    sys.exit(main())
