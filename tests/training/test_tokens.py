import pytest
import torch

from sar_gen.errors import InputError
from sar_gen.pipelines import quiet_diffusers
from sar_gen.strategies import with_token
from sar_gen.training.tokens import learn_token
from tests import tiny


@pytest.fixture
def pipe(tmp_path):
    found = quiet_diffusers().StableDiffusionXLPipeline.from_pretrained(tiny.tiny_sdxl(tmp_path / "base"))
    for module in (found.text_encoder, found.text_encoder_2):
        module.requires_grad_(False)
    return found


def learn(pipe, count=1, init=None, part="text_encoder"):
    tokenizer = getattr(pipe, part.replace("text_encoder", "tokenizer"))
    return learn_token(getattr(pipe, part), tokenizer, "<SAR>", count, init, torch.Generator().manual_seed(0))


def test_only_the_new_rows_are_trained(pipe):
    before = pipe.text_encoder.get_input_embeddings().weight.detach().clone()
    learned, tokenizer = learn(pipe, count=2)
    names = [name for name, p in pipe.text_encoder.named_parameters() if p.requires_grad]
    assert len(names) == 1
    assert names[0].endswith("rows")
    optimiser = torch.optim.AdamW([learned.rows], lr=0.1)
    ids = tokenizer("a <SAR> <SAR>_1 b", return_tensors="pt").input_ids
    assert (ids == learned.first).sum() == 1
    rows = learned.rows.detach().clone()
    for _ in range(3):
        pipe.text_encoder(ids)[0].square().sum().backward()
        optimiser.step()
        optimiser.zero_grad()
        learned.keep_spread()
    assert torch.equal(learned.weight[: len(before)], before)
    assert not torch.allclose(learned.rows, rows)
    # new rows are kept at the table's standard deviation
    torch.testing.assert_close(learned.rows.detach().std(dim=1), before.std().expand(2))


def test_words_without_the_token_are_as_before(pipe):
    ids = pipe.tokenizer("ab", return_tensors="pt").input_ids
    before = pipe.text_encoder(ids)[0]
    learn(pipe)
    assert torch.equal(pipe.text_encoder(ids)[0], before)


def test_a_token_can_start_from_a_word(pipe):
    learned, tokenizer = learn(pipe, init="sar", part="text_encoder_2")
    word = learned.weight[tokenizer("sar", add_special_tokens=False).input_ids].mean(dim=0)
    assert torch.cosine_similarity(learned.rows[0], word, dim=0) > 0.97


def test_a_known_token_is_refused(pipe):
    _, pipe.tokenizer = learn(pipe)
    with pytest.raises(InputError, match="already"):
        learn(pipe)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a SAR image of forest", "a <SAR> image of forest"),
        ("a radar image", "<SAR> a radar image"),
        ("a <SAR> image, SAR", "a <SAR> image, SAR"),
        ("SARdinia by SAR", "SARdinia by <SAR>"),
    ],
)
def test_captions_name_the_token(text, expected):
    assert with_token(text, "<SAR>") == expected
