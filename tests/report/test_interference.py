from typing import Any

from weightsteer.report import interference
from weightsteer.report.theme import LIGHT


def test_color_is_relative_to_the_largest_of_a_column(comparison: dict[str, Any]) -> None:
    shown = interference.matrix(comparison)
    assert shown is not None
    assert [label for label, _ in shown.rows] == ["gcd", "french", "candor", "gcd + french + candor"]
    shares = [[round(cell.share, 2) for cell in cells] for _, cells in shown.rows]
    assert shares[0] == [1.0, -0.02, 0.11]
    assert shares[1] == [-0.13, 1.0, 0.02]
    first = shown.rows[0][1]
    assert (first[0].text, first[0].interval, first[0].significant) == ("+0.310", "[+0.270, +0.354]", True)
    assert not first[2].significant


def test_the_figure_holds_every_number(comparison: dict[str, Any]) -> None:
    axes = interference.draw(comparison, LIGHT).axes[0]
    assert [text.get_text() for text in axes.texts][:4] == ["+0.310", "−0.010", "+0.020", "−0.040"]
    assert [label.get_text() for label in axes.get_xticklabels()][2] == "truthfulqa.\nnon_sycophancy"


def test_a_change_that_was_not_scored_is_said_and_has_no_color(comparison: dict[str, Any]) -> None:
    comparison["interference"] |= {"matrix": [[None, None, None], *comparison["interference"]["matrix"][1:]], "k": -2.0}
    shown = interference.matrix(comparison)
    assert shown is not None
    assert [(cell.text, cell.share, cell.interval) for cell in shown.rows[0][1]] == [("not scored", 0.0, "")] * 3
    words = interference.describe(comparison)
    assert words is not None
    assert "gcd: gcd.accuracy not scored" in words[0]
    assert words[1].startswith("What each vector (rows) does at k = −2 to each metric")
    interference.draw(comparison, LIGHT)


def test_no_matrix_is_no_figure() -> None:
    assert interference.matrix({"format": 2}) is None
    assert interference.describe({"format": 2, "interference": None}) is None
