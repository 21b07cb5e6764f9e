import pytest
import torch

from sar_gen.settings import Settings
from sar_gen.training.parts import find_base, load_pipeline
from sar_gen.training.sdxl_random import PARAMETERS, PARTS, VOCABULARY, build_part, make_sdxl, make_tokenizer


@pytest.mark.parametrize("part", PARTS)
def test_the_full_size_has_the_published_number_of_parameters(part):
    module = build_part(part, "full", "meta")
    assert sum(parameter.numel() for parameter in module.parameters()) == PARAMETERS[part]


def test_the_tokenizer_has_the_vocabulary_of_clip():
    words = make_tokenizer()
    assert len(words) == VOCABULARY
    assert sorted(words.get_vocab().values()) == list(range(VOCABULARY))
    ids = words("a SAR image of a river").input_ids
    assert (ids[0], ids[-1]) == (VOCABULARY - 2, VOCABULARY - 1)
    assert words.decode(ids, skip_special_tokens=True).strip() == "a sar image of a river"
    assert (words.pad_token_id, make_tokenizer(padding="!").pad_token_id) == (VOCABULARY - 1, 0)


def test_the_folder_is_a_base_with_the_same_numbers_in_every_type(tmp_path):
    base = find_base(str(make_sdxl(tmp_path / "sdxl-random", "tiny")), Settings())
    assert (base.spec.id, base.spec.family, base.spec.resolution) == ("sdxl-random", "sdxl", 64)
    pipe = load_pipeline(base)
    for part in PARTS:
        built = build_part(part, "tiny").state_dict()
        loaded = getattr(pipe, part).state_dict()
        assert loaded.keys() == built.keys()
        for name, tensor in loaded.items():
            assert torch.equal(tensor, built[name])
            assert torch.equal(tensor, tensor.to(torch.bfloat16).to(tensor.dtype))
    assert len(pipe.tokenizer) == VOCABULARY
