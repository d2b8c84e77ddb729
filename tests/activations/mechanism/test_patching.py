"""Nothing patched is one run and everything the other, exactly; what is patched is what the name says."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from compared import PROMPTS, activation_vector, compared, comparison_of, small_model, weight_vector
from torch import nn

from weightsteer.activations.mechanism.nodes import Node, anatomy, check_sums
from weightsteer.activations.mechanism.patching import compare, forced_examples, patch
from weightsteer.errors import AdapterError, DataError, ModelError
from weightsteer.models.generate import generate

# Sums in another order, in float32, of logits around 10.
EXACT = 1e-5
FAMILIES = ("llama", "qwen2", "gemma3_text", "gpt2")


@pytest.mark.parametrize("kind", ["activations", "weights"])
@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_and_everything(family: str, kind: str):
    found = comparison_of(family, kind)
    assert (found.steered["logit"] > 0).all()
    assert (found.base["logit"] < 0).all()
    for metric in ("logit", "kl"):
        forth = patch(found, [(), found.nodes], "base", metric)
        back = patch(found, [(), found.nodes], "steered", metric)
        for values, ends in ((forth, (found.base, found.steered)), (back, (found.steered, found.base))):
            for column, end in enumerate(ends):
                assert torch.allclose(values[:, column], end[metric], atol=EXACT, rtol=0)


@pytest.mark.parametrize("kind", ["activations", "weights"])
def test_what_is_in_the_stream_hides_what_came_before(kind: str):
    """The last block input and the logits are cuts: either alone gives the steered run."""
    found = comparison_of("gemma3_text", kind)
    values = patch(found, [[Node("input", 2)], [Node("output", 2)]])
    assert torch.allclose(values, found.steered["logit"][:, None].expand(-1, 2), atol=EXACT, rtol=0)


def test_norms_and_biases_belong_to_what_they_stand_behind():
    """Gemma's norm behind the attention is part of the heads, the embedding is the first input."""
    lm = small_model("gemma3_text")
    layer = "model.layers.1"
    dense = (
        f"{layer}.post_attention_layernorm.weight",
        f"{layer}.post_feedforward_layernorm.weight",
        "model.embed_tokens.weight",
    )
    lm.network.lm_head.weight = nn.Parameter(lm.network.lm_head.weight.clone())  # no longer that of the embedding
    found = compared(lm, weight_vector(lm, 0.2, dense), 0.4)
    values = patch(found, [found.nodes])
    assert torch.allclose(values[:, 0], found.steered["logit"], atol=EXACT, rtol=0)
    lm = small_model("gpt2")
    biased = compared(lm, weight_vector(lm, 0.1, ("transformer.h.1.attn.c_proj.bias",)), 1.0)
    values = patch(biased, [biased.nodes])
    assert torch.allclose(values[:, 0], biased.steered["logit"], atol=EXACT, rtol=0)


def test_changed_output_heads_are_no_part_of_the_stream():
    lm = small_model("llama")
    found = compared(lm, weight_vector(lm, 0.1, ("lm_head.weight", "model.norm.weight")), 1.0)
    values = patch(found, [found.nodes, [Node("output", 2)]])
    assert (values[:, 0] - found.steered["logit"]).abs().max() > 0.1
    assert torch.allclose(values[:, 1], found.steered["logit"], atol=EXACT, rtol=0)


def test_a_head_is_its_slice_of_the_output_matrix():
    """Against the run in which the head's values, before the output matrix, are replaced by hand."""
    found = comparison_of("qwen2", "activations")
    batch, out = found.batches[0], found.lm.network.model.layers[1].self_attn.o_proj
    seen: list[torch.Tensor] = []
    watch = out.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    with torch.no_grad(), found.vector.applied(found.lm, found.k) as steered:
        batch.logits(steered)
    watch.remove()

    def put(_module: Any, args: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        return (torch.cat([args[0][..., :16], seen[0][..., 16:24], args[0][..., 24:]], -1),)

    hook = out.register_forward_pre_hook(put)
    with torch.no_grad():
        expected = batch.measure(batch.logits(found.lm), "logit")
    hook.remove()
    values = patch(found, [[Node("head", 1, 2)]])[list(batch.examples), 0]
    assert torch.allclose(values.float(), expected, atol=EXACT, rtol=0)
    assert (values - found.base["logit"][list(batch.examples)]).abs().max() > 1e-3


@pytest.mark.parametrize("mode", ["all", "generated", "answer"])
def test_the_forced_tokens_are_steered_as_while_generating(mode: Any):
    """The steered run's greedy tokens along its own completion are that completion."""
    lm = small_model("llama")
    vector = activation_vector(0, mode=mode)
    prompts = [lm.tokens(lm.chat(prompt)) for prompt in PROMPTS]
    examples = forced_examples(lm, vector, 0.4, prompts, 6)
    with vector.applied(lm, 0.4) as steered:
        written = generate(steered, PROMPTS, 6)
    assert [lm.tokenizer.decode(path, skip_special_tokens=True).strip() for _, path in examples[1::2]] == written
    found = compare(lm, vector, 0.4, examples)
    for batch in found.batches:
        for row, step, steered_token, base_token in torch.stack(
            [batch.row, batch.step, batch.steered_token, batch.base_token], 1
        ).tolist():
            example = found.kept[batch.examples[row]]
            assert examples[example][1][step] == (steered_token if example % 2 else base_token)


def test_examples_that_do_not_differ_take_no_part():
    lm = small_model("llama")
    vector = activation_vector(0, mode="answer")
    prompt = lm.tokens(lm.chat("Why?"))
    differing = forced_examples(lm, vector, 0.4, [prompt], 6)
    # The first token of an answer is predicted by the prompt, which is not steered.
    found = compare(lm, vector, 0.4, [(prompt, differing[0][1][:1]), *differing])
    assert found.kept == (1, 2)
    assert found.base["logit"].shape == (2,)
    with pytest.raises(AdapterError, match=r"vector at k = 1e-06: .*nowhere choose different tokens in 2 forced"):
        compare(lm, vector, 1e-6, differing)


def test_padding_makes_no_difference():
    found = comparison_of("gemma3_text", "weights")
    assert any(len(batch.examples) > 1 for batch in found.batches)
    lm, prompts = found.lm, [found.lm.tokens(found.lm.chat(prompt)) for prompt in PROMPTS]
    examples = forced_examples(lm, found.vector, found.k, prompts, 6)
    sets = [[Node("head", 1, 0)], [Node("mlp", 0)]]
    together = patch(found, sets)
    for row, i in enumerate(found.kept):
        alone = patch(compare(lm, found.vector, found.k, [examples[i]]), sets)
        assert torch.allclose(alone[0], together[row], atol=1e-4, rtol=0)


def test_nothing_is_left_behind():
    found = comparison_of("llama", "weights")
    patch(found, [found.nodes], "steered")
    for module in found.lm.network.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def test_nodes_that_do_not_exist():
    found = comparison_of("llama", "activations")
    wrong = [Node("head", 1, 4), Node("mlp", 2), Node("query", 0, 1), Node("input", 3)]
    with pytest.raises(ModelError) as error:
        patch(found, [wrong])
    assert str(error.value).split("\n  ") == [
        "nodes: 4 problems",
        "block 1 head 4: no head 4. Expected a head from 0 to 3",
        "block 2 mlp: no such block. Expected one from 0 to 1",
        "block 0 query 1: is read, not written. Expected an input, head, mlp, vector or output",
        "block 3 input: no such block. Expected one from 0 to 2",
    ]


def test_vectors_that_do_not_fit():
    lm = small_model("llama")
    example = [(lm.tokens("a"), lm.tokens("b"))]
    with pytest.raises(AdapterError, match=r"activation vector of base other, model llama is fp-llama"):
        compare(lm, activation_vector(0, base="other"), 1.0, example)
    with pytest.raises(AdapterError, match=r"the vector was made for base other, the model llama is fp-llama"):
        compare(lm, weight_vector(lm, base="other"), 1.0, example)
    with pytest.raises(AdapterError, match=r"activation vector: ablates. Expected one that adds"):
        compare(lm, activation_vector(0).ablating(), 1.0, example)
    with pytest.raises(AdapterError, match=r"SimpleNamespace: Expected an activation vector or a weight vector"):
        compare(lm, SimpleNamespace(), 1.0, example)
    with pytest.raises(DataError, match=r"forced sequences: example 1 has an empty prompt or completion"):
        compare(lm, activation_vector(0), 1.0, [*example, (lm.tokens("a"), [])])


def test_models_that_are_built_otherwise():
    lm = small_model("llama")
    lm.network.model.layers[1].extra = nn.Linear(2, 2)
    with pytest.raises(ModelError, match=r"LlamaForCausalLM: block 1 has modules self_attn, .*extra. Expected a block"):
        anatomy(lm)
    lm = small_model("llama")
    del lm.network.model.layers[0].self_attn.v_proj
    with pytest.raises(ModelError, match=r"block 0 has attention of q_proj, k_proj, o_proj"):
        anatomy(lm)


def test_sums_are_checked():
    """A block that scales what it adds is not taken for one that does not."""
    found = comparison_of("llama", "activations")
    writes = found.writes(found.batches[0], "base").at
    writes["head", 1] = 1.01 * writes["head", 1]
    with pytest.raises(ModelError, match=r"what heads and MLP of block 1 write misses the residual stream by 0.0"):
        check_sums(found.lm, writes)
