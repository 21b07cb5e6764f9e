"""Guides on the page: from the form's values to guides, sentences and back."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from sar_gen import checkpoints, palettes
from sar_gen.errors import InputError
from sar_gen.guide_networks import NetworkSpec
from sar_gen.request import IMAGE_TO_IMAGE, GenerationRequest, Guide
from sar_gen.settings import Settings
from sar_gen.studio import Studio
from sar_gen.ui import guide_views, guiding
from sar_gen.ui.choices import ONLY_WAY, Choice, Ways, way_list
from sar_gen.ui.generate import had_guides
from sar_gen.ui.guide_events import asked_guides, legend_of, taken
from sar_gen.ui.guiding import Listed, Picked, Source
from sar_gen.ui.inputs import FORM, form_of
from sar_gen.ui.results import guide_used
from sar_gen.ui.scenes import load_scenes
from sar_gen.windows import mean_count

WORLDCOVER = {"Tree cover": (0, 100, 0), "Permanent water bodies": (0, 100, 200), "Built-up": (250, 0, 0)}
NETWORK = NetworkSpec(
    id="net", title="A network", base="sar-mini", family="sdxl", kinds={"map": "studio", "optical": "grey"}
)


@pytest.fixture
def studio(tmp_path):
    return Studio(dataclasses.replace(Settings(), home=tmp_path / "home", runs=tmp_path / "runs"))


def picture(shape=(64, 64, 3), seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def offered(names, settings=None):
    spec = checkpoints.catalogue(settings or Settings())["sar-mini"]
    return Ways(spec, {"net": NETWORK}, names)


def run(studio, *guides, seed=4):
    request = GenerationRequest("a river", seed=seed, guides=guides, width=64, height=64)
    begun = studio.store.begin(request, {}, {})
    amplitude = np.random.default_rng(seed).random((64, 64), dtype=np.float32)
    begun.save_patch(0, seed, amplitude)
    begun.finish("done", {})
    return studio.store.open(begun.folder), amplitude


def test_a_drawing_is_a_guide_once_there_is_one(studio):
    assert guiding.read_source(Source("sketch"), studio) is None
    assert guiding.read_source(Source("none", sketch={"background": picture()}), studio) is None
    guide = guiding.read_source(Source("sketch", sketch={"background": picture(), "composite": None}), studio)
    assert (guide.kind, guide.image.shape) == ("sketch", (64, 64, 3))


def test_a_file_is_read_as_what_it_is_said_to_show(studio, tmp_path):
    path = tmp_path / "worldcover.png"
    rows = np.repeat(np.array(list(WORLDCOVER.values()), np.uint8), 16, axis=0)
    Image.fromarray(np.repeat(rows[:, None], 48, axis=1)).save(path)
    guide = guiding.read_source(Source("image", "map", "worldcover", str(path)), studio)
    assert (guide.kind, guide.palette) == ("map", "worldcover")
    assert guiding.read_source(Source("image", "optical", "worldcover", str(path)), studio).palette == "studio"


def test_a_patch_of_a_past_run_or_its_guide_is_taken_and_said(studio):
    sketch = Guide("sketch", picture(), way=IMAGE_TO_IMAGE)
    record, amplitude = run(studio, sketch)
    picked = guiding.pick(record.id, 0, studio)
    assert picked == Picked(record.id, 0, guiding.PICTURE, ("sketch",))
    assert Source("run", picked=picked).kind == "sar"
    guide = guiding.read_source(Source("run", picked=picked), studio)
    np.testing.assert_allclose(guide.image[..., 0] / 255, amplitude, atol=0.5 / 255)
    assert record.id in guide.notes[0]
    assert "seed 4" in guide.notes[0]

    again = taken("take 0", picked, studio)
    assert Source("run", picked=again).kind == "sketch"
    np.testing.assert_array_equal(guiding.read_source(Source("run", picked=again), studio).image, sketch.image)
    assert taken(f"patch 0 {record.id}", again, studio) == picked
    for wrong in ("take 1", "take -1", "patch x", "patch 0 ../elsewhere", "patch 0 gone", ""):
        with pytest.raises(InputError):
            taken(wrong, picked, studio)


def test_recent_patches_are_offered_newest_first_and_the_one_on_stage_leads(studio):
    records = [run(studio, seed=seed)[0] for seed in range(guiding.RECENT + 2)]
    ids = [record.id for record, _ in guiding.recent(studio)]
    assert ids == [record.id for record in reversed(records)][: guiding.RECENT]
    oldest = records[0]
    assert guiding.recent(studio, str(oldest.folder))[0][0].id == oldest.id
    assert guiding.recent(Studio(dataclasses.replace(studio.settings, runs=studio.settings.home))) == []
    html = guide_views.picks(guiding.recent(studio), Picked(records[-1].id, 0, "0", ("sketch",)))
    assert html.count("<img") == guiding.RECENT
    assert html.count('aria-pressed="true"') == 2  # the patch, and what is taken of it


def test_the_real_patch_on_show_is_taken_as_sar(studio):
    guide = guiding.read_source(Source("real", reference="ben-vv", real_index=1), studio)
    assert guide.kind == "sar"
    assert "2 of 6" in guide.notes[0]


def test_image_to_image_has_no_weight_and_a_network_has():
    guide = Guide("map", picture())
    ways = offered(["net", IMAGE_TO_IMAGE])
    by_network = guiding.steered(guide, ways, "net", 0.7, 0.1, 0.8)
    assert (by_network.way, by_network.weight, by_network.start, by_network.end) == ("net", 0.7, 0.1, 0.8)
    start = guiding.steered(guide, ways, IMAGE_TO_IMAGE, 0.7, 0.1, 0.8)
    assert (start.way, start.weight, start.start, start.end) == (IMAGE_TO_IMAGE, 1, 0, 1)
    assert guiding.steered(guide, ways, "gone", 0.7, 0, 1).way == "net"


def test_the_page_says_which_way_is_used():
    assert "no ControlNet for a sketch" in guiding.way_line(offered([IMAGE_TO_IMAGE]), None, "sketch")
    assert guiding.way_line(offered(["net", IMAGE_TO_IMAGE]), None, "map").startswith("A network reads the guide")
    assert "no network reads it" in guiding.way_line(offered(["net", IMAGE_TO_IMAGE]), IMAGE_TO_IMAGE, "map")
    far = dataclasses.replace(NETWORK, repo_id="someone/net")
    assert "guides pull net" in guiding.missing_line(far)
    assert guiding.missing_line(None) == ""


def test_the_list_of_ways_hides_where_there_is_one_and_passes_over_what_has_gone():
    only = way_list(offered([IMAGE_TO_IMAGE]))
    assert (only.visible, only.value) == (False, IMAGE_TO_IMAGE)
    both = way_list(offered([IMAGE_TO_IMAGE, "net"]), "gone")
    assert (both.visible, both.value) == (True, IMAGE_TO_IMAGE)
    assert offered([IMAGE_TO_IMAGE, "net"]).default(several=True) == "net"
    assert Choice(ONLY_WAY, value=IMAGE_TO_IMAGE).preprocess("gone") == "gone"


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((512, 512), (512, 512)),
        ((100, 300), (296, 96)),
        ((256, 256), None),
        ((64, 90), None),
        ((3000, 6000), (2048, 1024)),
    ],
)
def test_a_guide_larger_than_the_checkpoint_offers_its_size(shape, size):
    guide = Guide("map", np.zeros((*shape, 3), np.uint8))
    assert guiding.guide_size(guide, 256, 2048) == size


@pytest.mark.parametrize(
    ("width", "height"), [(256, 256), (264, 256), (512, 512), (1024, 512), (2048, 2048), (128, 600)]
)
def test_a_large_scene_says_how_many_windows_it_takes(width, height):
    line = guiding.size_line(width, height, 256)
    assert (line == "") == (max(width, height) <= 256)
    if line:
        assert f"some {mean_count(height // 8, width // 8, 32)} overlapping windows" in line


def test_a_request_has_the_guides_of_the_list_and_of_the_form(studio):
    values = {"checkpoint": "sar-mini", "strategy": None, "way": None, "weight": 1, "start": 0, "end": 1}
    first = Guide("map", picture(), way="net")
    assert asked_guides(Source("none"), Listed((first,)), values, studio) == (first,)
    sketch = Source("sketch", sketch={"background": picture(seed=1), "composite": None})
    guides = asked_guides(sketch, Listed((first,)), values, studio)
    assert [guide.kind for guide in guides] == ["map", "sketch"]
    with pytest.raises(InputError, match="The guide is empty; drop an image"):
        asked_guides(Source("image"), Listed(), values, studio)


def test_guides_that_cannot_go_together_are_told_in_the_cores_words(studio):
    two = [Guide("map", picture(), way=IMAGE_TO_IMAGE), Guide("optical", picture(), way=IMAGE_TO_IMAGE)]
    assert "goes alone" in guiding.together(two, offered([IMAGE_TO_IMAGE]), studio.settings)
    assert guiding.together(two[:1], offered([IMAGE_TO_IMAGE]), studio.settings) == ""


def test_a_run_brings_its_guides_back_into_the_form(studio):
    sketch = Guide("sketch", picture(), way="net", weight=0.5, start=0.1, end=0.9)
    optical = Guide("optical", picture(seed=1), way="net")
    asked = GenerationRequest("a river", guides=(sketch, optical))
    assert guiding.in_form(asked) == 0
    values = form_of(asked)
    assert set(values) == set(FORM)
    assert [values[name] for name in ("guide", "way", "weight", "start", "end")] == ["sketch", "net", 0.5, 0.1, 0.9]
    asked = GenerationRequest("a river", guides=(optical,))
    assert guiding.in_form(asked) == 0
    assert form_of(asked)["guide"] == "run"
    assert form_of(GenerationRequest("a river"))["guide"] == "none"


def test_a_picture_tells_that_its_run_had_guides(studio):
    with_guide, _ = run(studio, Guide("sketch", picture()))
    without, _ = run(studio)
    assert had_guides(with_guide.images[0].view)
    assert not had_guides(without.images[0].view)


def test_settings_used_name_way_and_hash():
    request = GenerationRequest("a river", strength=0.4)
    guide = Guide("sketch", picture(), way=IMAGE_TO_IMAGE)
    assert f"image-to-image, strength 0.4 · sha256 {guide.sha256}" in guide_used(guide, request)
    guide = Guide("sketch", picture(), way="net", weight=0.5, end=0.8)
    assert "by net, weight 0.5, steps from 0% to 80%" in guide_used(guide, request)


@pytest.mark.parametrize("palette", palettes.PALETTES)
def test_every_palette_has_a_legend_and_a_place_in_the_list(palette):
    html = guide_views.legend(palette)
    rows = palettes.legend(palette)
    assert html.count("<tr title") == len(rows)
    assert all(row.studio_label in html for row in rows)
    assert palette in [value for _, value in guiding.PALETTES]


def test_the_legend_is_of_the_palette_that_was_found(studio, tmp_path):
    path = tmp_path / "map.png"
    rows = np.repeat(np.array(list(WORLDCOVER.values()), np.uint8), 16, axis=0)
    Image.fromarray(np.repeat(rows[:, None], 48, axis=1)).save(path)
    assert "ESA WorldCover" in legend_of("map", palettes.AUTO, str(path), studio)[1]
    assert "<details" not in legend_of("map", palettes.AUTO, None, studio)[1]
    assert legend_of("optical", "worldcover", str(path), studio)[1] == ""


def test_rows_of_guides_are_escaped_and_can_be_removed():
    guides = [Guide("map", picture((400, 300, 3)), way="<b>"), Guide("map", picture((64, 64)), way="net", end=0.5)]
    html = guide_views.rows(guides, {"net": NETWORK})
    assert "<b><" not in html.replace("<b>Class map</b><", "")
    assert 'data-text="1"' in html
    assert "weight 1 · 0 to 0.5" in html
    assert guide_views.rows([], {}) == ""


def test_a_thinned_map_keeps_its_colours():
    pixels = np.repeat(np.repeat(picture((7, 9, 3)), 130, axis=0), 130, axis=1)
    small = guide_views.thinned(pixels, 200)
    assert max(small.shape) <= 200
    assert {tuple(c) for c in small.reshape(-1, 3)} <= {tuple(c) for c in pixels.reshape(-1, 3)}


def test_scenes_are_maps_in_the_studios_colours(studio):
    scenes = load_scenes(studio.settings)
    assert len(scenes) >= 9
    assert len({scene.name for scene in scenes}) == len(scenes)
    spec = checkpoints.catalogue(studio.settings)["sar-mini"]
    colours = {entry.colour for entry in palettes.load_palette().classes}
    large = 0
    for scene in scenes:
        pixels = scene.pixels()
        found = {tuple(int(v) for v in colour) for colour in np.unique(pixels.reshape(-1, 3), axis=0)}
        assert found <= colours, scene.name
        assert len(found) >= 3, scene.name
        assert pixels.shape[:2] == (512, 512) or scene.kind == "map", "the editor's canvas is square"
        large += pixels.shape[1] >= 1024
        assert not spec.prompt_warnings(scene.prompt), scene.name
        assert scene.why.endswith(".")
    assert large
    listed = json.loads((studio.settings.assets / "guides" / "examples" / "examples.json").read_text())
    files = {path.name for path in (studio.settings.assets / "guides" / "examples").glob("*.png")}
    assert files == {row["file"] for row in listed}
    html = guide_views.scene_cards(scenes)
    assert html.count("data-scene") == len(scenes)
