"""YAML in, and `key=value` overrides of it."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from weightsteer.errors import RecipeError
from weightsteer.recipe.problems import suggest


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


def read_mapping(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file."""
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


def override(raw: dict[str, Any], text: str) -> None:
    """Set one key of a recipe from `KEY=VALUE`, the value in YAML."""
    key, separator, value = text.partition("=")
    if not separator or not _steps(key):
        raise RecipeError(f"--set {text}: expected KEY=VALUE, such as model.source=path/to/model")
    try:
        put(raw, key, yaml.safe_load(value), f"--set {text}")
    except yaml.YAMLError as error:
        raise RecipeError(f"--set {text}: the value is not readable as YAML. {error}") from None


def apply_scale(raw: dict[str, Any], source: object) -> None:
    """Apply the one of a recipe's `scales` that its `scale` names: keys as in --set, each with its value."""
    scales, name = raw.pop("scales", {}), raw.get("scale")
    if not isinstance(scales, Mapping) or not all(isinstance(scale, Mapping) for scale in scales.values()):
        raise RecipeError(f"{source}: scales: expected a mapping of names to mappings such as {{evals[0].limit: 40}}")
    if name is None:
        return
    if name not in scales:
        known = sorted(map(str, scales))
        raise RecipeError(f"{source}: scale: no '{name}'{suggest(str(name), known)}. Expected one of {known}")
    for key, value in scales[name].items():
        put(raw, str(key), value, f"{source}: scales.{name}: {key}")


def put(raw: dict[str, Any], key: str, value: Any, where: str) -> None:
    """Set the value at `methods[0].rank`, `methods.weights.rank` or `model.source`; `where` begins the error."""
    steps = _steps(key)
    if not steps:
        raise RecipeError(f"{where}: is no key. Expected one such as model.source or methods[0].rank")
    place: Any = raw
    for step, following in zip(steps, [*steps[1:], None], strict=True):
        step = _entry(place, step)
        missing = isinstance(step, int) and not (isinstance(place, list) and step < len(place))
        if missing or (isinstance(step, str) and not isinstance(place, dict)):
            raise RecipeError(f"{where}: there is no '{step}' to set in the recipe")
        if following is None:
            place[step] = value
        else:
            if isinstance(place, list) and isinstance(place[step], str):
                place[step] = {"name": place[step]}
            if isinstance(place, dict) and place.get(step) is None:
                place[step] = {}
            place = place[step]


def _entry(place: Any, step: Any) -> Any:
    """The index of the method or eval that is called `step`, where `place` is a list of them."""
    if not isinstance(place, list) or isinstance(step, int):
        return step
    names = [e if isinstance(e, str) else e.get("label") or e.get("name") for e in place if isinstance(e, str | dict)]
    return names.index(step) if step in names else step


def _steps(key: str) -> list[Any]:
    """`methods[0].rank` as the keys and indices on the way; nothing when it is not such a path."""
    if not re.fullmatch(r"[A-Za-z_][\w-]*(\.[A-Za-z_][\w-]*|\.\d+|\[\d+\])*", key):
        return []
    return [name or int(index) for name, index in re.findall(r"([A-Za-z_][\w-]*)|(\d+)", key)]
