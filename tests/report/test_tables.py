from typing import Any

from weightsteer.report import tables


def table_of(report: dict[str, Any], name: str) -> tables.EvalTable:
    return next(table for table in tables.eval_tables(report) if table.name == name)


def test_methods_that_fit_abreast_are_one_table(report: dict[str, Any]) -> None:
    table = table_of(report, "sycophancy")
    assert [group.methods for group in table.groups] == [table.methods]
    assert table.groups[0].rows == table.rows


def test_many_methods_are_several_tables_by_their_strengths(comparison: dict[str, Any]) -> None:
    groups = table_of(comparison, "truthfulqa").groups
    assert [group.methods for group in groups] == [
        ["weights", "bias-only", "positive side", "negative side", "random"],
        ["finetuned", "joint", "prompt"],
        ["activations", "activations, all blocks"],
    ]
    assert [[row.k for row in group.rows] for group in groups[1:]] == [
        ["−1", "0", "1"],
        ["−16", "−8", "−4", "0", "4", "8", "16"],
    ]


def test_no_entry_is_lost_among_the_groups(comparison: dict[str, Any]) -> None:
    table = table_of(comparison, "tone")
    whole = {(m, row.k): e for row in table.rows for m, e in zip(table.methods, row.entries, strict=False) if e}
    parts = {
        (m, row.k): e for g in table.groups for row in g.rows for m, e in zip(g.methods, row.entries, strict=False) if e
    }
    assert parts == whole
    assert len(whole) == 6 * 4 + 3 * 2 + 6 + 4 + 4


def test_methods_of_the_same_strengths_are_cut_where_they_do_not_fit(comparison: dict[str, Any]) -> None:
    first = [c for c in comparison["cells"] if c["method"] == "weights"]
    comparison["cells"] = [c for c in comparison["cells"] if c["method"] == "base"]
    comparison["cells"] += [{**c, "method": f"m{i}"} for i in range(12) for c in first]
    groups = table_of(comparison, "truthfulqa").groups
    assert [len(group.methods) for group in groups] == [5, 5, 2]


def test_the_range_over_seeds_stands_beside_the_mean(comparison: dict[str, Any]) -> None:
    table = table_of(comparison, "truthfulqa")
    row = next(row for row in table.rows if row.k == "2")
    entry = row.entries[table.methods.index("weights")]
    assert entry is not None
    assert entry.level == "0.228"
    assert entry.seeds == "seeds 0.208 to 0.248"
    joint = next(row for row in table.rows if row.k == "1").entries[table.methods.index("joint")]
    assert joint is not None
    assert joint.seeds == ""


def test_the_untuned_model_has_a_row_and_is_no_method(comparison: dict[str, Any], report: dict[str, Any]) -> None:
    table = table_of(comparison, "truthfulqa")
    assert "untuned" not in table.methods
    assert table.untuned == tables.Entry("0.630", "+0.120 [+0.070, +0.175]", True)
    assert table.base is not None
    assert table.base.level.startswith("0.510")
    assert table.details.rows[0][0][:2] == ["untuned", "0"]
    assert table_of(report, "sycophancy").untuned is None


def test_methods_stand_in_the_order_of_the_report(comparison: dict[str, Any]) -> None:
    comparison["methods"] = dict(reversed(comparison["methods"].items()))
    assert table_of(comparison, "tone").methods[:2] == ["random", "activations, all blocks"]
