"""Reading guides from files: drawings, class maps, optical images and SAR, and what is done to them on the way.

A picture (PNG, JPEG, WebP, ...) is read as it is shown: turned as its EXIF says, its colours as RGB, the first of
several. A TIFF of values and an NPY file are read by ``sar_gen.rasters``: of a map the codes, of an optical image the
three bands that are red, green and blue. Every conversion is said in ``Guide.notes``; what would have to be guessed is
refused in one sentence. The rules:

- Maps and sketches: one band is class codes, 0 to 255 (16 bits and floats too, where they are whole numbers);
  transparent pixels and those without data become ``palettes.NODATA``. Colours are laid over the palette's unpainted
  canvas, which is white for most.
- Optical images of more than 8 bits are divided by the 99.9th percentile of all bands together, so that the colours
  keep their proportions and a few glints do not darken the rest; 0 stays 0. Missing and transparent pixels are black.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from sar_gen.amplitude import quantise
from sar_gen.errors import InputError
from sar_gen.palettes import AUTO, MAX_FOREIGN, NODATA, explained, flatten, knows_codes, load_palette
from sar_gen.request import Guide, GuideKind

if TYPE_CHECKING:
    from sar_gen.rasters import Raster

BRIGHTEST = 99.9
"""Percentile of an optical image's values that becomes white, where they are not of 8 bits."""
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_PNG, _NPY = b"\x89PNG\r\n\x1a\n", b"\x93NUMPY"
_BLACK_IS_ZERO, _RED_GREEN_BLUE = 1, 2  # photometric interpretations of TIFF
_ORIENTATION = 274  # tag of EXIF and TIFF
_NAMES = ({"red", "r", "b4", "b04"}, {"green", "g", "b3", "b03"}, {"blue", "b", "b2", "b02"})
_SENTINEL_2 = {12: "2A", 13: "1C"}  # bands of a file of all bands in their order, with the product's level
_LAND_COVER = ("igbp", "sen12ms")  # palettes by which a file of SEN12MS' own land cover may be asked for


def read_guide(path: Path, kind: GuideKind, max_pixels: int, palette: str = "studio") -> Guide:
    """Read a guide from a file.

    Args:
        path: PNG, JPEG, TIFF or another picture, or NPY; for ``sar`` anything that ``patches.read_patch`` reads.
        kind: what the image shows.
        max_pixels: larger images are refused before they are decoded.
        palette: of a sketch or map, a name of ``palettes.PALETTES``, or ``auto``.

    Returns:
        The guide: ``(height, width)`` uint8 for a map of codes, else ``(height, width, 3)``. ``notes`` says what was
        done to it. Its palette is the one asked for, save for SEN12MS' own files, whose codes are IGBP's.

    Raises:
        InputError: the file cannot be used; the sentence says why and what to do.
    """
    path = Path(path)
    if kind == "sar":
        from sar_gen.patches import PixelMeaning, read_patch

        grey = quantise(read_patch(path, PixelMeaning("studio"), max_pixels).amplitude)
        return Guide(kind, np.repeat(grey[..., None], 3, axis=2), path.name)
    is_map = kind in ("sketch", "map")
    if is_map and palette != AUTO:
        load_palette(palette)  # an unknown one is refused at once
    head = _head(path)
    notes: list[str] = []
    pages = _pages_of_values(path, head)
    if pages and is_map:
        image, palette = _map_of_values(path, max_pixels, palette, pages, notes)
    elif pages:
        image = _optical_of_values(path, max_pixels, pages, notes)
    else:
        image = _picture(path, head, is_map, max_pixels, palette, notes)
    return Guide(kind, image, path.name, palette=palette if is_map else "studio", notes=tuple(notes))


def _head(path: Path) -> bytes:
    if not path.is_file():
        raise InputError(f"{path} is not a file; give a picture as guide.")
    try:
        with path.open("rb") as file:
            head = file.read(33)
    except OSError as error:
        raise InputError(f"{path.name} cannot be opened ({error.strerror}); check its permissions.") from error
    if not head:
        raise InputError(f"{path.name} cannot be read as a picture: it is empty (0 bytes); choose another file.")
    return head


# Pictures ----------------------------------------------------------------------------------------------------------


def _picture(
    path: Path, head: bytes, is_map: bool, max_pixels: int, palette: str, notes: list[str]
) -> NDArray[np.uint8]:
    try:
        with Image.open(path) as image:
            _check_size(path.name, image.width, image.height, max_pixels)
            turned = image.getexif().get(_ORIENTATION, 1) in range(2, 9)
            if getattr(image, "n_frames", 1) > 1:
                notes.append(f"The file holds {image.n_frames} pictures; the first is used.")
            if head.startswith(_PNG) and head[24] == 16 and head[25] in (2, 6):
                return _deep_colours(path, image, turned, is_map, palette, notes)
            image = ImageOps.exif_transpose(image)  # a TIFF is turned already when it is decoded
            if turned:
                notes.append("It was turned upright, as its EXIF orientation says.")
            return _pixels(path.name, image, is_map, palette, notes)
    except Image.DecompressionBombError as error:
        raise InputError(f"{path.name} has far too many pixels; crop or shrink it.") from error
    except (InputError, MemoryError):
        raise
    except Exception as error:  # on a damaged file a decoder may raise anything
        raise InputError(
            f"{path.name} cannot be read as a picture (it is damaged or of another type); save it as PNG again."
        ) from error


def _check_size(name: str, width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise InputError(
            f"{name} has {width} x {height} pixels; the limit is {max_pixels:,} (SAR_GEN_MAX_PIXELS), so crop or "
            "shrink it."
        )


def _pixels(name: str, image: Any, is_map: bool, palette: str, notes: list[str]) -> NDArray[np.uint8]:
    """Return the pixels of a decoded picture, by its mode."""
    mode = image.mode
    if mode == "1":
        if is_map:
            raise InputError(
                f"{name} is black and white only (1 bit), which says no classes; paint it in the palette's colours, "
                "or save the class codes as 8 bits."
            )
        notes.append("It is black and white only (1 bit).")
        image = image.convert("L")
    elif mode == "P" and is_map:
        codes = _indices(image, palette, notes)
        if codes is not None:
            return codes
    elif mode not in ("L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "I", "F") and not mode.startswith("I;16"):
        notes.append(f"Its {mode} colours were converted to RGB.")
    if mode.startswith(("I", "F")) or image.mode in ("L", "LA"):
        values = np.asarray(image)
        missing = values[..., 1] < 128 if mode == "LA" else None
        key = image.info.get("transparency")  # one grey that stands for transparent
        if mode != "LA" and isinstance(key, int):
            missing = values == key
        band = values[..., 0] if mode == "LA" else values
        return _codes(name, band, missing, notes) if is_map else _eight_bits(name, [band], missing, notes)
    if mode == "RGBX":
        notes.append("It has a fourth band, which is not used.")
        image = image.convert("RGB")
    rgba = np.asarray(image.convert("RGBA"))
    clear = float((rgba[..., 3] < 255).mean())
    if is_map:
        return flatten(rgba, load_palette("studio" if palette == AUTO else palette).unpainted[0])
    if clear:
        notes.append(f"Transparent pixels ({clear:.0%}) became black.")
    return flatten(rgba, (0, 0, 0))


def _indices(image: Any, palette: str, notes: list[str]) -> NDArray[np.uint8] | None:
    """Return the indices of a palette picture as codes, where its colours are not the map's and its indices are.

    Tools that write class numbers into indexed PNGs give them any colours. For the studio's palette the colours count
    always: any picture of six colours has the indices 0 to 5.
    """
    if palette in ("studio", AUTO):
        return None
    rgba = np.asarray(image.convert("RGBA"))
    codes = np.where(rgba[..., 3] < 128, NODATA, np.asarray(image)).astype(np.uint8)
    if explained(rgba, palette) >= MAX_FOREIGN or not knows_codes(codes, palette):
        return None
    notes.append("It is an indexed picture in colours of its own; its indices were taken for the class codes.")
    return codes


def _deep_colours(
    path: Path, image: Any, turned: bool, is_map: bool, palette: str, notes: list[str]
) -> NDArray[np.uint8]:
    """Return the pixels of a PNG of 16 bits a colour, of which Pillow gives the upper 8."""
    if turned:
        raise InputError(f"{path.name} has 16 bits a colour and asks to be shown turned (EXIF); save it upright.")
    if is_map:
        notes.append("Its 16 bits a colour were reduced to the upper 8.")
        return _pixels(path.name, image, is_map, palette, notes)
    import imagecodecs

    from sar_gen.rasters.raster import damaged

    with damaged(path.name):
        values = imagecodecs.png_decode(path.read_bytes())
    missing = values[..., 3] < 65535 if values.shape[2] == 4 else None
    return _eight_bits(path.name, [values[..., k] for k in range(3)], missing, notes)


# Values ------------------------------------------------------------------------------------------------------------


def _pages_of_values(path: Path, head: bytes) -> int:
    """Return how many images a file of values holds: NPY, and TIFFs other than pictures; 0 for a picture."""
    if head.startswith(_NPY):
        return 1
    if head[:4] not in _TIFF:
        return 0
    import tifffile

    from sar_gen.rasters.raster import damaged

    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what matters of its remarks is raised
    with damaged(path.name), tifffile.TiffFile(path) as tiff:
        pages = [page for page in tiff.pages if not page.is_reduced and not page.is_mask]
        page = pages[0]
        bits, samples = page.bitspersample, page.samplesperpixel
        if page.photometric == _RED_GREEN_BLUE:
            values = bits != 8 or samples > 4
        else:
            values = page.photometric == _BLACK_IS_ZERO and bits != 1
        if values and page.tags.valueof(_ORIENTATION) in range(2, 9):
            raise InputError(f"{path.name} asks to be shown turned (TIFF orientation); save it upright.")
        return len(pages) if values else 0


def _map_of_values(
    path: Path, max_pixels: int, palette: str, pages: int, notes: list[str]
) -> tuple[NDArray[np.uint8], str]:
    """Return the codes of a map of values, and the palette that they are of."""
    with _opened(path, max_pixels) as raster:
        bands = len(raster.bands) // pages
        if bands == 4 and palette in _LAND_COVER:
            notes.append(
                "Of its 4 bands the first is used, as in SEN12MS' land-cover files, where it holds IGBP codes."
            )
            palette = "igbp"
        elif bands > 1:
            raise InputError(
                f"{path.name} has {bands} bands of values, and a class map is one band of codes; save the band with "
                "the classes as a file of its own, or give a picture in colours of 8 bits."
            )
        if pages > 1:
            notes.append(f"The file holds {pages} images; the first is used.")
        values, missing = raster.read(raster.window(None), 0)
        return _codes(path.name, values, missing, notes), palette


def _optical_of_values(path: Path, max_pixels: int, pages: int, notes: list[str]) -> NDArray[np.uint8]:
    with _opened(path, max_pixels) as raster:
        chosen = _red_green_blue(path.name, raster.bands, pages, raster.colour, notes)
        window = raster.window(None)
        read = [raster.read(window, band) for band in chosen]
    missing = np.zeros(read[0][0].shape, bool)
    for _, hidden in read:
        missing |= False if hidden is None else hidden
    return _eight_bits(path.name, [values for values, _ in read], missing, notes)


@contextmanager
def _opened(path: Path, max_pixels: int) -> Iterator[Raster]:
    """Open a file of values, whose size and type can be used."""
    from sar_gen.rasters import open_raster

    with open_raster(path, max_pixels) as raster:
        _check_size(path.name, raster.width, raster.height, max_pixels)
        if raster.is_complex:
            raise InputError(f"{path.name} is complex signal; choose 'sar' for it.")
        yield raster


def _red_green_blue(name: str, bands: tuple[str, ...], pages: int, colour: bool, notes: list[str]) -> tuple[int, ...]:
    """Return which bands are shown: red, green and blue, or the only one.

    Raises:
        InputError: it cannot be told.
    """
    if len(bands) == 1 or colour:
        return tuple(range(len(bands)))
    words = [band.strip().lower() for band in bands]
    found = [[place for place, word in enumerate(words) if word in names] for names in _NAMES]
    if all(len(places) == 1 for places in found):
        chosen = tuple(places[0] for places in found)
        notes.append("Its bands {}, {} and {} are used as red, green and blue.".format(*(bands[k] for k in chosen)))
        return chosen
    if pages > 1:
        notes.append(f"The file holds {pages} images; the first is used.")
        bands = bands[: len(bands) // pages]
    if len(bands) == 1:
        return (0,)
    if not any(bands) and len(bands) == 3:
        notes.append("Its three bands are used as red, green and blue, in this order.")
        return 0, 1, 2
    if not any(bands) and len(bands) in _SENTINEL_2:
        notes.append(
            f"Of its {len(bands)} bands the fourth, third and second are used as red, green and blue, as in "
            f"Sentinel-2 level {_SENTINEL_2[len(bands)]}."
        )
        return 3, 2, 1
    named = f" ({', '.join(bands)})" if any(bands) else ", none of them named"
    raise InputError(
        f"{name} has {len(bands)} bands{named}, and which are red, green and blue cannot be told; save these three as "
        "a picture."
    )


def _codes(name: str, values: NDArray[Any], missing: NDArray[np.bool_] | None, notes: list[str]) -> NDArray[np.uint8]:
    """Return one band as class codes.

    Raises:
        InputError: they are no whole numbers from 0 to 255.
    """
    hidden = np.zeros(values.shape, bool) if missing is None else missing
    if values.dtype.kind == "f":
        hidden = hidden | ~np.isfinite(values)
    seen = values[~hidden]
    if seen.size and ((seen != np.rint(seen)).any() or seen.min() < 0 or seen.max() > 255):
        what = "of fractions" if (seen != np.rint(seen)).any() else f"from {seen.min():.6g} to {seen.max():.6g}"
        raise InputError(
            f"{name} holds values {what}, and class codes are whole numbers from 0 to 255; give the map of the "
            "classes, or choose what the image shows."
        )
    codes = np.where(hidden, NODATA, values).astype(np.uint8)
    if values.dtype != np.uint8:
        notes.append(f"Its values ({values.dtype}) are whole numbers up to 255 and were taken for class codes.")
    return codes


def _eight_bits(
    name: str, bands: list[NDArray[Any]], missing: NDArray[np.bool_] | None, notes: list[str]
) -> NDArray[np.uint8]:
    """Return one or three bands as ``(height, width, 3)`` uint8; those of more than 8 bits are scaled together.

    Raises:
        InputError: there is nothing above 0.
    """
    values = np.stack([bands[k] for k in (range(3) if len(bands) == 3 else (0, 0, 0))], axis=2)
    hidden = np.zeros(values.shape[:2], bool) if missing is None else missing.copy()
    if values.dtype.kind == "f":
        hidden |= ~np.isfinite(values).all(axis=2)
    if values.dtype != np.uint8:
        seen = values[~hidden]
        top = float(np.percentile(seen, BRIGHTEST)) if seen.size else 0.0
        if not top > 0:
            raise InputError(f"{name} holds no values above 0; choose another image.")
        notes.append(
            f"Its values ({values.dtype}) were divided by {top:.4g}, their {BRIGHTEST:g}th percentile, to make 8 bits."
        )
        scaled = np.where(hidden[..., None], 0, values).astype(np.float32) * np.float32(255 / top)
        values = np.rint(np.clip(scaled, 0, 255)).astype(np.uint8)
    if hidden.any():
        notes.append(f"Pixels without data ({max(hidden.mean(), 0.01):.0%}) became black.")
        values = np.where(hidden[..., None], 0, values).astype(np.uint8)
    return values
