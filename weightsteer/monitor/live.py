"""What a network in training has changed so far, parameter by parameter: adapters, whole parameters, sharded ones."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from weightsteer.errors import AdapterError, report_problems
from weightsteer.monitor.measure import SHOWN_PROBLEMS, Moved
from weightsteer.weights.adapter_config import check_config
from weightsteer.weights.base import Base, weight_layout
from weightsteer.weights.lowrank import Layout, LowRank
from weightsteer.weights.peft_layout import from_factors

# What wrappers put into the names of modules: compilation, checkpointing of activations, peft.
WRAPPERS = {"_orig_mod", "_checkpoint_wrapped_module", "base_layer"}
AFTERWARDS = "Watch its saved checkpoints instead: weightsteer monitor RUN_DIR --base MODEL"


@dataclass(frozen=True)
class Factors:
    """A LoRA on the weight of one layer."""

    name: str
    module: Any
    adapter: str
    layout: Layout

    @property
    def shape(self) -> tuple[int, ...]:
        shape = weight_layout(self.module.get_base_layer())[1]
        assert shape is not None
        return shape


@dataclass(frozen=True)
class Whole:
    """A parameter that is trained itself. `frozen` is the module that holds its values before training, if one does."""

    name: str
    module: nn.Module
    leaf: str
    shape: tuple[int, ...]
    frozen: nn.Module | None = None


@dataclass(frozen=True)
class LoraBias:
    """A bias that was trained on top of a LoRA's B."""

    name: str
    module: Any
    adapter: str
    shape: tuple[int, ...]


Source = Factors | Whole | LoraBias


class LiveChange:
    """The change of a network since before training, read from where the training keeps it.

    Where whole parameters are trained, their values before are read from `base`, one at a time, or else copied now.
    Every process of a distributed run has to take part in whatever reads parameters.
    """

    def __init__(self, network: Any, base: Base | None = None, keep: bool = True):
        self.network = network
        self.sources = _sources(network)
        self.base = base
        wholes = [source for source in self.sources if isinstance(source, Whole) and source.frozen is None]
        self.before: dict[str, Tensor] = {}
        if base is not None:
            missing = [s.name for s in wholes if s.name not in base.parameters or not base.placements(s.name)]
            report_problems(AdapterError, base.path, [f"{name}: is trained, but not in the base" for name in missing])
        elif wholes:
            for source, gathered in self._gathered(wholes):
                if keep:
                    self.before[source.name] = gathered[0].detach().to("cpu", copy=True)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of every parameter that is being trained."""
        return {source.name: source.shape for source in self.sources}

    def __iter__(self) -> Iterator[tuple[str, LowRank | Moved]]:
        """Each trained parameter with its change."""
        for source, tensors in self.gathered():
            yield source.name, self.change(source, tensors)

    def gathered(self) -> Iterator[tuple[Source, list[Tensor]]]:
        """What is trained, with its tensors put together from all processes; they are valid until the next."""
        return self._gathered(self.sources)

    def change(self, source: Source, tensors: Sequence[Tensor]) -> LowRank | Moved:
        """The change that the tensors of a source make."""
        if isinstance(source, Factors):
            a, b = tensors
            return from_factors(a, b.float() * source.module.scaling[source.adapter], source.layout, a.shape[0], 2)
        if isinstance(source, LoraBias):
            return Moved(tensors[0].float() * source.module.scaling[source.adapter])
        after = tensors[0]
        if source.frozen is not None:
            return Moved(after, tensors[1])
        before = self.before[source.name] if self.base is None else self.base.tensor(source.name)
        assert before is not None
        return Moved(after, before.to(after.device))

    def _gathered(self, sources: Sequence[Source]) -> Iterator[tuple[Source, list[Tensor]]]:
        for source in sources:
            yield source, [_full(tensor.detach()) for tensor in _tensors(source)]


def trained_base(network: Any) -> str | None:
    """The model that the network says it was loaded from: a folder, a hub id, or None."""
    config = getattr(network, "config", None) or getattr(getattr(network, "module", None), "config", None)
    return getattr(config, "_name_or_path", None) or None


def _sources(network: Any) -> list[Source]:
    """Everything that is trained; an AdapterError with all whose change cannot be told while it trains."""
    from peft.tuners.lora import LoraLayer
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper
    from torch.distributed.fsdp import FullyShardedDataParallel

    if isinstance(network, FullyShardedDataParallel):
        raise AdapterError(
            "the training shards parameters by FSDP of version 1, which flattens them, so that they have no shape. "
            "Expected version 2 (fsdp_version: 2)"
        )
    if any(hasattr(parameter, "ds_id") for parameter in network.parameters()):
        raise AdapterError(
            f"the training shards parameters by DeepSpeed's stage 3, which leaves them empty between steps. Expected "
            f"stage 2, or FSDP of version 2. {AFTERWARDS}"
        )
    sources: list[Source] = []
    problems: list[str] = []
    seen: set[int] = set()  # trained parameters that are accounted for
    modules = dict(network.named_modules(remove_duplicate=False))
    for name, module in modules.items():
        if isinstance(module, LoraLayer):
            sources += _lora(network, _clean(name), module, seen, problems)
        elif isinstance(module, ModulesToSaveWrapper):
            sources += _saved(_clean(name), module, seen)
        elif isinstance(module, BaseTunerLayer):
            _other_adapter(_clean(name), module, seen, problems)
    for name, module in modules.items():
        for leaf, parameter in module._parameters.items():
            if parameter is not None and parameter.requires_grad and id(parameter) not in seen:
                full = _clean(f"{name}.{leaf}")
                if any(part.startswith("lora_") for part in full.split(".")):
                    problems.append(f"{full}: is trained, but is no factor of a plain LoRA. {AFTERWARDS}")
                else:
                    sources.append(Whole(full, module, leaf, tuple(parameter.shape)))
    if not sources and not problems:
        problems.append("nothing is trained. Expected parameters that require gradients")
    report_problems(
        AdapterError, f"{type(network).__name__} in training cannot be monitored", problems[:SHOWN_PROBLEMS]
    )
    return sources


def _lora(network: Any, name: str, module: Any, seen: set[int], problems: list[str]) -> list[Source]:
    trained = [
        adapter
        for adapter in (*module.lora_A, *module.lora_embedding_A)
        if any(p.requires_grad for p in _factor_parameters(module, adapter))
    ]
    if not trained:
        return []
    if len(trained) > 1:
        problems.append(f"{name}: adapters {', '.join(trained)} are trained at once. Expected one. {AFTERWARDS}")
        return []
    adapter = trained[0]
    config = _peft_config(network, adapter)
    try:
        check_config(config.to_dict(), Path(f"adapter {adapter}"))
    except AdapterError as error:
        if str(error) not in problems:
            problems.append(str(error))
    layout = weight_layout(module.get_base_layer())[0]
    if config.use_dora or config.target_parameters or layout is None:
        what = "DoRA" if config.use_dora else "target_parameters" if config.target_parameters else "no linear layer"
        problems.append(f"{name}: {what}, whose change depends on the base's weights. {AFTERWARDS}")
        return []
    parameters = _factor_parameters(module, adapter)
    seen.update(id(parameter) for parameter in parameters)
    found: list[Source] = [Factors(f"{name}.weight", module, adapter, layout)]
    if len(parameters) > 2:
        found.append(LoraBias(f"{name}.bias", module, adapter, (found[0].shape[0 if layout == "linear" else 1],)))
    return found


def _other_adapter(name: str, module: Any, seen: set[int], problems: list[str]) -> None:
    """A layer that peft adapts otherwise than by LoRA."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    seen.update(id(parameter) for parameter in trained)
    if trained:
        problems.append(f"{name}: is trained by {type(module).__name__}. Expected LoRA. {AFTERWARDS}")


def _factor_parameters(module: Any, adapter: str) -> list[nn.Parameter]:
    """A, B and, with lora_bias, the bias of B."""
    if adapter in module.lora_embedding_A:
        return [module.lora_embedding_A[adapter], module.lora_embedding_B[adapter]]
    b = module.lora_B[adapter]
    bias = [b.bias] if getattr(b, "bias", None) is not None else []
    return [module.lora_A[adapter].weight, b.weight, *bias]


def _saved(name: str, module: Any, seen: set[int]) -> list[Source]:
    """A module that peft trains as a copy (modules_to_save)."""
    found: list[Source] = []
    for copy in module.modules_to_save.values():
        for path, inner in copy.named_modules():
            frozen = module.original_module.get_submodule(path)
            for leaf, parameter in inner._parameters.items():
                if parameter is not None and parameter.requires_grad:
                    seen.add(id(parameter))
                    full = ".".join(part for part in (name, path, leaf) if part)
                    found.append(Whole(full, inner, leaf, tuple(frozen._parameters[leaf].shape), frozen))
    return found


def _peft_config(network: Any, adapter: str) -> Any:
    for module in (network, *network.modules()):
        configs = getattr(module, "peft_config", None)
        if isinstance(configs, Mapping) and adapter in configs:
            return configs[adapter]
    raise AdapterError(f"adapter {adapter}: has no configuration. Expected a model that peft wrapped")


def _tensors(source: Source) -> list[Tensor]:
    """As they are held now: sharding puts others in the place of those that were there before."""
    if isinstance(source, Factors):
        return list(_factor_parameters(source.module, source.adapter)[:2])
    if isinstance(source, LoraBias):
        return [_factor_parameters(source.module, source.adapter)[2]]
    held = [source.module, *([source.frozen] if source.frozen is not None else [])]
    return [getattr(module, source.leaf) for module in held]


def _clean(name: str) -> str:
    """The name that transformers gives, without those of wrappers around the network and inside of it."""
    parts = [part for part in name.split(".") if part not in WRAPPERS]
    while parts[:1] == ["module"]:
        parts = parts[1:]
    return ".".join(parts[2:] if parts[:2] == ["base_model", "model"] else parts)


def _full(tensor: Tensor) -> Tensor:
    """A tensor put together from its shards; every process has to take part."""
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def is_sharded(network: Any) -> bool:
    """Whether the processes hold parts of the parameters, so that all of them have to take part in reading."""
    from torch.distributed.tensor import DTensor

    return any(isinstance(parameter, DTensor) for parameter in network.parameters())
