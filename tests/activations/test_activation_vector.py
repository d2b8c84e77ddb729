"""ActivationVector: its algebra, its file, and what it does to a model and leaves alone."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import tiny_language_model

from weightsteer.activations.vector import FILE, ActivationVector
from weightsteer.errors import AdapterError
from weightsteer.models.blocks import decoder_blocks
from weightsteer.models.generate import generate, score_options, score_texts

BASE = "fp-llama"


def vector_of(seed: int = 0, blocks: tuple[int, ...] = (0, 1), **fields: Any) -> ActivationVector:
    rng = torch.Generator().manual_seed(seed)
    directions = {b: torch.randn(32, generator=rng) for b in blocks}
    return ActivationVector(directions, **{"base": BASE, "mode": "generated", "info": {"seed": seed}, **fields})


def logits(lm: Any, text: str) -> torch.Tensor:
    with torch.inference_mode():
        return lm.network(torch.tensor([lm.tokens(text)])).logits[0]


def equal(a: ActivationVector, b: ActivationVector) -> bool:
    return a.directions.keys() == b.directions.keys() and all(
        torch.allclose(v, b.directions[block]) for block, v in a.directions.items()
    )


def test_sums_differences_and_multiples_are_by_block():
    a, b = vector_of(0), vector_of(1, (1, 2))
    total = a + b
    assert sorted(total.directions) == [0, 1, 2]
    assert torch.equal(total.directions[0], a.directions[0])
    assert torch.equal(total.directions[1], a.directions[1] + b.directions[1])
    assert torch.equal(total.directions[2], b.directions[2])
    assert equal((a - b) + b, replace(a, directions={**a.directions, 2: torch.zeros(32)}))
    assert equal(2 * a, a + a)
    assert equal(a * -1, -a)


def test_norm_and_cosine_are_those_of_all_blocks_together():
    a, b = vector_of(0), vector_of(1, (1, 2))
    flat_a = torch.cat([a.directions[0], a.directions[1], torch.zeros(32)]).double()
    flat_b = torch.cat([torch.zeros(32), b.directions[1], b.directions[2]]).double()
    assert a.norm() == pytest.approx(flat_a.norm().item())
    assert a.cosine(b) == pytest.approx(torch.cosine_similarity(flat_a, flat_b, dim=0).item())
    assert (a.cosine(3 * a), a.cosine(-a)) == (pytest.approx(1), pytest.approx(-1))
    assert a.cosine(a) <= 1


def test_a_vector_of_zero_has_no_direction():
    with pytest.raises(
        AdapterError, match=r"activation vector: is zero, so it has no direction. Expected one that change"
    ):
        vector_of().cosine(0 * vector_of())


def test_vectors_of_two_models_or_two_modes_do_not_add_up():
    with pytest.raises(
        AdapterError, match=r"vectors of two bases, fp-llama and other. Expected vectors made on one model"
    ):
        vector_of() + vector_of(base="other")
    with pytest.raises(AdapterError, match="vectors of two bases"):
        vector_of().cosine(vector_of(base="other"))
    with pytest.raises(AdapterError, match=r"vectors of two modes, generated and all. Expected one"):
        vector_of() - vector_of(mode="all")
    assert (vector_of(base=None) + vector_of()).base == BASE


def test_a_saved_vector_is_the_same_vector(tmp_path: Path):
    vector = vector_of(3, (0, 7), mode="all", info={"behavior": "b", "n": 3})
    vector.save(tmp_path / "v")
    again = ActivationVector.load(tmp_path / "v")
    assert equal(again, vector)
    assert (again.base, again.mode, again.info, again.digest) == (BASE, "all", vector.info, vector.digest)
    vector_of(base=None).save(tmp_path / "w")
    assert ActivationVector.load(tmp_path / "w").base is None


def test_a_file_says_what_it_holds(tmp_path: Path):
    from safetensors import safe_open

    vector_of(3, (5,)).ablating().save(tmp_path)
    with safe_open(tmp_path / FILE, "pt") as file:
        said = file.metadata()
    assert (said["operation"], said["mode"], said["sign"], said["base"]) == (
        "ablate", "all", "positive minus negative", BASE,
    )  # fmt: skip
    assert said["site"] == "every block input, attention and MLP output; read at a block output, 0-based"
    again = ActivationVector.load(tmp_path)
    assert (again.operation, again.mode, list(again.directions)) == ("ablate", "all", [5])
    assert again.digest == vector_of(3, (5,)).ablating().digest != vector_of(3, (5,), mode="all").digest


def write_file(folder: Path, **said: str) -> None:
    from safetensors.torch import save_file

    metadata = {
        "operation": "add", "site": "block output, 0-based", "sign": "positive minus negative", "mode": "generated",
        "base": BASE, "info": "{}", **said,
    }  # fmt: skip
    save_file({"block.3": torch.ones(4)}, folder / FILE, metadata)


def test_files_of_the_first_version_load(tmp_path: Path):
    write_file(tmp_path)
    vector = ActivationVector.load(tmp_path)
    assert (vector.operation, vector.mode, vector.base, vector.info) == ("add", "generated", BASE, {})
    assert torch.equal(vector.directions[3], torch.ones(4))


@pytest.mark.parametrize(
    ("key", "value"), [("operation", "project"), ("site", "block input, 0-based"), ("mode", "prompt")]
)
def test_a_file_that_says_something_else_is_not_guessed_at(tmp_path: Path, key: str, value: str):
    write_file(tmp_path, **{key: value})
    with pytest.raises(AdapterError, match=f"{value}.* Expected one of .*block output, 0-based.*Read it with the"):
        ActivationVector.load(tmp_path)


def test_the_digest_is_of_directions_and_mode():
    assert vector_of(0).digest == vector_of(0, info={}).digest
    assert vector_of(0).digest not in (vector_of(1).digest, vector_of(0, mode="all").digest, vector_of(0).at(0).digest)


@pytest.mark.parametrize("content", [None, b"", b"not safetensors"])
def test_a_folder_without_a_vector(tmp_path: Path, content: bytes | None):
    if content is not None:
        (tmp_path / FILE).write_bytes(content)
    with pytest.raises(
        AdapterError, match=f"{FILE}: not an activation vector .*Expected a file that ActivationVector.save"
    ):
        ActivationVector.load(tmp_path)


def test_a_safetensors_file_of_another_kind(tmp_path: Path):
    from safetensors.torch import save_file

    save_file({"weight": torch.zeros(3)}, tmp_path / FILE)
    with pytest.raises(AdapterError, match="not an activation vector"):
        ActivationVector.load(tmp_path)


def test_single_blocks():
    assert list(vector_of().at(1).directions) == [1]
    with pytest.raises(AdapterError, match=r"activation vector: no block 5. Expected one of \[0, 1\]"):
        vector_of().at(5)


@pytest.mark.parametrize("mode", ["all", "generated"])
def test_the_direction_is_added_at_the_output_of_its_block(mode: Any):
    lm = tiny_language_model()
    vector = vector_of(0, (0,), mode=mode)
    outputs: list[torch.Tensor] = []
    text = "Some text"
    logits(lm, text)
    with vector.applied(lm, 0.5) as steered:
        hook = decoder_blocks(lm.network)[0].register_forward_hook(lambda _m, _i, out: outputs.append(out))
        logits(steered, text)
        hook.remove()
    decoder_blocks(lm.network)[0].register_forward_hook(lambda _m, _i, out: outputs.append(out))
    logits(lm, text)
    moved = outputs[0] - outputs[1]
    assert torch.allclose(moved[0, -1], 0.5 * vector.directions[0], atol=1e-5)
    before = moved[0, :-1]
    assert (
        torch.allclose(before, 0.5 * vector.directions[0].expand_as(before), atol=1e-5)
        if mode == "all"
        else not before.any()
    )


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text"])
def test_generated_mode_leaves_the_prompt_alone_before_its_last_token(family: str):
    lm = tiny_language_model(family)
    vector = vector_of(base=f"fp-{family}")
    text = lm.chat("Is it good?")
    plain = logits(lm, text)
    with vector.applied(lm, 4) as steered:
        found = logits(steered, text)
    assert torch.equal(found[:-1], plain[:-1])
    assert not torch.allclose(found[-1], plain[-1], atol=1e-2)


def steered_score(lm: Any, vector: ActivationVector, prompt: str, option: str) -> float:
    """Log-probability of an option in a pass of its own, steered by hand from the last prompt token on."""
    start = len(lm.tokens(lm.chat(prompt)))
    ids = lm.tokens(lm.chat(prompt) + option)

    def add(_module: Any, _inputs: Any, output: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
        steered = output.clone()
        steered[:, start - 1 :] += direction
        return steered

    blocks = decoder_blocks(lm.network)
    hooks = [
        blocks[b].register_forward_hook(lambda m, i, o, v=v: add(m, i, o, v)) for b, v in vector.directions.items()
    ]
    with torch.inference_mode():
        log_p = lm.network(torch.tensor([ids])).logits[0].log_softmax(-1)
    for hook in hooks:
        hook.remove()
    return sum(log_p[t - 1, ids[t]].item() for t in range(start, len(ids)))


@pytest.mark.parametrize("system", [None, "A system prompt that all conversations share."])
def test_generated_mode_scores_options_as_if_each_was_generated(system: str | None):
    lm = tiny_language_model().with_system(system)
    prompts, options = ["Is it good?", "Why?"], [("Yes, I think", "No"), ("a", "bcdef", "gh")]
    vector = vector_of()
    with vector.applied(lm, 2) as steered:
        found = score_options(steered, prompts, options)
    for prompt, choices, row in zip(prompts, options, found, strict=True):
        expected = [steered_score(lm, 2 * vector, prompt, option) for option in choices]
        assert [log_p for log_p, _ in row] == pytest.approx(expected, abs=1e-4)


def test_generated_mode_generates_as_if_every_prefix_was_read_anew():
    lm = tiny_language_model()
    vector, start = vector_of(), lm.tokens(lm.chat("Is it good?"))
    ids = list(start)
    blocks = decoder_blocks(lm.network)

    def add(output: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
        steered = output.clone()
        steered[:, len(start) - 1 :] += direction
        return steered

    hooks = [blocks[b].register_forward_hook(lambda m, i, o, v=v: add(o, 2 * v)) for b, v in vector.directions.items()]
    with torch.inference_mode():
        for _ in range(6):
            ids.append(lm.network(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax().item())
    for hook in hooks:
        hook.remove()
    with vector.applied(lm, 2) as steered:
        found = generate(steered, ["Is it good?", "Another question, longer than that?"], 6)
    assert found[0] == lm.tokenizer.decode(ids[len(start) :], skip_special_tokens=True).strip()
    assert found != generate(lm, ["Is it good?", "Another question, longer than that?"], 6)


def test_a_text_is_an_answer_as_a_whole():
    lm = tiny_language_model()
    with vector_of(mode="all").applied(lm, 1) as steered:
        everywhere = score_texts(steered, ["Some text."])
    with vector_of().applied(lm, 1) as steered:
        assert score_texts(steered, ["Some text."])[0] == pytest.approx(everywhere[0], abs=1e-5)


def test_strength_0_adds_no_hook():
    lm = tiny_language_model()
    plain = logits(lm, "text")
    with vector_of().applied(lm, 0) as steered:
        assert steered is lm
        assert not any(block._forward_hooks for block in decoder_blocks(lm.network))
        assert torch.equal(logits(steered, "text"), plain)


def test_leaving_restores_the_model_also_after_an_error():
    lm = tiny_language_model()
    plain = logits(lm, "text")

    def fail() -> None:
        with vector_of().applied(lm, 3):
            assert not torch.equal(logits(lm, "text"), plain)
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail()
    assert not any(block._forward_hooks for block in decoder_blocks(lm.network))
    assert torch.equal(logits(lm, "text"), plain)


@pytest.mark.parametrize("k", [math.nan, math.inf])
def test_a_strength_that_is_no_number(k: float):
    with (
        pytest.raises(AdapterError, match=f"k = {k}: not a finite number"),
        vector_of().applied(tiny_language_model(), k),
    ):
        pass


def test_a_vector_of_another_model():
    lm = tiny_language_model()
    message = (
        "activation vector of base other, model llama is fp-llama. Expected the base it was made on; pass any_base=True"
    )
    with pytest.raises(AdapterError, match=message), vector_of(base="other").applied(lm, 1):
        pass
    with vector_of(base="other").applied(lm, 1, any_base=True), vector_of(base=None).applied(lm, 1):
        pass


@pytest.mark.parametrize(
    ("directions", "what"), [({5: torch.ones(32)}, "block 5 of width 32"), ({0: torch.ones(8)}, "block 0 of width 8")]
)
def test_a_vector_that_does_not_fit(directions: dict[int, torch.Tensor], what: str):
    lm = tiny_language_model()
    with (
        pytest.raises(
            AdapterError, match=f"activation vector: {what} does not exist in llama, which has 2 blocks of width"
        ),
        ActivationVector({1: torch.ones(32), **directions}).applied(lm, 1),
    ):
        pass
    assert not any(block._forward_hooks for block in decoder_blocks(lm.network)), "none of it is applied"
