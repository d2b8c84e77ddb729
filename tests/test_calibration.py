"""The divergence equals step-by-step generation of both models; calibration meets its target or says why not."""

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from tiny_models import tiny_language_model

from weightsteer import calibration
from weightsteer.activations.vector import ActivationVector
from weightsteer.calibration import Calibration, Divergence, calibrate, divergence, measured, token_divergences
from weightsteer.models.generate import generate
from weightsteer.models.paths import greedy_paths, path_log_probs
from weightsteer.weights.lowrank import LowRank
from weightsteer.weights.vector import WeightVector

PROMPTS = ["Is tea any good, or would you rather have something else?", "Why?", "Say a word."]
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "gpt2": {},
    "gemma3_text": {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
}
TOKENS = 6


def weight_vector(lm: Any) -> WeightVector:
    torch.manual_seed(1)
    up, down = torch.randn(32, 2), torch.randn(2, 32)
    return WeightVector({"model.layers.0.self_attn.q_proj.weight": LowRank(up, down)}, lm.ref.fingerprint, {})


def activation_vector(mode: str = "generated") -> ActivationVector:
    torch.manual_seed(2)
    return ActivationVector({0: torch.randn(32), 1: torch.randn(32)}, None, mode)  # type: ignore[arg-type]


@dataclass(frozen=True)
class OpposedPrompts:
    """A method that steers by the system prompt."""

    @contextlib.contextmanager
    def applied(self, lm: Any, k: float, any_base: bool = False) -> Iterator[Any]:
        yield lm if k == 0 else lm.with_system("Say yes." if k > 0 else "Say no.")


def stepwise(lm: Any, vector: Any, k: float, prompt: str) -> list[float]:
    """KL at every greedy step by generating one prompt alone, and by reading the base over that text alone."""
    ends = lm.network.generation_config.eos_token_id
    with vector.applied(lm, k, any_base=True) as steered, torch.inference_mode():
        ids = torch.tensor([steered.tokens(steered.chat(prompt))])
        output = steered.network.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=TOKENS,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
            pad_token_id=lm.tokenizer.pad_token_id,
        )
    path = output.sequences[0, ids.shape[1] :].tolist()
    assert ends not in path[:-1]
    found, plain = [], lm.tokens(lm.chat(prompt))
    for step, logits in enumerate(output.logits):
        with torch.inference_mode():
            q = lm.network(torch.tensor([plain + path[:step]])).logits[0, -1].log_softmax(-1)
        p = logits[0].log_softmax(-1)
        found.append(torch.nn.functional.kl_div(q, p, log_target=True, reduction="sum").item())
    return found


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("mode", ["generated", "all"])
def test_one_pass_over_a_path_is_generation_step_by_step_under_activations(family: str, mode: str):
    lm = tiny_language_model(family, **FAMILIES[family])
    vector = activation_vector(mode)
    expected = sorted(kl for prompt in PROMPTS for kl in stepwise(lm, vector, 1.5, prompt))
    found = sorted(token_divergences(lm, vector, 1.5, PROMPTS, TOKENS))
    assert found == pytest.approx(expected, rel=1e-3, abs=1e-5)
    assert max(found) > 0.1


def test_one_pass_over_a_path_is_generation_step_by_step_under_weights():
    lm = tiny_language_model()
    vector = weight_vector(lm)
    expected = sorted(kl for prompt in PROMPTS for kl in stepwise(lm, vector, -1, prompt))
    assert sorted(token_divergences(lm, vector, -1, PROMPTS, TOKENS)) == pytest.approx(expected, rel=1e-3, abs=1e-5)
    assert max(expected) > 0.1


def test_a_system_prompt_stands_before_the_same_answer():
    lm = tiny_language_model()
    expected = sorted(kl for prompt in PROMPTS for kl in stepwise(lm, OpposedPrompts(), 1, prompt))
    assert sorted(token_divergences(lm, OpposedPrompts(), 1, PROMPTS, TOKENS)) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("tokens", [1, 150, 100_000])
def test_the_divergence_does_not_depend_on_the_batch(tokens: int, monkeypatch: pytest.MonkeyPatch):
    lm = tiny_language_model()
    expected = sorted(token_divergences(lm, activation_vector(), 1, PROMPTS, TOKENS))
    monkeypatch.setattr(calibration, "batch_tokens", lambda lm: tokens)
    assert sorted(token_divergences(lm, activation_vector(), 1, PROMPTS, TOKENS)) == pytest.approx(expected, abs=1e-4)


def test_nothing_diverges_from_itself():
    lm = tiny_language_model()
    assert divergence(lm, activation_vector(), 0, PROMPTS, TOKENS) == Divergence(0, 0, 0, 3 * TOKENS)


def test_a_path_ends_with_its_turn():
    lm = tiny_language_model()
    prompts = [lm.tokens(lm.chat(prompt)) for prompt in PROMPTS]
    whole = greedy_paths(lm, prompts, TOKENS)
    assert [len(path) for path in whole] == [TOKENS] * 3
    end = whole[0][2]
    lm.network.generation_config.eos_token_id = [257, end]
    cut = greedy_paths(lm, prompts, TOKENS)
    assert cut[0] == whole[0][: whole[0].index(end) + 1]
    assert len(cut[0]) <= 3
    for path, full in zip(cut, whole, strict=True):
        assert path == full[: full.index(end) + 1 if end in full else TOKENS]


def test_a_path_is_what_generation_says():
    lm = tiny_language_model()
    prompts = [lm.tokens(lm.chat(prompt)) for prompt in PROMPTS]
    said = [lm.tokenizer.decode(path, skip_special_tokens=True).strip() for path in greedy_paths(lm, prompts, 8)]
    assert said == generate(lm, PROMPTS, 8)


def test_each_step_of_a_greedy_path_is_the_likeliest():
    lm = tiny_language_model()
    prompts = [lm.tokens(lm.chat(prompt)) for prompt in PROMPTS]
    paths = greedy_paths(lm, prompts, TOKENS)
    for path, log_p in zip(paths, path_log_probs(lm, prompts, paths), strict=True):
        assert log_p.argmax(-1).tolist() == path
        assert log_p.exp().sum(-1).tolist() == pytest.approx([1] * len(path), abs=1e-5)


def test_probabilities_that_are_not_numbers_are_an_infinite_divergence():
    lm = tiny_language_model()
    found = divergence(lm, ActivationVector({0: torch.full((32,), math.nan)}), 1, PROMPTS, TOKENS)
    assert (found.p95, found.mean, found.maximum) == (math.inf,) * 3


Curve = Callable[[float], float]


@pytest.fixture
def calibrated(monkeypatch: pytest.MonkeyPatch) -> Callable[[Curve, int, float], Calibration]:
    """Calibrate a made-up divergence, a function of k, to a sign and a target."""
    lm = tiny_language_model()

    def run(curve: Curve, sign: int, target: float) -> Calibration:
        monkeypatch.setattr(calibration, "divergence", lambda lm, vector, k, *rest: Divergence(curve(k), 0.0, 0.0, 100))
        return calibrate(lm, None, sign, target, PROMPTS, TOKENS)

    return run


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("scale", [1e-3, 0.02, 1, 30, 4e3])
def test_a_quadratic_divergence_is_met_at_every_scale(sign: int, scale: float, calibrated: Any):
    found = calibrated(lambda k: 0.5 * (k / scale) ** 2, sign, 0.5)
    assert found.k == pytest.approx(sign * scale, rel=0.03)
    assert found.divergence.p95 == pytest.approx(0.5, rel=0.05)
    assert (found.note, found.tried[-1]) == ("", (found.k, found.divergence.p95))
    assert len(found.tried) <= calibration.EVALUATIONS


@pytest.mark.parametrize(
    "curve",
    [
        lambda k: 3 * (1 - math.exp(-((k / 5) ** 2))),  # saturates above the target
        lambda k: 0.004 * abs(k) if abs(k) < 2 else 0.008 * (abs(k) / 2) ** 9,  # flat, then a cliff
        lambda k: 0.05 * abs(k) ** 0.5,  # much slower than quadratic
        lambda k: k * k if abs(k) < 1 else math.inf,  # breaks soon after the target
    ],
)
def test_other_shapes_are_met_too(curve: Curve, calibrated: Any):
    found = calibrated(curve, 1, 0.6)
    assert found.k is not None
    assert curve(found.k) == pytest.approx(0.6, rel=0.05)


def test_each_sign_has_a_strength_of_its_own(calibrated: Any):
    up, down = (calibrated(lambda k: k * k if k > 0 else 4 * k * k, sign, 1.0) for sign in (1, -1))
    assert (up.k, down.k) == (pytest.approx(1, rel=0.03), pytest.approx(-0.5, rel=0.03))


def test_a_target_out_of_reach_has_no_strength(calibrated: Any):
    found = calibrated(lambda k: 0.2 * (1 - math.exp(-k * k)), 1, 0.5)
    assert found.k is None
    assert found.note.startswith("0.5 nats are out of reach: at most 0.2, at k = ")
    assert len(found.tried) == calibration.EVALUATIONS


def test_a_jump_over_the_target_has_no_strength(calibrated: Any):
    found = calibrated(lambda k: 0.1 if abs(k) < 3 else 2.0, -1, 0.5)
    assert found.k is None
    assert found.note.startswith("0.5 nats are jumped over: from 0.1 nats at k = -2.99")
    assert "to 2 nats at k = -3.0" in found.note


def test_a_small_jump_takes_the_nearest_and_says_so(calibrated: Any):
    found = calibrated(lambda k: 0.55 if abs(k) > 3 else 0.3, 1, 0.5)
    assert found.k is not None
    assert found.divergence.p95 == 0.55
    assert found.note == "the nearest to 0.5 nats of 12 strengths tried"


def test_a_vector_that_breaks_the_model_at_every_strength_is_told(calibrated: Any):
    found = calibrated(lambda k: math.inf, 1, 0.5)
    assert found.k is None
    assert "probabilities that are not numbers" in found.note


def test_a_real_vector_is_calibrated():
    lm = tiny_language_model()
    vector = weight_vector(lm)
    for sign in (-1, 1):
        found = calibrate(lm, vector, sign, 0.1, PROMPTS, TOKENS, start=0.3)
        assert found.k is not None
        assert math.copysign(1, found.k) == sign
        assert divergence(lm, vector, found.k, PROMPTS, TOKENS) == found.divergence
        assert found.divergence.p95 == pytest.approx(0.1, rel=0.05)


def test_a_method_with_a_sign_only_is_measured():
    lm = tiny_language_model()
    found = measured(lm, OpposedPrompts(), -1, PROMPTS, TOKENS)
    assert found.k == -1
    assert found.divergence == divergence(lm, OpposedPrompts(), -1, PROMPTS, TOKENS)
    assert found.note == "k is only a sign: measured, not calibrated"
