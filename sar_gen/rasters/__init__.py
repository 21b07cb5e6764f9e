"""Rasters as files hold them: PNG, JPEG, TIFF and GeoTIFF, NPY and SICD, read whole or by windows.

What the values mean is not decided here but in ``sar_gen.patches``. The conventions of all formats:

- Values are as stored, integers too; complex signal stays complex. A scale and offset that a GeoTIFF states (GDAL's)
  are applied.
- A file is recognised by its content, never by its name, and its size is checked before anything is decoded.
- TIFF, NPY and SICD are read by windows: only the rows, strips or tiles that a window touches are read, so that
  ``max_pixels`` bounds the window. PNG and JPEG can only be decoded whole, so that it bounds the file.
- Pixels without data (GDAL's nodata value, masks, alpha, tiles left out of a sparse file, ground outside a SICD's
  valid area) are reported as missing, never filled.
- What would have to be guessed is refused: pictures to be shown turned (EXIF or TIFF orientation), inverted grey,
  palettes that are not grey, 1-bit pictures, several bands of which none was asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from sar_gen.errors import InputError
from sar_gen.rasters.raster import Georeference, Raster, Window, damaged

__all__ = ["SUFFIXES", "Georeference", "Raster", "Window", "open_raster"]

SUFFIXES = (".png", ".tif", ".tiff", ".jpg", ".jpeg", ".npy", ".nitf", ".ntf", ".sicd")
_KINDS = "PNG, TIFF, JPEG, NPY or SICD"


@contextmanager
def open_raster(path: Path, max_pixels: int, *, file: BinaryIO | None = None) -> Iterator[Raster]:
    """Open a raster: its header is read and checked, its values when ``Raster.read`` asks for them.

    Args:
        path: of the file; a link is followed.
        max_pixels: larger PNG and JPEG files are refused, and windows of the other formats.
        file: the content, where it does not lie on disk under ``path`` (an archive member); must be seekable.

    Raises:
        InputError: the file is missing, empty, of another kind, damaged, too large or of a kind of pixels that is not
            read; one sentence says why and what to do.
    """
    path = Path(path)
    if file is not None:
        yield _opened(path.name, file, max_pixels)
        return
    with _file(path) as opened:
        yield _opened(path.name, opened, max_pixels)


def _file(path: Path) -> BinaryIO:
    if path.is_symlink() and not path.exists():
        raise InputError(f"{path} is a link to a file that is not there; give the file itself.")
    if path.exists() and not path.is_dir() and not path.is_file():
        raise InputError(f"{path} is not a file but a device or pipe; choose a file.")
    try:
        return path.open("rb")
    except FileNotFoundError:
        raise InputError(f"There is no file {path}; check the path.") from None
    except IsADirectoryError:
        raise InputError(f"{path} is a folder; choose a file in it.") from None
    except PermissionError:
        raise InputError(f"{path} may not be read; check its permissions.") from None
    except OSError as error:
        raise InputError(f"{path} cannot be opened ({error.strerror}); check the path.") from None


def _opened(name: str, file: BinaryIO, max_pixels: int) -> Raster:
    head = file.read(33)
    file.seek(0)
    if not head:
        raise InputError(f"{name} is empty (0 bytes); choose another file.")
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        from sar_gen.rasters.pictures import open_png as opener
    elif head.startswith(b"\xff\xd8\xff"):
        from sar_gen.rasters.pictures import open_jpeg as opener
    elif head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        from sar_gen.rasters.tiff import open_tiff as opener
    elif head.startswith(b"\x93NUMPY"):
        from sar_gen.rasters.npy import open_npy as opener
    elif head[:9] in (b"NITF02.10", b"NSIF01.00"):
        from sar_gen.rasters.sicd import open_sicd as opener
    else:
        raise InputError(f"{name} is not a {_KINDS} file, whatever its name says; choose another file.")
    with damaged(name):
        return opener(name, file, max_pixels)
