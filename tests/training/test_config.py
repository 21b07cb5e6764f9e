import pytest

from sar_gen.errors import InputError
from sar_gen.training.config import TrainingConfig, read_config

GOOD = """
base = "sar-mini"
strategy = "hybrid"
output = "out/mine"
[data]
manifest = "data/manifest.jsonl"
[denoiser]
steps = 7
learning_rate = 2e-5
[lora.text_encoder]
rank = 4
"""


def write(tmp_path, text):
    path = tmp_path / "run.toml"
    path.write_text(text)
    return path


def test_a_file_is_read_with_defaults_and_paths_beside_it(tmp_path):
    config = read_config(write(tmp_path, GOOD), TrainingConfig)
    assert config.row.name == "hybrid"
    assert config.output == tmp_path / "out" / "mine"
    assert config.work == tmp_path / "out" / "mine.work"
    assert config.data.manifest == tmp_path / "data" / "manifest.jsonl"
    assert (config.denoiser.steps, config.denoiser.learning_rate) == (7, 2e-5)
    assert (config.lora["text_encoder"].rank, config.lora["text_encoder"].alpha) == (4, None)
    assert config.data.flips == ()  # SAR looks sideways


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("steps = 7", "step = 7", "unknown key 'denoiser.step'"),
        ('base = "sar-mini"', 'bass = "sar-mini"', "unknown key 'bass'"),
        ('base = "sar-mini"', "", "lacks 'base'"),
        ("steps = 7", "steps = 0", "denoiser.steps"),
        ("steps = 7", 'steps = "many"', "denoiser.steps"),
        ('"hybrid"', '"hybrit"', "strategy 'hybrit' is unknown"),
        ('"hybrid"', '"base"', "trains nothing"),
        ('manifest = "data/manifest.jsonl"', "", "either manifest or shards"),
        ("[lora.text_encoder]", "[lora.text_encoder_3]", "lora.text_encoder_3"),
        ("rank = 4", "rank = 4 4", "not TOML"),
    ],
)
def test_what_does_not_fit_is_one_sentence_that_names_it(tmp_path, old, new, words):
    with pytest.raises(InputError) as caught:
        read_config(write(tmp_path, GOOD.replace(old, new)), TrainingConfig)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_pattern_of_shards_lies_beside_the_file_too(tmp_path):
    text = GOOD.replace('manifest = "data/manifest.jsonl"', 'shards = "data/train-*.tar"')
    assert read_config(write(tmp_path, text), TrainingConfig).data.shards == tmp_path / "data" / "train-*.tar"


def test_a_missing_file_is_said(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        read_config(tmp_path / "none.toml", TrainingConfig)
