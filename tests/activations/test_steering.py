"""Which tokens each mode steers, with caches, padding and many strengths at once; ablation against edited weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from tiny_models import CHAT_TEMPLATE, tiny_language_model

from weightsteer.activations.many import generate_many
from weightsteer.activations.vector import ActivationVector
from weightsteer.errors import AdapterError, ModelError
from weightsteer.models.blocks import decoder_blocks
from weightsteer.models.generate import generate, opening_tokens, score_options, score_texts
from weightsteer.models.paths import greedy_paths

MODES = ["all", "after_user", "generated", "answer"]
# Three tokens stand between the user's turn and the answer.
OPENED = CHAT_TEMPLATE.replace("<|assistant|>", "-<|assistant|>:")
# As Llama 2 has it: nothing does.
CLOSED = "{% for m in messages %}[{{ m['content'] }}]{% endfor %}"


def model(template: str = OPENED, family: str = "llama", **config: Any) -> Any:
    lm = tiny_language_model(family, **config)
    lm.tokenizer.chat_template = template
    return lm


def vector_of(mode: Any, blocks: tuple[int, ...] = (0, 1), seed: int = 0, **fields: Any) -> ActivationVector:
    rng = torch.Generator().manual_seed(seed)
    return ActivationVector({b: torch.randn(32, generator=rng) for b in blocks}, mode=mode, **fields)


def first_steered(lm: Any, prompt: list[int], mode: str) -> int:
    """Column of the first token that a mode steers, counted in the prompt and its answer."""
    opening = {OPENED: 3, CHAT_TEMPLATE: 1, CLOSED: 1}[lm.tokenizer.chat_template]
    return {"all": 0, "after_user": len(prompt) - opening, "generated": len(prompt) - 1, "answer": len(prompt)}[mode]


@contextmanager
def by_hand(lm: Any, vector: ActivationVector, k: float, first: int) -> Iterator[None]:
    """k·direction added at each block's output from column `first` on, in passes without cache and padding."""

    def add(_module: Any, _inputs: Any, output: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
        return torch.cat([output[:, :first], output[:, first:] + k * direction], 1)

    blocks = decoder_blocks(lm.network)
    hooks = [
        blocks[b].register_forward_hook(lambda m, i, o, v=v: add(m, i, o, v)) for b, v in vector.directions.items()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def greedy_by_hand(lm: Any, prompt: str, vector: ActivationVector, k: float, tokens: int) -> list[int]:
    """Greedy answer, every prefix read anew."""
    ids = lm.tokens(lm.chat(prompt))
    start = len(ids)
    with by_hand(lm, vector, k, first_steered(lm, ids, vector.mode)), torch.inference_mode():
        for _ in range(tokens):
            ids.append(lm.network(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax().item())
            if ids[-1] == lm.network.config.eos_token_id:
                break
    return ids[start:]


PROMPTS = ["Why?", "Is it good, or would you rather have something else today?", "A question of middling length?"]


@pytest.mark.parametrize("template", [OPENED, CHAT_TEMPLATE, CLOSED])
def test_after_user_starts_where_the_users_turn_ends(template: str):
    lm = model(template)
    assert opening_tokens(lm) == (3 if template == OPENED else 1)
    ids = lm.tokens(lm.chat("Why?"))
    vector, outputs = vector_of("after_user", (0,)), []
    blocks = decoder_blocks(lm.network)
    for k in (0, 1):
        with vector.applied(lm, k), torch.inference_mode():
            hook = blocks[0].register_forward_hook(lambda _m, _i, out: outputs.append(out))
            lm.network(torch.tensor([ids]))
            hook.remove()
    moved = (outputs[1] - outputs[0])[0].abs().amax(-1) > 0
    assert moved.nonzero().flatten().tolist() == list(range(first_steered(lm, ids, "after_user"), len(ids)))


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text"])
@pytest.mark.parametrize("mode", MODES)
def test_generating_equals_reading_every_prefix_anew(mode: Any, family: str):
    """With a cache, in one batch padded on the left."""
    lm = model(family=family)
    vector = vector_of(mode)
    with vector.applied(lm, 2) as steered:
        paths = greedy_paths(steered, [lm.tokens(lm.chat(prompt)) for prompt in PROMPTS], 6)
    assert paths == [greedy_by_hand(lm, prompt, vector, 2, 6) for prompt in PROMPTS]
    assert paths != greedy_paths(lm, [lm.tokens(lm.chat(prompt)) for prompt in PROMPTS], 6)


@pytest.mark.parametrize("mode", MODES)
def test_scoring_equals_a_pass_of_its_own(mode: Any):
    """Options stand side by side, one of them a single token; the start that prompts share is in a cache."""
    lm = model().with_system("A system prompt that all conversations share.")
    vector = vector_of(mode)
    options = [("Yes, I think", "N"), ("a", "bcdef", "gh"), ("x", "y")]
    with vector.applied(lm, 2) as steered:
        found = score_options(steered, PROMPTS, options)
    for prompt, choices, row in zip(PROMPTS, options, found, strict=True):
        start = lm.tokens(lm.chat(prompt))
        for option, (log_p, _) in zip(choices, row, strict=True):
            ids = start + lm.tokens(option)
            with by_hand(lm, vector, 2, first_steered(lm, start, mode)), torch.inference_mode():
                expected = lm.network(torch.tensor([ids])).logits[0].log_softmax(-1)
            assert log_p == pytest.approx(
                sum(expected[t - 1, ids[t]].item() for t in range(len(start), len(ids))), abs=1e-4
            )


def test_one_token_options_are_not_steered_by_their_own_answer():
    lm = model()
    plain = score_options(lm, ["Why?"], [("a", "b")])
    with vector_of("answer").applied(lm, 5) as steered:
        assert score_options(steered, ["Why?"], [("a", "b")]) == plain


def test_a_text_of_its_own_is_an_answer_from_its_first_token():
    lm = model()
    lm.tokenizer.bos_token = "<|system|>"
    texts = ["Some text.", "x"]
    with vector_of("answer").applied(lm, 2) as steered:
        found = score_texts(steered, texts)
    for text, (log_p, n) in zip(texts, found, strict=True):
        ids = lm.tokens("<|system|>" + text)
        with by_hand(lm, vector_of("answer"), 2, 1), torch.inference_mode():
            expected = lm.network(torch.tensor([ids])).logits[0].log_softmax(-1)
        assert log_p == pytest.approx(sum(expected[t - 1, ids[t]].item() for t in range(1, n + 1)), abs=1e-4)


@pytest.mark.parametrize("operation", ["add", "ablate"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_padding_on_the_left_makes_no_difference(family: str, mode: Any, operation: Any):
    lm = model(family=family)
    vector = vector_of(mode, (0,), operation=operation)
    with vector.applied(lm, 1.5) as steered:
        together = generate(steered, PROMPTS, 6)
        assert together == [generate(steered, [prompt], 6)[0] for prompt in PROMPTS]


KS = [-4.0, -2.0, -1.0, 0.0, 0.5, 1.0, 2.0, 4.0]


@pytest.mark.parametrize("operation", ["add", "ablate"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_eight_strengths_in_one_batch_answer_as_eight_runs(family: str, mode: Any, operation: Any):
    lm = model(family=family)
    vector = vector_of(mode, (1,), operation=operation)
    passes: list[tuple[int, ...]] = []
    hook = lm.network.register_forward_pre_hook(
        lambda _m, _a, given: passes.append(tuple(given["input_ids"].shape)), with_kwargs=True
    )
    found = generate_many(lm, PROMPTS[1], vector, KS, 8)
    hook.remove()
    prompt = len(lm.tokens(lm.chat(PROMPTS[1])))
    once = mode == "generated" and family == "llama"  # the other has windows
    first = [(1, prompt - 1), (8, 1)] if once else [(8, prompt)]
    assert passes[: len(first)] == first
    assert set(passes[len(first) :]) <= {(8, 1)}
    assert len(passes) <= len(first) + 7
    expected = []
    for k in KS:
        with vector.applied(lm, k) as steered:
            expected += generate(steered, [PROMPTS[1]], 8)
    assert found == expected
    assert found[3] == generate(lm, [PROMPTS[1]], 8)[0], "k = 0 is the model itself"
    assert len(set(found)) > 2
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in lm.network.modules())


def test_strengths_by_row_fit_the_batch():
    lm = model()
    message = r"3 strengths, one for each row, meet a batch of 1 rows. Expected a batch of 3; see generate_many"
    with vector_of("all").applied_by_row(lm, [1, 2, 3]) as steered, pytest.raises(AdapterError, match=message):
        generate(steered, ["Why?"], 2)
    with pytest.raises(AdapterError, match=r"k = inf: not a finite number"):
        generate_many(lm, "Why?", vector_of("all"), [1.0, float("inf")], 2)


def orthogonalised(lm: Any, direction: torch.Tensor) -> None:
    """W − r̂r̂ᵀW for every matrix that writes to the residual stream, embeddings and output biases included."""
    unit = direction / direction.norm()
    for name, parameter in lm.network.named_parameters():
        if name.endswith(("embed_tokens.weight", "embed_in.weight")):
            parameter.data -= (parameter @ unit)[:, None] * unit
        elif name.endswith(("o_proj.weight", "down_proj.weight", "dense.weight", "dense_4h_to_h.weight")):
            parameter.data -= unit[:, None] * (unit @ parameter)
        elif name.endswith(("o_proj.bias", "down_proj.bias", "dense.bias", "dense_4h_to_h.bias")):
            parameter.data -= unit * (unit @ parameter)


@pytest.mark.parametrize(
    ("family", "config"), [("llama", {"attention_bias": True, "mlp_bias": True}), ("gpt_neox", {})]
)
def test_ablation_equals_orthogonalised_weights(family: str, config: dict[str, Any]):
    """methods I.1, check 7; neither architecture has tied embeddings or norms after its blocks."""
    lm = tiny_language_model(family, tie_word_embeddings=False, num_hidden_layers=3, **config)
    for name, parameter in lm.network.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(len(name)))
    vector = vector_of("all", (1,)).ablating()
    ids = torch.tensor([lm.tokens(lm.chat("Is it good?"))])
    with torch.inference_mode():
        plain = lm.network(ids).logits
        with vector.applied(lm, 1):
            ablated = lm.network(ids).logits
    orthogonalised(lm, vector.directions[1])
    with torch.inference_mode():
        edited = lm.network(ids).logits
    assert torch.allclose(ablated, edited, atol=2e-4)
    assert not torch.allclose(ablated, plain, atol=0.01)


def test_an_ablated_direction_is_nowhere_in_the_stream():
    lm = model(family="gpt2")
    vector = vector_of("all", (0,)).ablating()
    outputs: list[torch.Tensor] = []
    with vector.applied(lm, 1), torch.inference_mode():
        for block in decoder_blocks(lm.network):
            block.register_forward_hook(lambda _m, _i, out: outputs.append(out))
        lm.network(torch.tensor([lm.tokens("Some text")]))
    assert len(outputs) == 2
    for out in outputs:
        assert (out @ vector.directions[0]).abs().max() < 1e-4 * out.norm()


def test_a_vector_that_ablates_is_one_direction():
    with pytest.raises(AdapterError, match=r"has blocks \[0, 1\], norm .* Expected one direction that is not zero"):
        vector_of("all").ablating()
    with pytest.raises(AdapterError, match=r"has blocks \[0\], norm 0. Expected one direction"):
        (0 * vector_of("all", (0,))).ablating()
    with pytest.raises(AdapterError, match=r"a vector that ablates: has no sums. Expected two that add"):
        vector_of("all", (0,)).ablating() + vector_of("all", (0,))


def test_ablation_needs_an_attention_and_an_mlp():
    lm = tiny_language_model("mamba", state_size=8)
    vector = vector_of("all", (0,)).ablating()
    message = r"block 0: has modules \['norm', 'mixer'\]. Expected one attention .* and one MLP"
    with pytest.raises(ModelError, match=message), vector.applied(lm, 1):
        pass
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in lm.network.modules())
