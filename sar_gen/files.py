"""Atomic writes: a file is either wholly there or not there at all; and folders that one process alone writes."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from sar_gen.errors import InputError, SarGenError

if TYPE_CHECKING:
    from filelock import BaseFileLock


def write_atomic(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path``: a temporary file in the same folder, fsync, rename, fsync of the folder.

    Raises:
        SarGenError: the disk is full or the folder cannot be written; nothing is left behind.
    """
    write_lines(path, (data,))


def write_lines(path: Path, lines: Iterable[bytes]) -> None:
    """Write what ``lines`` yields to ``path`` as ``write_atomic`` does, without holding all of it in memory.

    Raises:
        SarGenError: the disk is full or the folder cannot be written; nothing is left behind. What ``lines`` raises
            leaves nothing behind either.
    """
    temporary = ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        with os.fdopen(descriptor, "wb") as file:
            for line in lines:
                file.write(line)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except BaseException as error:
        if temporary:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        if isinstance(error, OSError):
            raise SarGenError(describe_os_error(path, error)) from error
        raise


def locked(folder: Path, sentence: str) -> BaseFileLock:
    """Hold a folder against everybody else, in this process or another one, until the lock is released.

    Raises:
        InputError: somebody holds it; ``sentence`` says so.
        SarGenError: the folder cannot be written.
    """
    from filelock import FileLock, Timeout

    # Not of one thread: a generator that holds it may be closed by another.
    lock = FileLock(folder / ".lock", thread_local=False)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise InputError(sentence) from error
    except OSError as error:
        raise SarGenError(describe_os_error(folder, error)) from error
    return lock


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
