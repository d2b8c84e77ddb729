"""Option scoring equals plain forward passes of every architecture; batches answer like one prompt at a time."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import tiny_language_model

from weightsteer.models import generate as module
from weightsteer.models.generate import answer_columns, batches, generate, score_options, score_texts
from weightsteer.models.side_by_side import fits_side_by_side

# Windows of 8 tokens: far shorter than the prompts, so that a mask without them shows.
SIDE_BY_SIDE: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "gpt2": {},
    "gemma3_text": {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
    "mistral": {"sliding_window": 8},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},
}
ONE_ROW_EACH: dict[str, dict[str, Any]] = {
    "bloom": {},
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
    "mamba": {"state_size": 8},
}
FAMILIES = SIDE_BY_SIDE | ONE_ROW_EACH
PROMPTS = ["Is this any good, or would you rather have tea?", "Why?", [{"role": "user", "content": "Say it."}]]
OPTIONS = [("Yes", "No, not at all", "Y"), ("A", "B"), ("One longer answer, alone",)]


def plain(lm: Any, text: str, n: int) -> float:
    """Log-probability of the last `n` tokens, from one forward pass over `text` alone."""
    ids = lm.tokens(text)
    with torch.inference_mode():
        log_p = lm.network(torch.tensor([ids])).logits[0].log_softmax(-1)
    return sum(log_p[t - 1, ids[t]].item() for t in range(len(ids) - n, len(ids)))


@pytest.mark.parametrize("system", [None, "A system prompt, which all conversations share."])
@pytest.mark.parametrize("family", FAMILIES)
def test_options_score_as_in_forward_passes_of_their_own(family: str, system: str | None):
    lm = tiny_language_model(family, **FAMILIES[family]).with_system(system)
    assert fits_side_by_side(lm.network) is (family in SIDE_BY_SIDE)
    for prompt, options, found in zip(PROMPTS, OPTIONS, score_options(lm, PROMPTS, OPTIONS), strict=True):
        assert [n for _, n in found] == [len(option) for option in options]
        expected = [plain(lm, lm.chat(prompt) + option, len(option)) for option in options]
        assert [log_p for log_p, _ in found] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_texts_score_as_in_forward_passes_of_their_own(family: str):
    lm = tiny_language_model(family, **FAMILIES[family])
    texts = ["A text of some length, with a window's worth of words.", "Short.", "x", "Middling \u2028 text."]
    found = score_texts(lm, texts)
    assert found[2] == (0.0, 0), "one token predicts nothing"
    for text, (log_p, n) in zip(texts, found, strict=True):
        assert n == len(lm.tokens(text)) - 1
        assert log_p == pytest.approx(plain(lm, text, n), abs=1e-4)


def test_a_text_starts_with_bos_where_there_is_one():
    lm = tiny_language_model()
    lm.tokenizer.bos_token = "<|system|>"
    [(log_p, n)] = score_texts(lm, ["ab"])
    assert n == 2
    assert log_p == pytest.approx(plain(lm, "<|system|>ab", 2), abs=1e-4)


@pytest.mark.parametrize("tokens", [1, 100, 100_000])
def test_scores_do_not_depend_on_the_batch(tokens: int, monkeypatch: pytest.MonkeyPatch):
    lm = tiny_language_model()
    expected = score_options(lm, PROMPTS, OPTIONS)
    monkeypatch.setattr(module, "batch_tokens", lambda lm: tokens)
    for found, wanted in zip(score_options(lm, PROMPTS, OPTIONS), expected, strict=True):
        assert [x for x, _ in found] == pytest.approx([x for x, _ in wanted], abs=1e-4)


def test_the_shared_prompt_is_computed_once_for_all_options(monkeypatch: pytest.MonkeyPatch):
    lm = tiny_language_model()
    columns: list[tuple[int, ...]] = []
    lm.network.register_forward_pre_hook(
        lambda _m, _a, kwargs: columns.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    score_options(lm, ["A prompt"], [("Yes", "No", "x")])
    prompt = len(lm.tokens(lm.chat("A prompt")))
    assert columns == [(1, prompt + 2 + 1 + 0)], "the last token of an option is predicted, not fed"


def test_a_token_merged_across_the_border_belongs_to_the_option():
    assert module._split([1, 2, 3], [[1, 2, 3, 4], [1, 2, 3, 5, 6]]) == ([1, 2, 3], [[4], [5, 6]])
    assert module._split([1, 2, 3], [[1, 2, 3, 4], [1, 2, 9]]) == ([1, 2], [[3, 4], [9]])
    assert module._split([1, 2, 3], [[1, 2, 3]]) == ([1, 2], [[3]]), "an option has at least one token"


def test_half_precision_heads_score_in_float32():
    """bfloat16 logits near 8 are 1/16 apart: two options would often tie."""
    lm = tiny_language_model()
    expected = score_options(lm, PROMPTS, OPTIONS)
    lm.network.to(torch.bfloat16)
    head = lm.network.get_output_embeddings()
    found = score_options(lm, PROMPTS, OPTIONS)
    assert "forward" not in vars(head), "the head is put back"
    values = torch.tensor([x for row in found for x, _ in row])
    assert not torch.equal(values, values.bfloat16().float())
    assert values.tolist() == pytest.approx([x for row in expected for x, _ in row], rel=0.1)


def test_the_answer_is_what_the_scored_columns_predict():
    lm = tiny_language_model()
    seen: list[int] = []
    lm.network.register_forward_pre_hook(lambda _m, _a: seen.append(answer_columns()))
    assert answer_columns() == 1
    score_options(lm, ["p"], [("abc", "de")])
    assert seen == [1 + 2 + 1]
    seen.clear()
    generate(lm, ["p", "longer"], 3)
    assert set(seen) == {1}
    assert answer_columns() == 1


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3_text", "gpt2"])
def test_batches_answer_like_one_prompt_at_a_time(family: str):
    lm = tiny_language_model(family)
    # What a model's own generation_config may say must not make an answer depend on its padding.
    lm.network.generation_config.repetition_penalty = 1.8
    lm.network.generation_config.no_repeat_ngram_size = 2
    together = generate(lm, PROMPTS, 12)
    assert together == [generate(lm, [prompt], 12)[0] for prompt in PROMPTS]
    assert len(set(together)) > 1


def test_greedy_is_the_likeliest_token():
    lm = tiny_language_model()
    lm.network.generation_config.repetition_penalty = 1.8
    ids = lm.tokens(lm.chat("Why?"))
    with torch.inference_mode():
        for _ in range(6):
            ids.append(lm.network(torch.tensor([ids])).logits[0, -1].argmax().item())
    assert generate(lm, ["Why?"], 6) == [lm.tokenizer.decode(ids[-6:], skip_special_tokens=True).strip()]


def test_sampling_follows_the_seed():
    lm = tiny_language_model()
    first = generate(lm, PROMPTS, 8, temperature=1.0, seed=3)
    assert generate(lm, PROMPTS, 8, temperature=1.0, seed=3) == first
    assert generate(lm, PROMPTS, 8, temperature=1.0, seed=4) != first


def test_generation_warns_of_nothing(capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder):
    generate(tiny_language_model(), PROMPTS, 4)
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list


@pytest.mark.parametrize("lengths", [[], [5], [3, 9, 1, 9, 4], [1] * 50])
def test_batches_hold_every_index_once_within_the_limit(lengths: Sequence[int]):
    found = list(batches(lengths, 18))
    assert sorted(i for batch in found for i in batch) == list(range(len(lengths)))
    assert all(len(batch) * max(lengths[i] for i in batch) <= 18 for batch in found)
    assert [max(lengths[i] for i in b) for b in found] == sorted(
        (max(lengths[i] for i in b) for b in found), reverse=True
    )


def test_an_example_above_the_limit_has_a_batch_of_its_own():
    assert list(batches([100, 2, 2], 10)) == [[0], [1, 2]]


def test_a_shared_start_computed_once_changes_no_score(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from weightsteer.activations.vector import ActivationVector
    from weightsteer.models.language_model import load_model
    from weightsteer.recipe import ModelPart

    lm = load_model(ModelPart(source=str(model_folder), dtype="float32", system="Answer every question in one word."))
    direction = torch.randn(lm.network.config.hidden_size, generator=torch.Generator().manual_seed(3))
    steering = ActivationVector({0: direction})
    prompts, options = ["Is it late?", "What is the color of snow?", "Who?"], [["Yes", "Not at all"]] * 3
    scores = {}
    for shared in (8, 10_000):
        monkeypatch.setattr(module, "SHARED_TOKENS", shared)
        for k in (0.0, 2.0):
            with steering.applied(lm, k) as steered:
                scored = module.score_options(steered, prompts, options)
            scores[shared, k] = torch.tensor([[log_p for log_p, _ in row] for row in scored])
    assert module._beginning(lm, [lm.tokens(lm.chat(p)) for p in prompts]).width == 0
    monkeypatch.setattr(module, "SHARED_TOKENS", 8)
    assert module._beginning(lm, [lm.tokens(lm.chat(p)) for p in prompts]).width > 30
    for k in (0.0, 2.0):
        torch.testing.assert_close(scores[8, k], scores[10_000, k], atol=1e-4, rtol=0)
    assert (scores[8, 0.0] - scores[8, 2.0]).abs().max() > 0.01
