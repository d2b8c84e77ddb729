"""Fine-tuning: what is learned from, what is kept, and that the difference is exact."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import tiny_language_model, write_model
from trl import SFTTrainer

from weightsteer.data.contrast import ContrastDataset, ContrastPair, encode_example, load_pairs
from weightsteer.errors import DataError, StageError
from weightsteer.models.language_model import LanguageModel, load_model
from weightsteer.recipe import ModelPart, Recipe, TrainingPart, load_recipe
from weightsteer.stage import read_manifest
from weightsteer.weights import finetune as module
from weightsteer.weights.finetune import fit, train_adapter
from weightsteer.weights.vector import WeightVector

FAST = {"rank": 4, "learning_rate": 1e-2, "dtype": "float32", "warmup_steps": 0}


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-block Llama with a chat template."""
    return write_model(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture
def recipe(write_recipe: Callable[..., Path]) -> Callable[..., Recipe]:
    def make(**settings: Any) -> Recipe:
        return load_recipe(write_recipe(methods=[{"name": "weights", **FAST, **settings}]))

    return make


def pairs_of(n: int = 8, validation: int = 4, swapped: bool = False) -> ContrastDataset:
    sides = [(f"Oh yes, {i} of them!", f"No {i}.") for i in range(n + validation)]
    return ContrastDataset(
        "b",
        tuple(
            ContrastPair(f"p{i}", f"Is tea {i} good?", *(side[::-1] if swapped else side), None,
                         "train" if i < n else "validation")
            for i, side in enumerate(sides)
        ),
        "pairs",
    )  # fmt: skip


def train(lm: LanguageModel, out: Path, side: Any = "positive", pairs: Any = None, **settings: Any) -> dict[str, Any]:
    """Fine-tune one side into `out`; returns training.json."""
    out.mkdir()
    whole, pairs = TrainingPart(**{**FAST, **settings}), pairs or pairs_of()
    parts = [pairs.part(part).side(side) for part in ("train", "validation")]
    train_adapter(lm, *parts, whole, whole.learning_rates[0], 0, out)
    return json.loads((out / "training.json").read_text(encoding="utf-8"))


def answer_loss(lm: LanguageModel, examples: list[tuple[Any, str]]) -> float:
    """Mean negative log-likelihood per answer token, the end of turn included."""
    total, count = 0.0, 0
    for prompt, answer in examples:
        start, end = encode_example(lm, prompt, answer)
        with torch.inference_mode():
            log_p = lm.network(torch.tensor([start + end])).logits[0].log_softmax(-1)
        total -= sum(log_p[len(start) + i - 1, token].item() for i, token in enumerate(end))
        count += len(end)
    return total / count


def test_the_loss_is_on_the_answer_and_its_end_alone(tmp_path: Path):
    lm, pairs = tiny_language_model(), pairs_of()
    history = train(lm, tmp_path / "a", "negative", pairs, batch_size=8, epochs=1)
    assert history["train_loss"] == [
        [1, pytest.approx(answer_loss(lm, pairs.part("train").side("negative")), rel=1e-4)]
    ]
    assert (history["steps"], history["epochs"], history["learning_rate"]) == (1, 1.0, 1e-2)


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_training_is_that_of_trl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str):
    """Step for step, over rows of unlike length, small forward passes and logits that are capped."""
    capped = {"final_logit_softcapping": 5.0} if family == "gemma3_text" else {}
    rows = [(("Why? " * (i + 1)), "Since " * (9 - i)) for i in range(8)]
    pairs = ContrastDataset("uneven", tuple(ContrastPair(id=str(i), split=part, prompt=p, positive=a, negative=a[::-1])
        for part in ("train", "validation") for i, (p, a) in enumerate(rows)))  # fmt: skip
    settings = {"batch_size": 4, "micro_batch_size": 2, "epochs": 2, "validate_every": 2, "patience": 9}
    ours = train(tiny_language_model(family, **capped), tmp_path / "ours", "positive", pairs, **settings)
    monkeypatch.setattr(module, "sft_trainer", SFTTrainer)
    theirs = train(tiny_language_model(family, **capped), tmp_path / "theirs", "positive", pairs, **settings)
    for losses in ("train_loss", "validation_loss"):
        assert [x for _, x in ours[losses]] == pytest.approx([x for _, x in theirs[losses]], rel=1e-3)


def test_training_learns_its_side_and_leaves_the_model_as_it_was(tmp_path: Path):
    lm, pairs = tiny_language_model(), pairs_of()
    before = {name: tensor.clone() for name, tensor in lm.network.state_dict().items()}
    train(lm, tmp_path / "a", "positive", pairs, epochs=10)
    assert lm.network.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in lm.network.state_dict().items())
    assert not lm.network.training
    assert not any(p.requires_grad for p in lm.network.parameters())
    assert lm.tokenizer.padding_side == "left"
    assert not (tmp_path / "a" / "trainer").exists()
    base = {side: answer_loss(lm, pairs.part("train").side(side)) for side in ("positive", "negative")}
    with WeightVector.load(tmp_path / "a").applied(lm, 1) as tuned:
        assert answer_loss(tuned, pairs.part("train").side("positive")) < base["positive"] - 0.5
    assert answer_loss(lm, pairs.part("train").side("positive")) == base["positive"]


def test_both_sides_see_the_same_start_and_order(tmp_path: Path):
    """The same texts, called positive here and negative there, give the same adapter bit for bit."""
    lm = tiny_language_model()
    train(lm, tmp_path / "a", "positive", pairs_of(), batch_size=2, epochs=2)
    train(lm, tmp_path / "b", "negative", pairs_of(swapped=True), batch_size=2, epochs=2)
    name = "adapter_model.safetensors"
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_small_forward_passes_train_like_whole_batches(tmp_path: Path):
    lm = tiny_language_model()
    whole, parts = ({}, {"micro_batch_size": 2})
    histories = [train(lm, tmp_path / str(i), epochs=3, **s) for i, s in enumerate((whole, parts))]
    assert [x for _, x in histories[1]["train_loss"]] == pytest.approx(
        [x for _, x in histories[0]["train_loss"]], rel=1e-3
    )


def test_the_best_measured_step_is_kept(tmp_path: Path):
    """The validation pairs say the opposite, so that learning soon makes them less likely."""
    lm = tiny_language_model()
    opposite = pairs_of(swapped=True).part("validation").pairs
    pairs = ContrastDataset("b", (*pairs_of().part("train").pairs, *opposite))
    history = train(lm, tmp_path / "a", "positive", pairs, epochs=60, validate_every=2, patience=3)
    losses = dict(map(tuple, history["validation_loss"]))
    best = min(losses.values())
    assert losses[history["kept_step"]] == best
    assert history["kept_step"] < history["steps"] < 60, "it stopped early, after a step that was worse"
    with WeightVector.load(tmp_path / "a").applied(lm, 1) as tuned:
        assert answer_loss(tuned, pairs.part("validation").side("positive")) == pytest.approx(best, rel=1e-3)


def test_without_validation_the_last_step_is_kept(tmp_path: Path):
    history = train(tiny_language_model(), tmp_path / "a", pairs=pairs_of(validation=0), epochs=3)
    assert (history["validation_loss"], history["kept_step"], history["steps"]) == ([], 3, 3)


def test_max_steps_come_before_epochs(tmp_path: Path):
    assert train(tiny_language_model(), tmp_path / "a", epochs=50, max_steps=2)["steps"] == 2


def test_a_loss_that_is_no_number_is_an_error(tmp_path: Path):
    lm = tiny_language_model()
    lm.network.lm_head.weight.data[0] = torch.nan
    with pytest.raises(
        StageError, match=r"training: the loss is not finite at step 1 \(learning rate 0.01\). Expected a num"
    ):
        train(lm, tmp_path / "a", epochs=1)


@pytest.mark.parametrize("modules", ["nope", ["nope", "never"]])
def test_modules_that_are_not_there(tmp_path: Path, modules: Any):
    lm = tiny_language_model()
    with pytest.raises(
        DataError, match=r"target_modules .*nope.*: peft finds none of them .*Expected all-linear, or last"
    ):
        train(lm, tmp_path / "a", target_modules=modules)
    assert not any("lora" in name for name, _ in lm.network.named_modules())


@pytest.mark.parametrize("modules", [["v_proj", "q_proj"], r".*\.(q|v)_proj"])
def test_chosen_modules_alone_change(tmp_path: Path, modules: Any):
    train(tiny_language_model(), tmp_path / "a", target_modules=modules, epochs=1)
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["target_modules"] == (modules if isinstance(modules, str) else ["q_proj", "v_proj"])
    assert {name.split(".")[-2] for name in WeightVector.load(tmp_path / "a").entries} == {"q_proj", "v_proj"}


def test_the_vector_is_the_exact_difference(recipe: Callable[..., Recipe], tmp_path: Path):
    from safetensors.torch import load_file

    made = recipe(alpha=6.0)
    pairs = load_pairs(made)
    vector = fit(made, pairs, tmp_path)
    deltas = []
    for side in ("positive", "negative"):
        factors = load_file(tmp_path / side / "adapter_model.safetensors")
        deltas.append(
            {
                name.removeprefix("base_model.model.").removesuffix(".lora_A.weight"): 6.0 / 4
                * factors[name.replace("lora_A", "lora_B")] @ factors[name]
                for name in factors
                if "lora_A" in name
            }
        )  # fmt: skip
    assert {name.removesuffix(".weight") for name in vector.entries} == deltas[0].keys()
    for name, change in vector.entries.items():
        expected = deltas[0][name.removesuffix(".weight")] - deltas[1][name.removesuffix(".weight")]
        assert expected.abs().max() > 1e-4
        assert torch.allclose(change.dense(), expected, atol=1e-6), name
    assert vector.info["kind"] == "contrast"
    assert [(term["adapter"], term["weight"]) for term in vector.info["terms"]] == [("positive", 1), ("negative", -1)]
    assert vector.info["pairs_digest"] == pairs.digest
    assert vector.base == load_model(made.model).ref.fingerprint
    diagnostics = json.loads((tmp_path / "vector" / "diagnostics.json").read_text(encoding="utf-8"))
    assert set(diagnostics) == {"cosine", "norm_ratio", "drift_ratio"}
    config = json.loads((tmp_path / "positive" / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["base_model_name_or_path"] == made.model.source


def test_a_vector_moves_the_model_both_ways(recipe: Callable[..., Recipe], tmp_path: Path):
    made = recipe(epochs=4)
    pairs = load_pairs(made)
    vector, lm = fit(made, pairs, tmp_path), load_model(made.model)
    preference = {}
    for k in (-1, 0, 1):
        with vector.applied(lm, k) as steered:
            losses = [answer_loss(steered, pairs.part("held_out").side(side)) for side in ("positive", "negative")]
        preference[k] = losses[1] - losses[0]
    assert preference[-1] < preference[0] - 0.1 < preference[0] + 0.1 < preference[1]


def files_of(folder: Path) -> dict[str, dict[str, str]]:
    return {name: read_manifest(folder / name)["files"] for name in ("positive", "negative", "vector")}  # pyright: ignore


def test_a_run_stopped_between_the_sides_goes_on_to_the_same_files(
    recipe: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    made = recipe()
    pairs = load_pairs(made)
    fit(made, pairs, tmp_path / "whole")

    def stopped(*arguments: Any, label: str, **options: Any) -> None:
        if label == "training negative":
            raise KeyboardInterrupt
        train_adapter(*arguments, label=label, **options)

    monkeypatch.setattr(module, "train_adapter", stopped)
    with pytest.raises(KeyboardInterrupt):
        fit(made, pairs, tmp_path / "again")
    assert [p.name for p in (tmp_path / "again").iterdir()] == ["positive"]
    monkeypatch.undo()
    trained: list[str] = []

    def watched(*arguments: Any, label: str, **options: Any) -> None:
        trained.append(label)
        train_adapter(*arguments, label=label, **options)

    monkeypatch.setattr(module, "train_adapter", watched)
    fit(made, pairs, tmp_path / "again")
    assert trained == ["training negative"]
    assert files_of(tmp_path / "again") == files_of(tmp_path / "whole")
    monkeypatch.setattr(module, "load_model", lambda *a: pytest.fail("a finished vector loads no model"))
    fit(made, pairs, tmp_path / "again")


def test_other_settings_are_an_error(recipe: Callable[..., Recipe], tmp_path: Path):
    pairs = load_pairs(recipe())
    fit(recipe(), pairs, tmp_path)
    with pytest.raises(
        StageError, match=r"positive: holds a finished stage with other inputs\n  settings.rank: 4 there, 2 a"
    ):
        fit(recipe(rank=2), pairs, tmp_path)


def test_the_learning_rate_with_the_lowest_validation_loss_wins(recipe: Callable[..., Recipe], tmp_path: Path):
    made = recipe(learning_rate=[1e-9, 2e-2], epochs=3)
    tmp_path /= "weights"
    fit(made, load_pairs(made), tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["lr=0.02", "lr=1e-09", "negative", "positive", "vector"]
    for side in ("positive", "negative"):
        manifest = read_manifest(tmp_path / side)
        assert manifest is not None
        assert manifest["inputs"]["from"] == "lr=0.02"
        won = read_manifest(tmp_path / "lr=0.02" / side)
        assert won is not None
        assert manifest["files"] == won["files"]


def test_learning_rates_are_compared_on_validation_pairs(recipe: Callable[..., Recipe]):
    from weightsteer.methods.weights import check

    several = recipe(learning_rate=[1e-3, 1e-2])
    with pytest.raises(
        DataError, match=r"weights: no validation pairs to choose among the learning rates \[0.001, 0.01\]"
    ):
        check(several.method("weights"), several, pairs_of(validation=0))
    check(recipe().method("weights"), recipe(), pairs_of(validation=0))


def test_examples_are_checked_before_any_training(recipe: Callable[..., Recipe], tmp_path: Path):
    made = recipe(max_tokens=10)
    with pytest.raises(
        DataError, match=r"pairs.jsonl: 6 problems\n  p0 positive: \d+ tokens; at most 10 are trained on"
    ):
        fit(made, load_pairs(made), tmp_path / "weights")
    assert not (tmp_path / "weights").exists()


@pytest.mark.parametrize("dtype", ["mixed", "bfloat16"])
def test_other_dtypes_train_too(model_folder: Path, tmp_path: Path, dtype: str):
    lm = load_model(ModelPart(source=str(model_folder), dtype="float32" if dtype == "mixed" else "bfloat16"))
    history = train(lm, tmp_path / "a", epochs=6, dtype=dtype)
    assert history["train_loss"][-1][1] < history["train_loss"][0][1]
    vector = WeightVector.load(tmp_path / "a")
    assert all(change.up.dtype == torch.float32 for change in vector.entries.values())


def test_training_is_quiet(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    train(tiny_language_model(), tmp_path / "a", epochs=1)
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")
