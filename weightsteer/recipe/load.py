"""Read and check a recipe whole; every problem of it is raised together."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from weightsteer.errors import RecipeError, report_problems
from weightsteer.recipe.behavior import behavior_path, load_behavior
from weightsteer.recipe.files import apply_scale, override, read_mapping
from weightsteer.recipe.parts import JudgePart, ModelPart, PairsPart, Recipe, StudySettings, TaskPart
from weightsteer.recipe.plugins import find_plugin, read_plugins
from weightsteer.recipe.problems import suggest, validate
from weightsteer.recipe.training import Part

# Words of the results' tables and folders that no method may be called.
TAKEN = ("base", "untuned", "merged")
# Methods whose vector is a change of weights that a checkpoint can hold.
MERGED = ("weights", "combined", "bias-only", "one-sided")


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read and check a recipe; `overrides` are `key=value` texts such as `model.source=gpt2` or `methods[0].rank=8`.

    Relative paths become absolute, from the recipe's folder. All problems are raised together as one RecipeError.
    """
    raw = _read(Path(path), overrides)
    if "study" in raw:
        raise RecipeError(
            f"{path}: is a study ({raw['study']}). Expected a recipe of methods and evals. Use load_study"
        )
    return parse_recipe(raw, Path(path))


def load_study(path: str | Path, overrides: Sequence[str] = ()) -> Any:
    """Read and check the recipe of a study: the `Settings` of the file in `studies/` that its key `study` names."""
    path = Path(path)
    raw = _read(path, overrides)
    if "study" not in raw:
        raise RecipeError(f"{path}: has no key `study`. Expected the recipe of a study. Use load_recipe")
    settings = find_plugin("studies", str(raw["study"])).Settings
    problems = ["folder: unknown key"] if "folder" in raw else []
    folder = path.resolve().parent
    return _absolute(validate(settings, {**raw, "folder": folder}, path, problems), folder)


def load_experiment(path: str | Path, overrides: Sequence[str] = ()) -> Recipe | StudySettings:
    """A recipe or a study, whichever the file holds."""
    return load_study(path, overrides) if "study" in read_mapping(Path(path)) else load_recipe(path, overrides)


def _read(path: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """The mapping of a recipe file, its scale applied, then what is asked for by name."""
    raw = read_mapping(path)
    scales = [text for text in overrides if text.partition("=")[0] == "scale"]
    for text in scales:
        override(raw, text)
    apply_scale(raw, path)
    for text in overrides:
        if text not in scales:  # what is asked for by name wins over what the scale says
            override(raw, text)
    return raw


def parse_recipe(raw: Mapping[str, Any], path: Path) -> Recipe:
    """Check the mapping of a recipe that stands in (or belongs to) the file `path`."""
    folder = path.resolve().parent
    problems = ["folder: unknown key"] if "folder" in raw else []
    plugins = {room: read_plugins(room, raw.get(room), problems) for room in ("methods", "evals") if room in raw}
    recipe = validate(Recipe, {**raw, **plugins, "folder": folder}, path, problems)
    problems = _contradictions(recipe)
    try:
        behavior_path(recipe)
    except RecipeError as error:
        problems.append(str(error))
    report_problems(RecipeError, path, problems)
    load_behavior(recipe)
    return _absolute(recipe, folder)


def _contradictions(recipe: Recipe) -> list[str]:
    """What does not go together in a recipe whose every key is right by itself."""
    evals, methods = [e.label for e in recipe.evals], [m.label for m in recipe.methods]
    problems = [
        f"{key}: '{label}' is listed twice; merge the two entries, or give one another label"
        for key, labels in (("methods", methods), ("evals", evals))
        for label in dict.fromkeys(labels)
        if labels.count(label) > 1
    ]
    problems += [f"methods: '{label}' is taken; give it another label" for label in methods if label in TAKEN]
    if recipe.choose and recipe.merge_k is not None:
        problems.append("both `choose` and `merge_k` are set; keep one")
    for where, key in _metrics_named(recipe):
        label, _, metric = key.partition(".")
        if label not in evals:
            problems.append(f"{where} names the eval '{key}', which is not among evals {evals}")
        elif metric and metric not in (known := list(find_plugin("evals", recipe.eval(label).name).METRICS)):
            near = suggest(metric, known)
            problems.append(f"{where} names '{key}', but {label} has no such metric{near}. Expected one of {known}")
    for where, label in _methods_named(recipe):
        if label not in methods:
            problems.append(f"{where} names the method '{label}', which is not among methods {methods}")
    asked = recipe.released
    if asked is not None and not any(m.label == asked and m.name in MERGED for m in recipe.methods):
        problems.append(
            f"a checkpoint is asked for, but '{asked}' is not among the methods; only a weight vector can be merged"
        )
    if recipe.pairs.elicit is not None and recipe.judge.kind == "rules":
        problems.append(
            "pairs.elicit keeps what a judge rates, and no rule rates a behavior; set judge.kind to local or server"
        )
    return problems


def _metrics_named(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """(where, `EVAL.METRIC`) of every metric that a recipe names."""
    if recipe.choose:
        yield from (("choose", key) for key in (recipe.choose.eval, *recipe.choose.keep))
    if recipe.equal_kl:
        yield from (("equal_kl", key) for key in recipe.equal_kl.metrics)
    if recipe.interference:
        yield from (("interference", key) for key in recipe.interference.metrics)
    yield from ((f"figures '{f.title}'", key) for f in recipe.figures for key in (f.x, f.y))


def _methods_named(recipe: Recipe) -> Iterator[tuple[str, str]]:
    if recipe.equal_kl:
        yield "equal_kl", recipe.equal_kl.reference
    if recipe.interference:
        yield from (("interference", label) for label in recipe.interference.vectors)


# Fields that hold a path, or the id or name of something that is no file.
SOURCES = {
    (ModelPart, "source"),
    (PairsPart, "source"),
    (TaskPart, "source"),
    (TaskPart, "model"),
    (JudgePart, "model"),
}


def _absolute(recipe: Any, folder: Path) -> Any:
    """The recipe or study with every path that exists below its folder made absolute: it can be moved."""

    def absolute(value: Any, where: tuple[type, str] | None = None) -> Any:
        if isinstance(value, Path) or (where in SOURCES and value is not None and (folder / value).exists()):
            return folder / value if isinstance(value, Path) else str(folder / value)
        if isinstance(value, Part):
            kind = type(value)
            fields = {name: absolute(getattr(value, name), (kind, name)) for name in kind.model_fields}
            return value.model_copy(update=fields)
        if isinstance(value, tuple):
            return tuple(absolute(item) for item in value)
        return value

    return absolute(recipe).model_copy(update={"folder": folder})


def finite(value: float, what: str) -> float:
    """`value`, or a RecipeError when it is not a finite number."""
    if not math.isfinite(value):
        raise RecipeError(f"{what}: {value} is not a finite number. Expected one such as -1.5")
    return value
