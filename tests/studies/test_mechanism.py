"""The study `mechanism` on a tiny model: its numbers against the tools it uses, its words, what it refuses."""

import json
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import write_model

from weightsteer.activations.makers import persona_vector
from weightsteer.activations.mechanism.anatomy import Part
from weightsteer.activations.mechanism.freezing import frozen
from weightsteer.activations.mechanism.parts import part
from weightsteer.activations.vector import ActivationVector
from weightsteer.data.contrast import load_pairs
from weightsteer.errors import DataError, RecipeError
from weightsteer.evals import ItemScore, preference
from weightsteer.models.language_model import load_model
from weightsteer.recipe import load_study
from weightsteer.report.document import write_document
from weightsteer.stats import Estimate, paired_difference
from weightsteer.studies import mechanism
from weightsteer.weights.vector import WeightVector

ACTIVATIONS = ("means", "next-token", "preference")
NAMES = (*ACTIVATIONS, "weights")
BLOCKS = 3


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, pairs_file: Path) -> Callable[..., mechanism.Settings]:
    """The settings of a small study with keys replaced; `--set` texts."""
    folder = tmp_path_factory.mktemp("mechanism")
    content = {
        "study": "mechanism",
        "name": "tiny",
        "model": {"source": str(write_model(folder / "model", num_hidden_layers=BLOCKS)), "dtype": "float32"},
        "pairs": {"source": str(pairs_file), "validation": 0, "held_out": 0.3},
        "depth": 0,
        "k": 20,
        "answer_tokens": 5,
        "prompts": 2,
        "exact_prompts": 1,
        "steps": 4,
        "vector_training": {"epochs": 1, "batch_size": 14},
        "fine_tune": {"rank": 2, "alpha": 4, "max_steps": 4, "batch_size": 4, "warmup_steps": 1, "learning_rate": 1e-2},
        "circuit_shares": [0.1, 1],
        "circuit_share": 0.5,
        "thresholds": [0.5, 1, 1000],
        "weight_shares": [0.5, 0.1],
        "ranges": 2,
    }
    (folder / "mechanism.json").write_text(json.dumps(content), encoding="utf-8")
    return lambda *overrides: load_study(folder / "mechanism.json", overrides)


@pytest.fixture(scope="module")
def ran(recipe: Callable[..., mechanism.Settings], tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ...]:
    """Settings, folder, document, model and the four vectors of one run."""
    settings, out = recipe(), tmp_path_factory.mktemp("out")
    document = mechanism.run(settings, out)
    vectors = {name: ActivationVector.load(out / "activations" / name) for name in ACTIVATIONS}
    return (
        settings,
        out,
        document,
        load_model(settings.model),
        {**vectors, "weights": WeightVector.load(out / "weights/vector")},
    )


def effects(settings: Any, lm: Any) -> list[float]:
    items = load_pairs(settings.recipe).part("held_out").pairs
    return [score.values["log_odds"] for score in preference.score(lm, items)]


def test_what_is_read(recipe: Callable[..., mechanism.Settings]):
    told = "refusal: 14 pairs for the vectors, 6 questions to measure on, 2 of them for circuits"
    assert mechanism.check(recipe()) == [told]


def test_checking_the_shipped_recipe_loads_no_torch():
    shipped = Path(__file__).parents[2] / "recipes" / "mechanism.yaml"
    program = (
        "import sys; from weightsteer.recipe import load_study; from weightsteer.studies import mechanism; "
        f"print(mechanism.check(load_study({str(shipped)!r}))[0]); "
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "refusal: 40 pairs for the vectors, 20 questions to measure on, 4 of them for circuits"


def test_a_section_for_each_question(ran: Any, tmp_path: Path):
    _, _, document, _, _ = ran
    assert [section.title for section in document.sections] == [
        "What it acts through", "Which weights", "What heads write of it", "Which heads and MLPs", "Circuits",
        "How few dimensions", "How little of the weights",
    ]  # fmt: skip
    for section in document.sections:
        assert section.asked.endswith("?")
        assert section.answer.endswith(".")
    notes = " ".join(note for section in document.sections for note in section.notes)
    assert "8.75 %" in notes
    assert "Strengths are set by hand" in notes
    (tmp_path / "report").mkdir()
    write_document(document, tmp_path / "report")
    drawn = {path.stem for path in (tmp_path / "report" / "figures").iterdir()}
    assert {"values-means", "values-weights"} <= drawn


def test_activation_vectors_have_the_length_of_the_difference_in_means(ran: Any):
    settings, _, document, lm, vectors = ran
    pairs = load_pairs(settings.recipe)
    expected = persona_vector(lm, pairs.part("train")).at(0)
    for name in ACTIVATIONS:
        assert (list(vectors[name].directions), vectors[name].mode) == ([0], "all")
        assert vectors[name].norm() == pytest.approx(expected.norm(), rel=1e-5)
    assert torch.allclose(vectors["means"].directions[0], expected.directions[0], atol=1e-6)
    assert document.data["lengths"]["means"] == pytest.approx(expected.norm(), rel=1e-5)
    assert document.data["cosines"]["means and preference"] == pytest.approx(
        vectors["means"].cosine(vectors["preference"])
    )


def test_frozen_parts_and_parts_of_weights_are_measured_on_held_out_questions(ran: Any):
    settings, _, document, lm, vectors = ran
    base = effects(settings, lm)
    with frozen(vectors["means"], lm, settings.k, Part("mlp")) as steered:
        held = effects(settings, steered)
    change = paired_difference(held, base)
    found = document.data["frozen"]["means"]["cases"]["MLP outputs"]["change"]
    assert [found[key] for key in ("mean", "low", "high")] == pytest.approx(
        [change.mean, change.low, change.high], abs=1e-4
    )
    assert document.data["frozen"]["means"]["items"] == 6
    with part(vectors["weights"], lm, Part("ov")).applied(lm, settings.k_weights) as steered:
        alone = effects(settings, steered)
    change = paired_difference(alone, base)
    parts = document.data["parts"]
    assert parts["cases"]["values and outputs"]["change"]["mean"] == pytest.approx(change.mean, abs=1e-4)
    assert list(parts["cases"]) == [
        "queries and keys", "values and outputs", "MLPs", "blocks 0 to 1", "block 2",
    ]  # fmt: skip
    squares = parts["squares"]
    assert squares["queries and keys"] + squares["values and outputs"] + squares["MLPs"] == pytest.approx(1)
    assert squares["blocks 0 to 1"] + squares["block 2"] == pytest.approx(1)


def test_the_head_of_the_largest_gain_is_shown(ran: Any):
    _, _, document, _, _ = ran
    values = document.data["values"]
    assert [row["block"] for row in values["means"]["blocks"]] == [1, 2]
    for found in values.values():
        for row in found["blocks"]:
            assert row["gain"] == pytest.approx(max(row["gains"]))
            assert row["gains"][row["head"]] == max(row["gains"])
            assert len(row["top"]) == 8


def test_all_edges_carry_all_and_estimates_stand_beside_exact_effects(ran: Any):
    _, _, document, _, _ = ran
    data = document.data
    acting = [name for name in NAMES if data["circuits"][name] is not None]
    assert "means" in acting
    for name in acting:
        rows = {row["asked"]: row for row in data["circuits"][name]["circuits"]}
        assert list(rows) == [0.1, 0.5, 1]
        assert rows[1]["logit"]["mean"] == pytest.approx(1, abs=1e-3)
        assert rows[1]["share"] == 1
    patched = data["patched"]["means"]
    heads = [node for node in patched["nodes"] if node["kind"] == "head"]
    assert {(node["block"], node["head"]) for node in heads} == {(b, h) for b in (1, 2) for h in range(4)}
    assert len(patched["exact"]) == len(patched["estimated"]) == 10
    # What a vector's own circuit carries does not depend on where it is looked up.
    carried = data["shared"]["carried"]["means"]["means"]["logit"]["mean"]
    own = next(row for row in data["circuits"]["means"]["circuits"] if row["asked"] == 0.5)
    assert carried == pytest.approx(own["logit"]["mean"], abs=1e-5)


def test_what_is_left_out(ran: Any):
    settings, _, document, lm, vectors = ran
    sparse, thinned = document.data["sparse"], document.data["thinned"]
    assert set(sparse["curves"]) == {"attribution", "random", "magnitude", "effect"}
    counts = [[point["share"] for point in points] for points in sparse["curves"].values()]
    assert all(shares == counts[0] for shares in counts), "as many dimensions by every rule"
    assert len(counts[0]) == 2, "no dimension passes r = 1000"
    base = effects(settings, lm)
    for name, whole in (("means", sparse["whole"]), ("weights", thinned["whole"])):
        with vectors[name].applied(lm, settings.k if name == "means" else settings.k_weights) as steered:
            change = paired_difference(effects(settings, steered), base)
        assert whole["mean"] == pytest.approx(change.mean, abs=1e-4)
        assert document.data["frozen"][name]["whole"]["mean"] == pytest.approx(change.mean, abs=1e-4)
    shares = {rule: [point["share"] for point in points] for rule, points in thinned["curves"].items()}
    assert shares["largest elements"] == shares["random (DARE)"] == [0.5, 0.1]
    assert shares["largest singular directions"] == [2 / 4, 1 / 4], "of both sides' two, one at least"
    assert set(thinned["kinds"]) == {"attention", "mlp"}
    assert sum(point["share"] for point in thinned["kinds"].values()) == pytest.approx(1)


def test_a_second_run_repeats_nothing(ran: Any, monkeypatch: pytest.MonkeyPatch):
    settings, out, document, _, _ = ran
    made = {path: path.stat().st_mtime_ns for path in out.rglob("manifest.json")}
    monkeypatch.setattr("weightsteer.evals.preference.score", None)
    assert mechanism.run(settings, out).data == document.data
    assert {path: path.stat().st_mtime_ns for path in out.rglob("manifest.json")} == made


def answering_nothing(document: Any, **fields: Any) -> Any:
    """What a run finds in which no vector does anything, but for `fields`."""
    from weightsteer.studies._mechanism_measured import Measured

    zero = Estimate(0.1, -0.2, 0.3)
    nothing = {"items": 6, "whole": zero, "cases": {"QK": {"change": zero, "lost": zero, "share": None}}}
    point = {"share": 0.5, "effect": zero, "retained": zero}
    found = Measured(
        lengths=dict.fromkeys(ACTIVATIONS, 1.0), cosines={"means and next-token": 0.5},
        frozen=dict.fromkeys(NAMES, nothing), parts={**nothing, "squares": {"QK": 1.0}},
        values={name: _estimates(found) for name, found in document.data["values"].items()},
        patched=dict.fromkeys(("means", "weights")), circuits=dict.fromkeys(NAMES),
        shared={"names": [], "overlaps": [], "carried": {}},
        sparse={"dimensions": 32, "kept": {}, "shared": [], "whole": None, "curves": {}},
        thinned={"whole": zero, "curves": {"random": [point]}, "kinds": {"mlp": point}, "rank": 4},
    )  # fmt: skip
    return replace(found, **fields)


def test_where_nothing_can_be_told_no_shares_are_given(ran: Any):
    from weightsteer.studies._mechanism_document import make_document

    settings, _, document, _, _ = ran
    told = make_document(settings, answering_nothing(document))
    answers = {section.title: section.answer for section in told.sections}
    for title in ("What it acts through", "Which weights", "How little of the weights"):
        assert "cannot be told from zero on these questions" in answers[title]
        assert "%" not in answers[title]
    for title in ("Which heads and MLPs", "Circuits", "How few dimensions"):
        assert "otherwise than without, so there is nothing to explain" in answers[title]


def test_overlap_and_what_circuits_carry_of_another_vector(ran: Any):
    from weightsteer.studies._mechanism_paths import circuits

    settings, _, document, _, _ = ran
    carried = {"logit": Estimate(0.634, 0.59, 0.67)}
    overlap = {"one": "means", "other": "weights", "shared": 5, "iou": 0.19, "expected_iou": 0.08, "p_value": 1e-9}
    shared = {
        "names": ["means", "weights"],
        "overlaps": [overlap],
        "carried": {"means": {"means": carried}, "weights": {"means": carried, "weights": carried}},
    }
    section = circuits(settings, answering_nothing(document, shared=shared))
    assert "circuits of an activation vector and the weight vector share 0.19 of their edges" in section.answer.lower()
    assert "1 of 1 overlaps exceed chance" in section.answer
    _, pairs, crossed = section.tables
    assert pairs.rows == (("mean difference and weights", 0.19, 0.08, "under 0.001", "none"),)
    share = "63 % [59, 67]"
    assert crossed.rows == (("mean difference", share, share), ("weights", "none", share))


def _estimates(found: Any) -> Any:
    """Estimates as they are read from a stage."""
    return json.loads(
        json.dumps(found), object_hook=lambda d: Estimate(**d) if set(d) == {"mean", "low", "high"} else d
    )


def test_strengths_that_the_model_does_not_survive(ran: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from weightsteer.studies._mechanism_bench import Bench

    settings, _, _, lm, _ = ran
    monkeypatch.setattr(preference, "score", lambda lm, items: [ItemScore(i.id, {"log_odds": math.nan}) for i in items])
    with pytest.raises(DataError, match=r"preference on 6 held-out questions: some log-odds are not finite"):
        Bench(mechanism.read(settings), tmp_path).effect(lm)


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (["behavior=refusl"], r"behavior: no 'refusl.yaml' in .* .did you mean 'refusal'"),
        (["prompts=1"], r"prompts: .*greater than or equal to 2, found 1"),
        (["exact_prompts=3"], r"exact_prompts: 3. Expected at most prompts, 2"),
        (["threshold=0.7"], r"threshold: 0.7. Expected one of thresholds, \[0.5, 1.0, 1000.0\]"),
        (["fine_tune.learning_rate=[0.1, 0.2]"], r"fine_tune.learning_rate: \[0.1, 0.2\]. Expected one"),
        (["vector_training.factors=[5, 2]"], r"vector_training.factors: \[5, 2\]. Expected low, then high"),
        (["pairs={elicit: {}}"], r"pairs.elicit: is set. Expected pairs that exist"),
    ],
)
def test_refused_recipes(recipe: Callable[..., mechanism.Settings], overrides: list[str], problem: str):
    with pytest.raises(RecipeError, match=problem):
        mechanism.check(recipe(*overrides))


def test_refused_pairs_and_blocks(recipe: Callable[..., mechanism.Settings], tmp_path: Path):
    with pytest.raises(DataError, match=r"refusal: 2 of 6 pairs are held out. Expected 4 or more"):
        mechanism.check(recipe("pairs.limit=6", "prompts=4"))
    for override, problem in (
        ("block=2", r"block 2: the model has blocks 0 to 2. Expected one before the last"),
        ("depth=0.9", r"depth 0.9, which is block 2: the model has blocks 0 to 2. Expected one before the last"),
    ):
        with pytest.raises(RecipeError, match=problem):
            mechanism.run(recipe(override), tmp_path)
    assert mechanism.block_of(recipe("block=1"), BLOCKS) == 1
