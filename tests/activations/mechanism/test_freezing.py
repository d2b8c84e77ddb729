"""Frozen parts against passes computed by hand, models in which the answer is known, and parts of weight vectors."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
import torch
from tiny_models import tiny_language_model

from weightsteer.activations.capture import capture, example
from weightsteer.activations.mechanism.anatomy import Part, anatomy
from weightsteer.activations.mechanism.eager import attention_probabilities, eager
from weightsteer.activations.mechanism.freezing import CIRCUITS, compare, freezing_effects, frozen, part_effects
from weightsteer.activations.mechanism.parts import in_blocks, part, without
from weightsteer.activations.vector import ActivationVector
from weightsteer.errors import AdapterError, ModelError
from weightsteer.models.blocks import decoder_blocks
from weightsteer.models.generate import score_options
from weightsteer.models.language_model import LanguageModel
from weightsteer.models.paths import greedy_paths
from weightsteer.weights.base import weight_layout
from weightsteer.weights.lowrank import LowRank, as_dense
from weightsteer.weights.vector import WeightVector

FAMILIES = ["llama", "qwen2", "gemma3_text", "gpt2", "phi3"]
EVERYTHING = (Part("qk"), Part("ov"), Part("mlp"))
PROMPTS = ["Why?", "Is it good, or would you rather have something else today?", "A question of middling length?"]


def activation_vector(*blocks: int, mode: Any = "all", scale: float = 1.0) -> ActivationVector:
    rng = torch.Generator().manual_seed(0)
    return ActivationVector({b: scale * torch.randn(32, generator=rng) for b in blocks}, mode=mode)


def weight_vector(lm: LanguageModel, names: Callable[[str], bool] = lambda name: True, seed: int = 1) -> WeightVector:
    """A random change of rank 2 of every linear layer of the blocks whose name passes, biases and norms too."""
    rng, entries = torch.Generator().manual_seed(seed), {}
    prefix = next(name for name, module in lm.network.named_modules() if module is decoder_blocks(lm.network))
    for name, parameter in lm.network.named_parameters():
        if not name.startswith(prefix) or not names(name):
            continue
        layout = weight_layout(lm.network.get_submodule(name.rpartition(".")[0]))[0]
        if layout and parameter.ndim == 2:
            rows, columns = parameter.shape
            factors = torch.randn(rows, 2, generator=rng), 0.02 * torch.randn(2, columns, generator=rng)
            entries[name] = LowRank(*factors, layout=layout)
        else:
            entries[name] = 0.05 * torch.randn(parameter.shape, generator=rng)
    return WeightVector(entries)


def logits(lm: LanguageModel, text: str = "Is this so?") -> torch.Tensor:
    with torch.inference_mode():
        return lm.network(torch.tensor([lm.tokens(text)]), use_cache=False).logits[0].clone()


@pytest.mark.parametrize("what", ["qk", "ov", "mlp"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_vector_of_zero_changes_nothing(family: str, what: Any):
    lm = tiny_language_model(family)
    base = logits(lm)
    zero = 0 * activation_vector(0, 1)
    for vector, k in ((zero, 1), (activation_vector(0, 1), 0), (0 * weight_vector(lm), 1)):
        with frozen(vector, lm, k, Part(what)) as held:
            assert torch.equal(logits(held), base)
    assert lm.network.config._attn_implementation == "sdpa", "nothing needs switching"


@pytest.mark.parametrize("family", FAMILIES)
def test_with_everything_frozen_only_the_direct_path_is_left(family: str):
    """The residual stream, plus the vector, through the final norm and the head."""
    lm, vector = tiny_language_model(family), activation_vector(0, scale=0.5)
    decoder, into = lm.network.get_decoder(), []
    last = getattr(decoder, "norm", None) or decoder.ln_f
    hook = last.register_forward_pre_hook(lambda _m, given: into.append(given[0]))
    base = logits(lm)
    hook.remove()
    expected = lm.network.get_output_embeddings()(last(into[0] + 2 * vector.directions[0]))[0]
    with frozen(vector, lm, 2, *EVERYTHING) as held:
        found = logits(held)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    assert (found - base).abs().max() > 0.05
    assert torch.equal(logits(lm), base), "left as it was"
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in lm.network.modules())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_weight_vector_with_everything_frozen_leaves_norms_alone(family: str):
    """Output maps, fused rows and norms of queries and keys belong to what is frozen."""
    lm = tiny_language_model(family)
    block_norms = ("layernorm", "ln_")
    base = logits(lm)
    vector = weight_vector(lm, lambda name: not any(norm in name for norm in block_norms))
    with vector.applied(lm, 1) as steered:
        assert (logits(steered) - base).abs().max() > 0.05
    with frozen(vector, lm, 1, *EVERYTHING) as held:
        assert torch.equal(logits(held), base)


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt2"])
@pytest.mark.parametrize("kind", ["activations", "weights"])
def test_probabilities_are_the_unsteered_ones_and_values_are_not(family: str, kind: str):
    lm = tiny_language_model(family)
    vector: Any = activation_vector(0) if kind == "activations" else weight_vector(lm)
    ids = lm.tokens("Some text.")
    with eager(lm):
        base = attention_probabilities(lm, ids)
        with vector.applied(lm, 1) as steered:
            assert not torch.allclose(attention_probabilities(steered, ids), base, atol=1e-2)
        with frozen(vector, lm, 1, Part("qk")) as held:
            assert torch.equal(attention_probabilities(held, ids), base)
        with frozen(vector, lm, 1, Part("ov")) as held:
            assert not torch.allclose(attention_probabilities(held, ids), base, atol=1e-2)


@contextmanager
def outputs_from(lm: LanguageModel, held: dict[str, torch.Tensor], columns: slice) -> Iterator[None]:
    def put(_module: Any, _inputs: Any, output: torch.Tensor, name: str) -> torch.Tensor:
        output = output.clone()
        output[..., columns] = held[name][..., columns]
        return output

    hooks = [
        lm.network.get_submodule(name).register_forward_hook(lambda m, i, o, n=name: put(m, i, o, n)) for name in held
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def by_hand(
    lm: LanguageModel,
    steering: Callable[[], AbstractContextManager[Any]],
    names: list[str],
    ids: list[int],
    columns: slice,
) -> torch.Tensor:
    """Logits of a text in two passes over all of it, without caches."""
    held: dict[str, torch.Tensor] = {}
    hooks = [
        lm.network.get_submodule(name).register_forward_hook(lambda _m, _i, out, n=name: held.update({n: out.clone()}))
        for name in names
    ]
    with torch.inference_mode():
        lm.network(torch.tensor([ids]), use_cache=False)
        for hook in hooks:
            hook.remove()
        with steering(), outputs_from(lm, held, columns):
            return lm.network(torch.tensor([ids]), use_cache=False).logits[0]


CASES = [
    ("llama", "ov", ["model.layers.{}.self_attn.v_proj"], slice(None)),
    ("llama", "qk", ["model.layers.{}.self_attn.q_proj", "model.layers.{}.self_attn.k_proj"], slice(None)),
    ("gemma3_text", "mlp", ["model.layers.{}.mlp"], slice(None)),
    ("gpt2", "ov", ["transformer.h.{}.attn.c_attn"], slice(64, 96)),
    ("phi3", "qk", ["model.layers.{}.self_attn.qkv_proj"], slice(0, 48)),
]


@pytest.mark.parametrize("kind", ["all", "generated", "weights"])
@pytest.mark.parametrize(("family", "what", "names", "columns"), CASES)
def test_generating_equals_two_passes_over_every_prefix(
    family: str, what: Any, names: list[str], columns: slice, kind: str
):
    """With a cache, in one batch padded on the left, against no cache and no padding."""
    lm = tiny_language_model(family)
    in_block = [name.format(number) for number in (0, 1) for name in names]
    # Of weights, what is frozen at its output only: neither projection is read out by changed weights.
    vector: Any = weight_vector(lm, lambda name: "ln_" in name or "norm" in name or (what != "mlp" and ".mlp." in name))
    if kind != "weights":
        vector = activation_vector(0, 1, mode=kind)
    prompts = [lm.tokens(lm.chat(prompt)) for prompt in PROMPTS]

    @contextmanager
    def steering(prompt: list[int]) -> Iterator[None]:
        if kind == "weights":
            with vector.applied(lm, 1.5):
                yield
            return
        first, blocks = (0 if kind == "all" else len(prompt) - 1), decoder_blocks(lm.network)
        hooks = [
            blocks[b].register_forward_hook(
                lambda _m, _i, out, v=v: torch.cat([out[:, :first], out[:, first:] + 1.5 * v], 1)
            )
            for b, v in vector.directions.items()
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    with frozen(vector, lm, 1.5, Part(what)) as held:
        found = greedy_paths(held, prompts, 5)
    for prompt, path in zip(prompts, found, strict=True):
        ids = list(prompt)
        for token in path:
            after = by_hand(lm, lambda p=prompt: steering(p), in_block, ids, columns)[-1]
            assert after[token] > after.max() - 1e-3
            ids.append(token)


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_options_are_scored_as_in_passes_of_their_own(family: str):
    """Options stand side by side, after a start in a cache that all prompts share; activations are read as well."""
    lm = tiny_language_model(family).with_system("A system prompt that all conversations share.")
    vector, names = activation_vector(0), [f"model.layers.{b}.self_attn.v_proj" for b in (0, 1)]
    options = [("Yes, I think", "N"), ("a", "bcdef", "gh"), ("x", "y")]
    with frozen(vector, lm, 2, Part("ov")) as held:
        found = score_options(held, PROMPTS, options)
        text = lm.tokens("Some text.")
        read = capture(held, [example(text, [], "prompt")]).mean[0]
    plain = score_options(lm, PROMPTS, options)
    for prompt, choices, row, unsteered in zip(PROMPTS, options, found, plain, strict=True):
        start = lm.tokens(lm.chat(prompt))
        for option, (log_p, _), (before, _) in zip(choices, row, unsteered, strict=True):
            ids = start + lm.tokens(option)
            expected = by_hand(lm, lambda: vector.applied(lm, 2), names, ids, slice(None)).log_softmax(-1)
            total = sum(expected[t - 1, ids[t]].item() for t in range(len(start), len(ids)))
            assert log_p == pytest.approx(total, abs=1e-3)
            assert log_p != before
    with vector.applied(lm, 2) as steered:
        free = capture(steered, [example(text, [], "prompt")]).mean[0]
    assert torch.allclose(read[0], free[0], atol=1e-5)
    assert not torch.allclose(read[1], free[1], atol=1e-2)


def carried_by_one_head(by: str) -> LanguageModel:
    """The vector is dimension 0, which the output head does not see; head 2 of block 1 alone can pass it on.

    By "ov": it moves dimension 0 to the others; by "qk": dimension 0 decides where it looks, and no value has it.
    """
    lm = tiny_language_model(num_key_value_heads=4)
    first, block = decoder_blocks(lm.network)
    for module in (first.self_attn.o_proj, first.mlp.down_proj, block.mlp.down_proj):
        module.weight.data.zero_()
    others = [i for i in range(32) if not 16 <= i < 24]
    attention = block.self_attn
    attention.o_proj.weight.data[:, others] = 0
    attention.o_proj.weight.data[0] = 0
    lm.network.lm_head.weight.data[:, 0] = 0
    for module in (attention.q_proj, attention.k_proj, attention.v_proj):
        module.weight.data[:, 0] = 0
    if by == "ov":
        attention.v_proj.weight.data[16:24, 0] = 20.0
    else:
        attention.q_proj.weight.data[16:24, 0] = 60.0
    return lm


# Small beside what a token's norm divides by.
CARRIED = ActivationVector({0: 0.1 * torch.eye(32)[0]}, mode="all")


@pytest.mark.parametrize(("by", "other"), [("ov", "qk"), ("qk", "ov")])
def test_the_head_that_alone_carries_the_vector_is_found(by: Any, other: Any):
    lm = carried_by_one_head(by)
    base = [logits(lm, text) for text in PROMPTS]

    def change(model: LanguageModel) -> list[float]:
        return [(logits(model, text) - before).norm().item() for text, before in zip(PROMPTS, base, strict=True)]

    cases = {f"{what} {head}": [Part(what, (1,), (head,))] for what in (by, other) for head in range(4)}
    cases["all"] = list(EVERYTHING)
    cases["block 0"] = [Part(what, (0,)) for what in ("qk", "ov", "mlp")]
    found = freezing_effects(CARRIED, lm, 1, change, cases)
    assert found.items == 3
    assert found.whole.mean > 0.5
    shares = {name: kept.share_lost.mean for name, kept in found.cases.items() if kept.share_lost}
    assert shares.keys() == cases.keys()
    assert shares[f"{by} 2"] > 0.9
    assert shares["all"] > 0.9
    assert shares[f"{other} 2"] < 0.1
    for harmless in ("block 0", *(f"{what} {head}" for what in (by, other) for head in (0, 1, 3))):
        assert shares[harmless] == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_parts_of_a_weight_vector_add_up_to_it(family: str):
    lm = tiny_language_model(family)
    vector = weight_vector(lm)
    pieces = [part(vector, lm, one) for one in EVERYTHING] + [without(vector, lm, *EVERYTHING)]
    total = pieces[0] + pieces[1] + pieces[2] + pieces[3]
    assert total.entries.keys() == vector.entries.keys()
    for name, change in vector.entries.items():
        torch.testing.assert_close(as_dense(total.entries[name]), as_dense(change))
    assert sum(piece.norm() ** 2 for piece in pieces) == pytest.approx(vector.norm() ** 2), "they do not overlap"
    vector = WeightVector(
        {n: change for n, change in vector.entries.items() if not n.endswith(("o_proj.bias", "c_proj.bias"))}
    )
    heads = [part(vector, lm, Part("ov", None, heads)) for heads in ((0, 1), (2, 3))]
    weights = part(vector, lm, Part("ov")).entries.keys()
    assert weights
    for name in weights:
        both = as_dense(heads[0].entries[name]) + as_dense(heads[1].entries[name])
        torch.testing.assert_close(both, as_dense(part(vector, lm, Part("ov")).entries[name]))
    assert in_blocks(vector, lm, [1]).norm_by_block().keys() == {1}
    assert part(vector, lm, Part("mlp", (0,))).info["notes"] == ["only mlp of blocks 0"]


def test_rows_of_a_fused_layer():
    lm = tiny_language_model("gpt2")
    vector = weight_vector(lm, lambda name: "c_attn" in name)
    name = "transformer.h.0.attn.c_attn"
    for ending in ("weight", "bias"):
        whole = as_dense(vector.entries[f"{name}.{ending}"])
        kept = as_dense(part(vector, lm, Part("ov")).entries[f"{name}.{ending}"])
        assert torch.equal(kept[..., 64:], whole[..., 64:])
        assert not kept[..., :64].any()


def test_the_last_blocks_queries_do_not_carry_its_values():
    """Known without computing: of changed values in the last block, freezing its probabilities loses nothing."""
    lm = tiny_language_model()
    vector = weight_vector(lm, lambda name: "layers.1.self_attn.v_proj" in name)

    def effect(model: LanguageModel) -> list[float]:
        return [logits(model, text)[-1, 65].item() * (-1) ** i for i, text in enumerate(PROMPTS)]

    with vector.applied(lm, 1) as steered:
        whole = logits(steered)
    with frozen(vector, lm, 1, Part("qk"), Part("mlp", (0,))) as held:
        assert torch.equal(logits(held), whole)
    found = part_effects(vector, lm, 1, effect, {what: part(vector, lm, Part(what)) for what in ("qk", "ov")})
    assert found.cases["ov"].lost.mean == 0
    assert found.cases["qk"].change.mean == 0
    assert freezing_effects(vector, lm, 1, effect).cases.keys() == CIRCUITS.keys()


def test_shares_of_an_effect():
    base, steered = [0.0, 1.0, 2.0, 3.0], [4.0, 5.0, 7.0, 7.0]
    found = compare(base, steered, {"half": [2.0, 3.0, 4.5, 5.0], "none": base, "turned": [-5.0, -2.0, -3.0, -1.0]})
    assert found.whole.mean == 4.25
    half = found.cases["half"]
    assert (half.change.mean, half.lost.mean) == (2.125, 2.125)
    assert half.share is not None
    assert (half.share.mean, half.share.low, half.share.high) == (0.5, 0.5, 0.5)
    assert found.cases["none"].share_lost is not None
    assert found.cases["none"].share_lost.mean == 1
    turned = found.cases["turned"].share_lost
    assert turned is not None
    assert turned.mean == pytest.approx(1 + 4.25 / 4.25)
    assert turned.low < turned.mean < turned.high
    assert compare(base, [1.0, 0.0, 3.0, 2.0], {"none": base}).cases["none"].share is None, "nothing to take a share of"
    with pytest.raises(ValueError, match="of 3 and 4 items"):
        compare(base, base[:3], {})


def refused(error: type[Exception], message: str, lm: LanguageModel, vector: Any, *parts: Part) -> None:
    with pytest.raises(error, match=message), frozen(vector, lm, 1, *parts):
        pass


class Prompt:
    """Steers as the prompt baseline does."""

    @contextmanager
    def applied(self, lm: Any, k: float) -> Iterator[Any]:
        yield lm.with_system("Be kind.")


def test_what_does_not_fit_is_said():
    lm = tiny_language_model()
    vector = activation_vector(0)
    refused(ModelError, "block 2: does not exist in LlamaForCausalLM", lm, vector, Part("qk", (2,)))
    refused(ModelError, "head 9 of block 0: does not exist", lm, vector, Part("ov", (0,), (9,)))
    other = ActivationVector(vector.directions, "fp-other")
    refused(AdapterError, "activation vector of base fp-other, model llama is fp-llama", lm, other, Part("qk"))
    weights = WeightVector(weight_vector(lm).entries, "fp-other")
    refused(AdapterError, "made for base fp-other, the model llama is fp-llama", lm, weights, Part("qk"))
    refused(AdapterError, "LlamaForCausalLM cannot take", lm, weight_vector(tiny_language_model("gpt2")), Part("qk"))
    refused(AdapterError, "Prompt: steers by the prompt", lm, Prompt(), Part("qk"))
    qwen = tiny_language_model("gemma3_text")
    message = r"q_norm.weight: is changed by the vector and shared by all heads, heads \[0, 1\] are asked for"
    refused(AdapterError, message, qwen, weight_vector(qwen), Part("qk", None, (0, 1)))
    with frozen(vector, lm, 1, Part("qk")):
        refused(AdapterError, "LlamaForCausalLM: its forward pass is replaced already", lm, vector, Part("ov"))
        ids = torch.zeros(1, 2, 32)
        with pytest.raises(ModelError, match="a frozen Linear ran twice in a pass of the decoder, or outside"):
            decoder_blocks(lm.network)[0].self_attn.q_proj(ids)
    assert not any(module._forward_hooks for module in lm.network.modules())
    assert "forward" not in vars(lm.network.get_decoder())
    with pytest.raises(ModelError, match=r"block 3: does not exist"):
        in_blocks(weight_vector(lm), lm, [3])


def test_a_cache_begun_elsewhere_is_refused():
    lm, ids = tiny_language_model(), torch.tensor([[65, 66]])
    cache = lm.network(ids, use_cache=True).past_key_values
    message = r"a cache of 2 tokens: 0 of them were read without steering"
    with frozen(activation_vector(0), lm, 1, Part("qk")) as held, pytest.raises(AdapterError, match=message):
        held.network(ids, past_key_values=cache)


def test_blocks_that_share_keys_are_said():
    lm = tiny_language_model()
    unused = anatomy(lm.network, 1).k.module
    decoder_blocks(lm.network)[1].self_attn.forward = decoder_blocks(lm.network)[0].self_attn.forward
    message = r"model.layers.1.self_attn.q_proj, model.layers.1.self_attn.k_proj took no part in a forward pass"
    with frozen(activation_vector(0), lm, 1, Part("qk", (1,))) as held, pytest.raises(ModelError, match=message):
        logits(held)
    assert not unused._forward_hooks
