"""A judge behind an OpenAI-compatible server: concurrent, paced, retried, cached."""

import email.utils
import json
import math
import os
import random
import threading
import time
import urllib.parse
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TYPE_CHECKING, Any

from weightsteer import progress
from weightsteer.errors import JudgeError, report_problems
from weightsteer.judge.cache import Reply, ReplyCache
from weightsteer.judge.scales import VERSION, Candidate, Scale, Verdict, ask, read_candidates, read_text
from weightsteer.recipe import JudgePart
from weightsteer.stage import digest

if TYPE_CHECKING:
    import openai

TOP_LOGPROBS = 20  # the most that the API gives
RETRIED_STATUS = {408, 409, 429}  # and 500 to 599
# 0.5 s, 1 s, 2 s ... up to 30 s, each drawn from its upper half so that clients do not come back in step.
BACKOFF_S, LONGEST_BACKOFF_S = 0.5, 30.0
# A server that asks for more has run out of a quota; nobody should wait for that without knowing.
LONGEST_RETRY_AFTER_S = 300.0
SHOWN_CHARACTERS = 300


class _PassingTrouble(Exception):
    """What may be over at the next attempt."""


class ServerJudge:
    """Rates by an OpenAI-compatible server at temperature 0."""

    def __init__(self, part: JudgePart) -> None:
        self.part = part
        self.key = os.environ.get(part.key_variable, "").strip()
        report_problems(JudgeError, "judge", _problems(part, self.key))
        self.url = str(part.url).rstrip("/")
        self.cache = ReplyCache(part.cache or _default_cache())
        self.pace = _Pace(part.requests_per_minute)
        # Some servers refuse what others need; both are learned from the first refusal.
        self.wants_logprobs, self.length_key = True, "max_tokens"

    @property
    def digest(self) -> str:
        """sha256 of all that is asked beside the prompts, and of how replies are read."""
        return digest({"judge": "server", "version": VERSION, **self._request("")})

    def rate(self, prompts: Sequence[str], scale: Scale, label: str = "") -> list[Verdict]:
        """A verdict for every prompt, from the cache where it was asked before.

        Logprobs give the expected score; where the server has none the written answer is read. A JudgeError when the
        server stops answering: the replies so far are in the cache, and the same call goes on from there.
        """
        asked = [ask(prompt, scale) for prompt in prompts]
        unique = list(dict.fromkeys(asked))
        replies = {prompt: reply for prompt in unique if (reply := self.cache.get(self._request(prompt)))}
        missing = [prompt for prompt in unique if prompt not in replies]
        with progress.task(label or "judging", len(unique)) as advance:
            advance(len(replies))
            if missing:
                replies |= self._ask_all(missing, advance)
        return [_read(replies[prompt], scale) for prompt in asked]

    def _request(self, prompt: str) -> dict[str, Any]:
        """Everything that determines a reply."""
        return {
            "url": self.url,
            "model": self.part.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": 0,
            "max_tokens": self.part.max_new_tokens,
            "top_logprobs": TOP_LOGPROBS,
        }

    def _ask_all(self, prompts: Sequence[str], advance: progress.Advance) -> dict[str, Reply]:
        replies: dict[str, Reply] = {}
        stop = threading.Event()
        with self._client() as client, ThreadPoolExecutor(min(self.part.concurrency, len(prompts))) as pool:
            asked = {pool.submit(self._ask, client, prompt, stop): prompt for prompt in prompts}
            try:
                for future in as_completed(asked):
                    replies[asked[future]] = future.result()
                    advance()
            except BaseException as error:
                stop.set()
                pool.shutdown(cancel_futures=True)
                if not isinstance(error, JudgeError):
                    raise
                done = sum(self.cache.get(self._request(prompt)) is not None for prompt in prompts)
                raise JudgeError(
                    f"judge {self.url}: {error}. {done} of {len(prompts)} new replies are in {self.cache.folder}; the "
                    "same command goes on from there"
                ) from None
        return replies

    def _client(self) -> "openai.OpenAI":
        try:
            import openai
        except ImportError:
            raise JudgeError(
                "judge.kind server: the package openai is not installed. Expected the client of OpenAI-compatible "
                "servers. Install it with: pip install 'weightsteer[judge]'"
            ) from None
        # The client insists on a key; servers without one ignore it. Retries are ours: paced, and they can be stopped.
        return openai.OpenAI(base_url=self.url, api_key=self.key or "none", timeout=self.part.timeout_s, max_retries=0)

    def _ask(self, client: "openai.OpenAI", prompt: str, stop: threading.Event) -> Reply:
        """One reply, in the cache before it is returned."""
        attempt = 1
        while True:
            self.pace.wait(stop)
            if stop.is_set():
                raise JudgeError("stopped")
            try:
                reply = self._send(client, prompt)
            except _PassingTrouble as trouble:
                if attempt > self.part.retries:
                    raise JudgeError(
                        f"{trouble}, at the last of {attempt} attempts. Expected a server that answers. See that it "
                        "runs; judge.concurrency, requests_per_minute, timeout_s and retries say how hard it is asked"
                    ) from None
                stop.wait(min(BACKOFF_S * 2 ** (attempt - 1), LONGEST_BACKOFF_S) * random.uniform(0.5, 1))
                attempt += 1
            else:
                self.cache.put(self._request(prompt), reply)
                return reply

    def _send(self, client: "openai.OpenAI", prompt: str) -> Reply:
        import openai

        request = self._request(prompt)
        body = {key: request[key] for key in ("model", "messages", "temperature")}
        body[self.length_key] = request["max_tokens"]
        if self.wants_logprobs:
            body |= {"logprobs": True, "top_logprobs": TOP_LOGPROBS}
        try:
            response = client.chat.completions.with_raw_response.create(**body).http_response
        except openai.APIStatusError as error:
            if self._learns(error, body):
                return self._send(client, prompt)
            raise self._explained(error) from None
        except openai.APITimeoutError:
            raise _PassingTrouble(f"no answer within {self.part.timeout_s:g} s") from None
        except openai.APIConnectionError as error:
            raise _PassingTrouble(f"cannot be reached ({self._shown(str(error.__cause__ or error))})") from None
        try:
            return _parse(response.text)
        except (ValueError, LookupError, TypeError):
            raise _PassingTrouble(f"answers what is no chat completion: {self._shown(response.text)}") from None

    def _learns(self, error: "openai.APIStatusError", body: dict[str, Any]) -> bool:
        """Whether the server refused a field that can be left out or named otherwise, which is then done."""
        said = error.response.text
        if error.status_code not in (400, 422):
            return False
        if "logprobs" in body and "logprobs" in said:
            self.wants_logprobs = False
            return True
        if "max_tokens" in body and "max_completion_tokens" in said:
            self.length_key = "max_completion_tokens"
            return True
        return False

    def _explained(self, error: "openai.APIStatusError") -> Exception:
        status, variable = error.status_code, self.part.key_variable
        found = f"answers {status}: {self._shown(error.response.text)}"
        if status in RETRIED_STATUS or status >= 500:
            wait_s = _retry_after_s(error.response.headers.get("retry-after"))
            if wait_s > LONGEST_RETRY_AFTER_S:
                return JudgeError(
                    f"{found}, and asks to wait {wait_s:.0f} s. Expected at most {LONGEST_RETRY_AFTER_S:.0f} s. Come "
                    "back later, or lower judge.requests_per_minute"
                )
            self.pace.pause(wait_s)
            return _PassingTrouble(found)
        if status in (401, 403):
            holds = "a key that it does not accept" if self.key else "no key"
            return JudgeError(f"{found}. Expected a valid key; {variable} holds {holds}. Set that environment variable")
        if status == 404:
            return JudgeError(
                f"{found}. Expected the model {self.part.model!r} at this address. Check judge.model, and judge.url, "
                "which mostly ends in /v1"
            )
        return JudgeError(
            f"{found}. Expected a chat completion of the model {self.part.model!r}. Check judge.model and the server"
        )

    def _shown(self, text: str) -> str:
        """A line of what the server said, without the key."""
        line = " ".join((text.replace(self.key, "***") if self.key else text).split()) or "nothing"
        return line if len(line) <= SHOWN_CHARACTERS else line[: SHOWN_CHARACTERS - 3] + "..."


class _Pace:
    """When the next request may go: requests evenly spaced, and none while the server wants to be left alone."""

    def __init__(self, requests_per_minute: int | None) -> None:
        self.interval_s = 60 / requests_per_minute if requests_per_minute else 0.0
        self.next = 0.0
        self.lock = threading.Lock()

    def wait(self, stop: threading.Event) -> None:
        """Take the next free moment and wait for it, or until `stop`."""
        with self.lock:
            now = time.monotonic()
            start = max(now, self.next)
            self.next = start + self.interval_s
        stop.wait(start - now)

    def pause(self, seconds: float) -> None:
        """Nobody goes for so long."""
        with self.lock:
            self.next = max(self.next, time.monotonic() + seconds)


def _problems(part: JudgePart, key: str) -> list[str]:
    problems = []
    url = urllib.parse.urlsplit(part.url or "")
    if url.username or url.password or url.query:
        problems.append(
            "url: holds a user name, a password or a query. Expected the base URL alone. Put the key into the "
            f"environment variable {part.key_variable}"
        )
    elif url.scheme not in ("http", "https") or not url.hostname:
        problems.append(f"url: found {part.url}. Expected a base URL. Set it, such as http://127.0.0.1:8000/v1")
    if not part.model:
        problems.append("model: found none. Expected the name under which the server has its model. Set it")
    if not (key.isascii() and key.isprintable()):
        problems.append(
            f"key_variable: {part.key_variable} holds characters that no key has. Expected printable ASCII. Set it anew"
        )
    return problems


def _default_cache() -> Any:
    from weightsteer.models.reference import cache_folder

    return cache_folder() / "judge"


def _parse(text: str) -> Reply:
    """The reply in a chat completion; a ValueError, LookupError or TypeError when it is none."""
    choice = json.loads(text)["choices"][0]
    content = choice["message"]["content"]
    if not isinstance(content, str | None):
        raise TypeError
    tokens = (choice.get("logprobs") or {}).get("content") or []
    top = [Candidate(str(c["token"]), math.exp(c["logprob"])) for c in tokens[0]["top_logprobs"]] if tokens else []
    return Reply(content or "", tuple(top) or None)


def _read(reply: Reply, scale: Scale) -> Verdict:
    if reply.candidates is None:
        return read_text(reply.text, scale)
    return read_candidates(reply.text, reply.candidates, scale)


def _retry_after_s(header: str | None) -> float:
    """Seconds that a Retry-After header asks for, given as seconds or as a date; 0 without one."""
    if not header:
        return 0.0
    try:
        return max(0.0, float(header))
    except ValueError:
        try:
            return max(email.utils.parsedate_to_datetime(header).timestamp() - time.time(), 0.0)
        except ValueError:
            return 0.0
