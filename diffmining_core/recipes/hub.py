"""Repositories of the hub, copied into a folder: resumed, checked, and of one revision."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
import stat
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from diffmining_core.errors import InputError

RECORD = ".diffmining-download.json"
"""Beside the files: which repository they are of, and its commit."""

BLOCK = 2**20


@dataclass(frozen=True)
class Repository:
    """A repository of the hub."""

    kind: Literal["dataset", "model"]
    id: str

    @property
    def page(self) -> str:
        """Where it can be looked at, and its terms accepted."""
        return f"https://huggingface.co/{'datasets/' if self.kind == 'dataset' else ''}{self.id}"


@dataclass(frozen=True)
class HubFile:
    """A file of a repository, and what the hub says of its bytes.

    sha256 of files that lie in large-file storage, git's sha1 of others.
    """

    name: str
    bytes: int
    sha256: str | None
    git_sha1: str | None


@dataclass(frozen=True)
class Downloaded:
    """A commit of a repository, all of whose files are in a folder as the hub says."""

    commit: str
    files: Sequence[HubFile]


def download_repository(
    repository: Repository,
    folder: Path,
    revision: str | None = None,
    on_checked: Callable[[HubFile], object] = lambda file: None,
) -> Downloaded:
    """Copy a repository's files to the folder, those that are there already not again.

    revision: branch, tag or commit; if unset the commit that the folder has of it, else `main`.
    InputError for what the user can mend, ConnectionError where the hub cannot be reached.
    """
    from huggingface_hub import HfApi, snapshot_download

    recorded = _recorded(repository, folder)
    with _in_words(repository, folder, revision):
        ask = HfApi().dataset_info if repository.kind == "dataset" else HfApi().model_info
        info = ask(repository.id, revision=revision or recorded or "main", files_metadata=True)
    commit = str(info.sha)
    if recorded not in (None, commit):
        raise InputError(
            f"{folder} holds commit {recorded} of {repository.id}, and {revision} is {commit}; "
            "leave out --revision to go on with the first, or give another folder with --to"
        )
    files = [_hub_file(sibling) for sibling in info.siblings or []]
    _check_room(folder, files)
    _record(repository, folder, commit)

    def fetch() -> list[HubFile]:
        with _in_words(repository, folder, revision):
            snapshot_download(
                repository.id, repo_type=repository.kind, revision=commit, local_dir=folder
            )
        return [file for file in files if not _is_as_said(folder, file, on_checked)]

    if damaged := fetch():
        for file in damaged:
            (folder / file.name).unlink(missing_ok=True)
        if damaged := fetch():
            names = ", ".join(file.name for file in damaged)
            raise InputError(
                f"{names} of {repository.id} came twice with other bytes than the hub says; try "
                "again later, and from another network if it stays so"
            )
    return Downloaded(commit, files)


def unpack(archive: Path, folder: Path, on_file: Callable[[], object] = lambda: None) -> int:
    """Unpack a zip file into the folder, and return how many files it has.

    Files that are there with the size they should have are left as they are. InputError, before
    anything is written, if a name leads out of the folder or there is no room.
    """
    try:
        with zipfile.ZipFile(archive) as packed:
            members = [member for member in packed.infolist() if not member.is_dir()]
            for member in members:
                _check_member(archive, member)
            missing = [member for member in members if not _is_there(folder, member)]
            _check_free(folder, sum(member.file_size for member in missing))
            for member in members:
                if member in missing:
                    _unpack_member(packed, member, folder)
                on_file()
    except zipfile.BadZipFile as error:
        raise InputError(
            f"{archive} is no readable zip file ({error}); download it again"
        ) from error
    return len(members)


def _check_member(archive: Path, member: zipfile.ZipInfo) -> None:
    path = PurePosixPath(member.filename.replace("\\", "/"))
    is_link = stat.S_ISLNK(member.external_attr >> 16)
    if is_link or path.is_absolute() or ".." in path.parts or ":" in path.parts[0]:
        raise InputError(
            f"{archive}: its file {member.filename[:200]!r} would be written outside the folder; "
            "this is not the published file, do not use it"
        )


def _is_there(folder: Path, member: zipfile.ZipInfo) -> bool:
    path = folder / member.filename
    return path.is_file() and path.stat().st_size == member.file_size


def _unpack_member(packed: zipfile.ZipFile, member: zipfile.ZipInfo, folder: Path) -> None:
    path = folder / member.filename
    if not path.parent.resolve().is_relative_to(folder.resolve()):
        raise InputError(f"{path.parent} is a link that leads out of {folder}; remove it")
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.unfinished")
    with packed.open(member) as source, unfinished.open("wb") as target:
        shutil.copyfileobj(source, target, BLOCK)
    unfinished.replace(path)


def _hub_file(sibling: Any) -> HubFile:
    return HubFile(
        name=sibling.rfilename,
        bytes=int(sibling.size or 0),
        sha256=sibling.lfs.sha256 if sibling.lfs else None,
        git_sha1=None if sibling.lfs else sibling.blob_id,
    )


def _is_as_said(folder: Path, file: HubFile, on_checked: Callable[[HubFile], object]) -> bool:
    """Whether a file has the bytes that the hub says it has."""
    path = folder / file.name
    if not path.is_file() or path.stat().st_size != file.bytes:
        return False
    if wanted := file.sha256 or file.git_sha1:
        digest = hashlib.sha256() if file.sha256 else hashlib.sha1(b"blob %d\0" % file.bytes)
        with path.open("rb") as source:
            while block := source.read(BLOCK):
                digest.update(block)
        if digest.hexdigest() != wanted:
            return False
    on_checked(file)
    return True


def _recorded(repository: Repository, folder: Path) -> str | None:
    """The commit that the folder holds of the repository, if it is one of its downloads."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        held, commit = Repository(**record["repository"]), str(record["commit"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{folder / RECORD} cannot be read ({error}); remove it, or give another folder with "
            "--to"
        ) from error
    if held != repository:
        raise InputError(f"{folder} holds the {held.kind} {held.id}; give another folder with --to")
    return commit


def _record(repository: Repository, folder: Path, commit: str) -> None:
    record = {"repository": asdict(repository), "commit": commit}
    with _full_disk_in_words(folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _check_room(folder: Path, files: Sequence[HubFile]) -> None:
    """InputError unless there is room for what is still missing."""
    paths = ((folder / file.name, file.bytes) for file in files)
    _check_free(folder, sum(size for path, size in paths if not path.is_file()))


def _check_free(folder: Path, needed: int) -> None:
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if (free := shutil.disk_usage(place).free) < needed:
        raise InputError(
            f"{folder}: {needed / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB are free; make "
            "room, or give another folder with --to"
        )


@contextmanager
def _full_disk_in_words(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise InputError(
                f"{folder}: the disk is full; make room and run the same command again, which goes "
                "on from here"
            ) from error
        if isinstance(error, PermissionError):
            raise InputError(f"{folder} cannot be written; give another with --to") from error
        raise


@contextmanager
def _in_words(repository: Repository, folder: Path, revision: str | None) -> Iterator[None]:
    """Turn what the hub's client raises into one sentence."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        with _full_disk_in_words(folder):
            yield
    except InputError:
        raise
    except GatedRepoError as error:
        raise InputError(
            f"{repository.id} is gated: ask for access at {repository.page}, then log in with "
            "`hf auth login` or set HF_TOKEN"
        ) from error
    except RevisionNotFoundError as error:
        raise InputError(
            f"{repository.id} has no revision {revision}; give a branch, tag or commit of "
            f"{repository.page}"
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise InputError(
            f"there is no {repository.kind} {repository.id} on the hub, or it is private: if you "
            f"may read {repository.page}, log in with `hf auth login` or set HF_TOKEN"
        ) from error
    except Exception as error:
        # The client raises a dozen unrelated kinds where there is no network or no answer.
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConnectionError(
            f"the hub cannot be reached or does not answer ({reason:.200}); check the network, and "
            "HF_ENDPOINT if you use a mirror"
        ) from error
