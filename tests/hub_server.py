"""A small Hub on loopback: what `huggingface_hub` needs to push and to load, over the real protocol and in memory.

Belongs here: the HTTP that clients speak with the Hub (see the routes of [`Handler`]), and the ways in which a
network spoils it ([`Fault`]). Does not: anything about pipelines. Tests point real clients in fresh processes at
[`Hub.url`] with `HF_ENDPOINT`, which they read when they are imported.
"""

import base64
import contextlib
import hashlib
import json
import re
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import yaml


LFS_ENDINGS = (".safetensors", ".bin", ".jpg", ".png")
LFS_SIZE = 10 << 20  # larger ones are LFS whatever their name
TOKEN = "hf_loopback"
USER = "somebody"


def is_lfs(path: str, size: int) -> bool:
    return path.endswith(LFS_ENDINGS) or size > LFS_SIZE


@dataclass(frozen=True)
class File:
    """What a path holds at a commit.

    Attributes:
        content (`bytes`): all of it.
        lfs (`bool`): whether git holds a pointer and a store the content.
    """

    content: bytes
    lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def pointer(self) -> bytes:
        """What git itself holds of an LFS file."""
        text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.content)}\n"
        return text.encode()

    @property
    def blob_id(self) -> str:
        """git's name of it."""
        blob = self.pointer if self.lfs else self.content
        return hashlib.sha1(b"blob %d\0" % len(blob) + blob).hexdigest()

    @property
    def etag(self) -> str:
        """What clients call it by in their caches."""
        return self.sha256 if self.lfs else self.blob_id

    def describe(self, path: str) -> dict:
        """Its line in a tree."""
        entry = {"type": "file", "path": path, "size": len(self.content), "oid": self.blob_id}
        if self.lfs:
            entry["lfs"] = {"oid": self.sha256, "size": len(self.content), "pointerSize": len(self.pointer)}
        return entry


@dataclass
class Repository:
    """Commits by their hash, the newest last; each holds all of its files by path."""

    commits: dict[str, dict[str, File]] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def __post_init__(self):
        self.commit({}, "initial commit")

    @classmethod
    def of(cls, folder: Path) -> "Repository":
        """With the files of a folder."""
        repository = cls()
        paths = [path for path in folder.rglob("*") if path.is_file()]
        contents = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
        files = {path: File(content, is_lfs(path, len(content))) for path, content in contents.items()}
        repository.commit(files, "uploaded")
        return repository

    def commit(self, files: dict[str, File], message: str) -> str:
        tree = "".join(f"{path} {file.blob_id}\n" for path, file in sorted(files.items()))
        sha = hashlib.sha1(f"{len(self.commits)} {message}\n{tree}".encode()).hexdigest()
        self.commits[sha] = files
        self.messages.append(message)
        return sha

    @property
    def head(self) -> str:
        return list(self.commits)[-1]

    @property
    def files(self) -> dict[str, File]:
        return self.commits[self.head]

    def resolve(self, revision: str) -> str:
        """The commit of a branch (there is only `main`), of a hash or of the beginning of one."""
        if revision == "main":
            return self.head
        found = [sha for sha in self.commits if len(revision) >= 7 and sha.startswith(revision)]
        if not found:
            raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return found[0]


@dataclass
class Fault:
    """How downloads of one file go wrong.

    Attributes:
        ending (`str`): of the paths it befalls.
        kind (`str`):
            `"drop"`: the connection breaks on the way, and at once where the rest is asked for; `"flip"`: a byte in
            the middle is another one; `"short"`: the last byte is missing, and the length of the answer says so too.
        times (`float`): how many downloads it befalls.
    """

    ending: str
    kind: str
    times: float = float("inf")


class Refusal(Exception):
    """An answer other than success: its status, the Hub's `X-Error-Code`, and a sentence."""

    def __init__(self, status: int, code: str, message: str):
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


class Hub:
    """The state, and the server that shows it.

    Attributes:
        url (`str`): for `HF_ENDPOINT`.
        repositories (`dict[str, Repository]`): by `"owner/name"`.
        faults (`dict[str, Fault]`): by `"owner/name"`.
        requests (`list[str]`): `"METHOD path status"`, in order.
    """

    def __init__(self):
        self.repositories: dict[str, Repository] = {}
        self.faults: dict[str, Fault] = {}
        self.requests: list[str] = []
        self.objects: dict[str, bytes] = {}
        self.lock = threading.Lock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.hub = self
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def repository(self, name: str) -> Repository:
        if name not in self.repositories:
            raise Refusal(404, "RepoNotFound", "Repository not found")
        return self.repositories[name]

    def fault(self, name: str, path: str) -> str | None:
        """The fault that this download has to suffer."""
        fault = self.faults.get(name)
        with self.lock:
            if fault is None or not path.endswith(fault.ending) or fault.times <= 0:
                return None
            fault.times -= 1
            return fault.kind


@contextlib.contextmanager
def serve() -> Iterator[Hub]:
    """A Hub for as long as the block lasts."""
    hub = Hub()
    thread = threading.Thread(target=hub.server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.server.shutdown()
        hub.server.server_close()


REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"
ROUTES = [
    ("GET", r"/api/whoami-v2", "whoami"),
    ("POST", r"/api/repos/create", "create"),
    ("POST", r"/api/validate-yaml", "validate_card"),
    ("POST", rf"/api/models/{REPO}/preupload/(?P<revision>[^/]+)", "preupload"),
    ("POST", rf"/{REPO}\.git/info/lfs/objects/batch", "lfs_batch"),
    ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})", "lfs_upload"),
    ("POST", rf"/api/models/{REPO}/commit/(?P<revision>[^/]+)", "commit"),
    ("GET", rf"/api/models/{REPO}(/revision/(?P<revision>[^/]+))?", "info"),
    ("GET", rf"/api/models/{REPO}/tree/(?P<revision>[^/]+)", "tree"),
    ("GET", rf"/api/models/{REPO}/commits/(?P<revision>[^/]+)", "commits"),
    ("GET", rf"/{REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "download"),
    ("DELETE", rf"/faults/{REPO}", "spare"),
]


class Handler(BaseHTTPRequestHandler):
    """One connection. Each route of `ROUTES` is a method of its name, called with the parts of the path."""

    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> Hub:
        return self.server.hub

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        method = "GET" if self.command == "HEAD" else self.command
        try:
            for route_method, pattern, name in ROUTES:
                match = re.fullmatch(pattern, path)
                if match and route_method == method:
                    parts = {key: value and unquote(value) for key, value in match.groupdict().items()}
                    getattr(self, name)(**parts)
                    break
            else:
                raise Refusal(404, "NotFound", f"No such page: {self.command} {path}")
        except Refusal as refusal:
            headers = {"X-Error-Code": refusal.code, "X-Error-Message": refusal.message}
            self.answer(refusal.status, {"error": refusal.message}, headers)

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def log_message(self, *_) -> None:
        """Nothing on the screen: [`Hub.requests`] has it."""

    def answer(self, status: int, body: bytes | dict | list, headers: dict[str, str] | None = None) -> None:
        """`body` with its length; to HEAD without it."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.hub.requests.append(f"{self.command} {urlsplit(self.path).path} {status}")
        self.send_response(status)
        for key, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def require_owner(self, name: str) -> None:
        """Only with the token, and only in one's own name."""
        sent = self.headers.get("Authorization")
        if sent is None:
            raise Refusal(401, "Unauthorized", "Invalid username or password.")
        if sent != f"Bearer {TOKEN}":
            raise Refusal(401, "Unauthorized", "Invalid credentials in Authorization header")
        if name.split("/")[0] != USER:
            raise Refusal(403, "Forbidden", f'You don\'t have the rights to write under the namespace "{name}"')

    # Pushing

    def whoami(self) -> None:
        self.require_owner(USER)
        self.answer(200, {"type": "user", "name": USER, "orgs": [], "auth": {"type": "access_token"}})

    def create(self) -> None:
        request = json.loads(self.body)
        name = f"{request.get('organization') or USER}/{request['name']}"
        self.require_owner(name)
        found = name in self.hub.repositories
        if not found:
            self.hub.repositories[name] = Repository()
        self.answer(409 if found else 200, {"name": name, "id": name, "url": f"{self.hub.url}/{name}"})

    def validate_card(self) -> None:
        """The metadata at the top of a model card, as the Hub checks it before a commit."""
        card = re.match(r"---\n(.*?)\n---\n", json.loads(self.body)["content"], flags=re.DOTALL)
        errors, warnings = [], []
        try:
            data = yaml.safe_load(card.group(1)) if card else None
        except yaml.YAMLError as error:
            data = {}
            errors.append(f"YAML: {error}")
        if data is None:
            warnings.append("empty or missing yaml metadata in repo card")
        for key, value in (data or {}).items():
            kind = {"tags": list, "widget": list, "base_model": (str, list)}.get(key, str)
            if not isinstance(value, kind):
                errors.append(f'"{key}" must be {kind}')
        body = {"errors": [{"message": text} for text in errors], "warnings": [{"message": text} for text in warnings]}
        self.answer(400 if errors else 200, body)

    def preupload(self, repo: str, revision: str) -> None:
        self.require_owner(repo)
        files = self.hub.repository(repo).files
        modes = []
        for file in json.loads(self.body)["files"]:
            path, size = file["path"], file["size"]
            mode = {"path": path, "uploadMode": "lfs" if is_lfs(path, size) else "regular", "shouldIgnore": False}
            modes.append({**mode, "oid": files[path].etag} if path in files else mode)
        self.answer(200, {"files": modes})

    def lfs_batch(self, repo: str) -> None:
        self.require_owner(repo)
        objects = []
        for item in json.loads(self.body)["objects"]:
            if item["oid"] in self.hub.objects:
                objects.append(item)
            else:
                actions = {"upload": {"href": f"{self.hub.url}/lfs/{item['oid']}"}}
                objects.append({**item, "actions": actions})
        self.answer(200, {"transfer": "basic", "objects": objects})

    def lfs_upload(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise Refusal(422, "Unprocessable", "the content has another sha256 than its name")
        self.hub.objects[oid] = self.body
        self.answer(200, b"")

    def commit(self, repo: str, revision: str) -> None:
        self.require_owner(repo)
        repository = self.hub.repository(repo)
        files, summary = dict(repository.files), ""
        for line in self.body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                summary = value["summary"]
            elif item["key"] == "file":
                files[value["path"]] = File(base64.b64decode(value["content"]), lfs=False)
            elif item["key"] == "lfsFile":
                if value["oid"] not in self.hub.objects:
                    raise Refusal(400, "BadRequest", f"{value['path']} was not uploaded")
                files[value["path"]] = File(self.hub.objects[value["oid"]], lfs=True)
            elif item["key"] == "deletedFile":
                del files[value["path"]]
            else:
                raise Refusal(400, "BadRequest", f"unknown operation {item['key']}")
        sha = repository.commit(files, summary)
        self.answer(200, {"success": True, "commitOid": sha, "commitUrl": f"{self.hub.url}/{repo}/commit/{sha}"})

    # Loading

    def info(self, repo: str, revision: str | None) -> None:
        repository = self.hub.repository(repo)
        sha = repository.resolve(revision or "main")
        siblings = [{"rfilename": path} for path in sorted(repository.commits[sha])]
        self.answer(200, {"id": repo, "modelId": repo, "sha": sha, "private": False, "siblings": siblings})

    def tree(self, repo: str, revision: str) -> None:
        repository = self.hub.repository(repo)
        files = repository.commits[repository.resolve(revision)]
        entries = [file.describe(path) for path, file in sorted(files.items())]
        if parse_qs(urlsplit(self.path).query).get("recursive") not in (["true"], ["True"]):
            entries = [entry for entry in entries if "/" not in entry["path"]]
        self.answer(200, entries)

    def commits(self, repo: str, revision: str) -> None:
        repository = self.hub.repository(repo)
        commits = zip(repository.commits, repository.messages, strict=True)
        entries = [
            {"id": sha, "title": message, "message": "", "date": "2026-01-01T00:00:00.000Z", "authors": []}
            for sha, message in commits
        ]
        self.answer(200, entries[::-1])

    def download(self, repo: str, revision: str, path: str) -> None:
        repository = self.hub.repository(repo)
        sha = repository.resolve(revision)
        file = repository.commits[sha].get(path)
        if file is None:
            headers = {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found", "X-Repo-Commit": sha}
            self.answer(404, {"error": "Entry not found"}, headers)
            return
        headers = {"ETag": f'"{file.etag}"', "X-Repo-Commit": sha, "Accept-Ranges": "bytes"}
        if file.lfs:
            headers |= {"X-Linked-Etag": f'"{file.etag}"', "X-Linked-Size": str(len(file.content))}
        fault = None if self.command == "HEAD" else self.hub.fault(repo, path)
        content = file.content
        middle = len(content) // 2
        if fault == "flip":
            content = content[:middle] + bytes([content[middle] ^ 0x55]) + content[middle + 1 :]
        elif fault == "short":
            content = content[:-1]
        start = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        status = 206 if start else 200
        if start:
            first = int(start.group(1))
            headers["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
            content = content[first:]
        if fault == "drop":
            self.hub.requests.append(f"GET {urlsplit(self.path).path} dropped")
            self.send_response(status)
            for key, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(key, value)
            self.end_headers()
            if not start:
                self.wfile.write(content[: 3 * middle // 2])
                self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        self.answer(status, content, headers)

    # Not of the Hub: for tests

    def spare(self, repo: str) -> None:
        """Ends the repository's fault."""
        self.hub.faults.pop(repo, None)
        self.answer(200, {})
