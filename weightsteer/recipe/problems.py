"""What is wrong with a recipe, in words: where, what was found, what was expected."""

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pydantic

from weightsteer.errors import RecipeError, report_problems
from weightsteer.recipe.training import Part


def validate(part: type[Part], raw: Any, source: Path, problems: Sequence[str] = ()) -> Any:
    """`raw` as a `part`; its problems and those found before are raised together."""
    try:
        checked = part.model_validate(raw)
        report_problems(RecipeError, source, problems)
        return checked
    except pydantic.ValidationError as error:
        report_problems(RecipeError, source, [*problems, *(problem(part, e) for e in error.errors())])


def problem(part: type[Part], error: Any, prefix: str = "") -> str:
    location = error["loc"]
    steps = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in location)
    where = (prefix + steps).lstrip(".") or "recipe"
    if error["type"] == "extra_forbidden":
        return f"{where}: unknown key{suggest(str(location[-1]), _keys(part, location[:-1]))}"
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


def suggest(word: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f" (did you mean '{close[0]}'?)" if close else ""
