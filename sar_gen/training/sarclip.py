"""Training of SAR-CLIP, the small CLIP that ``sar_gen.quality.semantic`` reads prompt agreement with.

    python -m sar_gen.training.sarclip prepare DATA_FOLDER OUT.npz
    python -m sar_gen.training.sarclip train DATA.npz --out checkpoints/sar-clip --work WORK_FOLDER [--resume]
    python -m sar_gen.training.sarclip evaluate DATA.npz FOLDER

``train`` writes ``model.safetensors`` (float16), ``config.json``, ``tokenizer.json``, ``held-out.safetensors``,
``metrics.json`` and the card ``sar-clip.toml`` with what was measured on the files as written. It needs no network,
uses CUDA in bfloat16 where there is one, and goes on after an interruption with ``--resume``.

The loss is the symmetric one of CLIP (InfoNCE) with several positives: a caption is a positive of every patch of the
batch for which all its facts are true, and is no negative of a patch for which it is undecided. Of both directions,
each positive has the same share of the target. Patches see no flips (SAR looks sideways), only shifted crops, speckle,
a change of gain, and masked squares.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sar_gen.errors import InputError, SarGenError
from sar_gen.files import sha256_of, write_atomic
from sar_gen.quality import semantic
from sar_gen.quality.semantic import CARD, CHANNELS, HELD_OUT, LOOKS, SIDE, UNKNOWN, SarClip, auc, load_sarclip
from sar_gen.reference_statistics import VH_CREDIT, VV_CREDIT
from sar_gen.training import sarclip_data
from sar_gen.training.captions import GROUNDS, TERRAINS, agreement, caption, vocabulary
from sar_gen.training.sarclip_data import SIDE as PATCH
from sar_gen.training.sarclip_data import Record, TrainingData
from sar_gen.training.sarclip_evaluation import class_features, evaluate, fixed_captions, held_out, zero_shot

PAD, UNK, START, END = "[pad]", UNKNOWN, "[start]", "[end]"
STATE = "state.pt"
TEXT_LENGTH = 32
MAX_LOGIT_SCALE = math.log(50.0)


@dataclass(frozen=True)
class Size:
    """Widths and depths of the two towers; ``tile`` is the side of the image tower's patches in its pixels."""

    image_width: int = 256
    image_layers: int = 6
    image_heads: int = 4
    tile: int = 8
    text_width: int = 128
    text_layers: int = 3
    text_heads: int = 4
    projection: int = 128


SIZES = {
    "small": Size(),
    "slim": Size(image_width=192, image_heads=3),
    "mini": Size(image_width=128, image_layers=4, tile=16, text_width=64, text_layers=2, projection=64),
    "tiny": Size(32, 1, 2, 28, 32, 1, 2, 16),
}
"""``small`` is what ships (5.4 million parameters, 11 MB), ``mini`` learns within minutes on two cores, ``tiny`` is
for tests."""


@dataclass(frozen=True)
class Plan:
    """How to train; everything that a resumed run must share.

    Attributes:
        size: name in ``SIZES``.
        steps: of the optimiser, at most.
        batch: patches a step.
        learning_rate: highest, after ``warmup`` steps; a cosine to 2 % of it follows.
        weight_decay: of the matrices.
        warmup: steps.
        ema: decay of the averaged weights, which are what is evaluated and kept.
        dropout: of the attention.
        speckle_looks: looks of the multiplicative noise that is added (Gamma of mean 1 on intensity).
        gain_db: standard deviation of the change of gain.
        masked: largest share of a patch that is masked by squares.
        unknown: share of caption words that are replaced by the unknown word.
        vh_share: share of each batch that is VH.
        evaluate_every: steps between validations.
        patience: validations without a better one before stopping.
        seed: of everything.
    """

    size: str = "small"
    steps: int = 4000
    batch: int = 256
    learning_rate: float = 5e-4
    weight_decay: float = 0.2
    warmup: int = 200
    ema: float = 0.995
    dropout: float = 0.1
    speckle_looks: float = 20.0
    gain_db: float = 0.7
    masked: float = 0.4
    unknown: float = 0.05
    vh_share: float = 0.15
    evaluate_every: int = 100
    patience: int = 15
    seed: int = 0


Say = Callable[[str], None]


# The model ---------------------------------------------------------------------------------------------------------


def build_tokenizer(known: Sequence[str]) -> Any:
    """Return a word-level tokenizer: lower case, letters and digits; every other word is the unknown one."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

    ids = {word: i for i, word in enumerate((PAD, UNK, START, END, *known))}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=UNK))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("[^a-z0-9]+"), "removed")
    specials = [(START, ids[START]), (END, ids[END])]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{START} $A {END}", special_tokens=specials)
    return tokenizer


def build_model(size: Size, words: int, dropout: float, seed: int) -> Any:
    """Return a ``CLIPModel`` with random weights, fixed by the seed.

    Args:
        size: of the towers.
        words: of the tokenizer, special ones included.
        dropout: of the attention.
        seed: of the weights.
    """
    import torch
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(seed)
    config = CLIPConfig(
        text_config={
            "vocab_size": words,
            "hidden_size": size.text_width,
            "intermediate_size": 4 * size.text_width,
            "num_hidden_layers": size.text_layers,
            "num_attention_heads": size.text_heads,
            "max_position_embeddings": TEXT_LENGTH,
            "attention_dropout": dropout,
            "projection_dim": size.projection,
            "pad_token_id": 0,
            "bos_token_id": 2,
            "eos_token_id": 3,
        },
        vision_config={
            "hidden_size": size.image_width,
            "intermediate_size": 4 * size.image_width,
            "num_hidden_layers": size.image_layers,
            "num_attention_heads": size.image_heads,
            "num_channels": CHANNELS,
            "image_size": SIDE // LOOKS,
            "patch_size": size.tile,
            "attention_dropout": dropout,
            "projection_dim": size.projection,
        },
        projection_dim=size.projection,
        logit_scale_init_value=math.log(10.0),
    )
    return CLIPModel(config)


def contrastive_loss(logits: Any, truth: Any) -> Any:
    """Return the symmetric cross-entropy with several positives.

    With every caption right for its own patch only, this is CLIP's loss.

    Args:
        logits: torch float ``(n, n)``, scaled cosines of images (rows) and captions (columns).
        truth: torch ``(n, n)``: 1 where the caption is right for the patch, 0 where wrong, -1 where undecided.
    """
    right = (truth == 1).to(logits.dtype)
    logits = logits.masked_fill(truth == -1, float("-inf"))
    loss = logits.new_zeros(())
    for axis in (0, 1):
        target = right / right.sum(dim=axis, keepdim=True).clamp_min(1)
        log_shares = logits.log_softmax(dim=axis).masked_fill(right == 0, 0)  # 0 * -inf is not 0
        loss = loss - (target * log_shares).sum(dim=axis).mean() / 2
    return loss


# Batches -----------------------------------------------------------------------------------------------------------


def sampling_weights(records: Sequence[Record], vh_share: float) -> NDArray[np.float64]:
    """Return the probability of each patch to be drawn.

    The VV terrains are drawn alike, and the VH grounds (the first true one, or none); inside each a group of n patches
    weighs as sqrt(n), since much of some terrains comes from one place.
    """
    keys = []
    for record in records:
        ground = record.terrain or next((name for name in GROUNDS if record.facts[name] == 1), "")
        keys.append((record.polarisation, ground, record.group))
    weights = np.empty(len(records))
    polarisations = {key[0] for key in keys}
    for i, key in enumerate(keys):
        share = 1.0 if len(polarisations) == 1 else vh_share if key[0] == "VH" else 1 - vh_share
        grounds = len({other[1] for other in keys if other[0] == key[0]})
        weights[i] = share / grounds
    sizes: dict[tuple[str, str, str], int] = {}
    for key in keys:
        sizes[key] = sizes.get(key, 0) + 1
    totals: dict[tuple[str, str], float] = {}
    for key, size in sizes.items():
        totals[key[:2]] = totals.get(key[:2], 0.0) + size**0.5
    for i, key in enumerate(keys):
        weights[i] *= sizes[key] ** -0.5 / totals[key[:2]]
    return np.asarray(weights / weights.sum())


def drop_words(ids: NDArray[np.int64], share: float, rng: np.random.Generator) -> NDArray[np.int64]:
    """Replace a share of the words (ids above the special ones) by the unknown word, id 1."""
    return np.where((ids > 3) & (rng.random(ids.shape) < share), 1, ids)


def augment(amplitude: Any, plan: Plan, generator: Any) -> Any:
    """Return crops of ``SIDE`` with speckle, another gain and masked squares, brought to the tower's channels.

    Args:
        amplitude: torch float ``(n, PATCH, PATCH)``.
        plan: strengths.
        generator: torch generator on the same device.
    """
    import torch

    count, device = len(amplitude), amplitude.device
    offsets = torch.randint(0, PATCH - SIDE + 1, (count, 2, 1), generator=generator, device=device)
    along = torch.arange(SIDE, device=device)
    rows, columns = (offsets[:, axis] + along for axis in (0, 1))
    crops = amplitude[torch.arange(count, device=device)[:, None, None], rows[:, :, None], columns[:, None, :]]
    # Close to Gamma of mean 1 for this many looks (Wilson and Hilferty 1931), and has a generator on every device.
    spread = 1 / (9 * plan.speckle_looks)
    normal = torch.randn(crops.shape, generator=generator, device=device)
    speckle = (1 - spread + normal * spread**0.5).clamp_min(0) ** 3
    gain = 10 ** (torch.randn((count, 1, 1), generator=generator, device=device) * plan.gain_db / 20)
    pixels = semantic.sar_pixels((crops * speckle.sqrt() * gain).clamp(0, 1))
    side = SIDE // LOOKS
    cells = side // 16
    share = torch.rand((count, 1, 1, 1), generator=generator, device=device) * plan.masked
    hidden = torch.rand((count, 1, cells, cells), generator=generator, device=device) < share
    hidden = hidden.repeat_interleave(16, 2).repeat_interleave(16, 3)
    return torch.where(hidden, pixels.mean(dim=(2, 3), keepdim=True), pixels)


@dataclass(frozen=True)
class Batch:
    """Numbers of the patches, token ids of their captions, and who is right for whom (int8, see ``agreement``)."""

    indices: NDArray[np.int64]
    ids: NDArray[np.int64]
    truth: NDArray[np.int8]


def batches(records: Sequence[Record], tokenizer: Any, plan: Plan, first: int) -> Iterator[Batch]:
    """Yield the batches from step ``first`` on; step and seed alone decide what a batch is."""
    from sar_gen.training.captions import FACTS

    weights = sampling_weights(records, plan.vh_share)
    known = np.array([[record.facts[name] for name in FACTS] for record in records], np.int8)
    place = {name: i for i, name in enumerate(FACTS)}
    for step in range(first, plan.steps):
        rng = np.random.default_rng((plan.seed, step))
        random = Random(f"{plan.seed}-{step}")
        indices = rng.choice(len(records), plan.batch, p=weights)
        written = [caption(records[i].facts, random) for i in indices]
        stated = np.zeros((plan.batch, len(FACTS)), bool)
        for row, entry in zip(stated, written, strict=True):
            row[[place[name] for name in entry.stated]] = True
        ids = semantic.token_ids(tokenizer, [entry.text for entry in written], TEXT_LENGTH)
        yield Batch(indices, drop_words(ids, plan.unknown, rng), truth_table(known[indices], stated))


def truth_table(known: NDArray[np.int8], stated: NDArray[np.bool_]) -> NDArray[np.int8]:
    """Return ``captions.agreement`` of every patch with every caption, ``(patches, captions)``.

    Args:
        known: ``(patches, facts)`` 1, 0 or -1.
        stated: ``(captions, facts)``.
    """
    columns = stated.T.astype(np.int32)
    false = (known == 0).astype(np.int32) @ columns > 0
    unknown = (known == -1).astype(np.int32) @ columns > 0
    return np.where(false, 0, np.where(unknown, -1, 1)).astype(np.int8)


# Training ----------------------------------------------------------------------------------------------------------


def train(
    data: TrainingData,
    plan: Plan,
    out: Path,
    work: Path,
    *,
    device: str = "auto",
    resume: bool = False,
    minutes: float | None = None,
    save_seconds: float = 60.0,
    say: Say = print,
) -> dict[str, Any]:
    """Train, keep the weights that validate best, write them with their card and return the metrics.

    Args:
        data: from ``sarclip_data.load``.
        plan: how.
        out: folder of the weights and the card.
        work: folder of the state that a stopped run goes on from.
        device: ``auto``, ``cpu`` or ``cuda``.
        resume: go on from ``work``, where there is a state.
        minutes: stop training after so long in this call (and then evaluate), ``None``: no limit. The learning rate
            follows ``plan.steps``, so a run cut short has not cooled down.
        save_seconds: between saved states.
        say: told how it goes.

    Raises:
        InputError: no training or validation patches, or a state of another plan.
        SarGenError: the files cannot be written.
    """
    import torch

    started = time.perf_counter()
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    chosen = data.indices("train")
    if not chosen or not data.indices("validation"):
        raise InputError("The data hold no training or no validation patches; prepare them again.")
    records = [data.records[i] for i in chosen]
    run = _Run(plan, device, (work / STATE) if resume else None)
    pool = _pool(data, chosen, device)
    kept_back = data.indices("validation")
    held = [data.records[i] for i in kept_back]
    seen = data.amplitudes(kept_back)
    say(f"{run.parameters / 1e6:.2f} million parameters on {device}, from step {run.step} of {plan.steps}")
    saved = time.perf_counter()
    run.model.train()
    for batch in batches(records, run.tokenizer, plan, run.step):
        loss = run.update(batch, pool)
        if run.step % plan.evaluate_every == 0 or run.step == plan.steps:
            found = validate(run.average(), run.tokenizer, held, seen, plan.seed)
            run.note(found, float(loss))
            say(
                f"step {run.step}: loss {float(loss):.3f}, validation accuracy {found['balanced_accuracy']:.3f}, "
                f"AUC {found['auc']:.3f}, {time.perf_counter() - started:.0f} s"
            )
            if run.stale >= plan.patience:
                say(f"stopped: {plan.patience} validations without a better one")
                break
        if minutes is not None and time.perf_counter() - started > 60 * minutes:
            say(f"stopped after {minutes:g} minutes at step {run.step}")
            break
        if time.perf_counter() - saved > save_seconds:
            run.save(work / STATE)
            saved = time.perf_counter()
    if not run.history:  # stopped before the first validation
        run.note(validate(run.average(), run.tokenizer, held, seen, plan.seed), math.nan)
    run.save(work / STATE)
    training = {
        "plan": asdict(plan),
        "parameters": run.parameters,
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else "CPU",
        "best_step": run.best_step,
        "last_step": run.step,
        "seconds_this_call": round(time.perf_counter() - started, 1),
        "history": run.history,
    }
    return finish(run, data, out, training)


class _Run:
    """Model, averaged weights and optimiser of a run, at some step."""

    def __init__(self, plan: Plan, device: str, state: Path | None) -> None:
        import torch

        self.plan, self.device = plan, device
        self.tokenizer = build_tokenizer(vocabulary())
        words = self.tokenizer.get_vocab_size()
        self.model = build_model(SIZES[plan.size], words, plan.dropout, plan.seed).to(device)
        self.parameters = sum(parameter.numel() for parameter in self.model.parameters())
        self.averaged = {name: value.detach().clone() for name, value in self.model.named_parameters()}
        self.best = {name: value.clone() for name, value in self.averaged.items()}
        matrices = [p for p in self.model.parameters() if p.ndim >= 2]
        others = [p for p in self.model.parameters() if p.ndim < 2]
        self.optimiser = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": plan.weight_decay}, {"params": others, "weight_decay": 0.0}],
            lr=plan.learning_rate,
            betas=(0.9, 0.98),
        )
        self.step, self.best_step, self.best_score, self.stale = 0, 0, -1.0, 0
        self.history: list[dict[str, Any]] = []
        self._shadow: Any = None
        if state is not None and state.is_file():
            self._restore(state)

    def update(self, batch: Batch, pool: Any) -> Any:
        """Take one step and return the loss (on the device)."""
        import torch

        plan = self.plan
        generator = torch.Generator(device=self.device)
        generator.manual_seed(plan.seed * 1_000_003 + self.step)
        for group in self.optimiser.param_groups:
            group["lr"] = plan.learning_rate * schedule(self.step, plan)
        indices = torch.from_numpy(batch.indices).to(self.device)
        with torch.no_grad():
            pixels = augment(pool[indices].float(), plan, generator)
        with torch.autocast(self.device.split(":")[0], torch.bfloat16, enabled=self.device.startswith("cuda")):
            images = semantic.image_embedding(self.model, pixels)
            texts = semantic.text_embedding(self.model, torch.from_numpy(batch.ids).to(self.device))
        images, texts = (torch.nn.functional.normalize(x.float(), dim=-1) for x in (images, texts))
        logits = self.model.logit_scale.exp() * images @ texts.T
        loss = contrastive_loss(logits, torch.from_numpy(batch.truth).to(self.device))
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimiser.step()
        with torch.no_grad():
            self.model.logit_scale.clamp_(0, MAX_LOGIT_SCALE)
            # The average is short-sighted at first, so that it does not keep the random beginning.
            decay = min(plan.ema, (1 + self.step) / (10 + self.step))
            parameters = [value.detach() for value in self.model.parameters()]
            torch._foreach_lerp_(list(self.averaged.values()), parameters, 1 - decay)
        self.step += 1
        return loss.detach()

    def average(self) -> Any:
        """Return a model with the averaged weights, for evaluation."""
        import copy

        import torch

        if self._shadow is None:
            self._shadow = copy.deepcopy(self.model).eval()
        with torch.no_grad():
            for name, value in self._shadow.named_parameters():
                value.copy_(self.averaged[name])
        return self._shadow

    def note(self, found: dict[str, float], loss: float) -> None:
        """Record a validation, and keep the averaged weights where it is the best so far."""
        self.history.append({"step": self.step, "loss": round(loss, 4) if math.isfinite(loss) else None, **found})
        if found["score"] > self.best_score:
            self.best_score, self.best_step, self.stale = found["score"], self.step, 0
            self.best = {name: value.clone() for name, value in self.averaged.items()}
        else:
            self.stale += 1

    def save(self, path: Path) -> None:
        """Write everything that going on needs."""
        import io

        import torch

        state = {
            "plan": json.dumps(asdict(self.plan)),
            "model": self.model.state_dict(),
            "averaged": self.averaged,
            "best": self.best,
            "optimiser": self.optimiser.state_dict(),
            "numbers": [self.step, self.best_step, self.best_score, self.stale],
            "history": json.dumps(self.history),
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_atomic(path, buffer.getvalue())

    def _restore(self, path: Path) -> None:
        import torch

        state = torch.load(path, map_location=self.device, weights_only=True)
        if json.loads(state["plan"]) != asdict(self.plan):
            raise InputError(f"{path} belongs to a run with another plan; give its options, or another work folder.")
        self.model.load_state_dict(state["model"])
        self.averaged, self.best = state["averaged"], state["best"]
        self.optimiser.load_state_dict(state["optimiser"])
        step, best_step, score, stale = state["numbers"]
        self.step, self.best_step, self.best_score, self.stale = int(step), int(best_step), float(score), int(stale)
        self.history = json.loads(state["history"])


def schedule(step: int, plan: Plan) -> float:
    """Return the factor of the learning rate: linear over the warm-up, then a cosine down to 0.02."""
    if step < plan.warmup:
        return (step + 1) / plan.warmup
    along = (step - plan.warmup) / max(1, plan.steps - plan.warmup)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, along)))


def validate(
    model: Any, tokenizer: Any, records: Sequence[Record], amplitudes: Sequence[NDArray[np.float32]], seed: int
) -> dict[str, float]:
    """Return zero-shot accuracy of the VV terrains, AUC of right against wrong captions, and their mean (``score``).

    Accuracy is the mean over terrains; the captions are fixed, one a patch.
    """
    device = str(next(model.parameters()).device)
    clip = SarClip("in training", True, {}, {"title": "in training"}, model, tokenizer, device)
    images = clip.image_features(amplitudes)
    texts = fixed_captions(records, seed)
    scores = images @ clip.text_features([entry.text for entry in texts]).T
    truth = np.array([[agreement(record.facts, entry.stated) for entry in texts] for record in records])
    apart = auc(scores[truth == 1], scores[truth == 0])
    vv = np.array([record.polarisation == "VV" for record in records])
    labels = np.array([TERRAINS.index(record.terrain) for record in records if record.terrain])
    groups = [record.group for record in records if record.terrain]
    accuracy = zero_shot(images[vv], class_features(clip, TERRAINS, "VV"), labels, groups)
    return {
        "balanced_accuracy": round(accuracy.balanced, 4),
        "accuracy": round(accuracy.accuracy, 4),
        "auc": round(apart, 4),
        "score": round((accuracy.balanced + apart) / 2, 5),
    }


def _pool(data: TrainingData, indices: Sequence[int], device: str) -> Any:
    """Return the amplitudes on the device, ``(n, 256, 256)``, in float16: exact to 0.01 dB, and half of float32."""
    import torch

    pool = np.stack([amplitude.astype(np.float16) for amplitude in data.amplitudes(indices)])
    return torch.from_numpy(pool).to(device)


# What is written ---------------------------------------------------------------------------------------------------


def finish(run: Any, data: TrainingData, out: Path, training: dict[str, Any]) -> dict[str, Any]:
    """Write the best weights, load them as a user does, measure them on ``reference``, and write card and metrics."""
    import torch
    from safetensors.torch import save

    out.mkdir(parents=True, exist_ok=True)
    (out / CARD).unlink(missing_ok=True)  # it describes other weights from here on
    model = run.average()
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.copy_(run.best[name])
    half = {
        name: value.detach().to("cpu", torch.float16).contiguous()
        for name, value in model.state_dict().items()
        if not name.endswith("position_ids")
    }
    config = model.config.to_dict() | {"architectures": ["CLIPModel"], "dtype": "float16"}
    for key in ("_name_or_path", "transformers_version"):
        config.pop(key, None)
    write_atomic(out / "model.safetensors", save(half, metadata={"format": "pt"}))
    write_atomic(out / "config.json", (json.dumps(config, indent=2, sort_keys=True) + "\n").encode())
    write_atomic(out / "tokenizer.json", (run.tokenizer.to_str(pretty=True) + "\n").encode())
    (out / HELD_OUT).unlink(missing_ok=True)
    bare = _without_card(out)
    quality = evaluate(bare, data)
    semantic.write_held_out(out / HELD_OUT, held_out(bare, data))
    metrics = {"quality": quality, "training": training, "data": sarclip_data.summary(data.records)}
    write_atomic(out / "metrics.json", (json.dumps(metrics, indent=1) + "\n").encode())
    write_atomic(out / CARD, card_text(out, quality, training, data).encode())
    load_sarclip(out)  # the card too must be readable
    return metrics


def measure(data: TrainingData, folder: Path) -> dict[str, Any]:
    """Return ``evaluate`` of the weights in a folder, on the CPU in float32, as users load them."""
    return evaluate(load_sarclip(folder), data)


def _without_card(folder: Path) -> SarClip:
    """Load our own weights whose card is not written yet."""
    import torch
    from tokenizers import Tokenizer
    from transformers import CLIPModel

    model = CLIPModel.from_pretrained(folder, use_safetensors=True, local_files_only=True).to(torch.float32).eval()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return SarClip(folder.name, True, {}, {"title": folder.name}, model, tokenizer)


def card_text(folder: Path, quality: dict[str, Any], training: dict[str, Any], data: TrainingData) -> str:
    """Return ``sar-clip.toml``: what the weights are, what was measured, and the scores that a score is read by."""
    counts = sarclip_data.summary(data.records)
    plan = training["plan"]
    card: dict[str, Any] = {
        "id": "sar-clip",
        "title": "SAR-CLIP, Sentinel-1",
        "kind": "clip",
        "sar_trained": True,
        "parameters": training["parameters"],
        "licence": "Apache-2.0",
        "credit": [VV_CREDIT, VH_CREDIT],
        "training_data": f"{counts['train']['patches']} patches of {counts['train']['groups']} places, 10 m: SEN1-2 "
        f"(VV, five terrains) and VH crops of the Los Angeles basin; {counts['validation']['patches']} more chose the "
        "step. Captions: terrain, ground, polarisation, and attributes from the optical and the radar image "
        "(sar_gen/training/captions.py).",
        "notes": [
            "Measured on the reference split, which shares no ground with training. It is small: see interval_95.",
            "Image-to-text recall at 5 by class can lie below chance: the five best captions are mostly of one class.",
            "The VH grounds come from few scenes of one city; read what they say as a rough guide.",
            "Much of some terrains (agriculture, forest, gorge) comes from a single place.",
        ],
        "input": {
            "amplitude": "linear, over mean + 3 std, clipped to [0, 1]; VV and VH alike",
            "side": SIDE,
            "looks": LOOKS,
            "channels": CHANNELS,
            "transform": "2 x 2 multilook of intensity; (dB + 10) / 7 and (local std of dB in 7 x 7 - 3) / 2",
            "pixel": "10 m",
        },
        "training": {
            "device": training["device"],
            "best_step": training["best_step"],
            "last_step": training["last_step"],
            **plan,
        },
    }
    for name in ("zero_shot", "zero_shot_vh"):
        if name in quality:
            card[f"quality.{name}"] = quality[name]
    for name, values in quality.get("retrieval", {}).items():
        card[f"quality.retrieval.{name}"] = values
    for name, values in quality["calibration"].items():
        card[f"calibration.{json.dumps(name)}"] = values
    card["sha256"] = {name: sha256_of(folder / name) for name in ("model.safetensors", HELD_OUT)}
    return "# Written by sar_gen.training.sarclip; not by hand.\n" + toml_text(card)


def toml_text(card: dict[str, Any]) -> str:
    """Return plain values, then one table for each value that is a dict; keys of tables may be dotted."""
    lines = [f"{key} = {_toml(value)}" for key, value in card.items() if not isinstance(value, dict)]
    for key, table in card.items():
        if isinstance(table, dict):
            lines += ["", f"[{key}]", *(f"{json.dumps(name)} = {_toml(value)}" for name, value in table.items())]
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    # JSON's strings, numbers, booleans and lists are TOML's too, as long as nothing is null or not finite.
    return json.dumps(value, allow_nan=False, ensure_ascii=False)


# Command line ------------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m sar_gen.training.sarclip", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    step = commands.add_parser("prepare", help="make the one training file from the data folder")
    step.add_argument("folder", type=Path)
    step.add_argument("out", type=Path)
    step = commands.add_parser("train", help="train, measure and write the weights with their card")
    step.add_argument("data", type=Path)
    step.add_argument("--out", type=Path, required=True, help="folder of the weights")
    step.add_argument("--work", type=Path, required=True, help="folder of the state to resume from")
    step.add_argument("--resume", action="store_true")
    step.add_argument("--device", default="auto")
    step.add_argument("--minutes", type=float, help="stop training after so long and measure what there is")
    for name, default in asdict(Plan()).items():
        choices = sorted(SIZES) if name == "size" else None
        step.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default, choices=choices)
    step = commands.add_parser("evaluate", help="measure weights on the reference split")
    step.add_argument("data", type=Path)
    step.add_argument("folder", type=Path)
    options = parser.parse_args(arguments)
    try:
        if options.command == "prepare":
            print(json.dumps(sarclip_data.prepare(options.folder, options.out), indent=1))
            return 0
        data = sarclip_data.load(options.data)
        if options.command == "evaluate":
            found = measure(data, options.folder)
        else:
            plan = replace(Plan(), **{name: getattr(options, name) for name in asdict(Plan())})
            found = train(
                data, plan, options.out, options.work,
                device=options.device, resume=options.resume, minutes=options.minutes, say=_say,
            )["quality"]  # fmt: skip
        print(json.dumps(found | {"calibration": {k: v["auc"] for k, v in found["calibration"].items()}}, indent=1))
    except SarGenError as error:
        print(error, file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    return 0


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
