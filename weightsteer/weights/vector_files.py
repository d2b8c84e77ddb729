"""A weight vector on disk: a PEFT adapter at scale 1, what PEFT has no place for, and vector.json."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from torch import Tensor

from weightsteer.errors import AdapterError, report_problems
from weightsteer.stage import to_json, write_text
from weightsteer.weights.adapter_writer import (
    ADAPTER,
    adapter_biases,
    base_model_of,
    new_folder,
    write_adapter,
)
from weightsteer.weights.lowrank import Change, Layout, LowRank
from weightsteer.weights.peft_layout import bias_key, factor_keys, factor_shapes, from_factors
from weightsteer.weights.tensor_files import map_tensors, read_json, read_tensors, write_float32

DESCRIPTION = "vector.json"
DENSE = "dense"
FORMAT = 1


def write_vector(folder: Path, entries: Mapping[str, Change], base: str | None, info: Mapping[str, Any]) -> None:
    """Write `folder`, which appears whole or not at all and must not hold anything yet.

    adapter_config.json and adapter_model.safetensors load in PEFT and give the vector at k = 1. Where dense
    entries remain, which stand in dense.safetensors, vector.json says that PEFT's view is incomplete.
    """
    changes = {name: entry for name, entry in entries.items() if isinstance(entry, LowRank)}
    dense = {name: entry for name, entry in entries.items() if not isinstance(entry, LowRank)}
    with new_folder(folder) as temporary:
        biases = adapter_biases(changes, dense)
        if changes:
            write_adapter(temporary, changes, biases, base_model_of(info))
        remaining = {name: values for name, values in dense.items() if name not in biases}
        if remaining:
            shapes = {name: tuple(values.shape) for name, values in remaining.items()}
            write_float32(temporary / f"{DENSE}.safetensors", shapes, remaining.__getitem__)
        write_description(temporary, entries, set(biases), base, info)


def write_description(
    folder: Path,
    entries: Mapping[str, Change],
    biases: set[str],
    base: str | None,
    info: Mapping[str, Any],
) -> None:
    """Write vector.json, which tells what the files beside it hold."""
    described = {name: _describe(name, entry, biases) for name, entry in entries.items()}
    missing = sum(entry["in"] == DENSE for entry in described.values())
    content = {
        "format": FORMAT,
        "base": base,
        "peft": f"incomplete: {missing} of {len(described)} changes are in {DENSE}.safetensors only"
        if missing
        else "complete",
        "info": to_json(info),
        "entries": described,
    }
    write_text(folder / DESCRIPTION, json.dumps(content, indent=1, ensure_ascii=False))


def read_vector(folder: Path) -> tuple[dict[str, Change], str | None, dict[str, Any]]:
    """Entries, base and info of a folder that `write_vector` wrote; the factors are those that were saved."""
    content = read_json(folder / DESCRIPTION)
    damaged = AdapterError(f"{folder / DESCRIPTION}: entries, base or info is damaged. Make the vector again")
    described, base, info = content.get("entries"), content.get("base"), content.get("info")
    if content.get("format") != FORMAT:
        raise AdapterError(
            f"{folder / DESCRIPTION}: format is {content.get('format')!r}. Expected {FORMAT}; was it "
            "written by a newer weightsteer?"
        )
    if not isinstance(described, dict) or not isinstance(info, dict) or not isinstance(base, str | None):
        raise damaged
    if not _are_terms(info.get("terms", [])) or not _are_notes(info.get("notes", [])):
        raise damaged
    bad = [name for name, entry in described.items() if not _is_description(entry)]
    report_problems(AdapterError, folder / DESCRIPTION, [f"{name}: damaged" for name in bad])
    places = {entry["in"] for entry in described.values()}
    has_factors = places & {"factors", "bias"} or (folder / f"{ADAPTER}.safetensors").exists()
    factors = read_tensors(folder, ADAPTER) if has_factors else {}
    # mapped, since the difference of two whole models is as large as one of them
    path = folder / f"{DENSE}.safetensors"
    dense = map_tensors(path) if DENSE in places or path.exists() else {}
    if factors:
        _check_unit_strength(folder)
    entries, problems = _entries(described, factors, dense)
    problems += [f"{key}: not in {DESCRIPTION}" for key in (*factors, *dense)]
    report_problems(AdapterError, folder, problems)
    return entries, base, info


def _describe(name: str, entry: Change, biases: set[str]) -> dict[str, Any]:
    if isinstance(entry, LowRank):
        return {"in": "factors", "shape": entry.shape, "rank": entry.rank, "layout": entry.layout}
    return {"in": "bias" if name in biases else DENSE, "shape": tuple(entry.shape)}


def _are_terms(terms: Any) -> bool:
    return isinstance(terms, list) and all(
        isinstance(term, dict) and isinstance(term.get("weight"), int | float) for term in terms
    )


def _are_notes(notes: Any) -> bool:
    return isinstance(notes, list) and all(isinstance(note, str) for note in notes)


def _is_description(entry: Any) -> bool:
    if not isinstance(entry, dict) or not isinstance(entry.get("shape"), list):
        return False
    sizes = [*entry["shape"], entry.get("rank", 1)]
    if not all(type(size) is int and size > 0 for size in sizes):
        return False
    if entry.get("in") == "factors":
        return "rank" in entry and entry.get("layout") in get_args(Layout) and len(entry["shape"]) in (2, 3)
    return entry.get("in") in ("bias", DENSE)


def _entries(
    described: Mapping[str, Any], factors: dict[str, Tensor], dense: dict[str, Tensor]
) -> tuple[dict[str, Change], list[str]]:
    """The entries, taken out of `factors` and `dense`, and what does not fit."""
    keys = factor_keys({name: e["layout"] for name, e in described.items() if e["in"] == "factors"})
    entries: dict[str, Change] = {}
    problems = []

    def take(key: str, shape: tuple[int, ...], tensors: dict[str, Tensor]) -> Tensor | None:
        tensor = tensors.pop(key, None)
        if tensor is not None and tuple(tensor.shape) == shape:
            return tensor
        found = "missing" if tensor is None else list(tensor.shape)
        problems.append(f"{key}: {found}. Expected {list(shape)}, as {DESCRIPTION} says")
        return None

    for name, entry in described.items():
        shape = tuple(entry["shape"])
        if entry["in"] == "factors":
            shape_a, shape_b = factor_shapes(shape, entry["layout"], entry["rank"])
            a, b = take(keys[name][0], shape_a, factors), take(keys[name][1], shape_b, factors)
            if a is not None and b is not None:
                entries[name] = from_factors(a, b, entry["layout"], entry["rank"], len(shape))
        else:
            is_bias = entry["in"] == "bias"
            values = take(bias_key(name) if is_bias else name, shape, factors if is_bias else dense)
            if values is not None:
                entries[name] = values.float()
    # lora_bias is one setting for all modules: those without a changed bias hold zeros
    for key in [key for key, values in factors.items() if key.endswith(".lora_B.bias") and not values.any()]:
        del factors[key]
    return entries, problems


def _check_unit_strength(folder: Path) -> None:
    """An edited adapter_config.json would make PEFT apply something else than vector.json describes."""
    config = read_json(folder / "adapter_config.json")
    scales = [
        (config.get("r"), config.get("lora_alpha")),
        (config.get("rank_pattern"), config.get("alpha_pattern")),
    ]
    if any(left != right for left, right in scales) or config.get("use_rslora"):
        raise AdapterError(
            f"{folder / 'adapter_config.json'}: r={config.get('r')}, lora_alpha={config.get('lora_alpha')}"
            " and their patterns differ. Expected a vector at strength 1; k is given where it is used"
        )
