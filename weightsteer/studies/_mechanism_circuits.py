"""The stages of the study `mechanism` on heads, MLPs and edges: patched one by one, estimated, and run as circuits."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from weightsteer.activations.mechanism.attribution import EdgeScores, attribute_edges, attribute_nodes
from weightsteer.activations.mechanism.circuits import Circuit, circuit, circuit_overlap, faithfulness
from weightsteer.activations.mechanism.graph import graph_of
from weightsteer.activations.mechanism.nodes import Node
from weightsteer.activations.mechanism.patching import Comparison, Forced, compare, forced_examples, patch
from weightsteer.errors import AdapterError
from weightsteer.steerability import rank_correlation
from weightsteer.studies._mechanism_bench import NAMES, WEIGHTS, Bench

SCORES = "scores.safetensors"
# Fewer have no interval.
LEAST_EXAMPLES = 2


def forced(bench: Bench, name: str) -> list[Forced]:
    """Questions with the greedy answers of the unsteered and of the steered model in turn, as token ids."""
    settings = bench.given.settings

    def write(folder: Path) -> Any:
        prompts = bench.prompts()[: settings.prompts]
        return forced_examples(bench.lm, bench.vectors[name], bench.k(name), prompts, settings.answer_tokens)

    found = bench.stage(f"forced/{name}", ("prompts", "answer_tokens"), write, **bench.of_vectors(name))
    return [(prompt, answer) for prompt, answer in found]


def compared(bench: Bench, name: str, examples: Sequence[Forced]) -> Comparison | None:
    """The model with and without a vector along `examples`; None where too few of them tell the two apart."""
    try:
        found = compare(bench.lm, bench.vectors[name], bench.k(name), examples)
    except AdapterError:  # the vectors are of this model and add, so it is that no token differs
        return None
    return found if len(found.kept) >= LEAST_EXAMPLES else None


def patch_nodes(bench: Bench, name: str) -> Any:
    """Effect of giving one head or MLP its steered value, exactly and estimated; None where nothing differs."""
    settings = bench.given.settings

    def work(folder: Path) -> Any:
        found = compared(bench, name, forced(bench, name)[: 2 * settings.exact_prompts])
        if found is None:
            return None
        nodes = [node for node in found.nodes if node.kind in ("head", "mlp")]
        exact = (patch(found, [[node] for node in nodes]) - found.base["logit"][:, None]).mean(0).tolist()
        scored = attribute_nodes(found, steps=settings.steps).mean
        estimated = [scored[node] for node in nodes]
        return {
            "examples": len(found.kept),
            "change": (found.steered["logit"] - found.base["logit"]).mean().item(),
            "nodes": [asdict(node) for node in nodes],
            "exact": exact,
            "estimated": estimated,
            "agreement": asdict(rank_correlation(exact, estimated, settings.seed)),
        }

    keys = ("prompts", "exact_prompts", "steps", "answer_tokens")
    return bench.stage(f"patched/{name}", keys, work, **bench.of_vectors(name))


def find_circuits(bench: Bench, name: str) -> Any:
    """What circuits of several sizes carry of a vector's effect; the scores of edges are kept beside it."""
    settings = bench.given.settings

    def work(folder: Path) -> Any:
        from safetensors.torch import save_file

        found = compared(bench, name, forced(bench, name))
        if found is None:
            return None
        scores = attribute_edges(found, steps=settings.steps)
        save_file({"values": scores.values.contiguous()}, folder / SCORES)
        asked = sorted({*settings.circuit_shares, settings.circuit_share})
        carried = faithfulness(found, [circuit(scores, share) for share in asked])
        rows = [{"asked": share, **asdict(one)} for share, one in zip(asked, carried, strict=True)]
        edges = int(scores.graph.allowed.sum())
        return {"examples": len(found.kept), "edges": edges, "change": scores.change, "circuits": rows}

    keys = ("prompts", "steps", "answer_tokens", "circuit_shares", "circuit_share")
    return bench.stage(f"circuits/{name}", keys, work, **bench.of_vectors(name))


def compare_circuits(bench: Bench) -> Any:
    """Agreement of the circuits of every two vectors, and what one vector's circuit carries of another's effect."""

    def work(folder: Path) -> Any:
        runs, found = {}, {}
        for name in NAMES:
            run, own = reopened(bench, name)
            if run is not None and own is not None and own.keep.any():
                runs[name], found[name] = run, own
        overlaps = [
            {"one": one, "other": other, **asdict(circuit_overlap(found[one], found[other]))}
            for i, one in enumerate(found)
            for other in list(found)[i + 1 :]
        ]
        carried = {}
        for name, run in runs.items():
            others = [of for of in found if can_carry(of, name)]
            by = faithfulness(run, [found[of] for of in others])
            carried[name] = {of: asdict(one) for of, one in zip(others, by, strict=True)}
        return {"names": list(found), "overlaps": overlaps, "carried": carried}

    keys = ("prompts", "steps", "answer_tokens", "circuit_shares", "circuit_share")
    return bench.stage("circuits/shared", keys, work, **bench.of_vectors(*NAMES))


def can_carry(circuit_of: str, name: str) -> bool:
    """Whether edges of one vector's circuit can carry another's effect.

    A weight vector acts at heads and MLPs; no edge of its circuits begins where an activation vector is added.
    """
    return circuit_of != WEIGHTS or name == WEIGHTS


def reopened(bench: Bench, name: str) -> tuple[Comparison | None, Circuit | None]:
    """The comparison of a vector and its circuit of the compared size, from what `find_circuits` kept."""
    from safetensors.torch import load_file

    if find_circuits(bench, name) is None:
        return None, None
    found = compared(bench, name, forced(bench, name))
    assert found is not None
    values = load_file(bench.out / "circuits" / name / SCORES)["values"]
    scores = EdgeScores(graph_of(found), values, 0.0)
    return found, circuit(scores, bench.given.settings.circuit_share)


def as_node(found: dict[str, Any]) -> Node:
    """A node as it was before it was written."""
    return Node(**found)
