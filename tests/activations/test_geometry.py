"""Statistics of pairs along their mean difference, against hand-built cases and direct computation."""

import math

import pytest
import torch

from weightsteer.activations.geometry import (
    Agreement,
    agreement_left_out,
    auc,
    d_prime,
    directional_agreement,
    geometry,
    kappa,
    kappa_left_out,
    overlap,
    split_half,
    stability,
)
from weightsteer.errors import DataError


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a @ b / a.norm() / b.norm()).item()


def test_equal_differences_agree_fully_and_opposed_ones_by_their_majority():
    deltas = torch.tensor([[3.0, 4.0]]).repeat(6, 1)
    for statistic in (directional_agreement, agreement_left_out, split_half, stability):
        assert statistic(deltas) == pytest.approx(1)
    deltas[0] *= -1  # five of one way, one of the other: (5 − 1) / 6
    assert directional_agreement(deltas) == pytest.approx(4 / 6)


def test_agreement_is_the_mean_cosine_and_does_not_change_with_scale():
    deltas = normal(7, 5) + 0.3
    expected = sum(cosine(delta, deltas.mean(0)) for delta in deltas) / 7
    assert directional_agreement(deltas) == pytest.approx(expected)
    assert directional_agreement(40 * deltas) == pytest.approx(expected)
    others = [deltas[[j for j in range(7) if j != i]].mean(0) for i in range(7)]
    expected = sum(cosine(delta, mean) for delta, mean in zip(deltas, others, strict=True)) / 7
    assert agreement_left_out(deltas) == pytest.approx(expected)
    assert agreement_left_out(40 * deltas) == pytest.approx(expected)


def test_random_differences_agree_by_chance_alone_unless_left_out():
    deltas = normal(100, 4000)
    assert directional_agreement(deltas) == pytest.approx(1 / math.sqrt(100), rel=0.05)
    assert abs(agreement_left_out(deltas)) < 0.01
    assert abs(split_half(deltas)) < 0.02
    # d′ along the pairs' own mean difference: √(2·4000/100) though nothing is shared
    random = geometry(normal(100, 4000, seed=1), normal(100, 4000, seed=2))
    assert random.d_prime > 5
    assert abs(random.d_prime_left_out) < 0.6


def test_a_stream_of_batches_gives_the_same_agreement_at_every_block():
    deltas = normal(9, 3, 4) + 0.5
    stream = Agreement()
    for batch in deltas.split(4):
        stream.add(batch)
    expected = [directional_agreement(deltas[:, block]) for block in range(3)]
    assert stream.value.tolist() == pytest.approx(expected)


def test_kappa_puts_the_means_at_one_and_minus_one():
    positive, negative = normal(6, 3) + 1, normal(8, 3, seed=1)
    means = positive.mean(0), negative.mean(0)
    assert kappa(torch.stack(means), *means).tolist() == pytest.approx([1, -1])
    assert kappa(positive, *means).mean().item() == pytest.approx(1)


def test_kappa_left_out_reads_each_pair_by_the_others():
    positive, negative = normal(5, 3) + 1, normal(5, 3, seed=1)
    ours, theirs = kappa_left_out(positive, negative)
    rest = [1, 2, 3, 4]
    means = positive[rest].mean(0), negative[rest].mean(0)
    assert ours[0].item() == pytest.approx(kappa(positive[:1], *means).item())
    assert theirs[0].item() == pytest.approx(kappa(negative[:1], *means).item())


def test_d_prime_by_hand_and_under_scale():
    positive, negative = torch.tensor([3.0, 5.0]), torch.tensor([-1.0, 1.0])  # means 4 and 0, variances 1 and 1
    assert d_prime(positive, negative) == pytest.approx(4)
    assert d_prime(7 * positive + 2, 7 * negative + 2) == pytest.approx(4)
    assert d_prime(torch.ones(3), torch.zeros(3)) == math.inf
    a, b = normal(6, 3) + 1, normal(6, 3, seed=1)
    found = geometry(a, b)
    s = a.mean(0) - b.mean(0)
    assert found.d_prime == pytest.approx(d_prime(a @ s, b @ s))
    assert found.d_prime == pytest.approx(2 / found.kappa_spread)
    assert geometry(5 * a, 5 * b).d_prime == pytest.approx(found.d_prime)


def test_overlap_and_ranking():
    low, high = torch.tensor([0.0, 1.0, 2.0]), torch.tensor([10.0, 11.0, 12.0])
    assert overlap(high, low) == 0
    assert overlap(low, low) == pytest.approx(1)
    assert overlap(torch.ones(2), torch.ones(3)) == 1
    # 49 bins of width 1: bins 0 to 9 and 40 to 49 hold one side each, two of four values of either lie in bin 20
    assert overlap(torch.tensor([0.0, 20.5, 20.6, 1.0]), torch.tensor([49.0, 20.5, 20.6, 48.0])) == pytest.approx(0.5)
    assert auc(high, low) == 1
    assert auc(low, high) == 0
    assert auc(low, low) == pytest.approx(0.5)
    assert auc(torch.tensor([1.0, 3.0]), torch.tensor([1.0, 2.0])) == pytest.approx(2.5 / 4)


def test_a_shared_direction_is_more_stable_the_larger_it_is():
    noise = normal(60, 200)
    weak, strong = noise.clone(), noise.clone()
    weak[:, 0] += 2
    strong[:, 0] += 20
    assert split_half(weak) < split_half(strong) < 1
    assert stability(weak) < stability(strong) < 1
    assert split_half(weak, seed=1) != split_half(weak, seed=2)


def test_pairs_without_a_direction_are_refused_by_name():
    positive, negative = normal(5, 3), normal(5, 3, seed=1)
    with pytest.raises(DataError, match=r"3 pairs: too few. Expected at least 4"):
        geometry(positive[:3], negative[:3])
    negative[2] = positive[2]
    with pytest.raises(DataError, match="pairs c: both sides have the same activations"):
        geometry(positive, negative, ids=list("abcde"))
    with pytest.raises(DataError, match="4 pairs: their differences cancel out"):
        geometry(torch.tensor([[1.0], [-1.0], [1.0], [-1.0]]), torch.zeros(4, 1))
    positive[0, 0] = math.nan
    with pytest.raises(DataError, match="not finite"):
        geometry(positive, negative)
