"""Networks that read guides: ControlNets and T2I-Adapters on a base, where they are, and which guide goes which way.

A network's folder holds ``config.json`` and safetensors weights as diffusers saves them, and a ``card.toml`` with
``kind = "guides"`` and the fields of ``NetworkSpec``. Such folders are found where checkpoints are
(``checkpoints.roots``); others are added by folder or hub id (``python -m sar_gen guides add``).

A guide that no network reads goes by image-to-image: it becomes the picture that generation starts from.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sar_gen import checkpoints, folders, hub
from sar_gen.checkpoints import CheckpointSpec, read_card
from sar_gen.errors import InputError
from sar_gen.request import GUIDE_KINDS, IMAGE_TO_IMAGE, Guide
from sar_gen.settings import Settings
from sar_gen.weights import Family, read_header, weight_files

Layout = Literal["studio", "picture"]
KIND = "guides"
CLASSES: dict[str, str] = {"ControlNetModel": "ControlNet", "T2IAdapter": "T2I-Adapter"}
ADAPTERS: dict[str, tuple[Family, ...]] = {
    "full_adapter": ("sd15",),
    "light_adapter": ("sd15",),
    "full_adapter_xl": ("sdxl",),
}
"""The family that each ``adapter_type`` of diffusers' T2IAdapter is made for."""


@dataclass(frozen=True)
class NetworkSpec:
    """One network.

    Attributes:
        id: stable name.
        title: name for people.
        base: id of the pipeline that it was trained on; it works with every strategy on it, and on other bases whose
            UNet has the same shape.
        family: ``sdxl`` or ``sd15``.
        kinds: ``{kind of guide: what the network takes it as}``: a palette for ``map``, else a word for people.
        layout: ``studio``: the planes of ``conditioning.PLANES``; ``picture``: three channels in [0, 1], maps in the
            colours of their palette.
        path: local folder; ``None`` for the hub.
        repo_id: hub repository; ``None`` for a local folder.
        revision: pinned commit.
        variant: of the weight files, ``fp16`` or ``None``.
        default_for: kinds that go this way where the request says nothing.
        untrained: studio classes that it has not learned, and what they are taken for.
        licence: of the weights, ``None`` when unknown.
        credit: lines to show with pictures.
        training_data: in words.
        quality: how well it is followed, measured, as the card gives it.
        sha256: ``{file below the folder: hex}``.
        origin: ``embedded``, ``public``, ``user``, or ``backend``: its files are there, not here.
        warnings: sentences to show before use.
    """

    id: str
    title: str
    base: str
    family: Family
    kinds: dict[str, str]
    layout: Layout = "picture"
    path: Path | None = None
    repo_id: str | None = None
    revision: str | None = None
    variant: str | None = None
    default_for: tuple[str, ...] = ()
    untrained: dict[str, str] = field(default_factory=dict)
    licence: str | None = None
    credit: tuple[str, ...] = ()
    training_data: str = "unknown"
    quality: dict[str, Any] = field(default_factory=dict)
    sha256: dict[str, str] = field(default_factory=dict)
    origin: checkpoints.Origin = "user"
    warnings: tuple[str, ...] = ()


PUBLIC = (
    NetworkSpec(
        id="hochstuhl-s1-ships",
        title="SAR ControlNet, water, ships and land (Hochstuhl)",
        base="hochstuhl-s1",
        family="sd15",
        kinds={"map": "water-ship-land"},
        repo_id="sylviaHoch/SAR-ControlNet",
        default_for=("map",),
        training_data="OSSDD: 15,161 Sentinel-1 patches with masks of ships, water and land",
        credit=("Hochstuhl et al., Diffusion-Based SAR Training Data Synthesis Controlled by Spatial Annotations.",),
        origin="public",
        warnings=(
            "The order of its channels (red water, green ships, blue land) is inferred from its card.",
            "Its licence is not stated; ask the authors before you use its pictures.",
        ),
    ),
)


def networks(settings: Settings, catalogue: Mapping[str, CheckpointSpec]) -> dict[str, NetworkSpec]:
    """Return every network by id, embedded ones first; cards that cannot be read are left out (see ``scan``)."""
    return scan(settings, catalogue)[0]


def scan(settings: Settings, catalogue: Mapping[str, CheckpointSpec]) -> tuple[dict[str, NetworkSpec], list[str]]:
    """Return the networks and one sentence for each that had to be left out; with a backend its own."""
    if settings.backend:
        from sar_gen.serving.client import backend_of

        elsewhere = backend_of(settings).catalogue
        if elsewhere is not None:
            return {spec.id: spec for spec in elsewhere.networks}, []
    found: dict[str, NetworkSpec] = {}
    problems: list[str] = []
    pins = checkpoints.read_home(settings, "pins.json")
    public = [dataclasses.replace(spec, revision=pins.get(str(spec.repo_id))) for spec in PUBLIC]
    rows: list[tuple[dict[str, Any], Path | None, checkpoints.Origin]] = []
    for root, origin in checkpoints.roots(settings)[0]:
        for path in sorted(root.glob("*/card.toml")):
            try:
                card = read_card(path)
            except InputError:
                continue  # the catalogue of checkpoints says so
            if card.get("kind") == KIND:
                rows.append((card, path.parent, origin))
    rows += [(entry, None, "user") for entry in _user_entries(settings)]
    for card, folder, origin in rows:
        try:
            spec = _spec(card, folder, origin, catalogue)
        except InputError as error:
            problems.append(str(error))
            continue
        if spec.id in found or spec.id in catalogue:
            problems.append(f"The id {spec.id!r} is used twice ({spec.path or spec.repo_id}); rename one of them.")
        else:
            found[spec.id] = spec
    for spec in public:
        found.setdefault(spec.id, spec)
    return found, problems


def ways(known: Mapping[str, NetworkSpec], spec: CheckpointSpec, kind: str) -> list[str]:
    """Return the ways that a guide of this kind can go with a checkpoint, its default first.

    Networks that say ``default_for`` come first, then image-to-image, then the other networks.
    """
    fitting = [one for one in known.values() if accepts(one, kind) and one.base == spec.base]
    first = [one.id for one in fitting if _network_kind(one, kind) in one.default_for]
    return [*first, IMAGE_TO_IMAGE, *(one.id for one in fitting if one.id not in first)]


def default_way(offered: Sequence[str], several: bool) -> str:
    """Return the default of the ways that are offered; of several guides a network reads each, where there is one."""
    networks_ = [way for way in offered if way != IMAGE_TO_IMAGE]
    return networks_[0] if several and networks_ else offered[0]


def accepts(network: NetworkSpec, kind: str) -> bool:
    """Return whether a network reads this kind of guide; a sketch is a map drawn by hand."""
    return _network_kind(network, kind) in network.kinds


def way_title(known: Mapping[str, NetworkSpec], way: str) -> str:
    """Return a way's name for people."""
    return "Image-to-image: the guide is the start" if way == IMAGE_TO_IMAGE else known[way].title


def with_ways(
    guides: Sequence[Guide], spec: CheckpointSpec, known: Mapping[str, NetworkSpec], settings: Settings
) -> tuple[Guide, ...]:
    """Return the guides with the way that each goes, checked against the checkpoint and each other.

    Args:
        guides: of a request.
        spec: the checkpoint.
        known: from ``networks``.
        settings: where files are.

    Raises:
        InputError: no such network, one for another base or kind, its files are missing or do not fit, or guides that
            cannot go together.
    """
    chosen = tuple(
        dataclasses.replace(guide, way=guide.way or default_way(ways(known, spec, guide.kind), len(guides) > 1))
        for guide in guides
    )
    for guide in chosen:
        if guide.way == IMAGE_TO_IMAGE:
            continue
        network = known.get(str(guide.way))
        if network is None:
            fitting = ", ".join(ways(known, spec, guide.kind))
            raise InputError(f"There is no network {guide.way!r} to read the guide; choose one of {fitting}.")
        if not accepts(network, guide.kind):
            raise InputError(
                f"{network.title} does not read a guide of the kind {guide.kind}; it reads {', '.join(network.kinds)}."
            )
        if network.origin != "backend":  # which checks its own files
            check_fits(network, spec, checkpoints.catalogue(settings), settings)
    starts = [guide for guide in chosen if guide.way == IMAGE_TO_IMAGE]
    if starts and len(chosen) > 1:
        raise InputError(
            "By image-to-image one guide is the start of the picture, so it goes alone; choose one guide, or networks "
            "for all of them."
        )
    return chosen


def check_fits(
    network: NetworkSpec, spec: CheckpointSpec, catalogue: Mapping[str, CheckpointSpec], settings: Settings
) -> Path:
    """Check that a network's files are there and fit a checkpoint's UNet; return its folder.

    Raises:
        InputError: one sentence on what is missing or does not fit.
    """
    if network.family != spec.family:
        raise InputError(
            f"{network.title} is of family {network.family} and {spec.title} of {spec.family}; they never mix."
        )
    folder = local_network(network, settings)
    config = read_config(folder, network.title)
    base = spec if spec.kind == "pipeline" else checkpoints.base_of(catalogue, spec.base, spec.title)
    unet = folders.read_json(checkpoints.local_folder(base, settings) / "unet" / "config.json")
    from sar_gen.conditioning import PLANES

    wanted = (len(PLANES),) if network.layout == "studio" else (1, 3)
    channels = config.get("conditioning_channels", config.get("in_channels", 3))
    if channels not in wanted:
        raise InputError(
            f"{network.title} takes {channels} channels and the layout {network.layout!r} of its card has "
            f"{' or '.join(map(str, wanted))}; correct the card."
        )
    if config["_class_name"] == "T2IAdapter":
        if network.family not in ADAPTERS.get(str(config.get("adapter_type")), ()):
            raise InputError(f"{network.title} is a {config.get('adapter_type')}, which is not for {spec.family}.")
        return folder
    names = ["block_out_channels", "layers_per_block", "in_channels"]
    if any("CrossAttn" in str(name) for name in config.get("down_block_types", [])):
        names.append("cross_attention_dim")
    for name in names:
        if name in config and name in unet and config[name] != unet[name]:
            raise InputError(
                f"{network.title} does not fit the UNet of {spec.title} ({name}: {config[name]} here, {unet[name]} "
                "there); choose a network that was trained for it."
            )
    return folder


def read_config(folder: Path, title: str) -> dict[str, Any]:
    """Read a network's ``config.json``.

    Raises:
        InputError: it is missing or of another class than diffusers' ControlNetModel or T2IAdapter.
    """
    config = folders.read_json(folder / "config.json")
    if config.get("_class_name") not in CLASSES:
        raise InputError(
            f"{title} is a {config.get('_class_name', 'model without a class')}, which is not loaded; supported are "
            f"{' and '.join(CLASSES)}."
        )
    return config


def local_network(network: NetworkSpec, settings: Settings) -> Path:
    """Return the folder that holds a network's files, complete and with the hashes that its card gives.

    Raises:
        InputError: files are missing, pickles, cut off or changed; the sentence says what to do.
    """
    folder = _place(network)
    missing = missing_files(network)
    if folder is None or missing:
        how = (
            f"run 'python -m sar_gen guides pull {network.id}' with a network connection"
            if network.repo_id
            else f"bring the folder {folder} again"
        )
        raise InputError(f"{network.title} is not on this machine ({missing[0]} is missing); {how}.")
    for path in weight_files(folder, network.variant):
        read_header(path)
    found = checkpoints.hashes_of([folder / name for name in network.sha256], settings)
    for path, wanted in zip(found, network.sha256.values(), strict=True):
        if found[path] != wanted:
            raise InputError(f"{path.name} of {network.title} is not the file that its card describes; get it again.")
    return folder


def missing_files(network: NetworkSpec) -> list[str]:
    """Return the files that are not on this machine, ``[]`` when the network can be loaded."""
    if network.origin == "backend":  # which tells of no others
        return []
    folder = _place(network)
    if folder is None or not (folder / "config.json").is_file():
        return ["config.json"]
    if not weight_files(folder, network.variant):
        folders.refuse_pickles(folder)
        return ["diffusion_pytorch_model.safetensors"]
    return [name for name in network.sha256 if not (folder / name).is_file()]


def identity(network: NetworkSpec, settings: Settings) -> dict[str, str]:
    """Return ``{weight file: SHA-256}`` for the record of a run."""
    folder = local_network(network, settings)
    return {path.name: h for path, h in checkpoints.hashes_of(weight_files(folder, network.variant), settings).items()}


def add_network(
    source: str | Path,
    settings: Settings,
    *,
    base: str | None = None,
    kinds: Iterable[str] = (),
    palette: str = "studio",
    id: str | None = None,
) -> NetworkSpec:
    """Add a ControlNet or T2I-Adapter of the user's own (recorded in ``settings.home``; its files stay in place).

    Args:
        source: folder in diffusers layout, or hub id ``owner/name`` with an optional ``@revision``.
        settings: where the catalogue is.
        base: id of the base that it was trained on; the card's when it has one.
        kinds: of guide that it reads; the card's when it has one.
        palette: of the maps that it reads.
        id: name; made from the name of the source when left out.

    Raises:
        InputError: not a network that is loaded, unsafe, of another shape than its base, or the id is taken.
        SarGenError: the hub cannot be reached.
    """
    catalogue = checkpoints.catalogue(settings)
    known = networks(settings, catalogue)
    path = Path(source).expanduser()
    hub_id = checkpoints.HUB_ID.fullmatch(str(source))
    entry: dict[str, Any]
    if path.is_dir():
        card = read_card(path / "card.toml") if (path / "card.toml").is_file() else {}
        entry = {**card, "path": str(path.resolve())}
        read_config(path, path.name)
    elif hub_id:
        listing = hub.list_repository(hub_id["repo"], hub_id["revision"], hint=_HINT)
        entry = {"repo_id": hub_id["repo"], "revision": listing.commit, "title": hub_id["repo"]}
        entry["variant"] = _variant(list(listing.files))
        hub.network_files(list(listing.files), entry["variant"], hub_id["repo"])
    else:
        raise InputError(f"{source} does not exist; give a folder or a hub id (owner/name).")
    chosen = list(kinds)
    if chosen:
        entry["kinds"] = {kind: palette if kind == "map" else kind for kind in chosen}
    if not entry.get("kinds"):
        raise InputError(f"Say which kinds of guide {source} reads (--kind), among map, optical and sar.")
    entry["base"] = base or entry.get("base")
    if not entry["base"]:
        fitting = ", ".join(spec.id for spec in catalogue.values() if spec.kind == "pipeline")
        raise InputError(f"{source} goes on a base; say which (--base), one of {fitting}.")
    entry["id"] = id or entry.get("id") or checkpoints.slug(path.name.split("@")[0])
    entry["kind"] = KIND
    if entry["id"] in {*known, *catalogue}:
        raise InputError(f"The id {entry['id']!r} is taken; choose another one (--id).")
    spec = _spec({key: value for key, value in entry.items() if value is not None}, None, "user", catalogue)
    on = checkpoints.base_of(catalogue, spec.base, spec.title)
    if spec.path is not None:
        local_network(spec, settings)
        if not checkpoints.missing_files(on, settings):
            check_fits(spec, on, catalogue, settings)
    entries = [*_user_entries(settings), {key: value for key, value in entry.items() if value is not None}]
    checkpoints.write_home(settings, "guides.json", {"guides": entries})
    return spec


def remove_network(id: str, settings: Settings) -> None:
    """Take a network that the user added out of the catalogue; its files stay.

    Raises:
        InputError: it is not one that was added.
    """
    entries = _user_entries(settings)
    left = [entry for entry in entries if entry["id"] != id]
    if len(left) == len(entries):
        raise InputError(f"{id!r} was not added with 'guides add'; 'guides list' shows what there is.")
    checkpoints.write_home(settings, "guides.json", {"guides": left})


def pull(network: NetworkSpec, settings: Settings, progress: Any = None) -> Path:
    """Download a network's files into the hub's cache; its commit is pinned at the first time.

    Raises:
        InputError: the repository is not one that may be loaded.
        SarGenError: no network.
    """
    if network.repo_id is None or not missing_files(network):
        return local_network(network, settings)
    listing = hub.list_repository(network.repo_id, network.revision, hint=_HINT)
    if network.revision is None:
        pins = {**checkpoints.read_home(settings, "pins.json"), network.repo_id: listing.commit}
        checkpoints.write_home(settings, "pins.json", pins)
    variant = network.variant
    names = hub.network_files(list(listing.files), variant, network.title)
    folder = hub.download(
        network.repo_id, listing.commit, {name: listing.files[name] for name in names}, progress, hint=_HINT
    )
    read_config(folder, network.title)
    for path in weight_files(folder, variant):
        read_header(path)
    return folder


_HINT = "it needs a network connection once; or add a local folder with 'python -m sar_gen guides add FOLDER'"


def _network_kind(network: NetworkSpec, kind: str) -> str:
    return "map" if kind == "sketch" and "sketch" not in network.kinds else kind


def _spec(
    card: Mapping[str, Any], folder: Path | None, origin: checkpoints.Origin, catalogue: Mapping[str, CheckpointSpec]
) -> NetworkSpec:
    """Turn a card into a spec, checked."""
    values = {key: value for key, value in card.items() if key != "kind"}
    name = str(values.get("id") or (folder.name if folder else "?"))
    where = f"The card of {name}"
    fields = {f.name for f in dataclasses.fields(NetworkSpec)}
    unknown = [key for key in values if key not in fields]
    if unknown:
        raise InputError(f"{where} has an unknown entry {unknown[0]!r}; correct or remove it.")
    if not checkpoints.ID.fullmatch(name) or name == IMAGE_TO_IMAGE:
        raise InputError(f"{where} has the id {name!r}; use small letters, digits, '-', '_' and '.'.")
    base = checkpoints.base_of(catalogue, str(values.get("base", "")), name)
    kinds = values.get("kinds")
    if not isinstance(kinds, dict) or not kinds or not set(kinds) <= set(GUIDE_KINDS):
        raise InputError(f"{where} should name the kinds of guide that it reads, among {', '.join(GUIDE_KINDS)}.")
    if values.get("layout", "picture") not in ("studio", "picture"):
        raise InputError(f"{where} has the layout {values['layout']!r}; choose studio or picture.")
    from sar_gen.palettes import CLASSES as PALETTE_CLASSES
    from sar_gen.palettes import PALETTES

    if "map" in kinds and kinds["map"] not in PALETTES:
        raise InputError(f"{where} has the palette {kinds['map']!r}; choose one of {', '.join(PALETTES)}.")
    if folder is not None:
        values["path"] = folder
    elif values.get("path"):
        values["path"] = Path(values["path"])
    for key in ("default_for", "credit", "warnings"):
        value = values.get(key, ())
        if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
            raise InputError(f"{where} has {key} = {value!r}; give a list of texts.")
        values[key] = tuple(value)
    for key in ("untrained", "quality", "sha256"):
        if not isinstance(values.get(key, {}), dict):
            raise InputError(f"{where} has {key} = {values[key]!r}; give a table.")
    for pair in values.get("untrained", {}).items():
        if not set(pair) <= set(PALETTE_CLASSES):
            raise InputError(f"{where} has {pair[0]} = {pair[1]!r} as untrained; name {', '.join(PALETTE_CLASSES)}.")
    return NetworkSpec(
        **{**values, "id": name, "title": str(values.get("title", name)), "family": base.family, "origin": origin}
    )


def _place(network: NetworkSpec) -> Path | None:
    if network.path is not None:
        return network.path
    if network.repo_id is None or network.revision is None:
        return None
    return hub.snapshot_folder(network.repo_id, network.revision)


def _variant(names: list[str]) -> str | None:
    plain = [name for name in names if "/" not in name and name.endswith(".safetensors") and ".fp16." not in name]
    return None if plain else "fp16"


def _user_entries(settings: Settings) -> list[dict[str, Any]]:
    entries = checkpoints.read_home(settings, "guides.json").get("guides", [])
    return [entry for entry in entries if isinstance(entry, dict) and "id" in entry]
