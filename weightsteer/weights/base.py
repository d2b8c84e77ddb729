"""The base that changes are made for: its parameters as the network names them, read from its checkpoint."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from weightsteer.errors import AdapterError
from weightsteer.models.loading import quiet_transformers
from weightsteer.weights.checkpoint import Checkpoint
from weightsteer.weights.lowrank import Layout
from weightsteer.weights.placement import Placement, is_embedding, place

# Families whose matrices, embeddings apart, are weights of linear layers, stored under the names and in the shapes that
# they have in the network. What a stored tensor is need not be asked of transformers, which takes seconds to come up.
PLAIN = ("gemma", "gemma2", "gemma3_text", "llama", "mistral", "olmo2", "phi3", "qwen2", "qwen3")


@dataclass(frozen=True)
class Base:
    """A checkpoint, and the network that it is loaded into."""

    checkpoint: Checkpoint

    @classmethod
    def of(cls, model: "Base | Checkpoint | Path | str") -> "Base":
        """The base in a model folder, of which only headers and config.json are read and no code is run."""
        if isinstance(model, Base):
            return model
        return cls(model if isinstance(model, Checkpoint) else Checkpoint.open(model))

    @cached_property
    def network(self) -> Any:
        """The network on the meta device, without weights. Not every question needs it, and transformers takes long."""
        import transformers

        try:
            with quiet_transformers(), torch.device("meta"):
                config = transformers.AutoConfig.from_pretrained(self.path, trust_remote_code=False)
                return transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise AdapterError(
                f"{self.path}: config.json does not lead to a language model ({error}). Expected the "
                "folder of the base model, of an architecture that transformers knows"
            ) from None

    @property
    def path(self) -> Path:
        return self.checkpoint.path

    @cached_property
    def fingerprint(self) -> str:
        return self.checkpoint.fingerprint()

    @cached_property
    def parameters(self) -> dict[str, nn.Parameter]:
        """Every name under which a module holds a parameter; a tied one stands under each of its names."""
        return dict(self.network.named_parameters(remove_duplicate=False))

    def owner(self, name: str) -> nn.Module:
        """The module that holds the parameter `name`."""
        return self.network.get_submodule(name.rpartition(".")[0])

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Shape of a parameter; None where there is no such one."""
        if self._is_plain(name):
            return self.checkpoint.tensors[name].shape
        return tuple(self.parameters[name].shape) if name in self.parameters else None

    def layout(self, name: str) -> Layout | None:
        """Layout of the weight of a linear layer or an embedding; None of anything else."""
        if self._is_plain(name):
            return "embedding" if is_embedding(name) else "linear"
        return weight_layout(self.owner(name))[0] if name in self.parameters else None

    def placements(self, name: str) -> list[Placement]:
        """Where the values of one parameter are stored; empty when the checkpoint does not hold them.

        A tied parameter may be stored under another of its names.
        """
        parameter = self.parameters[name]
        for alias in [name, *(other for other, p in self.parameters.items() if p is parameter)]:
            found = place(alias, tuple(parameter.shape), self.checkpoint.tensors, self.model_type)
            if not isinstance(found, str):
                return found
        return []

    def tensor(self, name: str) -> Tensor | None:
        """The values of one parameter, put together where experts are stored one by one; None if unknown."""
        placements = self.placements(name) if name in self.parameters else []
        parts = {stored: self.checkpoint.tensor(stored) for stored in {at.stored for at in placements}}
        if len(parts) < 2:
            return next((part.reshape(self.parameters[name].shape) for part in parts.values()), None)
        whole = torch.empty(self.parameters[name].shape, dtype=parts[placements[0].stored].dtype)
        for at in placements:
            whole[at.expert, at.first : at.first + at.rows] = parts[at.stored][at.at : at.at + at.rows]
        return whole

    def _is_plain(self, name: str) -> bool:
        """Whether the header of its file says all about a parameter."""
        config, stored = self.checkpoint.config, self.checkpoint.tensors.get(name)
        plain = config.get("model_type") in PLAIN and "quantization_config" not in config
        in_causal_lm = name.partition(".")[0] in ("model", "lm_head")  # a bare decoder's names lack the first part
        return plain and in_causal_lm and stored is not None and len(stored.shape) == 2

    @property
    def model_type(self) -> str:
        return self.checkpoint.text_config.get("model_type", "")


def weight_layout(module: nn.Module) -> tuple[Layout | None, tuple[int, int] | None]:
    """Layout and shape of a layer's weight, also where it is quantised; None for other modules."""
    from transformers.pytorch_utils import Conv1D

    if isinstance(module, nn.Embedding):
        return "embedding", (module.num_embeddings, module.embedding_dim)
    if isinstance(module, Conv1D):
        return "conv1d", (module.nx, module.nf)
    d_out, d_in = getattr(module, "out_features", None), getattr(module, "in_features", None)
    if isinstance(d_out, int) and isinstance(d_in, int):
        return "linear", (d_out, d_in)
    return None, None
