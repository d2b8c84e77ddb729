"""The paper's further methods and controls: what each is, in the numbers."""

import copy
import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import write_model

from weightsteer import pipeline
from weightsteer.activations.vector import ActivationVector
from weightsteer.data.contrast import load_pairs
from weightsteer.errors import AdapterError, RecipeError
from weightsteer.methods import Fit
from weightsteer.methods import activations as activations_method
from weightsteer.models.language_model import LanguageModel, load_model
from weightsteer.recipe import find_plugin, load_recipe
from weightsteer.stage import read_manifest
from weightsteer.weights.lowrank import LowRank, as_dense
from weightsteer.weights.vector import WeightVector

METHODS = [
    {"name": "weights", "rank": 4, "epochs": 1, "learning_rate": 1e-2},
    {"name": "bias-only", "epochs": 1, "learning_rate": 1e-1},
    {"name": "one-sided", "label": "plus", "side": "positive"},
    {"name": "one-sided", "label": "minus", "side": "negative", "of": "bias-only"},
    {"name": "random", "label": "random"},
    {"name": "random", "label": "random-biases", "of": "bias-only"},
    {"name": "combined", "of": {"weights": 0.5, "bias-only": -2, "plus": 1}},
    {"name": "finetuned", "label": "sides"},
    {"name": "finetuned", "label": "checkpoints", "k": [-1, 0.5, 1], "epochs": 2},
    {"name": "joint", "repeat": 2},
    {"name": "activations", "label": "one", "block": 0},
    {"name": "activations", "label": "all", "all_layers": True},
]
TASK = [{"prompt": f"What is {i} and {i}?", "answer": str(2 * i)} for i in range(12)]


@pytest.fixture(scope="module")
def write(tmp_path_factory: Any, pairs_file: Path) -> Callable[..., Path]:
    """Write the recipe of all methods; keyword arguments replace its keys."""
    folder = tmp_path_factory.mktemp("recipe")
    write_model(folder / "model", num_hidden_layers=3)
    (folder / "task.jsonl").write_text("".join(json.dumps(row) + "\n" for row in TASK), encoding="utf-8")

    def write(**keys: Any) -> Path:
        recipe = {
            "name": "tiny",
            "model": {"source": str(folder / "model"), "dtype": "float32"},
            "behavior": "sycophancy",
            "pairs": {"source": str(pairs_file)},
            "task": {"source": str(folder / "task.jsonl"), "training": {"rank": 2, "learning_rate": 1e-2}},
            "methods": METHODS,
            "k": [-1, 0, 1],
            "evals": ["preference"],
            **keys,
        }
        path = folder / "recipe.yaml"
        path.write_text(json.dumps({key: v for key, v in recipe.items() if v is not None}), encoding="utf-8")
        return path

    return write


@dataclasses.dataclass
class Run:
    """All methods fitted, as a run does it."""

    lm: LanguageModel
    task: WeightVector
    out: Path
    start: Fit
    vectors: dict[str, Any]

    def again(self, label: str, seed: int = 0) -> Any:
        fit = dataclasses.replace(self.start, vectors=self.vectors, seed=seed)
        settings = fit.recipe.method(label)
        return find_plugin("methods", settings.name).fit(settings, fit)


@pytest.fixture(scope="module")
def run(write: Callable[..., Path], tmp_path_factory: Any) -> Run:
    recipe = load_recipe(write())
    pairs, lm, out = load_pairs(recipe), load_model(recipe.model), tmp_path_factory.mktemp("run")
    generator = torch.Generator().manual_seed(1)
    noise = (torch.randn(32, 2, generator=generator), torch.randn(2, 32, generator=generator))
    task = WeightVector({"model.layers.1.self_attn.q_proj.weight": LowRank(*noise)}, lm.ref.fingerprint)
    rows = tuple((row["prompt"], row["answer"]) for row in TASK)
    start = Fit(recipe, pairs, lm, out, recipe.seed, task, rows)
    vectors: dict[str, Any] = {}
    for settings in recipe.methods:
        plugin = find_plugin("methods", settings.name)
        if hasattr(plugin, "check"):
            plugin.check(settings, recipe, pairs)
        vectors[settings.label] = plugin.fit(settings, dataclasses.replace(start, vectors=dict(vectors)))
    return Run(lm, task, out, start, vectors)


def logits(lm: Any) -> torch.Tensor:
    with torch.inference_mode():
        return lm.network(torch.tensor([lm.tokens(lm.chat("Is it good?"))])).logits


def moved(lm: LanguageModel, *changes: tuple[float, WeightVector]) -> torch.Tensor:
    """Logits, in float64, of a network whose parameters are θ + Σ k·w."""
    network = copy.deepcopy(lm.network).double()
    for module in network.modules():
        module._forward_hooks.clear()  # of a vector that is applied to the original just now
    for k, vector in changes:
        for name, change in vector.entries.items():
            stem, _, leaf = name.rpartition(".")
            owner = network.get_submodule(stem)
            old = getattr(owner, leaf)
            start = torch.zeros(change.shape, dtype=torch.float64) if old is None else old
            setattr(owner, leaf, torch.nn.Parameter(start + k * as_dense(change).double()))
    return logits(dataclasses.replace(lm, network=network))


def assert_equal(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 2e-4) -> None:
    torch.testing.assert_close(found.double(), expected.double(), atol=tolerance, rtol=tolerance)


def labels(*skipped: str) -> list[str]:
    return [m.get("label", m["name"]) for m in METHODS if m.get("label", m["name"]) not in skipped]


@pytest.mark.parametrize("label", labels())
def test_k_0_is_the_base_and_the_base_comes_back(run: Run, label: str):
    vector, plain = run.vectors[label], logits(run.lm)
    assert len(vector.digest) == 64
    assert run.again(label).digest == vector.digest, "what is finished gives the same"
    with vector.applied(run.lm, 0, any_base=True) as steered:
        assert torch.equal(logits(steered), plain)
    k = (run.start.recipe.method(label).k or (1,))[0]

    def interrupted() -> None:
        with vector.applied(run.lm, k) as steered:
            assert not torch.allclose(logits(steered), plain, atol=1e-4)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert torch.equal(logits(run.lm), plain)
    assert not any(module._forward_hooks for module in run.lm.network.modules())


@pytest.mark.parametrize("label", labels("sides", "checkpoints", "one", "all", "joint"))
def test_a_task_tuned_model_gets_the_vector_on_top(run: Run, label: str):
    tuned = dataclasses.replace(run.lm, ref=dataclasses.replace(run.lm.ref, fingerprint="of the tuned model"))
    vector = run.vectors[label]
    with run.task.applied(tuned, 1, any_base=True), vector.applied(tuned, -0.5, any_base=True) as steered:
        assert_equal(logits(steered), moved(run.lm, (1, run.task), (-0.5, vector)))
    with pytest.raises(AdapterError, match=r"is of the tuned model. Expected the same"), vector.applied(tuned, 1):
        pass


def test_what_has_one_strength_only_is_not_dialled():
    undialled = [name for name in ("finetuned", "joint", "prompt") if not find_plugin("methods", name).DIALLED]
    assert undialled == ["finetuned", "joint", "prompt"]


# bias-only


def test_the_biases_of_both_sides_are_trained_and_subtracted(run: Run):
    vector = run.vectors["bias-only"]
    sides = [WeightVector.load(run.out / "bias-only" / side) for side in ("positive", "negative")]
    assert list(vector.entries) == [f"model.layers.{b}.mlp.down_proj.bias" for b in range(3)]
    for name, bias in vector.entries.items():
        assert torch.equal(bias, sides[0].entries[name] - sides[1].entries[name])
        assert bias.norm() > 1e-2
    history = json.loads((run.out / "bias-only" / "positive" / "training.json").read_text(encoding="utf-8"))
    assert history["train_loss"][-1][1] < history["train_loss"][0][1]
    assert WeightVector.load(run.out / "bias-only" / "vector").digest == vector.digest


def test_biases_shift_the_output_of_each_mlp(run: Run):
    vector = run.vectors["bias-only"]
    network = copy.deepcopy(run.lm.network).double()
    for b, beta in enumerate(vector.entries.values()):
        network.model.layers[b].mlp.register_forward_hook(
            lambda _m, _i, output, beta=beta: output + 1.5 * beta.double()
        )
    with vector.applied(run.lm, 1.5) as steered:
        assert_equal(logits(steered), logits(dataclasses.replace(run.lm, network=network)))


@pytest.mark.parametrize("asked", ["bias-only", "combined"])
def test_biases_that_are_to_be_merged_and_cannot_be_are_not_trained(
    write: Callable[..., Path], tmp_path: Path, asked: str
):
    choose = {"eval": "preference", "goal": "increase", "method": asked}
    with pytest.raises(RecipeError, match=r"methods bias-only: .*mlp.down_proj has no bias in this architecture"):
        pipeline.run(load_recipe(write(choose=choose)), tmp_path / "out")
    assert not list(tmp_path.rglob("*.safetensors"))


def test_biases_cannot_be_merged_into_an_architecture_without_them(run: Run, tmp_path: Path):
    from weightsteer.merging.merge import merge

    with pytest.raises(
        AdapterError,
        match=r"do not fit this base: 3 problems\n  model.layers.0.mlp.down_proj.bias: the layer has no bias in this "
        r"architecture, .*. Expected changes of parameters that it has. Steer with this vector in memory",
    ):
        merge(run.lm.ref, [(run.vectors["bias-only"], 1.0)], tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_what_a_lora_alone_has_is_no_setting_of_biases(write: Callable[..., Path]):
    with pytest.raises(RecipeError, match=r"methods\[0\].rank: Input should be 1, found 4"):
        load_recipe(write(methods=[{"name": "bias-only", "rank": 4}]))


# one-sided


def test_one_side_raises_the_behavior_for_positive_k(run: Run):
    positive = WeightVector.load(run.out / "weights" / "positive")
    with run.vectors["plus"].applied(run.lm, 0.7) as steered:
        assert_equal(logits(steered), moved(run.lm, (0.7, positive)))
    negative = WeightVector.load(run.out / "bias-only" / "negative")
    with run.vectors["minus"].applied(run.lm, 0.7) as steered:
        assert_equal(logits(steered), moved(run.lm, (-0.7, negative)))


# random


@pytest.mark.parametrize(("label", "of"), [("random", "weights"), ("random-biases", "bias-only")])
def test_a_random_vector_has_the_form_and_the_norm_of_its_model(run: Run, label: str, of: str):
    found, vector = run.vectors[label], run.vectors[of]
    assert found.base == vector.base
    assert found.entries.keys() == vector.entries.keys()
    for name, change in vector.entries.items():
        drawn = found.entries[name]
        assert as_dense(drawn).norm().item() == pytest.approx(as_dense(change).norm().item(), rel=1e-5)
        assert drawn.shape == change.shape
        assert getattr(drawn, "rank", None) == getattr(change, "rank", None)
    assert abs(found.cosine(vector)) < 0.3
    assert run.again(label, seed=1).digest != found.digest


def test_another_label_is_another_draw(write: Callable[..., Path], run: Run):
    recipe = load_recipe(write(methods=[*METHODS[:1], {"name": "random", "label": "second"}]))
    fit = dataclasses.replace(run.start, recipe=recipe, vectors=run.vectors)
    second = find_plugin("methods", "random").fit(recipe.method("second"), fit)
    assert abs(second.cosine(run.vectors["random"])) < 0.3


# combined


def test_a_combination_is_the_weighted_sum(run: Run):
    found, vectors = run.vectors["combined"], run.vectors
    assert found.base == run.lm.ref.fingerprint
    assert [(t["weight"], t["adapter"]) for t in found.info["terms"]] == [
        (0.5, "weights"),
        (-2, "bias-only"),
        (1, "plus"),
    ]
    expected = {name: 0.5 * as_dense(change).double() for name, change in vectors["weights"].entries.items()}
    for name, change in vectors["plus"].entries.items():
        expected[name] = expected[name] + as_dense(change).double()
    expected |= {name: -2 * change.double() for name, change in vectors["bias-only"].entries.items()}
    assert found.entries.keys() == expected.keys()
    for name, change in found.entries.items():
        torch.testing.assert_close(as_dense(change).double(), expected[name], atol=1e-6, rtol=1e-5)
    terms = [(0.5 * 0.3, vectors["weights"]), (-2 * 0.3, vectors["bias-only"]), (0.3, vectors["plus"])]
    with found.applied(run.lm, 0.3) as steered:
        assert_equal(logits(steered), moved(run.lm, *terms))


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        (
            [{"name": "one-sided", "side": "positive"}, "weights"],
            r"methods one-sided.of: 'weights', but the methods of use to it that are listed before it are \[\]. "
            r"Expected the label of a method weights or bias-only. List it first",
        ),
        (
            ["weights", "prompt", {"name": "combined", "of": {"weights": 1, "prompt": 1}}],
            r"methods combined.of: 'prompt', but the methods .* are \['weights'\]. Expected .* weights or bias-only or",
        ),
        (
            ["weights", {"name": "activations", "block": 0}, {"name": "random", "of": "activations"}],
            r"methods random.of: 'activations', but the methods .* are \['weights'\]",
        ),
        (
            ["weights", {"name": "bias-only"}, {"name": "finetuned", "of": "bias-only"}],
            r"methods finetuned.of: 'bias-only', but the methods .* are \['weights'\]",
        ),
        (
            [{"name": "weights", "learning_rate": [1e-3, 1e-4]}, {"name": "finetuned", "k": [0.5]}],
            r"methods finetuned.learning_rate: none is given, and weights tries \[0.001, 0.0001\]. Expected one for",
        ),
    ],
    ids=["nothing before", "a prompt in a sum", "random activations", "other adapters", "several learning rates"],
)
def test_what_is_not_listed_before_is_told(write: Callable[..., Path], methods: Any, message: str):
    recipe = load_recipe(write(methods=methods))
    last = recipe.methods[-1 if methods[-1] != "weights" else 0]
    with pytest.raises(RecipeError, match=message):
        find_plugin("methods", last.name).check(last, recipe, load_pairs(recipe))


# finetuned


def test_whole_trainings_are_the_sides_of_the_vector(run: Run):
    for k, side in ((1, "positive"), (-1, "negative")):
        with run.vectors["sides"].applied(run.lm, k) as tuned:
            assert_equal(logits(tuned), moved(run.lm, (1, WeightVector.load(run.out / "weights" / side))))
    assert not (run.out / "sides").exists()
    with pytest.raises(
        AdapterError, match=r"finetuned: no model at k = 0.5. Expected one of \[-1.0, 1.0\]; list it as k of the method"
    ):
        run.vectors["sides"].applied(run.lm, 0.5).__enter__()


def test_checkpoints_are_points_of_one_training(run: Run):
    models, folder = run.vectors["checkpoints"].changes, run.out / "checkpoints"
    history = json.loads((folder / "positive" / "training.json").read_text(encoding="utf-8"))
    steps = math.ceil(2 * len(run.start.pairs.part("train")) / 8)
    assert (history["steps"], history["learning_rate"], history["validation_loss"]) == (steps, 1e-2, [])
    assert models.keys() == {-1.0, 0.5, 1.0}
    assert 0 < models[0.5].norm() < models[1].norm()
    assert (models[1] - WeightVector.load(folder / "positive")).norm() < 1e-6 * models[1].norm()
    manifest = read_manifest(folder / "positive")
    assert manifest is not None
    assert manifest["inputs"]["at"] == [0.5, 1]
    assert manifest["inputs"]["settings"]["rank"] == 4
    with run.vectors["checkpoints"].applied(run.lm, 0.5) as tuned:
        assert_equal(logits(tuned), moved(run.lm, (1, models[0.5])))


@pytest.mark.parametrize("k", [[2], [0, 1], []])
def test_a_share_is_at_most_the_whole_training(write: Callable[..., Path], k: Any):
    with pytest.raises(RecipeError, match=r"methods\[1\].k: (\[2.0\]|\[0.0\]|empty). Expected shares of the training"):
        load_recipe(write(methods=["weights", {"name": "finetuned", "k": k}]))


# joint


def test_joint_training_takes_the_place_of_the_task(run: Run):
    tau = WeightVector.load(run.out / "joint" / "tuned")
    tuned = dataclasses.replace(run.lm, ref=dataclasses.replace(run.lm.ref, fingerprint="of the tuned model"))
    with run.task.applied(tuned, 1, any_base=True), run.vectors["joint"].applied(tuned, -1, any_base=True) as steered:
        assert_equal(logits(steered), moved(run.lm, (1, tau)), 1e-3)
    manifest = read_manifest(run.out / "joint" / "tuned")
    assert manifest is not None
    assert manifest["inputs"]["settings"]["rank"] == 2
    history = json.loads((run.out / "joint" / "tuned" / "training.json").read_text(encoding="utf-8"))
    rows = len(TASK) + 2 * len(run.start.pairs.part("train"))
    assert history["steps"] == -(-rows // 8) * 2 or history["epochs"] == pytest.approx(
        history["steps"] * 8 / rows, abs=1e-3
    )


def test_the_side_is_the_sign_of_joint_training(write: Callable[..., Path]):
    def k(**settings: Any) -> Any:
        return load_recipe(write(methods=[{"name": "joint", **settings}])).method("joint").k

    assert (k(), k(side="negative"), k(side="positive")) == ((-1,), (-1,), (1,))
    with pytest.raises(RecipeError, match=r"methods\[0\]: k is \[-1.0\]. Expected \[1\] for the positive side: joint"):
        k(side="positive", k=[-1])


@pytest.mark.parametrize("task", [None, {"model": "elsewhere"}])
def test_joint_training_needs_the_rows_of_a_task(write: Callable[..., Path], task: Any):
    recipe = load_recipe(write(task=task, methods=["joint"]))
    found = "none" if task is None else "a model that is tuned already, elsewhere"
    with pytest.raises(
        RecipeError,
        match=f"methods joint: mixes answers into the rows of the recipe's task, which is {found}. Expected a",
    ):
        find_plugin("methods", "joint").check(recipe.method("joint"), recipe, load_pairs(recipe))


# activations at all layers


def test_increments_add_up_to_the_direction_of_each_block(run: Run):
    found = run.vectors["all"].directions
    assert list(found) == [0, 1], "the last block is not steered"
    total = torch.zeros(32)
    for b in range(2):
        alone = activations_method.Settings(label=f"block-{b}", block=b)
        single = activations_method.fit(alone, run.start).directions[b]
        total = total + found[b]
        torch.testing.assert_close(total, single, atol=1e-6, rtol=1e-5)
    assert torch.equal(found[0], run.vectors["one"].directions[0])


def test_every_steered_block_gets_its_increment(run: Run):
    network = copy.deepcopy(run.lm.network).double()
    for b, direction in run.vectors["all"].directions.items():
        step = -0.5 * direction.double()
        network.model.layers[b].register_forward_hook(lambda _m, _i, output, step=step: output + step)
    vector = dataclasses.replace(run.vectors["all"], mode="all")
    with vector.applied(run.lm, -0.5, True) as steered:
        assert_equal(logits(steered), logits(dataclasses.replace(run.lm, network=network)))


def test_increments_need_every_block():
    some = ActivationVector({0: torch.ones(4), 2: torch.ones(4)})
    with pytest.raises(AdapterError, match=r"activation vector: has blocks \[0, 2\]. Expected every block of the mod"):
        some.increments()


def test_one_block_and_all_are_not_both_asked_for(write: Callable[..., Path]):
    with pytest.raises(RecipeError, match=r"methods\[0\]: both block 0 and all_layers are set; keep one"):
        load_recipe(write(methods=[{"name": "activations", "block": 0, "all_layers": True}]))
