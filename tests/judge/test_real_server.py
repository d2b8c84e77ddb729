"""The server judge against `transformers serve`, an OpenAI-compatible server in a process of its own."""

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from speaker import write_speaker

from weightsteer.errors import JudgeError
from weightsteer.judge.server import ServerJudge
from weightsteer.recipe import JudgePart

NEEDS = ("fastapi", "uvicorn", "openai")
pytestmark = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in NEEDS),
    reason=f"`transformers serve` needs {', '.join(NEEDS)}: pip install 'transformers[serving]'",
)
START_S = 120


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], JudgePart]]:
    """The server's process, which says 73 to everything, and a judge that asks it."""
    folder, log = write_speaker(tmp_path / "model", "73"), tmp_path / "server.log"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", "from transformers.cli.transformers import main; main()"]
    arguments = ["serve", str(folder), "--device", "cpu", "--host", "127.0.0.1", "--port", str(port)]
    with log.open("wb") as output:
        process = subprocess.Popen([*command, *arguments], stdout=output, stderr=output, env={**os.environ})
    try:
        deadline = time.monotonic() + START_S
        while not _is_up(port):
            assert process.poll() is None, log.read_text(encoding="utf-8")
            assert time.monotonic() < deadline, log.read_text(encoding="utf-8")
            time.sleep(0.2)
        url, cache = f"http://127.0.0.1:{port}/v1", tmp_path / "cache"
        yield process, JudgePart(kind="server", url=url, model=str(folder), cache=cache, retries=0, concurrency=2)
    finally:
        process.kill()
        process.wait()


def _is_up(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1):
            return True
    except (OSError, urllib.error.URLError):
        return False


def test_a_real_server_rates_and_disappears(served: tuple[subprocess.Popen[bytes], JudgePart]):
    process, part = served
    judge = ServerJudge(part)
    # It gives no logprobs, so the written number is read; on another scale the same words are no answer.
    assert [verdict.score for verdict in judge.rate(["How good?", "How bad?"], "0-100")] == [73, 73]
    unread = judge.rate(["How good?"], "yes-no")[0]
    assert (unread.score, unread.unscored) == (None, "wrote '73', which is no answer on yes-no")
    with pytest.raises(JudgeError, match=r"answers 400: .*other"):
        ServerJudge(part.model_copy(update={"model": "other"})).rate(["How good?"], "0-100")
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert judge.rate(["How good?"], "0-100")[0].score == 73
    with pytest.raises(JudgeError, match=r"cannot be reached .*0 of 1 new replies"):
        judge.rate(["How good?", "How new?"], "0-100")
