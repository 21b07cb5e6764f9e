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


def test_amounts_may_be_fractions_nothing_or_left_open():
    settings = Settings.from_env({"SAR_GEN_KEEP_GB": "2.5", "SAR_GEN_KEEP_GPU_GB": "0"})
    assert (settings.keep_gb, settings.keep_gpu_gb) == (2.5, 0.0)
    assert Settings.from_env({}).keep_gb is None


@pytest.mark.parametrize("text", ["much", "-1", "nan", "inf"])
def test_a_bad_amount_is_one_sentence(text):
    with pytest.raises(InputError, match=r"SAR_GEN_KEEP_GB is .* 0 or more"):
        Settings.from_env({"SAR_GEN_KEEP_GB": text})
