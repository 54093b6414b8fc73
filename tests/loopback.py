"""A Hugging Face hub on this machine that speaks as much as its client asks for.

After the hub's documented API: model info, tree, resolve, repository creation, preupload, LFS
batch and commit.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from huggingface_hub import constants

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """What the hub holds, how it misbehaves, and what it was sent."""

    url: str = ""
    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    plain: dict[str, bytes] = field(default_factory=dict)
    """Files by path, outside of repositories."""
    fault: str = ""
    """half: of large files half comes. altered: they come with another byte. deaf: the status
    below is the answer to all."""
    status: int = 503
    requests: list[tuple[str, str]] = field(default_factory=list)
    """Method and path."""
    created: list[dict[str, Any]] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)
    committed: dict[str, bytes] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    uploaded: dict[str, bytes] = field(default_factory=dict)
    """By sha256."""


def is_large(name: str) -> bool:
    return name.endswith((".safetensors", ".bin"))


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def answer(
        self,
        status: int,
        body: bytes = b"",
        headers: dict[str, str] | None = None,
        length: int | None = None,
    ) -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def json(self, value: object, status: int = 200, headers: dict[str, str] | None = None) -> None:
        kind = {"Content-Type": "application/json"}
        self.answer(status, json.dumps(value).encode(), kind | (headers or {}))

    def absent(self, what: str) -> None:
        self.json({"error": what}, 404, {"X-Error-Code": what, "X-Error-Message": what})

    def begin(self) -> list[str] | None:
        """The path's parts; None where the hub is deaf."""
        path = urlsplit(self.path).path
        self.hub.requests.append((self.command, path))
        self.hub.tokens.add(self.headers.get("Authorization", ""))
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.hub.fault == "deaf":
            self.json({"error": "no"}, self.hub.status)
            return None
        return path.strip("/").split("/")

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = self.begin()
        if parts is None:
            return
        if "/".join(parts) in self.hub.plain:
            self.send_file("/".join(parts), self.hub.plain["/".join(parts)])
            return
        repo = "/".join(parts[2:4] if parts[0] == "api" else parts[:2])
        files = self.hub.repositories.get(repo)
        if files is None:
            self.absent("RepoNotFound")
        elif parts[0] == "api" and parts[4:5] == ["tree"]:
            file = {"type": "file", "oid": "0" * 40}
            self.json([file | {"path": name, "size": len(data)} for name, data in files.items()])
        elif parts[0] == "api":
            if len(parts) > 4 and parts[5] not in ("main", COMMIT):
                self.absent("RevisionNotFound")
                return
            self.json({"id": repo, "sha": COMMIT, "siblings": [*map(self.sibling, files.items())]})
        elif parts[4] in files:
            self.send_file(parts[4], files[parts[4]])
        else:
            self.absent("EntryNotFound")

    @staticmethod
    def sibling(item: tuple[str, bytes]) -> dict[str, Any]:
        name, data = item
        digest = hashlib.sha256(data).hexdigest()
        lfs = {"lfs": {"sha256": digest, "size": len(data), "pointerSize": 134}}
        return {"rfilename": name, "size": len(data)} | (lfs if is_large(name) else {})

    def send_file(self, name: str, data: bytes) -> None:
        digest, size = hashlib.sha256(data).hexdigest(), len(data)
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{digest}"', "X-Linked-Size": str(size)}
        if self.command == "GET" and (is_large(name) or name.endswith(".pth")):
            if self.hub.fault == "half":
                data = data[: size // 2]
            elif self.hub.fault == "altered":
                data = data[:-1] + bytes([data[-1] ^ 1])
        self.answer(200, data, headers, size if self.command == "HEAD" else None)

    def do_POST(self) -> None:
        parts = self.begin()
        if parts is None:
            return
        if parts[-2:] == ["repos", "create"]:
            sent = json.loads(self.body)
            self.hub.created.append(sent)
            name = f"{sent.get('organization') or 'me'}/{sent['name']}"
            self.hub.repositories.setdefault(name, {})
            self.json({"url": f"{self.hub.url}/{name}", "name": name, "id": name})
        elif parts[-1] == "validate-yaml":
            self.json({"errors": [], "warnings": []})
        elif "preupload" in parts:
            files = json.loads(self.body)["files"]
            self.json(
                {
                    "files": [
                        {
                            "path": file["path"],
                            "uploadMode": "lfs" if is_large(file["path"]) else "regular",
                            "shouldIgnore": False,
                            "oid": None,
                        }
                        for file in files
                    ]
                }
            )
        elif parts[-1] == "batch":
            objects = [
                {
                    "oid": item["oid"],
                    "size": item["size"],
                    "actions": {"upload": {"href": f"{self.hub.url}/upload/{item['oid']}"}},
                }
                for item in json.loads(self.body)["objects"]
            ]
            self.json({"transfer": "basic", "objects": objects})
        elif "commit" in parts:
            for line in self.body.splitlines():
                entry = json.loads(line)
                value = entry["value"]
                if entry["key"] == "header":
                    self.hub.messages.append(value["summary"])
                elif entry["key"] == "file":
                    self.hub.committed[value["path"]] = base64.b64decode(value["content"])
                elif entry["key"] == "lfsFile":
                    self.hub.committed[value["path"]] = self.hub.uploaded[value["oid"]]
                elif entry["key"] == "deletedFile":
                    del self.hub.repositories["/".join(parts[2:4])][value["path"]]
            url = f"{self.hub.url}/{parts[2]}/{parts[3]}/commit/{COMMIT}"
            self.json({"success": True, "commitOid": COMMIT, "commitUrl": url})
        else:
            self.absent("EntryNotFound")

    def do_PUT(self) -> None:
        parts = self.begin()
        if parts is not None:
            self.hub.uploaded[parts[-1]] = self.body
            self.answer(200)


@contextmanager
def serving(patch: pytest.MonkeyPatch, cache: Path) -> Iterator[Hub]:
    """A hub that huggingface_hub takes for its own, with a cache of its own and no token."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    patch.setattr(constants, "ENDPOINT", hub.url)
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    patch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # its own protocol is not spoken here
    patch.setattr(constants, "HF_HUB_CACHE", str(cache))
    patch.setattr(constants, "HF_TOKEN_PATH", str(cache / "token"))
    patch.setattr(constants, "HF_HUB_OFFLINE", False)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE"):
        patch.delenv(name, raising=False)
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
