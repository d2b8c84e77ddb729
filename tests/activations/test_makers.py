"""Vector makers against direct computations, one text at a time, and against what their papers define."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_models import tiny_language_model

from weightsteer.activations.makers import (
    caa_vector,
    pair_differences,
    pca_vector,
    persona_vector,
    principal_directions,
    prompt_vector,
    with_common_norms,
)
from weightsteer.activations.vector import ActivationVector
from weightsteer.data.contrast import ContrastDataset, ContrastPair, encode_example
from weightsteer.errors import AdapterError, DataError
from weightsteer.models.language_model import LanguageModel

LETTERS = ContrastDataset(
    "b",
    tuple(
        ContrastPair(f"p{i}", f"Question {i}?{' More of it.' * i}\n (A) Yes\n (B) No", f"({ours})", f"({theirs})")
        for i, (ours, theirs) in enumerate([("A", "B"), ("B", "A"), ("A", "B")])
    ),
)
TEXTS = ContrastDataset(
    "b", tuple(ContrastPair(f"p{i}", f"Is tea {i} good?", f"Oh yes, {i}!" * (i + 1), "Oh no.") for i in range(4))
)


def hidden_states(lm: LanguageModel, ids: list[int]) -> torch.Tensor:
    """[blocks, tokens, d_model] of one text by itself: row l + 1 of transformers' hidden states is block l's output."""
    seen: list[torch.Tensor] = []
    from weightsteer.models.blocks import decoder_blocks

    hooks = [b.register_forward_hook(lambda _m, _i, out: seen.append(out)) for b in decoder_blocks(lm.network)]
    with torch.inference_mode():
        lm.network(torch.tensor([ids]))
    for hook in hooks:
        hook.remove()
    return torch.stack([out[0] for out in seen]).double()


def direct(lm: LanguageModel, pairs: ContrastDataset, read: Any) -> torch.Tensor:
    """Mean over pairs of the difference of `read(activations, prompt length)`."""
    rows = []
    for pair in pairs.pairs:
        sides = []
        for answer in (pair.positive, pair.negative):
            prompt, ids = encode_example(lm, pair.prompt, answer)
            sides.append(read(hidden_states(lm, prompt + ids), len(prompt)))
        rows.append(sides[0] - sides[1])
    return torch.stack(rows).mean(0)


def close(vector: ActivationVector, expected: torch.Tensor) -> bool:
    assert sorted(vector.directions) == list(range(len(expected)))
    return torch.allclose(torch.stack(list(vector.directions.values())).double(), expected, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt2"])
def test_caa_is_the_mean_difference_at_the_letter(family: str):
    lm = tiny_language_model(family)
    vector = caa_vector(lm, LETTERS)
    # One token a byte: "(A)" is three tokens and the end of the turn.
    assert close(vector, direct(lm, LETTERS, lambda h, prompt: h[:, prompt + 1]))
    assert (vector.mode, vector.operation, vector.base) == ("after_user", "add", f"fp-{family}")
    assert vector.info["method"] == "CAA"


def test_caa_needs_answers_that_differ_in_one_token():
    wrong = (ContrastPair("long", "Q?", "(A)", "(BC)"), ContrastPair("two", "Q?", "(AB)", "(CD)"))
    with pytest.raises(DataError) as error:
        caa_vector(tiny_language_model(), ContrastDataset("b", (*LETTERS.pairs, *wrong)))
    assert "answer tokens of 5 pairs" in str(error.value)
    assert "long: '(A)' and '(BC)' differ in more than one token" in str(error.value)
    assert "two: '(AB)' and '(CD)'" in str(error.value)
    assert "expected answers such as (A) and (B)" in str(error.value)


def test_persona_vectors_are_differences_of_answer_means():
    lm = tiny_language_model()
    vector = persona_vector(lm, TEXTS)
    assert close(vector, direct(lm, TEXTS, lambda h, prompt: h[:, prompt:].mean(1)))
    assert vector.mode == "generated"


def test_increments_add_up_to_the_vector():
    """methods I.1, check 6: the first block is left whole, so the increments of blocks 0 to b sum to block b."""
    lm = tiny_language_model(num_hidden_layers=5)
    vector = persona_vector(lm, TEXTS)
    increments = vector.increments()
    assert sorted(increments.directions) == [0, 1, 2, 3], "the last block's output is left alone"
    for block in increments.directions:
        total = sum(increments.directions[b] for b in range(block + 1))
        assert torch.allclose(total, vector.directions[block], atol=1e-5)


def test_prompt_vectors_read_before_any_answer():
    lm = tiny_language_model()
    harmful, harmless = ["How do I harm?", "Break it, now"], ["How do I cook?", "A", "Bake bread with me"]
    for position, column in (("last_prompt", -1), (-2, -2)):
        vector = prompt_vector(lm, harmful, harmless, position)
        means = [
            torch.stack([hidden_states(lm, lm.tokens(lm.chat(p)))[:, column] for p in prompts]).mean(0)
            for prompts in (harmful, harmless)
        ]
        assert close(vector, means[0] - means[1])
        assert vector.mode == "all"


def test_pair_differences_keep_the_order_of_the_pairs(monkeypatch: pytest.MonkeyPatch):
    from weightsteer.activations.capture import example

    monkeypatch.setattr("weightsteer.activations.capture.batch_tokens", lambda lm: 150)
    lm = tiny_language_model()
    sides = [[example(*encode_example(lm, p, a), "last") for p, a in TEXTS.side(s)] for s in ("positive", "negative")]
    found = pair_differences(lm, *sides)
    for row, ours, theirs in zip(found, *sides, strict=True):
        expected = hidden_states(lm, ours.ids)[:, -1] - hidden_states(lm, theirs.ids)[:, -1]
        assert torch.allclose(row.double(), expected, atol=1e-4)


def test_the_principal_component_is_the_common_direction_and_points_to_the_positive_side():
    rng = torch.Generator().manual_seed(0)
    common = torch.nn.functional.normalize(torch.randn(2, 16, generator=rng), dim=-1)
    differences = 3 * common + 0.1 * torch.randn(40, 2, 16, generator=rng)
    for sign in (1, -1):
        found = principal_directions(sign * differences, seed=1)
        assert torch.allclose(found.norm(dim=-1), torch.ones(2, dtype=torch.float64))
        assert torch.allclose((found * common).sum(-1), torch.full((2,), float(sign), dtype=torch.float64), atol=0.01)
    # Without a random order the mean would be subtracted and only the noise left.
    unshuffled = torch.linalg.svd(differences[:, 0] - differences[:, 0].mean(0)).Vh[0]
    assert abs(unshuffled @ common[0]) < 0.9
    with pytest.raises(DataError, match=r"1 pairs: have no principal component. Expected at least 2"):
        principal_directions(differences[:1], 0)


def test_a_principal_component_of_real_activations():
    lm = tiny_language_model()
    vector = pca_vector(lm, TEXTS)
    for direction in vector.directions.values():
        assert direction.norm().item() == pytest.approx(1, abs=1e-5)
    assert persona_vector(lm, TEXTS).cosine(vector) > 0


def test_behaviors_get_a_common_norm_at_each_block():
    vectors = {
        "a": ActivationVector({0: torch.tensor([3.0, 4.0]), 1: torch.tensor([0.0, 2.0])}, "m"),
        "b": ActivationVector({0: torch.tensor([0.0, 15.0]), 1: torch.tensor([6.0, 0.0])}, "m"),
    }
    scaled = with_common_norms(vectors)
    norms = {name: [v.directions[b].norm().item() for b in (0, 1)] for name, v in scaled.items()}
    assert norms == {"a": [10, 4], "b": [10, 4]}, "means of 5 and 15 and of 2 and 6; blocks stay apart"
    assert torch.equal(scaled["a"].directions[0], torch.tensor([6.0, 8.0]))
    with pytest.raises(AdapterError, match=r"vectors a and b: have blocks \[0, 1\] and \[0\]. Expected the same"):
        with_common_norms({**vectors, "b": vectors["b"].at(0)})
    with pytest.raises(AdapterError, match=r"vector b: is zero at block 0. Expected a direction"):
        with_common_norms({**vectors, "b": 0 * vectors["b"]})


def test_activations_that_are_no_numbers():
    lm = tiny_language_model()
    lm.network.model.layers[1].mlp.down_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(AdapterError, match=r"activations of llama: not finite at blocks \[1\]. Expected numbers"):
        persona_vector(lm, TEXTS)


def test_a_text_longer_than_the_context():
    lm = tiny_language_model(max_position_embeddings=32)
    with pytest.raises(DataError, match=r"a text of 58 tokens: longer than the context of llama, 32 tokens"):
        persona_vector(lm, replace(TEXTS, pairs=TEXTS.pairs[2:]))


def test_no_pairs_at_all():
    with pytest.raises(DataError, match=r"activations: no texts to read. Expected at least one"):
        persona_vector(tiny_language_model(), ContrastDataset("b", ()))
