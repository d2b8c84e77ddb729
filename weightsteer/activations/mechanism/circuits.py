"""Circuits: the edges that carry a vector's effect, how much of it they carry alone, and how far circuits agree."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from weightsteer import progress
from weightsteer.activations.mechanism.attribution import EdgeScores
from weightsteer.activations.mechanism.graph import Edge, Graph
from weightsteer.activations.mechanism.nodes import Node, Site, tapped
from weightsteer.activations.mechanism.patching import Batch, Comparison, Writes, patched_logits
from weightsteer.activations.mechanism.sparsify import Overlap, overlap
from weightsteer.errors import AdapterError, DataError
from weightsteer.stats import Estimate, weighted_mean


@dataclass(frozen=True, eq=False)
class Circuit:
    """Some edges of a graph."""

    graph: Graph
    keep: Bool[Tensor, "readers writers"]

    @cached_property
    def edges(self) -> frozenset[Edge]:
        """Pairs of writer and reader."""
        places = self.keep.nonzero().tolist()
        return frozenset((self.graph.writers[writer], self.graph.readers[reader]) for reader, writer in places)

    @property
    def share(self) -> float:
        """Share of the graph's edges."""
        return int(self.keep.sum()) / int(self.graph.allowed.sum())

    @property
    def nodes(self) -> list[Node]:
        """Writers that an edge leaves, in order."""
        return [node for node, used in zip(self.graph.writers, self.keep.any(0).tolist(), strict=True) if used]

    def pruned(self) -> "Circuit":
        """The edges on complete paths: from a writer that the vector changes by itself to the output."""
        keep, feeds = self.keep, self.graph.feeds
        while True:
            fed = self.graph.sourced | (feeds & keep.any(1)[:, None]).any(0)
            useful = (feeds & keep.any(0)).any(1)
            useful[-1] = True  # the output
            left = keep & fed & useful[:, None]
            if torch.equal(left, keep):
                return Circuit(self.graph, keep)
            keep = left


@dataclass(frozen=True)
class Faithfulness:
    """How much of a vector's effect is left when it may act along a circuit alone; over examples."""

    logit: Estimate
    """(m_C − m_base) / (m_steered − m_base), m the logit metric; sums over examples are divided."""
    kl: Estimate
    """1 − KL(steered ‖ circuit) / KL(steered ‖ base)."""
    match: Estimate
    """Share of the counted positions at which the circuit's greedy token is the steered run's."""
    share: float
    """Share of the edges, or of the nodes, that are kept."""


def circuit(scores: EdgeScores, share: float) -> Circuit:
    """This share of the edges (at least one, unless it is 0), largest scores in size first, and pruned."""
    if not 0 <= share <= 1:
        raise DataError(f"share = {share:g}: Expected a share of the edges from 0 to 1, such as 0.1")
    order = scores.order
    kept = order[: max(round(share * len(order)), int(share > 0))]
    keep = torch.zeros_like(scores.graph.allowed)
    keep[kept[:, 0], kept[:, 1]] = True
    return Circuit(scores.graph, keep).pruned()


def faithfulness(comparison: Comparison, circuits: Sequence[Circuit]) -> list[Faithfulness]:
    """Of each circuit, in the steered model with all edges outside of it taking base activations.

    A reader sees the base stream and, of each writer from which an edge leads to it, what that adds now less what it
    adds in the base run. Nodes compute with the steered weights; with all edges that is the steered run, with none the
    base run, except for changed weights of the final norm and the output head, which are in every circuit: no edge
    stands for them. A circuit may come from another vector of the same model; what this vector changes outside of its
    graph is not carried. Costs of each example two forward passes, and for each circuit one that is about twice as
    long. Source: arXiv 2604.08524 and its code.
    """
    results = [_Tally(comparison) for _ in circuits]
    sites = {site for one in circuits for site in one.graph.writing}
    streams: set[Site] = {("input", block) for block in range(len(comparison.anatomy.parts) + 1)}
    with torch.no_grad(), progress.task("circuits", len(circuits) * len(comparison.batches)) as advance:
        for batch in comparison.batches:
            base = comparison.writes(batch, "base", sites | streams)
            target = comparison.target(batch, "kl")
            assert target is not None
            for one, result in zip(circuits, results, strict=True):
                result.add(batch, _circuit_logits(comparison, batch, one, base), target)
                advance()
    return [result.faithfulness(one.share) for one, result in zip(circuits, results, strict=True)]


def node_faithfulness(comparison: Comparison, kept: Sequence[Collection[Node]]) -> list[Faithfulness]:
    """Of sets of nodes, in the steered run with every other of `comparison.nodes` as in the base run.

    The coarse form of a circuit: a kept node acts on all that follows. It needs no graph, and costs one plain forward
    pass for each set and three more, for models in which gradients at every edge do not fit in memory.
    """
    nodes = comparison.nodes
    sets = [[node for node in nodes if node not in keep] for keep in kept]
    results = [_Tally(comparison) for _ in sets]
    comparison.anatomy.check([node for keep in kept for node in keep])
    for batch in comparison.batches:
        target = comparison.target(batch, "kl")
        assert target is not None
        for result, logits in zip(results, patched_logits(comparison, batch, sets, "steered"), strict=True):
            result.add(batch, logits, target)
    return [result.faithfulness(1 - len(left_out) / len(nodes)) for result, left_out in zip(results, sets, strict=True)]


def circuit_overlap(one: Circuit, other: Circuit) -> Overlap:
    """Intersection over union of the edges that both graphs have, and what random circuits of the sizes would have.

    The edges that leave an activation vector are in its own graph alone, so for circuits of an activation and a weight
    vector they do not count. An AdapterError where a circuit has no edge in common with the other's graph.
    """
    if one.graph.body != other.graph.body:
        raise AdapterError("circuits of two models. Expected circuits of one")
    shared = sorted(_all_edges(one.graph) & _all_edges(other.graph), key=str)
    masks = [torch.tensor([edge in side.edges for edge in shared], dtype=torch.bool) for side in (one, other)]
    if not all(mask.any() for mask in masks):
        sizes = " and ".join(str(int(mask.sum())) for mask in masks)
        raise AdapterError(
            f"circuits: have {sizes} of the {len(shared)} edges that both graphs have. Expected at least one each. "
            "Keep a larger share"
        )
    return overlap(*masks)


class _Tally:
    """Sums of a circuit's runs over the counted positions of each example."""

    def __init__(self, comparison: Comparison) -> None:
        self.comparison, n = comparison, len(comparison.kept)
        self.logit, self.kl, self.match, self.positions = (torch.zeros(n, dtype=torch.float64) for _ in range(4))

    def add(self, batch: Batch, logits: Float[Tensor, "positions vocabulary"], target: Tensor) -> None:
        at = list(batch.examples)
        self.logit[at] = batch.measure(logits, "logit").double().cpu()
        self.kl[at] = batch.measure(logits, "kl", target).double().cpu()
        matched = (logits.argmax(-1) == batch.steered_token).to(logits)
        self.match[at] = batch.by_row(matched).double().cpu()
        self.positions[at] = batch.by_row(torch.ones_like(matched)).double().cpu()

    def faithfulness(self, share: float) -> Faithfulness:
        base, steered = self.comparison.base, self.comparison.steered
        changes = {metric: steered[metric] - base[metric] for metric in base}
        return Faithfulness(
            _ratio(self.logit - base["logit"], changes["logit"]),
            _ratio(self.kl - base["kl"], changes["kl"]),
            _ratio(self.match, self.positions),
            share,
        )


def _ratio(part: Float[Tensor, " examples"], whole: Float[Tensor, " examples"]) -> Estimate:
    """Sum of the parts over the sum of the wholes, which are positive; a single example has no interval."""
    if len(whole) == 1:
        return Estimate((part / whole).item(), float("nan"), float("nan"))
    return weighted_mean((part / whole).tolist(), whole.tolist())


def _circuit_logits(
    comparison: Comparison, batch: Batch, one: Circuit, base: Writes
) -> Float[Tensor, "positions vocabulary"]:
    """Logits of the steered run in which readers see the changes of some writers only."""
    graph, place = one.graph, base.at["input", 0]
    keep = one.keep.to(place.device, place.dtype)
    moved = place.new_empty(len(graph.writers), *place.shape[1:])
    written = 0

    def tap(site: Site, values: Tensor) -> Tensor:
        nonlocal written
        where = graph.writing.get(site)
        if where is not None:
            # An activation vector adds nothing in the base run.
            moved[where] = values - base.at[site] if site[0] != "vector" else values
            written = where.stop
        return values

    def read(site: Site, stream: Tensor) -> Tensor:
        kind, block = site
        plain = base.at["input", block][0]
        if kind == "mlp":
            plain = plain + base.at["head", block].sum(0)
        where = graph.reading[site]
        changes = keep[where, :written] @ moved[:written].flatten(1)
        return plain + changes.unflatten(1, plain.shape)

    sites = {*graph.writing, *graph.reading}
    with tapped(comparison.lm, comparison.vector, comparison.k, tap, read, sites) as lm:
        return batch.logits(lm)


def _all_edges(graph: Graph) -> set[Edge]:
    return {(graph.writers[w], graph.readers[r]) for r, w in graph.allowed.nonzero().tolist()}
