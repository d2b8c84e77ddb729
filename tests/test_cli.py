"""The command line: exit codes, what is printed, and that each verb is its function."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from weightsteer import __version__, cli
from weightsteer.pipeline import run
from weightsteer.recipe import load_recipe
from weightsteer.weights.vector import WeightVector

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Call:
    """Run the program in this process: (exit code, stdout, stderr)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["weightsteer", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        said = capsys.readouterr()
        return int(caught.value.code or 0), said.out, said.err

    return run


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, model_folder: Path, pairs_file: Path) -> Path:
    """A finished run of the weight vector alone; its recipe lies beside it."""
    folder = tmp_path_factory.mktemp("cli")
    recipe = {
        "name": "tiny",
        "model": {"source": str(model_folder), "dtype": "float32"},
        "behavior": "sycophancy",
        "pairs": {"source": str(pairs_file)},
        "methods": [{"name": "weights", "rank": 4, "epochs": 1, "learning_rate": 1e-2, "dtype": "float32"}],
        "k": [-1, 0, 1],
        "evals": [{"name": "agreement", "limit": 8}],
        "merge_k": 1.0,
        "samples": {"prompts": []},
    }
    (folder / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    return run(load_recipe(folder / "recipe.yaml"), folder / "out").folder


def test_help_names_every_verb(call: Call):
    code, out, _ = call("--help")
    assert code == 0
    for verb in ("check", "run", "combine", "merge", "verify", "eval", "show", "push"):
        assert f"\n  {verb} " in out
        assert call(verb, "--help")[0] == 0


def test_version(call: Call):
    assert call("--version") == (0, f"{__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nope"], "No such command 'nope'"),
        (["run"], "Missing argument 'RECIPE'"),
        (["run", "x.yaml", "--nope"], "No such option: --nope"),
        (["eval", "m", "agreement", "--limit", "1"], "Invalid value for '--limit'"),
        (["merge", "m", "v", "--out", "o", "--k", "two"], "Invalid value for '--k'"),
    ],
)
def test_a_wrong_command_line(call: Call, arguments: list[str], message: str):
    code, out, err = call(*arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err


def test_bad_input_is_told_without_a_traceback(call: Call, tmp_path: Path):
    assert call("run", tmp_path / "no.yaml") == (
        2,
        "",
        f"Error: {tmp_path / 'no.yaml'}: no such file. Expected a YAML file\n",
    )
    assert call("eval", tmp_path, "nope")[0] == 2
    assert call("show", tmp_path / "no")[0] == 2
    code, out, err = call("combine", "a", "b=1", "--out", tmp_path / "o")
    assert (code, out, err) == (2, "", "Error: a: expected ADAPTER=WEIGHT, such as runs/a=-1\n")


def test_a_bug_keeps_its_traceback(call: Call, monkeypatch: pytest.MonkeyPatch):
    def broken(*arguments: Any, **options: Any) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("weightsteer.recipe.load_experiment", broken)
    monkeypatch.setattr(sys, "argv", ["weightsteer", "check", "x.yaml"])
    with pytest.raises(ZeroDivisionError, match="a bug"):
        cli.main()


def test_ctrl_c(call: Call, monkeypatch: pytest.MonkeyPatch):
    def interrupted(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("weightsteer.recipe.load_experiment", interrupted)
    assert call("check", "x.yaml") == (
        130, "", "Interrupted. What is finished is kept: the same command goes on from here.\n",
    )  # fmt: skip


def test_check_shows_the_stages(call: Call, finished: Path, tmp_path: Path):
    recipe = finished.parent / "recipe.yaml"
    code, out, err = call("check", recipe, "--out", finished)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == f"{recipe}: ok. 20 pairs, 1 methods, 1 evals"
    assert [line.split() for line in lines[1:]] == [
        ["pairs", "1/1"], ["fit", "3/3"], ["sweep", "3/3"], ["merge", "1/1"], ["report", "1/1"],
        ["in", str(finished)],
    ]  # fmt: skip
    code, out, _ = call("check", recipe, "--out", tmp_path, "--json", "--set", "seed=3")
    found = json.loads(out)
    assert (code, found["recipe"]["seed"], found["pairs"], found["stages"][0]) == (0, 3, 20, ["pairs", 0, 1])


def test_check_of_a_recipe_with_problems(call: Call, finished: Path):
    recipe = finished.parent / "recipe.yaml"
    code, out, err = call("check", recipe, "--set", "methods[0].rnk=3", "--set", "k=[1]")
    assert (code, out) == (2, "")
    assert err == (
        f"Error: {recipe}: 2 problems\n  methods[0].rnk: unknown key (did you mean 'rank'?)\n"
        "  k: has no 0; every evaluated recipe needs the unsteered model as its reference\n"
    )


def test_run_ends_with_a_table_and_the_report(call: Call, finished: Path):
    code, out, err = call("run", finished.parent / "recipe.yaml", "--out", finished)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert any(line.split()[:2] == ["base", "0"] for line in lines)
    assert f"Checkpoint  {finished / 'merged'}" in lines
    assert f"Report      {finished / 'report' / 'report.html'}" in lines
    assert lines[-1] == "Everything was done already."


def test_run_as_json(call: Call, finished: Path):
    code, out, err = call("run", finished.parent / "recipe.yaml", "--out", finished, "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["name"] == "tiny"


def test_run_until(call: Call, finished: Path, tmp_path: Path):
    code, out, err = call("run", finished.parent / "recipe.yaml", "--out", tmp_path / "o", "--until", "pairs")
    assert (code, out, err) == (0, f"Stopped after pairs: {tmp_path / 'o'}\n", "[1/9] pairs\n")
    code, out, err = call(
        "run", finished.parent / "recipe.yaml", "--out", tmp_path / "o", "--until", "pairs", "--quiet"
    )
    assert err == ""
    assert call("run", finished.parent / "recipe.yaml", "--until", "nope")[0] == 2


def test_combine_is_the_contrast(call: Call, finished: Path, tmp_path: Path):
    sides = [finished / "weights" / side for side in ("positive", "negative")]
    code, out, _ = call("combine", f"{sides[0]}=1", f"{sides[1]}=-1", "--out", tmp_path / "v")
    vector = WeightVector.load(tmp_path / "v")
    assert (code, out) == (0, f"{tmp_path / 'v'}: {len(vector.entries)} parameters, norm {vector.norm():.4g}\n")
    assert vector.cosine(WeightVector.load(finished / "weights" / "vector")) == pytest.approx(1, abs=1e-6)
    code, out, _ = call("combine", f"{sides[0]}=2", "--out", tmp_path / "w", "--json")
    assert json.loads(out)["norm"] == pytest.approx(2 * WeightVector.load(sides[0]).norm())


def test_merge_writes_the_checkpoint_of_the_run(call: Call, finished: Path, tmp_path: Path, model_folder: Path):
    vector = finished / "weights" / "vector"
    code, out, err = call("merge", model_folder, vector, "--k", 1, "--out", tmp_path / "m", "--quiet")
    assert (code, err) == (0, "")
    assert out.startswith(f"{tmp_path / 'm'}: 14 of 21 tensors changed, ")
    for shard in (finished / "merged").glob("*.safetensors"):
        assert (tmp_path / "m" / shard.name).read_bytes() == shard.read_bytes()
    assert call("merge", model_folder, f"{vector}=1", "--out", tmp_path / "n", "--quiet")[0] == 0
    assert (tmp_path / "n" / shard.name).read_bytes() == shard.read_bytes()


def test_verify_has_three_answers(call: Call, finished: Path, tmp_path: Path):
    import shutil

    assert call("verify", finished / "merged") == (0, f"{finished / 'merged'}: ok\n", "")
    broken = Path(shutil.copytree(finished / "merged", tmp_path / "broken"))
    shard = max(broken.glob("*.safetensors"))
    data = bytearray(shard.read_bytes())
    data[-2] ^= 64
    shard.write_bytes(bytes(data))
    code, out, _ = call("verify", broken)
    assert code == 1
    assert out.startswith(f"{broken}: failed\n")
    code, out, _ = call("verify", tmp_path, "--json")
    assert (code, json.loads(out)["outcome"]) == (3, "could not check")


def test_eval_of_a_model_and_of_a_steered_model(call: Call, finished: Path, model_folder: Path):
    code, out, err = call("eval", model_folder, "agreement", "--limit", 8, "--json")
    assert code == 0
    [plain] = json.loads(out)
    assert (plain["n"], plain["method"], plain["k"]) == (8, "base", 0.0)
    vector = finished / "weights" / "vector"
    code, out, err = call(
        "eval", model_folder, "agreement", "--limit", 8, "--vector", vector, "--k", -2, "--json", "--quiet"
    )
    [steered] = json.loads(out)
    assert (steered["method"], steered["k"]) == (str(vector), -2.0)
    assert steered["metrics"]["log_odds"]["mean"] != plain["metrics"]["log_odds"]["mean"]
    code, out, err = call("eval", model_folder, "agreement", "capability", "--limit", 8, "--quiet")
    assert (code, err) == (0, "")
    assert out.startswith("agreement (n = 8, unscored 0)\n  log_odds ")
    assert "capability (n = 8, unscored 0)\n" in out


def test_monitor_measures_a_run_along_vectors(call: Call, finished: Path, tmp_path: Path, model_folder: Path):
    vector = finished / "weights" / "vector"
    named = tmp_path / "seed=1"
    named.symlink_to(vector)
    code, out, err = call(
        "monitor", finished / "weights" / "positive", "--vector", f"mine={named}", "--base", model_folder,
        "--out", tmp_path / "page", "--quiet",
    )  # fmt: skip
    assert (code, err) == (0, "")
    cosine = WeightVector.load(finished / "weights" / "positive").cosine(WeightVector.load(vector))
    [line] = [line for line in out.splitlines() if line.startswith("mine ")]
    assert float(line.split()[1].replace("−", "-")) == pytest.approx(cosine, abs=1e-3)
    assert (tmp_path / "page" / "monitor.html").is_file()
    code, _, err = call("monitor", finished / "weights", "--vector", tmp_path / "nope")
    assert code == 2
    assert "nope: no such folder. Expected FOLDER or NAME=FOLDER" in err


def test_elicit_says_why_nothing_was_kept(call: Call, tmp_path: Path, model_folder: Path):
    """A random model answers and rates at random: no pair is left, and the table says where the answers went."""
    trait = Path(__file__).parent.parent / "recipes" / "behaviors" / "formality.yaml"
    code, out, err = call(
        "elicit", trait, "--model", model_folder, "--out", tmp_path / "e", "--questions", 1, "--samples", 1,
        "--max-new-tokens", 4, "--quiet",
    )  # fmt: skip
    assert (code, out) == (2, "")
    assert "sampled" in err
    code, _, err = call("elicit", tmp_path / "no.yaml", "--model", model_folder, "--out", tmp_path / "e")
    assert code == 2
    assert "no.yaml: no such file" in err


def test_show_tells_what_a_path_is(call: Call, finished: Path, model_folder: Path):
    vector = finished / "weights" / "vector"
    for path in (finished.parent / "recipe.yaml", vector, finished / "weights" / "positive", finished / "merged",
                 model_folder, finished / "evals" / "agreement" / "base" / "k=0"):  # fmt: skip
        code, out, err = call("show", path)
        assert (code, err) == (0, ""), path
        assert out.strip()
        assert json.loads(call("show", path, "--json")[1])
    code, out, _ = call("show", vector, finished / "weights" / "positive", "--json")
    assert "cosine" in out


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["run", "--help"], ["check", "RECIPE"]])
def test_starting_loads_neither_torch_nor_transformers(finished: Path, arguments: list[str]):
    recipe = str(finished.parent / "recipe.yaml")
    script = (
        "import sys\nfrom weightsteer.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        "heavy = {'torch', 'transformers', 'peft', 'trl', 'datasets', 'scipy', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(', '.join(sorted(heavy)) or 0)"
    )
    arguments = [recipe if argument == "RECIPE" else argument for argument in arguments]
    found = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stderr) == (0, "")
