"""A hub, asked through its own client: each request repeated while that can help, each failure told in words."""

import contextlib
import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

from weightsteer import __version__, progress
from weightsteer.errors import HubError

# Before each further attempt; a hub that is down for longer is worth another run, which goes on where this one ended.
WAITS_S = (1.0, 2.0, 4.0, 8.0)
TIMEOUT_S = 120.0  # without an answer or a byte; the client itself waits forever
PASSING_STATUS = (408, 425, 429, 500, 502, 503, 504)
SHOWN_CHARACTERS = 300  # of what a hub says

Result = TypeVar("Result")


class HubClient:
    """huggingface_hub's client (`api`) for one repository, with a token that the hub knows."""

    def __init__(self, api: Any, repo_id: str, user: str) -> None:
        self.api, self.repo_id, self.user = api, repo_id, user

    @classmethod
    def log_in(cls, repo_id: str, token: str | None) -> "HubClient":
        """The hub with a token that it knows."""
        from huggingface_hub import HfApi

        if token is None:
            raise HubError(
                f"{repo_id}: no hub token was found. Expected one that may write. Run `hf auth login`, or set HF_TOKEN"
            )
        api = HfApi(token=token, library_name="weightsteer", library_version=__version__)
        hub = cls(api, repo_id, "?")
        hub.user = hub.ask("who you are", api.whoami)["name"]
        return hub

    def ask(self, what: str, call: Callable[[], Result], raw: bool = False) -> Result:
        """What `call` returns, repeated while the failure may pass; a HubError when it does not.

        With `raw`, that a repository or a revision is not there is raised as the client says it.
        """
        from huggingface_hub.errors import HTTPError, RepositoryNotFoundError, RevisionNotFoundError

        for wait_s in (*WAITS_S, None):
            try:
                with _quiet_client():
                    return call()
            except (HTTPError, OSError, ValueError, RuntimeError) as error:
                if raw and isinstance(error, RepositoryNotFoundError | RevisionNotFoundError):
                    raise
                problem = Problem.of(error, self.api.token)
                if wait_s is None or not problem.again:
                    self._give_up(what, problem)
                wait_s = max(wait_s, problem.wait_s)
                progress.say(f"{what}: {problem.found}; asking again in {wait_s:g} s")
                time.sleep(wait_s)
        raise AssertionError("the last attempt returns or raises")

    def _give_up(self, what: str, problem: "Problem") -> NoReturn:
        expected, todo = self._advice(problem)
        raise HubError(f"{self.repo_id}: {what}: {problem.found}. {expected}. {todo}") from None

    def _advice(self, problem: "Problem") -> tuple[str, str]:
        """What was expected, and what to do."""
        later = "Run the same command again later: it sends only what is missing"
        match problem.status:
            case 401:
                return "Expected a token that the hub knows", "Run `hf auth login`, or set HF_TOKEN"
            case 403:
                own = f"{self.user}/{self.repo_id.split('/')[1]}"
                return (
                    f"Expected a repository that {self.user} may write to with this token",
                    f"Choose {own}, take a token with write access, or use --create-pr",
                )
            case 404 | 409:
                return f"Expected a repository of a model{self._other_type()}", "Choose another name"
            case _ if problem.status in PASSING_STATUS:
                return "Expected a hub that answers", later
            case None if problem.silent:
                return "Expected a hub that answers", f"Check the network and HF_ENDPOINT. {later}"
        return "Expected it to be taken", "Put right what it names and run the same command again"

    def _other_type(self) -> str:
        """What else goes by this name, as far as the hub tells."""
        from huggingface_hub.errors import HTTPError

        for kind in ("dataset", "space"):
            with contextlib.suppress(HTTPError, OSError):
                self.api.repo_info(self.repo_id, repo_type=kind)
                return f"; this name is a {kind}'s"
        return ""


@dataclass(frozen=True)
class Problem:
    """A failed request."""

    found: str
    status: int | None = None
    silent: bool = False
    """There was no answer, or none that can be read."""
    again: bool = False
    """Whether to ask again at once."""
    wait_s: float = 0.0

    @classmethod
    def of(cls, error: BaseException, token: str) -> "Problem":
        """What the exception of the client, or of hf-xet below it, tells; without the token, should it be quoted."""
        from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled

        cause = error
        while isinstance(cause, RuntimeError) and cause.__cause__ is not None:
            cause = cause.__cause__  # the client wraps what happens in its upload threads
        text = _one_line(str(cause), token)
        if isinstance(cause, HfHubHTTPError):
            status = cause.response.status_code
            said = _one_line(cause.server_message or cause.response.reason_phrase, token)
            after = cause.response.headers.get("Retry-After", "")
            wait_s = min(float(after), TIMEOUT_S) if after.isdigit() else 0.0
            return cls(f"the hub answers {status} ({said})", status, again=status in PASSING_STATUS, wait_s=wait_s)
        if isinstance(cause, OfflineModeIsEnabled):
            return cls("HF_HUB_OFFLINE is set, so the hub may not be asked")
        if isinstance(cause, json.JSONDecodeError):
            return cls("the hub answers something that is no JSON", silent=True, again=True)
        if isinstance(cause, HTTPError):
            return cls(f"the hub does not answer ({type(cause).__name__}: {text})", silent=True, again=True)
        if isinstance(cause, ConnectionError | TimeoutError):
            # hf-xet, which has asked again itself, for minutes; it tells a status in its text only
            answered = re.search(r"\((\d{3}) ", text)
            return cls(f"the storage of the hub failed ({text})", int(answered[1]) if answered else None, silent=True)
        return cls(text)


@contextlib.contextmanager
def _quiet_client() -> Iterator[None]:
    """The hub's client without bars and warnings of its own (they quote signed addresses), and with a time limit."""
    from huggingface_hub.utils import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
        get_session,
        logging,
    )

    session, verbosity, bars = get_session(), logging.get_verbosity(), not are_progress_bars_disabled()
    timeout, session.timeout = session.timeout, TIMEOUT_S
    logging.set_verbosity(logging.CRITICAL)
    if bars:
        disable_progress_bars()
    try:
        yield
    finally:
        session.timeout = timeout
        logging.set_verbosity(verbosity)
        if bars:
            enable_progress_bars()


def _one_line(text: str, token: str) -> str:
    """The beginning of a message on one line, without the token."""
    return " ".join(text.replace(token, "***").split())[:SHOWN_CHARACTERS]
