"""A small Hugging Face hub in this process, for the real client library.

It knows model and dataset repositories with branches and speaks what loading and uploading need:
file metadata, `resolve` with ranges and ETags (large files by redirect, as the hub does it), tree
listing, creation of repositories and branches, and commits (preupload, LFS batch, upload, commit).
Faults can be injected by path. Everything is kept in memory; requests are recorded.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

LARGE_SUFFIXES = (".safetensors", ".npz", ".pt", ".pth", ".bin", ".parquet")


def git_hash(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@dataclass
class Repository:
    """Files by branch, and for every commit."""

    private: bool = False
    branches: dict[str, str] = field(default_factory=lambda: {"main": "0" * 40})
    commits: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"0" * 40: {}})
    messages: list[str] = field(default_factory=list)

    def commit(self, branch: str, changes: dict[str, bytes | None], message: str) -> str:
        files = dict(self.commits[self.branches[branch]])
        for name, data in changes.items():
            if data is None:
                files.pop(name, None)
            else:
                files[name] = data
        text = json.dumps(sorted((name, sha256(data)) for name, data in files.items())) + message
        oid = hashlib.sha1(text.encode() + self.branches[branch].encode()).hexdigest()
        self.commits[oid] = files
        self.branches[branch] = oid
        self.messages.append(message)
        return oid

    def resolve(self, revision: str) -> str | None:
        return self.branches.get(revision) or (revision if revision in self.commits else None)


@dataclass
class Fault:
    """What goes wrong for requests whose path matches.

    Attributes:
        path: a regular expression.
        status: answer this instead.
        times: how often; None for always.
        method: only for this method.
        headers: further headers of the answer.
        cut_after: send only this many bytes of the body, then close the connection.
        damage: flip a byte of the body.
    """

    path: str
    status: int | None = None
    times: int | None = 1
    method: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    cut_after: int | None = None
    damage: bool = False


@dataclass
class Request:
    """One request as it came in and what was sent back."""

    method: str
    path: str
    range: str | None
    token: str | None
    status: int = 0
    sent: int = 0


class HubServer:
    """The server. `with HubServer() as hub:` serves until the block ends."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.large: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.requests: list[Request] = []
        self.token: str | None = None  # needed for private repositories and for writing
        self.lock = threading.Lock()
        hub = self

        class Handler(_Handler):
            server_hub = hub

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        port = self.server.server_address[1]
        self.url = f"http://127.0.0.1:{port}"
        # Large files lie on another host, as the hub's do.
        self.cdn_url = f"http://localhost:{port}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> HubServer:
        self.thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.stop()

    def stop(self) -> None:
        """Close the port; later requests are refused by the system."""
        if self.thread.is_alive():
            self.server.shutdown()
            self.thread.join()
        self.server.server_close()

    def add(self, repo_id: str, files: dict[str, bytes], private: bool = False) -> Repository:
        """Put files into the main branch of a repository."""
        repository = self.repositories.setdefault(repo_id, Repository(private))
        repository.commit("main", dict(files), "Add files")
        for data in files.values():
            self.large[sha256(data)] = data
        return repository

    def sent_bytes(self, suffix: str) -> int:
        """How many bytes of bodies were sent for paths that end in `suffix`."""
        return sum(r.sent for r in self.requests if r.method == "GET" and r.path.endswith(suffix))

    def fault_for(self, method: str, path: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.method not in (None, method) or not re.search(fault.path, path):
                    continue
                if fault.times is not None:
                    if fault.times == 0:
                        continue
                    fault.times -= 1
                return fault
        return None


class _Answer(Exception):
    def __init__(self, status: int, body: Any = None, **headers: Any) -> None:
        self.status, self.body, self.headers = status, body, headers


class _Handler(BaseHTTPRequestHandler):
    server_hub: HubServer
    protocol_version = "HTTP/1.1"
    # An answer is one packet, and goes out at once: waiting for more would cost 40 ms each time.
    disable_nagle_algorithm = True
    wbufsize = -1

    def log_message(self, *_: Any) -> None:
        """Silence."""

    def do_GET(self) -> None:
        self._serve()

    def do_HEAD(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def do_PUT(self) -> None:
        self._serve()

    # -- framing ---------------------------------------------------------------------------------

    def _serve(self) -> None:
        hub = self.server_hub
        parts = urlsplit(self.path)
        path = unquote(parts.path)
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        record = Request(self.command, path, self.headers.get("Range"), token)
        hub.requests.append(record)
        fault = hub.fault_for(self.command, path)
        try:
            if fault and fault.status is not None:
                raise _Answer(fault.status, {"error": "injected"}, **fault.headers)
            answer = self._answer(path, parse_qs(parts.query), token)
        except _Answer as given:
            answer = given
        self._send(answer, record, fault)

    def _send(self, answer: _Answer, record: Request, fault: Fault | None) -> None:
        body = answer.body
        data = (
            body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        )
        headers = {k.replace("_", "-"): v for k, v in answer.headers.items()}
        length = headers.pop("Content-Length", str(len(data)))
        if fault and fault.damage and data:
            data = bytes([data[0] ^ 0xFF]) + data[1:]
        record.status = answer.status
        self.send_response(answer.status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", length)
        if not isinstance(body, bytes):
            self.send_header("Content-Type", "application/json")
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault and fault.cut_after is not None:
            data = data[: fault.cut_after]
            self.close_connection = True
        record.sent = len(data)
        self.wfile.write(data)

    # -- routes ----------------------------------------------------------------------------------

    def _answer(self, path: str, query: dict[str, list[str]], token: str | None) -> _Answer:
        # A dataset's name is kept with the prefix that its addresses have.
        path = re.sub(r"^/api/datasets/(\w[^/]*/[^/]+)", r"/api/models/datasets/\1", path)
        name = r"(?P<repo>(datasets/)?[^/]+/[^/]+)"
        routes: list[tuple[str, str, Callable[..., _Answer]]] = [
            ("GET", r"/api/whoami-v2", self._whoami),
            ("POST", r"/api/validate-yaml", self._validate),
            ("POST", r"/api/repos/create", self._create),
            ("GET|HEAD", r"/cdn/(?P<digest>\w+)/.*", self._large),
            ("PUT", r"/upload/(?P<digest>\w+)", self._upload),
            ("GET|HEAD", rf"/{name}/resolve/(?P<revision>[^/]+)/(?P<file>.+)", self._resolve),
            ("POST", rf"/{name}\.git/info/lfs/objects/batch", self._batch),
            ("GET", rf"/api/models/{name}(/revision/(?P<revision>.+))?", self._info),
            ("GET", rf"/api/models/{name}/tree/(?P<revision>[^/]+)(/(?P<folder>.*))?", self._tree),
            ("POST", rf"/api/models/{name}/paths-info/(?P<revision>[^/]+)", self._paths),
            ("POST", rf"/api/models/{name}/branch/(?P<branch>.+)", self._branch),
            ("POST", rf"/api/models/{name}/preupload/(?P<revision>.+)", self._preupload),
            ("POST", rf"/api/models/{name}/commit/(?P<revision>.+)", self._commit),
        ]
        for methods, pattern, route in routes:
            found = re.fullmatch(pattern, path)
            if found and self.command in methods.split("|"):
                return route(token=token, query=query, **found.groupdict())
        return _Answer(404, {"error": f"no route {path}"})

    def _repository(self, repo: str, token: str | None, writing: bool = False) -> Repository:
        hub = self.server_hub
        found = hub.repositories.get(repo)
        if writing and hub.token is not None and token != hub.token:
            raise _Answer(401, {"error": "Unauthorized"})
        if found is None or (found.private and token != hub.token):
            # The hub does not tell strangers whether a private repository exists.
            status = 401 if token is None else 404
            raise _Answer(status, {"error": "not found"}, X_Error_Code="RepoNotFound")
        return found

    def _files(
        self, repo: str, revision: str | None, token: str | None
    ) -> tuple[str, dict[str, bytes]]:
        repository = self._repository(repo, token)
        oid = repository.resolve(revision or "main")
        if oid is None:
            raise _Answer(404, {"error": "revision"}, X_Error_Code="RevisionNotFound")
        return oid, repository.commits[oid]

    def _whoami(self, **_: Any) -> _Answer:
        return _Answer(200, {"name": "tester", "type": "user", "orgs": []})

    def _validate(self, **_: Any) -> _Answer:
        return _Answer(200, {"errors": [], "warnings": []})

    def _create(self, token: str | None, **_: Any) -> _Answer:
        hub = self.server_hub
        if hub.token is not None and token != hub.token:
            return _Answer(401, {"error": "Unauthorized"})
        asked = json.loads(self.body)
        prefix = "datasets/" if asked.get("type") == "dataset" else ""
        repo = f"{prefix}{asked.get('organization') or 'tester'}/{asked['name']}"
        if repo in hub.repositories:
            return _Answer(409, {"error": "exists", "url": f"{hub.url}/{repo}"})
        private = asked.get("private") or asked.get("visibility") == "private"
        hub.repositories[repo] = Repository(bool(private))
        return _Answer(200, {"url": f"{hub.url}/{repo}", "name": repo})

    def _info(self, repo: str, token: str | None, revision: str | None = None, **_: Any) -> _Answer:
        oid, files = self._files(repo, revision, token)
        siblings = [{"rfilename": name} for name in files]
        info = {"id": repo, "modelId": repo, "sha": oid, "siblings": siblings, "private": False}
        return _Answer(200, {**info, "tags": [], "downloads": 0, "likes": 0})

    def _tree(
        self, repo: str, revision: str, token: str | None, folder: str | None = None, **_: Any
    ) -> _Answer:
        oid, files = self._files(repo, revision, token)
        if folder:
            files = {name: data for name, data in files.items() if name.startswith(f"{folder}/")}
            if not files:
                raise _Answer(404, {}, X_Error_Code="EntryNotFound", X_Repo_Commit=oid)
        # Folders are not listed: the clients under test ask for files.
        entries = [
            {"type": "file", "path": name, "size": len(data), "oid": git_hash(data)}
            for name, data in files.items()
        ]
        return _Answer(200, entries)

    def _paths(self, repo: str, revision: str, token: str | None, **_: Any) -> _Answer:
        wanted = parse_qs(self.body.decode()).get("paths", [])
        entries = self._tree(repo, revision, token).body
        return _Answer(200, [entry for entry in entries if entry["path"] in wanted])

    def _resolve(self, repo: str, revision: str, file: str, token: str | None, **_: Any) -> _Answer:
        oid, files = self._files(repo, revision, token)
        if file not in files:
            return _Answer(404, b"Entry not found", X_Error_Code="EntryNotFound", X_Repo_Commit=oid)
        data = files[file]
        if not file.endswith(LARGE_SUFFIXES):
            return self._body(data, X_Repo_Commit=oid, ETag=f'"{git_hash(data)}"')
        return _Answer(
            302,
            b"",
            Location=f"{self.server_hub.cdn_url}/cdn/{sha256(data)}/{file}",
            X_Repo_Commit=oid,
            X_Linked_Etag=f'"{sha256(data)}"',
            X_Linked_Size=str(len(data)),
        )

    def _large(self, digest: str, **_: Any) -> _Answer:
        data = self.server_hub.large[digest]
        return self._body(data, ETag=f'"{digest}"')

    def _body(self, data: bytes, **headers: str) -> _Answer:
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        headers["Accept_Ranges"] = "bytes"
        if asked is None:
            return _Answer(200, data, **headers)
        first = int(asked[1])
        last = min(int(asked[2] or len(data) - 1), len(data) - 1)
        if first >= len(data):
            return _Answer(416, b"", **headers)
        headers["Content_Range"] = f"bytes {first}-{last}/{len(data)}"
        return _Answer(206, data[first : last + 1], **headers)

    # -- writing ---------------------------------------------------------------------------------

    def _branch(self, repo: str, branch: str, token: str | None, **_: Any) -> _Answer:
        repository = self._repository(repo, token, writing=True)
        if branch in repository.branches:
            return _Answer(409, {"error": "exists"})
        repository.branches[branch] = repository.branches["main"]
        return _Answer(200, {})

    def _preupload(self, repo: str, token: str | None, **_: Any) -> _Answer:
        self._repository(repo, token, writing=True)
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(LARGE_SUFFIXES) else "regular",
                "shouldIgnore": False,
                "oid": None,
            }
            for file in json.loads(self.body)["files"]
        ]
        return _Answer(200, {"files": files})

    def _batch(self, **_: Any) -> _Answer:
        hub = self.server_hub
        objects = [
            {
                "oid": wanted["oid"],
                "size": wanted["size"],
                "authenticated": True,
                "actions": {"upload": {"href": f"{hub.url}/upload/{wanted['oid']}", "header": {}}},
            }
            for wanted in json.loads(self.body)["objects"]
        ]
        return _Answer(200, {"transfer": "basic", "objects": objects})

    def _upload(self, digest: str, **_: Any) -> _Answer:
        if sha256(self.body) != digest:
            return _Answer(400, {"error": "hash"})
        self.server_hub.large[digest] = self.body
        return _Answer(200, b"")

    def _commit(self, repo: str, revision: str, token: str | None, **_: Any) -> _Answer:
        hub = self.server_hub
        repository = self._repository(repo, token, writing=True)
        if revision not in repository.branches:
            return _Answer(404, {"error": "revision"}, X_Error_Code="RevisionNotFound")
        changes: dict[str, bytes | None] = {}
        message = ""
        for line in self.body.decode().splitlines():
            entry = json.loads(line)
            key, value = entry["key"], entry["value"]
            if key == "header":
                message = value["summary"]
            elif key == "file":
                changes[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                changes[value["path"]] = hub.large[value["oid"]]
            elif key == "deletedFile":
                changes[value["path"]] = None
        oid = repository.commit(revision, changes, message)
        for data in changes.values():
            if data is not None:
                hub.large[sha256(data)] = data
        url = f"{hub.url}/{repo}/commit/{oid}"
        return _Answer(200, {"success": True, "commitOid": oid, "commitUrl": url})
