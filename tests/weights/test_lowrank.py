import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from weightsteer.errors import AdapterError
from weightsteer.weights.lowrank import LowRank

sizes = st.integers(1, 6)
factors = st.floats(-8, 8, allow_subnormal=False)


@st.composite
def lowranks(draw, count: int = 1) -> list[LowRank]:
    """`count` changes of one parameter, each of its own rank, some of them over several experts."""
    experts = draw(st.sampled_from([(), (1,), (3,)]))
    d_out, d_in, seed = draw(sizes), draw(sizes), draw(st.integers(0, 2**31))
    generator = torch.Generator().manual_seed(seed)
    return [
        LowRank(
            torch.randn(*experts, d_out, rank, generator=generator),
            torch.randn(*experts, rank, d_in, generator=generator),
        )
        for rank in draw(st.lists(sizes, min_size=count, max_size=count))
    ]


def assert_equal_change(left: LowRank, right: torch.Tensor) -> None:
    torch.testing.assert_close(left.dense(), right, rtol=1e-5, atol=1e-4)


@settings(deadline=None)
@given(lowranks(count=2), factors)
def test_the_algebra_is_that_of_the_dense_changes(pair, factor):
    a, b = pair
    assert_equal_change(a - b, a.dense() - b.dense())
    assert_equal_change((a - b) + b, a.dense())
    assert_equal_change(factor * (a + b), (factor * a + b * factor).dense())
    assert_equal_change(-a, -a.dense())
    assert (a + b).rank == a.rank + b.rank


@settings(deadline=None)
@given(lowranks(count=2))
def test_inner_product_and_norm_equal_the_dense_ones(pair):
    a, b = pair
    dense_a, dense_b = a.dense().double(), b.dense().double()
    assert a.inner(b) == pytest.approx((dense_a * dense_b).sum().item(), rel=1e-5, abs=1e-4)
    assert a.norm() == pytest.approx(dense_a.norm().item(), rel=1e-5, abs=1e-5)
    assert (a - a).norm() <= 1e-6 * (1 + a.norm())


@settings(deadline=None)
@given(lowranks(count=2))
def test_compressing_to_the_full_rank_changes_nothing(pair):
    a, b = pair
    a = a + b + a  # more columns than the rank of the product
    full = min(a.shape[-2:])
    for smaller, retained in (a.compress(rank=full), a.compress(energy=1.0), a.compress(rank=a.rank)):
        assert_equal_change(smaller, a.dense())
        assert retained == pytest.approx(1.0)
    assert a.compress(energy=1.0)[0].rank <= full


@settings(deadline=None)
@given(lowranks(), st.integers(1, 5))
def test_compression_is_the_truncated_svd_and_reports_what_it_keeps(one, rank):
    (a,) = one
    smaller, retained = a.compress(rank=rank)
    u, s, vh = torch.linalg.svd(a.dense().double(), full_matrices=False)
    s[..., rank:] = 0
    assert_equal_change(smaller, (u * s.unsqueeze(-2) @ vh).float())
    assert smaller.rank <= rank
    assert retained == pytest.approx((smaller.norm() / a.norm()) ** 2, abs=1e-4)


@settings(deadline=None)
@given(lowranks(), st.floats(0.05, 1.0))
def test_energy_picks_the_fewest_columns_that_retain_it(one, energy):
    (a,) = one
    smaller, retained = a.compress(energy=energy)
    assert retained >= energy - 1e-9
    if smaller.rank > 1:
        assert a.compress(rank=smaller.rank - 1)[1] < energy


def test_a_change_of_zero_can_be_compressed():
    zero = LowRank(torch.zeros(4, 3), torch.zeros(3, 5))
    smaller, retained = zero.compress(energy=0.99)
    assert (smaller.rank, retained, smaller.norm()) == (1, 1.0, 0.0)


def test_inner_products_are_accumulated_in_float64():
    # In float32 the small element is lost beside the large one: 1e8 + 1 = 1e8.
    long, one = torch.tensor([[1e4], [1.0]]), torch.ones(1, 1)
    for change in (LowRank(long, one), LowRank(one, long.T)):
        assert change.inner(change) == 1e8 + 1


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({}, "rank=None and energy=None"),
        ({"rank": 2, "energy": 0.5}, "rank=2 and energy=0.5"),
        ({"rank": 0}, "rank is 0"),
        ({"energy": 1.5}, "energy is 1.5"),
    ],
)
def test_what_cannot_be_compressed_to_is_refused(arguments, text):
    with pytest.raises(AdapterError, match=text):
        LowRank(torch.ones(2, 3), torch.ones(3, 2)).compress(**arguments)


def test_changes_of_different_parameters_are_not_combined():
    a = LowRank(torch.ones(2, 1), torch.ones(1, 3))
    with pytest.raises(AdapterError, match=r"\[2, 3\] \(linear\) and \[3, 2\] \(linear\)"):
        a + LowRank(torch.ones(3, 1), torch.ones(1, 2))
    with pytest.raises(AdapterError, match=r"\[2, 3\] \(linear\) and \[2, 3\] \(embedding\)"):
        a.inner(LowRank(torch.ones(2, 1), torch.ones(1, 3), "embedding"))
