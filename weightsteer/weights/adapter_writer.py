"""Changes of a base's parameters as an adapter folder that PEFT loads at scale 1."""

import contextlib
import json
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weightsteer.errors import AdapterError
from weightsteer.stage import write_text
from weightsteer.weights.lowrank import Layout, LowRank
from weightsteer.weights.peft_layout import bias_key, factor_keys, pattern_target, to_factors
from weightsteer.weights.tensor_files import write_float32

ADAPTER = "adapter_model"


def write_adapter(
    folder: Path,
    changes: Mapping[str, LowRank],
    biases: Mapping[str, Tensor],
    base_model: str | None,
    whole: Mapping[str, Tensor] | None = None,
    modules_to_save: tuple[str, ...] = (),
) -> None:
    """Write an adapter that PEFT loads at scale 1; `whole` holds full values of parameters by their key."""
    layouts: dict[str, Layout] = {name: change.layout for name, change in changes.items()}
    targets = {pattern_target(name, layout): changes[name].rank for name, layout in layouts.items()}
    rank = Counter(targets.values()).most_common(1)[0][0]
    # From the start to the end of the name, so that it matches one module; dots are literal.
    others = {f"^{re.escape(target)}": r for target, r in targets.items() if r != rank}
    parameters = [name for name, layout in layouts.items() if layout.startswith("parameter")]
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": others,
        "alpha_pattern": others,
        "target_modules": [target for target in targets if target not in parameters],
        "target_parameters": parameters or None,
        "modules_to_save": list(modules_to_save) or None,
        "lora_bias": bool(biases),
        "bias": "none",
        "fan_in_fan_out": "conv1d" in layouts.values(),
        "lora_dropout": 0.0,
        "use_rslora": False,
        "use_dora": False,
        "init_lora_weights": True,
    }
    tensors: dict[str, Tensor] = dict(whole or {})
    for name, keys in factor_keys(layouts).items():
        tensors.update(zip(keys, to_factors(changes[name]), strict=True))
        if biases:
            bias = f"{name.removesuffix('.weight')}.bias"
            tensors[bias_key(bias)] = biases.get(bias, torch.zeros(changes[name].n_outputs))
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    write_float32(folder / f"{ADAPTER}.safetensors", shapes, tensors.__getitem__)
    write_text(folder / "adapter_config.json", json.dumps(config, indent=1))


def adapter_biases(changes: Mapping[str, LowRank], dense: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The dense entries that PEFT holds as biases of its B factors (lora_bias), where it can."""
    if any(change.layout not in ("linear", "conv1d") for change in changes.values()):
        return {}  # lora_bias is one setting for all targets, and embeddings and parameters cannot have it
    weights = {f"{name.removesuffix('.weight')}.bias" for name in changes}
    return {name: values for name, values in dense.items() if name in weights}


def base_model_of(info: Mapping[str, Any]) -> str | None:
    """The hub id or path of the base, as the terms of a vector tell it; None when they do not agree."""
    named = {term.get("base_model_name_or_path") for term in info.get("terms", [])} - {None}
    return info.get("base_source") or (named.pop() if len(named) == 1 else None)


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A temporary sibling that takes the name `folder` when all went well and disappears otherwise."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise AdapterError(f"{folder}: is there already. Expected a new or empty folder; choose another or delete it")
    temporary = folder.with_name(f".{folder.name}.partial")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
        temporary.rename(folder)
    except OSError as error:
        raise AdapterError(
            f"{folder}: could not be written ({error.strerror}). Expected a writable disk with room left"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
