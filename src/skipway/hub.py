"""Weights by name from the hubs of torchvision and Hugging Face, through their own downloaders."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import itertools
import logging
import os
import re
import socket
import urllib.error
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import torch
from pydantic import JsonValue

from skipway.card import Card
from skipway.errors import InputError, harmless, missing_part, nearest
from skipway.files import PEER_FILES
from skipway.images import Preprocess
from skipway.peers import distinct, peer_card, timm_row, torchvision_names

log = logging.getLogger("skipway")


@dataclass(frozen=True)
class Fetched:
    """Weights of a hub on the disk, their checksum compared where the hub gives one."""

    path: Path
    card: Card | None
    """What the hub says of them; None leaves it to the files."""
    provenance: dict[str, JsonValue]
    licence: str | None = None


def fetch(name: str) -> Fetched:
    """The weights behind ``torchvision:MODEL[.WEIGHTS]`` or ``hf:USER/NAME[@REVISION]``.

    Through the libraries' own downloaders and caches. Raises InputError, which says how to give a
    local file in place of the name.
    """
    if name.startswith("torchvision:"):
        return _fetch_torchvision(name)
    return _fetch_hugging_face(name)


def _torchvision_weights(name: str) -> tuple[str, Any]:
    """The model's name and the member of its enumeration of weights."""
    from torchvision.models import get_model_weights

    model, _, wanted = name.removeprefix("torchvision:").partition(".")
    known = torchvision_names()
    if model not in known:
        raise InputError(
            f"{harmless(name)}: not a residual network of torchvision.{nearest(model, known)}\n"
            f"It has {', '.join(known)}"
        )
    members = get_model_weights(model)
    if wanted and wanted not in members.__members__:
        raise InputError(
            f"{harmless(name)}: no such weights; torchvision has for {model} "
            f"{', '.join(members.__members__)}"
        )
    return model, members[wanted] if wanted else members["DEFAULT"]


def _fetch_torchvision(name: str) -> Fetched:
    model, weights = _torchvision_weights(name)
    url = weights.url
    file = os.path.basename(url)
    path = Path(torch.hub.get_dir()) / "checkpoints" / file
    marked = torch.hub.HASH_REGEX.search(file)
    wanted = marked[1] if marked else ""
    advice = (
        f"\nWhere there is a network, download {url}\n"
        f"and put it into {harmless(path.parent)}/: then {name} is read from there"
    )
    if not path.exists():
        log.info("downloading %s", url)
        patience = socket.getdefaulttimeout()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            socket.setdefaulttimeout(30)  # their downloader has none of its own
            torch.hub.download_url_to_file(url, os.fspath(path), wanted or None, progress=False)
        except urllib.error.HTTPError as error:
            raise InputError(f"{name}: {url} answers {error.code}{advice}") from None
        except RuntimeError:  # the hash of what came
            raise InputError(
                f"{name}: what was downloaded is incomplete or not what was published, and is "
                f"dropped{advice}"
            ) from None
        except OSError as error:
            reason = getattr(error, "reason", None)
            cause = reason if isinstance(reason, Exception) else error
            told = unreachable(cause, url.split("/")[2])
            raise InputError(f"{name}: {told}{advice}") from None
        finally:
            socket.setdefaulttimeout(patience)
    digest = _sha256(path)
    if not digest.startswith(wanted):
        _drop(name, path)
    classes = distinct(weights.meta["categories"])
    arch = dataclasses.replace(timm_row(model), num_classes=len(classes))
    provenance: dict[str, JsonValue] = {
        "weights": f"torchvision:{model}.{weights.name}",
        "url": url,
        "sha256": digest,
        "recipe": str(weights.meta.get("recipe", "")),
    }
    return Fetched(
        path, peer_card(arch, classes, torchvision_preset(weights.transforms()), []), provenance
    )


def torchvision_preset(preset: Any) -> Preprocess:
    """What torchvision's ``ImageClassification`` preset does with an image."""
    (size,), (short_side,) = preset.crop_size, preset.resize_size
    return Preprocess(
        size=(size, size),
        short_side=short_side,
        interpolation=preset.interpolation.value,
        mean=tuple(preset.mean),
        std=tuple(preset.std),
    )


def repository(name: str) -> tuple[str, str | None]:
    """USER/NAME and the revision of ``hf:USER/NAME[@REVISION]``. Raises InputError."""
    repo, _, revision = name.removeprefix("hf:").partition("@")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo, re.ASCII):
        raise InputError(f"{harmless(name)}: not a name of the form hf:USER/NAME")
    return repo, revision or None


def client(command: str) -> tuple[ModuleType, Any]:
    """The package huggingface_hub and its client. Raises InputError where it is not installed."""
    try:
        import huggingface_hub
    except ImportError as error:
        raise missing_part(command, "hub", error) from None
    return huggingface_hub, huggingface_hub.HfApi(library_name="skipway")


def host_of(api: Any) -> str:
    """The hub's host, for messages."""
    return str(api.endpoint).split("://")[-1].rstrip("/")


# Beside the weights: what they are, how images are prepared, and the licence.
_BESIDE = ("config.json", "preprocessor_config.json", "README.md")


def _fetch_hugging_face(name: str) -> Fetched:
    repo, revision = repository(name)
    package, api = client(harmless(name))
    folder = repo.split("/")[1]
    at = f" --revision {harmless(revision)}" if revision else ""
    advice = (
        f"\nWhere there is a network: hf download {repo}{at} --local-dir {folder}\n"
        f"then give that folder in the name's place: skipway predict {folder} IMAGE"
    )

    def refusal(error: Exception) -> InputError:
        absent = status(error) in _REFUSALS or type(error) is FileNotFoundError
        instead = (
            f"\nCheck the name at {api.endpoint}/{repo}, or give a weight file, or a folder with "
            "config.json and model.safetensors, in its place."
        )
        return InputError(
            f"{harmless(name)}: {_why(error, host_of(api))}{instead if absent else advice}"
        )

    try:
        info = api.model_info(repo, revision=revision, files_metadata=True, timeout=20)
    except Exception as error:  # the client raises all kinds of errors
        refused = status(error) in _REFUSALS
        cached = None if refused else _cached(package, repo, revision)
        if cached is None:
            raise refusal(error) from None
        path, commit, published = cached, cached.parent.name, None
        why = _why(error, host_of(api))
        log.warning("%s: %s; an earlier download is used, %s", name, why, commit[:8])
    else:
        try:
            path, commit, published = _download(package, api, repo, info)
        except Exception as error:
            raise refusal(error) from None
    digest = _sha256(path)
    if published not in (None, digest):
        _drop(name, path)
    provenance: dict[str, JsonValue] = {"weights": f"hf:{repo}@{commit}", "sha256": digest}
    return Fetched(path, None, provenance, _licence(path.parent / "README.md"))


def _download(package: ModuleType, api: Any, repo: str, info: Any) -> tuple[Path, str, str | None]:
    """The weights in the client's cache, with the files beside them; the commit; their sha256."""
    found = {sibling.rfilename: sibling for sibling in info.siblings or ()}
    file = next((name for name in PEER_FILES if name in found), None)
    if file is None:
        raise FileNotFoundError(f"it has no {' or '.join(PEER_FILES)}")
    paths = [
        package.hf_hub_download(
            repo, name, revision=info.sha, endpoint=api.endpoint, etag_timeout=20
        )
        for name in [name for name in _BESIDE if name in found] + [file]
    ]
    lfs = found[file].lfs
    return Path(paths[-1]), info.sha, lfs.sha256 if lfs is not None else None


def _cached(package: ModuleType, repo: str, revision: str | None) -> Path | None:
    """The weights where an earlier download left them, for when the hub cannot be reached: of the
    revision, or where none is asked for the latest that was downloaded."""
    revisions = [revision]  # what a branch points at is older than what was fetched by its commit
    if revision is None:  # they were downloaded by their commits, which no branch points at
        with contextlib.suppress(package.CacheNotFound):
            known = package.scan_cache_dir().repos
            there = [
                x for r in known if (r.repo_id, r.repo_type) == (repo, "model") for x in r.revisions
            ]
            latest = sorted(there, key=lambda x: -x.last_modified)
            revisions = [*(x.commit_hash for x in latest), None]
    for one, file in itertools.product(revisions, PEER_FILES):
        found = package.try_to_load_from_cache(repo, file, revision=one)
        if isinstance(found, str):
            return Path(found)
    return None


def _licence(readme: Path) -> str | None:
    """What the front matter of a model card says, of several licences all; None for what is no
    plain name."""
    if not readme.exists():
        return None
    front = re.match(r"---\n(.*?)\n---", readme.read_text("utf-8", "replace"), re.DOTALL)
    text = re.sub(r"[ \t]#.*", "", front[1]) if front else ""
    entry = re.search(r"^license:[ \t]*(.*)((?:\n[ \t]*- .*)*)", text, re.MULTILINE)
    if entry is None:
        return None
    value = entry[1].strip()
    listed = re.fullmatch(r"\[(.*)\]", value)
    several = listed[1].split(",") if listed else [value]
    if not value:
        several = re.findall(r"- (.*)", entry[2])
    names = [name.strip().strip("'\"") for name in several]
    plain = value not in ("null", "~") and all(re.fullmatch(r"\w[\w.+ -]*", n) for n in names)
    return " AND ".join(names) or None if plain else None


_REFUSALS = (401, 403, 404)
"""Answers of a hub by which there is nothing for this user; of others an earlier download helps."""


def status(error: Exception) -> int | None:
    """The HTTP status behind an error of huggingface_hub; None where no answer came."""
    response = getattr(error, "response", None)
    code = getattr(response, "status_code", None)
    return code if isinstance(code, int) else None


def _why(error: Exception, host: str) -> str:
    """One line on an error of huggingface_hub."""
    code, kind = status(error), type(error).__name__
    if kind == "RevisionNotFoundError":
        return f"{host} has the repository, but not this revision"
    if kind == "GatedRepoError":
        return (
            f"{host} asks you to accept the owner's conditions first, and to log in: hf auth login"
        )
    if code in (401, 403, 404):
        return f"{host} has no such repository, or it is private (log in: hf auth login)"
    if code:
        return f"{host} answers {code}"
    if type(error) is FileNotFoundError:
        return f"{host} has the repository, but {error}"
    if "Consistency check" in str(error):
        return "the download broke off; what came of it is dropped"
    return unreachable(error, host)


def unreachable(error: Exception, host: str) -> str:
    """One line for an error that came without an answer from the hub."""
    if isinstance(error, OSError) and (error.filename is not None or error.errno in _LOCAL):
        where = "" if error.filename is None else f" {harmless(error.filename)}"
        return f"the cache{where} cannot be written: {error.strerror}"
    return f"{host} cannot be reached: {_brief(error)}"


_LOCAL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""Refusals of this machine's disk alone; of others it says the file."""


def _brief(error: object) -> str:
    lines = str(error).strip().splitlines()
    return harmless(lines[0] if lines else type(error).__name__)[:100]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _drop(name: str, path: Path) -> NoReturn:
    """Take a file whose checksum is wrong out of the cache, and say so."""
    for file in (path.resolve(), path):
        file.unlink(missing_ok=True)
    raise InputError(
        f"{harmless(name)}: the file's sha256 is not the published one: damaged or altered. It is "
        "taken out of the cache.\nTry once more, or give a local file in the name's place."
    )
