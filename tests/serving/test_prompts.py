"""What an SDXL's encoders read of prompts, and what the loop makes of their answers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from triptych_contract.errors import InvalidRequest
from triptych_contract.sdxl.card import MAX_CHUNKS
from triptych_demo import demo_build
from triptych_serving.manifest import Manifest
from triptych_serving.sdxl.pipeline import Sdxl
from triptych_serving.tokenizers import PromptTokenizer

MODEL = Sdxl(Manifest.load(demo_build()))
TOKENIZERS = [PromptTokenizer.of(MODEL.manifest, card) for card in MODEL.card.tokenizers]
LENGTH = MODEL.card.tokenizers[0].max_length
WORDS = LENGTH - 2  # of one token each, in a chunk


def parsed(prompt, **more):
    return MODEL.parse({"prompt": prompt, "prompt_syntax": "a1111", "guidance_scale": 5.0, **more})


def read(prompt, **more):
    """(rows, chunks, tokens) ids and weights of the first encoder: negative prompt, prompt."""
    asked = parsed(prompt, **more)
    inputs = MODEL.encoder_inputs(asked, TOKENIZERS)
    rows = 1 + asked.guided(MODEL.card)
    assert inputs["skipped_layers"].shape == (len(inputs["input_ids"]), 1)
    return inputs["input_ids"].reshape(rows, -1, LENGTH), inputs["token_weights"][:, 0].reshape(rows, -1, LENGTH)


def plain(*prompts):
    return TOKENIZERS[0](list(prompts))


@pytest.mark.parametrize("prompt", ["a red fox", "fox " * WORDS, "", "  MIXED Case, 3.14; naïve 東京 🦊"])
def test_a_prompt_without_brackets_that_fits_is_read_as_a_plain_one(prompt):
    given = {"prompt": prompt or "-", "negative_prompt": prompt, "guidance_scale": 5.0, "clip_skip": 1}
    ours, theirs = (
        MODEL.encoder_inputs(MODEL.parse({**given, "prompt_syntax": syntax}), TOKENIZERS)
        for syntax in ("a1111", "plain")
    )
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)
    assert np.array_equal(ours["input_ids"][0], plain(prompt)[0])


def test_weights_are_those_of_the_tokens_of_their_words():
    ids, weights = read("a (red:1.5) fox", negative_prompt="[grey]")
    assert np.array_equal(ids[:, 0], plain("grey", "a red fox"))
    np.testing.assert_allclose(weights[1, 0, :5], [1, 1, 1.5, 1, 1])
    np.testing.assert_allclose(weights[0, 0, :3], [1, 1 / 1.1, 1])
    assert (weights[:, 0, 5:] == 1).all()


def test_a_long_prompt_takes_more_chunks_and_the_other_one_is_filled_up():
    ids, _ = read("fox " * (WORDS + 3), negative_prompt="grey")
    assert np.array_equal(ids[1], plain("fox " * WORDS, "fox " * 3))
    assert np.array_equal(ids[0], plain("grey", ""))


def test_break_ends_a_chunk():
    ids, _ = read("a red BREAK fox", guidance_scale=1.0)
    assert np.array_equal(ids[0], plain("a red", "fox"))
    assert read("fox " * WORDS + "BREAK", guidance_scale=1.0)[0].shape[1] == 1


def test_what_is_beyond_the_last_chunk_is_cut_and_told():
    prompt = "fox " * WORDS * MAX_CHUNKS + "(red:1.2) apple BREAK rocket"
    asked = parsed(prompt, negative_prompt="grey")
    assert len(MODEL.encoder_inputs(asked, TOKENIZERS)["input_ids"]) == 2 * MAX_CHUNKS
    assert MODEL.cut(asked, TOKENIZERS) == {"prompt": "red apple rocket"}
    assert MODEL.cut(parsed("a (red:1.2) fox"), TOKENIZERS) == {}


def test_a_plain_prompt_is_cut_where_it_was():
    asked = MODEL.parse({"prompt": "fox " * WORDS + "red apple"})
    assert MODEL.cut(asked, TOKENIZERS) == {"prompt": "red apple"}
    assert len(MODEL.encoder_inputs(asked, TOKENIZERS)["input_ids"]) == 2


@given(st.text("ab ()[]:1.\\", min_size=1, max_size=40).filter(str.strip))
@settings(max_examples=50, deadline=None)
def test_any_prompt_gives_rows_that_the_encoders_take(prompt):
    try:
        asked = parsed(prompt)
    except InvalidRequest:
        return
    inputs = MODEL.encoder_inputs(asked, TOKENIZERS)
    rows = len(inputs["input_ids"])
    assert rows % 2 == 0
    assert inputs["input_ids"].shape == inputs["input_ids_2"].shape == (rows, LENGTH)
    assert inputs["token_weights"].shape == (2, 2, rows // 2 * LENGTH)


def encoded(rows, chunks, weight=1.0):
    """What the encoders and the tokenizer pass on to the loop."""
    random = np.random.default_rng(rows)
    widths = {"hidden_states": 96, "hidden_states_2": 160}
    states = {
        name: random.standard_normal((rows * chunks, LENGTH, width)).astype(np.float32)
        for name, width in widths.items()
    }
    pooled = random.standard_normal((rows * chunks, 160)).astype(np.float32)
    weights = np.full((rows, 2, chunks * LENGTH), weight, np.float32)
    return {**states, "text_embeds": pooled, "token_weights": weights}


@pytest.mark.parametrize("chunks", [1, 3, MAX_CHUNKS])
def test_chunks_lie_one_behind_the_other_and_the_first_ones_pooled_embedding_counts(chunks):
    arrays = encoded(2, chunks, 0.5)
    (phase,) = MODEL.phases(parsed("a fox"), arrays.get)
    made = phase.begin(generator(), None).conditionings["unet"].arrays
    for row in range(2):
        own = slice(row * chunks, (row + 1) * chunks)
        states = np.concatenate([arrays["hidden_states"][own], arrays["hidden_states_2"][own]], axis=-1)
        assert np.array_equal(made["encoder_hidden_states"][row], states.reshape(chunks * LENGTH, -1) * np.float32(0.5))
        assert np.array_equal(made["text_embeds"][row], arrays["text_embeds"][row * chunks])
    assert phase.tokens == chunks * LENGTH


def generator():
    from triptych_serving.noise import TorchGenerator

    return TorchGenerator(1)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("token_weights", lambda array: array[:, :, 1:]),
        ("token_weights", lambda array: np.repeat(array, MAX_CHUNKS, axis=2)),
        ("hidden_states", lambda array: array[1:]),
        ("hidden_states_2", lambda array: array[:, 1:]),
        ("text_embeds", lambda array: array[1:]),
        ("text_embeds", lambda array: array[:0]),
    ],
)
def test_what_does_not_fit_together_is_refused_by_name(name, change):
    arrays = encoded(2, 2)
    with pytest.raises(InvalidRequest, match=f"^{name}: shape .* given; legal: "):
        MODEL.phases(parsed("a fox"), {**arrays, name: change(arrays[name])}.get)
