"""A Hugging Face Hub on this machine: the few endpoints that uploading and downloading a model need, over HTTP."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from unittest.mock import patch
from urllib.parse import unquote, urlsplit

from huggingface_hub import constants

TOKEN = "hf_of_the_tests"


@dataclass
class Repo:
    """A model repository: the files of every commit."""

    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)

    @property
    def main(self) -> str:
        return next(reversed(self.commits))

    def commit(self, files: dict[str, bytes]) -> str:
        """Adds a commit with exactly these files; -> its name of 40 hex digits."""
        oid = hashlib.sha1(f"{len(self.commits)}{sorted(files)}".encode()).hexdigest()
        self.commits[oid] = files
        return oid


class Hub:
    """What the server knows, and what it was asked: (method, path, token)."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.asked: list[tuple[str, str, str | None]] = []

    def add(self, name: str, files: dict[str, bytes], **options: Any) -> Repo:
        repo = self.repos.setdefault(name, Repo(**options))
        repo.commit(files)
        return repo


@contextmanager
def server(cache: Path) -> Iterator[Hub]:
    """huggingface_hub of this process talks to it alone, with TOKEN; downloads are kept in `cache`."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    Thread(target=http.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{http.server_port}"
    settings = {
        "ENDPOINT": address,
        "HUGGINGFACE_CO_URL_TEMPLATE": address + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_OFFLINE": False,
        "HF_HUB_CACHE": str(cache),
    }
    try:
        with patch.multiple(constants, **settings), patch.dict("os.environ", {"HF_TOKEN": TOKEN}):
            yield hub
    finally:
        http.shutdown()
        http.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = self._note()
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        name, action = "/".join(path.split("/")[3:5]), path.split("/")[5]
        if self._repo(name) is None:
            return None
        if action == "preupload":
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            return self._json({"files": files})
        assert action == "commit", path
        return self._commit(name, [json.loads(line) for line in body.splitlines()])

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self._note()
        parts = path.strip("/").split("/")
        if path.startswith("/api/models/"):
            repo = self._repo("/".join(parts[2:4]))
            if repo is None:
                return None
            revision = repo.main if len(parts) < 6 or parts[5] == "main" else parts[5]
            if revision not in repo.commits:
                return self._refuse(404, "RevisionNotFound")
            files = repo.commits[revision]
            if parts[4:5] == ["tree"]:
                listed = [{"type": "file", "path": n, "oid": _oid(b), "size": len(b)} for n, b in files.items()]
                return self._json(listed)
            name = "/".join(parts[2:4])
            siblings = [{"rfilename": each} for each in files]
            return self._json({"id": name, "sha": revision, "private": repo.private, "siblings": siblings})
        if parts[2:3] == ["resolve"]:
            return self._file("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        return self._refuse(404, "EntryNotFound")

    def _create(self, asked: dict[str, Any]) -> None:
        name = f"{asked['organization'] or 'me'}/{asked['name']}"
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._refuse(401, None)
        known = name in self.hub.repos
        repo = self.hub.repos.setdefault(name, Repo(private=asked.get("visibility") == "private"))
        if not known:
            repo.commit({".gitattributes": b""})
        url = f"{constants.ENDPOINT}/{name}"
        return self._json({"url": url, "id": name, "name": name}, 409 if known else 200)

    def _commit(self, name: str, lines: list[dict[str, Any]]) -> None:
        repo = self.hub.repos[name]
        files = dict(repo.commits[repo.main])
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        oid = repo.commit(files)
        self._json({"commitUrl": f"{constants.ENDPOINT}/{name}/commit/{oid}", "commitOid": oid, "pullRequestUrl": None})

    def _file(self, name: str, revision: str, file: str) -> None:
        repo = self._repo(name)
        if repo is None:
            return None
        if repo.gated:
            return self._refuse(403, "GatedRepo")
        revision = repo.main if revision == "main" else revision
        if file not in repo.commits.get(revision, {}):
            return self._refuse(404, "EntryNotFound")
        content = repo.commits[revision][file]
        return self._send(200, content, {"ETag": f'"{_oid(content)}"', "X-Repo-Commit": revision})

    def _repo(self, name: str) -> Repo | None:
        repo = self.hub.repos.get(name)
        if repo is None or (repo.private and self.headers.get("Authorization") != f"Bearer {TOKEN}"):
            self._refuse(404, "RepoNotFound")
            return None
        return repo

    def _note(self) -> str:
        path = unquote(urlsplit(self.path).path)
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        self.hub.asked.append((self.command, path, token))
        return path

    def _refuse(self, status: int, code: str | None) -> None:
        self._send(status, b"{}", {"X-Error-Code": code} if code else {})

    def _json(self, value: Any, status: int = 200) -> None:
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _oid(content: bytes) -> str:
    """Git's name of a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
