"""A hub on the loopback device: what huggingface_hub's client asks for, kept in memory, with failures on demand.

Written from the requests of huggingface_hub 2.4. Xet content goes into a folder: a storage address `local://FOLDER`
makes hf-xet read and write there instead of talking to a storage server.
"""

import base64
import contextlib
import hashlib
import json
import re
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

# The licence names of https://huggingface.co/docs/hub/repositories-licenses that the tests use.
LICENSES = ("apache-2.0", "mit", "cc-by-nc-4.0", "gemma", "llama3.2", "unknown", "other")
RELATIONS = ("adapter", "merge", "quantized", "finetune")
PIPELINES = ("text-generation",)
REPO_ID = r"[\w.-]+/[\w.-]+"
LFS_BYTES = 10_000
HANG_S = 20


@dataclass
class Repo:
    """Branches are lists of commits, a commit is path -> (content or None, oid, size, sha256 of large files)."""

    private: bool = False
    branches: dict[str, list[dict[str, "Entry"]]] = field(default_factory=dict)
    pulls: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Entry:
    """One file of a commit; a large one has its content in the store, under its sha256."""

    oid: str
    size: int
    content: bytes | None = None
    sha256: str | None = None


@dataclass
class Failure:
    """Answers to the next `times` requests whose "METHOD path" matches: a status, or none at all ("drop", "hang")."""

    pattern: str
    answer: int | str
    times: int = 1
    skip: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    message: str = "made to fail"
    text: str = ""
    """The body, where it is not JSON."""
    after: bool = False
    """Do what was asked and lose the answer."""


@dataclass(frozen=True)
class Request:
    """A request as it came, and what it was answered."""

    method: str
    path: str
    body: bytes
    status: int | str


class Hub:
    """The state of the hub, and what was asked of it."""

    def __init__(self, folder: Path, tokens: dict[str, str]) -> None:
        self.tokens = tokens
        """token -> user name; a user may write below the own name only."""
        self.store = folder / "xet"
        self.store.mkdir(parents=True)
        self.repos: dict[tuple[str, str], Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.failures: list[Failure] = []
        self.requests: list[Request] = []
        self.ignored: tuple[str, ...] = ()
        """Paths that the repository's .gitignore excludes."""
        self.put_delay_s = 0.0
        self.lock = threading.Lock()
        self.url = ""

    def fail(self, pattern: str, answer: int | str, **options: Any) -> None:
        """Let the next requests that match fail."""
        self.failures.append(Failure(pattern, answer, **options))

    def count(self, pattern: str, status: int | str | None = 200) -> int:
        """Requests that match and were answered with `status`."""
        return sum(
            bool(re.search(pattern, f"{r.method} {r.path}")) and status in (None, r.status) for r in self.requests
        )

    def add(self, repo_id: str, files: dict[str, bytes], kind: str = "model", private: bool = False) -> Repo:
        """A repository that is there already."""
        repo = self.repos[kind, repo_id] = Repo(private)
        repo.branches["main"] = [{path: blob(content) for path, content in files.items()}]
        return repo

    def files(self, repo_id: str, branch: str = "main") -> dict[str, bytes]:
        """Every file of a branch with its content."""
        head = self.repos["model", repo_id].branches[branch][-1]
        return {path: self.content(entry) for path, entry in head.items()}

    def content(self, entry: Entry) -> bytes:
        if entry.content is not None:
            return entry.content
        assert entry.sha256 is not None
        if entry.sha256 in self.objects:
            return self.objects[entry.sha256]
        return read_xet(self.store, xet_hashes(self.store)[entry.sha256], entry.size)

    def has(self, sha256: str) -> bool:
        return sha256 in self.objects or sha256 in xet_hashes(self.store)


def blob(content: bytes) -> Entry:
    """A file of git itself; its oid is git's."""
    header = f"blob {len(content)}\0".encode()
    return Entry(hashlib.sha1(header + content).hexdigest(), len(content), content)


def xet_hashes(store: Path) -> dict[str, str]:
    """sha256 -> xet hash of every file in a local xet store, from its shards.

    A shard has a header of 48 bytes, then per file: hash, flags, number of segments, 8 unused bytes; 48 bytes a
    segment; with the highest flag 48 more a segment; with the next one the sha256 and 16 unused bytes. Hashes are
    written as four little-endian words. All ones end the list.
    """
    found = {}
    for shard in (store / "xet" / "xorbs" / "shards").glob("*.mdb"):
        data, at = shard.read_bytes(), 48
        while data[at : at + 32] != b"\xff" * 32:
            flags, segments = struct.unpack_from("<II", data, at + 32)
            extra = at + 48 + 48 * segments * (2 if flags & 1 << 31 else 1)
            if flags & 1 << 30:
                found[_words(data[extra : extra + 32])] = _words(data[at : at + 32])
                extra += 48
            at = extra
    return found


def read_xet(store: Path, xet_hash: str, size: int) -> bytes:
    """A file out of a local xet store."""
    import hf_xet

    target = store / "read" / xet_hash
    target.parent.mkdir(exist_ok=True)
    with hf_xet.XetSession().new_file_download_group(endpoint=f"local://{store}") as group:
        group.start_download_file(hf_xet.XetFileInfo(xet_hash, size), str(target))
    return target.read_bytes()


def _words(data: bytes) -> str:
    return "".join(f"{word:016x}" for word in struct.unpack("<4Q", data))


class Refused(Exception):
    """An answer other than 200."""

    def __init__(self, status: int, code: str, message: str, body: dict[str, Any] | None = None) -> None:
        self.status, self.headers = status, {"X-Error-Code": code, "X-Error-Message": message}
        self.body = body or {"error": message}


class Handler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        chunked = self.headers.get("Transfer-Encoding") == "chunked"
        try:
            self.body = self._chunks() if chunked else self.rfile.read(length)
        except (ConnectionError, ValueError):
            self.close_connection = True
            return
        self.path_only, self.query = urlsplit(self.path).path, parse_qs(urlsplit(self.path).query)
        failure = self._failure()
        if failure is not None and not failure.after:
            self._fail(failure)
            return
        try:
            status, headers, body = 200, *self._route()
        except Refused as refused:
            status, headers, body = refused.status, refused.headers, json.dumps(refused.body).encode()
        if failure is not None:
            self._fail(failure)
        else:
            self._send(status, headers, body)

    do_GET = do_HEAD = do_POST = do_PUT = answer

    def _chunks(self) -> bytes:
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _failure(self) -> Failure | None:
        with self.hub.lock:
            for failure in self.hub.failures:
                if failure.times and re.search(failure.pattern, f"{self.command} {self.path}"):
                    if failure.skip:
                        failure.skip -= 1
                        return None
                    failure.times -= 1
                    return failure
        return None

    def _fail(self, failure: Failure) -> None:
        if isinstance(failure.answer, int):
            text = failure.text.encode() or json.dumps({"error": failure.message}).encode()
            self._send(failure.answer, {"X-Error-Message": failure.message, **failure.headers}, text)
            return
        self._record(failure.answer)
        if failure.answer == "hang":
            time.sleep(HANG_S)
        self.close_connection = True

    def _record(self, status: int | str) -> None:
        with self.hub.lock:
            self.hub.requests.append(Request(self.command, self.path, self.body, status))

    def _send(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self._record(status)
        with contextlib.suppress(ConnectionError):
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

    def _route(self) -> tuple[dict[str, str], bytes]:
        for pattern, serve in ROUTES:
            match = re.fullmatch(pattern, f"{self.command} {self.path_only}")
            if match:
                found = serve(self, **{key: unquote(value) for key, value in match.groupdict().items() if value})
                return found if isinstance(found, tuple) else ({}, json.dumps(found).encode())
        raise Refused(404, "EntryNotFound", f"no such address: {self.command} {self.path_only}")

    @property
    def user(self) -> str | None:
        """Who asks; None without a token."""
        header = self.headers.get("Authorization")
        if header is None:
            return None
        name = self.hub.tokens.get(header.removeprefix("Bearer "))
        if name is None:
            raise Refused(401, "", "Invalid credentials in Authorization header")
        return name

    def json(self) -> dict[str, Any]:
        return json.loads(self.body)

    def repo(self, id: str, kind: str = "models") -> Repo:
        repo = self.hub.repos.get((kind.removesuffix("s"), id))
        if repo is None or (repo.private and self.user != id.split("/")[0]):
            raise Refused(404, "RepoNotFound", "Repository not found")
        return repo

    def commits(self, id: str, revision: str) -> list[dict[str, Entry]]:
        branches = self.repo(id).branches
        for name, commits in branches.items():
            for number, commit in enumerate(commits):
                if revision == name or revision == _commit_id(commit):
                    return commits if revision == name else commits[: number + 1]
        raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")

    def may_write(self, id: str, revision: str = "main") -> None:
        if self.user is None or (self.user != id.split("/")[0] and not revision.startswith("refs/pr/")):
            raise Refused(403, "", "you don't have the rights to write to this repository")


def whoami(asked: Handler) -> Any:
    if asked.user is None:
        raise Refused(401, "", "Invalid username or password.")
    return {"type": "user", "name": asked.user, "orgs": [], "auth": {"type": "access_token"}}


def create(asked: Handler) -> Any:
    body = asked.json()
    owner, kind = body.get("organization") or asked.user, body.get("type") or "model"
    id = f"{owner}/{body['name']}"
    if asked.user is None or owner != asked.user:
        raise Refused(403, "", f"You don't have the rights to create a model under the namespace {owner}")
    url = {"url": f"{asked.hub.url}/{id}"}
    with asked.hub.lock:
        if any(known == id for _, known in asked.hub.repos):
            raise Refused(409, "", "You already created this repo", url)
        asked.hub.repos[kind, id] = Repo(
            body.get("visibility") == "private", {"main": [{".gitattributes": blob(b"*.bin filter=lfs\n")}]}
        )
    return url


def validate(asked: Handler) -> Any:
    """The rules of the hub that a card of ours can break."""
    match = re.match(r"^\s*---\n(.*?)\n---[ \t]*\n", asked.json()["content"], re.DOTALL)
    data = yaml.safe_load(match[1]) if match else None
    if not isinstance(data, dict):
        return {"errors": [], "warnings": [{"message": "empty or missing yaml metadata in repo card"}]}
    bases = data.get("base_model", [])
    rules = {
        '"license" must be one of the known ones': data.get("license") in LICENSES,
        '"license_name" is needed for "other"': data.get("license") != "other" or "license_name" in data,
        '"base_model" must be ids of models': all(
            re.fullmatch(REPO_ID, one) for one in ([bases] if isinstance(bases, str) else bases)
        ),
        '"base_model_relation" must be one of the known': data.get("base_model_relation", "merge") in RELATIONS,
        '"tags" must be a list of texts': all(isinstance(tag, str) for tag in data.get("tags", [])),
        '"pipeline_tag" must be one of the known ones': data.get("pipeline_tag", PIPELINES[0]) in PIPELINES,
        '"library_name" must be a text': isinstance(data.get("library_name", ""), str),
    }
    errors = [{"message": message} for message, kept in rules.items() if not kept]
    if errors:
        raise Refused(400, "", "invalid metadata", {"errors": errors, "warnings": []})
    return {"errors": [], "warnings": []}


def info(asked: Handler, kind: str, id: str, revision: str = "main") -> Any:
    repo = asked.repo(id, kind)
    head = asked.commits(id, revision)[-1] if kind == "models" else {}
    card = asked.hub.content(head["README.md"]).decode() if "README.md" in head else ""
    match = re.match(r"^---\n(.*?)\n---", card, re.DOTALL)
    return {
        "id": id,
        "modelId": id,
        "sha": _commit_id(head),
        "private": repo.private,
        "tags": [],
        "downloads": 0,
        "likes": 0,
        "cardData": yaml.safe_load(match[1]) if match else None,
        "siblings": [{"rfilename": path} for path in head],
    }


def tree(asked: Handler, id: str, revision: str) -> Any:
    hashes = xet_hashes(asked.hub.store)
    listed = []
    for path, entry in asked.commits(id, revision)[-1].items():
        row: dict[str, Any] = {"type": "file", "path": path, "oid": entry.oid, "size": entry.size}
        if entry.sha256:
            row["lfs"] = {"oid": entry.sha256, "size": entry.size, "pointerSize": 128}
            if entry.sha256 in hashes:
                row["xetHash"] = hashes[entry.sha256]
        listed.append(row)
    return listed


def preupload(asked: Handler, id: str, revision: str) -> Any:
    asked.may_write(id, revision)
    head = asked.commits(id, revision)[-1]
    answers = []
    for file in asked.json()["files"]:
        path, entry = file["path"], head.get(file["path"])
        large = path.endswith(".safetensors") or file["size"] > LFS_BYTES
        answers.append(
            {
                "path": path,
                "uploadMode": "lfs" if large else "regular",
                "shouldIgnore": path in asked.hub.ignored,
                "oid": entry and (entry.sha256 or entry.oid),
            }
        )
    return {"files": answers}


def batch(asked: Handler, id: str) -> Any:
    url, objects = asked.hub.url, []
    for wanted in asked.json()["objects"]:
        known = asked.hub.has(wanted["oid"])
        actions = {"upload": {"href": f"{url}/lfs/{wanted['oid']}"}, "verify": {"href": f"{url}/lfs-verify"}}
        objects.append({**wanted, **({} if known else {"actions": actions})})
    return {"transfer": "basic", "objects": objects}


def put_object(asked: Handler, sha256: str) -> Any:
    time.sleep(asked.hub.put_delay_s)
    assert hashlib.sha256(asked.body).hexdigest() == sha256
    asked.hub.objects[sha256] = asked.body
    return {}


def xet_token(asked: Handler, id: str, access: str, revision: str) -> Any:
    if access == "write":
        asked.may_write(id, revision)
    url, expires = f"local://{asked.hub.store}", int(time.time()) + 3600
    headers = {"X-Xet-Cas-Url": url, "X-Xet-Access-Token": "xet", "X-Xet-Token-Expiration": str(expires)}
    return headers, json.dumps({"accessToken": "xet", "exp": expires, "casUrl": url}).encode()


def commit(asked: Handler, id: str, revision: str) -> Any:
    asked.may_write(id, revision)
    lines = [json.loads(line) for line in asked.body.splitlines()]
    commits = asked.commits(id, revision)
    head = dict(commits[-1])
    for line in lines[1:]:
        value = line["value"]
        if line["key"] == "file":
            head[value["path"]] = blob(base64.b64decode(value["content"]))
        elif line["key"] == "lfsFile":
            if not asked.hub.has(value["oid"]):
                raise Refused(400, "", f"object {value['oid']} was not uploaded")
            pointer = hashlib.sha1(value["oid"].encode()).hexdigest()
            head[value["path"]] = Entry(pointer, value["size"], None, value["oid"])
        elif line["key"] == "deletedFile":
            del head[value["path"]]
    with asked.hub.lock:
        commits.append(head)
    oid = _commit_id(head)
    return {"success": True, "commitOid": oid, "commitUrl": f"{asked.hub.url}/{id}/commit/{oid}"}


def branch(asked: Handler, id: str, name: str) -> Any:
    asked.may_write(id)
    branches = asked.repo(id).branches
    if name in branches:
        raise Refused(409, "", f"Reference already exists: {name}")
    branches[name] = list(branches["main"])
    return {}


def open_pull(asked: Handler, id: str) -> Any:
    repo, body = asked.repo(id), asked.json()
    number = len(repo.pulls) + 1
    repo.branches[f"refs/pr/{number}"] = list(repo.branches["main"])
    repo.pulls.append({"num": number, "title": body["title"], "status": "draft", "author": {"name": asked.user}})
    return {"pullRequest": True, "num": number}


def pull_details(asked: Handler, id: str, number: str) -> Any:
    changes = {"events": [], "filesWithConflicts": [], "changes": {"base": "refs/heads/main"}, "diffUrl": None}
    return {**_discussion(id, asked.repo(id).pulls[int(number) - 1]), **changes}


def pulls(asked: Handler, id: str) -> Any:
    listed = [_discussion(id, pull) for pull in asked.repo(id).pulls]
    return {"count": len(listed), "start": 0, "discussions": listed}


def set_pull_status(asked: Handler, id: str, number: str) -> Any:
    asked.repo(id).pulls[int(number) - 1]["status"] = status = asked.json()["status"]
    event = {
        "id": "1",
        "type": "status-change",
        "createdAt": "2025-01-01T00:00:00.000Z",
        "author": {"name": asked.user},
    }
    return {"newStatus": {**event, "data": {"status": status}}}


def _discussion(id: str, pull: dict[str, Any]) -> dict[str, Any]:
    common = {"repo": {"name": id, "type": "model"}, "isPullRequest": True, "createdAt": "2025-01-01T00:00:00.000Z"}
    return {**pull, **common}


def resolve(asked: Handler, id: str, revision: str, path: str) -> Any:
    head = asked.commits(id, revision)[-1]
    if path not in head:
        raise Refused(404, "EntryNotFound", "Entry not found")
    entry = head[path]
    url = asked.hub.url
    headers = {"X-Repo-Commit": _commit_id(head), "ETag": f'"{entry.sha256 or entry.oid}"'}
    xet = xet_hashes(asked.hub.store).get(entry.sha256 or "")
    if xet:
        token = f"{url}/api/models/{id}/xet-read-token/{_commit_id(head)}"
        headers |= {"X-Xet-Hash": xet, "Link": f'<{token}>; rel="xet-auth"'}
    body = asked.hub.content(entry) if asked.command == "GET" or not xet else b""
    return headers | {"Content-Length": str(entry.size)}, body


def _commit_id(commit: dict[str, Entry]) -> str:
    return hashlib.sha1(repr(sorted((path, entry.oid) for path, entry in commit.items())).encode()).hexdigest()


MODEL = rf"/api/models/(?P<id>{REPO_ID})"
ROUTES = [
    (r"GET /api/whoami-v2", whoami),
    (r"POST /api/repos/create", create),
    (r"POST /api/validate-yaml", validate),
    (rf"GET {MODEL}/tree/(?P<revision>[^/]+)", tree),
    (rf"POST {MODEL}/preupload/(?P<revision>[^/]+)", preupload),
    (rf"POST /(?P<id>{REPO_ID})\.git/info/lfs/objects/batch", batch),
    (r"PUT /lfs/(?P<sha256>\w+)", put_object),
    (r"POST /lfs-verify", lambda asked: {}),
    (rf"GET {MODEL}/xet-(?P<access>read|write)-token/(?P<revision>[^/]+)", xet_token),
    (rf"POST {MODEL}/commit/(?P<revision>[^/]+)", commit),
    (rf"POST {MODEL}/branch/(?P<name>[^/]+)", branch),
    (rf"POST {MODEL}/discussions", open_pull),
    (rf"GET {MODEL}/discussions", pulls),
    (rf"GET {MODEL}/discussions/(?P<number>\d+)", pull_details),
    (rf"POST {MODEL}/discussions/(?P<number>\d+)/status", set_pull_status),
    (rf"GET /api/(?P<kind>models|datasets|spaces)/(?P<id>{REPO_ID})(?:/revision/(?P<revision>[^/]+))?", info),
    (rf"(?:GET|HEAD) /(?P<id>{REPO_ID})/resolve/(?P<revision>[^/]+)/(?P<path>.+)", resolve),
]


@contextlib.contextmanager
def serve(folder: Path, tokens: dict[str, str]) -> Iterator[Hub]:
    """A running hub that keeps what is large in `folder`."""
    hub = Hub(folder, tokens)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
