"""A LoRA adapter folder of PEFT as exact changes of the base's parameters, under all of its scaling rules."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from weightsteer.errors import AdapterError, report_problems
from weightsteer.weights.adapter_config import check_config
from weightsteer.weights.base import Base
from weightsteer.weights.lowrank import Change, Layout, LowRank, add
from weightsteer.weights.peft_layout import PREFIX, factor_keys, from_factors, matching_key, pattern_target
from weightsteer.weights.tensor_files import read_json, read_tensors


def read_adapter(folder: Path, base: Base | None = None) -> tuple[dict[str, Change], dict[str, Any]]:
    """Each changed parameter with its change, and what the adapter says of itself.

    `base` (the model it was trained on) is needed where only the base tells what the change is: whole
    parameters (modules_to_save, trained biases), DoRA, and target_parameters. Every tensor of the file is
    accounted for, or an AdapterError lists those that are not.
    """
    adapter = _Adapter(folder, read_json(folder / "adapter_config.json"), base)
    check_config(adapter.config, folder / "adapter_config.json")
    adapter.tensors = read_tensors(folder, "adapter_model")
    layouts = _layouts(adapter)
    _take_factors(adapter, layouts)
    _take_whole_parameters(adapter, layouts)
    leftover = [f"{key} {list(tensor.shape)}: unknown kind of tensor" for key, tensor in adapter.tensors.items()]
    report_problems(AdapterError, folder, adapter.problems + leftover)
    if not adapter.entries:
        raise AdapterError(f"{folder}: changes nothing. Expected LoRA factors or trained parameters")
    return adapter.entries, {"terms": [{"weight": 1.0, **_describe(adapter)}], "notes": adapter.notes}


@dataclass
class _Adapter:
    """An adapter while it is read: `tensors` holds what is not yet accounted for."""

    folder: Path
    config: dict[str, Any]
    base: Base | None
    tensors: dict[str, Tensor] = field(default_factory=dict)
    entries: dict[str, Change] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, name: str, change: Change) -> None:
        """Add a change to what is already known of the parameter `name`."""
        self.entries[name] = add(self.entries[name], change) if name in self.entries else change

    @property
    def parameters(self) -> Mapping[str, nn.Parameter]:
        """The base's, when it is given."""
        return self.base.parameters if self.base else {}


def _layouts(adapter: _Adapter) -> dict[str, Layout]:
    """Which parameters the factors in the file belong to. Reports modules that the base does not have."""
    layouts = _targeted_parameters(adapter)
    taken = {key for pair in factor_keys(layouts).values() for key in pair}
    for key in adapter.tensors:
        match = re.fullmatch(rf"{re.escape(PREFIX)}(.+)\.(lora_A\.weight|lora_embedding_A)", key)
        if not match or key in taken or "base_layer" in match[1].split("."):
            continue
        name, embedding = f"{match[1]}.weight", match[2] == "lora_embedding_A"
        plain = "conv1d" if adapter.config.get("fan_in_fan_out") else "linear"
        layouts[name] = "embedding" if embedding else plain
        if adapter.base is not None:
            # fan_in_fan_out in the file is that of the module that peft wrapped last, not of all of them
            found = adapter.base.layout(name)
            if found is None or (found == "embedding") != embedding:
                adapter.problems.append(f"{key}: the base {adapter.base.path} has no {match[1]} that it fits")
            else:
                layouts[name] = found
    return layouts


def _targeted_parameters(adapter: _Adapter) -> dict[str, Layout]:
    targets = adapter.config.get("target_parameters")
    if not targets:
        return {}
    if adapter.base is None:
        raise AdapterError(
            f"{adapter.folder}: target_parameters are {targets}. Only the base tells which factors belong to "
            "which parameter, and in which orientation. Pass base= (the checkpoint it was trained on)"
        )
    layouts: dict[str, Layout] = {}
    for name in adapter.parameters:
        if any(name == target or name.endswith(f".{target}") for target in targets):
            module = adapter.base.owner(name)
            fused = adapter.parameters[name].ndim == 3
            transposed = fused and getattr(module, "is_transposed", False)
            layouts[name] = "parameter_transposed" if transposed else "parameter"
    return layouts


def _take_factors(adapter: _Adapter, layouts: Mapping[str, Layout]) -> None:
    config, tensors = adapter.config, adapter.tensors
    for name, (key_a, key_b) in factor_keys(layouts).items():
        layout, target = layouts[name], pattern_target(name, layouts[name])
        ranks, alphas = config.get("rank_pattern") or {}, config.get("alpha_pattern") or {}
        rank = ranks.get(matching_key(ranks, target), config["r"])
        alpha = alphas.get(matching_key(alphas, target), config["lora_alpha"])
        scale = alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank
        a, b = tensors.pop(key_a, None), tensors.pop(key_b, None)
        if a is None or b is None:
            adapter.problems.append(f"{key_a if a is None else key_b}: missing; A and B are needed for a change")
            continue
        fused = layout.startswith("parameter") and adapter.parameters[name].ndim == 3
        experts = adapter.parameters[name].shape[0] if fused else 1
        if a.ndim != 2 or b.ndim != 2 or a.shape[0] != rank * experts or b.shape[1] != rank * experts:
            adapter.problems.append(
                f"{key_a} {list(a.shape)}, {key_b} {list(b.shape)}: expected [{rank * experts}, d_in] and "
                f"[d_out, {rank * experts}] at rank {rank}" + (f" for {experts} experts" if fused else "")
            )
            continue
        # In place: a second copy of every factor would stay in the memory that has been taken.
        change = from_factors(a, b.float().mul_(scale), layout, rank, 3 if fused else 2)
        shape = adapter.base.shape(name) if adapter.base else None
        if shape is not None and change.shape != shape:
            adapter.problems.append(f"{key_a}: changes {list(change.shape)}, the base has {list(shape)}")
            continue
        if b.any() or not config.get("lora_bias"):  # bias-only training leaves the factors at zero
            adapter.add(name, _dora(adapter, name, change) if config.get("use_dora") else change)
        if config.get("lora_bias"):
            bias = _pop(adapter, f"{target}.lora_B.bias", change.n_outputs)
            adapter.add(f"{target}.bias", bias.float() * scale)


def _pop(adapter: _Adapter, key: str, length: int) -> Tensor:
    """A vector that the settings say is in the file; zeros, with the problem reported, when it is not."""
    vector = adapter.tensors.pop(PREFIX + key, None)
    if vector is not None and vector.numel() == length:
        return vector.reshape(-1)
    found = "missing" if vector is None else list(vector.shape)
    adapter.problems.append(f"{PREFIX}{key}: {found}. Expected {length} numbers")
    return torch.zeros(length)


def _dora(adapter: _Adapter, name: str, change: LowRank) -> Tensor:
    """m·(W + sBA)/‖W + sBA‖ − W, the norm over the inputs of each output (Liu et al. 2024, 2402.09353)."""
    if adapter.base is None:
        raise AdapterError(
            f"{adapter.folder}: is a DoRA adapter, whose change depends on the base's weights. Pass base= "
            "(the checkpoint it was trained on)"
        )
    magnitude = _pop(adapter, f"{name.rpartition('.')[0]}.lora_magnitude_vector", change.n_outputs)
    base = adapter.base.tensor(name)
    if base is None or tuple(base.shape) != change.shape:
        has = "no such weight" if base is None else list(base.shape)
        adapter.problems.append(f"{name} {list(change.shape)}: the base {adapter.base.path} has {has}")
        return torch.zeros(change.shape)
    base = base.double()
    moved = base + change.up.double() @ change.down.double()
    over = 1 if change.layout == "linear" else 0
    scale = magnitude.double().unsqueeze(over) / moved.norm(dim=over, keepdim=True)
    return (moved * scale - base).float()


def _take_whole_parameters(adapter: _Adapter, layouts: Mapping[str, Layout]) -> None:
    """modules_to_save, trained biases, copies of adapted embeddings: the saved value minus the base's."""
    _drop_duplicates(adapter)
    adapted = {name.rpartition(".")[0] for name in layouts}
    saved = {}
    for key in [key for key in adapter.tensors if key.startswith(PREFIX) and "lora_" not in key]:
        module, _, leaf = key.removeprefix(PREFIX).rpartition(".")
        owner = module.removesuffix(".base_layer")
        if (owner in adapted) == (owner != module):  # peft wraps what it adapts, and only that
            saved[f"{owner}.{leaf}"] = adapter.tensors.pop(key)
    if adapter.base is None:
        # peft saves the frozen weight of an adapted embedding along with its factors
        frozen = [name for name in saved if name in layouts]
        if frozen:
            adapter.notes.append(f"taken for unchanged copies of the base, which was not given: {', '.join(frozen)}")
        if len(saved) > len(frozen):
            names = ", ".join(name for name in saved if name not in frozen)
            raise AdapterError(
                f"{adapter.folder}: holds whole parameters (modules_to_save or trained biases), from which "
                f"the base has to be subtracted: {names}. Pass base= (the checkpoint it was trained on)"
            )
        return
    for name, values in saved.items():
        base = adapter.base.tensor(name)
        if base is None or base.shape != values.shape:
            has = "no such parameter" if base is None else list(base.shape)
            adapter.problems.append(f"{name} {list(values.shape)}: the base {adapter.base.path} has {has}")
        elif (change := values.float() - base.float()).any():
            adapter.add(name, change)


def _drop_duplicates(adapter: _Adapter) -> None:
    """bias="all" saves the biases of modules_to_save three times; peft uses the one under the plain name."""
    for key in list(adapter.tensors):
        module, _, leaf = key.rpartition(".")
        wrapper, _, copy = module.rpartition(".")
        used = adapter.tensors.get(f"{wrapper}.{leaf}")
        same = used is not None and torch.equal(used, adapter.tensors[key])
        if copy == "original_module" or (copy == "modules_to_save" and same):
            del adapter.tensors[key]


def _describe(adapter: _Adapter) -> dict[str, Any]:
    config = adapter.config
    kept = "r lora_alpha rank_pattern alpha_pattern use_dora base_model_name_or_path revision peft_version"
    return {
        "adapter": str(adapter.folder),
        "scaling": "alpha/sqrt(r)" if config.get("use_rslora") else "alpha/r",
        **{key: config[key] for key in kept.split() if config.get(key)},
    }
