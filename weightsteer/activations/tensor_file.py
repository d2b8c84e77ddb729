"""One safetensors file whose header says what its tensors are and on which model they were made."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from weightsteer.errors import AdapterError


def write_tensors(
    path: Path, site: str, tensors: Mapping[str, Tensor], base: str | None, info: Mapping[str, Any]
) -> None:
    """Write the tensors in float32; `site` says what they change."""
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"site": site, "sign": "positive minus negative", "base": base or "", "info": json.dumps(dict(info))}
    save_file({name: tensor.float().contiguous() for name, tensor in tensors.items()}, path, metadata)


def read_tensors(path: Path, site: str, names: str) -> tuple[dict[str, Tensor], str | None, dict[str, Any]]:
    """Tensors, base and info of what `write_tensors` wrote.

    An AdapterError where it is something else, or has a tensor whose name does not match `names` or which is not
    finite.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            said = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in list(file.keys())}
        found, base, info = said["site"], said["base"] or None, json.loads(said["info"])
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise AdapterError(f"{path}: not a vector ({error}). Expected a file that weightsteer wrote: {site}") from None
    broken = [n for n, tensor in tensors.items() if not re.fullmatch(names, n) or not tensor.isfinite().all()]
    if found != site or broken or not tensors:
        raise AdapterError(
            f"{path}: site {found!r}, unknown or not finite: {broken}. Expected {site!r} and finite tensors named "
            f"{names}. Make the vector again"
        )
    return tensors, base, info
