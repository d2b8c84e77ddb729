"""A study is run like a recipe: checked whole, its stages kept, its report made anew."""

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

import weightsteer.studies
from weightsteer.cli import main
from weightsteer.errors import DataError, RecipeError
from weightsteer.recipe import StudySettings, load_experiment, load_recipe, load_study
from weightsteer.report.document import Document, Section
from weightsteer.stage import run_stage
from weightsteer.studies import run_study

WORKED = []


class Settings(StudySettings):
    items: Path
    repeats: int = 1


def check(settings: Settings) -> list[str]:
    if not settings.items.is_file():
        raise DataError(f"{settings.items}: no such file. Expected items")
    return ["1 item file"]


def run(settings: Settings, out: Path) -> Document:
    run_stage(out / "slow", {"repeats": settings.repeats}, lambda path: WORKED.append(path.name))
    return Document("weather", "It rains.", "Lead.", (Section("Rain", "Does it rain?", "It does."),), data={"n": 1})


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A study recipe, its plugin in place, its model a folder that exists."""
    plugin = ModuleType("weightsteer.studies.weather")
    plugin.Settings, plugin.check, plugin.run = Settings, check, run
    monkeypatch.setitem(sys.modules, "weightsteer.studies.weather", plugin)
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies" / "weather.py").touch()
    monkeypatch.setattr(weightsteer.studies, "__path__", [str(tmp_path / "studies")])
    monkeypatch.setattr("weightsteer.models.reference.locate", lambda source: None)
    (tmp_path / "items.jsonl").touch()
    path = tmp_path / "weather.yaml"
    path.write_text(
        "study: weather\nname: weather\nmodel: { source: nothing }\nitems: items.jsonl\n"
        "scales: { small: { repeats: 3 } }\n"
    )
    WORKED.clear()
    return path


def test_a_study_is_read_with_its_scale_and_its_paths(recipe: Path):
    settings = load_experiment(recipe, ["scale=small"])
    assert isinstance(settings, Settings)
    assert settings.repeats == 3
    assert settings.items == recipe.parent / "items.jsonl"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("repeat=2", "repeat: unknown key .did you mean 'repeats'"),
        ("repeats=x", "repeats: .* found 'x'"),
        ("study=wether", "studies: no 'wether' .did you mean 'weather'"),
    ],
)
def test_what_is_wrong_in_a_study_is_named(recipe: Path, text: str, message: str):
    with pytest.raises(RecipeError, match=message):
        load_study(recipe, [text])


def test_a_study_is_no_recipe_and_a_recipe_no_study(recipe: Path):
    with pytest.raises(RecipeError, match=r"is a study .weather"):
        load_recipe(recipe)
    other = recipe.with_name("other.yaml")
    other.write_text("name: other\n")
    with pytest.raises(RecipeError, match="has no key `study`"):
        load_study(other)


def test_a_second_run_keeps_what_is_finished_and_writes_the_report_anew(recipe: Path, tmp_path: Path):
    settings = load_study(recipe)
    first = run_study(settings, tmp_path / "out")
    assert run_study(settings, tmp_path / "out").document.headline == "It rains."
    assert len(WORKED) == 1
    report = json.loads((first.folder / "report" / "report.json").read_text())
    assert report["data"] == {"n": 1}
    assert report["facts"]["model"] == "nothing"


def test_missing_input_ends_a_run_before_it_writes_anything(recipe: Path, tmp_path: Path):
    settings = load_study(recipe, ["items=none.jsonl"])
    with pytest.raises(DataError, match=r"none\.jsonl: no such file"):
        run_study(settings, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_check_and_run_from_the_shell(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    for verb, told in (("check", "1 item file"), ("run", "Rain: It does.")):
        out = [] if verb == "check" else ["--out", str(tmp_path / "out"), "--quiet"]
        monkeypatch.setattr(sys, "argv", ["weightsteer", verb, str(recipe), *out])
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code
        assert told in capsys.readouterr().out
