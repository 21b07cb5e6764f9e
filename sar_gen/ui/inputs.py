"""The left column of the Generate tab: what is asked for."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from sar_gen import checkpoints
from sar_gen.errors import InputError
from sar_gen.profiles import DEFAULT_PROFILE, PROFILES
from sar_gen.request import (
    DEFAULT_STRENGTH,
    MAX_SEED,
    SCHEDULERS,
    GenerationRequest,
    Guide,
    default_steps,
    switches_for,
)
from sar_gen.settings import Settings
from sar_gen.ui import views
from sar_gen.ui.choices import Choice, checkpoint_choices, chosen_checkpoint, on_choice, strategy_choices
from sar_gen.ui.downloads import download_lines
from sar_gen.ui.guide_card import GUIDE_FORM, GuideCard, build_guide_card
from sar_gen.ui.guiding import form_of_guide, size_line
from sar_gen.ui.theme import PICK, markup

SCHEDULER_TITLES = {
    "default": "Checkpoint's own",
    "dpm++": "DPM-Solver++ 2M",
    "ddim": "DDIM",
    "euler": "Euler",
}
KINDS: dict[str, Any] = {"checkpoint": gr.Dropdown, "strategy": Choice}
EXAMPLES = 4  # shown at once; the others are one click away
RANDOM_SEEDS = 1_000_000  # short enough to be read out and typed again
FORM = (
    "checkpoint", "strategy", "prompt", "negative", "count", "best_of", "random", "seed", "steps", "guidance",
    "scheduler", "profile", "width", "height", *GUIDE_FORM,
)  # fmt: skip


@dataclass(frozen=True)
class Inputs:
    """The components of the column; the fields named in ``FORM`` are what is remembered and sent."""

    checkpoint: gr.Dropdown
    strategy: Choice
    facts: gr.HTML
    warning: gr.HTML
    download: gr.Button
    prompt: gr.Textbox
    examples: gr.HTML
    words: gr.HTML
    negative: gr.Textbox
    card: GuideCard
    count: gr.Number
    best_of: gr.Number
    random: gr.Checkbox
    seed: gr.Number
    reuse: gr.Button
    steps: gr.Slider
    guidance: gr.Slider
    scheduler: gr.Dropdown
    profile: gr.Dropdown
    width: gr.Number
    height: gr.Number
    generate: gr.Button
    stop: gr.Button

    def form(self) -> list[Any]:
        """The components whose values make a request, in the order of ``FORM``."""
        return [getattr(self.card if name in GUIDE_FORM else self, name) for name in FORM]


def build_inputs(settings: Settings) -> Inputs:
    """Build the column for the checkpoint that the settings name."""
    catalogue = checkpoints.catalogue(settings)
    name = settings.checkpoint if settings.checkpoint in catalogue else next(iter(catalogue))
    spec = checkpoints.resolve(catalogue, name)
    with gr.Column(elem_classes=["sg-pane", "sg-inputs"], elem_id="inputs", min_width=240):
        with gr.Column(elem_classes="sg-scroll"):
            with gr.Column(elem_classes="sg-card"):
                checkpoint = gr.Dropdown(
                    checkpoint_choices(catalogue), value=name, label="Checkpoint", elem_id="checkpoint"
                )
                strategy = Choice(
                    strategy_choices(catalogue, name), value=spec.strategy, label="Strategy", elem_id="strategy"
                )
                facts = markup(views.facts(spec))
                warning = markup(weights_line(spec, settings), elem_id="weights")
                download = gr.Button(
                    download_text(spec),
                    size="sm",
                    visible=bool(checkpoints.missing_files(spec, settings)),
                    elem_id="download-checkpoint",
                )
            with gr.Column(elem_classes="sg-card"):
                prompt = gr.Textbox(
                    label="Prompt",
                    lines=3,
                    max_lines=6,
                    elem_id="prompt",
                    placeholder="Describe the scene, for example: a SAR image of a mountain gorge",
                )
                examples = markup(example_prompts(spec), js_on_load=PICK, elem_id="examples")
                with gr.Accordion("Words this checkpoint knows", open=False, elem_id="vocabulary"):
                    words = markup(vocabulary(spec), js_on_load=PICK, elem_id="words")
                negative = gr.Textbox(
                    label="Negative prompt", lines=1, max_lines=3, placeholder="what to avoid (optional)"
                )
            card = build_guide_card()
            with gr.Accordion("Advanced", open=False, elem_classes="sg-card", elem_id="advanced"):
                profile = gr.Dropdown(
                    [(one.title, one.name) for one in PROFILES.values()],
                    value=settings.profile,
                    label="Speed",
                    elem_id="profile",
                )
                about = markup(profile_line(settings.profile), elem_id="profile-line")
                steps = gr.Slider(
                    1,
                    60,
                    value=default_steps(spec, switches_for(spec, settings.profile)),
                    step=1,
                    label="Steps",
                    elem_id="steps",
                    buttons=[],
                )
                guidance = gr.Slider(
                    1, 10, value=spec.guidance, step=0.1, label="Guidance", elem_id="guidance", buttons=[]
                )
                scheduler = gr.Dropdown(
                    [(SCHEDULER_TITLES.get(s, s), s) for s in SCHEDULERS], value="default", label="Scheduler"
                )
                with gr.Row(elem_classes="sg-pair"):
                    width = gr.Number(spec.resolution, label="Width", precision=0, step=8, min_width=60)
                    height = gr.Number(spec.resolution, label="Height", precision=0, step=8, min_width=60)
                scene = markup("", elem_id="scene-size")
                best_of = gr.Number(
                    0,
                    label="Best of (0: keep all)",
                    info="Makes so many patches; kept are those nearest to the reference set.",
                    precision=0,
                    minimum=0,
                    maximum=settings.max_count,
                    elem_id="best-of",
                )
        with gr.Column(elem_classes="sg-act"):
            with gr.Row(elem_classes="sg-seed"):
                count = gr.Number(
                    1,
                    label="Patches",
                    precision=0,
                    minimum=1,
                    maximum=settings.max_count,
                    min_width=50,
                    elem_id="count",
                )
                seed = gr.Number(
                    0, label="Seed", precision=0, minimum=0, maximum=MAX_SEED, min_width=60, elem_id="seed"
                )
                random = gr.Checkbox(True, label="Random", min_width=60, elem_id="random-seed")
                reuse = gr.Button("Reuse last", size="sm", min_width=60, scale=0, elem_id="reuse-seed")
            generate = gr.Button("Generate", variant="primary", elem_id="generate")
            stop = gr.Button("Stop", variant="stop", visible=False, elem_id="stop")

    inputs = Inputs(
        checkpoint, strategy, facts, warning, download, prompt, examples, words, negative, card, count, best_of,
        random, seed, reuse, steps, guidance, scheduler, profile, width, height,
        generate, stop,
    )  # fmt: skip

    gr.on(
        [width.change, height.change, checkpoint.change],
        lambda wide, high, name: views.sentence(
            size_line(int(wide or 0), int(high or 0), chosen_checkpoint(settings, name, None).resolution)
        ),
        [width, height, checkpoint],
        scene,
        queue=False,
        show_progress="hidden",
    )
    profile.change(profile_line, profile, about, queue=False, show_progress="hidden")
    _checkpoint_events(inputs, settings)
    _download_events(inputs, settings)

    def pick(prompt: str | None, name: str, strategy: str | None, event: gr.EventData) -> str:
        return picked(prompt or "", str(event.text), chosen_checkpoint(settings, name, strategy).examples)

    for hint in (words, examples):
        hint.pick(pick, [prompt, checkpoint, strategy], prompt, queue=False, show_progress="hidden")
    return inputs


def _checkpoint_events(inputs: Inputs, settings: Settings) -> None:
    card = [inputs.facts, inputs.warning, inputs.download, inputs.words, inputs.examples]
    defaults = [inputs.steps, inputs.guidance, inputs.width, inputs.height]

    def describe(name: str, strategy: str | None) -> list[Any]:
        spec = chosen_checkpoint(settings, name, strategy)
        missing = bool(checkpoints.missing_files(spec, settings))
        return [
            views.facts(spec),
            weights_line(spec, settings),
            gr.Button(download_text(spec), visible=missing),
            vocabulary(spec),
            example_prompts(spec),
        ]

    def choose(name: str, profile: str) -> list[Any]:
        catalogue = checkpoints.catalogue(settings)
        spec = checkpoints.resolve(catalogue, name)
        strategies = Choice(choices=strategy_choices(catalogue, name), value=spec.strategy)
        size = [spec.resolution, spec.resolution]
        return [strategies, *describe(name, None), *own_defaults(name, None, profile), *size]

    def own_defaults(name: str, strategy: str | None, profile: str) -> list[Any]:
        """Steps and guidance that a strategy was made for; fewer steps where the profile says so."""
        spec = chosen_checkpoint(settings, name, strategy)
        return [default_steps(spec, switches_for(spec, profile)), spec.guidance]

    on_choice(
        inputs.checkpoint,
        choose,
        [inputs.profile],
        [inputs.strategy, *card, *defaults],
        queue=False,
        show_progress="hidden",
    )
    for listed in (inputs.strategy, inputs.profile):
        on_choice(
            listed,
            lambda _, *values: own_defaults(*values),
            [inputs.checkpoint, inputs.strategy, inputs.profile],
            [inputs.steps, inputs.guidance],
            queue=False,
            show_progress="hidden",
        )
    gr.on(
        [inputs.strategy.input, inputs.checkpoint.change],
        describe,
        [inputs.checkpoint, inputs.strategy],
        card,
        queue=False,
        show_progress="hidden",
    )


def _download_events(inputs: Inputs, settings: Settings) -> None:
    def download(name: str, strategy: str | None) -> Iterator[tuple[str, Any]]:
        for line in download_lines(name, strategy, settings):
            yield line, gr.Button(interactive=False)
        spec = checkpoints.resolve(checkpoints.catalogue(settings), name, strategy)
        missing = bool(checkpoints.missing_files(spec, settings))
        yield line, gr.Button(interactive=True, visible=missing)

    inputs.download.click(
        download,
        [inputs.checkpoint, inputs.strategy],
        [inputs.warning, inputs.download],
        concurrency_id="download",
        concurrency_limit=1,
        show_progress="hidden",
        api_visibility="private",
    )


def with_choices(settings: Settings, name: str, checkpoint: Any, strategy: Any) -> dict[str, Any]:
    """Return the two dropdowns with what the catalogue offers now: folders may have come since the page was made.

    Args:
        settings: where the catalogue is.
        name: the checkpoint whose strategies are offered.
        checkpoint: value of the first dropdown, or gradio's skip to keep the one that is shown.
        strategy: value of the second one, or skip.
    """
    catalogue = checkpoints.catalogue(settings)
    offers = {"checkpoint": checkpoint_choices(catalogue)}
    if name in catalogue:
        offers["strategy"] = strategy_choices(catalogue, name)
    values = {"checkpoint": checkpoint, "strategy": strategy}
    chosen = {field: {"value": value} if isinstance(value, str) else {} for field, value in values.items()}
    return {field: KINDS[field](choices=offered, **chosen[field]) for field, offered in offers.items()}


def vocabulary(spec: checkpoints.CheckpointSpec) -> str:
    """Return the words that the checkpoint was trained with, as buttons."""
    groups = [(group, tuple(words)) for group, words in spec.vocabulary.items()]
    more = views.chips([("More examples", tuple(spec.examples[EXAMPLES:]))], "example")
    return views.chips(groups, "word") + more or views.sentence(
        "Its author states no vocabulary; describe the ground."
    )


def example_prompts(spec: checkpoints.CheckpointSpec) -> str:
    """Return the card's first example prompts, as buttons."""
    return views.chips([("Examples", tuple(spec.examples[:EXAMPLES]))], "example")


def weights_line(spec: checkpoints.CheckpointSpec, settings: Settings) -> str:
    """Return what is wrong with a checkpoint, if something is: warnings of its card, weights that are not here."""
    missing = checkpoints.missing_files(spec, settings)
    lines = views.sentence("Its weights are not on this machine yet.", "warn") if missing else ""
    return lines + views.notes(spec.warnings)


def profile_line(name: str) -> str:
    """Return what a profile does, in a sentence."""
    return views.sentence(PROFILES[name].summary)


def download_text(spec: checkpoints.CheckpointSpec) -> str:
    """Return the text of the download button."""
    return "Download the weights" if spec.repo_id else "Look for the files again"


def picked(prompt: str, text: str, examples: Sequence[str]) -> str:
    """Return the prompt after a hint was chosen: an example takes the place of another one, a word is appended."""
    return text if text in examples and prompt.strip() in examples else appended(prompt, text)


def suggested_reference(settings: Settings, name: str, strategy: str | None, text: str) -> str | None:
    """Return the reference set that shows the ground that ``text`` names, by the checkpoint's card."""
    return chosen_checkpoint(settings, name, strategy).reference_of(text)


def appended(prompt: str, text: str) -> str:
    """Return ``prompt`` with ``text`` added after a comma; unchanged when it is already there."""
    prompt = prompt.strip().rstrip(",").rstrip()
    if not prompt:
        return text
    if text.lower() in prompt.lower():
        return prompt
    return f"{prompt}, {text}"


def read_form(values: Mapping[str, Any], guides: tuple[Guide, ...]) -> GenerationRequest:
    """Turn the form's values into a request.

    Args:
        values: by the names of ``FORM``.
        guides: with their ways, the form's last.

    Raises:
        InputError: a number is missing.
    """
    names = {
        "count": "number of patches",
        "steps": "number of steps",
        "guidance": "guidance",
        "width": "width",
        "height": "height",
        "seed": "seed",
    }
    for key, name in names.items():
        if values[key] is None and not (key == "seed" and values["random"]):
            raise InputError(f"The {name} is empty; type a number.")
    seed = secrets.randbelow(RANDOM_SEEDS) if values["random"] else int(values["seed"])
    return GenerationRequest(
        prompt=values["prompt"] or "",
        negative=values["negative"] or "",
        checkpoint=values["checkpoint"] or "",
        strategy=values["strategy"] or None,
        count=max(int(values["count"]), int(values.get("best_of") or 0)),
        seed=seed,
        steps=int(values["steps"]),
        guidance=float(values["guidance"]),
        width=int(values["width"]),
        height=int(values["height"]),
        scheduler=values["scheduler"] or "default",
        profile=values["profile"],
        guides=guides,
        strength=float(values["strength"] or DEFAULT_STRENGTH),
    )


def kept_of(values: Mapping[str, Any]) -> int | None:
    """Return how many patches of a run are to be kept, ``None`` where all are."""
    count, best_of = int(values["count"] or 0), int(values.get("best_of") or 0)
    return count if best_of > count else None


def form_of(request: GenerationRequest) -> dict[str, Any]:
    """Return the form's values that would make ``request`` again; the guides' pixels are not among them."""
    values: dict[str, Any] = {name: getattr(request, name, None) for name in FORM}
    return {
        **values,
        "best_of": 0,
        "random": False,
        "profile": request.profile or DEFAULT_PROFILE,
        **form_of_guide(request),
    }
