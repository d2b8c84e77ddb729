"""Can a monitor in weight space see a fine-tune on careless advice, how early, and at how many false alarms?

Trains vectors (careless minus good advice, one for each domain), runs on careless advice, and controls (good advice,
and fine-tunes that have nothing to do with advice). The rows of every file are split: one half makes vectors and evals,
the other half the runs. All runs are looked at at the same steps.

Source: arXiv 2511.05408, section 5 and appendix I.
"""

import json
import random
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, cast

import pydantic

from weightsteer import progress
from weightsteer.data.contrast import SIDES, ContrastPair, check_pairs, read_pairs
from weightsteer.data.tasks import load_examples
from weightsteer.errors import DataError, WeightsteerError, report_problems
from weightsteer.models import Message
from weightsteer.monitor.thresholds import LEAST_CONTROLS
from weightsteer.recipe import StudySettings, TaskPart, TrainingPart
from weightsteer.recipe.training import Part
from weightsteer.report.document import Document
from weightsteer.stage import digest, is_finished, read_manifest, run_stage, to_json, write_text

ABOUT = "how early a monitor in weight space sees a fine-tune on careless advice, and how often it is wrong"
# Two LoRAs that start from the same factors lie near one another whatever they have learned, so no two trainings that
# are compared share a seed; only the sides of a contrast do, where what is shared cancels. Sides and runs count from:
VECTOR_SEED, RUN_SEED, KIND_SEEDS = 1000, 100_000, 100
READINGS, BEHAVIOR = "readings.jsonl", "behavior.json"
CONTROL_VECTOR = "control"
Example = tuple[str | Sequence[Message], str]
Name = Annotated[str, pydantic.Field(pattern=r"^[a-z][a-z0-9-]*$")]
Count = Annotated[int, pydantic.Field(gt=0)]
Seeds = Annotated[int, pydantic.Field(gt=0, le=KIND_SEEDS)]


class Domain(Part):
    """Careless (positive) and good (negative) advice on the same questions."""

    name: Name
    pairs: Path


class Control(Part):
    """Rows of prompt and answer that have nothing to do with advice."""

    name: Name
    rows: Path


class Settings(StudySettings):
    """What is trained, how often, and when it is looked at."""

    domains: Annotated[tuple[Domain, ...], pydantic.Field(min_length=2)]
    controls: Annotated[tuple[Control, ...], pydantic.Field(min_length=1)]
    control_vector: tuple[str, str] | None = None
    """Two controls: the first's fine-tune minus the second's is a vector to hold the others against."""
    training: TrainingPart
    """Of every fine-tune; `max_steps` is how long it is, `epochs` at least as long."""
    seeds: Seeds = 2
    """Runs of each kind."""
    vector_seeds: Seeds = 2
    """Contrasts that are averaged into each vector."""
    looks: Annotated[tuple[Count, ...], pydantic.Field(min_length=2)]
    """Steps at which every run is measured, the last one of a run among them."""
    sigma: Annotated[float, pydantic.Field(gt=0)] = 3.0
    """A detector alarms so many standard deviations from the mean of the controls."""
    eval_pairs: Annotated[int, pydantic.Field(ge=2)] = 8
    """Pairs of each domain in the behavior eval."""

    @pydantic.model_validator(mode="after")
    def _fits_together(self) -> "Settings":
        names = [part.name for part in (*self.domains, *self.controls)]
        if len(set(names)) < len(names) or CONTROL_VECTOR in names:
            raise ValueError(f"names {names}. Expected each once, and none called {CONTROL_VECTOR}")
        if self.control_vector and not set(self.control_vector) <= {control.name for control in self.controls}:
            raise ValueError(f"control_vector {list(self.control_vector)}. Expected two names of controls")
        if self.training.max_steps is None or len(self.training.learning_rates) > 1:
            raise ValueError("training: expected max_steps, the same for every run, and one learning rate")
        if list(self.looks) != sorted(set(self.looks)) or self.looks[-1] != self.training.max_steps:
            raise ValueError(
                f"looks {list(self.looks)}. Expected ascending steps that end with training.max_steps, "
                f"{self.training.max_steps}"
            )
        others = (len(self.domains) + len(self.controls) - 1) * self.seeds
        if others < LEAST_CONTROLS:
            raise ValueError(
                f"{others} control runs of other kinds to hold a control against. Expected {LEAST_CONTROLS} or more. "
                "Raise seeds, or add controls"
            )
        return self

    @property
    def shares(self) -> tuple[float, ...]:
        """The looks as shares of the steps."""
        return tuple(step / self.looks[-1] for step in self.looks)


@dataclass(frozen=True)
class Training:
    """One fine-tune: on what, from which seed, kept where."""

    folder: Path
    label: str
    rows: Sequence[Example]
    seed: int
    snapshots: Sequence[float] = ()


@dataclass(frozen=True)
class Watched:
    """One run, and what was seen of it at every look."""

    kind: str
    seed: int
    folder: Path
    record: Any
    """Cosines with every vector, and the losses (weightsteer.monitor.record.Record)."""
    behavior: Mapping[str, Mapping[float, float]]
    """Domain -> share of the steps -> mean log-odds per token of careless over good advice."""
    seconds: Mapping[str, float]
    """What a step of training, a reading of saved factors, its arithmetic alone and a behavior eval took."""

    @property
    def is_careless(self) -> bool:
        return self.kind.startswith("careless ")


@dataclass(frozen=True)
class Plan:
    """Every training, by what it is for."""

    sides: Mapping[tuple[str, int], tuple[Training, Training]] = field(default_factory=dict)
    """Vector and seed -> what is added and what is subtracted."""
    runs: Mapping[tuple[str, int], Training] = field(default_factory=dict)
    """Kind and seed."""
    asked: Mapping[str, Sequence[ContrastPair]] = field(default_factory=dict)
    """Domain -> pairs of the behavior eval, which no run is trained on."""

    @property
    def trainings(self) -> list[Training]:
        return [*(side for sides in self.sides.values() for side in sides), *self.runs.values()]


def check(settings: Settings) -> list[str]:
    """Read all rows; a DataError when one of the sets is too small for what is asked of it."""
    plan, steps = _plan(settings), settings.training.max_steps
    sizes = {len(training.rows) for training in plan.trainings}
    return [
        f"{len(settings.domains)} domains, {len(settings.controls)} controls, {min(sizes)} rows in each fine-tune",
        f"{len(plan.trainings)} fine-tunes of {steps} steps: {len(plan.runs)} runs, the others for vectors",
        f"{len(settings.looks)} looks at each run",
    ]


def run(settings: Settings, out: Path) -> Document:
    """Train what is missing, look at every run, and tell what was seen."""
    from weightsteer.studies._monitoring_report import document

    plan = _plan(settings)
    _train(plan, settings, out)
    vectors = _vectors(plan, out)
    return document(settings, vectors, _look(plan, vectors, settings, out))


def _plan(settings: Settings) -> Plan:
    """Halves of all rows, as many in every fine-tune as the smallest half has, drawn with the study's seed."""
    pairs, rows = _read(settings)
    size = min(len(every) // 2 for every in (*pairs.values(), *rows.values()))
    problems = []
    if size < settings.eval_pairs:
        problems.append(f"{size} rows in the smallest half, and eval_pairs is {settings.eval_pairs}. Expected fewer")
    steps = int(size / settings.training.batch_size * settings.training.epochs)
    assert settings.training.max_steps is not None
    if steps < settings.training.max_steps:
        problems.append(
            f"{settings.training.epochs:g} epochs of {size} rows are {steps} steps, and training.max_steps is "
            f"{settings.training.max_steps}. Raise training.epochs"
        )
    report_problems(DataError, "monitoring", problems)
    for every in (*pairs.values(), *rows.values()):
        random.Random(settings.seed).shuffle(every)
    halves = {name: (every[:size], every[-size:]) for name, every in {**pairs, **rows}.items()}
    contrasts = {name: [_side(halves[name][0], side) for side in SIDES] for name in pairs}
    if settings.control_vector:
        contrasts[CONTROL_VECTOR] = [halves[name][0] for name in settings.control_vector]
    kinds = {f"careless {name}": _side(halves[name][1], "positive") for name in pairs}
    kinds |= {f"good {name}": _side(halves[name][1], "negative") for name in pairs}
    kinds |= {name: halves[name][1] for name in rows}
    sides, runs = {}, {}
    for number, (name, both) in enumerate(contrasts.items()):
        for seed in range(settings.vector_seeds):
            first = settings.seed + VECTOR_SEED + KIND_SEEDS * number + seed
            folder = Path("sides") / name / f"seed={seed}"
            sides[name, seed] = tuple(
                Training(folder / side, f"vector {name}, seed {seed}, {side}", examples, first)
                for side, examples in zip(SIDES, both, strict=True)
            )
    for number, (kind, examples) in enumerate(kinds.items()):
        for seed in range(settings.seeds):
            first = settings.seed + RUN_SEED + KIND_SEEDS * number + seed
            folder = Path("runs") / kind.replace(" ", "-") / f"seed={seed}"
            runs[kind, seed] = Training(folder, f"{kind}, seed {seed}", examples, first, settings.shares[:-1])
    return Plan(sides, runs, {name: halves[name][0][: settings.eval_pairs] for name in pairs})


def _read(settings: Settings) -> tuple[dict[str, list[Any]], dict[str, list[Any]]]:
    """The pairs of each domain, the rows of each control; everything that is wrong with them in one error."""
    pairs, rows, problems = {}, {}, []
    for domain in settings.domains:
        try:
            pairs[domain.name] = list(read_pairs(str(domain.pairs)))
            check_pairs(pairs[domain.name], str(domain.pairs))
            asked = Counter(pair.question for pair in pairs[domain.name])
            twice = [question for question, count in asked.items() if count > 1]
            problems += [f"{domain.name}: asked twice, and would stand in both halves: {q}" for q in twice]
        except WeightsteerError as error:
            problems.append(f"{domain.name}: {error}")
    for control in settings.controls:
        try:
            rows[control.name] = load_examples(TaskPart(source=str(control.rows), validation=0), settings.seed)[0]
        except WeightsteerError as error:
            problems.append(f"{control.name}: {error}")
    report_problems(DataError, "monitoring", problems)
    return pairs, rows


def _side(pairs: Sequence[ContrastPair], side: str) -> list[Example]:
    return [(pair.prompt, getattr(pair, side)) for pair in pairs]


def _train(plan: Plan, settings: Settings, out: Path) -> None:
    """Every fine-tune that is not there yet; the model is loaded only where there is one."""
    from weightsteer.models.reference import resolve
    from weightsteer.weights.finetune import load_for_training, resolved, train_adapter, training_inputs

    part = resolved(settings.training)
    shared = {
        "model": resolve(settings.model.source, settings.model.revision).fingerprint,
        "system": settings.model.system,
    }
    inputs = {
        training.folder: to_json({**shared, "rows": training.rows, "seed": training.seed,
                                  "settings": training_inputs(part), "snapshots": training.snapshots})
        for training in plan.trainings
    }  # fmt: skip
    todo = [t for t in plan.trainings if not is_finished(out / t.folder, inputs[t.folder])]
    if not todo:
        return
    lm = load_for_training(settings.model, part)
    fit = partial(train_adapter, lm, validation=(), settings=part, learning_rate=part.learning_rates[0])
    with progress.task("Fine-tunes", len(todo)) as advance:
        for training in todo:
            work = partial(
                fit, train=training.rows, seed=training.seed, snapshots=training.snapshots, label=training.label
            )
            run_stage(out / training.folder, inputs[training.folder], lambda folder, work=work: work(out=folder))
            advance()


def _vectors(plan: Plan, out: Path) -> dict[str, Any]:
    """Each vector, the mean of its contrasts, kept below vectors/ as a library."""
    from weightsteer.weights.vector import WeightVector

    found = {}
    for name in dict.fromkeys(name for name, _ in plan.sides):
        both = [sides for (of, _), sides in plan.sides.items() if of == name]
        inputs = {"sides": [[_made_from(out / side.folder) for side in sides] for sides in both]}

        def average(folder: Path, both: Any = both, name: str = name) -> None:
            loaded = [[WeightVector.load(out / side.folder) for side in sides] for sides in both]
            contrasts = [positive - negative for positive, negative in loaded]
            mean = sum(contrasts[1:], start=contrasts[0]) * (1 / len(contrasts))
            behavior = name if name == CONTROL_VECTOR else f"careless {name} advice"
            WeightVector(mean.entries, mean.base, {**mean.info, "behavior": behavior}).save(folder)

        run_stage(out / "vectors" / name, inputs, average)
        found[name] = WeightVector.load(out / "vectors" / name)
    return found


def _made_from(folder: Path) -> str:
    manifest = read_manifest(folder)
    assert manifest is not None
    return manifest["inputs_digest"]


def _look(plan: Plan, vectors: Mapping[str, Any], settings: Settings, out: Path) -> list[Watched]:
    """What the monitor and the behavior eval see of every run, at every look."""
    from weightsteer.models.language_model import load_model
    from weightsteer.monitor.measure import Directions
    from weightsteer.monitor.record import read_record

    directions = Directions(vectors)
    asked = digest([[pair.prompt, pair.positive, pair.negative] for pairs in plan.asked.values() for pair in pairs])
    lm, looked = None, []
    with progress.task("Looking at runs", len(plan.runs)) as advance:
        for (kind, seed), training in plan.runs.items():
            source, folder = out / training.folder, out / "looks" / training.folder.relative_to("runs")
            inputs = {"run": _made_from(source), "vectors": directions.digests, "asked": asked}
            if not is_finished(folder, to_json(inputs)):
                lm = lm or load_model(settings.model)
                run_stage(folder, inputs, partial(_look_once, lm, source, directions, plan.asked))
            seen = json.loads((folder / BEHAVIOR).read_text(encoding="utf-8"))
            curves = {domain: {float(share): v for share, v in c.items()} for domain, c in seen["curves"].items()}
            record = read_record(folder / READINGS)
            manifest = read_manifest(source)
            assert manifest is not None
            step = {"step": manifest["seconds"] / settings.looks[-1]}
            looked.append(Watched(kind, seed, source, record, curves, {**seen["seconds"], **step}))
            advance()
    return looked


def _look_once(lm: Any, run: Path, directions: Any, asked: Mapping[str, Sequence[ContrastPair]], out: Path) -> None:
    """The readings of one run (readings.jsonl), and its behavior with the seconds that each kind of look took."""
    import statistics

    from weightsteer.evals.preference import score
    from weightsteer.monitor.record import write_record
    from weightsteer.monitor.runs import SavedChange, measure_run, saved_states
    from weightsteer.weights.base import Base
    from weightsteer.weights.vector import WeightVector

    base = Base.of(lm.ref.path)
    directions.prepare()
    record = measure_run(run, directions, base)
    write_record(record, out / READINGS)
    held = SavedChange(run, base)
    begin = time.perf_counter()
    held.measured(directions)
    seconds = {"reading": statistics.fmean(p.seconds or 0.0 for p in record.points)}
    seconds["arithmetic"] = time.perf_counter() - begin
    curves: dict[str, dict[float, float]] = {domain: {} for domain in asked}
    taken = []
    for state in saved_states(run):
        with WeightVector.load(state.path, lm.ref.path).applied(lm, 1.0) as tuned:
            for domain, pairs in asked.items():
                begin = time.perf_counter()
                scored = [cast(float, item.values["log_odds"]) for item in score(tuned, pairs)]  # never unscored
                curves[domain][state.share] = statistics.fmean(scored)
                taken.append(time.perf_counter() - begin)
    seconds["eval"] = statistics.fmean(taken)
    write_text(out / BEHAVIOR, json.dumps({"curves": curves, "seconds": seconds}, indent=1))
