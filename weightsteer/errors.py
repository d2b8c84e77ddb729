"""The errors weightsteer raises on purpose. A message says what was found, what was expected and what to do."""

from collections.abc import Sequence


class WeightsteerError(Exception):
    """Something the user can put right. The command line prints the message alone and exits with 2."""


class RecipeError(WeightsteerError):
    """A recipe, a behavior file or an override is not valid."""


class DataError(WeightsteerError):
    """Contrast pairs or eval items cannot be used as they are."""


class ModelError(WeightsteerError):
    """A model reference does not lead to a model that can be loaded."""


class AdapterError(WeightsteerError):
    """An adapter or a vector cannot be read exactly, or does not belong to this base."""


class CheckpointError(WeightsteerError):
    """A safetensors folder is damaged, incomplete or does not fit what is to be done with it."""


class StageError(WeightsteerError):
    """A stage folder holds something else, is in use, or could not be written."""


class JudgeError(WeightsteerError):
    """A judge could not be reached or does not answer."""


class HubError(WeightsteerError):
    """A hub refused or could not finish what was asked."""


def report_problems(error: type[WeightsteerError], source: object, problems: Sequence[str]) -> None:
    """Raise `error` with all `problems` of one input together; return if there are none."""
    if not problems:
        return
    count = f"{len(problems)} problem" + ("s" if len(problems) > 1 else "")
    raise error("\n  ".join([f"{source}: {count}", *problems]))
