"""Circuits: all edges and none, complete paths, what one head carries, and overlap against chance."""

import itertools
import math

import pytest
import torch
from compared import activation_vector, carried_by_one_head, compared, comparison_of, small_model, weight_vector

from weightsteer.activations.mechanism.attribution import EdgeScores, attribute_edges
from weightsteer.activations.mechanism.circuits import (
    Circuit,
    circuit,
    circuit_overlap,
    faithfulness,
    node_faithfulness,
)
from weightsteer.activations.mechanism.graph import graph_of
from weightsteer.activations.mechanism.nodes import Node
from weightsteer.activations.mechanism.patching import compare, forced_examples
from weightsteer.errors import AdapterError, DataError, ModelError

FAMILIES = ("llama", "qwen2", "gemma3_text", "gpt2")


@pytest.mark.parametrize("kind", ["activations", "weights"])
@pytest.mark.parametrize("family", FAMILIES)
def test_all_edges_are_the_steered_run_and_none_the_base(family: str, kind: str):
    found = comparison_of(family, kind)
    graph = graph_of(found)
    whole, nothing = faithfulness(found, [Circuit(graph, graph.allowed), Circuit(graph, graph.allowed & False)])
    for part in (whole.logit, whole.kl, whole.match):
        assert part.mean == pytest.approx(1, abs=1e-4)
    for part in (nothing.logit, nothing.kl, nothing.match):
        assert part.mean == pytest.approx(0, abs=1e-4)
    assert (whole.share, nothing.share) == (1, 0)


def test_a_vector_at_several_blocks():
    found = compared(small_model("llama", 3), activation_vector(0, 1, mode="generated"), 0.3)
    graph = graph_of(found)
    [whole] = faithfulness(found, [Circuit(graph, graph.allowed)])
    assert whole.logit.mean == pytest.approx(1, abs=1e-4)
    assert [str(node) for node in graph.writers if node.kind == "vector"] == ["block 0 vector", "block 1 vector"]


def test_one_head_that_carries_the_vector_is_the_circuit():
    lm, vector, _ = carried_by_one_head()
    found = compared(lm, vector, 8.0)
    scores = attribute_edges(found)
    kept = circuit(scores, 2 / int(scores.graph.allowed.sum()))
    assert kept.edges == {
        (Node("vector", 0), Node("value", 1, 1)),
        (Node("head", 1, 2), Node("output", 2)),
    }
    without = Circuit(scores.graph, scores.graph.allowed.clone())
    without.keep[:, scores.graph.writers.index(Node("head", 1, 2))] = False
    alone, rest = faithfulness(found, [kept, without])
    assert alone.logit.mean > 0.9
    assert alone.match.mean > 0.9
    # Without the head the vector still lengthens the stream, and the last norm makes all logits smaller for it.
    assert rest.match.mean == 0
    assert rest.logit.mean < 0.5
    assert alone.share == pytest.approx(2 / scores.graph.allowed.sum().item())


def test_an_edge_is_what_one_reader_sees_of_one_writer():
    """Against a run in which the MLP of block 1 alone sees the vector: its input is moved by hand."""
    found = comparison_of("gemma3_text", "activations")
    graph, layer = graph_of(found), found.lm.network.model.layers[1]
    keep = graph.allowed & False
    keep[graph.readers.index(Node("mlp", 1)), graph.writers.index(Node("vector", 0))] = True
    keep[-1, graph.writers.index(Node("mlp", 1))] = True
    added = found.k * found.vector.directions[0]
    hook = layer.pre_feedforward_layernorm.register_forward_pre_hook(lambda _m, args: (args[0] + added,))
    expected = torch.zeros(len(found.kept), dtype=torch.float64)
    with torch.no_grad():
        for batch in found.batches:
            expected[list(batch.examples)] = batch.measure(batch.logits(found.lm), "logit").double()
    hook.remove()
    [carried] = faithfulness(found, [Circuit(graph, keep)])
    change = (found.steered["logit"] - found.base["logit"]).sum()
    assert carried.logit.mean == pytest.approx(((expected - found.base["logit"]).sum() / change).item(), abs=1e-4)
    assert abs(carried.logit.mean) > 1e-3


def test_only_complete_paths_are_kept():
    found = comparison_of("llama", "activations", blocks=3)
    graph = graph_of(found)

    def of(*edges: tuple[Node, Node]) -> Circuit:
        keep = graph.allowed & False
        for writer, reader in edges:
            keep[graph.readers.index(reader), graph.writers.index(writer)] = True
        return Circuit(graph, keep)

    vector, output = Node("vector", 0), Node("output", 3)
    # Key 1 is shared by heads 2 and 3.
    complete = [(vector, Node("key", 1, 1)), (Node("head", 1, 3), Node("mlp", 2)), (Node("mlp", 2), output)]
    dangling = [(vector, Node("query", 1, 0)), (Node("head", 1, 1), output), (Node("mlp", 1), Node("value", 2, 0))]
    assert of(*complete, *dangling).pruned().edges == set(complete)
    assert of(*complete, *dangling).pruned().nodes == [vector, Node("head", 1, 3), Node("mlp", 2)]
    assert of(*complete[:-1]).pruned().edges == set()
    # A change of weights acts in every node by itself.
    changed = graph_of(comparison_of("llama", "weights", blocks=3))
    keep = changed.allowed & False
    keep[-1, changed.writers.index(Node("head", 1, 1))] = True
    assert len(Circuit(changed, keep).pruned().edges) == 1


def test_larger_circuits_hold_the_smaller_and_carry_all_in_the_end():
    found = comparison_of("qwen2", "weights")
    scores = attribute_edges(found)
    circuits = [circuit(scores, share) for share in (0, 0.05, 0.2, 0.5, 1)]
    for small, large in itertools.pairwise(circuits):
        assert small.edges <= large.edges
    shares = [one.share for one in circuits]
    assert shares[0] == 0
    assert shares[-1] == 1
    assert all(one.share <= asked + 0.01 for one, asked in zip(circuits, (0, 0.05, 0.2, 0.5, 1), strict=True))
    half = faithfulness(found, circuits)[3]
    assert 0.5 < half.logit.mean < 1.5
    assert half.logit.low <= half.logit.mean <= half.logit.high
    lowest = EdgeScores(scores.graph, 1 / (scores.values.abs() + 1e-6), scores.change)
    [worst] = faithfulness(found, [circuit(lowest, 0.2)])
    best = faithfulness(found, circuits[2:3])[0]
    assert worst.logit.mean < best.logit.mean


def test_nodes_kept_whole():
    lm, vector, _ = carried_by_one_head()
    found = compared(lm, vector, 8.0)
    source, head = Node("vector", 0), Node("head", 1, 2)
    alone, whole, rest = node_faithfulness(found, [[source, head], found.nodes, [Node("mlp", 1)]])
    assert whole.logit.mean == pytest.approx(1, abs=1e-4)
    assert alone.logit.mean > 0.9
    assert alone.share == pytest.approx(2 / len(found.nodes))
    assert abs(rest.logit.mean) < 0.2
    assert rest.match.mean == 0
    with pytest.raises(ModelError, match=r"block 1 head 9: no head 9"):
        node_faithfulness(found, [[Node("head", 1, 9)]])


def test_overlap_against_chance():
    found = comparison_of("llama", "activations", blocks=3)
    scores = attribute_edges(found)
    one = circuit(scores, 0.3)
    same = circuit_overlap(one, one)
    assert (same.iou, same.shared) == (1, len(one.edges))
    assert same.p_value < 1e-6
    assert same.expected_iou < 0.4
    weights = attribute_edges(compared(found.lm, weight_vector(found.lm), 0.4))
    other = circuit_overlap(one, circuit(weights, 0.3))
    assert 0 < other.iou < 1
    with pytest.raises(AdapterError, match=r"circuits: have \d+ and 0 of the \d+ edges that both graphs have"):
        circuit_overlap(one, circuit(scores, 0))
    with pytest.raises(AdapterError, match=r"circuits of two models"):
        circuit_overlap(one, circuit(attribute_edges(comparison_of("qwen2", "weights")), 0.3))


def test_a_circuit_of_one_vector_carries_another():
    lm = small_model("llama")
    first, second = compared(lm, activation_vector(0), 0.3), compared(lm, -activation_vector(0), 0.3)
    [borrowed] = faithfulness(second, [circuit(attribute_edges(first), 1)])
    assert borrowed.logit.mean == pytest.approx(1, abs=1e-4)


def test_one_example_has_no_interval_and_shares_lie_between_0_and_1():
    lm, vector, k = small_model("llama"), activation_vector(0), 0.4
    single = compare(lm, vector, k, forced_examples(lm, vector, k, [lm.tokens(lm.chat("Why?"))], 6)[:1])
    scores = attribute_edges(single)
    with pytest.raises(DataError, match=r"share = 1.5: Expected a share of the edges from 0 to 1"):
        circuit(scores, 1.5)
    [result] = faithfulness(single, [circuit(scores, 1)])
    assert result.logit.mean == pytest.approx(1, abs=1e-4)
    assert math.isnan(result.logit.low)
