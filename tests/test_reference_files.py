import dataclasses
import io
import json
import zipfile

import numpy as np
import pytest

from sar_gen.errors import InputError, SarGenError
from sar_gen.patches import PixelMeaning
from sar_gen.reference_files import MAX_FACTS, pack_statistics, unpack_set
from sar_gen.references import (
    add_reference,
    check_comparable,
    export_reference,
    import_reference,
    list_references,
    load_reference,
    remove_reference,
)
from sar_gen.settings import Settings


@pytest.fixture
def settings(tmp_path):
    return Settings(home=tmp_path / "home", runs=tmp_path / "runs")


@pytest.fixture
def elsewhere(tmp_path):
    return Settings(home=tmp_path / "elsewhere", runs=tmp_path / "runs")


@pytest.fixture
def own(tmp_path, settings):
    """A set of the user's with patches."""
    folder = tmp_path / "patches"
    folder.mkdir()
    for seed in range(4):
        generator = np.random.default_rng(seed)
        np.save(folder / f"{seed}.npy", np.sqrt(generator.gamma(4, 0.02, (40, 48))).astype(np.float32))
    return add_reference(
        folder, "Own", PixelMeaning("amplitude"), settings, polarisation="HH", credit="Me", licence="CC0", note="Mind."
    )


def test_a_set_is_shared_as_one_file(own, settings, elsewhere, tmp_path):
    file = tmp_path / "own.sarref"
    digest = export_reference("own", file, settings, with_patches=True)
    assert export_reference("own", tmp_path / "again.sarref", settings, with_patches=True) == digest
    info = import_reference(file, elsewhere)
    assert info == list_references(elsewhere)[-1]
    assert (info.name, info.title, info.count, info.polarisation, info.has_patches) == ("own", "Own", 4, "HH", True)
    file.unlink()  # the studio keeps a copy
    there, here = load_reference("own", elsewhere), load_reference("own", settings)
    for field in ("name", "title", "encoding", "polarisation", "sensor", "scale", "credit", "licence", "note"):
        assert getattr(there, field) == getattr(here, field)
    assert there.statistics.groups == here.statistics.groups
    for name, array in here.statistics.arrays.items():
        assert array.tobytes() == there.statistics.arrays[name].tobytes()
    for one, other in zip(there.patches, here.patches, strict=True):
        assert (one.amplitude == other.amplitude).all()
        assert (one.name, one.scale, one.polarisation) == (other.name, other.scale, "HH")
    assert check_comparable(there, "linear", "HH") == []
    with pytest.raises(InputError, match="already"):
        import_reference(tmp_path / "again.sarref", elsewhere)
    renamed = import_reference(tmp_path / "again.sarref", elsewhere, name="My Copy")
    assert (renamed.name, renamed.title) == ("my-copy", "My Copy")
    export_reference("my-copy", tmp_path / "third.sarref", elsewhere, with_patches=True)
    remove_reference("my-copy", elsewhere)
    assert [path.name for path in (elsewhere.home / "references").glob("*.sarref")] == ["own.sarref"]


def test_shipped_statistics_are_shared_with_their_splits(settings, elsewhere, tmp_path):
    file = tmp_path / "forest.sarref"
    with pytest.raises(InputError, match="no patches to share"):
        export_reference("s1-forest", file, settings, with_patches=True)
    export_reference("s1-forest", file, settings)
    info = import_reference(file, elsewhere, name="theirs")
    assert not info.has_patches
    here, there = load_reference("s1-forest", settings), load_reference("theirs", elsewhere)
    assert (there.splits, there.scale, there.credit) == (here.splits, here.scale, here.credit)


def rewritten(file, out, change=None, extra=None, facts=None):
    """Write a changed copy, with hashes made right again, and return its path."""
    import hashlib

    with zipfile.ZipFile(file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members.update(change or {})
    data = json.loads(members["set.json"])
    data["sha256"] = {name: hashlib.sha256(m).hexdigest() for name, m in members.items() if name != "set.json"}
    data.update(facts or {})
    members["set.json"] = json.dumps(data).encode()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, member in {**members, **(extra or {})}.items():
            archive.writestr(name, member)
    return out


def npy(array, allow_pickle=False):
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=allow_pickle)
    return buffer.getvalue()


def test_nothing_in_a_file_is_trusted(own, settings, elsewhere, tmp_path):
    file = tmp_path / "own.sarref"
    export_reference("own", file, settings, with_patches=True)
    good = load_reference("own", settings).statistics
    bad = tmp_path / "bad.sarref"

    def refused(match, **how):
        with pytest.raises(InputError, match=match) as told:
            import_reference(rewritten(file, bad, **how), elsewhere)
        assert "\n" not in str(told.value)

    refused("no reference set", extra={"../../evil.npy": b"x"})
    refused("no reference set", extra={"patches/../../evil.npy": b"x"})
    refused("no reference set", extra={"/etc/evil": b"x"})
    refused("newer studio", facts={"version": 99})
    refused("damaged", facts={"format": None, "version": "x"} | {"sha256": 3, "format": "sar_gen reference set"})
    refused("has changed since", facts={"sha256": {}})
    refused("does not say what", facts={"encoding": "magic"})
    refused("does not say what", facts={"credit": 3})
    refused("does not say what", facts={"scale": "big"})
    refused("scale is not usable", facts={"scale": {"mean": "x"}})
    refused("describes 3 patches", facts={"patches": [{"name": "a", "group": "", "scale": None}] * 3})
    refused("damaged", facts={"patches": [{"name": "a", "group": "", "scale": None}] * 5})
    refused("more than", facts={"note": "x" * (MAX_FACTS + 1)})
    refused("not amplitude", change={"patches/0000.npy": npy(np.full((40, 48), 2, dtype=np.float32))})
    refused("type float64", change={"patches/0000.npy": npy(np.zeros((40, 48)))})
    refused("damaged", change={"patches/0000.npy": npy(np.array([{}]), allow_pickle=True)})
    huge = npy(np.zeros((4, 4), dtype=np.float32)).replace(b"(4, 4)", b"(9999999, 9999999)")
    refused("damaged", change={"patches/0000.npy": huge})
    refused("damaged", change={"statistics.npz": b"PK"})
    refused("damaged", change={"statistics.npz": pack_statistics(good)[:-300]})
    wrong = dataclasses.replace(good, enl=good.enl.astype(np.float32))
    refused("enl of type float32", change={"statistics.npz": pack_statistics(wrong)})
    empty = dataclasses.replace(good, histograms=np.zeros_like(good.histograms))
    refused("without pixels", change={"statistics.npz": pack_statistics(empty)})
    refused("splits", change={"statistics.npz": pack_statistics(good, ["train"])})
    buffer = io.BytesIO()
    np.savez(buffer, histograms=np.array([{}], dtype=object))
    refused("damaged", change={"statistics.npz": buffer.getvalue()})

    whole = file.read_bytes()
    for data in (b"", b"text", whole[: len(whole) // 2], whole[:100] + bytes(200) + whole[300:]):
        bad.write_bytes(data)
        with pytest.raises(InputError, match=r"bad\.sarref is damaged"):
            import_reference(bad, elsewhere)
    with pytest.raises(InputError, match="There is no file"):
        import_reference(tmp_path / "none.sarref", elsewhere)
    with pytest.raises(InputError):
        import_reference(tmp_path, elsewhere)
    assert not (elsewhere.home / "references").exists()
    assert not (tmp_path / "evil.npy").exists()


def test_an_imported_file_that_is_gone_or_changed(own, settings, elsewhere, tmp_path):
    file = tmp_path / "own.sarref"
    export_reference("own", file, settings)
    import_reference(file, elsewhere)
    kept = elsewhere.home / "references" / "own.sarref"
    kept.write_bytes(b"damaged")
    with pytest.raises(InputError, match="damaged"):
        load_reference("own", elsewhere)
    kept.unlink()
    with pytest.raises(InputError, match="import it again"):
        load_reference("own", elsewhere)
    remove_reference("own", elsewhere)
    with pytest.raises(SarGenError):
        export_reference("own", tmp_path / "patches" / "0.npy" / "x.sarref", settings)
    assert len(unpack_set(file).statistics) == 4
