"""Effects of all nodes, or of all edges, at once: integrated gradients between the unsteered and the steered run."""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from weightsteer import progress
from weightsteer.activations.mechanism.graph import Edge, Graph, graph_of
from weightsteer.activations.mechanism.nodes import Node, Site, tapped
from weightsteer.activations.mechanism.patching import Batch, Comparison, Metric

STEPS = 10


@dataclass(frozen=True, eq=False)
class NodeScores:
    """Estimated effect of giving a node its steered value, for each example."""

    nodes: tuple[Node, ...]
    values: Float[Tensor, "examples nodes"]
    """Change of the metric, float64."""

    @property
    def mean(self) -> dict[Node, float]:
        """Over examples, largest in size first."""
        means = zip(self.nodes, self.values.mean(0).tolist(), strict=True)
        return dict(sorted(means, key=lambda item: -abs(item[1])))


@dataclass(frozen=True, eq=False)
class EdgeScores:
    """Estimated effect of giving a reader the steered value of a writer, mean over examples."""

    graph: Graph
    values: Float[Tensor, "readers writers"]
    """Change of the metric, float64; zero where there is no edge."""
    change: float
    """Metric of the steered run minus that of the unsteered run, mean over examples."""

    @property
    def top(self) -> Iterator[tuple[Edge, float]]:
        """Edges (writer, reader) with their scores, largest in size first."""
        for reader, writer in self.order.tolist():
            yield (self.graph.writers[writer], self.graph.readers[reader]), self.values[reader, writer].item()

    @property
    def order(self) -> Tensor:
        """Reader and writer of every edge, [edges, 2], largest score in size first."""
        edges = self.graph.allowed.nonzero()
        return edges[self.values[self.graph.allowed].abs().argsort(descending=True, stable=True)]


def attribute_nodes(comparison: Comparison, metric: Metric = "logit", steps: int = STEPS) -> NodeScores:
    """(steered − base value of a node) · mean of ∂metric/∂value between the two runs, for all nodes at once.

    The mean is over the runs under t·k·vector, t from 0 to 1, by the trapezoidal rule. Over the nodes of a cut whose
    values move straight from those of one run to those of the other, such as the vector itself, scores add up to the
    change of the metric, but for the error of the rule. Nodes are `comparison.nodes` and the block inputs. Costs
    `steps` + 1 forward-backward passes and two forward passes of each example (kl: three). Source: arXiv 2604.08524
    and its code (10 steps).
    """
    blocks = len(comparison.anatomy.parts)
    inputs = [Node("input", block) for block in range(max(comparison.first, 1), blocks + 1)]  # that of 0 is a source
    nodes = (*comparison.nodes, *inputs)
    places = {node: number for number, node in enumerate(nodes)}
    values = torch.zeros(len(comparison.kept), len(nodes), dtype=torch.float64)
    streams: dict[Site, int] = {("mlp", block): 1 for block in range(comparison.first, blocks)}
    with progress.task("attribution of nodes", len(comparison.kept)) as advance:
        for batch in comparison.batches:
            slopes = _slopes(
                comparison, batch, metric, steps, streams, {node.site for node in nodes if node.kind == "input"}
            )

            def score(site: Site, moved: Tensor, batch: Batch = batch, slopes: Mapping[Site, Tensor] = slopes) -> None:
                kind, block = site
                # What a block adds is in the stream before the next; what a head adds is read by the MLP besides.
                slope = slopes["input", block if kind == "input" else block + 1]
                if kind == "head":
                    slope = slope + slopes["mlp", block]
                effects = torch.einsum("nrtd,rtd->rn", moved, slope[0]).double().cpu()
                columns = [places[Node(kind, block, n if kind == "head" else None)] for n in range(len(moved))]
                values[torch.tensor(batch.examples)[:, None], torch.tensor(columns)] = effects

            _moves(comparison, batch, {node.site for node in nodes}, score)
            advance(len(batch.examples))
    return NodeScores(nodes, values)


def attribute_edges(comparison: Comparison, metric: Metric = "logit", steps: int = STEPS) -> EdgeScores:
    """(steered − base value of a writer) · mean of ∂metric/∂(stream that a reader sees), for all edges at once.

    The edges that leave a writer add up to its score of `attribute_nodes`. The passes are as many, each about twice as
    costly: every query, key and value reads a stream of its own. A gradient of each reader and a value of each writer
    are held at once, and freed block by block in the last pass. Source: edge attribution patching with integrated
    gradients (arXiv 2403.17806), as in the code of arXiv 2604.08524.
    """
    graph = graph_of(comparison)
    values = torch.zeros(len(graph.readers), len(graph.writers), dtype=torch.float64)
    streams = {site: place.stop - place.start for site, place in graph.reading.items()}
    inputs: set[Site] = {("input", block) for block in range(comparison.first, len(comparison.anatomy.parts) + 1)}
    with progress.task("attribution of edges", len(comparison.kept)) as advance:
        for batch in comparison.batches:
            slopes = _slopes(comparison, batch, metric, steps, streams, ())

            def score(site: Site, moved: Tensor, slopes: dict[Site, Tensor] = slopes) -> None:
                written = graph.writing.get(site)
                if written is None:
                    return
                # Writes come in order: what reads before this one has been used up.
                for used in [r for r in slopes if not graph.allowed[graph.reading[r], written].any()]:
                    del slopes[used]
                for reader, slope in slopes.items():
                    values[graph.reading[reader], written] += (slope.flatten(1) @ moved.flatten(1).T).double().cpu()

            _moves(comparison, batch, {*graph.writing, *inputs}, score)
            advance(len(batch.examples))
    change = (comparison.steered[metric] - comparison.base[metric]).mean().item()
    return EdgeScores(graph, values / len(comparison.kept), change)


def _slopes(
    comparison: Comparison,
    batch: Batch,
    metric: Metric,
    steps: int,
    streams: Mapping[Site, int],
    inputs: Collection[Site],
) -> dict[Site, Float[Tensor, "readers rows columns d_model"]]:
    """Mean gradient of the metric, float32, at the stream of each of so many readers of a site, and at block inputs.

    The gradient at a reader is what comes back through it alone; that at a block input comes from all that follows.
    """
    slopes: dict[Site, Tensor] = {}
    start: Site = ("input", comparison.first)
    leaves: list[Tensor] = []
    weight = 0.0

    def watched(site: Site, stream: Tensor) -> Tensor:
        def gather(slope: Tensor) -> None:
            if site in slopes:
                slopes[site].add_(slope, alpha=weight)
            else:
                slopes[site] = weight * slope.float()

        stream.register_hook(gather)
        return stream

    def tap(site: Site, values: Tensor) -> Tensor:
        if site == start:
            leaves.append(values.detach().requires_grad_())
            values = leaves[-1]
        return watched(site, values.view_as(values)) if site in inputs else values

    def read(site: Site, stream: Tensor) -> Tensor:
        count = streams.get(site)
        each = stream.expand(count or 1, *stream.shape)
        return each if count is None else watched(site, each)

    target = comparison.target(batch, metric)
    for number in range(steps + 1):
        weight = (0.5 if number in (0, steps) else 1.0) / steps
        k = comparison.k * number / steps
        sites = {start, *streams, *inputs}
        with torch.enable_grad(), tapped(comparison.lm, comparison.vector, k, tap, read, sites) as lm:
            total = batch.measure(batch.logits(lm), metric, target).sum()
        torch.autograd.grad(total, leaves.pop())
    return slopes


@torch.no_grad()
def _moves(comparison: Comparison, batch: Batch, sites: Collection[Site], use: Callable[[Site, Tensor], None]) -> None:
    """Show `use` the steered values minus the base values of every site, in order, float32; two forward passes.

    Base values are freed as the steered pass goes by.
    """
    base = comparison.writes(batch, "base", sites).at

    def tap(site: Site, values: Tensor) -> Tensor:
        use(site, values.float() - base.pop(site).float())
        return values

    with tapped(comparison.lm, comparison.vector, comparison.k, tap, sites=sites) as lm:
        batch.logits(lm)
