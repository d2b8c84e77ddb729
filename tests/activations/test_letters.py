"""Many steerings in one pass equal one steering after another."""

import math
from typing import Any

import pytest
import torch
from tiny_models import tiny_language_model

from weightsteer.activations.letters import encode_questions, score_many
from weightsteer.activations.vector import ActivationVector
from weightsteer.errors import AdapterError, DataError
from weightsteer.models.blocks import decoder_blocks

PROMPTS = ["Is it good?\n (A) Yes\n (B) No", "And why would that be so?\n (A) It is\n (B) It is not", "Q"]
OPTIONS = [("A", "B"), ("B", "A"), ("A", "B")]
KS = (-2.0, 0.0, 1.0)
MODES = ("all", "after_user", "generated", "answer")


def vectors_of(mode: Any) -> list[ActivationVector]:
    rng = torch.Generator().manual_seed(0)
    return [ActivationVector({b: 3 * torch.randn(32, generator=rng)}, "fp-llama", mode) for b in (0, 1)]


def one_by_one(lm: Any, vector: ActivationVector, k: float, prompt: str, options: tuple[str, ...]) -> list[float]:
    """One text by itself, no cache: the columns that `mode` names are steered by a hook of its own."""
    start, ids = lm.tokens(lm.chat(prompt)), lm.tokens(lm.chat(prompt) + "(")
    first = {"all": 0, "after_user": len(start) - len("x"), "generated": len(start) - 1, "answer": len(start)}
    [(block, direction)] = vector.directions.items()

    def steer(_module: Any, _inputs: Any, output: Any) -> Any:
        hidden = (output[0] if isinstance(output, tuple) else output).clone()
        hidden[:, first[vector.mode] :] += k * direction
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    hook = decoder_blocks(lm.network)[block].register_forward_hook(steer)
    with torch.inference_mode():
        log_p = lm.network(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
    hook.remove()
    return [log_p[lm.tokens(option)[0]].item() for option in options]


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "lfm2"])
@pytest.mark.parametrize("mode", MODES)
def test_equals_one_text_at_a_time(family: str, mode: str, monkeypatch: pytest.MonkeyPatch):
    """The assistant's opening is one token of the byte tokenizer's template, and `(` one more."""
    config = {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False} if family == "lfm2" else {}
    lm = tiny_language_model(family, **config)
    questions = encode_questions(lm, PROMPTS, "(", OPTIONS)
    assert [question.opened for question in questions] == [1, 1, 1]
    vectors = vectors_of(mode)
    for tokens in (10, 10_000):  # one question a batch; all in one
        monkeypatch.setattr("weightsteer.activations.letters.batch_tokens", lambda lm, tokens=tokens: tokens)
        found = score_many(lm, questions, vectors, KS, any_base=True)
        assert found.shape == (2, 3, 3, 2)
        expected = torch.tensor([[[one_by_one(lm, v, k, p, o) for p, o in zip(PROMPTS, OPTIONS, strict=True)]
                                  for k in KS] for v in vectors])  # fmt: skip
        assert torch.allclose(found, expected, atol=2e-4), (found - expected).abs().max()
    assert not any(block._forward_hooks for block in decoder_blocks(lm.network))
    assert not torch.allclose(found[:, 0], found[:, 2], atol=0.05), "the vectors do something"


def test_the_prompt_is_read_once(monkeypatch: pytest.MonkeyPatch):
    lm = tiny_language_model()
    questions = encode_questions(lm, PROMPTS[:1] * 4, "(", OPTIONS[:1] * 4)
    shapes: list[tuple[int, ...]] = []
    decoder_blocks(lm.network)[0].register_forward_pre_hook(lambda _m, args: shapes.append(tuple(args[0].shape[:2])))
    score_many(lm, questions, vectors_of("after_user"), KS)
    length = len(questions[0].ids)
    # The assistant's token and the bracket are read anew, 3 strengths of 4 questions in a pass, for each of 2 vectors.
    assert shapes == [(4, length - 2), (12, 2), (12, 2)]


def test_a_strength_of_zero_is_the_unsteered_model():
    lm = tiny_language_model()
    questions = encode_questions(lm, PROMPTS, "(", OPTIONS)
    found = score_many(lm, questions, vectors_of("after_user"), KS)[:, 1]
    with torch.inference_mode():
        for i, question in enumerate(questions):
            log_p = lm.network(torch.tensor([question.ids])).logits[0, -1].log_softmax(-1)
            assert found[0, i].tolist() == pytest.approx(log_p[list(question.options)].tolist(), abs=2e-4)
    assert torch.allclose(found[0], found[1], atol=1e-5)


def test_bad_input():
    lm = tiny_language_model(max_position_embeddings=64)
    with pytest.raises(DataError) as error:
        encode_questions(lm, ["Q?", "R?"], "", [("A", "B"), ("Yes", "No")])
    assert "answers of 2 questions: 2 problems" in str(error.value)
    assert "'R?': answers ['Yes', 'No'] are [3, 2] tokens" in str(error.value)
    assert "expected answers of one token" in str(error.value)
    questions = encode_questions(lm, ["Q?"], "(", [("A", "B")])
    [vector, _] = vectors_of("after_user")
    with pytest.raises(AdapterError, match=r"k = inf: not a finite number"):
        score_many(lm, questions, [vector], [0.0, math.inf])
    with pytest.raises(AdapterError, match=r"block 7 of width 32 does not exist in llama, which has 2 blocks"):
        score_many(lm, questions, [ActivationVector({7: torch.ones(32)})], [1.0])
    with pytest.raises(AdapterError, match=r"activation vector of base other, model llama is fp-llama"):
        score_many(lm, questions, [ActivationVector({0: torch.ones(32)}, "other")], [1.0])
    long = encode_questions(lm, ["word " * 20], "(", [("A", "B")])
    with pytest.raises(DataError, match=r"a text of \d+ tokens: longer than the context of llama, 64 tokens"):
        score_many(lm, long, [vector], [1.0])
