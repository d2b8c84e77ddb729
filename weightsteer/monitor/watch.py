"""A run looked at afterwards, from paths to a page: what the verb `monitor` does."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from weightsteer.activations.vector import ActivationVector
from weightsteer.errors import AdapterError, DataError, WeightsteerError, report_problems
from weightsteer.models.reference import resolve
from weightsteer.monitor.activations import Projections, finetune_shift, project_prompts, screen_training_set
from weightsteer.monitor.matrix import CosineMatrix, cosine_matrix
from weightsteer.monitor.measure import Directions
from weightsteer.monitor.page import Monitored, write_page
from weightsteer.monitor.record import Record
from weightsteer.monitor.runs import SavedChange, measure_run, saved_states
from weightsteer.monitor.thresholds import Thresholds
from weightsteer.weights.base import Base
from weightsteer.weights.library import ACTIVATIONS, Library, is_library
from weightsteer.weights.vector import WeightVector

# Names of folders that say nothing of what is in them: that of the run around them does.
NAMELESS = {"vector", "weights", "activations", "fit"}


@dataclasses.dataclass(frozen=True)
class Rows:
    """Texts for the activation side."""

    prompts: Sequence[str] = ()
    """To be projected, before and after the fine-tune."""
    training: Sequence[tuple[str, str]] = ()
    """(prompt, answer) of a training set, to be screened before anyone trains on it."""


def monitor_run(
    run: Path | str,
    vectors: Sequence[str],
    base: str | None = None,
    out: Path | None = None,
    controls: Sequence[Path] = (),
    sigma: float = 3.0,
    any_base: bool = False,
    rows: Rows | None = None,
) -> Monitored:
    """Every saved state of a run (or one finished model) along known vectors; with `out`, as a page there.

    Each of `vectors` is a folder, NAME=FOLDER, or a library, all of whose vectors are taken. Activation vectors need
    `base` and `rows`. `controls` are readings of control runs, whose spread sets the limits.
    """
    rows = rows or Rows()
    found = name_vectors(vectors)
    model = None if base is None else Base.of(resolve(base).path)
    in_weights = {label: path for label, path in found.items() if not (path / ACTIVATIONS).is_file()}
    loaded = {label: WeightVector.load(path, None if any_base else model) for label, path in in_weights.items()}
    in_activations = {label: ActivationVector.load(path) for label, path in found.items() if label not in in_weights}
    if in_activations and (base is None or not (rows.prompts or rows.training)):
        raise WeightsteerError(
            f"{', '.join(in_activations)}: activation vectors, for which a model has to read texts. Expected the base "
            "model and prompts or a training set (--base MODEL, --prompts FILE, --training-set FILE)"
        )
    record, matrix, thresholds = Record({}), None, None
    if loaded:
        directions = Directions(loaded)
        thresholds = Thresholds.from_controls(controls, sigma) if controls else None
        if thresholds is not None:
            thresholds.check(directions.digests)
        record = with_limits(measure_run(run, directions, model, any_base), thresholds)
        matrix = _matrix(loaded, Path(run), model, bool(record.points[-1].norm))
    projections = {}
    if in_activations:
        assert base is not None
        projections = _project(run, base, in_activations, rows)
    facts = {label: _facts(path, loaded.get(label) or in_activations[label]) for label, path in found.items()}
    monitored = Monitored(str(run), record, facts, thresholds, matrix, projections)
    if out is not None:
        write_page(monitored, out)
    return monitored


def name_vectors(vectors: Sequence[str]) -> dict[str, Path]:
    """Label -> folder of each vector; an AdapterError when two have one label."""
    found: dict[str, Path] = {}
    problems = []
    for text in vectors:
        label, named, given = text.partition("=")  # a name has no "=", a folder may: seed=1
        if not named:
            label, given = "", text
        path = Path(text if Path(text).exists() else given)
        if not path.is_dir():
            problems.append(f"{text}: no such folder. Expected FOLDER or NAME=FOLDER")
            continue
        listed = {name: e.path for name, e in Library(path).items()} if is_library(path) else {}
        for name, folder in (listed or {label if path != Path(text) else _name(path): path}).items():
            if name in found:
                problems.append(
                    f"{name}: both {found[name]} and {folder}. Expected one vector a name; give NAME=FOLDER"
                )
            found[name] = folder
    report_problems(AdapterError, "vectors", problems)
    return found


def with_limits(record: Record, thresholds: Thresholds | None) -> Record:
    """The readings with the limits of the controls, and which they cross."""
    if thresholds is None:
        return record
    points = []
    for point in record.points:
        limits, crossed = thresholds.hold({label: point.cosine(label) for label in record.labels}, point.share)
        points.append(dataclasses.replace(point, limits=limits, crossed=crossed))
    return dataclasses.replace(record, points=points)


def read_rows(path: Path, keys: Sequence[str]) -> list[tuple[str, ...]]:
    """The texts under `keys` in each line of a JSON-lines file; a DataError names the lines that lack one."""
    import json

    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}). Expected JSON lines with {' and '.join(keys)}") from None
    rows, problems = [], []
    for number, line in enumerate(lines, start=1):
        try:
            row = tuple(json.loads(line)[key] for key in keys)
            if not all(isinstance(text, str) and text for text in row):
                raise ValueError("not a text")
            rows.append(row)
        except (ValueError, KeyError, TypeError) as error:
            problems.append(f"line {number}: {type(error).__name__}: {error}. Expected texts {' and '.join(keys)}")
    report_problems(DataError, path, problems)
    return rows


def _matrix(vectors: Mapping[str, WeightVector], run: Path, base: Base | None, moved: bool) -> CosineMatrix | None:
    """The vectors beside one another and beside what the run has come to; None where it has not moved."""
    last = SavedChange(saved_states(run)[-1].path, base)
    named: dict[str, Any] = {label: vector.entries for label, vector in vectors.items()}
    name = next(n for n in (f"τ {run.name}", f"τ {run}") if n not in named)
    if moved:
        named[name] = last
    return cosine_matrix(named) if len(named) > 1 else None


def _project(
    run: Path | str, base: str, vectors: Mapping[str, ActivationVector], rows: Rows
) -> dict[str, list[Projections]]:
    from weightsteer.models.language_model import load_model

    lm = load_model(base)
    last = saved_states(run)[-1].path
    found: dict[str, list[Projections]] = {}
    for label, vector in vectors.items():
        if vector.base not in (None, lm.ref.fingerprint):
            raise AdapterError(
                f"{label}: was made for base {vector.base}, {base} is {lm.ref.fingerprint}. Expected the same"
            )
        parts = found.setdefault(label, [])
        if rows.prompts:
            parts.append(project_prompts(lm, vector, rows.prompts))
            parts.append(finetune_shift(lm, _tuned(lm, last), vector, rows.prompts))
        if rows.training:
            parts.append(screen_training_set(lm, vector, rows.training))
    return found


@contextlib.contextmanager
def _tuned(lm: Any, path: Path) -> Iterator[Any]:
    """The fine-tuned model: the base with its adapter, or the whole model that was saved."""
    from weightsteer.models.language_model import load_model

    if (path / "adapter_config.json").exists() or (path / "vector.json").exists():
        with WeightVector.load(path, lm.ref.path).applied(lm, 1.0) as tuned:
            yield tuned
    else:
        yield dataclasses.replace(lm, network=load_model(path).network)


def _facts(path: Path, vector: Any) -> dict[str, Any]:
    return {"path": str(path), "norm": vector.norm(), "behavior": vector.info.get("behavior"), "base": vector.base}


def _name(path: Path) -> str:
    parts = [part for part in path.resolve().parts if part not in NAMELESS]
    return parts[-1]
