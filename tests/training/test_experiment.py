import dataclasses
import json

import numpy as np
import pytest

from sar_gen import checkpoints
from sar_gen.errors import InputError
from sar_gen.settings import Settings
from sar_gen.training.config import VaeConfig, check_config, read_config
from sar_gen.training.experiment import (
    Experiment,
    ExperimentConfig,
    delta_of,
    listing,
    load_real,
    save_real,
    seed_of,
    slug_of,
    split_row,
)
from tests import tiny
from tests.training.ground import WORDS, bag_of_words, write_ground

ROWS = ["base", "hybrid", "hybrid, 8-bit delta", "unet-lora without river", "token+vae-decoder"]
TABLE = {
    "rows": ROWS,
    "foundation": {
        "size": "tiny",
        "resolution": 64,
        "batch": 4,
        "steps": 2,
        "text": {"steps": 2},
        "vae": {"steps": 2, "batch": 4, "crop": 64, "optical_share": 0.5, "gan": 0.0},
        "denoiser": {"steps": 4},
    },
    "tuning": {
        "batch": 2,
        "denoiser": {"steps": 4, "learning_rate": 1e-4},
        "changes": {"unet-lora": {"learning_rate": 1e-3}},
        "vae": {"steps": 2, "batch": 2, "crop": 64, "gan": 0.0},
    },
    "evaluation": {"patches": 2, "steps": 1, "sarclip": False},
    "run": {"save_every": 2},
    "minutes": {"text": 1.5, "training": 1.0},
}


def configured(folder, manifest, **changes):
    places = {"data": str(manifest), "work": str(folder / "work"), "output": str(folder / "output")}
    return check_config({**TABLE, **places, **changes}, ExperimentConfig, "test")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return write_ground(tmp_path_factory.mktemp("ground") / "data")


def experiment(config, settings, said=None):
    made = Experiment(config, settings, (said if said is not None else []).append)
    made.text_options = {"teacher": bag_of_words, "words": WORDS}
    return made


@pytest.fixture(scope="module")
def finished(tmp_path_factory, manifest):
    """A whole experiment, done in pieces."""
    root = tmp_path_factory.mktemp("experiment")
    config = configured(root, manifest)
    settings = Settings(home=root / "home", device="cpu")
    said = []
    pieces = []
    for asked in (3, 14, 30):  # stopped in the VAE or after it, and later in a row
        count = iter(range(asked))
        pieces.append(experiment(config, settings, said).run(stop=lambda c=count: next(c, None) is None))
        pieces.append(listing(experiment(config, settings).stages()))
        pieces.append((root / "output" / "table.md").read_text())
    done = experiment(config, settings, said).run()
    return {"root": root, "config": config, "settings": settings, "said": said, "pieces": pieces, "done": done}


def test_rows_and_their_ids():
    assert split_row("hybrid without river") == ("hybrid", "river")
    assert split_row("unet-full+te-lora") == ("unet-full+te-lora", None)
    assert split_row("hybrid without river, 4-bit delta") == ("hybrid", "river")
    assert delta_of("hybrid without river, 4-bit delta") == ("hybrid without river", 4)
    assert delta_of("hybrid") is None
    assert split_row("hybrid without river, seed 3, 4-bit delta") == ("hybrid", "river")
    assert seed_of("hybrid without river, seed 3, 4-bit delta") == ("hybrid without river, 4-bit delta", 3)
    assert delta_of("hybrid without river, seed 3, 4-bit delta") == ("hybrid without river, seed 3", 4)
    assert seed_of("hybrid, seed 12") == ("hybrid", 12)
    assert seed_of("hybrid without river") == ("hybrid without river", None)
    assert slug_of("unet-full+te-lora without river") == "unet-full-te-lora-without-river"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rows": []}, "rows is empty"),
        ({"rows": ["hybrid", "hybrid"]}, "a row is there twice"),
        ({"rows": ["hybrids"]}, "strategy 'hybrids' is unknown"),
        ({"rows": ["base without river"]}, "no SAR at all"),
        ({"rows": ["foundation"]}, "not trained on a base"),
        ({"rows": ["hybrid, 8-bit delta", "hybrid"]}, "needs the row 'hybrid' before it"),
        ({"rows": ["token", "token, 4-bit delta"]}, "a part that is trained whole"),
        ({"rows": ["base", "base, seed 1"]}, "not trained here"),
        ({"rows": ["token", "hybrid, seed 1"]}, "another training of a row 'hybrid', which is not trained here"),
        ({"rows": ["hybrid", "hybrid, seed 0"]}, "has the seed of the row 'hybrid': run.seed is 0"),
        ({"tuning": {"changes": {"unet-lora": {"rate": 1}}}}, "tuning.changes.unet-lora has the unknown key 'rate'"),
        ({"row": ["hybrid"]}, "unknown key 'row'"),
    ],
)
def test_settings_are_checked(tmp_path, manifest, changes, words):
    with pytest.raises(InputError, match=words):
        configured(tmp_path, manifest, **changes)


def test_changes_are_of_one_strategy(tmp_path, manifest):
    tuning = configured(tmp_path, manifest).tuning
    assert tuning.denoiser_of("unet-lora").learning_rate == 1e-3
    assert tuning.denoiser_of("hybrid").learning_rate == 1e-4
    assert tuning.denoiser_of("unet-lora").steps == 4


def test_another_training_has_its_own_seed_and_place(finished):
    config, settings = finished["config"], finished["settings"]
    more = dataclasses.replace(config, rows=(*config.rows, "hybrid, seed 1"))
    made = experiment(more, settings)
    first, again = (made.training_config(row) for row in ("hybrid", "hybrid, seed 1"))
    assert (first.run.seed, again.run.seed) == (0, 1)
    assert again.output.name == "hybrid-seed-1"
    assert again.run.work != first.run.work
    same = dataclasses.replace(again.run, seed=0, work=first.run.work)
    assert dataclasses.replace(again, output=first.output, title=first.title, run=same) == first
    status = {stage.name: stage.done for stage in made.stages()}
    assert status.pop("hybrid, seed 1: training") is False
    assert status.pop("hybrid, seed 1: evaluation") is False
    assert all(status.values()), "what was done stays done"


def test_what_was_done_is_known_by_what_is_not_a_default():
    from sar_gen.training.experiment import changed
    from sar_gen.training.foundation import FoundationConfig

    assert changed(VaeConfig()) == {}
    assert changed(VaeConfig(steps=7, gan=0.0)) == {"steps": 7, "gan": 0.0}
    # against the defaults of the value's own class, where the field has others
    assert changed(FoundationConfig(vae=VaeConfig(steps=7))) == {"vae": {"steps": 7}}


def test_shipped_settings_are_valid(tmp_path):
    from sar_gen.training import experiment as module

    folder = module.CONFIGS
    for name in ("experiment-embedded.toml", "experiment-small.toml", "experiment-toy.toml"):
        config = read_config(folder / name, ExperimentConfig)
        names = {split_row(row)[0] for row in config.rows}
        assert {"base", "token", "unet-lora", "unet-full", "unet-full+te-full", "unet-full+te-lora",
                "unet-lora+te-lora+token", "hybrid"} <= names  # fmt: skip
        assert any("vae-decoder-lora" in one for one in names)
        assert any("vae-full" in one for one in names)
        unseen = {split_row(row) for row in config.rows if split_row(row)[1]}
        assert unseen == {(s, t) for s in ("unet-lora", "unet-full", "hybrid") for t in ("river", "residential")}


def test_an_experiment_goes_on_from_where_it_stopped(finished):
    assert finished["pieces"][0::3] == [False] * 3
    assert finished["done"] is True
    for rows in finished["pieces"][1::3]:
        status = [row[1] for row in rows[1:]]
        assert status == sorted(status, key=["done", "begun", "next", "not run"].index)
    first, last = finished["pieces"][2], (finished["root"] / "output" / "table.md").read_text()
    assert "Not run yet" in first
    assert "| `hybrid` | not run |" in first
    assert "Not run yet" not in last
    names = [row[0] for row in listing(experiment(finished["config"], finished["settings"]).stages())]
    assert names[1:8] == [
        "text", "vae", "base", "real patches", "base: evaluation", "hybrid: training", "hybrid: evaluation"
    ]  # fmt: skip


def test_what_comes_out(finished):
    output = finished["root"] / "output"
    report = json.loads((output / "table.json").read_text())
    rows = {row["row"]: row for row in report["rows"]}
    assert [row["status"] for row in report["rows"]] == ["done"] * 5
    assert set(rows["base"]["evaluation"]["classes"]) == {"forest", "river"}
    assert set(rows["unet-lora without river"]["evaluation"]["classes"]) == {"river"}
    assert rows["base"]["training"] is None
    hybrid = rows["hybrid"]["training"]
    assert set(hybrid["trainable"]) == {"unet", "text_encoder", "text_encoder_2", "token"}
    assert hybrid["steps"] == 4
    assert hybrid["peak_memory"] > 1e8
    assert hybrid["seconds"] > 0
    assert set(rows["token+vae-decoder"]["training"]["trainable"]) == {"vae", "token"}
    assert rows["unet-lora without river"]["training"]["trainable"].keys() == {"unet"}
    assert (output / "strategies.png").read_bytes()[:4] == b"\x89PNG"
    assert (output / "unseen.png").read_bytes()[:4] == b"\x89PNG"
    assert len(report["findings"]) == 5
    delta = rows["hybrid, 8-bit delta"]
    assert [part["part"] for part in delta["training"]["parts"]] == ["unet"]
    assert delta["training"]["bytes"] < rows["hybrid"]["training"]["bytes"]
    near, whole = (rows[name]["evaluation"]["classes"]["forest"] for name in ("hybrid, 8-bit delta", "hybrid"))
    assert near["wasserstein1"]["value"] == pytest.approx(whole["wasserstein1"]["value"], abs=2e-3)
    assert report["foundation"]["vae"]["reconstruction"]


def test_strategies_are_in_a_catalogue_of_their_own(finished):
    settings = dataclasses.replace(finished["settings"], checkpoints=finished["root"] / "work" / "checkpoints")
    found, problems = checkpoints.scan(settings)
    assert not problems
    assert {"base", "hybrid", "hybrid-8-bit-delta", "unet-lora-without-river", "token-vae-decoder"} <= set(found)
    assert found["hybrid"].token == "<SAR>"
    assert "without river" in found["unet-lora-without-river"].training_data
    made = json.loads((finished["root"] / "work" / "patches" / "hybrid" / "forest" / "made.json").read_text())
    assert made["prompts"] == ["a <SAR> image of forest"]


def test_other_settings_do_not_go_on(finished, manifest):
    config = dataclasses.replace(finished["config"], tuning=dataclasses.replace(finished["config"].tuning, batch=1))
    with pytest.raises(InputError, match=r"hybrid-training\.json was done with other settings"):
        experiment(config, finished["settings"]).stages()
    # more patches are only evaluated anew
    more = dataclasses.replace(
        finished["config"], evaluation=dataclasses.replace(finished["config"].evaluation, patches=3)
    )
    waiting = [stage.kind for stage in experiment(more, finished["settings"]).stages() if not stage.done]
    assert set(waiting) == {"evaluation"}


def test_only_some_rows(finished):
    made = experiment(finished["config"], finished["settings"])
    assert [stage.row for stage in made.stages(["hybrid"])][-2:] == ["hybrid", "hybrid"]
    assert {stage.row for stage in made.stages(["hybrid"])} == {"", "hybrid"}
    with pytest.raises(InputError, match="no row 'token'"):
        made.stages(["token"])


def test_estimates(tmp_path, manifest):
    rows = listing(experiment(configured(tmp_path, manifest), Settings(home=tmp_path, device="cpu")).stages())
    assert rows[1] == ("text", "next", "1.5 (estimated)")
    assert rows[2] == ("vae", "not run", "-")
    assert ("hybrid: training", "not run", "1.0 (estimated)") in rows


def test_without_time_nothing_is_begun(tmp_path, manifest):
    said = []
    made = experiment(configured(tmp_path, manifest), Settings(home=tmp_path, device="cpu"), said)
    assert made.run(minutes=0.01) is False
    assert said == ["13 stages are left, the next is text; the same command goes on."]
    assert "not run" in (tmp_path / "output" / "table.md").read_text()


def test_real_patches_are_kept_exactly(finished):
    real = load_real(finished["root"] / "work" / "real")
    save_real(finished["root"] / "again", real)
    again = load_real(finished["root"] / "again")
    for name, one in real.classes.items():
        assert np.array_equal(one.train.histograms, again.classes[name].train.histograms)
        assert one.train.groups == again.classes[name].train.groups
        assert all(np.array_equal(a, b) for a, b in zip(one.patches, again.classes[name].patches, strict=True))
    assert real.names == again.names
    assert all(np.array_equal(a, b) for a, b in zip(real.training, again.training, strict=True))


def test_a_base_of_the_catalogue_may_be_used(tmp_path, manifest):
    tiny.checkpoint(tmp_path / "checkpoints" / "known")
    settings = Settings(home=tmp_path / "home", checkpoints=tmp_path / "checkpoints", device="cpu")
    config = configured(tmp_path, manifest, base="known", rows=["base", "token"])
    made = experiment(config, settings)
    assert [stage.name for stage in made.stages()] == [
        "real patches", "base: evaluation", "token: training", "token: evaluation"
    ]  # fmt: skip
    assert made.run() is True
    report = json.loads((tmp_path / "output" / "table.json").read_text())
    assert report["foundation"] is None
    assert [row["status"] for row in report["rows"]] == ["done", "done"]
    with pytest.raises(InputError, match="unknown"):
        experiment(configured(tmp_path, manifest, base="other"), settings)


def test_the_command_lists_and_says_what_is_wrong(finished, monkeypatch, run, tmp_path):
    root = finished["root"]
    file = root / "experiment.toml"
    import tomlkit

    file.write_text(tomlkit.dumps({**TABLE, "data": str(finished["config"].data), "work": "work", "output": "output"}))
    monkeypatch.setenv("SAR_GEN_DEVICE", "cpu")

    status, out, _ = run("experiment", file, "--list")
    assert status == 0
    assert out.splitlines()[1].split()[:2] == ["text", "done"]
    status, out, _ = run("experiment", file, "--json")
    assert status == 0
    assert {row["status"] for row in json.loads(out)["rows"]} == {"done"}
    status, _, err = run("experiment", file, "--list", "--only", "token")
    assert (status, err.strip()) == (2, f"There is no row 'token'; the rows are {', '.join(ROWS)}.")
    status, _, err = run("experiment", file, "--list", "--data", tmp_path)
    assert status == 2
    assert str(tmp_path) in err
