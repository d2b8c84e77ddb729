"""Publishing: a verified checkpoint, a vector or an adapter goes to a hub with its card, whole or not at all."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from weightsteer import progress
from weightsteer.errors import HubError
from weightsteer.hub.card import UNKNOWN, License, check_metadata, find_license, license_of, model_card
from weightsteer.hub.client import HubClient
from weightsteer.hub.parcel import (
    CARD,
    FIGURES,
    MARKS,
    RECIPE,
    Digests,
    Kind,
    Parcel,
    check_private,
    kind_of,
    pack,
    scrub,
)
from weightsteer.hub.subject import Subject, read_subject
from weightsteer.merging.provenance import STEERING
from weightsteer.models.safetensors_file import WEIGHT_SUFFIXES

LARGE_BYTES = 10 << 20  # from here on a file is worth a step of its own in the progress shown
UPLOAD_TOGETHER = 5  # the client sends as many at a time

_BRANCH = re.compile(r"(?!refs/)\w[\w.-]*(?:/\w[\w.-]*)*", re.ASCII)
# Files that only weightsteer writes: a repository that holds one was pushed by it.
_OURS = {mark for mark in MARKS if mark != "adapter_config.json"}


@dataclass(frozen=True)
class Pushed:
    """What was published, or would be."""

    repo_id: str
    kind: Kind
    verified: str
    files: Mapping[str, int]
    """Bytes of each file that belongs to it, the card included."""
    left_out: tuple[str, ...]
    notes: tuple[str, ...]
    card: str
    sent: tuple[str, ...] = ()
    """Files that were not on the hub yet."""
    deleted: tuple[str, ...] = ()
    """Files of an earlier push that a library would have loaded in place of these."""
    url: str | None = None
    """Where it is; None when nothing was sent (dry_run)."""
    commit: str | None = None


def push(
    folder: Path | str,
    repo_id: str,
    *,
    private: bool = False,
    branch: str | None = None,
    create_pr: bool = False,
    dry_run: bool = False,
    unverified: bool = False,
    base: Path | str | None = None,
) -> Pushed:
    """Verify `folder` (a merged checkpoint, a vector or an adapter) and publish it as `repo_id` in one commit.

    `base` says where the base of a checkpoint lies now, for its verification. With `unverified` a checkpoint goes out
    whose base or vectors are not at hand, and its card says so; one that fails verification never does. The folder is
    not changed. Run again after an interruption or a failure, it sends only what is missing. `dry_run` contacts no
    hub. A HubError for everything that stands in the way; the token is in no message and no file.
    """
    from huggingface_hub import get_token

    folder = Path(folder)
    _check_names(repo_id, branch, create_pr)
    kind_of(folder)
    token = get_token()
    client = None if dry_run else HubClient.log_in(repo_id, token)
    verified = _verify(folder, base, unverified)
    subject, parcel = read_subject(folder), pack(folder)
    license = find_license(subject, folder) or (client and _license_on_hub(client, subject)) or UNKNOWN
    card = model_card(subject, repo_id, license, verified, branch)
    check_metadata(card)
    parcel = _with_card(parcel, card, subject)
    check_private(parcel, token, folder)
    planned = Pushed(repo_id, parcel.kind, verified, parcel.sizes(), parcel.left_out, subject.notes, card)
    if client is None:
        return planned
    _open_repository(client, private)
    return _publish(client, planned, parcel, subject, branch, create_pr)


def _check_names(repo_id: str, branch: str | None, create_pr: bool) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise HubError(f"{repo_id}: no name that a hub takes ({error}). Expected OWNER/NAME. Choose another") from None
    if repo_id.count("/") != 1:
        raise HubError(
            f"{repo_id}: names no owner. Expected OWNER/NAME, such as jane/{repo_id}. Put the owner in front"
        )
    if branch is not None and (not _BRANCH.fullmatch(branch) or ".." in branch or branch.endswith((".", ".lock"))):
        raise HubError(f"--branch {branch}: no name of a branch. Expected one such as less-flattery. Choose another")
    if branch not in (None, "main") and create_pr:
        raise HubError(
            f"--branch {branch} with --create-pr: a hub opens pull requests against main only. Expected one of the "
            "two. Leave one out"
        )


def _verify(folder: Path, base: Path | str | None, unverified: bool) -> str:
    """How the folder was checked, in words for the card; a HubError when it must not go out."""
    from weightsteer.merging.verify import verify
    from weightsteer.models.reference import resolve
    from weightsteer.weights.vector import WeightVector

    if kind_of(folder) != "checkpoint":
        vector = WeightVector.load(folder)
        return f"read back whole before the upload: {len(vector.entries)} changed parameters"
    found = verify(folder, base=None if base is None else resolve(base).path)
    problems = "\n  ".join(["", *found.problems])
    if found.outcome == "failed":
        raise HubError(
            f"{folder}: verification failed{problems}\nExpected a checkpoint that holds what it says. Nothing was "
            "sent. Merge it again"
        )
    if found.outcome == "ok":
        return (
            f"before the upload all {found.tensors} tensors were recomputed from the base and the vectors; they are "
            "equal to the last element"
        )
    if not unverified:
        raise HubError(
            f"{folder}: could not be verified{problems}\nExpected base and vectors at hand. Nothing was sent. Say "
            "where the base lies with --base, or push it with --unverified, and its card will say so"
        )
    return "NOT VERIFIED before the upload: " + "; ".join(scrub(problem) for problem in found.problems)


def _license_on_hub(client: HubClient, subject: Subject) -> License | None:
    """What the base's card on the hub says; None when the base is not there or its card names none."""
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    id, revision = subject.base.hub_id, subject.base.revision
    if id is None:
        return None
    try:
        info = client.ask(f"the license of {id}", lambda: client.api.model_info(id, revision=revision), raw=True)
    except (RepositoryNotFoundError, RevisionNotFoundError):
        return None
    return license_of(info.card_data.to_dict(), id) if info.card_data else None


def _with_card(parcel: Parcel, card: str, subject: Subject) -> Parcel:
    """The parcel with its card, the report's figures and, unless it brings one, the recipe."""
    files = {**parcel.files, CARD: card.encode(), **(subject.report.figures if subject.report else {})}
    if subject.recipe is not None:
        files.setdefault(RECIPE, subject.recipe.encode())
    return replace(parcel, files=dict(sorted(files.items())))


def _open_repository(client: HubClient, private: bool) -> None:
    """Create it, unless it is there."""
    api, id = client.api, client.repo_id
    client.ask("the repository", lambda: api.create_repo(id, private=private or None, exist_ok=True))
    found = client.ask("the repository", lambda: api.model_info(id))
    if private and not found.private:
        raise HubError(
            f"{id}: is there already and public. Expected a private one, as --private asks. Nothing was sent. Choose "
            "another name, or make it private on the hub first"
        )


def _publish(
    client: HubClient, planned: Pushed, parcel: Parcel, subject: Subject, branch: str | None, create_pr: bool
) -> Pushed:
    """Send what is missing to the branch or into a pull request, in one commit."""
    api, id, title = client.api, client.repo_id, _title(subject)
    url, revision = f"{api.endpoint}/{id}", branch or "main"
    pull = _open_pull_request(client, f"{title} ({subject.digest[:12]})") if create_pr else None
    if pull:
        url, revision = pull.url, pull.git_reference
    elif revision != "main":
        url = f"{url}/tree/{branch}"
        client.ask(f"branch {branch}", lambda: api.create_branch(id, branch=branch, exist_ok=True))
    sent, deleted = _send(client, parcel, revision, title)
    if pull and pull.status == "draft":
        client.ask("the pull request", lambda: api.change_discussion_status(id, pull.num, "open"))
    head = client.ask("the commit", lambda: api.model_info(id, revision=revision))
    return replace(planned, sent=sent, deleted=deleted, url=url, commit=head.sha)


def _open_pull_request(client: HubClient, title: str) -> Any:
    """The open pull request of that title, so that a second run does not open a second one."""

    def find_or_open() -> Any:
        for found in client.api.get_repo_discussions(client.repo_id, discussion_type="pull_request"):
            if found.title == title and found.status in ("open", "draft"):
                return found
        return client.api.create_pull_request(client.repo_id, title=title)

    return client.ask("a pull request", find_or_open)


def _send(client: HubClient, parcel: Parcel, revision: str, message: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Bring `revision` to hold the parcel; the files that were sent, and those that were deleted.

    What is missing is looked up anew at every attempt: a commit whose answer was lost is not made twice.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    digests, uploads, deleted = Digests(parcel), {}, {}

    def attempt() -> None:
        present = _present(client, revision)
        missing, strays = digests.missing(present), _strays(client, present, parcel)
        for name in missing:
            uploads.setdefault(name, CommitOperationAdd(name, parcel.files[name]))
        for name in strays:
            deleted.setdefault(name, CommitOperationDelete(name))
        operations = [*(uploads[name] for name in missing), *(deleted[name] for name in strays)]
        if operations:
            _upload(client, [uploads[name] for name in missing], revision)
            client.api.create_commit(client.repo_id, operations, commit_message=message, revision=revision)

    client.ask("the files", attempt)
    lost = digests.missing(client.ask("the files", lambda: _present(client, revision)))
    if lost:
        raise HubError(
            f"{client.repo_id}: the hub did not take {', '.join(lost)}. Expected every file that was sent. Look "
            "whether a .gitignore there names them, then run the same command again"
        )
    return tuple(uploads), tuple(deleted)


def _present(client: HubClient, revision: str) -> dict[str, Any]:
    """Files of a revision by their path."""
    from huggingface_hub.hf_api import RepoFile

    listed = client.api.list_repo_tree(client.repo_id, recursive=True, revision=revision)
    return {entry.path: entry for entry in listed if isinstance(entry, RepoFile)}


def _strays(client: HubClient, present: Mapping[str, Any], parcel: Parcel) -> list[str]:
    """Files of an earlier push that have no successor and would be loaded, or shown, in place of the parcel's.

    A HubError when there are such and the repository is not one that weightsteer wrote.
    """
    ours = bool(_OURS & set(present))
    strays = [
        name
        for name in present
        if name not in parcel.files
        and (
            Path(name).suffix in WEIGHT_SUFFIXES
            or name.endswith(".index.json")
            or name in MARKS
            or (ours and name.startswith((f"{STEERING}/", f"{FIGURES}/")))
        )
    ]
    if strays and not ours:
        raise HubError(
            f"{client.repo_id}: holds {', '.join(strays)}, which would be loaded in place of what is pushed. Expected "
            "an empty repository or one that weightsteer wrote. Choose another name or --branch, or delete them there"
        )
    return strays


def _upload(client: HubClient, additions: Sequence[Any], revision: str) -> None:
    """Store the content of the large ones, a few at a time; nobody sees it before the commit, which brings the rest."""
    large = [one for one in additions if one.upload_info.size >= LARGE_BYTES]
    with progress.task("Uploading, MiB", sum(one.upload_info.size for one in large) >> 20) as advance:
        done = 0
        for first in range(0, len(large), UPLOAD_TOGETHER):
            some = large[first : first + UPLOAD_TOGETHER]
            client.api.preupload_lfs_files(client.repo_id, some, revision=revision, free_memory=False)
            size = sum(one.upload_info.size for one in some)
            advance((done + size >> 20) - (done >> 20))
            done += size


def _title(subject: Subject) -> str:
    """The message of the commit."""
    ks = ", ".join(f"{change.k:g}" for change in subject.changes if change.k is not None)
    return f"Publish a {subject.kind}{f' at k = {ks}' if ks else ''} with weightsteer"
