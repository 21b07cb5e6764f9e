"""Text encoders of a small base that know more words than its captions: distilled from a sentence encoder.

    python -m sar_gen.training.text OUT --size mini [--minutes 8] [--resume]

writes ``OUT/{tokenizer,tokenizer_2,text_encoder,text_encoder_2}`` as a diffusers pipeline has them, and
``OUT/text.json`` with what was measured on the files as written. It needs no network, but two packages
(``text_corpus``), and uses CUDA in bfloat16 where there is one. The words, the teacher's vectors and the state lie in
the work folder (``--work``, by default ``OUT-work``), from which ``--resume`` goes on; with the first two there, the
packages are not needed any more.

The penultimate states (apart from the start token's) and the pooled output have a root mean square of 1, so a UNet's
first maps see what they are made for, whatever the weights grew to.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from sar_gen.errors import InputError, SarGenError
from sar_gen.files import write_atomic
from sar_gen.training import text_corpus, text_model
from sar_gen.training.text_corpus import Corpus, Embed
from sar_gen.training.text_distil import Distillation, Plan, distil, identity_of
from sar_gen.training.text_evaluation import SCENES, evaluate, neighbours, summary
from sar_gen.training.text_model import SIZES, TextSize, build_encoders, build_tokenizer

__all__ = [
    "SIZES", "Plan", "TextResult", "TextSize", "build_encoders", "build_tokenizer", "distil", "evaluate", "make_text",
    "neighbours",
]  # fmt: skip

Say = Callable[[str], None]
STATE, VECTORS, WORDS, REPORT = "text.pt", "teacher.npz", "words.txt", "text.json"
STEPS = {"mini": 3000, "tiny": 40}


@dataclass(frozen=True)
class TextResult:
    """What ``make_text`` came to.

    Attributes:
        finished: all steps are done.
        step: of the optimiser.
        evaluation: what ``text.json`` says.
    """

    finished: bool
    step: int
    evaluation: dict[str, Any]


def make_text(
    out: Path,
    work: Path,
    *,
    size: str = "mini",
    captions: Sequence[str],
    minutes: float | None = None,
    resume: bool = True,
    device: str = "auto",
    say: Say = print,
    plan: Plan | None = None,
    teacher: Embed | None = None,
    words: Sequence[str] | None = None,
) -> TextResult:
    """Distil both text encoders, write them with their tokenizers to ``out``, and measure them.

    They are written and measured also when time is up before the last step: a run cut short has not cooled down, and
    the same call goes on from the work folder.

    Args:
        out: folder of the four parts and ``text.json``.
        work: folder of the words, the teacher's vectors and the state; keep it for going on.
        size: name in ``SIZES``.
        captions: of the base's training; repeated ones count once.
        minutes: to distil for in this call; the teacher's vectors, once, and the evaluation come on top.
        resume: go on from ``work`` where there is a state, else begin anew.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        say: told how it goes.
        plan: how; by default ``Plan`` with the steps of the size in ``STEPS``.
        teacher: gives unit vectors; by default all-MiniLM-L6-v2.
        words: common words, most common first; by default wordfreq's.

    Raises:
        InputError: no such size or device, a missing package, or a state of other settings.
        SarGenError: the files cannot be written.
    """
    from sar_gen.pipelines import resolve_device

    if size not in SIZES:
        raise InputError(f"The size {size!r} is unknown; choose {' or '.join(SIZES)}.")
    device, sizes = resolve_device(device), SIZES[size]
    plan = plan or Plan(steps=STEPS[size])
    words = text_corpus.stored_words(work / WORDS, sizes.known) if words is None else list(words)
    load = (lambda: text_corpus.load_teacher(device)) if teacher is None else (lambda: teacher)
    ask = text_corpus.StoredTeacher(work / VECTORS, load, say)
    written = list(dict.fromkeys(captions))
    exclude = [text for text in SCENES if " " in text]
    near = text_corpus.near_scenes(words, ask, sizes.near)
    words = words[: sizes.common]
    corpus = text_corpus.build_corpus(words, written, near=near, scenes=sizes.scenes, exclude=exclude, seed=plan.seed)
    vectors = ask(corpus.texts)
    scenes = (*text_corpus.NOUN_LIST, *text_corpus.MODIFIER_LIST)
    tokenizer = build_tokenizer(text_model.weighted_words(words, near, scenes, written), sizes)
    run = _begin(sizes, tokenizer, plan, ask, corpus, device)
    identity = identity_of(plan, sizes, corpus)
    if resume and (work / STATE).is_file():
        run.restore(work / STATE, identity)
    count = sum(parameter.numel() for encoder in run.encoders for parameter in encoder.parameters())
    say(
        f"{count / 1e6:.2f} million parameters on {device}, {len(corpus.texts)} texts, "
        f"from step {run.step} of {plan.steps}"
    )
    started, first = time.perf_counter(), run.step
    finished = distil(run, corpus, vectors, state=work / STATE, identity=identity, minutes=minutes, say=say)
    seconds = time.perf_counter() - started
    training = {
        "size": size, "plan": asdict(plan), "parameters": count, "context": sizes.context, "step": run.step,
        "finished": finished, "device": torch.cuda.get_device_name() if device.startswith("cuda") else "CPU",
        "steps_this_call": run.step - first, "seconds_this_call": round(seconds, 1), "losses": _curve(run.losses),
    }  # fmt: skip
    found = _finish(out, run, corpus, ask, training)
    say(summary(found))
    return TextResult(finished, run.step, found)


def _begin(size: TextSize, tokenizer: Any, plan: Plan, teacher: Embed, corpus: Corpus, device: str) -> Distillation:
    """Return a run at step 0, whose tables know the teacher's meaning of whole words."""
    encoders = build_encoders(size, tokenizer, plan.seed)
    # A token may end words without being one, as "ders" does.
    words = {word for text in corpus.texts for word in text.lower().split()}
    known = sorted(words & text_model.whole_words(tokenizer).keys())
    vectors = teacher(known)
    text_model.start_from_words(encoders, tokenizer, known, vectors, plan.seed)
    return Distillation(encoders, tokenizer, vectors.shape[1], plan, device)


def _finish(out: Path, run: Distillation, corpus: Corpus, teacher: Embed, training: dict[str, Any]) -> dict[str, Any]:
    """Write copies of the encoders at unit scale, load them as a user does, and measure them."""
    encoders: Any = tuple(copy.deepcopy(encoder).eval() for encoder in run.encoders)
    sample = corpus.texts[:: max(1, len(corpus.texts) // 256)]
    text_model.to_unit_scale(encoders, text_model.scales(encoders, run.tokenizer, sample))
    (out / REPORT).unlink(missing_ok=True)  # it describes other weights from here on
    try:
        text_model.save(out, encoders, run.tokenizer)
    except OSError as error:
        raise SarGenError(
            f"The text encoders could not be written to {out} ({error}); choose another folder."
        ) from error
    loaded, tokenizer = text_model.load(out)
    device: Any = run.device
    found = evaluate((loaded[0].to(device), loaded[1].to(device)), tokenizer, teacher, corpus) | {"training": training}
    text = json.dumps(found, indent=1) + "\n"
    write_atomic(out / REPORT, text.encode())
    return dict(json.loads(text))


def _curve(losses: Sequence[tuple[float, float]], points: int = 60) -> list[list[float]]:
    """Return ``[step, cosine part, structure part]``, means over equal stretches of steps."""
    every = max(1, len(losses) // points)
    parts = [losses[first : first + every] for first in range(0, len(losses), every)]
    return [
        [i * every + len(part), *(round(sum(pair[k] for pair in part) / len(part), 5) for k in (0, 1))]
        for i, part in enumerate(parts)
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m sar_gen.training.text", description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder of the encoders and tokenizers")
    parser.add_argument("--size", choices=sorted(SIZES), default="mini")
    parser.add_argument("--work", type=Path, help="folder of the state to resume from (default: OUT-work)")
    parser.add_argument("--captions", type=Path, help="text file, a caption a line (default: invented ones)")
    parser.add_argument("--minutes", type=float, help="stop distilling after so long and measure what there is")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--steps", type=int, help="of the optimiser, all calls together")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    try:
        plan = Plan(steps=options.steps or STEPS[options.size], seed=options.seed)
        result = make_text(
            options.out,
            options.work or options.out.with_name(f"{options.out.name}-work"),
            size=options.size, captions=_captions(options.captions), minutes=options.minutes, resume=options.resume,
            device=options.device, say=_say, plan=plan,
        )  # fmt: skip
        print(
            json.dumps(
                {"finished": result.finished, "step": result.step, "classes": result.evaluation["classes"]}, indent=1
            )
        )
    except SarGenError as error:
        print(error, file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    return 0


def _captions(path: Path | None) -> list[str]:
    if path is None:
        return text_corpus.caption_texts(6000)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as text; give a file with a caption a line.") from error
    return [line.strip() for line in lines if line.strip()]


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
