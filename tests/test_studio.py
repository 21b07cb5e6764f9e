"""The studio on a tiny pipeline: disk first, reports, stopping by token, failures that lose nothing."""

import dataclasses
import shutil
import subprocess

import numpy as np
import pytest

from sar_gen.errors import InputError, SarGenError
from sar_gen.references import load_reference
from sar_gen.request import Done, Failed, GenerationRequest, Judged, PatchReady, Queued, Saved, Selected, Step, Stopped
from sar_gen.runs import RunStore
from sar_gen.settings import ROOT, Settings
from sar_gen.studio import Studio, load_amplitude
from tests import tiny

REQUEST = GenerationRequest("a river", checkpoint="base", seed=5, steps=2, count=2)


@pytest.fixture(scope="module")
def module_studio(tmp_path_factory):
    root = tmp_path_factory.mktemp("studio")
    tiny.checkpoint(root / "checkpoints" / "base")
    shutil.copytree(ROOT / "checkpoints" / "sar-clip", root / "checkpoints" / "sar-clip")
    return Studio(Settings(home=root / "home", runs=root / "runs", checkpoints=root / "checkpoints", device="cpu"))


@pytest.fixture
def studio(module_studio, tmp_path):
    """The module's engine with a runs folder of its own."""
    module_studio.settings = dataclasses.replace(module_studio.settings, runs=tmp_path / "runs")
    module_studio.store = RunStore(tmp_path / "runs")
    return module_studio


def test_every_patch_is_on_disk_before_it_is_yielded(studio):
    for event in studio.generate(REQUEST):
        if isinstance(event, Saved):
            assert event.view.is_file()
            assert load_amplitude(event.amplitude_file).shape == (64, 64)
    record = studio.last_run()
    assert record is not None
    assert record.status == "done"
    assert [image.seed for image in record.images] == [5, 6]
    assert record.device["device"] == "cpu"
    assert set(record.seconds) == {"load", "generate", "save", "compare"}
    assert set(record.checkpoint["parts"]["parts"]) >= {"unet", "vae", "text_encoder", "text_encoder_2"}


def test_saved_amplitude_is_what_was_made(studio):
    events = list(studio.generate(REQUEST))
    made = {e.index: e.amplitude for e in events if isinstance(e, PatchReady)}
    for saved in (e for e in events if isinstance(e, Saved)):
        np.testing.assert_array_equal(load_amplitude(saved.amplitude_file), made[saved.index])


def test_replay_is_bit_equal(studio):
    first = [e.sha256 for e in studio.generate(REQUEST) if isinstance(e, Saved)]
    record = studio.last_run()
    second = [e.sha256 for e in studio.generate(record.request) if isinstance(e, Saved)]
    assert first == second
    assert len(studio.store.list()) == 2


def test_a_reference_gives_a_report_in_the_run(studio):
    events = list(studio.generate(REQUEST, reference="s1-gorge"))
    report = next(e.report for e in events if isinstance(e, Judged))
    assert report.reference == "s1-gorge"
    assert report.generated_count == 2
    record = studio.last_run()
    assert record.report == report.to_json()
    assert record.report["measures"]["wasserstein1"]["value"] > 0
    assert record.report["measures"]["semantic"]["value"] > 0
    assert any(note.startswith("Prompt: ") for note in record.report["notes"])


def test_unknown_reference_and_bad_request_leave_no_run(studio):
    for request, reference in [(REQUEST, "s1-moon"), (dataclasses.replace(REQUEST, prompt=" "), None)]:
        with pytest.raises(InputError):
            studio.generate(request, reference=reference)
    assert studio.store.list() == []


def test_stop_by_token_keeps_finished_patches_and_the_other_request(studio):
    long = dataclasses.replace(REQUEST, count=40, steps=40)
    first = studio.generate(long, token="first")
    while not isinstance(next(first), Step):
        pass
    second = studio.generate(REQUEST, token="second")
    assert isinstance(next(second), Queued)
    for event in first:
        if isinstance(event, Saved):
            studio.stop("first")
    assert isinstance(event, Stopped)
    assert event.finished >= 1
    assert isinstance(list(second)[-1], Done)
    stopped = next(r for r in studio.store.list() if r.request.count == 40)
    assert stopped.status == "stopped"
    assert len(stopped.images) == event.finished


def test_stop_before_it_begins(studio):
    studio.stop("early")
    events = list(studio.generate(dataclasses.replace(REQUEST, count=40, steps=40), token="early"))
    assert isinstance(events[-1], Stopped)
    assert events[-1].finished == 0


def test_leaving_a_run_marks_it_stopped(studio):
    events = studio.generate(dataclasses.replace(REQUEST, count=40, steps=20))
    while not isinstance(next(events), Saved):
        pass
    events.close()
    record = studio.last_run()
    assert record.status == "stopped"
    assert len(record.images) == 1


def test_full_disk_says_so_and_keeps_what_was_written(studio, tmp_path):
    """Room for one patch and its JSON, not for four."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=80k", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("this user may not mount a tmpfs")
    try:
        studio.store = RunStore(folder)
        events = list(studio.generate(dataclasses.replace(REQUEST, count=6)))
        assert isinstance(events[-1], Failed)
        assert "is full; free some space" in events[-1].message
        record = studio.store.list()[0]
        assert len(record.images) >= 1
        for image in record.images:
            assert load_amplitude(image.amplitude_file).shape == (64, 64)
    finally:
        subprocess.run(["umount", folder], check=True)


def test_unwritable_runs_folder_is_found_before_any_work(studio, tmp_path):
    (tmp_path / "file").write_text("")
    studio.store = RunStore(tmp_path / "file")
    with pytest.raises(SarGenError, match="not a folder"):
        studio.generate(REQUEST)


def test_the_best_are_chosen_judged_and_recorded(studio):
    events = list(studio.generate(dataclasses.replace(REQUEST, count=4), reference="s1-gorge", keep=2))
    [selection] = [e.selection for e in events if isinstance(e, Selected)]
    [report] = [e.report for e in events if isinstance(e, Judged)]
    assert len(selection.kept) == 2
    assert report.generated_count == 2
    assert selection.text in report.notes
    record = studio.last_run()
    assert len(record.images) == 4  # the rejected ones are kept too
    assert record.selection["kept"] == list(selection.kept)
    kept = [load_amplitude(record.images[place].amplitude_file) for place in selection.kept]
    alone = studio.judge(kept, load_reference("s1-gorge", studio.settings))
    assert alone.measures["wasserstein1"] == report.measures["wasserstein1"]


def test_best_of_needs_a_reference_and_enough_patches(studio):
    with pytest.raises(InputError, match="choose a reference set"):
        studio.generate(REQUEST, keep=1)
    with pytest.raises(InputError, match="3 of 2 patches cannot be kept"):
        studio.generate(REQUEST, reference="s1-gorge", keep=3)
    assert not studio.store.list()
