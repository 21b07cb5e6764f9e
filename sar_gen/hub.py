"""Download from the Hugging Face hub: only the files that are needed, with progress, going on after a cut.

Files land in the hub's own cache (``HF_HOME``), so that what other tools have downloaded is found and the other way
round. ``huggingface_hub`` gives addresses, headers, errors and the layout of the cache; the bytes are fetched here,
because its own downloader throws a partial file away when a process ends or a connection breaks (2.4), which costs
gigabytes on a bad line. ``HF_ENDPOINT``, ``HF_HUB_OFFLINE``, ``HF_TOKEN`` and proxies work as they do for the library.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sar_gen import folders
from sar_gen.deltas import DELTA_FILE
from sar_gen.errors import InputError, SarGenError
from sar_gen.weights import PICKLE_SUFFIXES, choose_weights

ATTEMPTS = 5  # without a single new byte
CHUNK = 1 << 20  # bytes
REPORT_SECONDS = 0.25
RATE_SECONDS = 10.0  # the rate is that of the last so many seconds


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository: ``size`` in bytes and SHA-256 where the hub states them."""

    size: int | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class Listing:
    """A repository at one commit."""

    commit: str
    files: dict[str, RemoteFile]


@dataclass(frozen=True)
class Progress:
    """How far a download is.

    Attributes:
        file: the file that is being fetched.
        done: bytes of all files that are here, those of earlier attempts too.
        total: bytes of all files.
        rate: bytes a second, 0 before it is known.
        eta: seconds to go, ``None`` before it is known.
    """

    file: str
    done: int
    total: int
    rate: float = 0.0
    eta: float | None = None

    def __str__(self) -> str:
        text = f"{_size(self.done)} of {_size(self.total)}"
        if self.rate:
            text += f", {_size(self.rate)}/s"
        if self.eta is not None:
            text += f", {int(self.eta) // 60}:{int(self.eta) % 60:02d} to go"
        return f"{text} ({self.file})"


def list_repository(repo_id: str, revision: str | None, *, hint: str) -> Listing:
    """Ask the hub for the commit and the files of a repository at ``revision`` (``None``: main).

    Args:
        repo_id: ``owner/name``.
        revision: commit, branch or tag.
        hint: what the user can do when there is no connection; the end of the sentence.

    Raises:
        InputError: there is no such repository or revision, or it needs a login.
        SarGenError: no connection.
    """
    from huggingface_hub import HfApi

    with _explained(f"The list of files of {repo_id}", hint):
        info = HfApi().model_info(repo_id, revision=revision, files_metadata=True)
    files = {
        sibling.rfilename: RemoteFile(sibling.size, sibling.lfs.sha256 if sibling.lfs else None)
        for sibling in info.siblings or []
    }
    return Listing(str(info.sha), files)


def read_json_file(repo_id: str, commit: str, name: str, *, hint: str) -> dict[str, Any]:
    """Download one small JSON file and return what it holds.

    Raises:
        InputError: it is not there, or not JSON.
        SarGenError: no connection.
    """
    folder = download(repo_id, commit, {name: RemoteFile()}, hint=hint)
    return folders.read_json(folder / name)


def pipeline_files(names: list[str], index: Mapping[str, Any], variant: str | None, title: str) -> list[str]:
    """Of a repository's files, return those that loading the pipeline reads: configurations, words, safetensors.

    Args:
        names: every file of the repository.
        index: its ``model_index.json``.
        variant: ``fp16`` or ``None``; plain weights are taken where a part has no such variant.
        title: of the checkpoint, for the sentence.

    Raises:
        InputError: a part has no safetensors weights.
    """
    wanted = ["model_index.json"]
    components = [key for key, value in index.items() if isinstance(value, list) and key not in folders.NOT_LOADED]
    for component in components:
        if index[component][0] is None:
            continue
        inside = _inside(names, component)
        if component in folders.PARTS["sdxl"]:
            weights = choose_weights(list(inside), variant)
            if not weights:
                pickles = [name for name in inside if name.lower().endswith(PICKLE_SUFFIXES)]
                what = f"only the pickle {component}/{pickles[0]}, which can run code" if pickles else "no weights"
                raise InputError(f"{title} has {what} for its {component}; only .safetensors is loaded.")
            wanted += [inside[name] for name in ("config.json", *weights) if name in inside]
        else:
            wanted += sorted(name for short, name in inside.items() if short.lower().endswith((".json", ".txt")))
    return wanted


def strategy_file_names(names: list[str], title: str) -> list[str]:
    """Of a repository's files, return those of a strategy folder (see ``folders``).

    Raises:
        InputError: it has no safetensors weights in the places of a strategy folder.
    """
    parts = (*folders.PARTS["sdxl"], "scheduler")
    kept = [name for name in names if "/" not in name and name.lower().endswith((".safetensors", "card.toml"))]
    for part in parts:
        inside = _inside(names, part)
        single = (folders.LORA_FILE, DELTA_FILE)
        kept += [inside[short] for short in (*choose_weights(list(inside)), *single) if short in inside]
        kept += [name for short, name in inside.items() if short.lower().endswith("config.json")]
    if not any(name.lower().endswith(".safetensors") for name in kept):
        raise InputError(
            f"{title} has no .safetensors file where a strategy or a LoRA would have it; nothing is loaded."
        )
    return kept


def network_files(names: list[str], variant: str | None, title: str) -> list[str]:
    """Of a repository's files, return those of a ControlNet or T2I-Adapter at its top level.

    Raises:
        InputError: it has no ``config.json``, or no safetensors weights beside it.
    """
    top = [name for name in names if "/" not in name]
    weights = choose_weights(top, variant)
    if "config.json" not in top or not weights:
        raise InputError(
            f"{title} has no config.json with .safetensors weights at its top level, as a ControlNet or T2I-Adapter "
            "of diffusers has; nothing is loaded."
        )
    return ["config.json", *weights]


def snapshot_folder(repo_id: str, commit: str) -> Path:
    """Return where the files of a repository at a commit are, or would be."""
    return _storage(repo_id) / "snapshots" / commit


def download(
    repo_id: str,
    commit: str,
    files: Mapping[str, RemoteFile],
    progress: Callable[[Progress], None] | None = None,
    *,
    hint: str,
) -> Path:
    """Bring files into the hub's cache and return their folder; those already there are left alone.

    Args:
        repo_id: ``owner/name``.
        commit: 40 hexadecimal digits.
        files: what to bring, with sizes and hashes where known.
        progress: called several times a second.
        hint: what the user can do when there is no connection; the end of the sentence.

    Raises:
        InputError: a file is not in the repository, or it needs a login.
        SarGenError: no connection, cut too often, a full disk, or a file that does not match its hash.
    """
    folder = snapshot_folder(repo_id, commit)
    meter = _Meter(sum(file.size or 0 for file in files.values()), progress)
    for name, file in files.items():
        if (folder / name).is_file() and (file.size is None or (folder / name).stat().st_size == file.size):
            meter.add(name, (folder / name).stat().st_size, fetched=False)
            continue
        with _explained(f"{name} of {repo_id}", hint):
            _fetch(repo_id, commit, name, file, meter)
    meter.report(force=True)
    return folder


def _fetch(repo_id: str, commit: str, name: str, file: RemoteFile, meter: _Meter) -> None:
    """Bring one file: its bytes into ``blobs/<etag>``, then the library puts the link into the snapshot."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

    url = hf_hub_url(repo_id, name, revision=commit)
    metadata = get_hf_file_metadata(url)
    if not metadata.etag:
        raise SarGenError(f"The server says nothing that identifies {name} of {repo_id}; check HF_ENDPOINT.")
    file = replace(file, size=metadata.size if metadata.size is not None else file.size)
    blob = _storage(repo_id) / "blobs" / metadata.etag
    if blob.is_file():
        meter.add(name, blob.stat().st_size, fetched=False)
    else:
        blob.parent.mkdir(parents=True, exist_ok=True)
        part = blob.with_name(f"{blob.name}.sar-gen.incomplete")
        _fetch_bytes(url, part, name, file.size, meter)
        _check(part, metadata.etag, file.sha256, f"{name} of {repo_id}")
        part.replace(blob)
    hf_hub_download(repo_id, name, revision=commit)  # the blob is there: this makes the link in the snapshot


def _fetch_bytes(url: str, part: Path, name: str, size: int | None, meter: _Meter) -> None:
    """Append to ``part`` until it has ``size`` bytes, asking for the rest after each cut."""
    import httpx2  # the HTTP client of huggingface_hub

    have = part.stat().st_size if part.is_file() else 0
    if size is not None and have > size:
        part.unlink()
        have = 0
    meter.add(name, have, fetched=False)
    attempts = ATTEMPTS
    while size is None or have < size:
        before = have
        try:
            have = _append(url, part, name, have, meter)
            if size is None or have >= size:
                return
        except httpx2.HTTPStatusError as error:
            if error.response.status_code < 500:
                raise
            failure: Exception = error
        except httpx2.TransportError as error:
            failure = error
        else:
            failure = OSError(f"the connection ended after {have} of {size} bytes")
        have = part.stat().st_size if part.is_file() else 0
        attempts = ATTEMPTS if have > before else attempts - 1
        if attempts == 0:
            raise failure
        time.sleep(min(8.0, 0.5 * 2 ** (ATTEMPTS - attempts)))


def _append(url: str, part: Path, name: str, have: int, meter: _Meter) -> int:
    """Stream from byte ``have`` on to the end of ``part``; return its length."""
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    # The address of the hub itself, not the signed one behind it, which expires during a long download.
    with get_session().stream("GET", url, headers=headers, follow_redirects=True, timeout=30) as response:
        hf_raise_for_status(response)
        if have and response.status_code != 206:  # the server ignores ranges: from the start
            meter.add(name, -have, fetched=False)
            have = 0
        with part.open("ab" if have else "wb") as file:
            for chunk in response.iter_bytes(CHUNK):
                file.write(chunk)
                have += len(chunk)
                meter.add(name, len(chunk))
    return have


def _check(part: Path, etag: str, sha256: str | None, name: str) -> None:
    """Compare a downloaded file with the hash that the hub gives: SHA-256 for large files, git's for small ones."""
    wanted = sha256 or etag
    if len(wanted) == 64:
        digest = hashlib.sha256()
    elif len(wanted) == 40:
        digest = hashlib.sha1(f"blob {part.stat().st_size}\0".encode(), usedforsecurity=False)
    else:
        return
    with part.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    if digest.hexdigest() != wanted:
        part.unlink()
        raise SarGenError(f"{name} arrived damaged (its hash differs) and was deleted; run the same command again.")


class _Meter:
    """Counts bytes and reports now and then."""

    def __init__(self, total: int, progress: Callable[[Progress], None] | None) -> None:
        self._total, self._done, self._progress = total, 0, progress
        self._file = ""
        self._window: list[tuple[float, int]] = [(time.monotonic(), 0)]
        self._fetched = 0
        self._reported = 0.0

    def add(self, file: str, count: int, fetched: bool = True) -> None:
        """Count bytes of ``file``; those that were here before do not make the rate."""
        self._file = file
        self._done += count
        self._fetched += count if fetched else 0
        self.report()

    def report(self, force: bool = False) -> None:
        """Call the callback, at most every ``REPORT_SECONDS`` unless forced."""
        now = time.monotonic()
        if self._progress is None or (not force and now - self._reported < REPORT_SECONDS):
            return
        self._reported = now
        self._window = [w for w in self._window if now - w[0] < RATE_SECONDS] or self._window[-1:]
        self._window.append((now, self._fetched))
        seconds = now - self._window[0][0]
        rate = (self._fetched - self._window[0][1]) / seconds if seconds > 0 else 0.0
        total = max(self._total, self._done)
        self._progress(Progress(self._file, self._done, total, rate, (total - self._done) / rate if rate else None))


@contextlib.contextmanager
def _explained(what: str, hint: str) -> Iterator[None]:
    """Turn the failures of the library and the network into one sentence each."""
    import httpx2
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HFValidationError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except (SarGenError, KeyboardInterrupt):
        raise
    except GatedRepoError as error:
        raise InputError(f"{what} needs a login: accept its terms on the hub and set HF_TOKEN.") from error
    except (RepositoryNotFoundError, RevisionNotFoundError, EntryNotFoundError, HFValidationError) as error:
        raise InputError(f"{what}: the hub has no such thing ({_short(error)}); check the name.") from error
    except OfflineModeIsEnabled as error:
        raise SarGenError(f"{what} is needed and HF_HUB_OFFLINE forbids to fetch it; {hint}.") from error
    except httpx2.HTTPStatusError as error:
        code = error.response.status_code
        raise SarGenError(f"{what} is needed and the hub answered {code}; try again later, or {hint}.") from error
    except (httpx2.HTTPError, ConnectionError) as error:
        raise SarGenError(f"{what} is needed and the hub cannot be reached ({_short(error)}); {hint}.") from error
    except OSError as error:
        raise SarGenError(f"{what} could not be stored or fetched ({_short(error)}); {hint}.") from error


def _inside(names: list[str], folder: str) -> dict[str, str]:
    """Return ``{file name: path}`` of the files directly in ``folder``."""
    pairs = (name.split("/") for name in names)
    return {pair[1]: "/".join(pair) for pair in pairs if len(pair) == 2 and pair[0] == folder}


def _storage(repo_id: str) -> Path:
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo_id, repo_type="model")


def _short(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 120 else text[:117] + "..."


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"
