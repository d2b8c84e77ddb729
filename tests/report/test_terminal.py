from typing import Any

from weightsteer.report import summary_table


def line_of(table: str, *words: str) -> str:
    return next(line for line in table.splitlines() if line.lstrip("> ").split()[: len(words)] == list(words))


def test_a_line_per_method_and_k_with_the_change_from_the_base(report: dict[str, Any]) -> None:
    table = summary_table(report)
    assert line_of(table, "base", "0").split("  ")[-1] == "0.583 [0.506, 0.667]"
    assert "+0.179 [+0.127, +0.237]*" in line_of(table, "weights", "2")
    assert "-0.004 [-0.013, +0.007]" in line_of(table, "weights", "-1")
    assert line_of(table, "weights", "-1").startswith("> "), "the chosen line is marked"
    assert "not scored" in line_of(table, "activations", "-4")
    assert "-0.103 [-0.146, -0.055]*" in line_of(table, "merged", "-1")


def test_only_intervals_that_exclude_zero_are_starred(report: dict[str, Any]) -> None:
    assert line_of(summary_table(report), "random", "-2").count("*") == 0
    assert line_of(summary_table(report), "weights", "-4").count("*") == 3


def test_unscored_answers_are_counted(report: dict[str, Any]) -> None:
    assert "151 answers could not be scored" in " ".join(summary_table(report).split())
    for entry in report["cells"]:
        entry["n_unscored"] = 0
    assert "every answer was scored" in summary_table(report)


def test_it_fits_a_terminal_however_many_evals(report: dict[str, Any]) -> None:
    for name in ("second", "third", "fourth with quite a long name that goes on and on"):
        report["evals"][name] = report["evals"]["agreement"]
        report["cells"] += [{**entry, "eval": name} for entry in report["cells"] if entry["eval"] == "agreement"]
    table = summary_table(report)
    assert max(map(len, table.splitlines())) <= 100
    heads = [line.split()[2:] for line in table.splitlines() if line.startswith("method ")]
    assert heads == [
        ["sycophancy", "agreement", "capability"],
        ["second", "third"],
        ["fourth", "with", "quite", "a", "long", "[...]"],
    ]
    assert "−" not in table


def test_nothing_to_show_is_one_sentence() -> None:
    assert summary_table({"format": 1}) == "Nothing was evaluated, so there is no result to report."


def test_many_methods_keep_to_the_width(comparison: dict[str, Any]) -> None:
    table = summary_table(comparison)
    assert max(map(len, table.splitlines())) <= 100
    assert "+0.120 [+0.070, +0.175]*" in line_of(table, "untuned", "0")
    assert "  activations, all blocks     8  " in table
    assert line_of(table, "weights", "-1").startswith("> ")
