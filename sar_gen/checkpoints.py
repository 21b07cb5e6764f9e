"""The catalogue of checkpoints: what there is, what its card says, where its files are and whether they are safe.

Five sources, later ones never hide earlier ones: folders with a ``card.toml`` under ``settings.checkpoints``
(embedded), under ``settings.home/checkpoints`` and under each of ``settings.checkpoint_folders``, the public models
below, and what the user added (recorded in ``settings.home``). The catalogue is read anew at each request, so that a
folder that is dropped in is there at the next one, and in the page's list when the page is loaded again. An entry is a
pipeline (its own base) or something on a base: a strategy folder (see ``folders``) or one LoRA file.

The card (``card.toml``) holds the fields of ``CheckpointSpec`` by name; what a strategy's card leaves out is its
base's. ``unknown`` names the facts that its author does not state, so that a default is never taken for a fact.
"""

from __future__ import annotations

import dataclasses
import json
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from sar_gen import folders, hub
from sar_gen.amplitude import MODEL_ENCODINGS, ModelEncoding
from sar_gen.deltas import check_base
from sar_gen.errors import InputError, SarGenError
from sar_gen.files import sha256_of, write_atomic
from sar_gen.settings import Settings
from sar_gen.strategies import DEFAULT_TOKEN, strategy, strategy_of_parts, with_token
from sar_gen.weights import Family, weight_files

Kind = Literal["pipeline", "strategy", "lora"]
Origin = Literal["embedded", "public", "user", "backend"]
Progress = Callable[[hub.Progress], None]

ID = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
HUB_ID = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[\w./-]+))?")
FAMILIES: dict[Family, str] = {"sdxl": "Stable Diffusion XL format", "sd15": "Stable Diffusion 1.5 format"}
# diffusers' own defaults (StableDiffusionXLPipeline and StableDiffusionPipeline.__call__) and native sizes
FAMILY_DEFAULTS: dict[Family, dict[str, Any]] = {
    "sdxl": {"resolution": 1024, "steps": 30, "guidance": 5.0},
    "sd15": {"resolution": 512, "steps": 50, "guidance": 7.5},
}

INHERITED = (
    *("resolution", "steps", "guidance", "scheduler", "amplitude_encoding", "model_encoding", "mono", "polarisation"),
    *("polarisation_words", "reference_words", "prompt_hints", "vocabulary", "examples", "avoid", "licence", "credit"),
)  # what a strategy's card need not repeat


@dataclass(frozen=True)
class Avoid:
    """Words that should not come together in a prompt, and why: one of each group in ``groups`` makes the case."""

    groups: tuple[tuple[str, ...], ...]
    reason: str


@dataclass(frozen=True)
class CheckpointSpec:
    """One entry of the catalogue.

    Attributes:
        id: stable name, also on the command line.
        title: name for people.
        family: ``sdxl`` or ``sd15``; nothing is ever mixed across families.
        base: id of the pipeline that this is or goes on.
        strategy: what was trained, a name of ``strategies``.
        kind: ``pipeline``, ``strategy`` (folder on a base) or ``lora`` (one file on a base).
        path: local folder or file; ``None`` for the hub.
        repo_id: hub repository; ``None`` for local files.
        revision: pinned commit; ``None`` until the first pull of a repository whose commit nobody stated.
        variant: of the weight files, ``fp16`` or ``None``.
        resolution: pixels, width and height that it was trained at.
        steps: default number of denoising steps.
        guidance: default classifier-free guidance scale.
        scheduler: in words; the configuration itself lies with the weights.
        amplitude_encoding: what an output pixel is: ``linear`` (the studio's amplitude), ``db`` or ``unknown``.
        model_encoding: grey that the model works on inside, a name of ``amplitude.MODEL_ENCODINGS``; the engine turns
            it into linear amplitude (so ``root`` and ``db`` need ``amplitude_encoding`` ``linear``).
        mono: how three channels become one: ``mean`` or ``first``.
        polarisation: ``VV``, ``VH``, ``VV/VH`` (the prompt decides) or ``None`` (unknown).
        polarisation_words: for ``VV/VH``, the prompt words by polarisation; see ``polarisation_of``.
        reference_words: the prompt words by reference set; see ``reference_of``.
        sensor: what the training data came from, ``None`` when unknown.
        prompt_hints: sentences on how to write a prompt.
        vocabulary: ``{group: words}`` that the model knows.
        examples: whole prompts.
        avoid: word pairs that should not be used, with the reason.
        token: learned token to put in the prompt (``<SAR>``, capital letters matter), or ``None``.
        negative_default: negative prompt to start with.
        guides: kinds of guide that it accepts by a ControlNet, with their palette.
        licence: of the weights, ``None`` when unknown.
        credit: lines to show with pictures.
        training_data: in words.
        quality: measured quality, as the card gives it.
        sha256: ``{file below the folder: hex}``.
        unknown: fields whose value is a default here because the author does not state it.
        origin: ``embedded``, ``public``, ``user``, or ``backend``: its files are there, not here.
        warnings: sentences to show before use.
    """

    id: str
    title: str
    family: Family
    base: str
    strategy: str
    kind: Kind = "pipeline"
    path: Path | None = None
    repo_id: str | None = None
    revision: str | None = None
    variant: str | None = None
    resolution: int = 512
    steps: int = 30
    guidance: float = 5.0
    scheduler: str = "as published"
    amplitude_encoding: Literal["linear", "db", "unknown"] = "unknown"
    model_encoding: ModelEncoding = "linear"
    mono: Literal["mean", "first"] = "mean"
    polarisation: str | None = None
    polarisation_words: dict[str, tuple[str, ...]] = field(default_factory=dict)
    reference_words: dict[str, tuple[str, ...]] = field(default_factory=dict)
    sensor: str | None = None
    prompt_hints: tuple[str, ...] = ()
    vocabulary: dict[str, tuple[str, ...]] = field(default_factory=dict)
    examples: tuple[str, ...] = ()
    avoid: tuple[Avoid, ...] = ()
    token: str | None = None
    negative_default: str = ""
    guides: dict[str, str] = field(default_factory=dict)
    licence: str | None = None
    credit: tuple[str, ...] = ()
    training_data: str = "unknown"
    quality: dict[str, Any] = field(default_factory=dict)
    sha256: dict[str, str] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()
    origin: Origin = "user"
    warnings: tuple[str, ...] = ()

    def polarisation_of(self, prompt: str) -> str | None:
        """Return the polarisation that a prompt asks for; ``None`` where the card does not tell.

        A checkpoint of two polarisations lists the words that belong to each; the first listed polarisation with a
        word in the prompt wins, and the last listed one is meant when no word is found.
        """
        if not self.polarisation_words:
            return self.polarisation
        return _first_named(prompt, self.polarisation_words) or list(self.polarisation_words)[-1]

    def reference_of(self, prompt: str) -> str | None:
        """Return the reference set that shows the ground of a prompt: the first listed one with a word in it."""
        return _first_named(prompt, self.reference_words)

    def prompt_for(self, prompt: str) -> str:
        """Return the prompt as the model gets it: with the learned token, where there is one.

        So one prompt serves every strategy on a base, and a comparison of strategies compares nothing else.
        """
        return prompt if self.token is None else with_token(prompt, self.token)

    def prompt_warnings(self, prompt: str) -> list[str]:
        """Return what to know about a prompt: combinations to avoid, a learned token that is put into it."""
        found = [
            avoid.reason
            for avoid in self.avoid
            if all(any(_has(prompt, word) for word in group) for group in avoid.groups)
        ]
        if self.token is not None and self.token not in prompt:
            found.append(
                f"The learned token {self.token} was put into the prompt, as trained: '{self.prompt_for(prompt)}'."
            )
        return found


def _first_named(prompt: str, words_by_name: Mapping[str, tuple[str, ...]]) -> str | None:
    return next((name for name, words in words_by_name.items() if any(_has(prompt, word) for word in words)), None)


def _has(prompt: str, word: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(word.lower())}(?!\w)", prompt.lower()) is not None


# Facts of the public models: from their cards as read on 22 Nov 2026; what the cards do not state is in ``unknown``.
_HOCHSTUHL: dict[str, Any] = {
    "family": "sd15",
    "strategy": "base",
    **FAMILY_DEFAULTS["sd15"],
    "licence": None,
    "credit": (
        "Hochstuhl et al., Diffusion-Based SAR Training Data Synthesis Controlled by Spatial Annotations, GCPR 2026.",
    ),
    "origin": "public",
}
PUBLIC: tuple[CheckpointSpec, ...] = (
    CheckpointSpec(
        id="sdxl-base",
        title="Stable Diffusion XL 1.0",
        family="sdxl",
        base="sdxl-base",
        strategy="base",
        repo_id="stabilityai/stable-diffusion-xl-base-1.0",
        revision="462165984030d82259a11f4367a4eed129e94a7b",
        variant="fp16",
        **FAMILY_DEFAULTS["sdxl"],
        licence="CreativeML Open RAIL++-M",
        credit=("Stability AI, Stable Diffusion XL 1.0",),
        training_data="photographs and pictures, no SAR",
        prompt_hints=("A base for strategies that were trained on SAR; alone it knows photographs, not SAR.",),
        origin="public",
        warnings=("This base was not trained on SAR: its grey values are not amplitudes of any sensor.",),
    ),
    CheckpointSpec(
        id="hochstuhl-s1",
        title="SAR Stable Diffusion, Sentinel-1 (Hochstuhl)",
        base="hochstuhl-s1",
        repo_id="sylviaHoch/SAR-StableDiffusion",
        polarisation="VH",
        sensor="Sentinel-1, GRD-like single-channel amplitude",
        training_data="Sentinel-1 patches; prompts from SEN12MS land-cover maps (dominant class per patch)",
        prompt_hints=(
            "Prompts were derived from the dominant land-cover class of each patch; the exact wording is unknown.",
        ),
        unknown=("resolution", "steps", "guidance", "scheduler", "amplitude_encoding", "licence", "vocabulary"),
        warnings=(
            "Whether its grey values are linear or in decibels is not stated, so amplitudes cannot be judged.",
            "Its licence is not stated; ask the authors before you use its pictures.",
        ),
        **_HOCHSTUHL,
    ),
    CheckpointSpec(
        id="hochstuhl-capella",
        title="SAR Stable Diffusion, Capella (Hochstuhl)",
        base="hochstuhl-capella",
        repo_id="sylviaHoch/HR-SAR-StableDiffusion",
        amplitude_encoding="db",
        sensor="Capella, X band, GRD, 0.5 m, Rotterdam harbour",
        training_data="SpaceNet 6 tiles with texts made from co-registered WorldView-2 images",
        prompt_hints=("Texts were made from optical images of Rotterdam harbour; the exact wording is unknown.",),
        unknown=("resolution", "steps", "guidance", "scheduler", "polarisation", "licence", "vocabulary"),
        warnings=(
            "Its grey values are amplitude in decibels with an unstated range: not comparable with linear amplitude.",
            "Its licence is not stated; ask the authors before you use its pictures.",
        ),
        **_HOCHSTUHL,
    ),
)


def catalogue(settings: Settings) -> dict[str, CheckpointSpec]:
    """Return every checkpoint by id, embedded ones first; entries that cannot be read are left out (see ``scan``)."""
    return scan(settings)[0]


def scan(settings: Settings) -> tuple[dict[str, CheckpointSpec], list[str]]:
    """Return the catalogue and one sentence for each entry that had to be left out.

    With a backend it is the backend's, and this machine's own until it has answered once.
    """
    if settings.backend:
        from sar_gen.serving.client import backend_of

        elsewhere = backend_of(settings).catalogue
        if elsewhere is not None and elsewhere.checkpoints:
            return {spec.id: spec for spec in elsewhere.checkpoints}, []
    found: dict[str, CheckpointSpec] = {}
    rows: list[_Row] = []
    places, problems = roots(settings)
    for root, origin in places:
        for path in sorted(root.glob("*/card.toml")):
            try:
                card = read_card(path)
            except InputError as error:
                problems.append(str(error))
                continue
            if card.get("kind") != "guides":  # those are ``guide_networks``' own
                rows.append(_Row(card, path.parent, origin))
    try:
        rows += [_Row(entry, None, "user") for entry in _user_entries(settings)]
    except InputError as error:
        problems.append(str(error))
    pins = read_home(settings, "pins.json")
    public = [dataclasses.replace(spec, revision=spec.revision or pins.get(str(spec.repo_id))) for spec in PUBLIC]
    # Bases first, so that what goes on them finds them.
    ordered: list[_Row | CheckpointSpec] = [*(r for r in rows if not r.on_base), *public]
    for row in [*ordered, *(r for r in rows if r.on_base)]:
        try:
            spec = row if isinstance(row, CheckpointSpec) else _spec(row.card, row.folder, row.origin, row.base(found))
        except InputError as error:
            problems.append(str(error))
            continue
        if spec.id in found:
            problems.append(f"The id {spec.id!r} is used twice ({spec.path or spec.repo_id}); rename one of them.")
        else:
            found[spec.id] = spec
    return found, problems


def roots(settings: Settings) -> tuple[list[tuple[Path, Origin]], list[str]]:
    """Return the folders that hold checkpoint folders, and one sentence for each that cannot be one."""
    found: list[tuple[Path, Origin]] = [(settings.checkpoints, "embedded"), (settings.home / "checkpoints", "user")]
    problems = []
    for folder in settings.checkpoint_folders:
        if not folder.is_dir():
            problems.append(f"The folder of checkpoints {folder} does not exist; correct SAR_GEN_CHECKPOINT_FOLDERS.")
        elif (folder / "card.toml").is_file():
            problems.append(
                f"{folder} is a checkpoint itself; put the folder that holds it into SAR_GEN_CHECKPOINT_FOLDERS."
            )
        elif folder.resolve() not in [root.resolve() for root, _ in found]:
            found.append((folder, "user"))
    return found, problems


class _Row(NamedTuple):
    """A card on its way to a spec; ``folder`` is where it lies, ``None`` for an entry in ``settings.home``."""

    card: dict[str, Any]
    folder: Path | None
    origin: Origin

    @property
    def on_base(self) -> bool:
        """Whether this goes on a base, not being a pipeline itself."""
        if self.folder is not None:
            return not (self.folder / "model_index.json").is_file()
        return bool(self.card.get("kind", "pipeline") != "pipeline")

    def base(self, found: Mapping[str, CheckpointSpec]) -> CheckpointSpec | None:
        """Return the base of a row that goes on one."""
        name = str(self.card.get("id") or (self.folder.name if self.folder else "?"))
        return base_of(found, str(self.card.get("base", "")), name) if self.on_base else None


def base_of(catalogue: Mapping[str, CheckpointSpec], base: str, name: str) -> CheckpointSpec:
    """Return the pipeline called ``base``.

    Raises:
        InputError: there is none of this name; the sentence names those there are.
    """
    spec = catalogue.get(base)
    if spec is None or spec.kind != "pipeline":
        known = ", ".join(s.id for s in catalogue.values() if s.kind == "pipeline")
        raise InputError(f"{name} goes on the base {base!r}, which is not in the catalogue; choose one of {known}.")
    return spec


def resolve(catalogue: Mapping[str, CheckpointSpec], checkpoint: str, strategy: str | None = None) -> CheckpointSpec:
    """Return the checkpoint, or the one with ``strategy`` on the same base.

    Raises:
        InputError: unknown, or more than one has this strategy; the sentence names the choices.
    """
    spec = catalogue.get(checkpoint)
    if spec is None:
        raise InputError(f"The checkpoint {checkpoint!r} is unknown; choose one of {', '.join(catalogue)}.")
    if strategy is None or strategy == spec.strategy:
        return spec
    same = [other for other in catalogue.values() if other.base == spec.base and other.strategy == strategy]
    if len(same) == 1:
        return same[0]
    if same:
        raise InputError(
            f"{len(same)} checkpoints on {spec.base} have the strategy {strategy!r}; "
            f"choose one by its id: {', '.join(other.id for other in same)}."
        )
    raise InputError(
        f"There is no checkpoint with the strategy {strategy!r} on {spec.base}; there "
        f"{'are' if len(strategies_for(catalogue, checkpoint)) > 1 else 'is'} "
        f"{', '.join(strategies_for(catalogue, checkpoint))}; add one with 'python -m sar_gen checkpoints add'."
    )


def strategies_for(catalogue: Mapping[str, CheckpointSpec], checkpoint: str) -> list[str]:
    """Return the strategies that can be chosen for a checkpoint: its own, then the others on its base.

    Raises:
        InputError: the checkpoint is unknown.
    """
    spec = resolve(catalogue, checkpoint)
    others = [other.strategy for other in catalogue.values() if other.base == spec.base]
    return list(dict.fromkeys([spec.strategy, *others]))


def add_checkpoint(
    source: str | Path, settings: Settings, *, base: str | None = None, id: str | None = None
) -> CheckpointSpec:
    """Add a checkpoint of the user's own to the catalogue (recorded in ``settings.home``; its files stay in place).

    Args:
        source: a diffusers folder, a strategy folder, a LoRA ``.safetensors`` file, or a hub id ``owner/name`` with an
            optional ``@revision`` (asked once for its commit, which is pinned).
        settings: where the catalogue is.
        base: id of the base that a strategy or a LoRA goes on; the card's when it has one.
        id: name in the catalogue; made from the name of the source when left out.

    Raises:
        InputError: unsafe, damaged, incomplete or of another family than its base, or the id is taken.
        SarGenError: the hub cannot be reached.
    """
    known = catalogue(settings)
    path = Path(source).expanduser()
    hub_id = HUB_ID.fullmatch(str(source))
    if path.exists():
        entry, folder = _local_entry(path.resolve(), known, base)
    elif hub_id:
        entry, folder = _hub_entry(hub_id["repo"], hub_id["revision"], known, base, settings), None
    else:
        raise InputError(f"{source} does not exist; give a folder, a .safetensors file or a hub id (owner/name).")
    entry["id"] = id or entry.get("id") or slug(path.name.split("@")[0])
    if entry["id"] in known:
        raise InputError(f"The id {entry['id']!r} is taken; choose another one (--id).")
    if entry.get("kind", "pipeline") == "pipeline":
        entry["base"] = entry["id"]
    spec = _spec(entry, folder, "user", None if entry["base"] == entry["id"] else known[entry["base"]])
    if spec.kind == "strategy" and spec.path is not None:
        on = known[spec.base]
        files = folders.strategy_files(spec.path)
        below = _place(on, settings)
        if files.deltas and below is not None and not missing_files(on, settings):
            check_deltas(files, below, spec.title, settings, on.variant)
    entries = [*_user_entries(settings), entry]
    write_home(settings, "checkpoints.json", {"checkpoints": entries})
    return spec


def pipeline_at(folder: Path) -> CheckpointSpec:
    """Return the spec of a pipeline folder that need not be in the catalogue.

    Raises:
        InputError: it is not a pipeline folder that may be loaded.
    """
    entry, _ = _local_entry(folder.resolve(), {}, None)
    entry.setdefault("id", slug(folder.name))
    return _spec({**entry, "base": entry["id"]}, folder.resolve(), "user", None)


def remove_checkpoint(id: str, settings: Settings) -> None:
    """Take a checkpoint that the user added out of the catalogue; its files stay.

    Raises:
        InputError: it is unknown, or not one that was added.
    """
    entries = _user_entries(settings)
    left = [entry for entry in entries if entry["id"] != id]
    if len(left) == len(entries):
        spec = resolve(catalogue(settings), id)
        where = f"delete its folder {spec.path}" if spec.path else "it is part of the studio"
        raise InputError(f"{id} was not added with 'checkpoints add'; {where}.")
    write_home(settings, "checkpoints.json", {"checkpoints": left})


def local_folder(spec: CheckpointSpec, settings: Settings) -> Path:
    """Return the folder (or LoRA file) that holds a checkpoint's files, complete.

    Raises:
        InputError: files are missing; the sentence says which and how to bring them.
    """
    if spec.origin == "backend":
        raise InputError(f"{spec.title} is on the backend, not on this machine; this needs one that is here.")
    where = _place(spec, settings)
    missing = missing_files(spec, settings)
    if not missing:
        assert where is not None
        return where
    rest = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
    if spec.repo_id is None:
        raise InputError(
            f"{spec.title} lacks {missing[0]}{rest} in {spec.path}; bring the folder or remove {spec.id}."
        )
    raise InputError(
        f"{spec.title} is not on this machine yet ({missing[0]}{rest} of {spec.repo_id} missing); run "
        f"'python -m sar_gen checkpoints pull {spec.id}' with a network connection, or copy a diffusers folder here "
        "and run 'python -m sar_gen checkpoints add FOLDER'."
    )


def missing_files(spec: CheckpointSpec, settings: Settings) -> list[str]:
    """Return the files that are not on this machine, ``[]`` when the checkpoint can be loaded; cheap."""
    if spec.origin == "backend":  # which tells of no others
        return []
    where = _place(spec, settings)
    if spec.kind == "lora" and spec.path is not None:
        return [] if spec.path.is_file() else [spec.path.name]
    manifest = read_home(settings, _manifest(spec)).get("files") if spec.repo_id and spec.revision else None
    if manifest and where is not None:
        return [name for name, file in manifest.items() if not _complete(where / name, file.get("size"))]
    if where is None or not where.is_dir():
        return ["model_index.json"] if spec.kind == "pipeline" else [folders.LORA_FILE]
    if spec.kind == "pipeline":
        try:
            missing = folders.missing_in_pipeline(where, spec.variant)
        except InputError:
            missing = []  # complete but unusable: loading says why
        return missing or [name for name in spec.sha256 if not (where / name).is_file()]
    return [name for name in spec.sha256 if not (where / name).is_file()]


def pull(spec: CheckpointSpec, settings: Settings, progress: Progress | None = None) -> Path:
    """Download a checkpoint's files into the hub's cache; what is there is kept, a cut file goes on where it ended.

    Args:
        spec: what to bring; a local checkpoint is only looked for.
        settings: where pins and lists of files are kept.
        progress: called with bytes, rate and time to go, several times a second.

    Returns:
        The folder.

    Raises:
        InputError: the repository is not one that may be loaded, or lacks safetensors weights.
        SarGenError: no network, or the download was cut too often; running it again goes on.
    """
    repo_id = spec.repo_id
    if repo_id is None:
        return local_folder(spec, settings)
    if spec.revision and not missing_files(spec, settings):
        return local_folder(spec, settings)
    listing = hub.list_repository(repo_id, spec.revision, hint=_hint(spec))
    if spec.revision is None:
        spec = dataclasses.replace(spec, revision=listing.commit)
        pins = {**read_home(settings, "pins.json"), repo_id: listing.commit}
        write_home(settings, "pins.json", pins)
    if spec.kind == "pipeline":
        index = hub.read_json_file(repo_id, listing.commit, "model_index.json", hint=_hint(spec))
        _same_family(spec, folders.pipeline_family(index, spec.title))
        names = hub.pipeline_files(list(listing.files), index, spec.variant, spec.title)
    else:
        names = hub.strategy_file_names(list(listing.files), spec.title)
    files = {name: listing.files[name] for name in names}
    manifest = {name: {"size": file.size, "sha256": file.sha256} for name, file in files.items()}
    write_home(settings, _manifest(spec), {"repo_id": repo_id, "revision": spec.revision, "files": manifest})
    folder = hub.download(repo_id, listing.commit, files, progress, hint=_hint(spec))
    if spec.kind == "pipeline":
        folders.check_pipeline(folder, spec.variant)
    else:
        folders.strategy_files(folder)
    return folder


def verify(spec: CheckpointSpec, settings: Settings) -> dict[str, str]:
    """Read every file whose hash is known and compare; ``{file: "ok" | "missing" | "differs"}``.

    Weight files without a stated hash are reported as ``"no hash is stated"``, a quantised delta whose base on this
    machine is not the one that it was made on as ``"made on another base"``.

    Raises:
        InputError: the checkpoint is not on this machine.
    """
    expected = expected_hashes(spec, settings)
    where = _place(spec, settings)
    if where is None or not where.exists():
        local_folder(spec, settings)  # raises the sentence
        raise AssertionError("unreachable")
    result = {}
    cache = read_home(settings, "verified.json")
    for name, wanted in expected.items():
        path = where if where.is_file() else where / name
        if not path.is_file():
            result[name] = "missing"
            continue
        found = sha256_of(path)
        cache[str(path.resolve())] = {**_stamp(path), "sha256": found}
        result[name] = "ok" if found == wanted else "differs"
    write_home(settings, "verified.json", cache, optional=True)
    for path in _weights(spec, where):
        name = path.name if where.is_file() else path.relative_to(where).as_posix()
        result.setdefault(name, "no hash is stated")
    if spec.kind == "strategy":
        result |= _on_another_base(folders.strategy_files(where), spec, settings)
    return result


def check_hashes(spec: CheckpointSpec, settings: Settings) -> None:
    """Compare the files with the hashes that the card gives, reading only those that changed since they were read.

    Raises:
        InputError: a file is missing or differs; loading it would not be the checkpoint that the card describes.
    """
    where = local_folder(spec, settings)
    expected = expected_hashes(spec, settings)
    found = hashes_of([where if where.is_file() else where / name for name in expected], settings)
    for (name, wanted), got in zip(expected.items(), found.values(), strict=True):
        if got != wanted:
            raise InputError(
                f"{name} of {spec.title} is not the file that its card describes (sha256 {got[:12]}… instead of "
                f"{wanted[:12]}…); copy or download it again."
            )


def check_deltas(
    files: folders.StrategyFiles, base: Path, name: str, settings: Settings, variant: str | None = None
) -> None:
    """Check that each quantised delta of a strategy was made on this base's weight files.

    Args:
        files: of the strategy.
        base: pipeline folder of the base.
        name: of the strategy, for the sentence.
        settings: where hashes are remembered.
        variant: of the base's weight files.

    Raises:
        InputError: a delta was made on other weights.
    """
    for part, path in files.deltas.items():
        found = hashes_of(weight_files(base / part, variant), settings)
        check_base(path, [*found.values()], name)


def _on_another_base(files: folders.StrategyFiles, spec: CheckpointSpec, settings: Settings) -> dict[str, str]:
    base = catalogue(settings).get(spec.base) if files.deltas else None
    below = _place(base, settings) if base is not None else None
    if base is None or below is None or missing_files(base, settings):
        return {}
    wrong = {}
    for part, path in files.deltas.items():
        try:
            check_deltas(folders.StrategyFiles(deltas={part: path}), below, spec.title, settings, base.variant)
        except InputError:
            wrong[f"{part}/{path.name}"] = "made on another base"
    return wrong


def weight_hashes(spec: CheckpointSpec, settings: Settings) -> dict[str, str]:
    """Return ``{file: SHA-256}`` of the weights that lie on this machine, whatever the card says.

    Raises:
        InputError: the checkpoint is not on this machine.
    """
    where, paths = _weight_files(spec, settings)
    found = hashes_of(paths, settings)
    return {path.name if path == where else path.relative_to(where).as_posix(): found[path] for path in paths}


def weight_bytes(spec: CheckpointSpec, settings: Settings) -> int:
    """Return the size of the weights that lie on this machine.

    Raises:
        InputError: the checkpoint is not on this machine.
    """
    return sum(path.stat().st_size for path in _weight_files(spec, settings)[1])


def _weight_files(spec: CheckpointSpec, settings: Settings) -> tuple[Path, list[Path]]:
    where = local_folder(spec, settings)
    return where, [where] if where.is_file() else _weights(spec, where)


def expected_hashes(spec: CheckpointSpec, settings: Settings) -> dict[str, str]:
    """Return ``{file: sha256}`` from the card, or from the hub's own list of files at the pinned commit."""
    if spec.sha256 or not (spec.repo_id and spec.revision):
        return dict(spec.sha256)
    manifest = read_home(settings, _manifest(spec)).get("files", {})
    return {name: file["sha256"] for name, file in manifest.items() if file.get("sha256")}


_hashes_seen: dict[str, dict[str, Any]] = {}


def hashes_of(paths: list[Path], settings: Settings) -> dict[Path, str]:
    """Return the SHA-256 of each file, remembered in ``settings.home`` by size and time of change.

    It is also remembered while the process lasts, for where ``settings.home`` cannot be written. Large files in the
    hub's cache are named by their SHA-256, which ``hub.download`` has checked.

    Raises:
        InputError: a file cannot be read.
    """
    cache = {**_hashes_seen, **read_home(settings, "verified.json")}
    result: dict[Path, str] = {}
    changed = False
    for path in paths:
        real = path.resolve()
        key = str(real)
        if real.parent.name == "blobs" and re.fullmatch(r"[0-9a-f]{64}", real.name):
            result[path] = real.name
            continue
        try:
            stamp = _stamp(path)
            known = cache.get(key, {})
            if {name: known.get(name) for name in stamp} != stamp:
                known = {**stamp, "sha256": sha256_of(path)}
                cache[key], changed = known, True
                _hashes_seen[key] = known
        except OSError as error:
            raise InputError(f"{path} cannot be read ({error.strerror or error}); bring the file again.") from error
        result[path] = known["sha256"]
    if changed:
        write_home(settings, "verified.json", cache, optional=True)
    return result


def read_card(path: Path) -> dict[str, Any]:
    """Read a ``card.toml``.

    Raises:
        InputError: it cannot be read or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"The card {path} cannot be read ({error}); correct it.") from error


def _spec(
    card: dict[str, Any],
    folder: Path | None,
    origin: Origin,
    base: CheckpointSpec | None,
) -> CheckpointSpec:
    """Turn a card into a spec: checked, and with the base's or the family's values where it is silent."""
    where = f"The card of {card.get('id', folder)}"
    fields = {f.name: f for f in dataclasses.fields(CheckpointSpec)}
    unknown_keys = [key for key in card if key not in fields]
    if unknown_keys:
        raise InputError(f"{where} has an unknown entry {unknown_keys[0]!r}; correct or remove it.")
    for key in ("id", "family") if base is None else ("id",):
        if not card.get(key):
            raise InputError(f"{where} does not give {key!r}; add it.")
    if not ID.fullmatch(str(card["id"])):
        raise InputError(f"{where} has the id {card['id']!r}; use small letters, digits, '-', '_' and '.'.")
    for key, value in card.items():
        if not _fits_type(key, value):
            raise InputError(f"{where} has {key} = {value!r}, which cannot be; correct it.")
    values = {key: _plain(value) for key, value in card.items()}
    family = values.setdefault("family", base.family if base else None)
    if family not in FAMILIES:
        raise InputError(f"{where} has the family {family!r}; choose one of {', '.join(FAMILIES)}.")
    if base is not None:
        if family != base.family:
            raise InputError(f"{where} is of family {family} and its base {base.id} of {base.family}; never mixed.")
        values = {**{name: getattr(base, name) for name in INHERITED}, **values}
        if base.amplitude_encoding == "unknown" and "amplitude_encoding" not in card:
            values.setdefault(
                "warnings", ("Its card does not say what its grey values are, so amplitudes cannot be judged.",)
            )
    else:
        values = {**FAMILY_DEFAULTS[family], **values}
        values["base"] = values.get("base") or values["id"]
        if values["base"] != values["id"]:
            raise InputError(f"{where} is a whole pipeline, its base is itself; set base = {values['id']!r}.")
    if folder is not None:
        values["path"] = folder
    elif values.get("path"):
        values["path"] = Path(values["path"])
    kind = values.setdefault("kind", "pipeline" if base is None else "strategy")
    if "strategy" not in values:
        values["strategy"] = "base" if base is None else _strategy_found(Path(values["path"]), base)
    trained = strategy(values["strategy"])
    if trained.token == "learned":
        values.setdefault("token", DEFAULT_TOKEN)
    if values.get("model_encoding", "linear") != "linear" and values.get("amplitude_encoding") != "linear":
        raise InputError(
            f"{where} has model_encoding = {values['model_encoding']!r}, which gives linear amplitude; "
            "set amplitude_encoding = 'linear' too."
        )
    values.setdefault("title", values["id"])
    values["origin"] = origin
    if values.get("avoid"):
        values["avoid"] = tuple(
            a if isinstance(a, Avoid) else Avoid(a["groups"], a["reason"]) for a in values["avoid"]
        )
    if kind == "pipeline" and folder is not None and (folder / "model_index.json").is_file():
        index = folders.read_json(folder / "model_index.json")
        if folders.pipeline_family(index, values["title"]) != family:
            raise InputError(f"{where} says family {family}, its model_index.json says otherwise; correct the card.")
    return CheckpointSpec(**values)


_TYPES: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("resolution", "steps"), (int,)),
    "guidance": (int, float),
    **dict.fromkeys(("prompt_hints", "examples", "avoid", "credit", "unknown", "warnings"), (list, tuple)),
    **dict.fromkeys(("polarisation_words", "reference_words", "vocabulary", "guides", "quality", "sha256"), (dict,)),
}
_CHOICES = {
    "mono": ("mean", "first"),
    "amplitude_encoding": ("linear", "db", "unknown"),
    "model_encoding": tuple(MODEL_ENCODINGS),
}


def _fits_type(key: str, value: Any) -> bool:
    """Return whether a card's value can be what the field wants; what is not listed above is text."""
    right_type = isinstance(value, _TYPES.get(key, (str,)))
    if not right_type or value not in _CHOICES.get(key, (value,)):
        return False
    if key in ("resolution", "steps", "guidance"):
        return bool(value >= 1 and (key != "resolution" or value % 8 == 0))
    if key in ("polarisation_words", "reference_words", "vocabulary"):
        return all(
            isinstance(words, list | tuple) and all(isinstance(w, str) for w in words) for words in value.values()
        )
    if key == "avoid":
        return all(isinstance(entry, dict) and entry.keys() == {"groups", "reason"} for entry in value)
    if key == "sha256":
        return all(isinstance(digest, str) and re.fullmatch("[0-9a-f]{64}", digest) for digest in value.values())
    return not isinstance(value, list | tuple) or all(isinstance(text, str) for text in value)


def _strategy_found(source: Path, base: CheckpointSpec) -> str:
    files = folders.strategy_files(source)
    folders.check_family(files, base.family, source.name)
    return strategy_of_parts(files.modes())


def _local_entry(
    path: Path, known: Mapping[str, CheckpointSpec], base: str | None
) -> tuple[dict[str, Any], Path | None]:
    """Look at a local source and return its entry, and the folder when the card lies in it."""
    inside = sorted(
        {file.parent.name for name in ("card.toml", "model_index.json") for file in path.glob(f"*/{name}")}
    )
    if inside and not any((path / name).is_file() for name in ("card.toml", "model_index.json", folders.LORA_FILE)):
        raise InputError(
            f"{path} holds {len(inside)} checkpoint folder{'s' if len(inside) > 1 else ''} "
            f"({', '.join(inside[:3])}{', …' if len(inside) > 3 else ''}); add each by its own path, or name "
            f"{path} in SAR_GEN_CHECKPOINT_FOLDERS to have all that lie in it."
        )
    card = read_card(path / "card.toml") if (path / "card.toml").is_file() else {}
    entry: dict[str, Any] = {**card, "path": str(path)}
    if path.is_dir() and (path / "model_index.json").is_file():
        entry["family"] = folders.check_pipeline(path, card.get("variant"))
        if not card:
            entry["unknown"] = ["steps", "guidance", "amplitude_encoding", "licence", "polarisation"]
            entry["resolution"] = _native_size(path, entry["family"])
            entry["warnings"] = [
                "It has no card: what its grey values mean is unknown, so amplitudes cannot be judged."
            ]
        return entry, path
    files = folders.strategy_files(path)
    base_id = base or card.get("base")
    fitting = [s.id for s in known.values() if s.kind == "pipeline" and files.lora_family in (None, s.family)]
    if not base_id:
        raise InputError(f"{path.name} goes on a base; say which (--base), one of {', '.join(fitting)}.")
    spec = base_of(known, base_id, path.name)
    folders.check_family(files, spec.family, path.name)
    if spec.path is not None:
        folders.check_fits(files, spec.path, spec.family, path.name, spec.variant)
    entry |= {"base": base_id, "family": spec.family, "kind": "lora" if path.is_file() else "strategy"}
    entry.setdefault("strategy", strategy_of_parts(files.modes()))
    return entry, path if path.is_dir() else None


def _hub_entry(
    repo: str, revision: str | None, known: Mapping[str, CheckpointSpec], base: str | None, settings: Settings
) -> dict[str, Any]:
    """Ask the hub what a repository is, and return its entry with its commit pinned."""
    hint = f"'python -m sar_gen checkpoints add {repo}' needs a network connection once; or add a local folder"
    listing = hub.list_repository(repo, revision, hint=hint)
    entry: dict[str, Any] = {"repo_id": repo, "revision": listing.commit, "title": repo}
    if "model_index.json" in listing.files and base is None:
        index = hub.read_json_file(repo, listing.commit, "model_index.json", hint=hint)
        family = folders.pipeline_family(index, repo)
        hub.pipeline_files(list(listing.files), index, None, repo)
        entry |= {"family": family, "kind": "pipeline", "strategy": "base"}
        entry["unknown"] = ["resolution", "steps", "guidance", "amplitude_encoding", "licence", "polarisation"]
        entry["warnings"] = ["What its grey values mean is unknown, so amplitudes cannot be judged."]
        return entry
    if base is None:
        pipelines = ", ".join(s.id for s in known.values() if s.kind == "pipeline")
        raise InputError(f"{repo} is not a pipeline; if it holds a strategy or a LoRA, give its base: {pipelines}.")
    hub.strategy_file_names(list(listing.files), repo)
    spec = base_of(known, base, repo)
    folder = hub.download(
        repo,
        listing.commit,
        {n: listing.files[n] for n in hub.strategy_file_names(list(listing.files), repo)},
        hint=hint,
    )
    files = folders.strategy_files(folder)
    folders.check_family(files, spec.family, repo)
    entry |= {"base": base, "family": spec.family, "kind": "strategy", "strategy": strategy_of_parts(files.modes())}
    return entry


def _native_size(folder: Path, family: Family) -> int:
    """Return the size in pixels that a UNet's ``sample_size`` means, the family's default when it is not stated."""
    latent = folders.read_json(folder / "unet" / "config.json").get("sample_size")
    blocks = folders.read_json(folder / "vae" / "config.json").get("block_out_channels", [0] * 4)
    return int(latent) * 2 ** (len(blocks) - 1) if isinstance(latent, int) else FAMILY_DEFAULTS[family]["resolution"]


def _place(spec: CheckpointSpec, settings: Settings) -> Path | None:
    if spec.path is not None:
        return spec.path
    if spec.repo_id is None or spec.revision is None:
        return None
    return hub.snapshot_folder(spec.repo_id, spec.revision)


def _weights(spec: CheckpointSpec, where: Path) -> list[Path]:
    if spec.kind == "pipeline":
        return [path for paths in folders.pipeline_weights(where, spec.variant).values() for path in paths]
    return list(folders.strategy_files(where).paths())


def _same_family(spec: CheckpointSpec, family: Family) -> None:
    if family != spec.family:
        raise InputError(f"{spec.repo_id} is of family {family}, {spec.title} is of {spec.family}; they never mix.")


def _complete(path: Path, size: int | None) -> bool:
    return path.is_file() and (size is None or path.stat().st_size == size)


def _hint(spec: CheckpointSpec) -> str:
    return (
        f"run 'python -m sar_gen checkpoints pull {spec.id}' with a network connection, or copy a diffusers folder "
        "here and run 'python -m sar_gen checkpoints add FOLDER'"
    )


def slug(name: str) -> str:
    """Return an id made of a name."""
    text = re.sub(r"[^a-z0-9._-]+", "-", name.lower().removesuffix(".safetensors")).strip("-._")
    return text[:64] or "checkpoint"


def _plain(value: Any) -> Any:
    """Turn lists from TOML or JSON into tuples, deeply."""
    if isinstance(value, list):
        return tuple(_plain(item) for item in value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value


def _stamp(path: Path) -> dict[str, int]:
    status = path.stat()
    return {"size": status.st_size, "mtime_ns": status.st_mtime_ns}


def _manifest(spec: CheckpointSpec) -> str:
    return f"hub/{str(spec.repo_id).replace('/', '--')}@{spec.revision}.json"


def _user_entries(settings: Settings) -> list[dict[str, Any]]:
    path = settings.home / "checkpoints.json"
    if not path.is_file():
        return []
    entries = folders.read_json(path).get("checkpoints")
    if not isinstance(entries, list) or not all(isinstance(e, dict) and "id" in e for e in entries):
        raise InputError(f"{path} is damaged; delete it and add your checkpoints again.")
    return entries


def read_home(settings: Settings, name: str) -> dict[str, Any]:
    """Return the JSON object of a file in ``settings.home``; empty where there is none."""
    try:
        data = json.loads((settings.home / name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def write_home(settings: Settings, name: str, data: dict[str, Any], optional: bool = False) -> None:
    """Write a JSON object to a file in ``settings.home``, atomically.

    Raises:
        SarGenError: it cannot be written, and is not ``optional``.
    """
    try:
        write_atomic(settings.home / name, json.dumps(data, indent=1).encode())
    except SarGenError as error:
        if not optional:
            raise SarGenError(str(error).replace("SAR_GEN_RUNS", "SAR_GEN_HOME")) from error
