"""Cosines of many vectors in one pass, and the order in which like stands beside like."""

import pytest
import torch
from trainings import random_vector

from weightsteer.errors import AdapterError
from weightsteer.monitor.figures import matrix_picture
from weightsteer.monitor.matrix import CosineMatrix, cosine_matrix, gram
from weightsteer.weights.vector import WeightVector


def test_gram_is_all_inner_products(network):
    vectors = [random_vector(network, seed) for seed in (1, 2, 3)]
    vectors[2] = WeightVector({name: c for name, c in vectors[2].entries.items() if "proj" in name})
    products = gram([vector.entries for vector in vectors])
    for i, one in enumerate(vectors):
        for j, other in enumerate(vectors):
            assert products[i, j].item() == pytest.approx(one.inner(other), rel=1e-9)


def test_each_change_is_asked_for_once(network):
    asked: list[str] = []

    class Counted(dict):
        def __getitem__(self, name: str):
            asked.append(name)
            return super().__getitem__(name)

    gram([Counted(random_vector(network, seed).entries) for seed in (1, 2, 3)])
    assert len(asked) <= 3 * len(set(asked)) + 6  # the type checker of the test run looks at a few as well


def test_like_stands_beside_like(network):
    a, b = random_vector(network, 1), random_vector(network, 2)
    noise = [0.2 * random_vector(network, seed) for seed in (3, 4)]
    vectors = {"a": a, "b": b, "like a": a + noise[0], "like b": b + noise[1]}
    matrix = cosine_matrix({name: vector.entries for name, vector in vectors.items()})
    for one in vectors:
        for other in vectors:
            assert matrix.cosine(one, other) == pytest.approx(vectors[one].cosine(vectors[other]), abs=1e-6)
    ordered = [matrix.names[i] for i in matrix.order]
    assert abs(ordered.index("a") - ordered.index("like a")) == 1
    assert abs(ordered.index("b") - ordered.index("like b")) == 1
    assert matrix.norms == pytest.approx([vector.norm() for vector in vectors.values()])
    some = matrix.among(["like a", "b", "a"])
    assert some.names == ["like a", "b", "a"]
    assert some.cosine("a", "like a") == matrix.cosine("a", "like a")
    assert some.norms == [matrix.norms[i] for i in (2, 1, 0)]
    assert some.order[1] != 1, "b stands at an end"
    table = matrix.table()
    assert len(table.splitlines()) == 6
    assert table.splitlines()[0] == f"| | {' | '.join(ordered)} |"


def test_the_picture_tells_the_nearest_and_the_farthest():
    matrix = CosineMatrix(["a", "b", "c"], [1, 1, 1], [[1, 0.5, -0.2], [0.5, 1, 0.1], [-0.2, 0.1, 1]], [2, 0, 1])
    picture = matrix_picture(matrix)
    assert picture.light.startswith(b"\x89PNG")
    assert picture.light != picture.dark
    assert "Nearest: a and b, +0.500. Least alike: a and c, -0.200" in picture.alt.replace("−", "-")


def test_vectors_without_a_direction_or_of_other_shapes_are_told(network):
    vector = random_vector(network)
    with pytest.raises(AdapterError, match="cosine matrix of 1 vectors"):
        cosine_matrix({"a": vector.entries})
    with pytest.raises(AdapterError, match="still: is zero"):
        cosine_matrix({"a": vector.entries, "still": (vector * 0).entries})
    with pytest.raises(AdapterError, match=r"model.norm.weight: is \[3\] and \[32\] in different vectors"):
        cosine_matrix({"a": vector.entries, "b": {"model.norm.weight": torch.ones(3)}})
