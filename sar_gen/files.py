"""Atomic writes: a file is either wholly there or not there at all."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import tempfile
from pathlib import Path

from sar_gen.errors import SarGenError


def write_atomic(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path``: a temporary file in the same folder, fsync, rename, fsync of the folder.

    Raises:
        SarGenError: the disk is full or the folder cannot be written; nothing is left behind.
    """
    temporary = ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        if temporary:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        raise SarGenError(describe_os_error(path, error)) from error


def describe_os_error(path: Path, error: OSError) -> str:
    """Return one sentence on why ``path`` could not be written, and what to do."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"The disk that holds {path.parent} is full; free some space or choose another folder (SAR_GEN_RUNS)."
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{path.parent} cannot be written; choose a folder that you may write to (SAR_GEN_RUNS)."
    if error.errno == errno.ENOTDIR:
        return f"{path.parent} is not a folder; choose another one (SAR_GEN_RUNS)."
    return f"{path} could not be written ({error.strerror or error}); choose another folder (SAR_GEN_RUNS)."


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
