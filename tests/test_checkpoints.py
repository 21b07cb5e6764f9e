"""The catalogue: what it lists, what it refuses, and how files are checked. No torch, no network."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import subprocess
import sys

import pytest

from sar_gen import checkpoints
from sar_gen.checkpoints import (
    add_checkpoint,
    catalogue,
    check_hashes,
    local_folder,
    missing_files,
    pull,
    remove_checkpoint,
    resolve,
    scan,
    strategies_for,
    verify,
)
from sar_gen.errors import InputError, SarGenError
from sar_gen.settings import ROOT, Settings
from sar_gen.strategies import STRATEGIES
from tests import fake

UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def settings(tmp_path):
    """Settings with one pipeline of each family in the embedded folder."""
    for family in ("sdxl", "sd15"):
        folder = fake.pipeline(tmp_path / "checkpoints" / f"tiny-{family}", family)
        (folder / "card.toml").write_text(
            f'id = "tiny-{family}"\nfamily = "{family}"\namplitude_encoding = "linear"\n'
        )
    return Settings(home=tmp_path / "home", checkpoints=tmp_path / "checkpoints", device="cpu")


@pytest.fixture(scope="module")
def embedded(tmp_path_factory):
    return catalogue(Settings(home=tmp_path_factory.mktemp("home")))["sar-mini"]


def _strategy(folder, card, **shapes):
    fake.weights(folder / UNET, {fake.UNET_KEY: (8, 2048)})
    (folder / "card.toml").write_text(card)
    return folder


def test_the_embedded_checkpoint_and_the_public_models_are_there(tmp_path):
    found, problems = scan(Settings(home=tmp_path))
    assert problems == []
    assert list(found)[:4] == ["sar-mini", "sdxl-base", "hochstuhl-s1", "hochstuhl-capella"]
    assert all(spec.id == id and spec.base in found and spec.strategy in STRATEGIES for id, spec in found.items())


def test_the_card_of_the_embedded_checkpoint(embedded):
    assert (embedded.family, embedded.strategy, embedded.resolution, embedded.mono) == (
        "sdxl",
        "foundation",
        256,
        "mean",
    )
    assert (embedded.steps, embedded.guidance, embedded.amplitude_encoding) == (20, 1.5, "linear")
    assert "a SAR image of a mountain gorge" in embedded.examples
    assert embedded.negative_default == ""
    assert set(embedded.vocabulary) == {"scene", "water", "built-up", "relief", "style", "polarisation"}
    weights = {p.relative_to(embedded.path).as_posix() for p in embedded.path.rglob("*.safetensors")}
    assert set(embedded.sha256) == weights
    assert embedded.quality["guidance_1_5"]["gorge"] == 0.010


def test_every_offered_word_is_a_word_of_the_tokenizer(embedded):
    vocabulary = json.loads((embedded.path / "tokenizer" / "vocab.json").read_text())
    known = {word.removesuffix("</w>") for word in vocabulary if word.endswith("</w>")}
    offered = [*embedded.examples, *(phrase for group in embedded.vocabulary.values() for phrase in group)]
    words = {word for phrase in offered for word in re.findall(r"[a-z]+|\d", phrase.lower())}
    assert words - known == set()


def test_memorised_captions_are_not_offered_and_warned_of(embedded):
    phrases = [*embedded.examples, *(phrase for group in embedded.vocabulary.values() for phrase in group)]
    assert not [phrase for phrase in phrases if embedded.prompt_warnings(phrase)]
    assert "repeats one training scene" in embedded.prompt_warnings("open water and a dense city")[0]
    assert "leans towards one training scene" in embedded.prompt_warnings("A Coast with an industrial district, VH")[0]
    assert not embedded.prompt_warnings("a winding river through farmland")


@pytest.mark.parametrize(
    ("prompt", "polarisation"),
    [
        ("a SAR image of a mountain gorge", "VV"),
        ("a Sentinel-1 VH image of suburbs", "VH"),
        ("open water", "VH"),
        ("the seaside of a lakeside village", "VV"),  # whole words only
        ("VV polarisation, forest", "VV"),
    ],
)
def test_the_prompt_decides_the_polarisation(embedded, prompt, polarisation):
    assert embedded.polarisation_of(prompt) == polarisation


def test_every_example_names_its_polarisation_rightly(embedded):
    assert [p for p in embedded.examples if embedded.polarisation_of(p) == "VH"] == [
        p for p in embedded.examples if " VH " in p
    ]
    other = dataclasses.replace(embedded, polarisation="VH", polarisation_words={})
    assert other.polarisation_of("anything") == "VH"


def test_a_learned_token_that_is_not_in_the_prompt_is_mentioned(embedded):
    spec = dataclasses.replace(embedded, token="<SAR>")
    assert "put into the prompt, as trained: '<SAR> a <sar> forest'" in spec.prompt_warnings("a <sar> forest")[0]
    assert spec.prompt_for("a SAR image of forest") == "a <SAR> image of forest"
    assert spec.prompt_warnings("a <SAR> forest") == []


def test_facts_of_public_models_that_nobody_states_are_marked(tmp_path):
    found = catalogue(Settings(home=tmp_path))
    for id in ("hochstuhl-s1", "hochstuhl-capella"):
        spec = found[id]
        assert (spec.family, spec.licence, spec.revision, spec.vocabulary) == ("sd15", None, None, {})
        assert {"resolution", "steps", "guidance", "licence", "vocabulary"} <= set(spec.unknown)
        assert any("licence is not stated" in text for text in spec.warnings)
    assert found["hochstuhl-s1"].amplitude_encoding == "unknown"
    assert found["hochstuhl-capella"].amplitude_encoding == "db"
    assert found["hochstuhl-capella"].polarisation is None
    sdxl = found["sdxl-base"]
    assert re.fullmatch("[0-9a-f]{40}", sdxl.revision)
    assert (sdxl.variant, sdxl.licence) == ("fp16", "CreativeML Open RAIL++-M")


def test_importing_the_catalogue_is_light():
    code = "import sar_gen.checkpoints, sys; print([m for m in ('torch', 'diffusers', 'transformers', 'gradio', "
    code += "'huggingface_hub', 'peft') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


def test_a_strategy_folder_dropped_beside_its_base_appears(settings):
    card = 'id = "mine"\nbase = "tiny-sdxl"\nstrategy = "unet-full"\nsteps = 9\n'
    _strategy(settings.checkpoints / "a-folder", card)
    found, problems = scan(settings)
    assert problems == []
    spec, base = found["mine"], found["tiny-sdxl"]
    assert (spec.base, spec.strategy, spec.kind, spec.family, spec.steps) == (
        "tiny-sdxl",
        "unet-full",
        "strategy",
        "sdxl",
        9,
    )
    assert (spec.resolution, spec.amplitude_encoding, spec.origin) == (base.resolution, "linear", "embedded")
    assert strategies_for(found, "tiny-sdxl") == ["base", "unet-full"]
    assert resolve(found, "tiny-sdxl", "unet-full") is spec
    assert resolve(found, "mine", "base") is base
    assert local_folder(spec, settings) == settings.checkpoints / "a-folder"


def test_the_strategy_is_found_from_the_files_when_the_card_is_silent(settings):
    _strategy(settings.home / "checkpoints" / "x", 'id = "x"\nbase = "tiny-sdxl"\n')
    spec = catalogue(settings)["x"]
    assert (spec.strategy, spec.origin) == ("unet-full", "user")


def test_a_token_strategy_gets_the_default_token(settings):
    folder = settings.checkpoints / "t"
    fake.weights(folder / "token.safetensors", {"clip_l": (1, 768), "clip_g": (1, 1280)})
    (folder / "card.toml").write_text('id = "t"\nbase = "tiny-sdxl"\n')
    assert (catalogue(settings)["t"].strategy, catalogue(settings)["t"].token) == ("token", "<SAR>")


@pytest.mark.parametrize(
    ("card", "words"),
    [
        ("id = [", "cannot be read"),
        ('base = "tiny-sdxl"', "does not give 'id'"),
        ('id = "Mine!"\nbase = "tiny-sdxl"', "small letters"),
        ('id = "m"', "goes on the base '', which is not in the catalogue; choose one of tiny-sd15, tiny-sdxl"),
        ('id = "m"\nbase = "nothing"', "goes on the base 'nothing'"),
        ('id = "m"\nbase = "tiny-sd15"\nfamily = "sdxl"', "never mixed"),
        ('id = "m"\nbase = "tiny-sdxl"\nstrategy = "magic"', "The strategy 'magic' is unknown"),
        ('id = "m"\nbase = "tiny-sdxl"\nfamily = "flux"', "has the family 'flux'"),
        ('id = "m"\nbase = "tiny-sdxl"\ncolour = 3', "unknown entry 'colour'"),
        ('id = "m"\nbase = "tiny-sdxl"\nsteps = "many"', "has steps = 'many'"),
        ('id = "m"\nbase = "tiny-sdxl"\nresolution = 250', "has resolution = 250"),
        ('id = "m"\nbase = "tiny-sdxl"\nexamples = "one"', "has examples = 'one'"),
        ('id = "m"\nbase = "tiny-sdxl"\namplitude_encoding = "log"', "has amplitude_encoding = 'log'"),
        ('id = "m"\nbase = "tiny-sdxl"\n[vocabulary]\nscene = "forest"', "has vocabulary"),
        ('id = "m"\nbase = "tiny-sdxl"\n[[avoid]]\nwords = []', "has avoid"),
        ('id = "m"\nbase = "tiny-sdxl"\n[sha256]\na = "1234"', "has sha256"),
        ('id = "sdxl-base"\nbase = "tiny-sdxl"', "used twice"),
    ],
)
def test_a_bad_card_is_left_out_with_a_sentence_and_the_others_stay(settings, card, words):
    _strategy(settings.checkpoints / "m", card)
    found, problems = scan(settings)
    assert len(problems) == 1
    assert words in problems[0]
    assert list(found) == ["tiny-sd15", "tiny-sdxl", "sdxl-base", "hochstuhl-s1", "hochstuhl-capella"]


def test_a_pipelines_card_that_contradicts_its_files_is_left_out(settings):
    card = settings.checkpoints / "tiny-sdxl" / "card.toml"
    card.write_text('id = "tiny-sdxl"\nfamily = "sd15"\n')
    assert "its model_index.json says otherwise" in scan(settings)[1][0]
    card.write_text('id = "tiny-sdxl"\nfamily = "sdxl"\nbase = "tiny-sd15"\n')
    assert "its base is itself" in scan(settings)[1][0]


def test_resolve_names_the_choices(settings):
    for name in ("a", "b"):
        _strategy(settings.checkpoints / name, f'id = "{name}"\nbase = "tiny-sdxl"\n')
    found = catalogue(settings)
    with pytest.raises(InputError, match="'nothing' is unknown; choose one of tiny-sd15, tiny-sdxl, sdxl-base"):
        resolve(found, "nothing")
    with pytest.raises(InputError, match="'hybrid' on tiny-sdxl; there are base, unet-full; add one"):
        resolve(found, "tiny-sdxl", "hybrid")
    with pytest.raises(InputError, match=r"2 checkpoints on tiny-sdxl .* by its id: a, b"):
        resolve(found, "tiny-sdxl", "unet-full")
    assert resolve(found, "a", "unet-full").id == "a"


def test_a_users_pipeline_is_added_remembered_and_removed(tmp_path, settings):
    folder = fake.pipeline(tmp_path / "My Model", "sd15")
    spec = add_checkpoint(folder, settings)
    assert (spec.id, spec.base, spec.family, spec.origin, spec.resolution) == (
        "my-model",
        "my-model",
        "sd15",
        "user",
        64,
    )
    assert "amplitude_encoding" in spec.unknown
    assert catalogue(settings)["my-model"] == spec
    assert local_folder(spec, settings) == folder
    with pytest.raises(InputError, match="The id 'my-model' is taken"):
        add_checkpoint(folder, settings)
    remove_checkpoint("my-model", settings)
    assert "my-model" not in catalogue(settings)
    assert folder.is_dir()
    with pytest.raises(InputError, match="was not added with 'checkpoints add'"):
        remove_checkpoint("sdxl-base", settings)
    with pytest.raises(InputError, match="unknown"):
        remove_checkpoint("nothing", settings)


def test_a_users_lora_goes_on_a_base_of_its_family(tmp_path, settings):
    lora = fake.lora(tmp_path / "Rivers v2.safetensors", context=768)
    with pytest.raises(InputError, match=r"goes on a base; say which \(--base\), one of tiny-sd15, hochstuhl-s1"):
        add_checkpoint(lora, settings)
    with pytest.raises(InputError, match="families are never mixed"):
        add_checkpoint(lora, settings, base="tiny-sdxl")
    with pytest.raises(InputError, match="the base 'nothing', which is not in the catalogue"):
        add_checkpoint(lora, settings, base="nothing")
    spec = add_checkpoint(lora, settings, base="tiny-sd15")
    assert (spec.id, spec.kind, spec.strategy, spec.base) == ("rivers-v2", "lora", "unet-lora", "tiny-sd15")
    assert catalogue(settings)["rivers-v2"] == spec
    assert local_folder(spec, settings) == lora
    assert missing_files(spec, settings) == []
    lora.unlink()
    with pytest.raises(InputError, match=r"lacks Rivers v2\.safetensors"):
        local_folder(spec, settings)


def test_the_usual_kohya_lora_on_unet_and_text_encoders_is_added(tmp_path, settings):
    names = ("lora_unet_mid_block_attn2_to_k", "lora_te1_text_model_q_proj", "lora_te2_text_model_q_proj")
    shapes = {f"{name}.lora_down.weight": (4, 2048) for name in names}
    spec = add_checkpoint(fake.weights(tmp_path / "k.safetensors", shapes), settings, base="tiny-sdxl")
    assert spec.strategy == "unet-lora+te-lora"
    assert catalogue(settings)["k"] == spec
    assert strategies_for(catalogue(settings), "tiny-sdxl") == ["base", "unet-lora+te-lora"]


def test_a_lora_of_another_width_is_refused_when_the_base_is_here(tmp_path, settings):
    lora = fake.lora(tmp_path / "a.safetensors", context=576)
    with pytest.raises(InputError, match="text context 576 wide, its base has 2048"):
        add_checkpoint(lora, settings, base="tiny-sdxl")


def test_a_users_strategy_folder_with_its_card(tmp_path, settings):
    card = 'id = "towns"\ntitle = "Towns"\nbase = "tiny-sdxl"\nprompt_hints = ["Write town."]\n'
    spec = add_checkpoint(_strategy(tmp_path / "s", card), settings)
    assert (spec.id, spec.title, spec.strategy, spec.prompt_hints) == ("towns", "Towns", "unet-full", ("Write town.",))
    assert catalogue(settings)["towns"] == spec


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("m.ckpt", b"\x80\x02whatever", "is a pickle checkpoint"),
        ("m.pt", b"PK\x03\x04", "is a pickle checkpoint"),
        ("m.safetensors", b"\x80\x04\x95\x10\0\0\0\0\0\0\0\x8c", "holds a pickle"),
        ("m.safetensors", b"some text, not weights", "not a safetensors file"),
        ("m.safetensors", b"", "is empty"),
        ("m.txt", b"text", r"not a \.safetensors file"),
    ],
)
def test_unsafe_and_broken_files_are_not_added(tmp_path, settings, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=words):
        add_checkpoint(tmp_path / name, settings, base="tiny-sdxl")
    assert not (settings.home / "checkpoints.json").exists()


def test_what_is_neither_there_nor_a_hub_id_is_refused(settings):
    with pytest.raises(InputError, match="does not exist; give a folder"):
        add_checkpoint("/no/such/folder", settings)


def test_a_damaged_list_of_additions_is_said_and_the_rest_stays(settings):
    settings.home.mkdir()
    (settings.home / "checkpoints.json").write_text("{")
    found, problems = scan(settings)
    assert "tiny-sdxl" in found
    assert "checkpoints.json is not JSON" in problems[0]


def test_an_unwritable_home_is_said(tmp_path, settings):
    blocked = tmp_path / "a-file"
    blocked.write_text("")
    settings = dataclasses.replace(settings, home=blocked / "home")
    with pytest.raises(SarGenError, match=r"SAR_GEN_HOME"):
        add_checkpoint(fake.pipeline(tmp_path / "p", "sd15"), settings)
    assert "tiny-sdxl" in catalogue(settings)
    check_hashes(catalogue(settings)["tiny-sdxl"], settings)


def test_a_hub_checkpoint_that_is_not_here_says_how_to_bring_it(settings):
    spec = catalogue(settings)["sdxl-base"]
    spec = dataclasses.replace(spec, repo_id="nobody/has-this")
    assert missing_files(spec, settings) == ["model_index.json"]
    with pytest.raises(InputError) as raised:
        local_folder(spec, settings)
    assert str(raised.value) == (
        "Stable Diffusion XL 1.0 is not on this machine yet (model_index.json of nobody/has-this missing); run "
        "'python -m sar_gen checkpoints pull sdxl-base' with a network connection, or copy a diffusers folder here "
        "and run 'python -m sar_gen checkpoints add FOLDER'."
    )


def test_pulling_a_local_checkpoint_only_looks_for_it(settings):
    spec = catalogue(settings)["tiny-sdxl"]
    assert pull(spec, settings) == spec.path
    (spec.path / UNET).unlink()
    with pytest.raises(InputError, match=f"lacks {UNET}"):
        pull(spec, settings)


def _with_hashes(settings):
    folder = settings.checkpoints / "tiny-sdxl"
    digest = hashlib.sha256((folder / UNET).read_bytes()).hexdigest()
    with (folder / "card.toml").open("a") as card:
        card.write(f'[sha256]\n"{UNET}" = "{digest}"\n')
    return catalogue(settings)["tiny-sdxl"]


def test_files_are_read_once_and_again_when_they_change(settings, monkeypatch):
    spec = _with_hashes(settings)
    read = []
    sha256_of = checkpoints.sha256_of
    monkeypatch.setattr(checkpoints, "sha256_of", lambda path: (read.append(path.name), sha256_of(path))[1])
    check_hashes(spec, settings)
    check_hashes(spec, settings)
    assert len(read) == 1
    path = spec.path / UNET
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    for _ in range(2):
        with pytest.raises(InputError, match=f"{UNET} of tiny-sdxl is not the file that its card describes"):
            check_hashes(spec, settings)
    assert len(read) == 2


def test_verify_reads_everything_whatever_is_remembered(settings):
    spec = _with_hashes(settings)
    others = dict.fromkeys(
        (
            "vae/diffusion_pytorch_model.safetensors",
            "text_encoder/model.safetensors",
            "text_encoder_2/model.safetensors",
        ),
        "no hash is stated",
    )
    assert verify(spec, settings) == {UNET: "ok", **others}
    path = spec.path / UNET
    status = path.stat()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # unseen by size and time
    check_hashes(spec, settings)
    assert verify(spec, settings) == {UNET: "differs", **others}
    with pytest.raises(InputError, match="is not the file that its card describes"):
        check_hashes(spec, settings)
    path.unlink()
    assert verify(spec, settings)[UNET] == "missing"


def test_the_embedded_weights_match_their_card(embedded, tmp_path):
    assert set(verify(embedded, Settings(home=tmp_path)).values()) == {"ok"}


def test_every_example_of_the_embedded_checkpoint_names_its_real_ground(embedded):
    found = {prompt: embedded.reference_of(prompt) for prompt in embedded.examples}
    assert found["a SAR image of a mountain gorge"] == "s1-gorge"
    assert found["a SAR image of farmland"] == "s1-agriculture"
    assert found["a SAR image of a village"] == "s1-residential"
    assert found["a Sentinel-1 VH image of suburbs"] == "s1-vh"
    assert None not in found.values()
    assert embedded.reference_of("something else") is None


def test_folders_of_ones_own_are_read_anew_each_time(settings, tmp_path):
    """What training writes appears by lying there, in the folders that the settings name and in the embedded one."""
    mine = tmp_path / "trained"
    mine.mkdir()
    settings = dataclasses.replace(settings, checkpoint_folders=(mine, tmp_path / "checkpoints"))
    before = scan(settings)
    assert before[1] == []  # a folder that is read already is not read twice
    for root, id in ((mine, "dropped"), (settings.checkpoints, "embedded-too")):
        _strategy(root / id, f'id = "{id}"\nbase = "tiny-sdxl"\ntitle = "{id}"\n')
    found, problems = scan(settings)
    assert problems == []
    assert found.keys() - before[0].keys() == {"dropped", "embedded-too"}
    assert (found["dropped"].origin, found["embedded-too"].origin) == ("user", "embedded")
    assert (found["dropped"].strategy, found["dropped"].path) == ("unet-full", mine / "dropped")
    assert "unet-full" in strategies_for(found, "tiny-sdxl")
    with pytest.raises(InputError, match="delete its folder"):
        remove_checkpoint("dropped", settings)


def test_a_wrong_folder_of_checkpoints_is_one_sentence_each(settings, tmp_path):
    itself = settings.checkpoints / "tiny-sdxl"
    found, problems = scan(dataclasses.replace(settings, checkpoint_folders=(tmp_path / "none", itself)))
    assert "tiny-sdxl" in found
    assert problems == [
        f"The folder of checkpoints {tmp_path / 'none'} does not exist; correct SAR_GEN_CHECKPOINT_FOLDERS.",
        f"{itself} is a checkpoint itself; put the folder that holds it into SAR_GEN_CHECKPOINT_FOLDERS.",
    ]


def test_adding_a_folder_that_holds_several_says_how(settings, tmp_path):
    for id in ("a", "b", "c", "d"):
        _strategy(tmp_path / "many" / id, f'id = "{id}"\nbase = "tiny-sdxl"\n')
    with pytest.raises(InputError, match=r"holds 4 checkpoint folders \(a, b, c, …\).*SAR_GEN_CHECKPOINT_FOLDERS"):
        add_checkpoint(tmp_path / "many", settings)
    assert add_checkpoint(tmp_path / "many" / "a", settings).id == "a"


def test_hashes_are_remembered_where_home_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "home").write_text("a file, not a folder")
    settings = Settings(home=tmp_path / "home")
    path, read = tmp_path / "weights.safetensors", []
    path.write_bytes(b"one")
    sha256_of = checkpoints.sha256_of
    monkeypatch.setattr(checkpoints, "sha256_of", lambda path: (read.append(path), sha256_of(path))[1])
    for _ in range(2):
        assert checkpoints.hashes_of([path], settings) == {path: hashlib.sha256(b"one").hexdigest()}
    assert read == [path]
    path.write_bytes(b"three")
    assert checkpoints.hashes_of([path], settings) == {path: hashlib.sha256(b"three").hexdigest()}
