"""Activation scaling: factors of one change nothing, others act where they are said to, training flips tokens."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tiny_models import FAMILIES, tiny_language_model

from weightsteer.activations.scaling import FILE, ActivationScaling, ScalingTraining, scaled_modules, trained_scaling
from weightsteer.data.contrast import ContrastDataset, ContrastPair, load_pairs
from weightsteer.errors import AdapterError, RecipeError
from weightsteer.methods import Fit, activation_scaling
from weightsteer.models.generate import opening_tokens, score_options
from weightsteer.models.language_model import LanguageModel, load_model
from weightsteer.models.paths import greedy_paths, path_log_probs
from weightsteer.recipe import load_recipe

PAIRS = ContrastDataset(
    "agreeing",
    tuple(ContrastPair(f"p{i}", f"Is tea {i} good?", f"Oh yes, {i}!", f"Oh no, {i}.") for i in range(6)),
)
IDS = torch.tensor([list(b"Is tea good?")])


def scaling_of(lm: LanguageModel, positions: int = 1, seed: int = 0) -> ActivationScaling:
    draw = torch.Generator().manual_seed(seed)
    alphas = {site: torch.randn(2, positions, generator=draw) for site in ("attention", "mlp")}
    return ActivationScaling(alphas, lm.ref.fingerprint)


def logits(lm: LanguageModel) -> torch.Tensor:
    with torch.inference_mode():
        return lm.network(IDS).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_numbers_of_zero_and_strength_of_zero_change_nothing(family: str):
    lm = tiny_language_model(family)
    plain, scaling = logits(lm), scaling_of(lm)
    zero = ActivationScaling({site: torch.zeros_like(alpha) for site, alpha in scaling.alphas.items()})
    for same, k in ((zero, 1.0), (zero, -3.0), (scaling, 0)):
        with same.applied(lm, k) as steered:
            assert torch.equal(logits(steered), plain)
    with scaling.applied(lm, 1.0) as steered:
        found = logits(steered)
    assert torch.equal(found[:, :-1], plain[:, :-1]), "the last token alone is scaled"
    assert not torch.allclose(found[:, -1], plain[:, -1], atol=0.01)
    assert torch.equal(logits(lm), plain)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_factor_scales_what_is_added_to_the_residual_stream(family: str):
    lm = tiny_language_model(family)
    block, kept = lm.network.model.layers[1], {}
    hooks = [
        block.register_forward_pre_hook(lambda _m, args, kwargs: kept.update(before=(*args, *kwargs.values())[0]),
                                        with_kwargs=True),
        block.register_forward_hook(lambda _m, _i, output: kept.update(after=output[0] if isinstance(output, tuple)
                                                                       else output)),
    ]  # fmt: skip
    minus = ActivationScaling({"attention": torch.tensor([[0.0], [-1.0]]), "mlp": torch.tensor([[0.0], [-1.0]])})
    with minus.applied(lm, 1.0) as steered:
        logits(steered)
    for hook in hooks:
        hook.remove()
    assert torch.allclose(kept["after"][:, -1], kept["before"][:, -1], atol=1e-6), "factor 0: the block adds nothing"
    assert not torch.allclose(kept["after"][:, :-1], kept["before"][:, :-1], atol=0.01)


def test_norms_after_attention_and_mlp_are_what_is_scaled():
    block = tiny_language_model("gemma3_text").network.model.layers[0]
    found = scaled_modules(block, 0)
    assert found == {"attention": block.post_attention_layernorm, "mlp": block.post_feedforward_layernorm}
    block = tiny_language_model("llama").network.model.layers[0]
    assert scaled_modules(block, 0) == {"attention": block.self_attn, "mlp": block.mlp}


@pytest.mark.parametrize("positions", [1, 3])
def test_one_pass_over_a_path_is_generation_step_by_step(positions: int):
    # The template of the tiny models writes one token after the user's turn, this one several.
    lm = tiny_language_model()
    lm.tokenizer.chat_template = lm.tokenizer.chat_template.replace("<|assistant|>", "<|assistant|>Sure")
    assert opening_tokens(lm) == 5
    ids = [lm.tokens(lm.chat(prompt)) for prompt in ("Tea?", "Is this tea any good, would you say?")]
    scaling = scaling_of(lm, positions)
    with scaling.applied(lm, 1.0) as steered:
        paths = greedy_paths(steered, ids, 6)
        told = path_log_probs(steered, ids, paths)
        first = [steered.network(torch.tensor([row])).logits[0, -1].log_softmax(-1) for row in ids]
        score_options(steered, ["Tea?"], [["Yes", "No way"]])
    for path, log_p, alone in zip(paths, told, first, strict=True):
        assert log_p.argmax(-1).tolist() == path
        assert torch.allclose(log_p[0], alone, atol=1e-4)


def test_every_position_has_its_own_factor():
    lm = tiny_language_model()
    lm.tokenizer.chat_template = lm.tokenizer.chat_template.replace("<|assistant|>", "<|assistant|>Sure")
    seen: list[torch.Tensor] = []
    alphas = {"mlp": torch.tensor([[0.0] * 3, [1.0, 2.0, 3.0]])}
    mlp = lm.network.model.layers[1].mlp
    plain_hook = mlp.register_forward_hook(lambda _m, _i, output: seen.append(output))
    with ActivationScaling(alphas).applied(lm, 0.5):
        later = mlp.register_forward_hook(lambda _m, _i, output: seen.append(output))
        logits(lm)
    plain_hook.remove()
    later.remove()
    ratio = (seen[1] / seen[0])[0].mean(-1)
    assert ratio.tolist() == pytest.approx([1.0] * 9 + [1.5, 2.0, 2.5], abs=1e-4)


def test_training_makes_the_tokens_of_either_side_likelier():
    lm = tiny_language_model()
    settings = ScalingTraining(epochs=40, learning_rate=0.05, minimality=0.0, faithfulness=0.1)
    scaling = trained_scaling(lm, PAIRS, settings)
    assert scaling.digest == trained_scaling(lm, PAIRS, settings).digest
    apart = {}
    for k in (-1, 0, 1):
        with scaling.applied(lm, k) as steered:
            scored = score_options(steered, [p.prompt for p in PAIRS.pairs], [("Oh y", "Oh n")] * len(PAIRS))
        apart[k] = sum(ours[0] - theirs[0] for ours, theirs in scored) / len(scored)
    assert apart[1] > apart[0] + 0.2
    assert apart[0] > 0 > apart[-1], "k = -1 flips which token is the likelier"
    assert scaling.info["training"]["epochs"] == 40


def test_each_term_of_the_loss_holds_the_numbers_back():
    lm = tiny_language_model()
    free = ScalingTraining(epochs=8, learning_rate=0.05, minimality=0.0, faithfulness=0.0)

    def size(settings: ScalingTraining) -> float:
        return sum(alpha.abs().sum().item() for alpha in trained_scaling(lm, PAIRS, settings).alphas.values())

    assert size(replace(free, minimality=10.0)) < 0.5 * size(free)
    assert size(replace(free, faithfulness=100.0)) < 0.5 * size(free)
    assert list(trained_scaling(lm, PAIRS, replace(free, sites=("mlp",), epochs=1)).alphas) == ["mlp"]


def test_the_method_fits_saves_and_finds_itself_again(write_recipe: Callable[..., Path], tmp_path: Path):
    methods = [{"name": "activation-scaling", "epochs": 1, "sites": ["mlp"]}]
    recipe = load_recipe(write_recipe(methods=methods, merge_k=None))
    pairs, lm, settings = load_pairs(recipe), load_model(recipe.model), recipe.method("activation-scaling")
    scaling = activation_scaling.fit(settings, Fit(recipe, pairs, lm, tmp_path, 0))
    assert len(scaling.digest) == 64
    assert activation_scaling.fit(settings, Fit(recipe, pairs, lm, tmp_path, 0)).digest == scaling.digest
    assert (scaling.base, list(scaling.alphas)) == (lm.ref.fingerprint, ["mlp"])
    assert scaling.alphas["mlp"].shape == (2, 1)
    with pytest.raises(RecipeError, match=r"methods\[0\].faithfulness"):
        load_recipe(write_recipe(methods=[{"name": "activation-scaling", "faithfulness": -1}], merge_k=None))


def test_bad_input_is_said(tmp_path: Path):
    lm, other = tiny_language_model(), tiny_language_model("qwen2")
    scaling = scaling_of(lm)

    def applied(scaling: ActivationScaling, lm: Any = lm, k: float = 1.0, **options: Any) -> None:
        with scaling.applied(lm, k, **options):
            pass

    with pytest.raises(AdapterError, match=r"k = inf: not a finite number"):
        applied(scaling, k=float("inf"))
    with pytest.raises(AdapterError, match=r"of base fp-llama, model qwen2 is fp-qwen2"):
        applied(scaling, other)
    applied(scaling, other, any_base=True)
    with pytest.raises(
        AdapterError, match=r"mlp has \[3, 1\] numbers. Expected \[block, position\] of llama: 2 blocks"
    ):
        applied(ActivationScaling({"mlp": torch.zeros(3, 1)}))
    with pytest.raises(AdapterError, match=r"mlp has \[2, 2\] numbers. .* 1 to 1 tokens"):
        applied(ActivationScaling({"mlp": torch.zeros(2, 2)}))
    with pytest.raises(AdapterError, match=r"sites \['mlp'\], 2 positions. .* and 1 to 1, the tokens"):
        trained_scaling(lm, PAIRS, ScalingTraining(sites=("mlp",), positions=2))
    with pytest.raises(AdapterError, match=r"no pairs to train on"):
        trained_scaling(lm, PAIRS.part("held_out"), ScalingTraining())
    with pytest.raises(AdapterError, match=r"the loss is nan. .* Lower the learning rate, 0.01"):
        trained_scaling(lm, PAIRS, ScalingTraining(faithfulness=float("nan")))
    save_file({"heads": torch.zeros(2, 1)}, tmp_path / FILE)
    with pytest.raises(AdapterError, match=rf"{FILE}: not a vector"):
        ActivationScaling.load(tmp_path)
    ActivationScaling({"mlp": torch.full((2, 1), float("nan"))}).save(tmp_path)
    with pytest.raises(AdapterError, match=r"unknown or not finite: \['mlp'\]"):
        ActivationScaling.load(tmp_path)
