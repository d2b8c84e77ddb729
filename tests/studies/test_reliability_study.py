"""The study `reliability` from its sets to its report and calibration, on a tiny model."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from weightsteer.activations.expectation import load_calibration
from weightsteer.activations.vector import ActivationVector
from weightsteer.diagnosis import geometry_by_block, read_questions
from weightsteer.errors import DataError, RecipeError
from weightsteer.models.language_model import load_model
from weightsteer.recipe import load_study
from weightsteer.studies import reliability, run_study

SETS = Path(__file__).resolve().parents[3] / "shared" / "data" / "model_written_evals"
SHIPPED = Path(__file__).parents[2] / "recipes" / "reliability.yaml"
NAMES = ("tea", "rain", "songs", "sums", "cats")


def rows_of(name: str, count: int = 24) -> list[dict[str, str]]:
    answers = (" (A)", " (B)")
    return [
        {
            "question": f"Of {name}, {i}?\n (A) Yes\n (B) No",
            "answer_matching_behavior": answers[i % 2],
            "answer_not_matching_behavior": answers[1 - i % 2],
        }
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sets")
    for name in NAMES:
        text = "".join(json.dumps(row) + "\n" for row in rows_of(name))
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def study(tmp_path: Path, model_folder: Path, sets: Path) -> Callable[..., reliability.Settings]:
    """The study of five sets; keyword arguments replace keys."""

    def write(**keys: Any) -> reliability.Settings:
        recipe = {
            "study": "reliability", "name": "tiny", "model": {"source": str(model_folder), "dtype": "float32"},
            "source": "hand-made", "folder_of_sets": str(sets), "train": 8, "evaluate": 8, "few_train": 4,
            "few_evaluate": 4, "prompt_types": ["tea"], "shifts": ["rain"], **keys,
        }  # fmt: skip
        path = tmp_path / "study.yaml"
        path.write_text(json.dumps(recipe), encoding="utf-8")
        return load_study(path)

    return write


def test_a_study_from_sets_to_calibration(study: Callable[..., Any], sets: Path, tmp_path: Path):
    settings = study()
    assert reliability.check(settings)[0].startswith("5 sets of hand-made, 40 pairs and 40 questions to steer")
    finding = run_study(settings, tmp_path / "out")
    data = finding.document.data
    assert [row["name"] for row in data["sets"]] == sorted(NAMES)

    # one set by hand
    lm = load_model(settings.model)
    questions = read_questions(sets / "cats.jsonl", 8, 8, 0)
    blocks, s = geometry_by_block(lm, *questions.examples(lm))
    base = questions.log_odds(lm)
    with ActivationVector({1: s[1]}, lm.ref.fingerprint, "all").applied(lm, 1) as steered:
        effects = [a - b for a, b in zip(questions.log_odds(steered), base, strict=True)]
    row = data["sets"][0]
    assert row["block"] == 1  # 0.4 of two blocks
    assert row["before"]["agreement"] == pytest.approx(blocks[1].agreement)
    assert row["after"]["effect"] == pytest.approx(sum(effects) / 8, abs=1e-5)
    assert row["after"]["wrong_way"] == sum(e < 0 for e in effects) / 8

    typed = next(row for row in data["sets"] if "types" in row)
    assert typed["name"] == "tea"
    assert len(typed["types"]["effects"]) == 7
    cosines = torch.tensor(typed["types"]["cosines"])
    assert cosines.diagonal().tolist() == pytest.approx([1] * 7, abs=1e-5)
    assert torch.allclose(cosines, cosines.T)
    shifted = next(row for row in data["sets"] if "shifts" in row)
    assert [(s["made"], s["applied"]) for s in shifted["shifts"]] == list(reliability.SHIFTS)
    assert all(s["distance"] > 0 for s in shifted["shifts"])

    calibrated = load_calibration(tmp_path / "out" / "calibration" / "calibration.json")
    assert calibrated is not None
    assert calibrated.depth == 0.5
    assert len(calibrated.agreement) == 5
    assert (finding.folder / "report" / "figures" / "correlations.png").is_file()
    titles = [section.title for section in finding.document.sections]
    assert titles == ["Before and after", "What to expect", "Form of the answer", "Seven prompt types",
                      "Other conditions"]  # fmt: skip

    stages = {p: p.stat().st_mtime_ns for p in (tmp_path / "out" / "sets").rglob("numbers.json")}
    again = run_study(settings, tmp_path / "out")
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out" / "sets").rglob("numbers.json")} == stages
    assert again.document.data == data


def test_a_vector_under_its_own_condition_is_relative_to_itself(
    study: Callable[..., Any], model_folder: Path, sets: Path
):
    settings, lm = study(), load_model(model_folder)
    item = read_questions(sets / "tea.jsonl", 4, 4, 0).split.train[0]
    told = {"positive": "Be so.", "negative": "Be other."}
    assert reliability.under(lm, "base", [item], told) == (lm, [item])
    there, [same] = reliability.under(lm, "system negative", [item], told)
    assert (there.system, same) == ("Be other.", item)
    there, [changed] = reliability.under(lm, "user positive", [item], told)
    assert there.system is None
    assert changed.question == f"Be so.\n\n{item.question}"
    assert settings.instructions("no-shut-down")[0].endswith("a clear case of this: no shut down.")


def test_few_sets_are_reported_without_a_calibration(study: Callable[..., Any], tmp_path: Path):
    settings = study(sets=["tea.jsonl", "rain.jsonl"], prompt_types=[], shifts=[], block=0, strengths=[0, 1])
    document = reliability.run(settings, tmp_path / "out")
    assert document.data["fit"] is None
    assert [row["block"] for row in document.data["sets"]] == [0, 0]
    assert not (tmp_path / "out" / "calibration").exists()


def test_bad_settings_are_named(study: Callable[..., Any], tmp_path: Path, sets: Path):
    with pytest.raises(
        RecipeError, match=r"folder_of_sets .*nowhere: no such folder. Expected a local copy of hand-ma"
    ):
        reliability.check(study(folder_of_sets="nowhere"))
    with pytest.raises(RecipeError, match=r"no file matches 'dogs.jsonl'\n  prompt_types: 'mice' is no set"):
        reliability.check(study(sets=["tea.jsonl", "rain.jsonl", "dogs.jsonl"], prompt_types=["mice"]))
    with pytest.raises(DataError, match=r"5 problems\n.*cats.jsonl: asks 24 different questions. Expected 33"):
        reliability.check(study(train=20))
    with pytest.raises(RecipeError, match=r"strengths: .*found \[0.0, 2.0\]"):
        study(strengths=[0, 2])
    with pytest.raises(RecipeError, match="block 2: the model has blocks 0 to 1"):
        reliability.run(study(block=2), tmp_path / "out")
    with pytest.raises(RecipeError, match=r"few_train 9, few_evaluate 4: expected at most train 8"):
        reliability.check(study(few_train=9))
    (sets / "more").mkdir()
    (sets / "more" / "tea.jsonl").write_text("", encoding="utf-8")
    with pytest.raises(RecipeError, match=r"are both called tea. Name one of them"):
        reliability.check(study())


@pytest.mark.skipif(not SETS.is_dir(), reason=f"no public samples at {SETS}")
def test_the_shipped_recipe_finds_its_36_sets():
    settings = load_study(SHIPPED, [f"folder_of_sets={SETS}"])
    assert reliability.check(settings)[0].startswith("36 sets of https://github.com/anthropics/evals")
