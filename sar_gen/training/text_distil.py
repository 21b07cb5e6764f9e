"""Distillation: the text encoders learn to place texts as a sentence encoder does.

For each vector of ``text_model.OUTPUTS`` a linear head gives the teacher's vector, and the loss is

    1 - cosine(head(x), t)  +  structure * mean over i != j of (cosine(x_i - m, x_j - m) - cosine(t_i - n, t_j - n))²

with m and n the means of the batch. The first makes the meaning readable by one linear map, as the UNet's keys and
values are; the second shapes the states themselves (similarity-preserving distillation, Tung and Mori 2019). Heads are
used in training only.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sar_gen.errors import InputError
from sar_gen.files import write_atomic
from sar_gen.training.text_corpus import KINDS, Corpus
from sar_gen.training.text_model import OUTPUTS, outputs, token_ids

Say = Callable[[str], None]
GROUP = 4
"""Batches that are drawn together and then parted by length, so that little is calculated on padding."""


@dataclass(frozen=True)
class Plan:
    """How to distil; everything that a resumed run must share.

    Attributes:
        steps: of the optimiser.
        batch: texts a step.
        learning_rate: highest, after ``warmup`` steps; a cosine to 2 % of it follows.
        table_rate: factor on the rate of the tables of tokens, whose rows are touched seldom.
        weight_decay: of the layers' matrices.
        warmup: steps.
        structure: weight of the similarities' loss.
        pads_every: one step in so many is padded to 77 tokens and teaches the padding, on a quarter of a batch.
        shares: of each kind of text (``text_corpus.KINDS``) in a batch.
        seed: of everything.
    """

    steps: int = 3000
    batch: int = 128
    learning_rate: float = 1e-3
    table_rate: float = 5.0
    weight_decay: float = 0.05
    warmup: int = 50
    structure: float = 10.0
    pads_every: int = 8
    shares: tuple[float, float, float, float] = (0.25, 0.15, 0.5, 0.1)
    seed: int = 0


def batch_indices(kinds: NDArray[np.int8], lengths: NDArray[np.int64], plan: Plan, step: int) -> NDArray[np.int64]:
    """Return the numbers of the texts of a step; seed and step alone decide.

    Steps come in groups of ``GROUP``: their texts are drawn together, sorted by length, cut, and taken in an order of
    chance.

    Args:
        kinds: ``(texts,)`` numbers of ``KINDS``.
        lengths: ``(texts,)`` in tokens or letters.
        plan: how.
        step: of the optimiser.
    """
    group, place = divmod(step, GROUP)
    rng = np.random.default_rng((plan.seed, group))
    shares = np.array([share if (kinds == kind).any() else 0 for kind, share in enumerate(plan.shares)])
    counts = rng.multinomial(GROUP * plan.batch, shares / shares.sum())
    drawn = [rng.choice(np.flatnonzero(kinds == kind), count) for kind, count in enumerate(counts) if count]
    chosen = np.concatenate(drawn)
    chosen = chosen[np.argsort(lengths[chosen], kind="stable")].reshape(GROUP, plan.batch)
    return np.asarray(chosen[rng.permutation(GROUP)[place]])


def similarity_loss(vectors: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the mean squared difference of the cosines of all pairs, both sides less their mean.

    Args:
        vectors: float ``(texts, width)``, the student's.
        targets: float ``(texts, other width)``, the teacher's.
    """
    cosines = []
    for values in (vectors, targets):
        unit = torch.nn.functional.normalize(values - values.mean(0), dim=-1)
        cosines.append(unit @ unit.T)
    square = (cosines[0] - cosines[1]).square()
    count = len(vectors)
    return (square.sum() - square.diagonal().sum()) / max(1, count * (count - 1))


def rate(step: int, plan: Plan) -> float:
    """Return the factor of the learning rate: linear over the warm-up, then a cosine down to 0.02."""
    if step < plan.warmup:
        return (step + 1) / plan.warmup
    along = (step - plan.warmup) / max(1, plan.steps - plan.warmup)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, along)))


class Distillation:
    """Encoders, heads and optimiser at some step.

    Attributes:
        encoders: both, on ``device``.
        heads: a linear map for each of ``OUTPUTS``.
        step: done so far.
        losses: of each step done, ``(cosine part, structure part)``.
    """

    def __init__(self, encoders: tuple[Any, Any], tokenizer: Any, width: int, plan: Plan, device: str) -> None:
        self.encoders = (encoders[0].to(device).train(), encoders[1].to(device).train())
        self.tokenizer, self.plan, self.device = tokenizer, plan, device
        torch.manual_seed(plan.seed + 1)
        sizes = {name: self._width(name) for name in OUTPUTS}
        names = {name: name.replace(".", "_") for name in OUTPUTS}  # a module's name has no dots
        self.heads = torch.nn.ModuleDict({names[n]: torch.nn.Linear(size, width) for n, size in sizes.items()}).to(
            device
        )
        self.step = 0
        self.losses: list[tuple[float, float]] = []
        tables = [encoder.get_input_embeddings().weight for encoder in self.encoders]
        known = {id(table) for table in tables}
        rest = [p for part in (*self.encoders, self.heads) for p in part.parameters() if id(p) not in known]
        base = plan.learning_rate
        self.optimiser = torch.optim.AdamW(
            [
                {"params": tables, "weight_decay": 0.0, "peak": base * plan.table_rate},
                {"params": [p for p in rest if p.ndim >= 2], "weight_decay": plan.weight_decay, "peak": base},
                {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0, "peak": base},
            ],
            lr=base,
            betas=(0.9, 0.98),
            fused=True,
        )

    def _width(self, name: str) -> int:
        encoder = self.encoders[name.startswith("text_encoder_2")]
        config = encoder.config
        return int(config.projection_dim if name.endswith("pooled") else config.hidden_size)

    def update(self, texts: Sequence[str], targets: torch.Tensor) -> None:
        """Take one step.

        Args:
            texts: of the batch.
            targets: float32 ``(texts, width)`` on the device, the teacher's unit vectors.
        """
        plan = self.plan
        full = plan.pads_every > 0 and self.step % plan.pads_every == plan.pads_every - 1
        if full:
            texts, targets = texts[::4], targets[::4]
        for group in self.optimiser.param_groups:
            group["lr"] = group["peak"] * rate(self.step, plan)
        ids = token_ids(self.tokenizer, texts, full=full).to(self.device)
        with torch.autocast(self.device.split(":")[0], torch.bfloat16, enabled=self.device.startswith("cuda")):
            found = outputs(self.encoders, ids)
        cosine = structure = targets.new_zeros(())
        for name in OUTPUTS:
            vectors = found[name.replace(".end", ".pads") if full else name]
            read = self.heads[name.replace(".", "_")](vectors)
            cosine = cosine + (1 - torch.nn.functional.cosine_similarity(read, targets, dim=-1)).mean() / len(OUTPUTS)
            structure = structure + similarity_loss(vectors, targets) / len(OUTPUTS)
        self.optimiser.zero_grad(set_to_none=True)
        (cosine + plan.structure * structure).backward()
        torch.nn.utils.clip_grad_norm_([p for g in self.optimiser.param_groups for p in g["params"]], 1.0)
        self.optimiser.step()
        self.losses.append((float(cosine.detach()), float(structure.detach())))
        self.step += 1

    def save(self, path: Path, identity: str) -> None:
        """Write everything that going on needs, atomically."""
        state = {
            "identity": identity,
            "encoders": [encoder.state_dict() for encoder in self.encoders],
            "heads": self.heads.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "losses": torch.tensor(self.losses, dtype=torch.float64).reshape(-1, 2),
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_atomic(path, buffer.getvalue())

    def restore(self, path: Path, identity: str) -> None:
        """Go on from what ``save`` wrote.

        Raises:
            InputError: it is of another plan, size or corpus.
        """
        state = torch.load(path, map_location=self.device, weights_only=True)
        if state["identity"] != identity:
            raise InputError(
                f"{path} belongs to a run with other settings or texts; give its own, or another work folder."
            )
        for encoder, weights in zip(self.encoders, state["encoders"], strict=True):
            encoder.load_state_dict(weights)
        self.heads.load_state_dict(state["heads"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.losses = [(float(a), float(b)) for a, b in state["losses"].cpu()]
        self.step = len(self.losses)


def identity_of(plan: Plan, size: Any, corpus: Corpus) -> str:
    """Return what a state must share with the run that goes on from it."""
    texts = hashlib.sha256("\n".join(corpus.texts).encode()).hexdigest()
    return json.dumps({"plan": asdict(plan), "size": asdict(size), "texts": texts})


def distil(
    run: Distillation,
    corpus: Corpus,
    targets: NDArray[Any],
    *,
    state: Path,
    identity: str,
    minutes: float | None = None,
    save_seconds: float = 60.0,
    say: Say = print,
) -> bool:
    """Train until the plan's steps are done or time is up; return whether they are done.

    A run that was stopped and restored goes through the same batches and losses as one that was not.

    Args:
        run: at any step; changed in place.
        corpus: the texts.
        targets: float16 or float32 ``(texts, width)``, the teacher's unit vectors.
        state: file that is written every ``save_seconds`` and at the end.
        identity: of ``identity_of``.
        minutes: to stop after in this call.
        save_seconds: between saved states.
        say: told how it goes.
    """
    started = saved = time.perf_counter()
    first, plan = run.step, run.plan
    vectors = torch.from_numpy(np.asarray(targets, np.float32))
    lengths = np.array([len(text) for text in corpus.texts], np.int64)
    if len(plan.shares) != len(KINDS):
        raise InputError(f"shares needs {len(KINDS)} numbers, one for each of {', '.join(KINDS)}.")
    while run.step < plan.steps:
        chosen = batch_indices(corpus.kinds, lengths, plan, run.step)
        run.update([corpus.texts[i] for i in chosen], vectors[chosen].to(run.device))
        now = time.perf_counter()
        if run.step % 100 == 0 or run.step == plan.steps:
            cosine, structure = np.mean(run.losses[-100:], axis=0)
            speed = (run.step - first) / (now - started)
            say(
                f"step {run.step} of {plan.steps}: cosine {cosine:.4f}, structure {structure:.5f}, {speed:.2f} steps/s"
            )
        if minutes is not None and now - started > 60 * minutes:
            break
        if now - saved > save_seconds:
            run.save(state, identity)
            saved = now
    run.save(state, identity)
    return run.step >= plan.steps
