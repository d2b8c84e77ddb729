"""The edges of a residual stream: from everything that writes to it to everything that reads it later."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool
from torch import Tensor

from weightsteer.activations.mechanism.nodes import Anatomy, Kind, Node, Site
from weightsteer.activations.mechanism.patching import Comparison

Edge = tuple[Node, Node]
# When, in the five moments of a block, a kind of node reads the stream or writes to it.
_MOMENTS = 5
_READS = {"query": 0, "key": 0, "value": 0, "mlp": 2, "output": 0}
_WRITES = {"input": -1, "head": 1, "mlp": 3, "vector": 4}


@dataclass(frozen=True, eq=False)
class Graph:
    """Writers and readers in the order of a pass; an edge leads from a writer to any reader after it."""

    body: Anatomy
    writers: tuple[Node, ...]
    readers: tuple[Node, ...]
    sources: frozenset[Node]
    """Writers that the vector changes by itself."""

    @cached_property
    def writing(self) -> dict[Site, slice]:
        """Where the nodes of a site stand among the writers."""
        return _places([node.site for node in self.writers])

    @cached_property
    def reading(self) -> dict[Site, slice]:
        """Where the nodes of a site stand among the readers; queries, keys and values are one site, `attention`."""
        kinds: dict[Kind, Kind] = {"query": "attention", "key": "attention", "value": "attention"}
        return _places([(kinds.get(node.kind, node.kind), node.block) for node in self.readers])

    @cached_property
    def allowed(self) -> Bool[Tensor, "readers writers"]:
        """Which edges there are."""
        reads = torch.tensor([_MOMENTS * node.block + _READS[node.kind] for node in self.readers])
        writes = torch.tensor([_written(node) for node in self.writers])
        return reads[:, None] > writes

    @cached_property
    def feeds(self) -> Bool[Tensor, "readers writers"]:
        """Which reader is a part of which writer: queries, keys and values of their heads, an MLP of itself."""
        return torch.tensor([[self._is_part(reader, writer) for writer in self.writers] for reader in self.readers])

    @cached_property
    def sourced(self) -> Bool[Tensor, " writers"]:
        """Which writers are sources."""
        return torch.tensor([writer in self.sources for writer in self.writers])

    def _is_part(self, reader: Node, writer: Node) -> bool:
        if reader.block != writer.block or reader.kind == "output" or writer.kind not in ("head", "mlp"):
            return False
        if reader.head is None or writer.head is None:
            return reader.kind == writer.kind
        return reader.head == (writer.head if reader.kind == "query" else writer.head // self.body.group)


def graph_of(comparison: Comparison) -> Graph:
    """The edges along which a vector can act: from `comparison.nodes` to all that reads behind its first block."""
    body, blocks = comparison.anatomy, len(comparison.anatomy.parts)
    readers: list[Node] = []
    for block in range(comparison.first, blocks):
        readers += [Node("query", block, head) for head in range(body.heads)]
        readers += [Node("key", block, head) for head in range(body.kv_heads)]
        readers += [Node("value", block, head) for head in range(body.kv_heads)]
        readers.append(Node("mlp", block))
    writers = tuple(sorted(comparison.nodes, key=_written))
    return Graph(body, writers, (*readers, Node("output", blocks)), frozenset(comparison.sources))


def _written(node: Node) -> int:
    return _MOMENTS * node.block + _WRITES[node.kind]


def _places(sites: Sequence[Site]) -> dict[Site, slice]:
    """First and last place of each site; those of one site stand together."""
    places: dict[Site, slice] = {}
    for number, site in enumerate(sites):
        places[site] = slice(places[site].start if site in places else number, number + 1)
    return places
