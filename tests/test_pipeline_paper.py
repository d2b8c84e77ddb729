"""What the paper's experiments need of a run: a task, several training seeds, several vectors, equal divergence."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from test_pipeline import tiny_recipe

from weightsteer.errors import DataError, RecipeError
from weightsteer.models.language_model import load_model
from weightsteer.pipeline import Outcome, run, seed_folder, status
from weightsteer.recipe import ModelPart, Recipe, load_recipe
from weightsteer.weights.vector import WeightVector

LORA = {"rank": 4, "epochs": 1, "learning_rate": 1e-2, "dtype": "float32"}
ROWS = [{"question": f"What is {i} plus one?", "answer": f"It is {i + 1}."} for i in range(30)]


def with_task(folder: Path, **keys: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "task.jsonl").write_text("\n".join(map(json.dumps, ROWS)), encoding="utf-8")
    task = {"source": "task.jsonl", "training": LORA, "limit": 20, "validation": 0.2}
    return tiny_recipe(folder, task=task, **keys)


@pytest.fixture(scope="session")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Outcome]:
    """A run on a task-tuned model, at two training seeds, compared at equal divergence."""
    folder = tmp_path_factory.mktemp("tuned")
    path = with_task(
        folder,
        repeats=2,
        methods=[{"name": "weights", **LORA}, "prompt"],
        evals=[{"name": "preference"}, {"name": "capability", "limit": 12}],
        equal_kl={"target": 0.01, "prompts": 4, "tokens": 4},
        figures=[{"title": "Fig. 2", "x": "preference", "y": "capability.p_correct"}],
    )
    recipe = load_recipe(path)
    return recipe, run(recipe, folder / "out")


def logits(source: Path | str) -> torch.Tensor:
    lm = load_model(ModelPart(source=str(source), dtype="float32"))
    with torch.inference_mode():
        return lm.network(torch.tensor([lm.tokens(lm.chat("Is tea good?"))])).logits[0]


def test_the_model_that_is_steered_is_the_task_tuned_one(tuned: tuple[Recipe, Outcome]):
    recipe, outcome = tuned
    out = outcome.folder
    lm = load_model(recipe.model)
    task, vector = WeightVector.load(out / "task" / "adapter"), WeightVector.load(out / "weights" / "vector")
    assert vector.base == lm.ref.fingerprint, "fitted on the base"
    with task.applied(lm, 1), vector.applied(lm, 1) as both, torch.inference_mode():
        expected = both.network(torch.tensor([lm.tokens(lm.chat("Is tea good?"))])).logits[0]
    assert torch.allclose(logits(out / "merged"), expected, atol=1e-4)
    assert not torch.allclose(logits(out / "task" / "model"), logits(recipe.model.source), atol=1e-3)


def test_the_untuned_model_has_a_row_of_its_own(tuned: tuple[Recipe, Outcome]):
    report = tuned[1].report
    assert report is not None
    rows = {(c["method"], c["eval"]): c for c in report["cells"]}
    assert rows["untuned", "preference"]["change"]["log_odds"]["mean"] != 0
    assert rows["base", "preference"]["change"] is None
    assert report["task"]["source"] == "task.jsonl"
    assert report["task"]["training"]["steps"] == 2


def test_every_seed_has_its_vector_and_a_cell_is_their_mean(tuned: tuple[Recipe, Outcome]):
    recipe, outcome = tuned
    first, second = (seed_folder(recipe, outcome.folder, seed) / "weights" / "vector" for seed in recipe.seeds)
    assert WeightVector.load(first).cosine(WeightVector.load(second)) < 0.999
    assert outcome.report is not None
    [cell] = [c for c in outcome.report["cells"] if (c["method"], c["k"], c["eval"]) == ("weights", 1, "preference")]
    means = [entry["metrics"]["log_odds"] for entry in cell["seeds"]]
    assert [entry["seed"] for entry in cell["seeds"]] == [0, 1]
    assert means[0] != means[1]
    assert cell["metrics"]["log_odds"]["mean"] == pytest.approx(sum(means) / 2)
    [prompt] = [c for c in outcome.report["cells"] if (c["method"], c["k"], c["eval"]) == ("prompt", 1, "preference")]
    assert prompt["seeds"] == []
    assert outcome.report["methods"]["weights"]["seeds"] == [0, 1]


def test_methods_meet_at_one_divergence(tuned: tuple[Recipe, Outcome]):
    report = tuned[1].report
    assert report is not None
    rows = {(row["method"], row["sign"]): row for row in report["equal_kl"]["rows"]}
    assert set(rows) == {("weights", -1), ("weights", 1), ("prompt", -1), ("prompt", 1)}
    for sign in (-1, 1):
        assert rows["weights", sign]["kl"] == pytest.approx(0.01, rel=0.3)
        assert rows["weights", sign]["against"] == {}
        test = rows["prompt", sign]["against"]["preference.log_odds"]
        assert 0 < test["p"] <= test["p_adjusted"] <= 1
        difference = rows["prompt", sign]["metrics"]["preference.log_odds"]["mean"]
        difference -= rows["weights", sign]["metrics"]["preference.log_odds"]["mean"]
        assert test["mean"] == pytest.approx(difference)
    assert report["equal_kl"]["comparisons"] == 4


def test_status_knows_the_stages_of_the_task_and_the_seeds(tuned: tuple[Recipe, Outcome]):
    recipe, outcome = tuned
    done = {stage: (n, of) for stage, n, of in status(recipe, outcome.folder)}
    assert (done["task"], done["fit"], done["sweep"]) == ((1, 1), (6, 6), (14, 14))
    assert run(recipe, outcome.folder).reused


def test_vectors_of_several_behaviors_and_their_interference(tmp_path: Path):
    other = [{"prompt": f"Say {i}.", "positive": f"{i} it is!", "negative": f"Not {i}, sorry."} for i in range(20)]
    tmp_path.mkdir(exist_ok=True)
    (tmp_path / "other.jsonl").write_text("\n".join(map(json.dumps, other)), encoding="utf-8")
    path = tiny_recipe(
        tmp_path,
        methods=[
            {"name": "weights", **LORA},
            {"name": "weights", "label": "other", "pairs": {"source": "other.jsonl"}, **LORA},
            {"name": "combined", "label": "both", "of": {"weights": 1, "other": 0.5}},
        ],
        k=[0, 1],
        evals=[{"name": "preference"}, {"name": "preference", "label": "theirs", "items": "other.jsonl"}],
        interference={"vectors": ["weights", "other", "both"], "metrics": ["preference", "theirs.share"]},
        samples={"prompts": []},
    )
    recipe = load_recipe(path)
    report = run(recipe, tmp_path / "out").report
    assert report is not None
    found = report["interference"]
    assert (found["vectors"], len(found["matrix"]), len(found["matrix"][0])) == (["weights", "other", "both"], 3, 2)
    moved = {(c["method"], c["eval"]): c["change"] for c in report["cells"]}
    assert found["matrix"][1][0] == moved["other", "preference"]["log_odds"]
    assert found["matrix"][2][1] == moved["both", "theirs"]["share"]
    vectors = [WeightVector.load(tmp_path / "out" / label / "vector") for label in ("weights", "other")]
    assert vectors[0].cosine(vectors[1]) < 0.9


def test_a_scale_is_a_named_set_of_overrides_and_a_key_asked_for_wins(tmp_path: Path):
    small = {"evals.preference.limit": 3, "methods[0].rank": 2, "k": [0, 1], "pairs.limit": 10}
    path = tiny_recipe(tmp_path, scales={"small": small})
    whole, scaled = load_recipe(path), load_recipe(path, ["methods.weights.rank=3", "scale=small"])
    assert (whole.scale, whole.method("weights").rank, whole.eval("preference").limit) == (None, 4, 12)
    assert (scaled.scale, scaled.method("weights").rank, scaled.eval("preference").limit) == ("small", 3, 3)
    assert (scaled.k, scaled.pairs.limit) == ((0, 1), 10)
    with pytest.raises(RecipeError, match=r"scale: no 'smal' \(did you mean 'small'\?\). Expected one of \['small'\]"):
        load_recipe(path, ["scale=smal"])


def test_a_scale_that_leads_nowhere(tmp_path: Path):
    path = tiny_recipe(tmp_path, scales={"small": {"evals.preferance.limit": 3}})
    with pytest.raises(RecipeError, match=r"scales\.small: evals\.preferance\.limit: there is no 'preferance' to set"):
        load_recipe(path, ["scale=small"])


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"text": "x"}, r"row 31: has \['text'\]. Expected texts under prompt and answer"),
        ({"question": "x", "answer": ""}, "row 31: has"),
        ("x", "row 31: is str, not an object"),
    ],
)
def test_a_bad_row_of_a_task_is_named_before_anything_runs(tmp_path: Path, row: Any, problem: str):
    path = with_task(tmp_path)
    (tmp_path / "task.jsonl").write_text("\n".join(map(json.dumps, [*ROWS, row])), encoding="utf-8")
    with pytest.raises(DataError, match=problem):
        run(load_recipe(path), tmp_path / "out")


def test_a_task_has_one_learning_rate(tmp_path: Path):
    with pytest.raises(RecipeError, match=r"task: training\.learning_rate: \[0\.1, 0\.2\]\. Expected one"):
        load_recipe(with_task(tmp_path), ["task.training.learning_rate=[0.1, 0.2]"])


def test_pairs_of_a_method_are_not_elicited_in_a_run(tmp_path: Path):
    path = tiny_recipe(tmp_path, methods=[{"name": "weights", "pairs": {"elicit": {}}}])
    with pytest.raises(DataError, match=r"weights: pairs\.elicit, but only the recipe's own pairs are elicited"):
        run(load_recipe(path), tmp_path / "out")


def test_a_task_has_one_origin(tmp_path: Path):
    with pytest.raises(RecipeError, match=r"task: names \['model', 'source'\]. Expected exactly one"):
        load_recipe(with_task(tmp_path), ["task.model=x"])
