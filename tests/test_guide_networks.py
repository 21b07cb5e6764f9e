"""Networks that read guides: where they are found, what their cards may say, which guide goes which way, the hub."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sar_gen import checkpoints
from sar_gen.checkpoints import CheckpointSpec
from sar_gen.errors import InputError, SarGenError
from sar_gen.guide_networks import (
    add_network,
    identity,
    missing_files,
    networks,
    pull,
    remove_network,
    scan,
    way_title,
    ways,
    with_ways,
)
from sar_gen.request import IMAGE_TO_IMAGE, Guide
from sar_gen.settings import ROOT, Settings
from tests import fake, tiny
from tests.test_hub import COMMIT, Hub

WEIGHTS = "diffusion_pytorch_model.safetensors"
PICTURE = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)


def spec_of(name, family="sdxl"):
    return CheckpointSpec(id=name, title=name, family=family, base=name, strategy="base")


BASES = {"base": spec_of("base"), "old": spec_of("old", "sd15")}


def card(settings, name="net", **values):
    """A network's card alone, in the user's folder of checkpoints; ``None`` leaves an entry out."""
    given = {"id": name, "kind": "guides", "base": "base", "kinds": {"map": "studio"}, **values}
    return tiny.write_card(settings.home / "checkpoints" / name, **{k: v for k, v in given.items() if v is not None})


@pytest.fixture
def settings(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    return Settings(home=tmp_path / "home", runs=tmp_path / "runs", checkpoints=tmp_path / "checkpoints", device="cpu")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Tiny checkpoints with networks: ``twin`` has a UNet of the same shape as ``base``, ``wide`` another one."""
    root = tmp_path_factory.mktemp("networks") / "checkpoints"
    base, old = tiny.checkpoint(root / "base"), tiny.checkpoint(root / "old", "sd15")
    shutil.copytree(base, root / "twin")
    tiny.write_card(root / "twin", id="twin", family="sdxl", strategy="base")
    tiny.tiny_sdxl(root / "wide", unet_width=32)
    tiny.write_card(root / "wide", id="wide", family="sdxl", strategy="base")
    tiny.strategy_folder(root / "tuned", base, "unet-lora")
    tiny.network(root / "maps", base, default_for=["map"])
    tiny.network(root / "any", base, seed=30, layout="picture")
    tiny.network(root / "old-maps", old, kinds={"map": "studio"})
    tiny.adapter(root / "adapter", old)
    return root


@pytest.fixture
def full(root, tmp_path):
    """Settings with the tiny checkpoints, and a home of their own."""
    return Settings(home=tmp_path / "home", runs=tmp_path / "runs", checkpoints=root, device="cpu")


def chosen(settings, checkpoint, *guides):
    """The guides of a request with the way that each goes."""
    catalogue = checkpoints.catalogue(settings)
    return with_ways(guides, catalogue[checkpoint], networks(settings, catalogue), settings)


def copied(root, settings, name, source="maps", **values):
    """A copy of a network in the user's folder, with another card."""
    folder = settings.home / "checkpoints" / name
    shutil.copytree(root / source, folder)
    kinds = {"map": "studio", "optical": "grey"}
    tiny.write_card(
        folder, **{"id": name, "kind": "guides", "base": "base", "layout": "studio", "kinds": kinds, **values}
    )
    return folder


# Finding


def test_networks_lie_beside_checkpoints_and_are_none_themselves(full, root):
    catalogue, problems = checkpoints.scan(full)
    assert problems == []
    assert {"base", "old", "twin", "wide", "tuned"} <= set(catalogue)
    assert not {"maps", "any", "old-maps", "adapter"} & set(catalogue)
    found, problems = scan(full, catalogue)
    assert problems == []
    assert set(found) == {"maps", "any", "old-maps", "adapter", "hochstuhl-s1-ships"}
    maps = found["maps"]
    assert (maps.family, maps.base, maps.layout, maps.path) == ("sdxl", "base", "studio", root / "maps")
    assert (maps.origin, maps.default_for, maps.title) == ("embedded", ("map",), "maps")
    assert maps.kinds == {"map": "studio", "optical": "grey", "sar": "linear"}
    assert (found["adapter"].family, found["adapter"].layout) == ("sd15", "picture")
    assert missing_files(maps) == []
    assert identity(maps, full) == {WEIGHTS: hashlib.sha256((root / "maps" / WEIGHTS).read_bytes()).hexdigest()}


def test_the_public_network_is_listed_before_it_is_here(settings):
    found = networks(settings, checkpoints.catalogue(settings))
    ships = found["hochstuhl-s1-ships"]
    assert (ships.base, ships.family, ships.origin) == ("hochstuhl-s1", "sd15", "public")
    assert (ships.kinds, ships.default_for) == ({"map": "water-ship-land"}, ("map",))
    assert ships.repo_id == "sylviaHoch/SAR-ControlNet"
    assert ships.revision is None
    assert missing_files(ships) == ["config.json"]
    checkpoints.write_home(settings, "pins.json", {"sylviaHoch/SAR-ControlNet": "3" * 40})
    assert networks(settings, checkpoints.catalogue(settings))["hochstuhl-s1-ships"].revision == "3" * 40


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"colour": "red"}, "unknown entry 'colour'"),
        ({"base": "nothing"}, "goes on the base 'nothing', which is not in the catalogue; choose one of base, old"),
        ({"base": None}, "goes on the base ''"),
        ({"kinds": None}, "should name the kinds of guide that it reads, among sketch, map, optical, sar"),
        ({"kinds": {}}, "should name the kinds"),
        ({"kinds": ["map"]}, "should name the kinds"),
        ({"kinds": {"depth": "grey"}}, "should name the kinds"),
        ({"kinds": {"map": "corine"}}, "palette 'corine'; choose one of studio, sen12ms"),
        ({"layout": "planes"}, "layout 'planes'; choose studio or picture"),
        ({"default_for": "map"}, "default_for = 'map'; give a list of texts"),
        ({"credit": 5}, "credit = 5; give a list of texts"),
        ({"warnings": [1]}, r"warnings = \[1\]; give a list of texts"),
        ({"sha256": "abc"}, "sha256 = 'abc'; give a table"),
        ({"untrained": ["road"]}, r"untrained = \['road'\]; give a table"),
        ({"untrained": {"canal": "water"}}, "canal = 'water' as untrained; name water, fields"),
        ({"untrained": {"road": "asphalt"}}, "road = 'asphalt' as untrained"),
        ({"id": "My network"}, "the id 'My network'; use small letters"),
        ({"id": IMAGE_TO_IMAGE}, "the id 'image-to-image'"),
    ],
)
def test_a_card_that_cannot_be_is_left_out_with_one_sentence(settings, values, sentence):
    card(settings, **values)
    card(settings, "good")
    found, problems = scan(settings, BASES)
    assert set(found) == {"good", "hochstuhl-s1-ships"}
    assert len(problems) == 1
    assert "\n" not in problems[0]
    with pytest.raises(InputError, match=sentence):
        raise InputError(problems[0])


def test_an_id_that_is_there_twice_is_the_first_ones(settings):
    tiny.write_card(settings.checkpoints / "one", id="net", kind="guides", base="base", kinds={"sar": "linear"})
    card(settings)
    card(settings, "base")  # the name of a checkpoint
    found, problems = scan(settings, BASES)
    assert found["net"].path == settings.checkpoints / "one"
    assert "base" not in found
    assert sorted(problems) == [
        f"The id 'base' is used twice ({settings.home / 'checkpoints' / 'base'}); rename one of them.",
        f"The id 'net' is used twice ({settings.home / 'checkpoints' / 'net'}); rename one of them.",
    ]


def test_a_card_that_is_no_toml_is_told_by_the_catalogue_alone(settings):
    card(settings).write_text('kind = "guides"\nbase = \n')
    assert len(checkpoints.scan(settings)[1]) == 1
    assert scan(settings, BASES)[1] == []


# Ways


def test_ways_begin_with_the_default(settings):
    card(settings, "a-plain", kinds={"map": "worldcover", "optical": "grey"})
    card(settings, "b-maps", default_for=["map"])
    card(settings, "c-both", kinds={"map": "studio", "sar": "linear"}, default_for=["map", "sar"])
    card(settings, "d-other", base="old", default_for=["map"])
    card(settings, "e-sketches", kinds={"sketch": "studio", "sar": "linear"}, default_for=["sketch"])
    known = networks(settings, BASES)
    base = BASES["base"]
    assert ways(known, base, "map") == ["b-maps", "c-both", IMAGE_TO_IMAGE, "a-plain"]
    assert ways(known, base, "sketch") == ["b-maps", "c-both", "e-sketches", IMAGE_TO_IMAGE, "a-plain"]
    assert ways(known, base, "optical") == [IMAGE_TO_IMAGE, "a-plain"]
    assert ways(known, base, "sar") == ["c-both", IMAGE_TO_IMAGE, "e-sketches"]
    assert ways(known, BASES["old"], "map") == ["d-other", IMAGE_TO_IMAGE]
    assert ways(known, BASES["old"], "sar") == [IMAGE_TO_IMAGE]
    tuned = dataclasses.replace(base, id="tuned", strategy="unet-lora", kind="strategy")
    assert ways(known, tuned, "map") == ways(known, base, "map")
    assert way_title(known, "b-maps") == "b-maps"
    assert "start" in way_title(known, IMAGE_TO_IMAGE)


def test_guides_go_by_the_default_unless_they_say_otherwise(full):
    def found(checkpoint, *guides):
        return [guide.way for guide in chosen(full, checkpoint, *guides)]

    drawn, optical, sar = (Guide(kind, PICTURE) for kind in ("sketch", "optical", "sar"))
    assert found("base", Guide("map", PICTURE)) == ["maps"]
    assert found("base", drawn) == ["maps"]
    assert found("tuned", drawn) == ["maps"]
    assert found("base", optical) == [IMAGE_TO_IMAGE]
    assert found("wide", optical) == [IMAGE_TO_IMAGE]
    assert found("base", dataclasses.replace(drawn, way=IMAGE_TO_IMAGE)) == [IMAGE_TO_IMAGE]
    assert found("base", dataclasses.replace(drawn, way="any")) == ["any"]
    # A second guide leaves no room for a start: the first network that reads each, though none is its default.
    assert found("base", optical, sar) == ["any", "any"]
    assert found("base", dataclasses.replace(drawn, way="any"), drawn) == ["any", "maps"]
    assert found("old", dataclasses.replace(optical, way="adapter")) == ["adapter"]
    # Another base whose UNet has the same shape: where the request names it.
    assert found("twin", drawn) == [IMAGE_TO_IMAGE]
    assert found("twin", dataclasses.replace(drawn, way="maps")) == ["maps"]
    kept = chosen(full, "base", dataclasses.replace(drawn, weight=0.3, start=0.1, end=0.9))[0]
    assert (kept.weight, kept.start, kept.end) == (0.3, 0.1, 0.9)
    assert kept.image is PICTURE


@pytest.mark.parametrize(
    ("checkpoint", "guides", "sentence"),
    [
        ("base", [("map", "nothing")], "no network 'nothing' .* choose one of maps, image-to-image, any"),
        ("old", [("optical", "old-maps")], "old-maps does not read a guide of the kind optical; it reads map"),
        ("old", [("map", "maps")], "maps is of family sdxl and old of sd15; they never mix"),
        ("base", [("optical", "adapter")], "adapter is of family sd15 and base of sdxl"),
        (
            "wide",
            [("map", "maps")],
            r"does not fit the UNet of wide \(block_out_channels: \[16, 32\] here, \[32, 64\]",
        ),
        (
            "base",
            [("map", IMAGE_TO_IMAGE), ("sar", "maps")],
            "one guide is the start of the picture, so it goes alone",
        ),
        ("base", [("map", "maps"), ("sar", IMAGE_TO_IMAGE)], "goes alone; choose one guide, or networks"),
        ("wide", [("map", None), ("sar", None)], "goes alone"),
        ("old", [("map", None), ("sar", None)], "goes alone"),
    ],
)
def test_guides_that_cannot_go_are_one_sentence(full, checkpoint, guides, sentence):
    with pytest.raises(InputError, match=sentence) as caught:
        chosen(full, checkpoint, *(Guide(kind, PICTURE, way=way) for kind, way in guides))
    assert "\n" not in str(caught.value)


def test_adapters_are_for_the_family_that_they_are_made_for(full, root):
    copied(root, full, "on-sdxl", "adapter", layout="picture")
    with pytest.raises(InputError, match="on-sdxl is a full_adapter, which is not for sdxl"):
        chosen(full, "base", Guide("optical", PICTURE, way="on-sdxl"))
    xl = copied(root, full, "xl", "adapter", base="old", layout="picture")
    config = json.loads((xl / "config.json").read_text())
    (xl / "config.json").write_text(json.dumps({**config, "adapter_type": "full_adapter_xl"}))
    with pytest.raises(InputError, match="xl is a full_adapter_xl, which is not for sd15"):
        chosen(full, "old", Guide("optical", PICTURE, way="xl"))
    (xl / "config.json").write_text(json.dumps({**config, "adapter_type": "light_adapter"}))
    assert chosen(full, "old", Guide("optical", PICTURE, way="xl"))[0].way == "xl"


# Files


def emptied(folder):
    (folder / WEIGHTS).unlink()


def pickled(folder):
    (folder / WEIGHTS).rename(folder / "diffusion_pytorch_model.bin")


def disguised(folder):
    (folder / WEIGHTS).write_bytes(b"\x80\x04" + bytes(100))


def cut(folder):
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[:-1000])


def foreign(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "_class_name": "FluxControlNetModel"}))


def without_config(folder):
    (folder / "config.json").unlink()


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (emptied, rf"mine is not on this machine \({WEIGHTS} is missing\); bring the folder .* again"),
        (without_config, r"mine is not on this machine \(config.json is missing\)"),
        (pickled, "diffusion_pytorch_model.bin is a pickle checkpoint, which can run code"),
        (disguised, f"{WEIGHTS} is named .safetensors but holds a pickle"),
        (cut, f"{WEIGHTS} is cut off or damaged"),
        (foreign, "mine is a FluxControlNetModel, which is not loaded; supported are ControlNetModel and T2IAdapter"),
    ],
)
def test_files_that_cannot_be_used_are_one_sentence_before_any_work(full, root, damage, sentence):
    damage(copied(root, full, "mine"))
    with pytest.raises(InputError, match=sentence) as caught:
        chosen(full, "base", Guide("map", PICTURE, way="mine"))
    assert "\n" not in str(caught.value)


def test_a_file_that_the_card_does_not_describe_is_refused(full, root):
    good = hashlib.sha256((root / "maps" / WEIGHTS).read_bytes()).hexdigest()
    copied(root, full, "good", sha256={WEIGHTS: good})
    copied(root, full, "bad", sha256={WEIGHTS: "0" * 64})
    copied(root, full, "lacking", sha256={"other.safetensors": good})
    assert chosen(full, "base", Guide("map", PICTURE, way="good"))[0].way == "good"
    with pytest.raises(InputError, match=f"{WEIGHTS} of bad is not the file that its card describes"):
        chosen(full, "base", Guide("map", PICTURE, way="bad"))
    with pytest.raises(InputError, match=r"other.safetensors is missing"):
        chosen(full, "base", Guide("map", PICTURE, way="lacking"))


def test_a_layout_that_is_not_the_networks_is_refused(full, root):
    """Eleven planes squeezed into three colours (or the other way round) would steer by nonsense, without a word."""
    copied(root, full, "planes", "any", layout="studio")
    copied(root, full, "colours", "maps", layout="picture")
    for name, words in (("planes", "takes 3 channels .* has 11"), ("colours", "takes 11 channels .* has 1 or 3")):
        with pytest.raises(InputError, match=f"{name} {words}; correct the card"):
            chosen(full, "base", Guide("map", PICTURE, way=name))


# Adding


def test_a_folder_is_added_and_removed(full, root, tmp_path):
    folder = tiny.network(tmp_path / "My Net", root / "base", layout="picture")
    (folder / "card.toml").unlink()
    for options, sentence in (
        ({}, "Say which kinds of guide .* reads"),
        ({"kinds": ["map"]}, r"goes on a base; say which \(--base\), one of base, old, twin, wide"),
        ({"kinds": ["map"], "base": "moon"}, "the base 'moon', which is not in the catalogue"),
        ({"kinds": ["depth"], "base": "base"}, "should name the kinds"),
        ({"kinds": ["map"], "base": "base", "palette": "corine"}, "palette 'corine'"),
        ({"kinds": ["map"], "base": "base", "id": "maps"}, "The id 'maps' is taken"),
        ({"kinds": ["map"], "base": "base", "id": "wide"}, "The id 'wide' is taken"),
        ({"kinds": ["map"], "base": "wide"}, "does not fit the UNet of wide"),
    ):
        with pytest.raises(InputError, match=sentence):
            add_network(folder, full, **options)
    assert "my-net" not in networks(full, checkpoints.catalogue(full))

    spec = add_network(folder, full, kinds=["map", "sar"], base="base", palette="worldcover")
    assert (spec.id, spec.family, spec.base, spec.path) == ("my-net", "sdxl", "base", folder)
    found = networks(full, checkpoints.catalogue(full))["my-net"]
    assert found == spec
    assert (found.kinds, found.origin) == ({"map": "worldcover", "sar": "sar"}, "user")
    assert chosen(full, "base", Guide("sar", PICTURE, way="my-net"))[0].way == "my-net"
    with pytest.raises(InputError, match="The id 'my-net' is taken"):
        add_network(folder, full, kinds=["map"], base="base")

    remove_network("my-net", full)
    assert "my-net" not in networks(full, checkpoints.catalogue(full))
    assert (folder / WEIGHTS).is_file()
    for name in ("my-net", "maps"):
        with pytest.raises(InputError, match=f"'{name}' was not added with 'guides add'"):
            remove_network(name, full)


def test_a_folder_with_a_card_needs_no_words(full, root, tmp_path):
    folder = tiny.network(tmp_path / "carded", root / "base", seed=40, default_for=["sar"], credit=["Somebody"])
    spec = add_network(folder, full)
    assert (spec.layout, spec.default_for, spec.credit) == ("studio", ("sar",), ("Somebody",))
    assert chosen(full, "base", Guide("sar", PICTURE))[0].way == "carded"
    renamed = add_network(folder, full, id="another", kinds=["optical"])
    assert (renamed.id, renamed.kinds) == ("another", {"optical": "optical"})


@pytest.mark.parametrize(
    ("damage", "words"), [(pickled, "pickle"), (cut, "cut off"), (foreign, "FluxControlNetModel")]
)
def test_a_folder_that_cannot_be_used_is_not_added_though_its_base_is_not_here(settings, tmp_path, damage, words):
    folder = tmp_path / "net"
    fake.weights(folder / WEIGHTS, {"conv_in.weight": (320, 4, 3, 3)})
    (folder / "config.json").write_text(json.dumps({"_class_name": "ControlNetModel"}))
    damage(folder)
    with pytest.raises(InputError, match=words):
        add_network(folder, settings, kinds=["map"], base="sdxl-base")
    assert "net" not in networks(settings, checkpoints.catalogue(settings))


def test_what_is_not_there_and_what_cannot_be_reached(settings, tmp_path):
    with pytest.raises(InputError, match="does not exist; give a folder or a hub id"):
        add_network(tmp_path / "nothing", settings, kinds=["map"], base="sdxl-base")
    ships = networks(settings, checkpoints.catalogue(settings))["hochstuhl-s1-ships"]
    for work in (
        lambda: add_network("owner/net", settings, kinds=["map"], base="sdxl-base"),
        lambda: pull(ships, settings),
    ):
        with pytest.raises(SarGenError, match=r"HF_HUB_OFFLINE forbids .* a network connection once"):
            work()
    with pytest.raises(InputError, match=r"run 'python -m sar_gen guides pull hochstuhl-s1-ships'"):
        chosen(settings, "hochstuhl-s1", Guide("map", PICTURE))


# The hub

CLIENT = """
import json
from sar_gen import checkpoints, guide_networks
from sar_gen.errors import SarGenError
from sar_gen.settings import Settings
settings = Settings.from_env()
known = lambda: guide_networks.networks(settings, checkpoints.catalogue(settings))
seen = []
def attempt(work):
    try:
        return work()
    except SarGenError as error:
        return {"error": str(error)}
print(json.dumps([attempt(work) for work in (WORK)], default=str))
"""


@pytest.fixture
def server():
    server = Hub()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def client(server, tmp_path):
    """Runs expressions in a process of its own whose hub is the server, and returns what they give."""
    (tmp_path / "empty").mkdir()

    def run(*work, **environment):
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "SAR_GEN_"))}
        own = {
            "HF_ENDPOINT": server.url,
            "HF_HOME": str(tmp_path / "hf"),
            "SAR_GEN_HOME": str(tmp_path / "home"),
            "SAR_GEN_CHECKPOINTS": str(tmp_path / "empty"),
        }
        text = "".join(f"lambda: {expression}, " for expression in work)
        result = subprocess.run(
            [sys.executable, "-c", CLIENT.replace("WORK", text)],
            cwd=ROOT,
            env={**kept, **own, **environment},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert result.stdout, result.stderr
        return json.loads(result.stdout)

    return run


def remote(folder, config=("ControlNetModel", 3), suffix=WEIGHTS):
    """A repository of a network, with files beside it that are not needed."""
    fake.weights(folder / suffix, {"conv_in.weight": (320, 4, 3, 3)})
    text = json.dumps({"_class_name": config[0], "conditioning_channels": config[1]})
    (folder / "config.json").write_text(text)
    (folder / "README.md").write_text("not needed")
    (folder / "diffusion_pytorch_model.bin").write_bytes(b"\x80\x04")
    fake.weights(folder / "checkpoint-1000" / WEIGHTS, {"conv_in.weight": (2, 2)})
    return folder


def test_the_public_network_is_pulled_once_and_its_commit_pinned(server, client, tmp_path):
    ships = remote(tmp_path / "ships")
    server.add("sylviaHoch/SAR-ControlNet", ships)
    pulled = "str(guide_networks.pull(known()['hochstuhl-s1-ships'], settings, seen.append))"
    folder, missing, progress = client(
        pulled,
        "guide_networks.missing_files(known()['hochstuhl-s1-ships'])",
        "[[state.done, state.total] for state in seen][-1]",
    )
    names = sorted(path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file())
    assert names == ["config.json", WEIGHTS]
    assert (Path(folder) / WEIGHTS).read_bytes() == (ships / WEIGHTS).read_bytes()
    assert Path(folder).name == COMMIT
    assert missing == []
    total = sum((ships / name).stat().st_size for name in names)
    assert progress == [total, total]
    assert json.loads((tmp_path / "home" / "pins.json").read_text()) == {"sylviaHoch/SAR-ControlNet": COMMIT}

    server.requests.clear()
    server.commits["sylviaHoch/SAR-ControlNet"] = "2" * 40
    again, hashes = client(pulled, "guide_networks.identity(known()['hochstuhl-s1-ships'], settings)")
    assert again == folder
    assert hashes == {WEIGHTS: hashlib.sha256((ships / WEIGHTS).read_bytes()).hexdigest()}
    assert server.requests == []


def test_a_hub_id_is_added_at_its_commit_without_its_weights(server, client, tmp_path):
    server.add("owner/My-Net", remote(tmp_path / "plain"))
    server.add("owner/half", remote(tmp_path / "half", suffix="diffusion_pytorch_model.fp16.safetensors"))
    kinds = "kinds=['map', 'optical'], palette='worldcover', base='sdxl-base'"
    added, half, there, missing = client(
        f"vars(guide_networks.add_network('owner/My-Net', settings, {kinds}))",
        f"vars(guide_networks.add_network('owner/half', settings, {kinds}))",
        "list(known())",
        "guide_networks.missing_files(known()['my-net'])",
    )
    assert (added["id"], added["family"], added["revision"], added["variant"]) == ("my-net", "sdxl", COMMIT, None)
    assert added["kinds"] == {"map": "worldcover", "optical": "optical"}
    assert half["variant"] == "fp16"
    assert there == ["my-net", "half", "hochstuhl-s1-ships"]
    assert missing == ["config.json"]
    assert not server.bodies()

    folder, other, _, left = client(
        "str(guide_networks.pull(known()['my-net'], settings))",
        "sorted(p.name for p in guide_networks.pull(known()['half'], settings).iterdir())",
        "guide_networks.remove_network('my-net', settings)",
        "list(known())",
    )
    assert Path(folder).name == COMMIT
    assert other == ["config.json", "diffusion_pytorch_model.fp16.safetensors"]
    assert left == ["half", "hochstuhl-s1-ships"]
    assert (Path(folder) / WEIGHTS).is_file()


def test_repositories_that_are_no_networks_are_refused(server, client, tmp_path):
    server.add("owner/flux", remote(tmp_path / "flux", ("FluxControlNetModel", 3)))
    only_pickle = remote(tmp_path / "pickle")
    (only_pickle / WEIGHTS).unlink()
    server.add("owner/pickle", only_pickle)
    add = "vars(guide_networks.add_network('owner/{}', settings, kinds=['map'], base='sdxl-base'))['id']"
    pickle, nothing, gated, flux, pulled = client(
        *(add.format(name) for name in ("pickle", "nothing", "gated", "flux")),
        "str(guide_networks.pull(known()['flux'], settings))",
    )
    assert "owner/pickle has no config.json with .safetensors weights at its top level" in pickle["error"]
    assert "the hub has no such thing" in nothing["error"]
    assert "needs a login" in gated["error"]
    assert flux == "flux"  # its class is in a file that is not read before it is pulled
    assert "owner/flux is a FluxControlNetModel, which is not loaded" in pulled["error"]
