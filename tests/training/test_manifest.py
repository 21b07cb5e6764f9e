import dataclasses
import json

import pytest

from sar_gen.amplitude import S1_VV
from sar_gen.errors import InputError
from sar_gen.patches import PixelMeaning
from sar_gen.training import manifest
from sar_gen.training.manifest import PatchRow, meaning_from_json, meaning_to_json, read_manifest, write_manifest

DB = meaning_to_json(PixelMeaning("db", S1_VV, (-25.0, 0.0)))
ROWS = [
    PatchRow("a-1", "sar/a 1.jpg", 256, 256, "train", "north", ("a SAR image of forest", "a SAR image: été\u2028"),
             "forest", "VV", meaning=DB, source="sar/a 1.jpg", optical="optical/a 1.jpg"),
    PatchRow("b", "b.png", 64, 128, "train", "north", source="scene.tif", row=64, column=8),
    PatchRow("c", "c.png", 64, 128, "reference", "south", ("an optical image",), modality="optical"),
]  # fmt: skip


@pytest.mark.parametrize("name", ["manifest.jsonl", "manifest.parquet"])
def test_what_is_written_is_read_again(tmp_path, name):
    write_manifest(tmp_path / name, ROWS)
    assert read_manifest(tmp_path / name) == ROWS
    assert read_manifest(tmp_path) == ROWS  # by its folder
    assert ROWS[0].window == (0, 0, 256, 256)  # file and source are one
    assert ROWS[1].window is None


def test_a_meaning_is_kept_exactly():
    assert meaning_from_json(DB) == PixelMeaning("db", S1_VV, (-25.0, 0.0))
    assert meaning_from_json(None) == PixelMeaning("studio", None)
    with pytest.raises(InputError, match="needs a scale"):
        meaning_to_json(PixelMeaning("amplitude", "pool"))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"colour": 1}, "line 2 has the unknown field 'colour'"),
        ({"group": None}, "has None as group, of the wrong type"),
        ({"split": "test"}, "has the unknown split 'test'"),
        ({"modality": "lidar"}, "has the unknown modality 'lidar'"),
        ({"split": "validation"}, "has the group 'north' in the splits 'train' and 'validation'"),
        ({"key": "a-1"}, "has the key 'a-1' twice"),
        ({"key": "a.b"}, "has the key 'a.b'"),
        ({"file": "../b.png"}, "outside the manifest's folder"),
        ({"file": "/etc/b.png"}, "outside the manifest's folder"),
        ({"optical": "x/../../b.png"}, "outside the manifest's folder"),
        ({"height": 0}, "is 128 x 0 pixels"),
        ({"height": True}, "wrong type"),
        ({"captions": [" "]}, "has a caption that is no text or empty"),
        ({"meaning": {"encoding": "db"}}, "has no scale"),
        ({"meaning": {"encoding": "sound", "scale": S1_VV.to_json()}}, "'sound' is unknown"),
        ({"meaning": {"encoding": "db", "nodata": 0}}, "is not usable"),
    ],
)
def test_a_row_that_cannot_be_used_is_refused_in_one_sentence(tmp_path, change, sentence):
    lines = [row.to_json() for row in ROWS]
    lines[1] |= change
    (tmp_path / "manifest.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    with pytest.raises(InputError) as caught:
        read_manifest(tmp_path / "manifest.jsonl")
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_field_and_a_damaged_line_are_named(tmp_path):
    path = tmp_path / "manifest.jsonl"
    path.write_text('{"key": "a", "file": "a.png"}\n')
    with pytest.raises(InputError, match="line 1 lacks the field 'height'"):
        read_manifest(path)
    path.write_text(json.dumps(ROWS[0].to_json()) + '\n{"key": "a"')
    with pytest.raises(InputError, match="line 2 is not JSON"):
        read_manifest(path)
    path.write_text("\n")
    with pytest.raises(InputError, match="has no rows"):
        read_manifest(path)
    with pytest.raises(InputError, match="There is no manifest"):
        read_manifest(tmp_path / "other.jsonl")


def test_what_is_not_allowed_is_not_written_either(tmp_path):
    rows = [ROWS[0], dataclasses.replace(ROWS[1], split="validation")]
    with pytest.raises(InputError, match="would share ground"):
        write_manifest(tmp_path / "manifest.jsonl", rows)
    with pytest.raises(InputError, match=r"end it in \.jsonl or \.parquet"):
        write_manifest(tmp_path / "manifest.csv", ROWS)
    assert not list(tmp_path.iterdir())


def test_parquet_without_pyarrow_and_damaged_is_one_sentence(tmp_path, monkeypatch):
    path = tmp_path / "manifest.parquet"
    path.write_bytes(b"PAR1 not really")
    with pytest.raises(InputError, match="no readable Parquet file"):
        read_manifest(path)

    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(manifest.importlib, "import_module", missing)
    with pytest.raises(InputError, match="pip install pyarrow"):
        write_manifest(path, ROWS)
