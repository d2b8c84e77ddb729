"""Recipes: what is refused and in which words, what --set does, and where paths lead."""

from collections.abc import Callable
from pathlib import Path

import pytest

from weightsteer.errors import RecipeError
from weightsteer.recipe import find_plugin, load_behavior, load_experiment, load_recipe, shipped_recipes
from weightsteer.recipe.plugins import names

METHODS, EVALS = names("methods"), names("evals")
CHOOSE = {"eval": "sycophancy", "goal": "decrease"}


def problems_of(path: Path, *overrides: str) -> list[str]:
    """The lines below the headline of the error that a recipe raises."""
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides)
    head, *problems = str(caught.value).split("\n  ")
    assert head == f"{path}: {len(problems)} problem" + ("s" if len(problems) > 1 else "")
    return problems


@pytest.mark.parametrize("path", sorted(shipped_recipes().glob("*.yaml")), ids=lambda path: path.name)
def test_every_shipped_recipe_is_valid_and_runnable(path: Path):
    assert load_experiment(path).name
    assert path.read_text(encoding="utf-8").startswith("#!/usr/bin/env -S weightsteer run\n")
    assert path.stat().st_mode & 0o111


def test_all_problems_of_a_recipe_are_reported_together(write_recipe: Callable[..., Path]):
    path = write_recipe(
        nam="x",
        model={"source": "m", "dtyp": "float32"},
        methods=[{"name": "weights", "rnk": 8}],
        evals=[{"name": "agreement", "limt": 3}],
        k=[1, 2],
    )
    assert problems_of(path) == [
        "methods[0].rnk: unknown key (did you mean 'rank'?)",
        "evals[0].limt: unknown key (did you mean 'limit'?)",
        "model.dtyp: unknown key (did you mean 'dtype'?)",
        "k: has no 0; every evaluated recipe needs the unsteered model as its reference",
        "nam: unknown key (did you mean 'name'?)",
    ]


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("k=[-1, 1]", "k: has no 0; every evaluated recipe needs the unsteered model as its reference"),
        ("k=[.nan, 0]", "k[0]: Input should be a finite number, found nan"),
        ("k=[0, -.inf]", "k[1]: Input should be a finite number, found -inf"),
        ("k=[0, 1, 1.0]", "k: names a strength twice: [0.0, 1.0, 1.0]"),
        ("k=3", "k: Input should be a list, found 3"),
        ("merge_k=.nan", "merge_k: Input should be a finite number, found nan"),
        ("methods[0].k=[.inf]", "methods[0].k[0]: Input should be a finite number, found inf"),
        ("methods[3].k=[-2]", "methods[3].k: [-2.0]. Expected shares of the training, such as -0.5 or 1"),
        ("methods[0].rank=0", "methods[0].rank: Input should be greater than 0, found 0"),
        ("methods[0].rank=eight", "methods[0].rank: Input should be a valid integer, unable to parse string as an "
         "integer, found 'eight'"),
        ("methods[0].micro_batch_size=3", "methods[0]: micro_batch_size 3 does not divide batch_size 8"),
        ("methods[1].mode=some",
         "methods[1].mode: Input should be 'all', 'after_user', 'generated' or 'answer', found 'some'"),
        ("methods[0].name=weigths", f"methods[0]: no 'weigths' (did you mean 'weights'?). Expected one of {METHODS}"),
        ("evals[1].limit=1", "evals[1].limit: Input should be greater than or equal to 2, found 1"),
        ("evals[1]=null", "evals[1]: found None. Expected a name, or a mapping with a name"),
        ("evals=[]", "evals: found []. Expected a list of names or of mappings with a name"),
        ("evals=[gdc]", f"evals[0]: no 'gdc' (did you mean 'gcd'?). Expected one of {EVALS}"),
        ("model=gpt2", "model: Input should be a mapping, found 'gpt2'"),
        ("model.dtype=int8", "model.dtype: Input should be 'auto', 'float32', 'bfloat16' or 'float16', found 'int8'"),
        ("name=a/b", "name: String should match pattern '^[A-Za-z0-9][A-Za-z0-9._-]*$', found 'a/b'"),
        ("seed=-1", "seed: Input should be greater than or equal to 0, found -1"),
        ("folder=/tmp", "folder: unknown key"),
        ("choose={eval: gcd, goal: less}", "choose.goal: Input should be 'increase' or 'decrease', found 'less'"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_named_with_its_key(write_recipe: Callable[..., Path], override: str, problem: str):
    assert problems_of(write_recipe(), override) == [problem]


@pytest.mark.parametrize("rate", ["-0.1", "0", "[]", "[1e-4, .nan]"])
def test_a_learning_rate_is_positive(write_recipe: Callable[..., Path], rate: str):
    assert all(
        p.startswith("methods[0].learning_rate")
        for p in problems_of(write_recipe(), f"methods[0].learning_rate={rate}")
    )


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"choose": CHOOSE}, "both `choose` and `merge_k` are set; keep one"),
        (
            {"merge_k": None, "choose": {**CHOOSE, "eval": "gcd"}},
            "choose names the eval 'gcd', which is not among evals "
            "['agreement', 'sycophancy', 'capability', 'preference']",
        ),
        (
            {"merge_k": None, "choose": {**CHOOSE, "keep": {"truth": 0.1}}},
            "choose names the eval 'truth', which is not among evals "
            "['agreement', 'sycophancy', 'capability', 'preference']",
        ),
        (
            {"merge_k": None, "choose": {**CHOOSE, "eval": "sycophancy.folow"}},
            "choose names 'sycophancy.folow', but sycophancy has no such metric (did you mean 'follow'?). "
            "Expected one of ['sycophancy', 'follow', 'baseline_accuracy', 'wrong_hint_accuracy']",
        ),
        (
            {"methods": ["prompt"]},
            "a checkpoint is asked for, but 'weights' is not among the methods; only a weight vector can be merged",
        ),
        (
            {"pairs": {"elicit": {}}, "judge": {"kind": "rules"}},
            "pairs.elicit keeps what a judge rates, and no rule rates a behavior; set judge.kind to local or server",
        ),
        (
            {"methods": ["weights", "weights"]},
            "methods: 'weights' is listed twice; merge the two entries, or give one another label",
        ),
    ],
)
def test_keys_that_do_not_go_together(write_recipe: Callable[..., Path], keys: dict, problem: str):
    assert problems_of(write_recipe(**keys)) == [problem]


def test_contradictions_are_reported_together_with_an_unknown_behavior(write_recipe: Callable[..., Path]):
    problems = problems_of(write_recipe(choose={**CHOOSE, "eval": "gcd"}, behavior="sycofancy"))
    assert [p.split()[0] for p in problems] == ["both", "choose", "behavior:"]
    assert problems[2].startswith("behavior: no 'sycofancy.yaml' in ")
    assert "(did you mean 'sycophancy'?). Expected one of [" in problems[2]
    assert "'sycophancy'] or a path ending in .yaml" in problems[2]


def test_a_wrong_name_brings_no_follow_up_problem(write_recipe: Callable[..., Path]):
    assert len(problems_of(write_recipe(methods=["weigths"]))) == 1
    assert len(problems_of(write_recipe(methods=[{"nam": 1}, {"nam": 2}]))) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- 1", "holds list. Expected a mapping of keys to values"),
        ("", "holds NoneType. Expected a mapping of keys to values"),
        ("a: [", "not readable as YAML. while parsing a flow node"),
        ("name: a\nname: b", "not readable as YAML. the key 'name' stands there twice"),
        ("a: !!python/name:os.system", "not readable as YAML. could not determine a constructor"),
    ],
)
def test_a_file_that_is_no_recipe(tmp_path: Path, text: str, message: str):
    path = tmp_path / "r.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert str(caught.value).startswith(f"{path}: {message}")


def test_a_path_that_is_no_file(tmp_path: Path):
    with pytest.raises(RecipeError, match=r"nope.yaml: no such file. Expected a YAML file"):
        load_recipe(tmp_path / "nope.yaml")
    with pytest.raises(RecipeError, match=f"{tmp_path}: is a folder. Expected a YAML file"):
        load_recipe(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(RecipeError, match=r"file/r.yaml: cannot be read \(Not a directory\)"):
        load_recipe(tmp_path / "file" / "r.yaml")


def test_set_reaches_every_kind_of_key(write_recipe: Callable[..., Path]):
    recipe = load_recipe(
        write_recipe(),
        [
            "seed=7",
            "model.dtype=bfloat16",
            "methods[0].rank=8",
            "methods[1].stride=3",  # the entry is a bare name
            "evals.0.limit=2",
            "samples.prompts=[hello]",
            "merge_k=null",
            "k=[2, 0, 1e-4]",  # PyYAML reads 1e-4 as a text
            "methods[0].learning_rate=1e-4",
        ],
    )
    assert (recipe.seed, recipe.model.dtype, recipe.method("weights").rank) == (7, "bfloat16", 8)
    assert recipe.method("activations").stride == 3
    assert (recipe.eval("agreement").limit, recipe.samples.prompts, recipe.merge_k) == (2, ("hello",), None)
    assert recipe.k == (0.0, 1e-4, 2.0)
    assert recipe.method("weights").learning_rates == (1e-4,)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed", "--set seed: expected KEY=VALUE, such as model.source=path/to/model"),
        ("=5", "--set =5: expected KEY=VALUE, such as model.source=path/to/model"),
        ("k[-1]=5", "--set k[-1]=5: expected KEY=VALUE, such as model.source=path/to/model"),
        ("mod el=5", "--set mod el=5: expected KEY=VALUE, such as model.source=path/to/model"),
        ("methods[9].rank=8", "--set methods[9].rank=8: there is no '9' to set in the recipe"),
        ("methods.weihgts.rank=8", "--set methods.weihgts.rank=8: there is no 'weihgts' to set in the recipe"),
        ("model.source.x=1", "--set model.source.x=1: there is no 'x' to set in the recipe"),
        ("k=[1", "--set k=[1: the value is not readable as YAML."),
    ],
)
def test_set_of_a_wrong_path(write_recipe: Callable[..., Path], override: str, message: str):
    with pytest.raises(RecipeError) as caught:
        load_recipe(write_recipe(), [override])
    assert str(caught.value).startswith(message)


def test_set_of_an_unknown_key_is_an_unknown_key(write_recipe: Callable[..., Path]):
    assert problems_of(write_recipe(), "modle.source=x") == ["modle: unknown key (did you mean 'model'?)"]


def test_several_learning_rates(write_recipe: Callable[..., Path]):
    recipe = load_recipe(write_recipe(), ["methods[0].learning_rate=[1e-4, 0.001]"])
    assert recipe.method("weights").learning_rates == (1e-4, 1e-3)


def test_strengths_are_sorted_without_zero_and_a_method_may_have_its_own(write_recipe: Callable[..., Path]):
    recipe = load_recipe(write_recipe(k=[1, 0, -2]), ["methods[1].k=[3, 0, 3, -1]"])
    assert recipe.strengths("weights") == (-2.0, 1.0)
    assert recipe.strengths("activations") == (-1.0, 3.0)
    assert recipe.strengths("finetuned") == (-1, 1)


def test_paths_are_relative_to_the_recipe(write_recipe: Callable[..., Path], monkeypatch: pytest.MonkeyPatch):
    path = write_recipe(
        pairs={"source": "mine.jsonl"},
        model={"source": "some/hub-id", "chat_template": "chat.jinja"},
        evals=[{"name": "agreement", "items": "items.jsonl"}],
        merge_k=None,
    )
    (path.parent / "mine.jsonl").touch()
    monkeypatch.chdir("/")
    recipe = load_recipe(path)
    assert recipe.pairs.source == str(path.parent / "mine.jsonl")
    assert recipe.model.chat_template == path.parent / "chat.jinja"
    assert recipe.eval("agreement").items == path.parent / "items.jsonl"
    assert recipe.model.source == "some/hub-id"


def test_a_dumped_recipe_is_the_same_recipe(write_recipe: Callable[..., Path], tmp_path: Path):
    import yaml

    recipe = load_recipe(write_recipe(merge_k=None, choose={**CHOOSE, "keep": {"capability": 0.02}}))
    again = tmp_path / "again.yaml"
    again.write_text(yaml.safe_dump(recipe.dump(), sort_keys=False), encoding="utf-8")
    assert load_recipe(again) == recipe
    assert recipe.dump()["methods"][0]["rank"] == 4, "the settings of a method file are part of it"


def test_a_recipe_cannot_be_changed(write_recipe: Callable[..., Path]):
    import pydantic

    with pytest.raises(pydantic.ValidationError, match="frozen"):
        load_recipe(write_recipe()).seed = 3


def test_a_behavior_beside_the_recipe_comes_first(write_recipe: Callable[..., Path]):
    path = write_recipe()
    (path.parent / "behaviors").mkdir()
    own = path.parent / "behaviors" / "sycophancy.yaml"
    own.write_text("{name: sycophancy, description: mine, pairs: p.jsonl}", encoding="utf-8")
    behavior = load_behavior(load_recipe(path))
    assert (behavior.description, behavior.pairs) == ("mine", path.parent.resolve() / "behaviors" / "p.jsonl")
    own.write_text("{name: sycophancy, description: mine, pears: p.jsonl}", encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert str(caught.value) == f"{own}: 1 problem\n  pears: unknown key (did you mean 'pairs'?)"


def test_a_method_or_an_eval_that_is_not_there(write_recipe: Callable[..., Path]):
    with pytest.raises(RecipeError, match=r"methods: no 'wieghts' \(did you mean 'weights'\?\). Expected one of \["):
        find_plugin("methods", "wieghts")
    recipe = load_recipe(write_recipe(evals=["agreement"]))
    with pytest.raises(RecipeError, match=r"evals: no 'capability' in this recipe, which has \['agreement'\]; add it"):
        recipe.eval("capability")
