"""The server judge against a server that misbehaves: what is waited for, what is given up, what is kept."""

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from chat_server import Answer, fails, says, serving

from weightsteer.errors import JudgeError
from weightsteer.judge import server as server_module
from weightsteer.judge.cache import Reply, ReplyCache
from weightsteer.judge.scales import Candidate, Verdict
from weightsteer.judge.server import ServerJudge, _retry_after_s
from weightsteer.recipe import JudgePart

KEY = "sk-very-secret-0123456789"


@pytest.fixture(autouse=True)
def _quick_and_with_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "BACKOFF_S", 0.01)
    monkeypatch.setenv("JUDGE_KEY", KEY)


def open_server(url: str, cache: Path, **keys: Any) -> ServerJudge:
    part = {"kind": "server", "url": url, "model": "m", "key_variable": "JUDGE_KEY", "cache": cache, "retries": 2}
    return ServerJudge(JudgePart.model_validate({**part, **keys}))


def in_turn(*given: Answer) -> Any:
    """The nth request gets the nth answer, all later ones the last."""
    return lambda number, body: given[min(number, len(given)) - 1]


def test_logprobs_give_the_expected_score(tmp_path: Path):
    with serving(in_turn(says("80", {"80": 0.5, "90": 0.25, "Well": 0.25}))) as server:
        verdict = open_server(server.url, tmp_path).rate(["How good?"], "0-100")[0]
    assert verdict.score == pytest.approx((80 * 0.5 + 90 * 0.25) / 0.75)
    _, headers, body = server.asked[0]
    assert headers["authorization"] == f"Bearer {KEY}"
    assert body == {
        "model": "m",
        "messages": [
            {"role": "user", "content": "How good?\n\nReply with one whole number from 0 to 100 and nothing else."}
        ],
        "temperature": 0,
        "max_tokens": 16,
        "logprobs": True,
        "top_logprobs": 20,
    }


def test_without_logprobs_the_text_is_read(tmp_path: Path):
    answers = {"a": says("7"), "b": says("Well, maybe"), "c": says(None)}
    with serving(lambda number, body: answers[body["messages"][0]["content"][0]]) as server:
        verdicts = open_server(server.url, tmp_path).rate(["a", "b", "c", "a"], "0-100")
    assert [verdict.score for verdict in verdicts] == [7, None, None, 7]
    assert "wrote 'Well, maybe'" in str(verdicts[1].unscored)
    assert "wrote nothing" in str(verdicts[2].unscored)
    assert len(server.asked) == 3


def test_a_rerun_asks_nothing(tmp_path: Path):
    with serving(in_turn(says("80", {"80": 0.7, "70": 0.3}))) as server:
        first = open_server(server.url, tmp_path).rate(["x", "y"], "0-100")
        assert open_server(server.url, tmp_path).rate(["y", "x"], "0-100") == first
        assert len(server.asked) == 2
        # Another model is asked anew.
        open_server(server.url, tmp_path, model="n").rate(["x"], "0-100")
        assert len(server.asked) == 3
    assert not list(tmp_path.rglob(".*"))


@pytest.mark.parametrize(
    "damage", ["", '{"request', "[]", '{"request": 1}', '{"request": 1, "reply": {"text": "99", "candidates": null}}']
)
def test_a_damaged_entry_is_asked_anew_and_rewritten(tmp_path: Path, damage: str):
    with serving(in_turn(says("80"))) as server:
        judge = open_server(server.url, tmp_path)
        judge.rate(["x"], "0-100")
        entry = next(tmp_path.rglob("*.json"))
        whole = entry.read_text(encoding="utf-8")
        entry.write_text(damage, encoding="utf-8")
        assert judge.rate(["x"], "0-100")[0].score == 80
        assert len(server.asked) == 2
    assert entry.read_text(encoding="utf-8") == whole


def test_cache_keeps_floats_exactly(tmp_path: Path):
    reply = Reply("8\u2028\U0001f600", (Candidate("8", 0.1 + 0.2), Candidate("é", 1e-300)))
    ReplyCache(tmp_path).put({"a": 1}, reply)
    assert ReplyCache(tmp_path).get({"a": 1}) == reply
    assert ReplyCache(tmp_path).get({"a": 2}) is None


def test_429_is_waited_for_as_long_as_the_server_says(tmp_path: Path):
    with serving(in_turn(fails(429, "slow down", retry_after="1"), says("80"))) as server:
        assert open_server(server.url, tmp_path).rate(["x"], "0-100")[0].score == 80
    (first, *_), (second, *_) = server.asked
    assert second - first >= 1


@pytest.mark.parametrize("trouble", [fails(500), fails(503), (200, "<html>busy</html>", {}), (200, "{}", {}), None])
def test_passing_trouble_is_retried(tmp_path: Path, trouble: Answer):
    with serving(in_turn(trouble, trouble, says("80"))) as server:
        assert open_server(server.url, tmp_path).rate(["x"], "0-100")[0].score == 80
        assert len(server.asked) == 3


@pytest.mark.parametrize(
    ("trouble", "told"),
    [
        (fails(500, "out of memory"), "answers 500: .*out of memory"),
        (fails(429), "answers 429"),
        ((200, "<html>busy</html>", {}), "no chat completion: <html>busy</html>"),
        ((200, '{"choices": [{"message": {"content": 7}}]}', {}), "no chat completion"),
        (None, "cannot be reached"),
    ],
)
def test_lasting_trouble_is_an_error(tmp_path: Path, trouble: Answer, told: str):
    with serving(in_turn(trouble)) as server, pytest.raises(JudgeError, match=told) as error:
        open_server(server.url, tmp_path).rate(["x"], "0-100")
    assert len(server.asked) == 3
    assert "at the last of 3 attempts. Expected a server that answers" in str(error.value)
    assert server.url in str(error.value)


def test_time_out(tmp_path: Path):
    release = threading.Event()

    def hang_once(number: int, body: dict[str, Any]) -> Answer:
        if number == 1:
            release.wait(5)
        return says("80")

    with serving(hang_once) as server:
        assert open_server(server.url, tmp_path, timeout_s=0.2).rate(["x"], "0-100")[0].score == 80
        release.set()
    with (
        serving(lambda number, body: time.sleep(0.4)) as server,
        pytest.raises(JudgeError, match=r"no answer within 0.1 s"),
    ):
        open_server(server.url, tmp_path / "other", timeout_s=0.1, retries=0).rate(["x"], "0-100")


def test_a_server_that_disappears_half_way(tmp_path: Path):
    prompts = [f"prompt {i}" for i in range(10)]
    with serving(in_turn(*[says("80")] * 6, None)) as server:
        judge = open_server(server.url, tmp_path, concurrency=2)
        with pytest.raises(JudgeError) as error:
            judge.rate(prompts, "0-100")
        assert f"6 of 10 new replies are in {tmp_path}; the same command goes on from there" in str(error.value)
        server.behave = in_turn(says("80"))
        before = len(server.asked)
        assert [v.score for v in judge.rate(prompts, "0-100")] == [80] * 10
        assert len(server.asked) == before + 4


def test_nobody_listens(tmp_path: Path):
    with serving(in_turn(None)) as server:
        pass
    with pytest.raises(JudgeError, match=r"cannot be reached .*0 of 1 new replies"):
        open_server(server.url, tmp_path).rate(["x"], "0-100")


@pytest.mark.parametrize(
    ("status", "told"),
    [
        (400, "Expected a chat completion of the model 'm'. Check judge.model and the server"),
        (401, "Expected a valid key; JUDGE_KEY holds a key that it does not accept"),
        (403, "Set that environment variable"),
        (404, "Check judge.model, and judge.url, which mostly ends in /v1"),
    ],
)
def test_what_will_not_pass_is_asked_once_and_never_shows_the_key(tmp_path: Path, status: int, told: str):
    with serving(in_turn(fails(status, f"bad key {KEY}"))) as server, pytest.raises(JudgeError) as error:
        open_server(server.url, tmp_path).rate(["x"], "0-100")
    assert len(server.asked) == 1
    assert f"answers {status}: " in str(error.value)
    assert told in str(error.value)
    assert "bad key ***" in str(error.value)
    assert KEY not in str(error.value) + repr(error.value.__cause__)
    assert not list(tmp_path.rglob("*.json"))


def test_the_key_is_not_on_the_disk_nor_in_the_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with serving(in_turn(says("80"))) as server:
        judge = open_server(server.url, tmp_path)
        judge.rate(["x"], "0-100")
        assert all(KEY not in path.read_text(encoding="utf-8") for path in tmp_path.rglob("*.json"))
        monkeypatch.setenv("JUDGE_KEY", "another")
        assert open_server(server.url, tmp_path).digest == judge.digest


def test_no_key_is_told_where_one_is_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("JUDGE_KEY")
    with (
        serving(in_turn(fails(401, "who are you"))) as server,
        pytest.raises(JudgeError, match="JUDGE_KEY holds no key"),
    ):
        open_server(server.url, tmp_path).rate(["x"], "0-100")


def test_what_a_server_refuses_is_left_out(tmp_path: Path):
    def fussy(number: int, body: dict[str, Any]) -> Answer:
        if "logprobs" in body:
            return fails(400, "logprobs are not supported with this model")
        if "max_tokens" in body:
            return fails(400, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.")
        return says("80")

    with serving(fussy) as server:
        judge = open_server(server.url, tmp_path, concurrency=1)
        assert [v.score for v in judge.rate(["x", "y"], "0-100")] == [80, 80]
        assert len(server.asked) == 4
        assert server.asked[-1][2]["max_completion_tokens"] == 16
        # A new judge knows nothing of that, and asks nothing.
        open_server(server.url, tmp_path).rate(["x", "y"], "0-100")
        assert len(server.asked) == 4


def test_a_wait_beyond_patience_is_told(tmp_path: Path):
    with (
        serving(in_turn(fails(429, "quota", retry_after="3600"))) as server,
        pytest.raises(JudgeError, match=r"asks to wait 3600 s. Expected at most 300 s. Come back later"),
    ):
        open_server(server.url, tmp_path).rate(["x"], "0-100")
    assert len(server.asked) == 1


def test_retry_after_as_seconds_or_date():
    assert _retry_after_s("2.5") == 2.5
    assert _retry_after_s("Fri, 01 Jan 2100 00:00:00 GMT") > 1e9
    assert _retry_after_s("Fri, 01 Jan 1999 00:00:00 GMT") == 0
    assert _retry_after_s("soon") == _retry_after_s(None) == _retry_after_s("nan") == 0


def test_requests_are_concurrent(tmp_path: Path):
    together = threading.Barrier(4, timeout=5)

    def meet(number: int, body: dict[str, Any]) -> Answer:
        together.wait()
        return says("80")

    with serving(meet) as server:
        open_server(server.url, tmp_path, concurrency=4).rate(list("abcd"), "0-100")


def test_requests_are_spaced(tmp_path: Path):
    with serving(in_turn(says("80"))) as server:
        open_server(server.url, tmp_path, requests_per_minute=600).rate(list("abcd"), "0-100")
    times = sorted(moment for moment, _, _ in server.asked)
    assert times[-1] - times[0] >= 0.28


def test_problems_are_told_together_and_without_secrets(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(JudgeError, match=r"judge: 2 problems\n  url: found None.*\n  model: found none"):
        ServerJudge(JudgePart(kind="server"))
    monkeypatch.setenv("JUDGE_KEY", "smart’quote")
    part = JudgePart(kind="server", url="http://me:hush@x/v1", model="m", key_variable="JUDGE_KEY")
    with pytest.raises(JudgeError) as error:
        ServerJudge(part)
    assert "url: holds a user name, a password or a query" in str(error.value)
    assert "JUDGE_KEY holds characters that no key has" in str(error.value)
    assert "hush" not in str(error.value)
    assert "smart" not in str(error.value)


def test_digest_tells_what_changes_verdicts(tmp_path: Path):
    def digest(url: str = "http://a/v1", **keys: Any) -> str:
        return open_server(url, tmp_path, **keys).digest

    assert digest(concurrency=1, retries=9, timeout_s=1) == digest() == digest("http://a/v1/")
    assert len({digest(), digest("http://b/v1"), digest(model="n"), digest(max_new_tokens=4)}) == 4


def test_a_cache_that_cannot_be_written_is_told(tmp_path: Path):
    from weightsteer.errors import StageError

    (tmp_path / "file").write_text("", encoding="utf-8")
    with serving(in_turn(says("80"))) as server, pytest.raises(StageError, match="could not be written"):
        open_server(server.url, tmp_path / "file").rate(["x"], "0-100")


def test_entries_can_be_read_by_people(tmp_path: Path):
    with serving(in_turn(says("80"))) as server:
        assert open_server(server.url, tmp_path).rate(["Wie schön?"], "0-100") == [Verdict(80, "80")]
    entry = json.loads(next(tmp_path.rglob("*.json")).read_text(encoding="utf-8"))
    assert entry["request"]["messages"][0]["content"].startswith("Wie schön?")
    assert entry["reply"]["text"] == "80"
