import io
import math
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.stats
from PIL import Image

from sar_gen.training import experiment_table as table
from sar_gen.training.evaluation import TEXTURES


def distance(value, floor=0.1, spread=0.001):
    ratio = value / floor
    return {"value": value, "train": floor, "splits": None, "spread": spread, "floor": floor, "ratio": ratio,
            "holds": ratio <= 1.2}  # fmt: skip


def measured(value, spread=0.001, agreement=0.5):
    texture = {"generated": 8.0, "train": 9.0, "reference": 8.5, "interval": [7.65, 9.9], "holds": True}
    return {
        "wasserstein1": distance(value, spread=spread),
        "kl_divergence": distance(2 * value, spread=spread),
        "texture": {name: {**texture, "distance": distance(value, spread=spread)} for name in TEXTURES},
        "agreement": {"value": agreement, "floor": 0.5, "ratio": agreement / 0.5, "spread": 0.01, "within": True},
        "copies": {"highest": 0.4, "median": 0.2, "real_highest": 0.5, "above": 0, "nearest": "a", "patch": 0},
        "holds": value <= 0.12,
    }


def row(name, values, without=None, **options):
    classes = {terrain: measured(value, **options) for terrain, value in values.items()}
    text = name if without is None else f"{name} without {without}"
    return {
        "row": text, "strategy": name, "title": name, "without": without, "delta": None, "again": None,
        "status": "done" if values else "not run",
        "training": {"trainable": {"unet": 1000}, "peak_memory": 10**9, "seconds": 60.0, "bytes": 5_000_000},
        "evaluation": {"classes": classes} if values else None,
    }  # fmt: skip


def verdicts(rows):
    return {f["finding"]: [p["verdict"] for p in f["parts"]] for f in table.findings(rows)}


def test_scores_are_shares_of_the_floor():
    one = row("hybrid", {"forest": 0.05, "river": 0.2})
    assert table.scores(one, "wasserstein1") == {
        "forest": pytest.approx((0.5, 0.01)), "river": pytest.approx((2.0, 0.01))
    }  # fmt: skip
    assert table.mean_score(one, "wasserstein1") == pytest.approx(1.25)
    assert table.mean_score(one, "texture") == pytest.approx(1.25)
    assert table.mean_score(row("hybrid", {}), "wasserstein1") is None


def test_rows_are_compared_on_the_terrains_that_both_have():
    one = row("unet-full", {"forest": 0.05, "river": 0.2})
    other = row("unet-lora", {"forest": 0.08, "gorge": 0.01})
    found = table.compare_rows(one, other, "wasserstein1")
    assert (found.first, found.second) == pytest.approx((0.5, 0.8))
    assert found.deviation == pytest.approx(math.hypot(0.01, 0.01))
    assert (found.terrains, found.nearer) == (1, 1)
    assert found.verdict == "yes"
    assert table.compare_rows(other, one, "wasserstein1").verdict == "no"
    near = row("unet-lora", {"forest": 0.051})
    assert table.compare_rows(one, near, "wasserstein1").verdict == "cannot be told"
    assert table.compare_rows(one, row("token", {"gorge": 1.0}), "wasserstein1") is None


def test_findings_follow_the_numbers():
    rows = [
        row("base", {"forest": 0.5, "river": 0.5}),
        row("hybrid", {"forest": 0.05, "river": 0.05}, agreement=0.4),
        row("unet-full", {"forest": 0.06, "river": 0.06}),
        row("unet-lora", {"forest": 0.2, "river": 0.2}),
        row("unet-full+te-full", {"forest": 0.06, "river": 0.06}, agreement=0.4),
        row("hybrid+vae-decoder", {"forest": 0.01, "river": 0.01}),
        row("hybrid", {"river": 0.11}, without="river"),
        row("unet-lora", {"river": 0.3}, without="river"),
        row("unet-full", {}, without="river"),
    ]
    best, whole, prompts, unseen = verdicts(rows).values()
    assert best == ["yes", "yes", "yes", "cannot be told"]
    assert whole == ["yes", "yes", "yes"]
    assert prompts == ["yes"]
    # the hybrid within 1.2 floors, the LoRA nearer than the base but beyond them
    assert unseen == ["yes", "yes", "no", "no", "not run", "not run"]
    known = {one["row"]: one for one in (row("a", {"forest": 0.1}, agreement=0.54), row("b", {"forest": 0.1}))}
    known["a"]["evaluation"]["classes"]["forest"]["agreement"]["spread"] = 0.05
    assert table._suffices("a", "b", known)["verdict"] == "cannot be told"  # neither equal nor surely worse
    worse = [row("hybrid", {"forest": 0.2}, agreement=0.6), row("unet-lora", {"forest": 0.1}), rows[4]]
    best, whole, prompts = verdicts(worse).values()
    assert best == ["no", "no", "no", "no"]
    assert whole == ["not run"] * 3
    assert prompts == ["no"]


def test_a_delta_is_held_against_its_own_row():
    rows = [row("hybrid", {"forest": 0.1}), row("hybrid", {"forest": 0.1005})]
    rows[1] |= {"row": "hybrid, 4-bit delta", "delta": ("hybrid", 4)}
    found = table.findings(rows)[3]
    assert found["finding"] == "A delta of 4 bits measures like the weights that it is made of"
    assert [part["verdict"] for part in found["parts"]] == ["yes"] * 4
    rows[1]["evaluation"] = row("hybrid", {"forest": 0.2})["evaluation"]
    assert [part["verdict"] for part in table.findings(rows)[3]["parts"]][:3] == ["no"] * 3
    # and it is no rival of the hybrid
    assert table.findings(rows)[0]["parts"][0]["verdict"] == "not run"


def again(name, seed, values, **options):
    return row(name, values, **options) | {"row": f"{name}, seed {seed}", "again": (name, seed)}


@pytest.mark.parametrize("second", [(0.14, 0.15, 0.16), (0.105, 0.13, 0.12), (0.08, 0.11)])
def test_several_trainings_are_compared_by_welchs_test(second):
    first = (0.09, 0.11, 0.10)
    groups = [
        [row(name, {"forest": values[0], "river": 0.1}),
         *(again(name, seed, {"forest": value, "river": 0.1}) for seed, value in enumerate(values[1:], 1))]
        for name, values in (("hybrid", first), ("unet-full", second))
    ]  # fmt: skip
    found = table.compare_trainings(*groups, "wasserstein1")
    # both terrains count half, their floor is 0.1
    a, b = (np.asarray(values) / 0.1 / 2 + 0.5 for values in (first, second))
    known = scipy.stats.ttest_ind(a, b, equal_var=False)
    low, high = known.confidence_interval(0.95)
    assert (found.first, found.second) == pytest.approx((a.mean(), b.mean()))
    assert found.sure * found.deviation == pytest.approx((high - low) / 2)
    assert (found.verdict == "cannot be told") == (known.pvalue > 0.05)
    assert found.trainings == (3, len(second))
    assert (found.terrains, found.nearer) == (2, int(a.mean() < b.mean()))
    # the finding is by all of them, whatever the first two say alone
    rows = [one for group in groups for one in group]
    part = table.findings(rows)[0]["parts"][0]
    assert part["verdict"] == found.verdict
    assert f"3 and {len(second)} trainings" in part["words"]
    text = table.markdown(report(rows))
    assert f"| `hybrid` | 3 | {a.mean():.3g} ± {a.std(ddof=1):.2g} |" in text
    assert f"| `unet-full` | {len(second)} | {b.mean():.3g} ± {b.std(ddof=1):.2g} |" in text


def test_one_training_is_not_compared_with_several_by_their_spread():
    rows = [row("hybrid", {"forest": 0.1}), again("hybrid", 1, {"forest": 0.2}), row("unet-full", {"forest": 0.15})]
    part = table.findings(rows)[0]["parts"][0]
    assert part["verdict"] == "yes"  # of the first training alone, as the words say
    assert "trainings" not in part["words"]
    with pytest.raises(ValueError, match="no spread"):
        table.compare_trainings(rows[:2], rows[2:], "wasserstein1")
    assert "| `unet-full` | 1 |" not in table.markdown(report(rows))
    none = table.markdown(report(rows[::2]))
    assert "Trained several times" not in none


def test_another_training_is_not_drawn_nor_shown_beside_an_unseen_terrain(tmp_path):
    rows = [
        row("base", {"river": 0.5}), row("hybrid", {"river": 0.1}), again("hybrid", 1, {"river": 0.1}),
        row("hybrid", {"river": 0.2}, without="river"),
    ]  # fmt: skip
    text = table.markdown(report(rows))
    assert "| river | `hybrid` |" in text
    assert "| river | `hybrid, seed 1` |" not in text
    drawn = []
    real = SimpleNamespace(classes={"river": SimpleNamespace(patches=[np.ones((8, 8), np.float32)])})
    assert set(table.sheets(report(rows), real, lambda name: drawn.append(name) or tmp_path)) == {
        "strategies.png",
        "unseen.png",
    }
    assert set(drawn) == {"base", "hybrid", "hybrid without river"}


def report(rows):
    return {
        "title": "A comparison", "size": "toy", "base": None, "resolution": 64, "encoding": "root", "vae_left_out": [],
        "polarisation": "VV", "device": "CPU", "precision": "no", "evaluation": {"patches": 4},
        "foundation": {"text": {"seconds": 60.0}, "vae": None, "base": None},
        "real": {"classes": {"forest": [6, 3], "river": [6, 3]}}, "rows": rows, "credit": ["Somebody."],
        "findings": table.findings(rows),
    }  # fmt: skip


def test_markdown_says_what_was_not_run_and_what_holds():
    rows = [
        row("base", {"forest": 0.5, "river": 0.11}),
        row("hybrid", {}),
        row("hybrid", {"river": 0.3}, without="river"),
    ]
    text = table.markdown(report(rows))
    assert "Not run yet, or not to the end: hybrid." in text
    assert "**Toy size" in text
    assert "| `base` | 0.500 (5.00) | **0.110 (1.10)** |" in text
    assert "| `hybrid` | not run | not run |" in text
    assert "| river | `hybrid without river` | 0.300 (3.00) |" in text
    assert "trained on SAR of all terrains, river too" in text
    assert "| real, train | 9 | 9 |" in text
    assert "| `base` | done | 0 | 1.00 GB | 1.0 | 5.0 MB |" in text
    rows[0] |= {"row": "token", "strategy": "token"}
    assert "| `token` | done | 1 k | 1.00 GB |" in table.markdown(report(rows))
    tables = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert len(tables) == 11
    for lines in tables:  # as many cells in each line
        assert len({line.count("|") for line in lines}) == 1


def test_a_sheet_is_as_bright_as_its_patches():
    dark, bright = np.full((64, 64), 0.1, np.float32), np.full((64, 64), 0.9, np.float32)
    data = table.sheet(
        [("real", {"forest": [dark, dark], "river": [bright]}), ("hybrid", {"forest": [bright]})], ["forest", "river"]
    )
    picture = np.asarray(Image.open(io.BytesIO(data)).convert("L"))
    shares = [float((np.abs(picture.astype(int) - round(255 * level)) <= 1).mean()) for level in (0.1, 0.9)]
    assert min(shares) > 0.05
