"""Trained vectors: the model stays as it is, the loss is the one defined, and steering moves the way it was taught."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_models import tiny_language_model

from weightsteer.activations import trained
from weightsteer.activations.trained import VectorTraining, trained_vector
from weightsteer.activations.vector import ActivationVector
from weightsteer.data.contrast import ContrastDataset, ContrastPair, encode_example
from weightsteer.errors import AdapterError
from weightsteer.models.blocks import decoder_blocks
from weightsteer.models.generate import score_options

PAIRS = ContrastDataset(
    "b", tuple(ContrastPair(f"p{i}", f"Is tea {i} good?{' Say!' * i}", "Yes, it is", "No, never") for i in range(4))
)
SHORT = VectorTraining(block=0, epochs=4, learning_rate=0.05, factors=(1, 4), seed=3)


def preference(lm: Any) -> float:
    """Mean log-odds per token of the positive answer over the negative one, on a new question."""
    [[(yes, n_yes), (no, n_no)]] = score_options(lm, ["Is coffee good?"], [("Yes, it is", "No, never")])
    return yes / n_yes - no / n_no


@pytest.mark.parametrize("objective", ["next_token", "preference"])
@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_a_trained_vector_moves_both_ways(family: str, objective: Any):
    lm = tiny_language_model(family)
    before = {name: parameter.clone() for name, parameter in lm.network.named_parameters()}
    vector = trained_vector(lm, PAIRS, replace(SHORT, objective=objective))
    found = {}
    for k in (-3, 0, 3):
        with vector.applied(lm, k) as steered:
            found[k] = preference(steered)
    assert found[-3] < found[0] < found[3]
    for name, parameter in lm.network.named_parameters():
        assert torch.equal(parameter, before[name]), f"{name} is frozen"
        assert parameter.grad is None
    assert (list(vector.directions), vector.mode, vector.base) == ([0], "all", f"fp-{family}")
    assert vector.info["training"]["objective"] == objective
    assert not any(block._forward_hooks for block in decoder_blocks(lm.network))


def log_p_alone(lm: Any, prompt: list[int], answer: list[int]) -> float:
    ids = prompt + answer
    with torch.inference_mode():
        log_p = lm.network(torch.tensor([ids])).logits[0].log_softmax(-1)
    return sum(log_p[t - 1, ids[t]].item() for t in range(len(prompt), len(ids)))


@pytest.mark.parametrize("objective", ["next_token", "preference"])
def test_the_loss_is_the_one_that_is_defined(objective: Any):
    lm = tiny_language_model()
    direction = torch.randn(32, generator=torch.Generator().manual_seed(0))
    # Far from the losers' side, so that β is not at its floor of 1 for every row.
    settings = replace(SHORT, objective=objective, preference_scale=0.5)
    positive, negative = ([encode_example(lm, *row) for row in PAIRS.side(s)] for s in ("positive", "negative"))
    batch = [(positive[0], negative[0], 1), (negative[3], positive[3], -1), (positive[2], negative[2], 1)]
    k = [2, -5, 3]
    expected, betas, tokens = 0.0, [], 0
    for (wanted, unwanted, _), strength in zip(batch, k, strict=True):
        with ActivationVector({0: direction}, mode="all").applied(lm, strength) as steered:
            won, lost = log_p_alone(steered, *wanted), log_p_alone(steered, *unwanted)
        if objective == "next_token":
            expected, tokens = expected - won, tokens + len(wanted[1])
        else:
            betas.append(max(0.5 * (log_p_alone(lm, *unwanted) - log_p_alone(lm, *wanted)), 1))
            margin = betas[-1] * won / len(wanted[1]) - lost / len(unwanted[1])
            expected, tokens = expected - torch.tensor(margin).sigmoid().log().item(), tokens + 1
    assert objective == "next_token" or max(betas) > 1
    assert trained._loss(lm, direction, batch, k, settings).item() == pytest.approx(expected / tokens, abs=1e-4)


def test_it_is_repeatable_and_can_be_given_a_norm():
    lm = tiny_language_model()
    settings = replace(SHORT, epochs=1)
    first, again = trained_vector(lm, PAIRS, settings), trained_vector(lm, PAIRS, settings)
    assert torch.equal(first.directions[0], again.directions[0])
    other = trained_vector(lm, PAIRS, replace(settings, seed=4))
    assert not torch.equal(first.directions[0], other.directions[0])
    scaled = trained_vector(lm, PAIRS, replace(settings, norm=7.0))
    assert scaled.norm() == pytest.approx(7, abs=1e-4)
    assert scaled.cosine(first) == pytest.approx(1, abs=1e-5)


def test_only_the_start_of_a_long_answer_is_read():
    lm = tiny_language_model()
    longer = replace(PAIRS, pairs=tuple(replace(p, positive=p.positive + " and on", negative=p.negative + " and on")
                                        for p in PAIRS.pairs))  # fmt: skip
    cut = replace(SHORT, epochs=1, answer_tokens=5)
    assert torch.equal(trained_vector(lm, longer, cut).directions[0], trained_vector(lm, PAIRS, cut).directions[0])


def test_a_block_that_does_not_exist():
    with pytest.raises(AdapterError, match=r"block 2: does not exist in llama. Expected 0 to 1"):
        trained_vector(tiny_language_model(), PAIRS, replace(SHORT, block=2))


def test_a_loss_that_is_no_number():
    lm = tiny_language_model()
    lm.network.lm_head.weight.data[0, 0] = float("nan")
    with pytest.raises(
        AdapterError, match=r"training a vector: the loss is nan. Expected a number. Lower the learning"
    ):
        trained_vector(lm, PAIRS, SHORT)
    assert not any(block._forward_hooks for block in decoder_blocks(lm.network))
