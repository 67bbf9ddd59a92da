# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""A small Hub on the loopback interface, and a way to run code against it with the unmodified Hub client.

`HubServer` keeps repositories in memory and answers the routes that `huggingface_hub` and `transformers` call to
create, push, list and download a model. `HubClient` runs a function of a test module in a process whose
`HF_ENDPOINT` is that server, since the client reads the variable once, when it is imported.
"""

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
import yaml  # type: ignore[import-untyped]


TOKENS = {"hf_user": "user", "hf_reader": "reader"}

_LFS_SUFFIXES = (".safetensors", ".bin", ".pt", ".npz")
_RELATIONS = ("adapter", "finetune", "merge", "quantized")
_REPO_ID = re.compile(r"[\w.-]+/[\w.-]+")
_FRONT_MATTER = re.compile(r"\A---\n(.*?)\n---(\n|\Z)", re.DOTALL)
_BOOTSTRAP = """
import importlib, json, os, sys
module, name, target = sys.argv[1:]
if os.environ.get("WITHOUT_SOL_HF"):
    sys.path[:] = [path for path in sys.path if not os.path.exists(os.path.join(path, "sol_hf", "__init__.py"))]
result = getattr(importlib.import_module(module), name)(**json.load(sys.stdin))
with open(target, "w", encoding="utf-8") as file:
    json.dump(result, file)
"""


class HubError(Exception):
    """An answer with an error status, with the headers that the client turns into its exceptions."""

    def __init__(self, status: int, message: str, code: str | None = None, headers: dict[str, str] | None = None):
        super().__init__(message)
        self.status = status
        self.headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {}), **(headers or {})}


@dataclass(frozen=True)
class Blob:
    """Content of a file at a revision."""

    content: bytes
    lfs: bool = False

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def git_oid(self) -> str:
        content = self.content
        if self.lfs:
            content = f"version https://git-lfs\noid sha256:{self.sha256}\nsize {len(content)}\n".encode()
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.git_oid


@dataclass(frozen=True)
class Commit:
    """A revision: its files and the one before it."""

    oid: str
    title: str
    parent: str | None
    files: dict[str, Blob]


@dataclass
class Repo:
    """A model repository."""

    name: str
    private: bool = False
    gated: bool = False
    commits: dict[str, Commit] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)

    def add_commit(self, branch: str, title: str, files: dict[str, Blob]) -> Commit:
        """Put a commit with exactly `files` on `branch`."""
        parent = self.refs.get(branch)
        tree = sorted((path, blob.git_oid) for path, blob in files.items())
        oid = hashlib.sha1(repr((self.name, len(self.commits), parent, title, tree)).encode()).hexdigest()
        commit = Commit(oid, title, parent, files)
        self.commits[oid] = commit
        self.refs[branch] = oid
        return commit

    def commit_at(self, revision: str) -> Commit:
        """The commit that a branch, a tag or a commit hash names."""
        commit = self.commits.get(self.refs.get(revision, revision))
        if commit is None:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    def history(self, revision: str = "main") -> list[Commit]:
        """Commits from `revision` back to the first one."""
        commits = [self.commit_at(revision)]
        while (parent := commits[-1].parent) is not None:
            commits.append(self.commits[parent])
        return commits


@dataclass
class Request:
    """What a route gets: the parts of the path it named, the query, the body and who asks."""

    user: str | None
    query: dict[str, list[str]]
    body: bytes
    repo: str = ""
    rev: str = "main"
    path: str = ""

    def json(self) -> dict[str, Any]:
        return json.loads(self.body or b"{}")


@dataclass
class Reply:
    """Answer of a route: bytes as they are, anything else as JSON."""

    body: Any
    headers: dict[str, str] = field(default_factory=dict)
    status: int = 200


@dataclass
class Fault:
    """What goes wrong with the next requests of a kind.

    Args:
        pattern: Of the method and path, such as `"GET .*model.safetensors"`.
        kind: `"status"` answers with `status`, `"cut"` closes the connection in the middle of the content, `"corrupt"`
            changes a byte of it.
        times: Number of requests; others are answered as always.
        status: For `"status"`.
    """

    pattern: str
    kind: str
    times: int = 1
    status: int = 503


@dataclass(frozen=True)
class LoggedRequest:
    """A request that the server has answered."""

    method: str
    path: str
    user: str | None
    status: int


_ID = r"(?P<repo>[^/]+/[^/]+)"
_REV = r"(?P<rev>[^/]+)"
_ROUTES = [
    (method, re.compile(pattern), name)
    for method, pattern, name in (
        ("GET", r"/api/whoami-v2", "whoami"),
        ("GET", r"/api/agent-harnesses", "agent_harnesses"),
        ("POST", r"/api/validate-yaml", "validate_yaml"),
        ("POST", r"/api/repos/create", "create_repo"),
        ("GET", rf"/api/models/{_ID}", "model_info"),
        ("GET", rf"/api/models/{_ID}/revision/{_REV}", "model_info"),
        ("GET", rf"/api/models/{_ID}/refs", "list_refs"),
        ("GET", rf"/api/models/{_ID}/commits/{_REV}", "list_commits"),
        ("GET", rf"/api/models/{_ID}/tree/{_REV}(?:/(?P<path>.+))?", "list_tree"),
        ("POST", rf"/api/models/{_ID}/branch/{_REV}", "create_ref"),
        ("POST", rf"/api/models/{_ID}/preupload/{_REV}", "preupload"),
        ("POST", rf"/api/models/{_ID}/commit/{_REV}", "commit"),
        ("POST", rf"/{_ID}\.git/info/lfs/objects/batch", "lfs_batch"),
        ("PUT", r"/lfs/(?P<path>[0-9a-f]{64})", "lfs_upload"),
        ("GET", rf"/{_ID}/resolve/{_REV}/(?P<path>.+)", "resolve"),
        ("HEAD", rf"/{_ID}/resolve/{_REV}/(?P<path>.+)", "resolve"),
    )
]


class HubServer:
    """Repositories in memory behind an HTTP server on a free port of 127.0.0.1.

    Args:
        tokens: User of every token. Any other token is refused; no token at all may read public repositories.
    """

    def __init__(self, tokens: dict[str, str] | None = None):
        self.tokens = dict(TOKENS if tokens is None else tokens)
        self.repos: dict[str, Repo] = {}
        self.log: list[LoggedRequest] = []
        self.faults: list[Fault] = []
        self._objects: dict[str, bytes] = {}
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.daemon_threads = True
        self._server.hub = self  # type: ignore[attr-defined]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        """Stop listening: later calls of a client fail to connect."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        """Content of all files of a repository at a revision."""
        return {path: blob.content for path, blob in self.repos[repo_id].commit_at(revision).files.items()}

    def fault(self, method: str, target: str) -> Fault | None:
        """The fault that this request meets, if any."""
        with self._lock:
            for fault in self.faults:
                if fault.times and re.fullmatch(fault.pattern, f"{method} {unquote(urlsplit(target).path)}"):
                    fault.times -= 1
                    return fault
        return None

    def answer(self, method: str, target: str, authorization: str | None, body: bytes) -> Reply:
        """Route a request, turn errors into replies, and log it."""
        parts = urlsplit(target)
        user = None
        with self._lock:
            try:
                user = self._authenticate(authorization)
                reply = self._dispatch(method, parts.path, Request(user, parse_qs(parts.query), body))
            except HubError as error:
                reply = Reply({"error": str(error)}, error.headers, error.status)
            self.log.append(LoggedRequest(method, unquote(parts.path), user, reply.status))
        return reply

    def _authenticate(self, authorization: str | None) -> str | None:
        if authorization is None:
            return None
        user = self.tokens.get(authorization.removeprefix("Bearer "))
        if user is None:
            raise HubError(401, "Invalid credentials in Authorization header")
        return user

    def _dispatch(self, method: str, path: str, request: Request) -> Reply:
        for route_method, pattern, name in _ROUTES:
            match = pattern.fullmatch(path) if route_method == method else None
            if match is not None:
                for key, value in match.groupdict().items():
                    if value is not None:
                        setattr(request, key, unquote(value))
                return getattr(self, f"_on_{name}")(request)
        raise HubError(404, f"No such route: {method} {path}")

    def _readable(self, request: Request) -> Repo:
        repo = self.repos.get(request.repo)
        if repo is None or (repo.private and request.user != repo.name.split("/")[0]):
            raise HubError(404 if request.user else 401, "Repository not found", "RepoNotFound")
        return repo

    def _writable(self, request: Request) -> Repo:
        repo = self._readable(request)
        self._check_owner(request, repo.name)
        return repo

    def _check_owner(self, request: Request, repo_id: str) -> None:
        if request.user is None:
            raise HubError(401, "Invalid username or password.")
        if request.user != repo_id.split("/")[0]:
            raise HubError(403, f"You don't have the rights to write to {repo_id}")

    def _on_whoami(self, request: Request) -> Reply:
        if request.user is None:
            raise HubError(401, "Invalid username or password.")
        return Reply({"type": "user", "name": request.user, "orgs": []})

    def _on_agent_harnesses(self, request: Request) -> Reply:
        return Reply({"standardEnvVars": [], "harnesses": {}})

    def _on_validate_yaml(self, request: Request) -> Reply:
        errors = card_errors(request.json()["content"])
        answer = {"errors": [{"message": message} for message in errors], "warnings": []}
        return Reply(answer, status=400 if errors else 200)

    def _on_create_repo(self, request: Request) -> Reply:
        payload = request.json()
        repo_id = f"{payload.get('organization') or request.user}/{payload['name']}"
        self._check_owner(request, repo_id)
        reply = {"url": f"{self.url}/{repo_id}", "name": repo_id}
        if repo_id in self.repos:
            return Reply({**reply, "error": "You already created this model repo"}, status=409)
        repo = Repo(repo_id, private=payload.get("visibility") == "private")
        attributes = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in _LFS_SUFFIXES)
        repo.add_commit("main", "initial commit", {".gitattributes": Blob(attributes.encode())})
        self.repos[repo_id] = repo
        return Reply(reply)

    def _on_model_info(self, request: Request) -> Reply:
        repo = self._readable(request)
        commit = repo.commit_at(request.rev)
        siblings = [{"rfilename": path} for path in sorted(commit.files)]
        info = {"_id": "0" * 24, "id": repo.name, "modelId": repo.name, "sha": commit.oid, "private": repo.private}
        return Reply({**info, "disabled": False, "gated": False, "tags": [], "siblings": siblings})

    def _on_list_refs(self, request: Request) -> Reply:
        refs = self._readable(request).refs
        branches = [{"name": name, "ref": f"refs/heads/{name}", "targetCommit": oid} for name, oid in refs.items()]
        return Reply({"branches": branches, "tags": [], "converts": []})

    def _on_list_commits(self, request: Request) -> Reply:
        repo = self._readable(request)
        date = "2026-01-01T00:00:00.000Z"
        return Reply(
            [
                {"id": commit.oid, "title": commit.title, "message": "", "date": date, "authors": []}
                for commit in repo.history(request.rev)
            ]
        )

    def _on_list_tree(self, request: Request) -> Reply:
        commit = self._readable(request).commit_at(request.rev)
        prefix = f"{request.path}/" if request.path else ""
        recursive = request.query.get("recursive", ["false"])[0].lower() in ("true", "1")
        entries: dict[str, dict[str, Any]] = {}
        for path, blob in sorted(commit.files.items()):
            if not path.startswith(prefix):
                continue
            folder, slash, _ = path.removeprefix(prefix).partition("/")
            if slash:
                entries[prefix + folder] = {"type": "directory", "path": prefix + folder, "oid": "0" * 40}
            if recursive or not slash:
                entries[path] = {"type": "file", "path": path, "oid": blob.git_oid, "size": len(blob.content)}
                if blob.lfs:
                    entries[path]["lfs"] = {"oid": blob.sha256, "size": len(blob.content), "pointerSize": 130}
        if prefix and not entries:
            raise HubError(404, f"{request.path} does not exist on {request.rev}", "EntryNotFound")
        return Reply(list(entries.values()))

    def _on_create_ref(self, request: Request) -> Reply:
        repo = self._writable(request)
        if request.rev in repo.refs:
            raise HubError(409, f"Reference already exists: {request.rev}")
        repo.refs[request.rev] = repo.commit_at(request.json().get("startingPoint", "main")).oid
        return Reply({})

    def _on_preupload(self, request: Request) -> Reply:
        commit = self._writable(request).commit_at(request.rev)
        files = []
        for entry in request.json()["files"]:
            path = entry["path"]
            mode = "lfs" if path.endswith(_LFS_SUFFIXES) else "regular"
            present = commit.files.get(path)
            oid = {"oid": present.etag} if present else {}
            files.append({"path": path, "uploadMode": mode, "shouldIgnore": False, **oid})
        return Reply({"files": files})

    def _on_lfs_batch(self, request: Request) -> Reply:
        self._writable(request)
        objects = []
        for item in request.json()["objects"]:
            entry = {"oid": item["oid"], "size": item["size"]}
            if item["oid"] not in self._objects:
                entry["actions"] = {"upload": {"href": f"{self.url}/lfs/{item['oid']}"}}
            objects.append(entry)
        return Reply({"transfer": "basic", "objects": objects})

    def _on_lfs_upload(self, request: Request) -> Reply:
        if hashlib.sha256(request.body).hexdigest() != request.path:
            raise HubError(400, "The content does not have the announced SHA-256")
        self._objects[request.path] = request.body
        return Reply(b"")

    def _on_commit(self, request: Request) -> Reply:
        repo = self._writable(request)
        if request.rev not in repo.refs:
            raise HubError(404, f"Invalid rev id: {request.rev}", "RevisionNotFound")
        header, files = self._apply(request.body, repo.commit_at(request.rev).files)
        parent = header.get("parentCommit")
        if parent and not repo.refs[request.rev].startswith(parent):
            raise HubError(412, "A commit has happened since. Please refresh and try again.")
        branch, extra = request.rev, {}
        if "create_pr" in request.query:
            number = sum(name.startswith("refs/pr/") for name in repo.refs) + 1
            branch = f"refs/pr/{number}"
            repo.refs[branch] = repo.refs[request.rev]
            extra["pullRequestUrl"] = f"{self.url}/{repo.name}/discussions/{number}"
        commit = repo.add_commit(branch, header["summary"], files)
        url = f"{self.url}/{repo.name}/commit/{commit.oid}"
        return Reply({"success": True, "commitOid": commit.oid, "commitUrl": url, "hookOutput": "", **extra})

    def _apply(self, body: bytes, before: dict[str, Blob]) -> tuple[dict[str, Any], dict[str, Blob]]:
        """Header of a commit's NDJSON and the files after its operations."""
        header: dict[str, Any] = {}
        files = dict(before)
        for line in body.splitlines():
            item = json.loads(line)
            key, value = item["key"], item["value"]
            if key == "header":
                header = value
            elif key == "file":
                files[value["path"]] = Blob(base64.b64decode(value["content"]))
            elif key == "lfsFile":
                files[value["path"]] = Blob(self._uploaded(value["oid"]), lfs=True)
            elif key == "deletedFile":
                files.pop(value["path"], None)
            else:
                raise HubError(400, f"Unknown operation: {key}")
        return header, files

    def _uploaded(self, oid: str) -> bytes:
        if oid not in self._objects:
            raise HubError(400, f"LFS object {oid} has not been uploaded")
        return self._objects[oid]

    def _on_resolve(self, request: Request) -> Reply:
        repo = self._readable(request)
        if repo.gated and request.user != repo.name.split("/")[0]:
            status = 403 if request.user else 401
            raise HubError(status, f"Access to model {repo.name} is restricted: ask for it.", "GatedRepo")
        commit = repo.commit_at(request.rev)
        headers = {"X-Repo-Commit": commit.oid}
        blob = commit.files.get(request.path)
        if blob is None:
            raise HubError(404, "Entry not found", "EntryNotFound", headers)
        headers["ETag"] = f'"{blob.etag}"'
        if blob.lfs:
            headers |= {"X-Linked-Etag": f'"{blob.etag}"', "X-Linked-Size": str(len(blob.content))}
        return Reply(blob.content, headers)


def card_metadata(card: str) -> dict[str, Any]:
    """Front matter of a model card, parsed as YAML."""
    match = _FRONT_MATTER.match(card.replace("\r\n", "\n"))
    if match is None:
        raise ValueError("the card has no front matter")
    metadata = yaml.safe_load(match[1])
    if not isinstance(metadata, dict):
        raise ValueError("the front matter is not a mapping")
    return metadata


def card_errors(card: str) -> list[str]:
    """What the Hub refuses in a card's front matter, of the keys that a wrapped model's card has."""
    try:
        metadata = card_metadata(card)
    except (ValueError, yaml.YAMLError) as error:
        return [str(error)] if card.startswith("---") else []
    errors = []
    bases = metadata.get("base_model", [])
    for base in [bases] if isinstance(bases, str) else bases:
        if not isinstance(base, str) or not _REPO_ID.fullmatch(base):
            errors.append(f'"base_model" with value "{base}" is not valid. Use a model id from the Hub.')
    if metadata.get("base_model_relation", "adapter") not in _RELATIONS:
        errors.append(f'"base_model_relation" must be one of {", ".join(_RELATIONS)}')
    for key in ("library_name", "license", "pipeline_tag"):
        if not isinstance(metadata.get(key, ""), str):
            errors.append(f'"{key}" must be a string')
    tags = metadata.get("tags", [])
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        errors.append('"tags" must be an array of strings')
    return errors


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "hub-server"

    def _handle(self) -> None:
        hub: HubServer = self.server.hub  # type: ignore[attr-defined]
        sent, fault = self._read_body(), hub.fault(self.command, self.path)
        if fault is not None and fault.kind == "status":
            reply = Reply({"error": "The server has a problem"}, status=fault.status)
            hub.log.append(LoggedRequest(self.command, unquote(urlsplit(self.path).path), None, fault.status))
        else:
            reply = hub.answer(self.command, self.path, self.headers.get("Authorization"), sent)
        is_raw = isinstance(reply.body, bytes)
        body = reply.body if is_raw else json.dumps(reply.body).encode()
        self.send_response(reply.status)
        self.send_header("Content-Type", "application/octet-stream" if is_raw else "application/json")
        self.send_header("Content-Length", str(len(body)))
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.end_headers()
        if fault is not None and fault.kind == "corrupt":
            body = body[:-5] + bytes([body[-5] ^ 1]) + body[-4:]
        if fault is not None and fault.kind == "cut":
            self.wfile.write(body[: len(body) // 2])
            self.close_connection = True
        elif self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_HEAD = do_POST = do_PUT = _handle

    def _read_body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return b"".join(chunks)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@dataclass(frozen=True)
class HubClient:
    """Runs functions in processes of their own, whose Hub is `endpoint` and whose cache is in `home`.

    Args:
        endpoint: Value of `HF_ENDPOINT`.
        home: Value of `HF_HOME`; the processes of a client share it, as the runs of one user do.
        has_package: Whether its processes can import `sol_hf`.
    """

    endpoint: str
    home: Path
    has_package: bool = True

    def call(self, function: Callable[..., Any], *, offline: bool = False, **arguments: Any) -> Any:
        """Result of `function`, a module-level function that takes and returns what JSON can hold."""
        self.home.mkdir(parents=True, exist_ok=True)
        target = self.home / "result.json"
        target.unlink(missing_ok=True)
        done = subprocess.run(
            [sys.executable, "-c", _BOOTSTRAP, function.__module__, function.__name__, str(target)],
            input=json.dumps(arguments),
            env=self._environment(offline),
            cwd=self.home,
            capture_output=True,
            text=True,
            timeout=280,
        )
        if done.returncode:
            pytest.fail(f"{function.__name__} failed:\n{done.stdout}{done.stderr}", pytrace=False)
        return json.loads(target.read_text(encoding="utf-8"))

    def _environment(self, offline: bool) -> dict[str, str]:
        removed = re.compile(r"(HF|HUGGINGFACE|HUGGING_FACE|TRANSFORMERS)_.*|(HTTPS?|ALL)_PROXY", re.IGNORECASE)
        environment = {name: value for name, value in os.environ.items() if not removed.fullmatch(name)}
        search_path = [str(Path(__file__).resolve().parents[1]), *filter(None, sys.path)]
        return environment | {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(self.home),
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_OFFLINE": "1" if offline else "0",
            "WITHOUT_SOL_HF": "" if self.has_package else "1",
            "NO_PROXY": "127.0.0.1",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(search_path),
        }


@pytest.fixture(scope="module", name="hub_server")
def hub_server_fixture() -> Iterator[HubServer]:
    """A server for the tests of a module."""
    server = HubServer()
    yield server
    server.close()
