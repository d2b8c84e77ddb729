"""Contrastive activation addition, behavior by behavior: letters, system prompts, fine-tunes, side effects, views.

A vector is made from some questions of a behavior's generate file, its block is chosen on others of that file, and what
it does is measured on the test file alone. Source: arXiv 2312.06681, sections 3 to 6.
"""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic

from weightsteer.errors import DataError, WeightsteerError, report_problems
from weightsteer.evals import Given, ab, read_rows, texts
from weightsteer.recipe import JudgePart, StudySettings, TrainingPart
from weightsteer.recipe.training import Part
from weightsteer.report.document import Document

ABOUT = "contrastive activation addition on A/B data: effect, block, transfer, stacking and side effects by behavior"
# Section 4's side effects: name -> file below the data folder.
BENCHMARKS = {"MMLU": "test/mmlu/mmlu.json", "TruthfulQA": "test/truthfulqa/truthful_qa.json"}

Count = Annotated[int, pydantic.Field(gt=0)]
Several = Annotated[int, pydantic.Field(ge=2)]


class BehaviorPart(Part):
    """A behavior of the data, and the texts that no data set brings."""

    name: Annotated[str, pydantic.Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]
    """Its folder below `generate` and `test`."""
    title: str = ""
    """What it is called in the report; left out, its name."""
    positive: str
    """System prompt that asks for the behavior."""
    negative: str
    """System prompt that asks for its opposite."""
    rubric: str | None = None
    """What a judge rates open answers by, 0 to 100, with {question} and {answer}; the report gives tenths of it."""

    @pydantic.model_validator(mode="after")
    def _takes_the_answer(self) -> "BehaviorPart":
        if self.rubric is not None and "{answer}" not in self.rubric:
            raise ValueError(f"the rubric of {self.name} has no {{answer}}; the judge would not see what it rates")
        return self

    @property
    def shown(self) -> str:
        return self.title or self.name


class Settings(StudySettings):
    """Which behaviors, how much of each file, and at which strengths."""

    data: Path | None = None
    """Folder with generate/NAME/generate_dataset.json and test/NAME/test_dataset_ab.json, as in the `source`."""
    source: str = "https://github.com/nrimsky/CAA"
    behaviors: Annotated[tuple[BehaviorPart, ...], pydantic.Field(min_length=1)]
    leave_out: tuple[str, ...] = ()
    """Names of behaviors that are not run."""
    k: tuple[float, ...] = (-1, 0, 1)
    """Strengths, −1, 0 and 1 among them; 1 is the vectors' common norm at the block."""
    mode: Literal["all", "after_user", "generated", "answer"] = "after_user"
    """Which tokens the vector is added to."""
    block: Annotated[int, pydantic.Field(ge=0)] | None = None
    """One for all behaviors; None takes each behavior's largest spread on its held-out questions."""
    stride: Count = 1
    """The sweep and the transfer try every so many blocks."""
    pairs: Several = 100
    """Questions at most that a vector, and each fine-tune, is made from."""
    held_out: Several = 30
    """Other questions of the generate file: the block is chosen, and the transfer and the shift measured, on them."""
    test: Several | None = None
    """Questions of the test file at most."""
    view_pairs: Several = 30
    """Pairs whose activations are drawn, two points each."""
    side_effects: Annotated[int, pydantic.Field(ge=0)] = 150
    """Questions at most of MMLU and of TruthfulQA each; 0 leaves them out."""
    open_ended: Several = 10
    """Open-ended questions at most."""
    max_new_tokens: Count = 64
    """Of an open answer."""
    fine_tune: TrainingPart | None = None
    """How each side is fine-tuned on the letters; None leaves stacking and the weight vector out."""
    judge: JudgePart | None = None
    """Who rates open answers; None leaves them out, and the report says "not judged"."""

    @pydantic.model_validator(mode="after")
    def _fits_together(self) -> "Settings":
        names = [behavior.name for behavior in self.behaviors]
        problems = [f"behaviors: '{name}' is listed twice" for name in dict.fromkeys(names) if names.count(name) > 1]
        problems += [f"leave_out: no behavior '{name}' among {names}" for name in self.leave_out if name not in names]
        if not set(names) - set(self.leave_out):
            problems.append("leave_out: names every behavior. Expected at least one to run")
        if not {-1, 0, 1} <= set(self.k) or len(set(self.k)) < len(self.k):
            problems.append(f"k: {list(self.k)}. Expected −1, 0 and 1 among strengths that differ")
        if self.fine_tune is not None and len(self.fine_tune.learning_rates) > 1:
            problems.append(f"fine_tune.learning_rate: {list(self.fine_tune.learning_rates)}. Expected one")
        if self.judge is not None and self.judge.kind == "rules":
            problems.append("judge.kind: rules, which rate no open answer. Expected local or server")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @property
    def strengths(self) -> tuple[float, ...]:
        """Ascending."""
        return tuple(sorted(self.k))

    @property
    def chosen(self) -> tuple[BehaviorPart, ...]:
        """The behaviors that are run."""
        return tuple(behavior for behavior in self.behaviors if behavior.name not in self.leave_out)


@dataclass(frozen=True)
class BehaviorSet:
    """The questions of one behavior; no question is in two of the parts."""

    behavior: BehaviorPart
    pairs: tuple[ab.Item, ...]
    held_out: tuple[ab.Item, ...]
    test: tuple[ab.Item, ...]
    open_ended: tuple[str, ...]
    dropped: int
    """Rows of the generate file that repeat a question, of it or of the test file."""

    @property
    def opening(self) -> str:
        """What every answer begins with."""
        return self.pairs[0].opening


def check(settings: Settings) -> list[str]:
    """What was found of every behavior; a DataError names all files that are missing or cannot be used."""
    lines = [
        f"{found.behavior.shown}: {len(found.pairs)} questions for the vector, {len(found.held_out)} for the block, "
        f"{len(found.test)} to test" + (f", {len(found.open_ended)} open-ended" if found.open_ended else "")
        + (f"; {found.dropped} repeated ones dropped" if found.dropped else "")
        for found in read_sets(settings)
    ]  # fmt: skip
    lines += [f"{name}: {len(items)} questions" for name, items in read_benchmarks(settings).items()]
    return [*lines, *(f"left out: {name}" for name in settings.leave_out)]


def run(settings: Settings, out: Path) -> Document:
    """Every stage below `out`, then the document; pages with a text colored token by token in `out`/heat."""
    from weightsteer.studies._caa_document import make_document
    from weightsteer.studies._caa_measured import Bench

    sets = read_sets(settings)
    return make_document(settings, sets, Bench(settings, sets, read_benchmarks(settings), out).measure())


def read_sets(settings: Settings) -> list[BehaviorSet]:
    """The questions of every behavior that is run."""
    if settings.data is None:
        raise DataError(
            f"data: no folder is named. Expected the `datasets` folder of {settings.source}. Clone it, then: --set "
            "data=CAA/datasets"
        )
    sets, problems = [], []
    for behavior in settings.chosen:
        try:
            sets.append(_read_set(settings, settings.data, behavior))
        except WeightsteerError as error:
            problems.append(f"{behavior.name}: {error}. Put it right, or name it in leave_out")
    report_problems(DataError, f"data {settings.data}", problems)
    return sets


def read_benchmarks(settings: Settings) -> dict[str, list[ab.Item]]:
    """Name -> questions with a right and a wrong letter; nothing where no side effects are asked for."""
    if settings.side_effects == 0:
        return {}
    assert settings.data is not None
    found = {}
    for name, file in BENCHMARKS.items():
        try:
            items = ab.read_items(ab.Settings(name="ab", items=settings.data / file), Given())
        except DataError as error:
            raise DataError(f"{name}: {error}. Put it right, or set side_effects to 0") from None
        found[name] = _drawn(items, settings.side_effects, settings.seed)
        if len({item.opening for item in items}) > 1:
            raise DataError(f"{name}: some answers are letters and some are not. Expected all of one kind")
    return found


def _read_set(settings: Settings, data: Path, behavior: BehaviorPart) -> BehaviorSet:
    files = data / "generate" / behavior.name, data / "test" / behavior.name
    generate, whole = (
        ab.read_items(ab.Settings(name="ab", items=folder / file), Given())
        for folder, file in zip(files, ("generate_dataset.json", "test_dataset_ab.json"), strict=True)
    )
    test = _drawn(whole, settings.test, settings.seed)
    asked = {item.question: item for item in generate}
    for item in whole:
        asked.pop(item.question, None)
    fresh = _drawn(list(asked.values()), settings.pairs + settings.held_out, settings.seed)
    random.Random(settings.seed).shuffle(fresh)
    held_out, pairs = fresh[: settings.held_out], fresh[settings.held_out :]
    if len(pairs) < 2 or len(test) < 2:
        raise DataError(
            f"{len(asked)} questions beside the {len(test)} to test. Expected 2 or more after {settings.held_out} for "
            "the block, and 2 to test"
        )
    if len({item.opening for item in (*generate, *whole)}) > 1:
        raise DataError("some answers are letters and some are not. Expected all of one kind")
    opened = files[1] / "test_dataset_open_ended.json"
    questions = [] if settings.judge is None else read_rows(opened, "", _question)
    return BehaviorSet(
        behavior,
        tuple(pairs),
        tuple(held_out),
        tuple(test),
        tuple(_drawn(questions, settings.open_ended, settings.seed)),
        len(generate) - len(asked),
    )


def _question(where: str, row: Any) -> str:
    return texts(row, "question")[0]


def _drawn(items: list[Any], limit: int | None, seed: int) -> list[Any]:
    """`items`, or `limit` of them drawn with `seed`, in their order."""
    if limit is None or limit >= len(items):
        return items
    return [items[i] for i in sorted(random.Random(seed).sample(range(len(items)), limit))]
