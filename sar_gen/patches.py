"""Reading SAR patches (PNG, TIFF and GeoTIFF, JPEG, NPY) as the studio's amplitude, and writing them.

A file says what its values are, seldom what they mean: ``PixelMeaning`` says that, or the settings that the studio
wrote into its own files. Sizes are checked in the header, before anything is decoded.
"""

from __future__ import annotations

import hashlib
import io
import json
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import JpegImagePlugin, PngImagePlugin, TiffImagePlugin

from sar_gen.amplitude import AmplitudeEncoding, Scale, db_to_linear, normalise, pooled_scale
from sar_gen.errors import InputError

DEFAULT_MAX_PIXELS = 100_000_000
SUFFIXES = (".png", ".tif", ".tiff", ".jpg", ".jpeg", ".npy")
STUDIO_KEY = "sar_gen"
"""Under this key the studio's settings lie in PNG text and in the JSON of a TIFF's description."""

FileEncoding = Literal["studio", "amplitude", "intensity", "db"]
_GDAL_NODATA = 42113
_COMPLEX_INTEGER = 5  # TIFF sample format of Sentinel-1 SLC: 16-bit real and imaginary parts
_NO_COMPRESSION = 1


@dataclass(frozen=True)
class Patch:
    """One patch of SAR.

    Attributes:
        amplitude: ``(height, width)`` float32 in [0, 1].
        name: file name or title.
        encoding: ``linear`` is the studio's amplitude.
        polarisation: ``VV``, ``VH``, …, where known.
        scale: the pair that brought it to [0, 1], where known.
        group: patches that share ground share a group; empty means that this is not known.
        credit: whom to name when it is shown.
        path: the file that the amplitude was read from.
    """

    amplitude: NDArray[np.float32]
    name: str
    encoding: AmplitudeEncoding = "linear"
    polarisation: str | None = None
    scale: Scale | None = None
    group: str = ""
    credit: str = ""
    path: Path | None = None


@dataclass(frozen=True)
class PixelMeaning:
    """How the values of a file become the studio's amplitude.

    Attributes:
        encoding: ``studio`` (already divided by mean + 3 std: 8 or 16-bit full scale, or floats in [0, 1]),
            ``amplitude`` (linear; of complex signal the modulus), ``intensity`` (power: its square root is taken) or
            ``db`` (decibels of power).
        scale: mean and std of linear amplitude in the file's unit; ``"pool"`` takes them from all patches of the
            folder. Not used by ``studio``.
        db_range: decibels at grey 0 and at full scale, for integer files in ``db``.
        polarisation: noted on the patches.
    """

    encoding: FileEncoding
    scale: Scale | Literal["pool"] | None = "pool"
    db_range: tuple[float, float] | None = None
    polarisation: str | None = None

    def __post_init__(self) -> None:
        if self.encoding not in get_args(FileEncoding):
            raise InputError(
                f"The pixel meaning {self.encoding!r} is unknown; choose one of {', '.join(get_args(FileEncoding))}."
            )
        if self.db_range is not None and not self.db_range[0] < self.db_range[1]:
            raise InputError(f"The decibel range {self.db_range} is empty; give the lower end first.")


def read_patch(path: Path, meaning: PixelMeaning | None = None, max_pixels: int = DEFAULT_MAX_PIXELS) -> Patch:
    """Read one patch.

    Args:
        path: PNG, TIFF, JPEG or NPY file.
        meaning: what its values mean; ``None`` for files that the studio wrote. Of a studio PNG the float amplitude
            beside it is read where it is there, the 8-bit view otherwise.
        max_pixels: larger files are refused before they are decoded.

    Raises:
        InputError: the file cannot be used; one sentence says why and what to do.
    """
    path = Path(path)
    if meaning is None:
        return _read_studio_patch(path, max_pixels)
    if meaning.encoding != "studio" and meaning.scale == "pool":
        raise InputError(
            f"{path.name} alone has no scale: mean and standard deviation belong to a whole set or acquisition; "
            "give the folder of its set, or a scale."
        )
    values, metadata = read_values(path, max_pixels)
    return _finished(_in_unit(values, metadata, meaning, path.name), meaning, meaning.scale, path)


def read_folder(
    folder: Path, meaning: PixelMeaning | None = None, max_pixels: int = DEFAULT_MAX_PIXELS
) -> list[Patch]:
    """Read every patch of a folder (not of its subfolders), in the order of their names.

    Args:
        folder: a run of the studio, of which each patch is read once, or any folder of patches.
        meaning: what the values mean, the same for all; ``None`` for files that the studio wrote. The scale
            ``"pool"`` is taken from all pixels of the folder.
        max_pixels: for each file.

    Raises:
        InputError: a file cannot be used, or there is none.
    """
    folder = Path(folder)
    files = _patch_files(folder)
    if not files:
        raise InputError(f"{folder} holds no patches; put PNG, TIFF, JPEG or NPY files there.")
    if meaning is None:
        patches = {patch.path: patch for patch in (read_patch(path, None, max_pixels) for path in files)}
        return list(patches.values())  # a PNG and the float amplitude beside it are one patch
    units = []
    for path in files:
        values, metadata = read_values(path, max_pixels)
        units.append(_in_unit(values, metadata, meaning, path.name))
    scale = meaning.scale
    if scale == "pool":
        scale = None
        if meaning.encoding != "studio":
            scale = pooled_scale(units, f"all {len(units)} patches of {folder.name}")
    return [_finished(unit, meaning, scale, path) for unit, path in zip(units, files, strict=True)]


def read_values(
    path: Path, max_pixels: int = DEFAULT_MAX_PIXELS, *, file: BinaryIO | None = None
) -> tuple[NDArray[Any], dict[str, Any]]:
    """Read the values of a file as they are.

    Args:
        path: PNG, TIFF, JPEG or NPY file, recognised by its content.
        max_pixels: larger files are refused before they are decoded.
        file: the content, where it does not lie on disk under ``path`` (an archive member); must be seekable.

    Returns:
        ``(height, width)`` float32, or complex64 for complex files; integers keep their value. And metadata:
        ``format``, ``dtype`` (of the file), ``levels`` (full scale of 8 and 16-bit files, else ``None``) and
        ``studio`` (the settings that the studio wrote, else ``None``).

    Raises:
        InputError: the file is missing, empty, of another kind, damaged, too large, of unlike channels or several
            bands, or has values that are not finite.
    """
    path = Path(path)
    if file is not None:
        return _checked(path.name, *_decode(path.name, file, max_pixels))
    try:
        with path.open("rb") as opened:
            return _checked(path.name, *_decode(path.name, opened, max_pixels))
    except FileNotFoundError:
        raise InputError(f"There is no file {path}; check the path.") from None
    except IsADirectoryError:
        raise InputError(f"{path} is a folder; choose a file in it.") from None
    except PermissionError:
        raise InputError(f"{path} may not be read; check its permissions.") from None


def npy_bytes(array: NDArray[Any]) -> bytes:
    """Return an ``.npy`` file of the array, float32 little-endian (complex64 for complex arrays)."""
    buffer = io.BytesIO()
    kind = "<c8" if np.iscomplexobj(array) else "<f4"
    np.save(buffer, np.ascontiguousarray(array, dtype=kind), allow_pickle=False)
    return buffer.getvalue()


def tiff_bytes(array: NDArray[Any], metadata: dict[str, Any] | None = None) -> bytes:
    """Return a 32-bit float TIFF of ``(height, width)`` amplitude; the same input gives the same bytes.

    Args:
        array: amplitude.
        metadata: settings as in the studio's PNGs, kept in the image description as JSON.
    """
    import tifffile

    buffer = io.BytesIO()
    description = None if metadata is None else json.dumps({STUDIO_KEY: metadata}, sort_keys=True)
    tifffile.imwrite(
        buffer, np.ascontiguousarray(array, dtype="<f4"), byteorder="<", photometric="minisblack",
        description=description, metadata=None, software="SAR studio",
    )  # fmt: skip
    return buffer.getvalue()


# From values to amplitude ------------------------------------------------------------------------------------------


def _in_unit(values: NDArray[Any], metadata: dict[str, Any], meaning: PixelMeaning, name: str) -> NDArray[np.float32]:
    """Return linear amplitude in the unit of the file's scale; for ``studio``, the finished amplitude.

    Raises:
        InputError: the values cannot mean that.
    """
    levels = metadata["levels"]
    integer = np.issubdtype(np.dtype(metadata["dtype"]), np.integer)
    if np.iscomplexobj(values):
        if meaning.encoding != "amplitude":
            raise InputError(f"{name} is complex signal; its meaning can only be 'amplitude'.")
        return np.abs(values).astype(np.float32)
    if meaning.encoding == "studio":
        if integer and levels is None:
            raise InputError(f"{name} holds {metadata['dtype']} values; studio amplitude is 8-bit, 16-bit or float.")
        amplitude = np.asarray(values / (levels if integer else 1), dtype=np.float32)
        if amplitude.min() < 0 or amplitude.max() > 1:
            raise InputError(
                f"{name} has values from {amplitude.min():.4g} to {amplitude.max():.4g}; studio amplitude lies in "
                "[0, 1]: choose another meaning (amplitude, intensity, db)."
            )
        return amplitude
    if meaning.encoding == "db":
        if integer:
            if meaning.db_range is None or levels is None:
                raise InputError(f"{name} holds integers; say which decibels its grey range covers (db_range).")
            low, high = meaning.db_range
            values = low + values / np.float32(levels) * (high - low)
        return np.asarray(db_to_linear(values.astype(np.float64)), dtype=np.float32)
    if values.min() < 0:
        raise InputError(
            f"{name} has values down to {values.min():.4g}; {meaning.encoding} is never negative: are these decibels?"
        )
    return np.sqrt(values) if meaning.encoding == "intensity" else values


def _finished(
    unit: NDArray[np.float32], meaning: PixelMeaning, scale: Scale | Literal["pool"] | None, path: Path
) -> Patch:
    if isinstance(scale, str):
        scale = None  # pooling means nothing to amplitude that is finished
    if meaning.encoding != "studio":
        if scale is None:
            raise InputError(
                f"{path.name} has no scale; give the mean and standard deviation of its set, or pool its folder."
            )
        unit = normalise(unit, scale)
    return Patch(unit, path.name, "linear", meaning.polarisation, scale, path=path)


# Files that the studio wrote ---------------------------------------------------------------------------------------


def _read_studio_patch(path: Path, max_pixels: int) -> Patch:
    values, metadata = read_values(path, max_pixels)
    settings = metadata["studio"]
    if metadata["format"] == "NPY":
        settings = _settings_beside(path)
    facts = settings.get("amplitude") if isinstance(settings, dict) else None
    if not isinstance(facts, dict):
        raise InputError(
            f"{path.name} does not say what its pixels mean; say it: studio amplitude, linear amplitude, intensity or "
            "decibels."
        )
    beside = path.parent / Path(str(facts.get("file", ""))).name
    if metadata["format"] == "PNG" and beside.suffix == ".npy" and beside.is_file():
        values, metadata = read_values(beside, max_pixels)
        path = beside
    elif metadata["format"] == "PNG" and settings.get("remap", "linear") != "linear":
        raise InputError(
            f"{path.name} is a picture under the {settings['remap']} view, which cannot be measured; "
            "give the amplitude file (.npy) beside it."
        )
    if metadata["format"] == "NPY" and facts.get("sha256") not in (None, _sha256(values)):
        raise InputError(
            f"{path.name} has changed since the studio wrote it; give its meaning to use it all the same."
        )
    known: dict[Any, AmplitudeEncoding] = {"linear": "linear", "db": "db"}
    return Patch(
        _in_unit(values, metadata, PixelMeaning("studio"), path.name),
        path.name,
        known.get(facts.get("encoding"), "unknown"),
        facts.get("polarisation"),
        path=path,
    )


def _sha256(values: NDArray[Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(values, dtype="<f4").tobytes()).hexdigest()


def _run_json(folder: Path) -> dict[str, Any] | None:
    try:
        data = json.loads((folder / "run.json").read_text())
    except (OSError, ValueError):
        return None
    return data if isinstance(data, dict) and isinstance(data.get("images"), list) else None


def _run_images(run: dict[str, Any]) -> list[dict[str, Any]]:
    return [image for image in run["images"] if isinstance(image, dict) and image.get("amplitude_file")]


def _settings_beside(path: Path) -> dict[str, Any] | None:
    """Return the settings of a float amplitude file, from its run's JSON or from the PNG of the same name."""
    run = _run_json(path.parent)
    for image in _run_images(run) if run else []:
        if image["amplitude_file"] == path.name:
            checkpoint = run.get("checkpoint") if run else None
            checkpoint = checkpoint if isinstance(checkpoint, dict) else {}
            facts = {
                "sha256": image.get("sha256"),
                "encoding": checkpoint.get("amplitude_encoding"),
                "polarisation": checkpoint.get("polarisation"),
            }
            return {"amplitude": facts}
    picture = path.with_suffix(".png")
    if picture.is_file():
        settings = read_values(picture)[1]["studio"]
        if isinstance(settings, dict) and (settings.get("amplitude") or {}).get("file") == path.name:
            return settings
    return None


def _patch_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise InputError(f"There is no folder {folder}; check the path.")
    run = _run_json(folder)
    if run is not None:  # the amplitudes only: no guide, no view
        names = [Path(str(image["amplitude_file"])).name for image in _run_images(run)]
        return [folder / name for name in names if (folder / name).is_file()]
    try:
        entries: Iterable[Path] = sorted(folder.iterdir())
    except PermissionError:
        raise InputError(f"{folder} may not be read; check its permissions.") from None
    return [p for p in entries if p.suffix.lower() in SUFFIXES and p.is_file() and not p.name.startswith(".")]


# Decoding ----------------------------------------------------------------------------------------------------------


def _decode(name: str, file: BinaryIO, max_pixels: int) -> tuple[NDArray[Any], dict[str, Any]]:
    head = file.read(33)
    file.seek(0)
    if not head:
        raise InputError(f"{name} is empty (0 bytes); choose another file.")
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        decode = _decode_png
    elif head.startswith(b"\xff\xd8\xff"):
        decode = _decode_jpeg
    elif head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        decode = _decode_tiff
    elif head.startswith(b"\x93NUMPY"):
        decode = _decode_npy
    else:
        raise InputError(f"{name} is not a PNG, TIFF, JPEG or NPY file, whatever its name says; choose another file.")
    try:
        return decode(name, file, max_pixels)
    except (InputError, MemoryError):
        raise
    except Exception as error:  # on a damaged file a decoder may raise anything
        raise InputError(f"{name} is damaged or cut off and cannot be read; copy or export it again.") from error


def _check_size(name: str, width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise InputError(
            f"{name} is {width} x {height} = {width * height / 1e6:.4g} megapixels, more than the "
            f"{max_pixels / 1e6:.4g} that are read; crop it, or raise SAR_GEN_MAX_PIXELS."
        )
    if width * height < 1:
        raise InputError(f"{name} has no pixels; choose another file.")


def _decode_png(name: str, file: BinaryIO, max_pixels: int) -> tuple[NDArray[Any], dict[str, Any]]:
    width, height, depth, colour = struct.unpack(">IIBB", file.read(26)[16:])
    file.seek(0)
    _check_size(name, width, height, max_pixels)
    if depth == 16 and colour != 0:
        raise InputError(f"{name} is a 16-bit colour PNG; save the one band that is meant as 16-bit greyscale.")
    # The plugin itself, not Image.open, whose limit against decompression bombs is a global of its own.
    with PngImagePlugin.PngImageFile(file) as image:
        image.load()
        text = image.text.get(STUDIO_KEY)
        values = _pixels(name, image)
    return values, {"format": "PNG", "studio": _parsed(text)}


def _decode_jpeg(name: str, file: BinaryIO, max_pixels: int) -> tuple[NDArray[Any], dict[str, Any]]:
    with JpegImagePlugin.JpegImageFile(file) as image:
        _check_size(name, image.width, image.height, max_pixels)
        image.load()
        return _pixels(name, image), {"format": "JPEG", "studio": None}


def _pixels(name: str, image: Any) -> NDArray[Any]:
    if image.mode not in ("1", "P", "PA", "L", "LA", "I", "I;16", "RGB", "RGBA"):
        raise InputError(f"{name} has {image.mode} colours; save it as greyscale.")
    if image.mode in ("1", "P", "PA"):
        image = image.convert("L" if image.mode == "1" else "RGBA")
    array = np.asarray(image)
    if array.dtype == np.int32:  # PIL's mode "I", in which some versions give 16-bit greyscale
        array = array.astype(np.uint16)
    return array if array.ndim == 2 else _one_channel(name, array)


def _one_channel(name: str, array: NDArray[Any]) -> NDArray[Any]:
    """Return the one picture that the channels of ``(height, width, channels)`` hold.

    Raises:
        InputError: the channels differ, or pixels are transparent.
    """
    channels = array.shape[2]
    if channels in (2, 4) and array.dtype == np.uint8:
        if (array[..., -1] < 255).any():
            raise InputError(f"{name} has transparent pixels; save it without an alpha channel.")
        array = array[..., :-1]
    if array.shape[2] == 1 or (array.shape[2] == 3 and (array == array[..., :1]).all()):
        return array[..., 0]
    raise InputError(
        f"{name} has {array.shape[2]} unlike channels; SAR amplitude is one: save the band that is meant as greyscale."
    )


def _decode_tiff(name: str, file: BinaryIO, max_pixels: int) -> tuple[NDArray[Any], dict[str, Any]]:
    import tifffile

    with tifffile.TiffFile(file) as tiff:
        pages = [page for page in tiff.pages if not page.is_reduced]
        page = tiff.pages.first
        _check_size(name, page.imagewidth, page.imagelength, max_pixels)
        if page.is_tiled:
            _check_size(f"A tile of {name}", page.tilewidth, page.tilelength, max_pixels)
        if len(pages) > 1:
            raise InputError(f"{name} holds {len(pages)} images; save the band that is meant as a file of its own.")
        array = _tiff_array(name, file, page)
        if array.ndim == 3:
            array = _one_channel(name, np.moveaxis(array, 0, -1) if page.planarconfig == 2 else array)
        nodata = page.tags.get(_GDAL_NODATA)
        _check_nodata(name, array, None if nodata is None else nodata.value)
        return array, {"format": "TIFF", "studio": (_parsed(page.description) or {}).get(STUDIO_KEY)}


def _tiff_array(name: str, file: BinaryIO, page: Any) -> NDArray[Any]:
    if page.sampleformat == _COMPLEX_INTEGER:
        if page.compression != _NO_COMPRESSION or page.is_tiled or page.bitspersample != 32:
            raise InputError(f"{name} is compressed integer SLC, which is not read; save it as complex64.")
        return _integer_slc(file, page)
    try:
        return page.asarray()
    except ValueError as error:
        if "imagecodecs" not in str(error):
            raise
    # LZW and other schemes that tifffile leaves to a package of its own: Pillow reads them through libtiff.
    file.seek(0)
    with TiffImagePlugin.TiffImageFile(file) as image:
        if image.mode not in ("L", "I;16", "I;16B", "F"):
            raise InputError(f"{name} is compressed in a way that is not read; save it without compression.")
        image.load()
        return np.asarray(image)


def _integer_slc(file: BinaryIO, page: Any) -> NDArray[np.complex64]:
    """Read 16-bit real and imaginary parts (Sentinel-1 SLC), which numpy has no type for."""
    parts = []
    for offset, size in zip(page.dataoffsets, page.databytecounts, strict=True):
        file.seek(offset)
        parts.append(np.frombuffer(file.read(size), dtype=np.dtype(np.int16).newbyteorder(page.parent.byteorder)))
    pairs = np.concatenate(parts).astype(np.float32).reshape(page.imagelength, page.imagewidth, 2)
    return (pairs[..., 0] + 1j * pairs[..., 1]).astype(np.complex64)


def _check_nodata(name: str, array: NDArray[Any], nodata: Any) -> None:
    try:
        value = float(str(nodata).strip("\0 "))
    except ValueError:
        return
    missing = int(np.count_nonzero(array == value))
    if missing:
        raise InputError(f"{name} has {missing} of {array.size} pixels without data ({value:g}); fill or crop them.")


def _decode_npy(name: str, file: BinaryIO, max_pixels: int) -> tuple[NDArray[Any], dict[str, Any]]:
    version = np.lib.format.read_magic(file)
    read_header = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if read_header is None:
        raise InputError(f"{name} is an NPY file of version {version}; save a plain two-dimensional array.")
    shape, _, dtype = read_header(file)
    if dtype.hasobject:
        raise InputError(f"{name} holds Python objects, which are never loaded; save a plain array of numbers.")
    if len(shape) != 2 or dtype.kind not in "uifc":
        raise InputError(
            f"{name} holds an array of shape {shape} and type {dtype}; save one (height, width) array of numbers."
        )
    _check_size(name, shape[1], shape[0], max_pixels)
    start = file.tell()
    if file.seek(0, io.SEEK_END) - start < shape[0] * shape[1] * dtype.itemsize:
        raise InputError(f"{name} is damaged or cut off and cannot be read; copy or export it again.")
    file.seek(0)
    return np.lib.format.read_array(file, allow_pickle=False), {"format": "NPY", "studio": None}


def _parsed(text: Any) -> dict[str, Any] | None:
    try:
        data = json.loads(text)
    except (TypeError, ValueError):
        return None
    return data if isinstance(data, dict) else None


def _checked(name: str, array: NDArray[Any], metadata: dict[str, Any]) -> tuple[NDArray[Any], dict[str, Any]]:
    """Return the array as float32 or complex64, all finite, with its metadata completed.

    Raises:
        InputError: values are not finite.
    """
    metadata["dtype"] = array.dtype.name
    metadata["levels"] = {np.dtype(np.uint8): 255, np.dtype(np.uint16): 65535}.get(array.dtype.newbyteorder("="))
    with np.errstate(over="ignore"):
        values = array.astype(np.complex64 if np.iscomplexobj(array) else np.float32)
    bad = int(np.count_nonzero(~np.isfinite(values)))
    if bad:
        raise InputError(
            f"{name} has {bad} of {values.size} pixels that are NaN or infinite; fill or crop them first."
        )
    return values, metadata
