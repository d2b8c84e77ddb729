"""KV-cache steering: the same as editing the cache by hand in plain transformers, however the model is run."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny_models import FAMILIES, tiny_language_model
from transformers import DynamicCache

from weightsteer.activations.kv_cache import FILE, KVCacheVector, kv_cache_vector
from weightsteer.activations.vector import ActivationVector
from weightsteer.data.contrast import load_pairs
from weightsteer.errors import AdapterError, DataError, ModelError, RecipeError
from weightsteer.methods import Fit, kv_cache
from weightsteer.models.generate import generate, score_options, score_texts
from weightsteer.models.language_model import LanguageModel, load_model
from weightsteer.models.paths import greedy_paths, path_log_probs
from weightsteer.recipe import load_recipe

PROMPTS = ["Is tea good?", "And how about a much longer question, then?", "Tea"]
EVALS = ["agreement", "preference"]


def vector_for(lm: LanguageModel, seed: int = 0, size: float = 3.0) -> KVCacheVector:
    config, draw = lm.network.config, torch.Generator().manual_seed(seed)
    shape = (config.num_key_value_heads, getattr(config, "head_dim", 8))
    keys, values = ({b: size * torch.randn(shape, generator=draw) for b in blocks} for blocks in ([1], [0, 1]))
    return KVCacheVector(keys, values, lm.ref.fingerprint)


@torch.inference_mode()
def edited_cache(lm: LanguageModel, prompt: list[int], vector: KVCacheVector, k: float) -> DynamicCache:
    """The cache of a prompt without its last token, changed by hand at its last position."""
    cache = DynamicCache()
    lm.network(torch.tensor([prompt[:-1]]), past_key_values=cache, use_cache=True)
    for block, layer in enumerate(cache.layers):
        if block in vector.keys:
            layer.keys[0, :, len(prompt) - 2] += k * vector.keys[block]
        if block in vector.values:
            layer.values[0, :, len(prompt) - 2] += k * vector.values[block]
    return cache


@torch.inference_mode()
def by_hand(lm: LanguageModel, prompt: list[int], answer: list[int], vector: KVCacheVector, k: float) -> torch.Tensor:
    """Log-probabilities at each step of an answer, token by token on the edited cache."""
    cache, rows = edited_cache(lm, prompt, vector, k), []
    for token in [prompt[-1], *answer[:-1]]:
        logits = lm.network(torch.tensor([[token]]), past_key_values=cache, use_cache=True).logits
        rows.append(logits[0, -1].log_softmax(-1))
    return torch.stack(rows)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_edit_is_that_of_the_cache_in_plain_transformers(family: str):
    lm = tiny_language_model(family, sliding_window=6) if family.startswith("gemma") else tiny_language_model(family)
    vector, k = vector_for(lm), 1.5
    ids = [lm.tokens(lm.chat(prompt)) for prompt in PROMPTS]
    with vector.applied(lm, k) as steered:
        paths = greedy_paths(steered, ids, 6)
        told = path_log_probs(steered, ids, paths)
        answers = generate(steered, PROMPTS, 6)
        alone = [steered.network(torch.tensor([row])).logits[0, -1].log_softmax(-1) for row in ids]
        options = score_options(steered, PROMPTS, [["Yes", "No way"]] * len(PROMPTS))
    for row, path, log_p, answer, first, scored in zip(ids, paths, told, answers, alone, options, strict=True):
        expected = by_hand(lm, row, path, vector, k)
        assert path == expected.argmax(-1).tolist(), "generated from the edited cache"
        assert lm.tokenizer.decode(path, skip_special_tokens=True).strip() == answer
        assert torch.allclose(log_p, expected, atol=2e-4), "one pass over the path"
        assert torch.allclose(first, expected[0], atol=2e-4)
        for (total, count), option in zip(scored, ("Yes", "No way"), strict=True):
            tokens = lm.tokens(option)
            steps = by_hand(lm, row, tokens, vector, k)
            assert count == len(tokens)
            assert total == pytest.approx(steps[range(count), tokens].sum().item(), abs=2e-3)


def test_logits_before_the_edit_are_those_of_the_model():
    lm = tiny_language_model()
    ids = torch.tensor([lm.tokens(lm.chat(PROMPTS[0]))])
    plain = lm.network(ids).logits
    with vector_for(lm).applied(lm, 2.0) as steered:
        found = steered.network(ids).logits
    assert found.shape == plain.shape
    assert torch.allclose(found[:, :-1], plain[:, :-1], atol=1e-5)
    assert not torch.allclose(found[:, -1], plain[:, -1], atol=0.1)


def test_a_shared_start_of_the_prompts_changes_nothing():
    lm = tiny_language_model().with_system("You answer in a word, and you think before you do.")
    options = [["Yes", "No way"]] * len(PROMPTS)
    with vector_for(lm).applied(lm, 1.0) as steered:
        together = score_options(steered, PROMPTS, options)
        alone = [score_options(steered, [prompt], options[:1])[0] for prompt in PROMPTS]
    for ours, theirs in zip(together, alone, strict=True):
        assert [s for s, _ in ours] == pytest.approx([s for s, _ in theirs], abs=1e-3)


def test_strength_zero_is_the_model_and_leaving_restores_it():
    lm, ids = tiny_language_model(), torch.tensor([[1, 2, 3, 4]])
    plain, vector = lm.network(ids).logits, vector_for(tiny_language_model())
    with vector.applied(lm, 0) as same:
        assert torch.equal(same.network(ids).logits, plain)
    with vector.applied(lm, 1):
        assert not torch.equal(lm.network(ids).logits, plain)
    with pytest.raises(IndexError), vector.applied(lm, 1):
        lm.network(torch.tensor([[999, 999]]))
    assert torch.equal(lm.network(ids).logits, plain)
    assert "forward" not in lm.network.get_decoder().__dict__


def test_edits_add_up_and_stand_beside_an_activation_vector():
    lm, ids = tiny_language_model(), [torch.tensor(list(b"Is tea good?")).tolist()]
    one, other = vector_for(lm, 0), vector_for(lm, 1)
    both = KVCacheVector(
        {b: one.keys[b] + other.keys[b] for b in one.keys}, {b: one.values[b] + other.values[b] for b in one.values}
    )
    with both.applied(lm, 1.0):
        expected = path_log_probs(lm, ids, [[65, 66]])
    with one.applied(lm, 1.0), other.applied(lm, 1.0):
        found = path_log_probs(lm, ids, [[65, 66]])
    assert torch.allclose(found[0], expected[0], atol=1e-4)
    direction = ActivationVector({0: torch.ones(32)}, None, "generated")
    with direction.applied(lm, 1.0):
        expected_paths = by_hand_steered(lm, ids[0], one)
    with one.applied(lm, 1.0), direction.applied(lm, 1.0):
        assert torch.allclose(lm.network(torch.tensor(ids)).logits[0, -1], expected_paths, atol=1e-4)


@torch.inference_mode()
def by_hand_steered(lm: LanguageModel, prompt: list[int], vector: KVCacheVector) -> torch.Tensor:
    """Last logits when an activation vector acts on the last token alone, after the edit."""
    hooks = [(b, dict(b._forward_hooks)) for b in lm.network.model.layers]
    for block, _ in hooks:
        block._forward_hooks.clear()
    cache = edited_cache(lm, prompt, vector, 1.0)
    for block, kept in hooks:
        block._forward_hooks.update(kept)
    return lm.network(torch.tensor([prompt[-1:]]), past_key_values=cache, use_cache=True).logits[0, -1]


def test_the_vector_is_the_mean_difference_of_the_caches():
    lm = tiny_language_model()
    positive, negative = [list(b"Oh yes, it is."), list(b"Yes!")], [list(b"No."), list(b"No, no, never that.")]
    vector = kv_cache_vector(lm, positive, negative, key_scale=0.5, value_scale=2.0)
    assert (list(vector.keys), list(vector.values)) == ([1], [1])

    def mean(prompts: list[list[int]], part: str) -> torch.Tensor:
        layers = [edited_cache(lm, prompt, KVCacheVector({}, {}), 1.0).layers[1] for prompt in prompts]
        return torch.stack([getattr(layer, part)[0, :, -1] for layer in layers]).mean(0)

    for part, scale in (("keys", 0.5), ("values", 2.0)):
        expected = scale * (mean(positive, part) - mean(negative, part))
        assert torch.allclose(getattr(vector, part)[1], expected, atol=1e-5)
    assert kv_cache_vector(lm, positive, negative).keys == {}, "keys stay as they are unless a scale is given"


def test_contrast_prompts_differ_in_the_answers_of_their_examples_alone(write_recipe: Callable[..., Path]):
    pairs = load_pairs(load_recipe(write_recipe())).part("train").pairs
    positive, negative = kv_cache.contrast_prompts(pairs, 2, 4, 0)
    assert len(positive) == len(negative) == 4
    by_prompt = {pair.prompt: pair for pair in pairs}
    for ours, theirs in zip(positive, negative, strict=True):
        assert [turn["role"] for turn in ours] == ["user", "assistant", "user", "assistant", "user"]
        assert [t["content"] for t in ours[::2]] == [t["content"] for t in theirs[::2]]
        assert len({turn["content"] for turn in ours[::2]}) == 3
        for asked, yes, no in zip(ours[::2], ours[1::2], theirs[1::2], strict=False):
            pair = by_prompt[asked["content"]]
            assert (yes["content"], no["content"]) == (pair.positive, pair.negative)


def test_the_method_fits_saves_and_finds_itself_again(write_recipe: Callable[..., Path], tmp_path: Path):
    methods = [{"name": "kv-cache", "examples": 2, "prompts": 4, "value_scale": 3}]
    recipe = load_recipe(write_recipe(methods=methods, evals=EVALS, merge_k=None))
    pairs, lm, settings = load_pairs(recipe), load_model(recipe.model), recipe.method("kv-cache")
    kv_cache.check(settings, recipe, pairs)
    vector = kv_cache.fit(settings, Fit(recipe, pairs, lm, tmp_path, 0))
    again = kv_cache.fit(settings, Fit(recipe, pairs, lm, tmp_path, 0))
    assert len(vector.digest) == 64
    assert (again.digest, again.base, again.info["value_scale"]) == (vector.digest, lm.ref.fingerprint, 3)
    sides = kv_cache.contrast_prompts(pairs.part("train").pairs, 2, 4, recipe.seed)
    direct = kv_cache_vector(lm, *([lm.tokens(lm.chat(p)) for p in side] for side in sides), value_scale=3.0)
    assert direct.digest == vector.digest
    plain = score_options(lm, ["Tea?"], [["Yes"]])
    with vector.applied(lm, 2) as steered:
        assert score_options(steered, ["Tea?"], [["Yes"]]) != plain


def test_what_the_method_cannot_do_is_said_before_a_run(write_recipe: Callable[..., Path]):
    recipe = load_recipe(write_recipe(methods=["kv-cache"], merge_k=None))
    pairs, settings = load_pairs(recipe), recipe.method("kv-cache")
    with pytest.raises(RecipeError, match=r"methods kv-cache: changes the cache of a prompt, and capability scores"):
        kv_cache.check(settings, recipe, pairs)
    with pytest.raises(DataError, match=r"kv-cache: \d+ training pairs for a question after 99 examples"):
        kv_cache.check(settings.model_copy(update={"examples": 99}), recipe, pairs)
    with pytest.raises(RecipeError, match=r"key_scale and value_scale are both 0"):
        load_recipe(write_recipe(methods=[{"name": "kv-cache", "value_scale": 0}], merge_k=None))


def test_bad_input_is_said(tmp_path: Path):
    lm = tiny_language_model()
    vector = vector_for(lm)
    with vector.applied(lm, 1.0), pytest.raises(AdapterError, match=r"prompts in rows \[0, 1\] have one token"):
        score_texts(lm, ["Tea is good.", "Bad."])
    with vector.applied(lm, 1.0), pytest.raises(AdapterError, match=r"prompts in rows \[0\] have one token"):
        lm.network(torch.tensor([[5]]))
    with pytest.raises(AdapterError, match=r"k = nan: not a finite number"), vector.applied(lm, float("nan")):
        pass
    other = tiny_language_model("qwen2")
    with pytest.raises(AdapterError, match=r"of base fp-llama, model qwen2 is fp-qwen2"), vector.applied(other, 1):
        pass
    with vector.applied(other, 1, any_base=True):
        pass
    wrong = KVCacheVector({}, {2: torch.zeros(2, 8)})
    with pytest.raises(AdapterError, match=r"block 2 of shape \[2, 8\] does not exist in llama"), wrong.applied(lm, 1):
        pass
    wrong = KVCacheVector({}, {1: torch.zeros(4, 8)})
    with pytest.raises(AdapterError, match=r"block 1 of shape \[4, 8\] .* width \[2, 8\]"), wrong.applied(lm, 1):
        pass
    with pytest.raises(DataError, match=r"2 prompts, too short: \[1\]"):
        kv_cache_vector(lm, [[1, 2], [3]], [[1, 2]])
    with pytest.raises(AdapterError, match=r"first_block 2, .* Expected a block of llama, 0 to 1"):
        kv_cache_vector(lm, [[1, 2]], [[1, 3]], first_block=2)
    save_file({"values.0": torch.zeros(2, 8)}, tmp_path / FILE)
    with pytest.raises(AdapterError, match=rf"{FILE}: not a vector \('site'\)"):
        KVCacheVector.load(tmp_path)
    KVCacheVector({}, {0: torch.full((2, 8), float("inf"))}).save(tmp_path)
    with pytest.raises(AdapterError, match=r"unknown or not finite: \['values.0'\]"):
        KVCacheVector.load(tmp_path)


def test_a_model_with_other_state_is_refused():
    lm = tiny_language_model("mamba", num_hidden_layers=2, state_size=4)
    with (
        pytest.raises(ModelError, match=r"mamba: has blocks that keep other state"),
        vector_of_nothing().applied(lm, 1),
    ):
        pass


def vector_of_nothing() -> KVCacheVector:
    return KVCacheVector({}, {0: torch.zeros(2, 8)})
