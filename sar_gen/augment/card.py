"""The data card of a finished set: ``README.md`` for people, ``card.toml`` for programs; *synthetic* comes first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import tomlkit

from sar_gen import checkpoints, references
from sar_gen.augment.judge import SHOWN, Judged
from sar_gen.augment.plan import count_prompts
from sar_gen.augment.store import Store
from sar_gen.checkpoints import CheckpointSpec
from sar_gen.files import write_atomic
from sar_gen.guide_networks import networks
from sar_gen.quality.wording import title_of
from sar_gen.request import IMAGE_TO_IMAGE
from sar_gen.settings import Settings

CARD, README = "card.toml", "README.md"
LIMITS = (
    "Every patch is made by a model: no place on earth looks like this, and nothing can be measured in it.",
    "A model shows what it learned: rare structures, targets and artefacts of real SAR may be missing or wrong.",
    "The label is what the prompt asked for; whether the patch shows it was not checked by anybody.",
    "Never score a classifier on synthetic patches: test on real SAR of ground that the generator was not trained on.",
)


def write(store: Store, settings: Settings, found: Mapping[str, Judged]) -> None:
    """Write both cards.

    Args:
        store: of a finished set.
        settings: where checkpoints are.
        found: the reports by class.

    Raises:
        SarGenError: the folder cannot be written.
    """
    facts = card_facts(store, settings, found)
    write_atomic(store.folder / CARD, tomlkit.dumps(_without_none(facts)).encode())
    write_atomic(store.folder / README, readme(facts).encode())


def written(store: Store) -> bool:
    """Return whether the card, which is the last that is written of a set, is there."""
    return (store.folder / README).is_file()


def verdicts(store: Store) -> dict[str, str]:
    """Return the verdict on each class that was judged, as the card says it."""
    classes = tomlkit.parse((store.folder / CARD).read_text(encoding="utf-8")).unwrap()["classes"]
    return {name: one["verdict"] for name, one in classes.items() if "verdict" in one}


def card_facts(store: Store, settings: Settings, found: Mapping[str, Judged]) -> dict[str, Any]:
    """Return what the card says, as plain data."""
    recipe, plan = store.recipe, store.recipe.plan
    catalogue = checkpoints.catalogue(settings)
    specs = {one.checkpoint: catalogue[one.checkpoint] for one in recipe.classes if one.count}
    bases = {spec.base: catalogue[spec.base] for spec in specs.values() if spec.base in catalogue}
    everything: list[Any] = [*{**specs, **bases}.values()]
    known = networks(settings, catalogue)
    devices, requests, guided = Counter[str](), dict[str, dict[str, Any]](), 0
    for slot in store.made():
        line = store.journal.line(int(slot))
        devices[f"{line['device']['device']}, {line['device']['dtype']}"] += 1
        guided += bool(line["masks"])
        request = line["request"]
        if request["checkpoint"] not in requests:
            names = ("steps", "guidance", "width", "height", "scheduler", "profile", "negative")
            requests[request["checkpoint"]] = {name: request[name] for name in names}
        for guide in request["guides"]:
            network = known.get(str(guide["way"]))
            if guide["way"] != IMAGE_TO_IMAGE and network is not None and network not in everything:
                everything.append(network)
    counts = store.counts()
    judged = {one.reference: references.load_reference(one.reference, settings) for one in found.values()}
    return {
        "name": plan.name,
        "synthetic": True,
        "asked": recipe.total,
        "made": sum(count["made"] for count in counts.values()),
        "missing": sum(count["missing"] for count in counts.values()),
        "rejected_attempts": sum(count["rejected"] for count in counts.values()),
        "guided": guided,
        "split": plan.split,
        "seed": plan.seed,
        "seed_rule": f"attempt a of patch i has the seed {plan.seed} + i + a * {recipe.total}",
        "licence": _licence(everything),
        "credit": list(dict.fromkeys(line for one in everything for line in one.credit)),
        "limits": list(LIMITS),
        "warnings": list(
            dict.fromkeys([*recipe.warnings, *(warning for one in everything for warning in one.warnings)])
        ),
        "devices": dict(devices),
        "threads": plan.threads,
        "batch": plan.batch,
        "versions": store.versions,
        "gate": {
            "attempts": plan.gate.attempts,
            "measures": dict(plan.gate.measures),
            "references": {one.name: one.reference for one in recipe.classes if one.reference},
        },
        "checkpoints": {
            id: {
                "title": spec.title, "base": spec.base, "strategy": spec.strategy, "sensor": _sensor(spec, bases),
                "amplitude_encoding": spec.amplitude_encoding, "training_data": spec.training_data,
                "licence": spec.licence, "request": requests.get(id, {}), "sha256": recipe.weights.get(id, {}),
                "base_sha256": recipe.weights.get(spec.base, {}) if spec.base != id else {},
                "quality_notes": list(spec.quality.get("notes", [])),
            }
            for id, spec in specs.items()
        },
        "classes": {
            one.name: {
                **counts[one.name], "label": one.label, "prompts": list(one.templates),
                "different_prompts": count_prompts(one.templates, one.words), "checkpoint": one.checkpoint,
                **({} if one.name not in found else {
                    "verdict": found[one.name].verdict, "compared": found[one.name].compared,
                    "floors": {name: ratio for name, ratio in found[one.name].ratios.items() if ratio is not None},
                }),
            }
            for one in recipe.classes
        },
        "reference_credit": {name: one.credit for name, one in judged.items() if one.credit},
    }  # fmt: skip


def readme(facts: Mapping[str, Any]) -> str:
    """Return the card for people."""
    classes: dict[str, dict[str, Any]] = facts["classes"]
    lines = [
        f"# {facts['name']}: synthetic SAR patches",
        "",
        f"**Every patch here is synthetic.** {facts['made']:,} patches were made by a diffusion model from text"
        + (" and guides" if facts["guided"] else "")
        + "; none is a measurement.",
        "",
        "## What is in it",
        "",
        "| class | label | asked | made | missing | rejected attempts | different prompts |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, one in classes.items():
        numbers = (one[key] for key in ("label", "asked", "made", "missing", "rejected", "different_prompts"))
        lines.append(f"| {name} | " + " | ".join(f"{number:,}" for number in numbers) + " |")
    if facts["missing"]:
        lines += ["", f"**{facts['missing']:,} patches are missing**: the gate rejected every attempt at them."]
    lines += [
        "",
        "- `patches/CLASS/KEY`: amplitude; 16-bit grey PNG, 65535 is 1 (or float32 NPY).",
        "- `manifest.jsonl`: the patches in the format of `python -m sar_gen train`; `labels.csv`: class and masks.",
        "- `requests.jsonl`: of each patch the whole request, its seed, the SHA-256 of its float32 amplitude, its "
        "distances in floors and the attempts that were rejected.",
        "- `shards/`: the same as WebDataset tar shards (`.png` or `.npy`, `.json`, `.cls`, `.mask.png`).",
        "- `report.html`, `report.json`: each class beside real SAR. `plan.toml`: the plan; `card.toml`: this card.",
    ]
    if facts["guided"]:
        lines.append(
            f"- `masks/CLASS/KEY.png`: the guides of {facts['guided']:,} patches; numbers in `palettes.json`."
        )
    lines += ["", "## How it was made", ""]
    for id, spec in facts["checkpoints"].items():
        asked = ", ".join(f"{key} {value}" for key, value in spec["request"].items() if value not in ("", None))
        lines.append(f"- {spec['title']} (`{id}`, strategy `{spec['strategy']}` on `{spec['base']}`): {asked}.")
        lines.append(f"  Trained on: {spec['training_data']}.")
        for which, hashes in (("weights", spec["sha256"]), ("base", spec["base_sha256"])):
            lines += [f"  - {which}: `{name}` {sha}" for name, sha in hashes.items()]
    devices = ", ".join(f"{name} ({count:,} patches)" for name, count in facts["devices"].items())
    lines += [
        f"- Seeds: {facts['seed_rule']}.",
        f"- Devices: {devices}; threads of a process on a CPU: {facts['threads']}; patches a request at most: "
        f"{facts['batch']}.",
        "- Libraries: "
        + "; ".join(", ".join(f"{name} {text}" for name, text in row.items()) for row in facts["versions"])
        + ".",
        "- Prompts:",
        *(f"  - {name}: {'; '.join(one['prompts'])}" for name, one in classes.items()),
        "",
        "## How good it is",
        "",
    ]
    gate = facts["gate"]
    if gate["measures"]:
        limits = ", ".join(f"{name} at most {limit:g}" for name, limit in gate["measures"].items())
        lines += [
            f"A patch was kept where its distances from real patches were, in floors (1 is the median of single real "
            f"patches): {limits}; {gate['attempts']} attempts each.",
            "",
        ]
    else:
        lines += ["No patch was rejected for its quality.", ""]
    judged = {name: one for name, one in classes.items() if "verdict" in one}
    if judged:
        lines += [
            "Measures of the class as a whole, in floors of as many real patches:",
            "",
            "| class | compared | " + " | ".join(map(title_of, SHOWN)) + " |",
            "| --- " * (2 + len(SHOWN)) + "|",
        ]
        for name, one in judged.items():
            cells = (f"{one['floors'][key]:.2f}" if key in one["floors"] else "-" for key in SHOWN)
            lines.append(f"| {name} | {one['compared']:,} | " + " | ".join(cells) + " |")
        lines += ["", *(f"- {name}: {one['verdict']}" for name, one in judged.items()), ""]
    notes = list(dict.fromkeys(note for spec in facts["checkpoints"].values() for note in spec["quality_notes"]))
    if notes:
        lines += ["What the checkpoint's card says of its quality:", "", *(f"- {note}" for note in notes), ""]
    lines += ["## Limits", "", *(f"- {line}" for line in (*facts["limits"], *facts["warnings"])), ""]
    lines += ["## Licence and credit", "", f"Licence: {facts['licence']}.", ""]
    lines += [f"- {line}" for line in facts["credit"]]
    lines += [f"- Compared with {name}: {credit}" for name, credit in facts["reference_credit"].items()]
    return "\n".join(lines).rstrip() + "\n"


def _licence(specs: list[Any]) -> str:
    names = list(dict.fromkeys(spec.licence or f"unknown ({spec.title}): ask its authors" for spec in specs))
    return "; ".join(names)


def _sensor(spec: CheckpointSpec, bases: Mapping[str, CheckpointSpec]) -> str | None:
    base = bases.get(spec.base)
    return spec.sensor or (None if base is None else base.sensor)


def _without_none(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _without_none(value) for key, value in data.items() if value is not None}
    return [_without_none(value) for value in data] if isinstance(data, list) else data
