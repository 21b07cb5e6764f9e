"""The table of strategies."""

import itertools

import pytest

from sar_gen.errors import InputError
from sar_gen.strategies import STRATEGIES, strategy, strategy_of_parts


def test_names_are_the_rows_names_and_every_row_says_something():
    assert all(name == row.name and row.title and row.summary.endswith(".") for name, row in STRATEGIES.items())
    assert {"base", "token", "unet-lora", "unet-full", "hybrid", "foundation"} <= STRATEGIES.keys()


def test_no_two_rows_train_the_same_parts_alike():
    rows = [(tuple(row.modes().items()), row.from_scratch, row.distilled) for row in STRATEGIES.values()]
    assert len(set(rows)) == len(rows)


def test_hybrid_is_the_papers_combination():
    hybrid = STRATEGIES["hybrid"]
    assert (hybrid.unet, hybrid.text_encoder, hybrid.text_encoder_2, hybrid.token) == (
        "full",
        "lora",
        "lora",
        "learned",
    )
    assert hybrid.vae == "frozen"
    assert hybrid.trained() == {"unet": "full", "text_encoder": "lora", "text_encoder_2": "lora", "token": "learned"}
    assert "text_encoder_2" not in hybrid.modes("sd15")


@pytest.mark.parametrize(
    ("name", "encoder", "decoder", "vae"),
    [
        ("unet-full", "frozen", "frozen", "frozen"),
        ("vae-decoder", "frozen", "full", "full"),
        ("vae-decoder-lora", "frozen", "lora", "lora"),
        ("vae-full", "full", "full", "full"),
    ],
)
def test_vae_variants(name, encoder, decoder, vae):
    row = STRATEGIES[name]
    assert (row.vae_encoder, row.vae_decoder, row.vae) == (encoder, decoder, vae)


def test_pieces_join_to_any_combination():
    joined = strategy("hybrid+vae-decoder")
    assert joined.trained() == {**STRATEGIES["hybrid"].trained(), "vae_decoder": "full"}
    assert joined.name == "hybrid+vae-decoder"
    usual = strategy("unet-lora+te-lora")  # what most LoRA trainers make
    assert usual.trained() == {"unet": "lora", "text_encoder": "lora", "text_encoder_2": "lora"}
    assert usual.title == "UNet LoRA; text encoders, LoRA"
    assert strategy("unet-full+te-lora+token").trained() == STRATEGIES["hybrid"].trained()


@pytest.mark.parametrize(
    "name",
    [
        "",
        "magic",
        "hybrid+magic",
        "vae-full+vae-decoder",
        "base+vae-full",
        "+vae-full",
        "unet-lora+hybrid",
        "foundation+token",
    ],
)
def test_unknown_names_are_refused_and_the_known_ones_named(name):
    with pytest.raises(InputError, match=r"base, token, unet-lora, .*, foundation, or join"):
        strategy(name)


@pytest.mark.parametrize("name", [n for n in STRATEGIES if n not in ("foundation", "turbo")])
def test_the_parts_name_their_strategy(name):
    assert strategy_of_parts(strategy(name).modes()) == name
    assert strategy_of_parts(strategy(name).trained("sd15")) == name


def test_a_folder_cannot_tell_that_its_unet_was_distilled():
    assert strategy("turbo").distilled
    assert strategy_of_parts(strategy("turbo").modes()) == "unet-full"


def test_every_combination_of_parts_has_a_name_that_means_it():
    unet, encoders, vae = (
        ("unet-full", "unet-lora"),
        ("te-full", "te-lora"),
        ("vae-decoder", "vae-decoder-lora", "vae-full"),
    )
    for pieces in itertools.product(("", *unet), ("", *encoders), ("", "token"), ("", *vae)):
        name = "+".join(piece for piece in pieces if piece)
        if name:
            row = strategy(name)
            assert strategy(strategy_of_parts(row.trained())).trained() == row.trained(), name


def test_one_text_encoder_counts_as_both_but_not_one_of_each():
    assert strategy_of_parts({"unet": "lora", "text_encoder": "lora", "token": "learned"}) == "unet-lora+te-lora+token"
    with pytest.raises(InputError, match="One text encoder"):
        strategy_of_parts({"unet": "full", "text_encoder": "full", "text_encoder_2": "lora"})
