"""A recipe: everything that determines a run, checked whole before anything is loaded."""

import difflib
import importlib
import math
import pkgutil
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import yaml

from weightsteer.errors import RecipeError, report_problems


class Part(pydantic.BaseModel):
    """A piece of a recipe: typed, immutable, unknown keys forbidden."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ModelPart(Part):
    """Which model, and how to talk to it."""

    source: str
    """Hub id, folder of safetensors, GGUF file, or `package:NAME` for the GGUF file inside an installed package."""
    revision: str | None = None
    """Hub revision; a commit makes the run repeatable."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of the computation. `auto`: bfloat16 where the processor multiplies it in hardware, else float32."""
    chat_template: Path | None = None
    """A Jinja file, for a model that brings no chat template of its own."""
    system: str | None = None
    """System prompt of every conversation; None leaves the chat template's default."""


class PairsPart(Part):
    """Where the contrast pairs come from and how their questions are split."""

    source: str | None = None
    """JSONL, JSON or CSV file, or a `datasets` id; None takes the pairs that the behavior ships."""
    subset: str | None = None
    """Configuration name of a `datasets` id."""
    split: str = "train"
    """Split of a `datasets` id."""
    validation: Annotated[float, pydantic.Field(ge=0, lt=1)] = 0.15
    """Share of the questions for validation loss and for choosing an activation block."""
    held_out: Annotated[float, pydantic.Field(ge=0, lt=1)] = 0.15
    """Share of the questions that only evals see."""
    limit: Annotated[int, pydantic.Field(gt=0)] | None = None
    """Use at most so many questions, drawn with the recipe's seed."""


class MethodSettings(Part):
    """What every method file's `Settings` has."""

    name: str
    k: tuple[float, ...] | None = None
    """Strengths of this method; None takes the recipe's."""


class EvalSettings(Part):
    """What every eval file's `Settings` has."""

    name: str
    items: Path | None = None
    """An item file in place of the shipped one."""
    limit: Annotated[int, pydantic.Field(ge=2)] | None = None
    """Use at most so many items, drawn with the recipe's seed; one has no interval."""


class Choose(Part):
    """Pick the strength with the largest effect whose cost stays within an allowance."""

    eval: str
    """`EVAL` for its first metric, or `EVAL.METRIC`."""
    goal: Literal["increase", "decrease"]
    keep: Mapping[str, Annotated[float, pydantic.Field(ge=0)]] = {}
    """`EVAL` or `EVAL.METRIC` -> loss allowed, in the metric's own unit; its 95 % interval must stay inside."""


class Samples(Part):
    """Prompts answered at several strengths, side by side in the report."""

    prompts: tuple[str, ...] | None = None
    """None takes the behavior's own."""
    max_new_tokens: Annotated[int, pydantic.Field(gt=0)] = 48


class Recipe(Part):
    """Everything that determines a run. Paths in it are relative to the recipe file."""

    name: Annotated[str, pydantic.Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    seed: Annotated[int, pydantic.Field(ge=0)] = 0
    model: ModelPart
    behavior: str
    """Name of a file in `behaviors/` beside the recipe or among the shipped ones, or a path to one."""
    pairs: PairsPart = PairsPart()
    methods: tuple[pydantic.SerializeAsAny[MethodSettings], ...]
    k: tuple[float, ...]
    """Strengths, in units of the stored vector; 0 is the unsteered model."""
    evals: tuple[pydantic.SerializeAsAny[EvalSettings], ...]
    choose: Choose | None = None
    merge_k: float | None = None
    """A fixed strength for the checkpoint, in place of `choose`."""
    samples: Samples = Samples()
    folder: Annotated[Path, pydantic.Field(exclude=True)] = Path()
    """Folder of the recipe file."""

    @pydantic.field_validator("k")
    @classmethod
    def _has_reference(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if 0 not in value:
            raise ValueError("has no 0; every evaluated recipe needs the unsteered model as its reference")
        if len(set(value)) < len(value):
            raise ValueError(f"names a strength twice: {list(value)}")
        return tuple(sorted(value))

    def method(self, name: str) -> Any:
        """Settings of the method `name`; a RecipeError when the recipe does not have it."""
        return _named(self.methods, name, "methods")

    def eval(self, name: str) -> Any:
        """Settings of the eval `name`; a RecipeError when the recipe does not have it."""
        return _named(self.evals, name, "evals")

    def strengths(self, method: str) -> tuple[float, ...]:
        """Strengths of one method other than 0, ascending."""
        own = self.method(method).k
        return tuple(sorted({k for k in (self.k if own is None else own) if k != 0}))

    def dump(self) -> dict[str, Any]:
        """The resolved recipe as plain types, every default written out."""
        return self.model_dump(mode="json")


class SystemPrompts(Part):
    """One opposed pair of system prompts."""

    positive: str
    negative: str


class Behavior(Part):
    """What is steered: its description, its shipped pairs and the texts that elicit and judge it."""

    name: str
    description: str
    pairs: Path | None = None
    system_prompts: tuple[SystemPrompts, ...] = ()
    questions: tuple[str, ...] = ()
    samples: tuple[str, ...] = ()
    rubric: str | None = None


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read and check a recipe; `overrides` are `key=value` texts such as `model.source=gpt2` or `methods[0].rank=8`.

    Relative paths become absolute, from the recipe's folder. All problems are raised together as one RecipeError.
    """
    path = Path(path)
    raw = _read_mapping(path)
    for override in overrides:
        _override(raw, override)
    return parse_recipe(raw, path)


def parse_recipe(raw: Mapping[str, Any], path: Path) -> Recipe:
    """Check the mapping of a recipe that stands in (or belongs to) the file `path`."""
    folder = path.resolve().parent
    problems = ["folder: unknown key"] if "folder" in raw else []
    plugins = {room: _plugins(room, raw.get(room), problems) for room in ("methods", "evals") if room in raw}
    recipe = _validate(Recipe, {**raw, **plugins, "folder": folder}, path, problems)
    problems = _contradictions(recipe)
    try:
        _behavior_path(recipe)
    except RecipeError as error:
        problems.append(str(error))
    report_problems(RecipeError, path, problems)
    load_behavior(recipe)
    return _absolute(recipe, folder)


def _contradictions(recipe: Recipe) -> list[str]:
    """What does not go together in a recipe whose every key is right by itself."""
    evals, methods = [e.name for e in recipe.evals], [m.name for m in recipe.methods]
    problems = [
        f"{key}: '{name}' is listed twice; merge the two entries"
        for key, names in (("methods", methods), ("evals", evals))
        for name in dict.fromkeys(names)
        if names.count(name) > 1
    ]
    if recipe.choose and recipe.merge_k is not None:
        problems.append("both `choose` and `merge_k` are set; keep one")
    for key in (recipe.choose.eval, *recipe.choose.keep) if recipe.choose else ():
        name, _, metric = key.partition(".")
        if name not in evals:
            problems.append(f"choose names the eval '{key}', which is not among evals {evals}")
        elif metric and metric not in (known := list(find_plugin("evals", name).METRICS)):
            problems.append(
                f"choose names '{key}', but {name} has no such metric{_suggest(metric, known)}. Expected one of {known}"
            )
    if (recipe.choose or recipe.merge_k is not None) and "weights" not in methods:
        problems.append("a checkpoint is asked for, but 'weights' is not among the methods; only it can be merged")
    if "finetuned" in methods and "weights" not in methods:
        problems.append("methods: 'finetuned' takes the two models that 'weights' trains; add 'weights'")
    return problems


def load_behavior(recipe: Recipe) -> Behavior:
    """The behavior of a recipe: a path, or a name in `behaviors/` beside the recipe or among the shipped ones."""
    path = _behavior_path(recipe)
    behavior = _validate(Behavior, _read_mapping(path), path)
    if behavior.pairs is None:
        return behavior
    return behavior.model_copy(update={"pairs": (path.resolve().parent / behavior.pairs)})


def _behavior_path(recipe: Recipe) -> Path:
    if recipe.behavior.endswith((".yaml", ".yml")):
        return recipe.folder / recipe.behavior
    folders = [recipe.folder / "behaviors", shipped_recipes() / "behaviors"]
    for folder in folders:
        if (folder / f"{recipe.behavior}.yaml").is_file():
            return folder / f"{recipe.behavior}.yaml"
    known = sorted({p.stem for folder in folders for p in folder.glob("*.yaml")})
    raise RecipeError(
        f"behavior: no '{recipe.behavior}.yaml' in {' or '.join(map(str, folders))}"
        f"{_suggest(recipe.behavior, known)}. Expected one of {known} or a path ending in .yaml"
    )


def shipped_recipes() -> Path:
    """Folder of the recipes that come with weightsteer: inside an installed package, beside it in a checkout."""
    package = Path(__file__).resolve().parent
    return package / "recipes" if (package / "recipes").is_dir() else package.parent / "recipes"


def find_plugin(room: str, name: str) -> Any:
    """The module `weightsteer.<room>.<name>`: a method or an eval is a file, found by its name."""
    known = _names(room)
    if name not in known:
        raise RecipeError(f"{room}: no '{name}'{_suggest(name, known)}. Expected one of {known}")
    return importlib.import_module(f"weightsteer.{room}.{name.replace('-', '_')}")


def _names(room: str) -> list[str]:
    package = importlib.import_module(f"weightsteer.{room}")
    return sorted(m.name.replace("_", "-") for m in pkgutil.iter_modules(package.__path__) if m.name[0] != "_")


def _plugins(room: str, entries: Any, problems: list[str]) -> Any:
    """The entries of `methods` or `evals`, each checked by the `Settings` of the file it names."""
    if not isinstance(entries, list) or not entries:
        problems.append(f"{room}: found {entries!r}. Expected a list of names or of mappings with a name")
        return ()
    return tuple(_plugin(room, f"{room}[{index}]", entry, problems) for index, entry in enumerate(entries))


def _plugin(room: str, where: str, entry: Any, problems: list[str]) -> Any:
    entry = {"name": entry} if isinstance(entry, str) else entry
    name = entry.get("name") if isinstance(entry, dict) else None
    base = MethodSettings if room == "methods" else EvalSettings
    if not isinstance(name, str):
        problems.append(f"{where}: found {entry!r}. Expected a name, or a mapping with a name")
        return base(name="")
    try:
        settings = find_plugin(room, name).Settings
    except RecipeError as error:
        problems.append(f"{where}: {str(error).removeprefix(room + ': ')}")
        return base(name=name)
    try:
        return settings.model_validate(entry)
    except pydantic.ValidationError as error:
        problems += [_problem(settings, e, where) for e in error.errors()]
        return base(name=name)


def _validate(part: type[Part], raw: Any, source: Path, problems: Sequence[str] = ()) -> Any:
    """`raw` as a `part`; its problems and those found before are raised together."""
    try:
        checked = part.model_validate(raw)
        report_problems(RecipeError, source, problems)
        return checked
    except pydantic.ValidationError as error:
        report_problems(RecipeError, source, [*problems, *(_problem(part, e) for e in error.errors())])


def _problem(part: type[Part], error: Any, prefix: str = "") -> str:
    location = error["loc"]
    steps = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in location)
    where = (prefix + steps).lstrip(".") or "recipe"
    if error["type"] == "extra_forbidden":
        return f"{where}: unknown key{_suggest(str(location[-1]), _keys(part, location[:-1]))}"
    message = error["msg"].removeprefix("Value error, ").replace("valid tuple", "list")
    message = re.sub(r"valid dictionary or instance of \w+", "mapping", message)
    found = error.get("input")
    if error["type"] in ("missing", "value_error") or isinstance(found, Mapping):
        return f"{where}: {message}"
    return f"{where}: {message}, found {found!r}"


def _keys(part: type[Part], location: tuple) -> list[str]:
    """Keys allowed at `location`, for a suggestion."""
    fields: list[str] = [name for name in part.model_fields if name != "folder"]
    for key in location:
        annotation = part.model_fields[key].annotation if isinstance(key, str) and key in part.model_fields else None
        for candidate in (annotation, *getattr(annotation, "__args__", ())):
            if isinstance(candidate, type) and issubclass(candidate, Part):
                part, fields = candidate, list(candidate.model_fields)
    return fields


def _suggest(word: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f" (did you mean '{close[0]}'?)" if close else ""


def _named(parts: Sequence[Any], name: str, key: str) -> Any:
    for part in parts:
        if part.name == name:
            return part
    raise RecipeError(f"{key}: no '{name}' in this recipe, which has {[p.name for p in parts]}; add it to {key}")


class _UniqueKeys(yaml.SafeLoader):
    """Plain YAML in which a key may stand once only: the second would silently win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key '{key}' stands there twice", node.start_mark
                )
        return super().construct_mapping(node, deep)


def _read_mapping(path: Path) -> dict[str, Any]:
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), _UniqueKeys)
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such file. Expected a YAML file") from None
    except IsADirectoryError:
        raise RecipeError(f"{path}: is a folder. Expected a YAML file") from None
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read ({error.strerror}). Expected a YAML file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: not readable as YAML. {error}") from None
    if not isinstance(raw, dict):
        raise RecipeError(f"{path}: holds {type(raw).__name__}. Expected a mapping of keys to values")
    return raw


def _override(raw: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    steps = _steps(key)
    if not separator or not steps:
        raise RecipeError(f"--set {override}: expected KEY=VALUE, such as model.source=path/to/model")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"--set {override}: the value is not readable as YAML. {error}") from None
    place: Any = raw
    for step, following in zip(steps, [*steps[1:], None], strict=True):
        missing = isinstance(step, int) and not (isinstance(place, list) and step < len(place))
        if missing or (isinstance(step, str) and not isinstance(place, dict)):
            raise RecipeError(f"--set {override}: there is no '{step}' to set in the recipe")
        if following is None:
            place[step] = value
        else:
            if isinstance(place, list) and isinstance(place[step], str):
                place[step] = {"name": place[step]}
            place = place.setdefault(step, {}) if isinstance(place, dict) else place[step]


def _steps(key: str) -> list[Any]:
    """`methods[0].rank` as the keys and indices on the way; nothing when it is not such a path."""
    if not re.fullmatch(r"[A-Za-z_][\w-]*(\.[A-Za-z_][\w-]*|\.\d+|\[\d+\])*", key):
        return []
    return [name or int(index) for name, index in re.findall(r"([A-Za-z_][\w-]*)|(\d+)", key)]


def _absolute(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe with every path that exists below its folder made absolute, so that it can be moved and still read."""

    def absolute(value: Any) -> Any:
        if isinstance(value, Path):
            return folder / value
        if isinstance(value, Part):
            return value.model_copy(update={name: absolute(getattr(value, name)) for name in type(value).model_fields})
        if isinstance(value, tuple):
            return tuple(absolute(item) for item in value)
        return value

    def file(source: str | None) -> str | None:
        local = source is not None and (folder / source).exists()
        return str(folder / source) if local and source is not None else source

    recipe = absolute(recipe)
    model = recipe.model.model_copy(update={"source": file(recipe.model.source)})
    pairs = recipe.pairs.model_copy(update={"source": file(recipe.pairs.source)})
    return recipe.model_copy(update={"model": model, "pairs": pairs, "folder": folder})


def finite(value: float, what: str) -> float:
    """`value`, or a RecipeError when it is not a finite number."""
    if not math.isfinite(value):
        raise RecipeError(f"{what}: {value} is not a finite number. Expected one such as -1.5")
    return value
