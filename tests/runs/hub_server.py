"""A stand-in for the Hugging Face hub: what huggingface-hub needs of its HTTP API to create, fill and read a model."""

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

SHA = "0" * 39 + "1"  # of the only commit
TOKEN = "hf_right"


class Hub:
    """The repositories of a hub: their files, and whether they are private."""

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.objects: dict[str, bytes] = {}  # large files by their hash, as they were put
        self.url = ""

    def describe(self, repo: str) -> dict:
        names = [{"rfilename": name} for name in self.files[repo]]
        return {
            "id": repo,
            "modelId": repo,
            "sha": SHA,
            "private": self.private[repo],
            "siblings": names,
            "tags": [],
        }

    def create(self, body: bytes, _) -> tuple[int, dict]:
        asked = json.loads(body)
        repo = f"{asked['organization']}/{asked['name']}"
        status = 409 if repo in self.files else 200
        self.files.setdefault(repo, {})
        self.private.setdefault(repo, asked.get("visibility") == "private" or asked.get("private") is True)
        return status, {"url": f"{self.url}/{repo}", "error": "You already created this model repo"}

    def preupload(self, body: bytes, _) -> tuple[int, dict]:
        def mode(name: str) -> str:
            return "lfs" if name.endswith(".safetensors") else "regular"

        asked = json.loads(body)["files"]
        return 200, {
            "files": [
                {"path": f["path"], "uploadMode": mode(f["path"]), "shouldIgnore": False} for f in asked
            ]
        }

    def batch(self, body: bytes, _) -> tuple[int, dict]:
        asked = json.loads(body)["objects"]
        return 200, {
            "transfer": "basic",
            "objects": [o | {"actions": {"upload": {"href": f"{self.url}/put/{o['oid']}"}}} for o in asked],
        }

    def put(self, body: bytes, oid: str) -> tuple[int, dict]:
        assert hashlib.sha256(body).hexdigest() == oid
        self.objects[oid] = body
        return 200, {}

    def commit(self, body: bytes, repo: str) -> tuple[int, dict]:
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                self.files[repo][value["path"]] = base64.b64decode(value["content"])
            if line["key"] == "lfsFile":
                self.files[repo][value["path"]] = self.objects[value["oid"]]
        return 200, {"commitUrl": f"{self.url}/{repo}/commit/{SHA}", "commitOid": SHA, "hookOutput": ""}

    def tree(self, repo: str) -> list[dict]:
        return [
            {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
            for name, data in self.files[repo].items()
        ]


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    writes = [
        (r"/api/repos/create", hub.create), (r"/api/models/([^/]+/[^/]+)/preupload/main", hub.preupload),
        (r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", hub.batch), (r"/put/(\w+)", hub.put),
        (r"/api/models/([^/]+/[^/]+)/commit/main", hub.commit),
        (r"/api/validate-yaml", lambda *_: (200, {"errors": [], "warnings": []})),
    ]  # fmt: skip

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_) -> None:
            pass

        def answer(
            self, status: int, value: object = None, data: bytes | None = None, **headers: str
        ) -> None:
            data = json.dumps(value).encode() if data is None else data
            self.send_response(status)
            for name, text in {"Content-Length": str(len(data)), **headers}.items():
                self.send_header(name.replace("_", "-"), text)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        def write(self) -> None:
            if self.headers.get("Transfer-Encoding") == "chunked":
                body = b""
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
            else:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            path = unquote(urlsplit(self.path).path)
            if not path.startswith("/put/") and self.headers.get("Authorization") != f"Bearer {TOKEN}":
                return self.answer(401, {"error": "Invalid username or password."})
            for pattern, serve in writes:
                if found := re.fullmatch(pattern, path):
                    return self.answer(*serve(body, found[1] if found.groups() else ""))
            return self.answer(404, {"error": f"no {path}"})

        do_POST = do_PUT = write

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            name = re.match(r"/api/models/([^/]+/[^/]+)", path) or re.match(r"/([^/]+/[^/]+)/resolve/", path)
            repo = name[1] if name else ""
            if repo not in hub.files:
                return self.answer(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
            if "/tree/" in path:
                return self.answer(200, hub.tree(repo))
            if path.startswith("/api/"):
                return self.answer(200, hub.describe(repo))
            data = hub.files[repo].get(path.rpartition("/")[2])
            if data is None:
                return self.answer(404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound")
            tag = f'"{hashlib.sha1(data).hexdigest()}"'
            return self.answer(200, data=data, ETag=tag, X_Repo_Commit=SHA)

        do_HEAD = do_GET

    return Handler


@contextmanager
def serving():
    """A hub at ``hub.url``, on this machine."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
