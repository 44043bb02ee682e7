"""From a name to a local folder: a folder as it is, an fsspec URL or a hub id copied once.

In: a name, and which of a repository's files are wanted. Out: a local folder that has them. Needs
no torch.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from diffmining_core.errors import InputError
from diffmining_core.images.addresses import fingerprint
from diffmining_core.store.caches import cache_folder, filled_aside
from diffmining_core.store.roots import explained, filesystem

Choose = Callable[[Iterable[str]], Sequence[str]]
"""From all file names of a repository (POSIX, relative) those that are wanted."""

logger = logging.getLogger(__name__)


def fetched(name: str, what: str, choose: Choose) -> Path:
    """The local folder (or file) that `name` stands for; `what` is it, for the sentences.

    `name` is a local path, an fsspec URL, or a hub id, `ID` or `ID@REVISION`. InputError if there
    is no such thing or it cannot be had.
    """
    if "://" in name:
        return _from_url(name, what, choose)
    if (local := Path(name).expanduser()).exists():
        return local
    return _from_hub(name, what, choose)


def first_line(error: Exception) -> str:
    """The first line of an error's message, for a sentence of our own."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def _from_url(url: str, what: str, choose: Choose) -> Path:
    """A copy in the user's cache folder, made anew when the listing there has changed."""
    try:
        fs, path = filesystem(url)
    except (ValueError, ImportError) as error:
        raise InputError(
            f"{what} {url} is at no address that can be read ({first_line(error)}); give a local "
            "folder, a hub id, or a URL such as s3://bucket/folder."
        ) from error
    if "file" in ((fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol):
        return Path(path)
    with explained(url):
        listing = {_below(full, path): info for full, info in fs.find(path, detail=True).items()}
        wanted = {name: listing[name] for name in choose(sorted(listing))}
        if not wanted:
            raise InputError(
                f"{what} {url} has none of the files that are needed, but "
                f"{len(listing) or 'no'} others; give the URL of the folder itself."
            )
        marks = {name: fingerprint(info) for name, info in wanted.items()}
        key = hashlib.sha256(json.dumps([url, marks], sort_keys=True).encode()).hexdigest()[:32]
        folder = cache_folder() / "models" / key
        if not folder.is_dir():
            _copy(fs, wanted, folder, url)
    return folder


def _below(full: str, path: str) -> str:
    """The name of a listed file relative to the path listed; its own name where it is that path."""
    inner = full.strip("/").removeprefix(path.strip("/")).strip("/")
    return inner or PurePosixPath(full).name


def _copy(fs: Any, wanted: dict[str, Any], folder: Path, url: str) -> None:
    size = sum(info["size"] for info in wanted.values())
    logger.info("copying %s, %.1f GB, to %s", url, size / 1e9, folder)
    with filled_aside(folder) as aside:
        for name, info in wanted.items():
            target = aside / name
            target.parent.mkdir(parents=True, exist_ok=True)
            fs.get_file(info["name"], str(target))
            if (came := target.stat().st_size) != info["size"]:
                raise ConnectionError(
                    f"{url}: {name} came with {came} bytes, but its listing says {info['size']}; "
                    "run again, when nobody writes there."
                )


@lru_cache(maxsize=64)  # one state of a branch for all that a process does
def _from_hub(name: str, what: str, choose: Choose) -> Path:
    """The hub client's own cached copy: resumable, checked, and without the network once there."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    repo, _, revision = name.partition("@")
    try:
        try:
            info = HfApi().model_info(repo, revision=revision or None)
            files = list(choose(sorted(sibling.rfilename for sibling in info.siblings or [])))
            # The revision as it was named: the client keeps its commit for when there is no net.
            folder = snapshot_download(repo, revision=revision or None, allow_patterns=files)
        except (GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError, HFValidationError):
            raise
        except Exception as error:
            # No network, or a hub that is down: what was had before serves, if it is all there.
            try:
                folder = snapshot_download(
                    repo, revision=revision or None, allow_patterns=_SMALL, local_files_only=True
                )
            except Exception:
                raise error from None
    except HFValidationError as error:
        raise InputError(
            f"There is no {what.lower()} folder {name}, and it is no hub id either; give a folder, "
            "a URL, or an id like stable-diffusion-v1-5/stable-diffusion-v1-5."
        ) from error
    except GatedRepoError as error:
        raise InputError(
            f"{what} {repo} is gated: its owners want their terms accepted at "
            f"https://huggingface.co/{repo}; accept them there, then log in with "
            "'hf auth login' or set HF_TOKEN."
        ) from error
    except RepositoryNotFoundError as error:
        raise InputError(
            f"{what} {repo} is no folder here and not on the hub, or private there; check the id, "
            "or log in with 'hf auth login'."
        ) from error
    except RevisionNotFoundError as error:
        raise InputError(
            f"{what} {repo} has no revision {revision!r} on the hub; give a branch, a tag or a "
            "commit."
        ) from error
    except Exception as error:
        # The hub client raises a dozen unrelated kinds for: no network, no such host, no disk.
        raise InputError(
            f"{what} {name} is no folder here and could not be had from the hub "
            f"({first_line(error)}); check the id and the network, or give a local folder."
        ) from error
    return Path(folder)


_SMALL = ["config.json", "*/config.json"]
"""What tells the hub client that a copy is there; the weights are looked for by their reader."""
