"""Attribution against exact patching, its completeness, and what it costs."""

from collections import Counter

import pytest
import torch
from compared import activation_vector, carried_by_one_head, compared, comparison_of, small_model

from weightsteer.activations.mechanism.attribution import attribute_edges, attribute_nodes
from weightsteer.activations.mechanism.nodes import Node
from weightsteer.activations.mechanism.patching import patch
from weightsteer.stats import spearman

FAMILIES = ("llama", "qwen2", "gemma3_text")


@pytest.mark.parametrize("kind", ["activations", "weights"])
@pytest.mark.parametrize("family", FAMILIES)
def test_attribution_ranks_nodes_as_exact_patching_does(family: str, kind: str):
    """Gradients between the two runs stand for patching into the one and into the other alike: for its mean."""
    found = comparison_of(family, kind, blocks=3, k=0.1)
    scores = attribute_nodes(found)
    sets = [[node] for node in scores.nodes]
    forth = patch(found, sets) - found.base["logit"][:, None]
    back = found.steered["logit"][:, None] - patch(found, sets, "steered")
    exact = ((forth + back) / 2).mean(0)
    heads = [place for place, node in enumerate(scores.nodes) if node.kind in ("head", "mlp")]
    estimated = scores.values.mean(0)
    assert spearman(estimated.tolist(), exact.tolist()) >= 0.9
    assert spearman(estimated[heads].tolist(), exact[heads].tolist()) >= 0.9


@pytest.mark.parametrize("metric", ["logit", "kl"])
@pytest.mark.parametrize("family", FAMILIES)
def test_scores_over_a_cut_add_up_to_the_change(family: str, metric):
    """The vector's own node moves straight from nothing to all of it, so the trapezoidal rule is the only error."""
    found = comparison_of(family, "activations", k=0.2)
    change = found.steered[metric] - found.base[metric]
    scores = attribute_nodes(found, metric)
    source = scores.values[:, scores.nodes.index(Node("vector", 0))]
    assert torch.allclose(source, change, rtol=0.03, atol=0.005)
    assert torch.allclose(source, scores.values[:, scores.nodes.index(Node("input", 1))], atol=1e-5)
    finer = attribute_nodes(found, metric, steps=40).values[:, scores.nodes.index(Node("vector", 0))]
    assert (finer - change).abs().sum() < 0.3 * (source - change).abs().sum() + 1e-5


@pytest.mark.parametrize("kind", ["activations", "weights"])
def test_what_reaches_the_output_adds_up(kind: str):
    """At a strength at which nodes move nearly straight."""
    found = comparison_of("llama", kind, k=0.1)
    scores = attribute_edges(found)
    assert scores.change == pytest.approx((found.steered["logit"] - found.base["logit"]).mean().item())
    assert scores.values[-1].sum().item() == pytest.approx(scores.change, rel=0.06)


@pytest.mark.parametrize("kind", ["activations", "weights"])
@pytest.mark.parametrize("family", [*FAMILIES, "gpt2"])
def test_the_edges_that_leave_a_node_add_up_to_its_score(family: str, kind: str):
    found = comparison_of(family, kind)
    nodes, edges = attribute_nodes(found), attribute_edges(found)
    by_node = nodes.values.mean(0)[[nodes.nodes.index(writer) for writer in edges.graph.writers]]
    assert torch.allclose(edges.values.sum(0), by_node, atol=1e-4)
    assert by_node.abs().max() > 0.05
    assert not edges.values[~edges.graph.allowed].any()


def test_the_head_that_carries_the_vector_is_found():
    lm, vector, token = carried_by_one_head()
    found = compared(lm, vector, 8.0)
    assert all((batch.steered_token == token).all() for batch in found.batches)
    means = attribute_nodes(found).mean
    carriers = [node for node in means if node.kind in ("head", "mlp")]
    assert carriers[0] == Node("head", 1, 2)
    assert abs(means[carriers[1]]) < 0.1 * means[carriers[0]]
    exact = patch(found, [[node] for node in carriers]) - found.base["logit"][:, None]
    assert exact.mean(0).argmax() == 0
    edges = dict(edge for edge, _ in zip(attribute_edges(found).top, range(2), strict=False))
    assert edges.keys() == {
        (Node("vector", 0), Node("value", 1, 1)),
        (Node("head", 1, 2), Node("output", 2)),
    }


@pytest.mark.parametrize("attribute", [attribute_nodes, attribute_edges])
@pytest.mark.parametrize("metric", ["logit", "kl"])
def test_passes_of_an_example(attribute, metric):
    found = comparison_of("llama", "weights")
    counts: Counter[bool] = Counter()
    hook = found.lm.network.model.register_forward_hook(lambda _m, _a, _o: counts.update([torch.is_grad_enabled()]))
    attribute(found, metric)
    hook.remove()
    assert len(found.batches) == 1
    assert counts == {True: 11, False: 2 + (metric == "kl")}
    assert counts.total() + 2 <= 25, "with the two of compare"


def test_only_what_comes_after_the_vector_takes_part():
    lm = small_model("llama", 3)
    found = compared(lm, activation_vector(1, mode="generated"), 2.0)
    scores = attribute_nodes(found)
    assert {node.block for node in scores.nodes if node.kind in ("head", "mlp")} == {2}
    edges = attribute_edges(found)
    assert edges.graph.writers[0] == Node("vector", 1)
    assert {node.block for node in edges.graph.readers} == {2, 3}
    behind = compared(lm, activation_vector(2), 2.0)
    [(edge, score)] = attribute_edges(behind).top
    assert edge == (Node("vector", 2), Node("output", 3))
    assert score == pytest.approx((behind.steered["logit"] - behind.base["logit"]).mean().item(), rel=0.05)
