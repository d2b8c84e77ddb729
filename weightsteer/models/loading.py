"""What surrounds the loading of files by transformers: silence, its exceptions, and whether nothing was missing."""

import contextlib
import struct
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from weightsteer.errors import ModelError

SHOWN_PROBLEMS = 5


@contextlib.contextmanager
def quiet_datasets() -> Iterator[None]:
    """Keep the bars of `datasets` off the screen."""
    import datasets

    shown = datasets.are_progress_bars_disabled() is False
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers' own bars and advice off the screen; errors still raise."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            # Renamed arguments between two libraries of one maker: nothing a user can act on.
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def loading_errors() -> tuple[type[Exception], ...]:
    """What transformers and the readers below it raise for files that are damaged, incomplete or unknown to them."""
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    plain = (
        ArithmeticError,
        AssertionError,
        AttributeError,
        ImportError,
        LookupError,
        OSError,
        RuntimeError,
        TypeError,
    )
    return (*plain, ValueError, struct.error, SafetensorError, StrictDataclassError)


def check_complete(source: str | Path, loading: Mapping[str, Any]) -> None:
    """Raise a ModelError when transformers found no weights for some parameters, which it then draws at random.

    `loading` is what `from_pretrained(output_loading_info=True)` returns beside the model.
    """
    problems = [f"{name}: no such tensor in the files" for name in sorted(loading["missing_keys"])]
    problems += [
        f"{name}: has shape {list(found)} in the files, {list(wanted)} by config.json"
        for name, found, wanted in sorted(loading["mismatched_keys"])
    ]
    if problems:
        more = [f"... and {len(problems) - SHOWN_PROBLEMS} more"] if len(problems) > SHOWN_PROBLEMS else []
        raise ModelError(
            "\n  ".join([f"model {source}: weights and configuration do not fit", *problems[:SHOWN_PROBLEMS], *more])
            + "\nExpected a tensor for every parameter. Fetch the folder again, or put its own config.json back"
        )
