import os
from pathlib import Path

import pytest

from sar_gen.errors import InputError
from sar_gen.settings import Settings


def test_environment_overrides_each_kind_of_field(tmp_path):
    settings = Settings.from_env(
        {"SAR_GEN_RUNS": str(tmp_path), "SAR_GEN_DEVICE": "cpu", "SAR_GEN_MAX_COUNT": "3", "SAR_GEN_HOME": ""}
    )
    assert settings.runs == tmp_path
    assert settings.device == "cpu"
    assert settings.max_count == 3
    assert settings.home == Path.home() / ".sar-studio"


@pytest.mark.parametrize("text", ["many", "0", "-3", "1.5"])
def test_bad_number_is_one_sentence(text):
    with pytest.raises(InputError, match="SAR_GEN_MAX_PIXELS"):
        Settings.from_env({"SAR_GEN_MAX_PIXELS": text})


def test_folders_of_checkpoints_are_separated_as_in_path(tmp_path):
    text = os.pathsep.join([str(tmp_path / "one"), "", f" {tmp_path / 'two'} "])
    assert Settings.from_env({"SAR_GEN_CHECKPOINT_FOLDERS": text}).checkpoint_folders == (
        tmp_path / "one",
        tmp_path / "two",
    )
    assert Settings.from_env({}).checkpoint_folders == ()
