"""Publishing, with the hub's real client against a hub on the loopback device."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hub_server import HANG_S, Hub, Request, serve
from published_run import K, write_run

from weightsteer.errors import HubError
from weightsteer.hub import client as hub_client
from weightsteer.hub.push import push

TOKEN = "hf_" + "aB3" * 12
OTHERS_TOKEN = "hf_" + "zZ9" * 12
SOURCES = Path(__file__).resolve().parents[2]
COMMIT = r"POST /api/models/jane/calm/commit/"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home folder whose name must not get out."""
    return tmp_path_factory.mktemp("home") / "jane.doe"


@pytest.fixture(scope="module")
def run(home: Path) -> Path:
    """Not to be changed."""
    return write_run(home / "runs" / "tiny")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: Path) -> Iterator[Hub]:
    """A hub that the client of this process talks to, with jane's token, by LFS; nobody waits before a retry."""
    from huggingface_hub import constants
    from huggingface_hub.utils import _http, close_session

    with serve(tmp_path / "hub", {TOKEN: "jane", OTHERS_TOKEN: "john"}) as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setattr(_http, "time", SimpleNamespace(sleep=lambda seconds: None))
        monkeypatch.setattr(hub_client, "WAITS_S", (0.0, 0.0))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setenv("HOME", str(home))
        close_session()
        yield hub
        close_session()


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    """A checkpoint to be changed, whose base is still where it was."""
    shutil.copytree(run / "merged", tmp_path / "merged")
    return tmp_path / "merged"


def commits(hub: Hub) -> list[Request]:
    return [request for request in hub.requests if "/commit/" in request.path and request.status == 200]


def kept_secret(hub: Hub, home: Path) -> bool:
    """Whether nothing that arrived, and nothing that was stored, holds the token or the home folder."""
    arrived = b"".join(request.body + request.path.encode() for request in hub.requests)
    stored = b"".join(b"".join(hub.files(id).values()) for kind, id in hub.repos if kind == "model")
    return not any(secret in arrived + stored for secret in (TOKEN.encode(), home.name.encode(), b"jane.doe"))


def test_a_checkpoint_arrives_whole_in_one_commit_and_verifies_there(hub: Hub, run: Path, tmp_path: Path) -> None:
    from weightsteer.merging.verify import verify

    pushed = push(run / "merged", "jane/calm")
    files = hub.files("jane/calm")
    assert len(commits(hub)) == 1
    assert set(pushed.sent) == set(pushed.files) == set(files) - {".gitattributes"}
    assert pushed.url == f"{hub.url}/jane/calm"
    for name in ("config.json", "tokenizer.json", "model-00001-of-00004.safetensors"):
        assert files[name] == (run / "merged" / name).read_bytes()
    for name, content in files.items():
        path = tmp_path / "fetched" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    fetched = verify(tmp_path / "fetched", base=run / "base")
    assert fetched.outcome == "ok", fetched.problems


def test_nothing_published_holds_the_token_or_a_path_of_the_machine(hub: Hub, run: Path, home: Path) -> None:
    for folder, name in (("merged", "calm"), ("weights/vector", "vector")):
        before = {path: path.read_bytes() for path in (run / folder).rglob("*") if path.is_file()}
        assert home.name.encode() in b"".join(before.values())
        push(run / folder, f"jane/{name}")
        assert {path: path.read_bytes() for path in (run / folder).rglob("*") if path.is_file()} == before
    assert kept_secret(hub, home)
    published = json.loads(hub.files("jane/calm")["weightsteer.json"])
    assert published["base"]["source"] == "base"
    assert published["vectors"][0]["info"]["terms"][0]["adapter"] == "positive"
    assert b"source: pairs.jsonl" in hub.files("jane/calm")["recipe.yaml"]
    assert b"/no_think" in hub.files("jane/calm")["recipe.yaml"]


@pytest.mark.parametrize("xet", [False, True], ids=["lfs", "xet"])
def test_transformers_loads_what_was_pushed(xet: bool, run: Path, tmp_path: Path, home: Path) -> None:
    code = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from weightsteer import progress
from weightsteer.hub.push import push
with progress.display():
    push(sys.argv[1], "jane/calm")
ids = AutoTokenizer.from_pretrained("jane/calm")("Tea?", return_tensors="pt").input_ids
pushed, local = (AutoModelForCausalLM.from_pretrained(path)(ids).logits for path in ("jane/calm", sys.argv[1]))
assert torch.equal(pushed, local)
print("equal logits")
"""
    with serve(tmp_path / "hub", {TOKEN: "jane"}) as hub:
        command = [sys.executable, "-c", code, str(run / "merged")]
        done = subprocess.run(
            command, env=environment(hub, tmp_path, home, xet), capture_output=True, text=True, timeout=120
        )
        assert "equal logits" in done.stdout, done.stderr
        assert bool(hub.count("GET .*/xet-read-token/")) is xet
        assert bool(hub.count("PUT /lfs/")) is not xet
        assert TOKEN not in done.stdout + done.stderr
        assert kept_secret(hub, home)


def environment(hub: Hub, tmp_path: Path, home: Path, xet: bool = False) -> dict[str, str]:
    own = {
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": TOKEN,
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_DISABLE_XET": "0" if xet else "1",
        "HF_HUB_OFFLINE": "0",
        "HOME": str(home),
        "PYTHONPATH": str(SOURCES),
        "OMP_NUM_THREADS": "1",
    }
    return {**os.environ, **own}


def test_a_second_run_sends_nothing_and_a_changed_file_goes_alone(hub: Hub, run: Path, copy: Path) -> None:
    push(run / "merged", "jane/calm")
    assert push(run / "merged", "jane/calm").sent == ()
    assert len(commits(hub)) == 1
    (copy / "NOTICE").write_text("See the base.")
    assert push(copy, "jane/calm").sent == ("NOTICE",)
    assert len(commits(hub)) == 2
    assert hub.count("PUT /lfs/") == 5


@pytest.mark.parametrize(
    ("pattern", "answer", "options"),
    [
        ("GET /api/whoami", 429, {"headers": {"Retry-After": "0"}}),
        ("POST /api/repos/create", 503, {}),
        ("POST /api/validate-yaml", 503, {"text": "<html>down</html>"}),
        ("GET .*/tree/", 504, {}),
        ("POST .*/preupload/", 503, {}),
        ("PUT /lfs/", 500, {}),
        ("PUT /lfs/", "drop", {}),
        ("POST /lfs-verify", 503, {}),
        (COMMIT, 503, {}),
        (COMMIT, 429, {}),
        (COMMIT, "drop", {}),
        (COMMIT, "hang", {}),
        (COMMIT, "drop", {"after": True}),
        (COMMIT, 504, {"after": True}),
    ],
)
def test_a_passing_failure_is_asked_again(
    pattern: str, answer: int | str, options: dict[str, Any], hub: Hub, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_client, "TIMEOUT_S", 0.5)
    hub.fail(pattern, answer, **options)
    start = time.monotonic()
    pushed = push(run / "merged", "jane/calm")
    assert time.monotonic() - start < HANG_S, "it was the hub that hung up"
    assert hub.count(pattern, answer) == 1, "the failure was not met"
    assert len(hub.repos["model", "jane/calm"].branches["main"]) == 2, "one commit on top of the first"
    assert set(hub.files("jane/calm")) >= set(pushed.files)


def test_a_hub_that_stays_down_is_an_error_and_the_next_run_goes_on(hub: Hub, run: Path) -> None:
    hub.fail(COMMIT, 503, times=3, message="come back later")
    with pytest.raises(HubError) as error:
        push(run / "merged", "jane/calm")
    assert str(error.value) == (
        "jane/calm: the files: the hub answers 503 (come back later). Expected a hub that answers. Run the same "
        "command again later: it sends only what is missing"
    )
    assert list(hub.files("jane/calm")) == [".gitattributes"], "nothing half done is to be seen"
    stored = hub.count("PUT /lfs/")
    push(run / "merged", "jane/calm")
    assert hub.count("PUT /lfs/") == stored == 5


def test_an_interrupted_run_goes_on_where_it_was(hub: Hub, run: Path, tmp_path: Path, home: Path) -> None:
    hub.fail("PUT /lfs/", "hang", skip=2)
    program = "from weightsteer.cli import main; main()"
    command = [sys.executable, "-c", program, "push", str(run / "merged"), "jane/calm"]
    surroundings = environment(hub, tmp_path, home)
    first = subprocess.Popen(command, env=surroundings, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: hub.count("PUT /lfs/", "hang"))
    first.send_signal(signal.SIGINT)
    out, errors = first.communicate(timeout=60)
    assert first.returncode == 130, errors
    assert "Traceback" not in errors
    assert TOKEN not in out + errors
    assert list(hub.files("jane/calm")) == [".gitattributes"]
    stored = set(hub.objects)
    assert stored
    push(run / "merged", "jane/calm")
    for sha256 in stored:
        assert hub.count(f"PUT /lfs/{sha256}") == 1, "what had arrived was sent again"
    assert "README.md" in hub.files("jane/calm")


def wait_for(condition: Any) -> None:
    for _ in range(1200):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("waited for a minute")


@pytest.mark.parametrize(
    ("repo_id", "told"),
    [
        ("calm", "calm: names no owner. Expected OWNER/NAME, such as jane/calm"),
        ("jane/ca lm", "jane/ca lm: no name that a hub takes"),
        ("jane/calm/2", "jane/calm/2: no name that a hub takes"),
        ("jane/ca--lm", "Cannot have -- or .."),
        ("jane/calm.git", "Repo_id cannot end by '.git'"),
        ("jane/" + "x" * 97, "the maximum length is 96"),
    ],
)
def test_a_name_is_checked_before_anything_is_read(repo_id: str, told: str) -> None:
    with pytest.raises(HubError, match=re.escape(told)):
        push("no such folder", repo_id)


@pytest.mark.parametrize("branch", ["", "a b", "../x", "-x", "refs/heads/x", "x..y", "x.lock", "x/", "ä"])
def test_a_branch_is_checked_before_anything_is_read(branch: str) -> None:
    with pytest.raises(HubError, match=re.escape(f"--branch {branch}: no name of a branch. Expected one such as")):
        push("no such folder", "jane/calm", branch=branch)


def test_a_folder_of_no_known_kind_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(HubError, match=r"no-folder: no such folder\. Expected a checkpoint"):
        push(tmp_path / "no-folder", "jane/calm")
    with pytest.raises(HubError, match=r"base: holds none of weightsteer\.json, vector\.json"):
        push(run / "base", "jane/calm")
    with pytest.raises(HubError, match=rf"Push {re.escape(str(run / 'merged'))} or .*vector of this run"):
        push(run, "jane/calm")


def test_a_token_must_be_there_and_known(hub: Hub, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_unknown")
    with pytest.raises(HubError, match=r"who you are: the hub answers 401 .*Expected a token that the hub knows\. Run"):
        push(run / "merged", "jane/calm")
    monkeypatch.delenv("HF_TOKEN")
    asked = len(hub.requests)
    with pytest.raises(HubError, match=r"jane/calm: no hub token was found\. Expected one .* set HF_TOKEN"):
        push(run / "merged", "jane/calm")
    assert len(hub.requests) == asked


def test_another_owners_repository_is_refused(hub: Hub, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", OTHERS_TOKEN)
    with pytest.raises(HubError) as error:
        push(run / "merged", "jane/calm")
    assert "jane/calm: the repository: the hub answers 403 (You don't have the rights to create" in str(error.value)
    assert "Choose john/calm, take a token with write access, or use --create-pr" in str(error.value)
    hub.add("jane/calm", {})
    with pytest.raises(HubError, match=r"the files: the hub answers 403 .*Expected a repository that john may write"):
        push(run / "merged", "jane/calm")
    assert hub.files("jane/calm") == {}


def test_a_name_that_is_a_datasets_is_refused(hub: Hub, run: Path) -> None:
    hub.add("jane/calm", {}, kind="dataset")
    with pytest.raises(HubError, match=r"answers 404 .*Expected a repository of a model; this name is a dataset's"):
        push(run / "merged", "jane/calm")


def test_a_private_push_never_goes_to_a_public_repository(hub: Hub, run: Path) -> None:
    push(run / "merged", "jane/calm", private=True)
    assert hub.repos["model", "jane/calm"].private
    hub.add("jane/open", {})
    with pytest.raises(HubError, match=r"jane/open: is there already and public\. Expected a private one"):
        push(run / "merged", "jane/open", private=True)
    assert hub.files("jane/open") == {}


def test_a_branch_is_made_when_it_is_not_there(hub: Hub, run: Path) -> None:
    for _ in range(2):
        pushed = push(run / "merged", "jane/calm", branch="k/minus-1")
        assert pushed.url == f"{hub.url}/jane/calm/tree/k/minus-1"
    assert "README.md" in hub.files("jane/calm", "k/minus-1")
    assert "README.md" not in hub.files("jane/calm")
    assert 'from_pretrained("jane/calm", revision="k/minus-1"' in pushed.card
    assert len(commits(hub)) == 1


def test_a_pull_request_is_opened_once(hub: Hub, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repo = hub.add("jane/calm", {})
    monkeypatch.setenv("HF_TOKEN", OTHERS_TOKEN)
    hub.fail(r"POST .*/commit/refs%2Fpr%2F1", 503, times=3)
    with pytest.raises(HubError, match="503"):
        push(run / "merged", "jane/calm", create_pr=True)
    pushed = push(run / "merged", "jane/calm", create_pr=True)
    assert pushed.url == f"{hub.url}/jane/calm/discussions/1"
    assert [(pull["status"], pull["author"]) for pull in repo.pulls] == [("open", {"name": "john"})]
    assert "README.md" in hub.files("jane/calm", "refs/pr/1")
    assert hub.files("jane/calm") == {}
    assert push(run / "merged", "jane/calm", create_pr=True).sent == ()
    with pytest.raises(HubError, match=r"--branch x with --create-pr: a hub opens pull requests against main only"):
        push(run / "merged", "jane/calm", branch="x", create_pr=True)


def test_no_network_is_an_error_that_says_what_to_do(hub: Hub, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{unused.getsockname()[1]}")
        with pytest.raises(HubError) as error:
            push(run / "merged", "jane/calm")
    assert "jane/calm: who you are: the hub does not answer (ConnectError" in str(error.value)
    assert "Expected a hub that answers. Check the network and HF_ENDPOINT. Run the same command" in str(error.value)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="HF_HUB_OFFLINE is set, so the hub may not be asked"):
        push(run / "merged", "jane/calm")


def test_what_fails_verification_is_not_sent(hub: Hub, copy: Path) -> None:
    shard = copy / "model-00002-of-00004.safetensors"
    content = bytearray(shard.read_bytes())
    content[-3] ^= 64
    shard.write_bytes(content)
    for unverified in (False, True):
        with pytest.raises(HubError, match=r"verification failed\n  model.*1 element differs(.|\n)*Merge it again"):
            push(copy, "jane/calm", unverified=unverified)
    assert hub.repos == {}


def test_what_cannot_be_verified_goes_only_by_explicit_choice(hub: Hub, run: Path, copy: Path, home: Path) -> None:
    provenance = json.loads((copy / "weightsteer.json").read_text())
    provenance["base"]["source"] = str(home / "moved")
    (copy / "weightsteer.json").write_text(json.dumps(provenance))
    with pytest.raises(HubError, match=r"could not be verified\n  the base is not at hand(.|\n)*--base, or push"):
        push(copy, "jane/calm")
    assert hub.repos == {}
    assert "equal to the last element" in push(copy, "jane/calm", base=run / "base", dry_run=True).card
    pushed = push(copy, "jane/calm", unverified=True)
    assert "NOT VERIFIED before the upload: the base is not at hand" in pushed.card
    assert kept_secret(hub, home)


def test_a_dry_run_asks_no_hub_and_tells_every_size(hub: Hub, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    planned = push(run / "merged", "jane/calm", dry_run=True)
    assert hub.requests == []
    assert planned.url is planned.commit is None
    assert planned.sent == ()
    assert planned.files["tokenizer.json"] == (run / "merged" / "tokenizer.json").stat().st_size
    assert planned.files["README.md"] == len(planned.card.encode())
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert push(run / "merged", "jane/calm").files == planned.files


def test_the_command_prints_what_would_be_and_what_was_sent(
    hub: Hub, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from weightsteer.cli import main

    for options, told in ((["--dry-run"], "to send, 16 files in all"), ([], "sent, 16 files in all")):
        monkeypatch.setattr(sys, "argv", ["weightsteer", "push", str(run / "merged"), "jane/calm", *options])
        with pytest.raises(SystemExit) as left:
            main()
        assert not left.value.code
        printed = capsys.readouterr()
        assert told in printed.out
        assert re.search(r"\d B  model-00001-of-00004\.safetensors\n", printed.out)
        assert TOKEN not in printed.out + printed.err
    assert printed.out.endswith(f"{hub.url}/jane/calm\n")
    monkeypatch.setattr(sys, "argv", ["weightsteer", "push", str(run / "merged"), "jane/calm", "--json"])
    with pytest.raises(SystemExit):
        main()
    assert json.loads(capsys.readouterr().out)["sent"] == []


def test_the_token_is_in_no_message_even_if_the_hub_quotes_it(
    hub: Hub, run: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any, capfd: Any
) -> None:
    from weightsteer import progress

    hub.fail(COMMIT, 503, message=f"bad gateway for Bearer {TOKEN}")
    hub.fail(COMMIT, 400, message=f"no such thing for Bearer {TOKEN}")
    with caplog.at_level("INFO"), progress.display(), pytest.raises(HubError) as error:
        push(run / "merged", "jane/calm")
    assert "the hub answers 400 (no such thing for Bearer ***). Expected it to be taken" in str(error.value)
    printed = capfd.readouterr()
    assert "asking again" in printed.err
    assert TOKEN not in str(error.value) + repr(error.value) + caplog.text + printed.out + printed.err


def test_the_token_is_in_no_log_however_much_is_logged(hub: Hub, run: Path, caplog: pytest.LogCaptureFixture) -> None:
    hub.fail(COMMIT, 503)
    with caplog.at_level(0):
        push(run / "weights" / "vector", "jane/calm")
    assert "/commit/" in caplog.text
    assert TOKEN not in caplog.text


def test_a_token_in_a_file_is_found_before_it_is_sent(hub: Hub, copy: Path, run: Path) -> None:
    (copy / "NOTICE").write_text(f"export HF_TOKEN={OTHERS_TOKEN}")
    with pytest.raises(HubError, match="NOTICE: holds an access token; take it out, and revoke it") as error:
        push(copy, "jane/calm", base=run / "base")
    assert OTHERS_TOKEN not in str(error.value)
    assert hub.repos == {}


def test_a_path_that_cannot_be_taken_out_is_refused(hub: Hub, home: Path, tmp_path: Path) -> None:
    from tiny_models import write_model

    base = write_model(home / "named")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "_name_or_path": str(home / "start")}))
    write_run(tmp_path / "run", base)
    with pytest.raises(HubError, match=r"config\.json: holds a path of this machine, .*jane\.doe/; expected none"):
        push(tmp_path / "run" / "merged", "jane/calm")
    assert hub.repos == {}


def test_a_link_out_of_the_folder_is_not_followed(hub: Hub, copy: Path, home: Path, tmp_path: Path) -> None:
    from weightsteer.errors import CheckpointError

    (tmp_path / "secret.txt").write_text("secret")
    (copy / "notes.txt").symlink_to(tmp_path / "secret.txt")
    with pytest.raises(CheckpointError, match=r"notes\.txt: links to .*outside the folder"):
        push(copy, "jane/calm")
    assert hub.repos == {}


def test_files_of_an_earlier_push_that_would_be_loaded_instead_are_removed(hub: Hub, run: Path) -> None:
    old = {"model.safetensors": b"old", "steering/1/vector.json": b"{}", "weightsteer.json": b"{}", "notes.md": b"mine"}
    hub.add("jane/calm", old)
    pushed = push(run / "merged", "jane/calm")
    assert pushed.deleted == ("model.safetensors", "steering/1/vector.json")
    assert len(commits(hub)) == 1
    assert hub.files("jane/calm")["notes.md"] == b"mine"
    assert "model.safetensors" not in hub.files("jane/calm")


def test_weights_of_somebody_else_are_never_removed(hub: Hub, run: Path) -> None:
    hub.add("jane/calm", {"model.safetensors": b"theirs"})
    with pytest.raises(HubError, match=r"jane/calm: holds model\.safetensors, which would be loaded in place"):
        push(run / "merged", "jane/calm")
    assert hub.files("jane/calm") == {"model.safetensors": b"theirs"}


def test_a_file_that_the_hub_ignores_is_an_error(hub: Hub, run: Path) -> None:
    hub.ignored = ("tokenizer.json",)
    with pytest.raises(HubError, match=r"the hub did not take tokenizer\.json\. Expected every file .*gitignore"):
        push(run / "merged", "jane/calm")


def test_metadata_that_the_hub_refuses_is_an_error(hub: Hub, run: Path, copy: Path) -> None:
    (copy / "BASE_README.md").write_text("---\nlicense: my-own\n---\n")
    with pytest.raises(HubError, match=r"Invalid metadata in README\.md\. - \"license\" must be one of the known"):
        push(copy, "jane/calm", base=run / "base")
    assert commits(hub) == []


def test_the_license_of_a_base_on_the_hub_is_looked_up_there(hub: Hub, copy: Path, run: Path) -> None:
    content = json.loads((copy / "weightsteer.json").read_text())
    content["base"] |= {"source": "lab/tea-1b", "revision": "main"}
    (copy / "weightsteer.json").write_text(json.dumps(content))
    unknown = push(copy, "jane/calm", base=run / "base")
    assert "license: unknown\n" in unknown.card
    hub.add("lab/tea-1b", {"README.md": b"---\nlicense: apache-2.0\n---\n"})
    known = push(copy, "jane/calm", base=run / "base")
    assert "license: apache-2.0\nbase_model: lab/tea-1b\nbase_model_relation: finetune\n" in known.card
    assert "apache-2.0, inherited from the base, as the base's model card says." in known.card
    assert known.sent == ("README.md",)


def test_vectors_and_adapters_go_out_with_what_peft_needs(hub: Hub, run: Path, tmp_path: Path) -> None:
    from weightsteer.weights.export import export
    from weightsteer.weights.vector import WeightVector

    vector = WeightVector.load(run / "weights" / "vector")
    export(vector, K, tmp_path / "exported")
    (tmp_path / "exported" / "README.md").write_text("# Model Card for Model ID")
    (tmp_path / "exported" / "optimizer.pt").write_bytes(b"a pickle")
    (tmp_path / "exported" / "checkpoint-1").mkdir()
    (tmp_path / "exported" / "checkpoint-1" / "state.json").write_text("{}")
    pushed = push(tmp_path / "exported", "jane/adapter")
    assert set(pushed.files) == {"README.md", "adapter_config.json", "adapter_model.safetensors", "export.json"}
    assert pushed.left_out == ("checkpoint-1/state.json", "optimizer.pt")
    assert pushed.kind == "adapter"
    assert b"Model ID" not in hub.files("jane/adapter")["README.md"]
    push(run / "weights" / "vector", "jane/vector")
    for name, content in hub.files("jane/vector").items():
        (tmp_path / "fetched").mkdir(exist_ok=True)
        (tmp_path / "fetched" / name).write_bytes(content)
    assert WeightVector.load(tmp_path / "fetched").digest == vector.digest


def test_the_storage_of_the_hub_may_fail_too(hub: Hub, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    hub.fail("GET .*/xet-write-token/", 403)
    with pytest.raises(HubError) as error:
        push(run / "weights" / "vector", "jane/vector")
    assert "jane/vector: the files: the storage of the hub failed (" in str(error.value)
    assert "Expected a repository that jane may write to with this token" in str(error.value)
    assert commits(hub) == []
    hub.fail("GET .*/xet-write-token/", 503)
    hub.fail("POST .*/commit/", 503)
    push(run / "weights" / "vector", "jane/vector")
    assert len(commits(hub)) == 1
