"""The real Sentinel-1 patches inside the installed package ``bigearthnet-common``, which may be shown."""

from __future__ import annotations

import importlib.util
import io
import json
import tarfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sar_gen.amplitude import S1_VV, db_to_linear, normalise, pooled_scale
from sar_gen.errors import InputError, SarGenError
from sar_gen.patches import Patch, read_values
from sar_gen.reference_sets import ReferenceInfo, ReferenceSet, from_patches

PACKAGE = "bigearthnet_common"
FILE = "BigEarthNet-S1-Example.tar.bz2"
COUNT = 6
CREDIT = (
    "BigEarthNet (Sumbul, Charfuelan, Demir, Markl 2019; Sumbul et al. 2021), from the package bigearthnet-common; "
    "contains modified Copernicus Sentinel data 2017-2018."
)
LICENCE = "CDLA-Permissive-1.0 (BigEarthNet); Apache-2.0 (package)"
SENSOR = "Sentinel-1 IW, C band, 10 m"


def packaged_infos() -> list[ReferenceInfo]:
    """Return what is known of the sets, none where the package is not installed."""
    if _archive() is None:
        return []
    return [
        ReferenceInfo(f"ben-{p.lower()}", _title(p), COUNT, p, "linear", True, CREDIT, "package") for p in ("VV", "VH")
    ]


def _archive() -> Path | None:
    # Importing the package would make folders and needs a pydantic that it no longer finds; its file is all we want.
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        return None
    path = Path(next(iter(spec.submodule_search_locations))) / FILE
    return path if path.is_file() else None


def _title(polarisation: str) -> str:
    return f"BigEarthNet, six mixed landscapes (Sentinel-1 {polarisation})"


@lru_cache(maxsize=2)
def packaged_set(polarisation: str) -> ReferenceSet:
    """Return the six BigEarthNet patches: float32 sigma0 in dB, 120 x 120, so their conversion is exact.

    VV takes the scale of ``S1_VV``, which is sigma0 amplitude too. No calibrated VH scale exists, so VH takes the
    pair of its own six patches.
    """
    found = _archive()
    if found is None:
        raise InputError(
            "The BigEarthNet patches come with the package bigearthnet-common, which is not installed; run "
            "'pip install bigearthnet-common==2.8.0', or choose another reference set."
        )
    linear: dict[str, NDArray[Any]] = {}
    labels: dict[str, list[str]] = {}
    try:
        with tarfile.open(found) as archive:
            for member in archive.getmembers():
                if not member.isfile():
                    continue
                patch_id = Path(member.name).parent.name
                file = archive.extractfile(member)
                if file is None:
                    continue
                if member.name.endswith(f"_{polarisation}.tif"):
                    decibels, _ = read_values(Path(member.name), file=io.BytesIO(file.read()))
                    linear[patch_id] = db_to_linear(decibels.astype(np.float64))
                elif member.name.endswith("_labels_metadata.json"):
                    labels[patch_id] = json.load(file)["labels"]
    except (OSError, EOFError, ValueError, KeyError, tarfile.TarError) as error:
        raise SarGenError(f"{found} cannot be read ({error}); install bigearthnet-common again.") from error
    if polarisation == "VV":
        scale = S1_VV
        note = f"Scale of {S1_VV.source}, so levels compare with the s1 VV sets."
    else:
        scale = pooled_scale(linear.values(), "the six BigEarthNet example patches, VH, sigma0 amplitude")
        note = "Scale of these six patches themselves: levels do not compare with s1-vh, which is uncalibrated."
    patches = [
        Patch(
            amplitude=normalise(linear[patch_id], scale),
            name=f"{', '.join(labels.get(patch_id, ['no label']))} ({patch_id})",
            encoding="linear",
            polarisation=polarisation,
            scale=scale,
            group=patch_id,
            credit=CREDIT,
        )
        for patch_id in sorted(linear)
    ]
    return from_patches(
        patches,
        f"ben-{polarisation.lower()}",
        title=_title(polarisation),
        sensor=SENSOR,
        credit=CREDIT,
        licence=LICENCE,
        note=f"Six patches of 120 x 120 pixels from different countries; a small set, so its floors are wide. {note}",
    )
