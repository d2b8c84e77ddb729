"""lm-evaluation-harness: local tasks on a tiny model, what each document gives, and what cannot be run."""

import dataclasses
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pydantic
import pytest
from tiny_models import byte_tokenizer, tiny_language_model

from weightsteer.errors import DataError
from weightsteer.evals import Given
from weightsteer.evals._harness_model import SteeredModel
from weightsteer.evals.harness import METRICS, Item, Settings, read_items, score

needs_harness = pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm_eval is not installed")
COLORS = [("sky", "blue"), ("grass", "green"), ("snow", "white"), ("coal", "black")]


@pytest.fixture(scope="module")
def lm() -> Any:
    return tiny_language_model()


@pytest.fixture
def write_task(tmp_path: Path) -> Callable[..., Path]:
    """Write a task file and its data; keyword arguments replace the file's keys."""

    def write(name: str = "colors", **keys: Any) -> Path:
        data = tmp_path / f"{name}.jsonl"
        rows = [
            {"thing": thing, "right": n, "choices": [color for _, color in COLORS]}
            for n, (thing, _) in enumerate(COLORS)
        ]
        data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        task = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(data)}, "cache_dir": str(tmp_path / "cache")},
            "test_split": "test",
            "output_type": "multiple_choice",
            "doc_to_text": "What color is {{thing}}?",
            "doc_to_choice": "{{choices}}",
            "doc_to_target": "{{right}}",
            "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
            **keys,
        }
        path = tmp_path / f"{name}.yaml"
        path.write_text(json.dumps({key: value for key, value in task.items() if value is not None}), encoding="utf-8")
        return path

    return write


def settings(*tasks: Any, **keys: Any) -> Settings:
    return Settings(name="harness", tasks=tasks, **keys)


@needs_harness
@pytest.mark.parametrize("chat", [True, False])
def test_the_likeliest_option_is_the_one_that_our_own_scores_name(lm: Any, write_task: Callable[..., Path], chat: bool):
    from weightsteer.models.generate import score_options

    path = write_task()
    items = read_items(settings(path), Given())
    assert [item.id for item in items] == [f"colors-{n}" for n in range(4)]
    results = score(lm, items, settings(path, chat=chat), Given())
    prompts = [f"What color is {thing}?" for thing, _ in COLORS]
    plain = byte_tokenizer("{{ messages[0]['content'] }}")
    asked = lm if chat else dataclasses.replace(lm, tokenizer=plain)
    # The harness puts a space between a plain question and its answer.
    options = [[("" if chat else " ") + color for _, color in COLORS]] * 4
    scored = score_options(asked, prompts, options)
    best = [max(range(4), key=lambda n, row=row: row[n][0]) for row in scored]
    assert [r.values["acc"] for r in results] == [float(b == n) for n, b in enumerate(best)]
    assert [r.values["score"] for r in results] == [r.values["acc"] for r in results]
    assert set(results[0].values) == set(METRICS)
    assert results[0].values["exact_match"] is None
    detail = results[0].detail
    assert ("<|user|>" in detail["prompt"]) is chat
    assert "What color is sky?" in detail["prompt"]
    assert set(detail["metrics"]) == {"acc,none", "acc_norm,none"}
    assert detail["harness"] == importlib.import_module("lm_eval").__version__


@needs_harness
def test_our_numbers_are_those_of_the_harness_own_model(lm: Any):
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    pairs = [("The sky is", " blue"), ("The sky is", " green"), ("The sky is ", "red"), ("", "It rains"), ("A", "b")]
    requests = [Instance("loglikelihood", {}, pair, n) for n, pair in enumerate(pairs)]
    own = SteeredModel(lm, 8, chat=False).loglikelihood(requests)
    theirs = HFLM(pretrained=lm.network, tokenizer=lm.tokenizer, batch_size=2).loglikelihood(requests)
    assert [p for p, _ in own] == pytest.approx([p for p, _ in theirs], abs=1e-4)
    assert [greedy for _, greedy in own] == [greedy for _, greedy in theirs]


def test_a_steering_of_the_answer_alone_acts_on_answers_of_unequal_length(lm: Any):
    import torch

    from weightsteer.activations.vector import ActivationVector
    from weightsteer.models.generate import score_options

    torch.manual_seed(0)
    vector = ActivationVector({0: torch.randn(32)}, mode="generated")
    prompts, options = ["Hi?", "A much longer question?"], [("yes", "certainly not"), ("no", "perhaps it is")]
    with vector.applied(lm, 2.0) as steered:
        model = SteeredModel(steered, 5, chat=True)
        contexts = [model.apply_chat_template([{"role": "user", "content": prompt}]) for prompt in prompts]
        requests = [SimpleNamespace(args=(c, o)) for c, choices in zip(contexts, options, strict=True) for o in choices]
        found = [log_p for log_p, _ in model.loglikelihood(requests)]
        expected = [log_p for row in score_options(steered, prompts, options) for log_p, _ in row]
    assert found == pytest.approx(expected, abs=1e-4)
    assert found != pytest.approx(
        [log_p for log_p, _ in SteeredModel(lm, 5, chat=True).loglikelihood(requests)], abs=0.1
    )


def test_likelihoods_by_hand(lm: Any, monkeypatch: pytest.MonkeyPatch):
    import torch

    passes: list[Any] = []

    def path_log_probs(lm: Any, prompts: list[list[int]], paths: list[list[int]]) -> list[Any]:
        passes.extend(zip(prompts, paths, strict=True))
        log_p = torch.full((9, 261), -9.0)
        for step, (letter, value) in enumerate([("a", -1.0), ("b", -2.0)]):  # "ab" is what it says greedily
            log_p[step, lm.tokens(letter)[0]] = value
        return [log_p[: len(path)] for path in paths]

    monkeypatch.setattr("weightsteer.models.paths.path_log_probs", path_log_probs)
    requests = [SimpleNamespace(args=("Q:", text)) for text in ("ab", "a", "ac", "b", "bb")]
    found = SteeredModel(lm, 5, chat=True).loglikelihood(requests)
    assert found == [(-3.0, True), (-1.0, True), (-10.0, False), (-9.0, False), (-11.0, False)]
    # "ab" and "ac", "a" and "b" differ in their last letter alone, which is never fed.
    assert sorted((len(prompt), len(path)) for prompt, path in passes) == [(2, 1), (2, 2), (2, 2)]


@needs_harness
def test_a_limit_is_a_choice_of_documents(lm: Any, write_task: Callable[..., Path]):
    path = write_task()
    items = read_items(settings(path), Given())
    everything = score(lm, items, settings(path), Given())
    some = score(lm, [items[3], items[1]], settings(path), Given())
    assert [r.id for r in some] == ["colors-3", "colors-1"]
    assert some == [everything[3], everything[1]]


@needs_harness
def test_the_system_prompt_is_put_first_also_before_the_description(lm: Any, write_task: Callable[..., Path]):
    path = write_task(description="Answer about colors.")
    items = read_items(settings(path), Given())[:1]
    [result] = score(lm.with_system("Be brief."), items, settings(path), Given())
    assert result.detail["prompt"].startswith("<|system|>Be brief.\n\nAnswer about colors.<|end|><|user|>What color")


@needs_harness
def test_solved_examples_are_the_same_in_every_cell(lm: Any, write_task: Callable[..., Path]):
    path = write_task(fewshot_split="test")
    chosen = settings(path, num_fewshot=2)
    items = read_items(chosen, Given())[:2]
    first, again = (score(lm, items, chosen, Given())[0] for _ in range(2))
    assert first.detail["prompt"] == again.detail["prompt"]
    assert first.detail["prompt"].count("<|user|>") == 3


@needs_harness
def test_a_steered_model_is_what_is_asked(lm: Any, write_task: Callable[..., Path]):
    path = write_task()
    items = read_items(settings(path), Given())
    other = tiny_language_model(seed=5)
    assert score(lm, items, settings(path), Given()) != score(other, items, settings(path), Given())


GENERATED = {
    "output_type": "generate_until",
    "doc_to_choice": None,
    "doc_to_target": "{{choices[right]}}",
    "metric_list": [{"metric": "exact_match"}],
    "generation_kwargs": {"until": ["."], "max_gen_toks": 4},
    "filter_list": [
        {"name": "first", "filter": [{"function": "take_first"}]},
        {"name": "word", "filter": [{"function": "regex", "regex_pattern": "([a-z]+)"}, {"function": "take_first"}]},
    ],
}


@needs_harness
def test_written_answers_and_their_filters(lm: Any, write_task: Callable[..., Path], monkeypatch: pytest.MonkeyPatch):
    def generate_until(self: Any, requests: Any) -> list[str]:
        assert [request.args[1]["max_gen_toks"] for request in requests] == [4] * 4
        return ["blue", " green!", "Snow", "black"]

    monkeypatch.setattr(SteeredModel, "generate_until", generate_until)
    path = write_task(**GENERATED)
    items = read_items(settings(path), Given())
    results = score(lm, items, settings(path), Given())
    assert [r.values["score"] for r in results] == [1.0, 0.0, 0.0, 1.0]
    assert results[1].detail["metrics"] == {"exact_match,first": 0.0, "exact_match,word": 1.0}
    results = score(lm, items, settings(path, metric="exact_match,word"), Given())
    assert [r.values["score"] for r in results] == [1.0, 1.0, 0.0, 1.0]
    with pytest.raises(DataError, match=r"task colors: found the metrics \['exact_match', .*Expected f1. Set metric"):
        score(lm, items, settings(path, metric="f1"), Given())


@needs_harness
def test_answers_really_written(lm: Any, write_task: Callable[..., Path]):
    path = write_task(**{**GENERATED, "generation_kwargs": {"until": [], "max_gen_toks": 4}})
    results = score(lm, read_items(settings(path), Given()), settings(path), Given())
    assert all(r.values["exact_match"] == 0.0 for r in results)
    assert all(0 < len(r.detail["answers"][0]) <= 16 for r in results)


def test_answers_end_before_a_stop_string(lm: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("weightsteer.models.paths.greedy_paths", lambda lm, prompts, n: [lm.tokens("one. two\nthree")])
    model = SteeredModel(lm, 5, chat=True)
    asked = {stop: model.generate_until([SimpleNamespace(args=("Q", {"until": stop}))])[0] for stop in (".", "\n", "z")}
    assert asked == {".": "one", "\n": "one. two", "z": "one. two\nthree"}


def test_a_start_of_the_answer_stands_after_the_generation_prompt(lm: Any):
    model = SteeredModel(lm, 5, chat=True)
    history = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "The"}]
    assert model.apply_chat_template(history, add_generation_prompt=False) == lm.chat("Q") + "The"


def test_whole_texts(lm: Any):
    from weightsteer.models.generate import score_texts

    [found] = SteeredModel(lm, 5, chat=False).loglikelihood_rolling([SimpleNamespace(args=("It rains.",))])
    assert found == score_texts(lm, ["It rains."])[0][0]


def test_requests_that_cannot_be_answered(lm: Any):
    model = SteeredModel(lm, 5, chat=False)
    with pytest.raises(DataError, match=r"found a question of 2101 tokens .* Expected at most 2048, which the model"):
        model.loglikelihood([SimpleNamespace(args=("x" * 2100, "y"))])
    with pytest.raises(DataError, match=r"a task samples its answers. Expected do_sample: false"):
        model.generate_until([SimpleNamespace(args=("x", {"do_sample": True, "temperature": 0.7}))])


@needs_harness
def test_tasks_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from lm_eval import tasks

    # The index of 14,000 task files takes longer to read than all these tests.
    manager = SimpleNamespace(all_tasks=["gsm8k", "mmlu"], load=offline)
    monkeypatch.setattr(tasks, "TaskManager", lambda **options: manager)
    with pytest.raises(DataError) as caught:
        read_items(settings("gsm8", tmp_path / "none.yaml"), Given())
    assert str(caught.value).split("\n  ") == [
        "harness: 2 problems",
        "tasks: no 'gsm8' (did you mean 'gsm8k'?). Expected a task of the harness, or a task file ending in .yaml",
        f"tasks: {tmp_path / 'none.yaml'}: no such file. Expected a task file of the harness",
    ]
    with pytest.raises(
        DataError, match=r"task gsm8k: it or its data cannot be loaded \(ConnectionError: Couldn't reach"
    ):
        read_items(settings("gsm8k"), Given())


def offline(tasks: list[str]) -> Any:
    raise ConnectionError(f"Couldn't reach {tasks} on the Hub")


@needs_harness
def test_data_that_is_not_there(tmp_path: Path, write_task: Callable[..., Path]):
    path = write_task("gone", dataset_kwargs={"data_files": {"test": str(tmp_path / "no.jsonl")}})
    with pytest.raises(
        DataError, match=r"gone.yaml: it or its data cannot be loaded \(FileNotFoundError: Unable to find"
    ):
        read_items(settings(path), Given())
    (tmp_path / "no.jsonl").write_text("no JSON", encoding="utf-8")
    with pytest.raises(DataError, match=r"gone.yaml: it or its data cannot be loaded \(DatasetGenerationError: "):
        read_items(settings(path), Given())
    path.write_text("task: [", encoding="utf-8")
    with pytest.raises(DataError, match=r"gone.yaml: it or its data cannot be loaded \(ParserError: "):
        read_items(settings(path), Given())


@needs_harness
def test_examples_for_a_task_that_takes_none(write_task: Callable[..., Path]):
    with pytest.raises(DataError, match=r"task colors takes no examples, found num_fewshot 2. Expected 0 or none"):
        read_items(settings(write_task(num_fewshot=0), num_fewshot=2), Given())


@needs_harness
def test_a_task_that_is_named_twice(write_task: Callable[..., Path]):
    first, second = write_task(), write_task("more", task="colors")
    with pytest.raises(DataError, match=r"tasks: found colors twice. Expected each task once. Remove .*more.yaml"):
        read_items(settings(first, second), Given())


def test_without_the_harness(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        DataError, match=r"lm_eval is not installed. .*Install it: pip install 'weightsteer\[harness\]'"
    ):
        read_items(settings("mmlu"), Given())


def test_items_are_not_for_this_eval(tmp_path: Path):
    with pytest.raises(DataError, match=r"harness: found items .*x.jsonl. Expected a task file, which names its data"):
        read_items(settings("mmlu", items=tmp_path / "x.jsonl"), Given())


def test_task_files_are_paths_and_names_are_names():
    assert settings("mmlu", "my/task.yaml").tasks == ("mmlu", Path("my/task.yaml"))
    with pytest.raises(pydantic.ValidationError, match="at least 1 item"):
        settings()


def test_no_number_is_better_when_higher():
    from weightsteer.evals.harness import _item_score

    task = SimpleNamespace(task_name="t", higher_is_better=lambda: {"ppl": False})
    sample = {"metrics": ["ppl", "pair"], "ppl": -3.0, "pair": (1, 2), "filter": "none"}
    with pytest.raises(
        DataError, match=r"task t: found the metrics \['ppl', 'ppl,none'\]. Expected one that is better"
    ):
        _item_score(Item("t-0", task, 0), [sample], None, "0")
