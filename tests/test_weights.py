"""Weight files as their headers show them, and what is refused."""

import json
import pickle
import struct
import zipfile

import numpy as np
import pytest
from safetensors.numpy import save_file

from sar_gen.errors import InputError
from sar_gen.settings import ROOT
from sar_gen.weights import choose_weights, lora_facts, read_header
from tests import fake


@pytest.fixture
def good(tmp_path):
    return fake.weights(tmp_path / "good.safetensors", {"a": (2, 3), "b.c": (4,)})


def test_the_header_of_a_real_file(good):
    header = read_header(good)
    assert {name: (tensor.dtype, tensor.shape) for name, tensor in header.tensors.items()} == {
        "a": ("F32", (2, 3)),
        "b.c": ("F32", (4,)),
    }
    assert header.parameters == 10


def test_metadata_is_read(tmp_path):
    save_file({"a": np.zeros(1, np.float32)}, tmp_path / "m.safetensors", metadata={"format": "pt"})
    assert read_header(tmp_path / "m.safetensors").metadata == {"format": "pt"}


def test_headers_of_every_length_are_read(tmp_path):
    """The first bytes are the header's length, and must not be taken for the marks of a pickle or a zip."""
    for letters in range(600):
        path = fake.weights(tmp_path / "x.safetensors", {"k" * (letters + 1): (1,)})
        assert len(read_header(path).tensors) == 1
    long = {"k" * 581: (1,)}
    lengths = {struct.unpack("<Q", fake.weights(tmp_path / "y.safetensors", long).read_bytes()[:8])[0]}
    assert lengths == {640}  # bytes 80 02: how a pickle of protocol 2 begins
    assert read_header(tmp_path / "y.safetensors").parameters == 1


@pytest.mark.parametrize("name", ["m.bin", "m.ckpt", "m.pt", "m.pth", "M.CKPT", "m.Pkl"])
def test_pickle_names_are_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"whatever")
    with pytest.raises(
        InputError, match=r"is a pickle checkpoint, which can run code .* convert it to \.safetensors\.$"
    ):
        read_header(tmp_path / name)


@pytest.mark.parametrize("name", ["m.h5", "m", "m.safetensors.txt", "m.gguf"])
def test_other_names_are_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"whatever")
    with pytest.raises(InputError, match=r"not a \.safetensors file"):
        read_header(tmp_path / name)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("name", ["m.safetensors", "m.SafeTensors"])
def test_a_renamed_pickle_is_refused(tmp_path, protocol, name):
    (tmp_path / name).write_bytes(pickle.dumps({"weights": list(range(100))}, protocol=protocol))
    with pytest.raises(InputError, match=r"named \.safetensors but holds a pickle"):
        read_header(tmp_path / name)


def test_a_renamed_torch_zip_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "m.safetensors", "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02.")
    with pytest.raises(InputError, match=r"named \.safetensors but holds a pickle"):
        read_header(tmp_path / "m.safetensors")


def test_capital_letters_in_the_suffix_are_refused_with_the_remedy(good):
    """Libraries below ask for the suffix letter by letter, and take anything else for a pickle."""
    capital = good.rename(good.with_suffix(".SafeTensors"))
    with pytest.raises(InputError, match=r"rename it to good\.safetensors"):
        read_header(capital)


@pytest.mark.parametrize("missing", [1, 30])
def test_a_truncated_file_is_refused(good, missing):
    data = good.read_bytes()
    good.write_bytes(data[:-missing])
    with pytest.raises(InputError, match=f"announces {len(data)} bytes, the file has {len(data) - missing}"):
        read_header(good)


def test_a_file_cut_inside_its_header_is_refused(good):
    good.write_bytes(good.read_bytes()[:40])
    with pytest.raises(InputError, match="cut off inside its header"):
        read_header(good)


@pytest.mark.parametrize("data", [b"", b"\0\0\0"])
def test_an_empty_file_is_refused(tmp_path, data):
    (tmp_path / "m.safetensors").write_bytes(data)
    with pytest.raises(InputError, match=rf"empty or cut off \({len(data)} bytes\)"):
        read_header(tmp_path / "m.safetensors")


def test_a_text_file_and_odd_headers_are_refused(tmp_path):
    path = tmp_path / "m.safetensors"
    bodies = [b"this is a text file, not weights\n" * 9]
    for header in (b"[1, 2]", b'{"a": 3}', b'{"a": {"dtype": "F32", "shape": "x", "data_offsets": [0, 4]}}', b"{}}"):
        bodies.append(struct.pack("<Q", len(header)) + header)
    bodies.append(struct.pack("<Q", 60_000) + b"[" * 60_000)
    for body in bodies:
        path.write_bytes(body)
        with pytest.raises(InputError, match="not a safetensors file"):
            read_header(path)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match=r"nothing\.safetensors cannot be read"):
        read_header(tmp_path / "nothing.safetensors")


@pytest.mark.parametrize(
    ("names", "variant", "expected"),
    [
        (["model.safetensors", "model.bin", "model.fp16.safetensors"], None, ["model.safetensors"]),
        (["model.safetensors", "model.fp16.safetensors"], "fp16", ["model.fp16.safetensors"]),
        (["model.safetensors"], "fp16", ["model.safetensors"]),
        (["model.fp16.safetensors"], None, []),
        (["openvino_model.bin", "model.onnx", "pytorch_lora_weights.safetensors"], None, []),
        (
            [
                "diffusion_pytorch_model-00002-of-00002.safetensors",
                "diffusion_pytorch_model-00001-of-00002.safetensors",
            ],
            None,
            [
                "diffusion_pytorch_model-00001-of-00002.safetensors",
                "diffusion_pytorch_model-00002-of-00002.safetensors",
            ],
        ),
    ],
)
def test_the_weights_that_from_pretrained_would_read(names, variant, expected):
    assert choose_weights(names, variant) == expected


UNET = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"


@pytest.mark.parametrize(
    ("shapes", "style", "parts", "family", "width"),
    [
        ({f"unet.{UNET}.lora_A.weight": (4, 768)}, "diffusers", ("unet",), "sd15", 768),
        ({f"unet.{UNET}.lora_A.weight": (4, 2048)}, "diffusers", ("unet",), "sdxl", 2048),
        ({f"unet.{UNET}.lora_A.weight": (4, 576)}, "diffusers", ("unet",), None, 576),
        ({f"unet.{UNET}.lora.down.weight": (4, 768)}, "diffusers", ("unet",), "sd15", 768),
        ({"text_encoder_2.encoder.q_proj.lora_A.weight": (4, 9)}, "diffusers", ("text_encoder_2",), "sdxl", None),
        ({"text_encoder.encoder.q_proj.lora_A.weight": (4, 768)}, "diffusers", ("text_encoder",), None, None),
        ({"lora_te1_text_model_q_proj.lora_down.weight": (4, 9)}, "kohya", ("text_encoder",), "sdxl", None),
        ({"lora_te_text_model_q_proj.lora_down.weight": (4, 768)}, "kohya", ("text_encoder",), None, None),
        ({"lora_unet_mid_block_attn2_to_v.lora_down.weight": (4, 768)}, "kohya", ("unet",), "sd15", 768),
        ({"lora_unet_x_transformer_blocks_7_attn1_to_q.lora_down.weight": (4, 9)}, "kohya", ("unet",), "sdxl", None),
    ],
)
def test_what_a_lora_is_for(tmp_path, shapes, style, parts, family, width):
    facts = lora_facts(read_header(fake.weights(tmp_path / "l.safetensors", shapes)), "l")
    assert (facts.style, facts.parts, facts.family, facts.cross_attention) == (style, parts, family, width)


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        ({f"unet.{UNET}.weight": (4, 768)}, "holds no LoRA weights"),
        ({f"unet.{UNET}.lora_A.weight": (4, 1024)}, "Stable Diffusion 2"),
        ({"lora_unet_x.hada_w1_a": (4, 4)}, "LoHa, LoKr or OFT"),
        ({"transformer.single_blocks.0.attn.to_k.lora_A.weight": (4, 4)}, "another kind of model"),
        ({f"unet.{UNET}.lora_A.weight": (4, 768), "vae.x.lora_A.weight": (4, 4)}, r"another kind of model \(vae"),
    ],
)
def test_other_files_are_refused(tmp_path, shapes, words):
    path = fake.weights(tmp_path / "l.safetensors", shapes)
    with pytest.raises(InputError, match=words):
        lora_facts(read_header(path), path.name)


def test_the_embedded_weights_have_the_sizes_of_their_card():
    card = (ROOT / "checkpoints" / "sar-mini" / "card.toml").read_text()
    assert "[sha256]" in card
    header = read_header(ROOT / "checkpoints" / "sar-mini" / "unet" / "diffusion_pytorch_model.safetensors")
    assert round(header.parameters / 1e6, 1) == 46.2
    assert json.loads((ROOT / "checkpoints/sar-mini/unet/config.json").read_text())["cross_attention_dim"] == 576
