"""A stand-in for the Hugging Face hub: as much of its HTTP API as uploading and loading a data set asks for.

Written from the client's requests, so it shows what is sent and what can be loaded again, not what the service makes of
it. Files come within the commit, not by LFS.
"""

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

OID = "c" * 40


class Hub:
    """Serves on a free port; keeps repositories {name: {path: bytes}}, whether each is private, and every request."""

    def __init__(self, token: str) -> None:
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.requests: list[tuple[str, str]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                pass

            def _answer(self) -> None:
                path = unquote(urlsplit(self.path).path)
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                outer.requests.append((self.command, path))
                if self.headers.get("Authorization") != f"Bearer {token}":
                    self._send(401, {"error": "Invalid username or password."})
                else:
                    self._send(*outer.answer(path, body))

            do_GET = do_HEAD = do_POST = _answer

            def _send(self, status: int, answer: Any) -> None:
                body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
                self.send_header("X-Repo-Commit", OID)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, path: str, body: bytes) -> tuple[int, Any]:
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = "/".join(part for part in (asked.get("organization") or "me", asked["name"]) if part)
            if name in self.repositories:
                return 409, {"error": "You already created this dataset repo", "url": f"{self.address}/datasets/{name}"}
            self.repositories[name], self.private[name] = {}, asked["visibility"] == "private"
            return 200, {"url": f"{self.address}/datasets/{name}", "name": name}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        parts = path.removeprefix("/api").split("/")[1:]
        if parts[0] != "datasets" or (name := "/".join(parts[1:3])) not in self.repositories:
            return 404, {"error": "Repository not found"}
        files, what = self.repositories[name], parts[3] if len(parts) > 3 else "info"
        if what == "preupload":
            asked = [one["path"] for one in json.loads(body)["files"]]
            return 200, {"files": [{"path": p, "uploadMode": "regular", "shouldIgnore": False} for p in asked]}
        if what == "commit":
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            return 200, {"commitUrl": f"{self.address}/datasets/{name}/commit/{OID}", "commitOid": OID, "success": True}
        if what == "resolve":
            held = files.get("/".join(parts[5:]))
            return (404, {"error": "Entry not found"}) if held is None else (200, held)
        if what in ("tree", "paths-info"):
            return 200, [{"type": "file", "path": p, "size": len(b), "oid": OID} for p, b in files.items()]
        siblings = [{"rfilename": p} for p in files]
        return 200, {"id": name, "sha": OID, "private": self.private[name], "siblings": siblings, "tags": []}
