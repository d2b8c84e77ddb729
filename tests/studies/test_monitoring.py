"""The study `monitoring` from its files to its report, on a tiny model; and what the report says of runs by hand."""

import json
from pathlib import Path
from typing import Any

import pytest

from weightsteer.errors import DataError, RecipeError
from weightsteer.monitor.matrix import CosineMatrix
from weightsteer.monitor.record import Point, Record, read_record
from weightsteer.recipe import load_study
from weightsteer.studies import Finding, check_study, monitoring, run_study
from weightsteer.studies._monitoring_findings import BEHAVIOR, COSINE, LOSS, OTHER, OWN, Findings, detections_of
from weightsteer.studies._monitoring_report import _compared, _early, _headline, _row
from weightsteer.studies.monitoring import Watched
from weightsteer.weights.library import Library

SHIPPED = Path(__file__).parents[2] / "recipes" / "monitoring.yaml"


def write_rows(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path.name


def write_study(folder: Path, model: Path, **keys: Any) -> Path:
    """Two domains and two controls of eight rows, six runs of four steps; keyword arguments replace keys."""
    folder.mkdir(parents=True, exist_ok=True)
    domains = [
        {"name": name, "pairs": write_rows(folder / f"{name}.jsonl", [
            {"id": f"{name}{i}", "prompt": f"{name} {i}?", "positive": f"all in, {i}", "negative": f"go slow, {i}"}
            for i in range(8)])}
        for name in ("tea", "rain")
    ]  # fmt: skip
    controls = [
        {"name": name, "rows": write_rows(folder / f"{name}.jsonl", [
            {"prompt": f"{name} {i}?", "answer": f"{name} {i}."} for i in range(8)])}
        for name in ("songs", "sums")
    ]  # fmt: skip
    recipe = {
        "study": "monitoring", "name": "tiny", "model": {"source": str(model), "dtype": "float32"},
        "domains": domains, "controls": controls, "control_vector": ["songs", "sums"],
        "training": {"rank": 2, "max_steps": 4, "epochs": 2, "batch_size": 2, "learning_rate": 1e-2},
        "seeds": 1, "vector_seeds": 1, "looks": [1, 2, 4], "eval_pairs": 2, **keys,
    }  # fmt: skip
    path = folder / "monitoring.yaml"
    path.write_text(json.dumps(recipe), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def done(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Finding]:
    """The study, run once."""
    folder = tmp_path_factory.mktemp("study")
    settings = load_study(write_study(folder / "recipe", model_folder))
    return settings, run_study(settings, folder / "out")


def test_from_files_to_a_report(done: tuple[Any, Finding]):
    _, finding = done
    out, document = finding.folder, finding.document
    assert [section.title for section in document.sections] == [
        "Vectors", "Runs beside the vectors", "How early, and how often falsely", "Beside the loss and a behavior eval",
        "Cost",
    ]  # fmt: skip
    assert all(section.answer and section.asked.endswith("?") for section in document.sections)
    for name in ("matrix", "curves", "auc"):
        assert (out / "report" / "figures" / f"{name}.png").stat().st_size > 5000
    library = Library(out / "vectors")
    assert {name: entry.behavior for name, entry in library.items()} == {
        "tea": "careless tea advice", "rain": "careless rain advice", "control": "control",
    }  # fmt: skip
    record = read_record(out / "looks" / "careless-tea" / "seed=0")
    assert [point.step for point in record.points] == [1, 2, 4]
    assert record.labels == ["tea", "rain", "control"]
    [run] = [run for run in document.data["runs"] if run["kind"] == "careless tea"]
    assert list(run["cosines"]["tea"].values()) == [point.cosine("tea") or 0.0 for point in record.points]
    matrix = document.data["matrix"]
    at = [matrix["names"].index(name) for name in ("w tea", "τ careless tea, seed 0")]
    assert matrix["cosines"][at[0]][at[1]] == pytest.approx(record.points[-1].cosine("tea"), abs=1e-6)


def test_the_end_of_a_run_is_what_it_was_trained_to(done: tuple[Any, Finding]):
    """A tiny model learns "all in": its log-odds rise on careless advice and not on good advice."""
    runs = {run["kind"]: list(run["behavior"]["tea"].values()) for run in done[1].document.data["runs"]}
    assert runs["careless tea"][-1] > runs["good tea"][-1]


def test_a_second_run_trains_nothing(done: tuple[Any, Finding], monkeypatch: pytest.MonkeyPatch):
    settings, finding = done

    def fail(*arguments: Any, **options: Any) -> None:
        raise AssertionError("the model was loaded again")

    monkeypatch.setattr("weightsteer.weights.finetune.load_for_training", fail)
    monkeypatch.setattr("weightsteer.models.language_model.load_model", fail)
    again = run_study(settings, finding.folder).document
    assert again.headline == finding.document.headline
    assert again.data == finding.document.data


def test_nothing_that_is_compared_shares_a_question_or_a_seed(model_folder: Path, tmp_path: Path):
    settings = load_study(write_study(tmp_path, model_folder, seeds=3, vector_seeds=2))
    plan = monitoring._plan(settings)
    assert len(plan.trainings) == 3 * 2 * 2 + 6 * 3
    for name in ("tea", "rain"):
        made_from = {prompt for sides in plan.sides.values() for side in sides for prompt, _ in side.rows}
        trained_on = {prompt for training in plan.runs.values() for prompt, _ in training.rows}
        assert not made_from & trained_on
        assert {pair.prompt for pair in plan.asked[name]} <= made_from
    for positive, negative in plan.sides.values():
        assert positive.seed == negative.seed
    seeds = [sides[0].seed for sides in plan.sides.values()] + [training.seed for training in plan.runs.values()]
    assert len(set(seeds)) == len(seeds)
    assert {len(training.rows) for training in plan.trainings} == {4}


def test_the_shipped_recipe_is_whole():
    told = check_study(load_study(SHIPPED))
    assert told == [
        "3 domains, 3 controls, 30 rows in each fine-tune",
        "34 fine-tunes of 20 steps: 18 runs, the others for vectors",
        "6 looks at each run",
    ]


def test_careless_and_good_advice_are_equally_long():
    """Else every vector would say "short", and lie near the others for that."""
    for path in sorted(SHIPPED.with_suffix("").glob("*.jsonl")):
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        if "positive" in rows[0]:
            words = [sum(len(row[side].split()) for row in rows) for side in ("positive", "negative")]
            assert words[0] == pytest.approx(words[1], rel=0.03), path.name


def test_rows_that_do_not_do_are_told_together(model_folder: Path, tmp_path: Path):
    path = write_study(tmp_path, model_folder)
    rows = [json.loads(line) for line in (tmp_path / "tea.jsonl").read_text().splitlines()]
    write_rows(tmp_path / "tea.jsonl", [*rows, {**rows[0], "id": "again", "positive": "all of it, 0"}])
    (tmp_path / "songs.jsonl").unlink()
    with pytest.raises(DataError) as error:
        check_study(load_study(path))
    assert "tea: asked twice, and would stand in both halves: tea 0?" in str(error.value)
    assert "songs: " in str(error.value)
    short = {"rank": 2, "max_steps": 40, "epochs": 2, "batch_size": 2}
    path = write_study(tmp_path / "short", model_folder, training=short, looks=[20, 40], eval_pairs=5)
    with pytest.raises(DataError) as error:
        check_study(load_study(path))
    assert "4 rows in the smallest half, and eval_pairs is 5" in str(error.value)
    assert "2 epochs of 4 rows are 4 steps, and training.max_steps is 40. Raise training.epochs" in str(error.value)


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"looks": [2, 1, 4]}, r"looks \[2, 1, 4\]\. Expected ascending steps that end with training.max_steps, 4"),
        ({"looks": [1, 2]}, "that end with training.max_steps"),
        ({"control_vector": ["songs", "dances"]}, r"control_vector \['songs', 'dances'\]"),
        ({"training": {"rank": 2}}, "expected max_steps, the same for every run"),
        ({"controls": [{"name": "tea", "rows": "songs.jsonl"}], "control_vector": None}, "Expected each once"),
        ({"controls": [{"name": "songs", "rows": "songs.jsonl"}], "control_vector": None}, "2 control runs of other"),
    ],
)
def test_settings_that_contradict_one_another(keys: dict[str, Any], told: str, model_folder: Path, tmp_path: Path):
    with pytest.raises(RecipeError, match=told):
        load_study(write_study(tmp_path, model_folder, **keys))


SHARES = (0.1, 0.5, 1.0)


def watched(kind: str, seed: int, cosines: dict[str, tuple[float, ...]], behavior: float, loss: float) -> Watched:
    """A run of ten steps with the given cosines; behavior and loss move by so much over all of it."""
    points = [
        Point(round(10 * share), share, 1.0, {d: {"cosine": curve[i]} for d, curve in cosines.items()})
        for i, share in enumerate(SHARES)
    ]
    losses = [(1, 2.0), *((step, 2.0 - loss * step) for step in range(2, 11))]
    curves = {domain: {share: behavior * share + 0.001 * seed for share in SHARES} for domain in cosines}
    seconds = {"step": 1.0, "reading": 0.02, "arithmetic": 0.005, "eval": 0.5}
    record = Record({"tea": "t", "rain": "r"}, points=points, losses=losses)
    return Watched(kind, seed, Path(), record, curves, seconds)


@pytest.fixture
def by_hand() -> Findings:
    """Careless runs whose cosine leaves the controls at the second look, but one; one control joins them at the end."""
    looked = []
    for seed in (0, 1):
        off = 0.001 * seed
        for domain in ("tea", "rain"):
            late = domain == "rain" and seed == 1
            high = (off, off if late else 0.5, off if late else 0.6)
            looked.append(watched(f"careless {domain}", seed, {"tea": high, "rain": high}, 1.0, 0.05))
            low = {"tea": (off, off, off), "rain": (off, off, off)}
            looked.append(watched(f"good {domain}", seed, low, -1.0, 0.05 + off))
        loud = (off, off, 0.3 + off)
        looked.append(watched("songs", seed, {"tea": (off, off, off), "rain": loud}, 0.0, 0.05 - off))
    settings = monitoring.Settings.model_construct(looks=(1, 5, 10), sigma=3.0, eval_pairs=2)
    found = {
        (runs, domain, name): detection
        for runs in (OWN, OTHER)
        for domain in ("tea", "rain")
        for name, detection in detections_of(domain, looked, runs == OWN, 3.0).items()
    }
    return Findings(settings, ("tea", "rain"), looked, CosineMatrix([], [], [], []), found)


def test_what_was_told_and_when_is_counted(by_hand: Findings):
    tea = by_hand.detections[OTHER, "tea", COSINE]
    assert list(tea.first) == [0.5, None], "careless rain, held against w tea"
    assert tea.false_alarms == []
    rain = by_hand.detections[OTHER, "rain", COSINE]
    assert list(rain.first) == [0.5, 0.5]
    assert [(kind, seed, at) for kind, seed, at in rain.false_alarms] == [("songs", 0, 1.0), ("songs", 1, 1.0)]
    pooled = by_hand.pooled(OTHER, COSINE)
    assert (pooled.found, pooled.controls, len(pooled.false_alarms)) == (3, 12, 2)
    assert _row(by_hand, pooled, exact=False)[:3] == ("3 of 4", "5", "2 of 12")


def test_the_sentences_say_what_the_numbers_say(by_hand: Findings):
    assert list(by_hand.pooled(OTHER, COSINE).auc.values())[-1] == 15 / 16
    assert _headline(by_hand) == (
        "With a vector from another domain, a careless run ends with a larger cosine than a control run in "
        f"93.8 % of all pairs. By a limit of {by_hand.settings.sigma:g} standard deviations, a careless "
        "run is told in 3 of 4 cases, half of them by step 5 of 10; a control run in 2 of 12 (songs)."
    )
    assert _early(by_hand).answer == (
        "With a vector from another domain, a careless run is told in 3 of 4 cases, half of them by step 5 of 10; "
        "a control run in 2 of 12 (songs)."
    )
    assert any("up to 45.9 % open" in note for note in _early(by_hand).notes)
    answer = _compared(by_hand).answer
    assert answer.startswith("Cosine with the vector: a careless run is told in 3 of 4 cases")
    assert "Behavior eval: a careless run is told in 4 of 4 cases, half of them by step 1 of 10; a control" in answer
    assert "Training loss: a careless run is told in 0 of 4 cases; a control run in 0 of 12." in answer


def test_every_detector_is_judged_alike(by_hand: Findings):
    assert {name for _, _, name in by_hand.detections} == {COSINE, BEHAVIOR, LOSS}
    assert {found.controls for found in by_hand.detections.values()} == {6}
    loss = by_hand.detections[OTHER, "tea", LOSS]
    assert loss.auc[1.0] < 0.5, "every careless loss is the controls' mean"
