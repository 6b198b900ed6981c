"""A stand-in for W&B's server: as much of its HTTP API as wandb 0.31 asks for, within the process of the test.

Written from the client's queries, so it shows what is sent, not what the service makes of it. It refuses what the
service would: a file whose bytes are not those of its Content-MD5, the commit of an artifact whose files did not come.
"""

import base64
import gzip
import hashlib
import json
import re
import socket
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Server:
    """Serves on a free port of this machine and keeps what it was sent: operations of GraphQL, and uploads."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, Any]] = []
        self.artifacts: dict[str, str] = {}  # "name digest" → id
        self.committed: set[str] = set()
        self.refused: set[str] = set()
        self._expected: dict[str, set[str]] = {}  # artifact → paths of its files that have not come yet
        self._connections: list[socket.socket] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                pass

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                if (asked := self.headers.get("Content-MD5")) and asked != md5(body):
                    outer.requests.append((f"refused {self.path}", asked))
                    self._reply({"error": "BadDigest"}, 400)
                else:
                    answer = outer.answer if self.path == "/graphql" else outer.keep
                    self._reply(answer(self.path, body))

            do_PUT = do_POST

            def _reply(self, answer: dict, status: int = 200) -> None:
                body = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: Any) -> None:
                pass  # The client resets connections that it no longer needs.

            def get_request(self) -> tuple[socket.socket, Any]:
                connection, address = super().get_request()
                outer._connections.append(connection)
                return connection, address

        self.http = Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def die(self) -> None:
        """Cuts all connections; from now on none is accepted."""
        self.http.shutdown()
        self.http.server_close()
        for connection in self._connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def keep(self, path: str, body: bytes) -> dict:
        """An upload."""
        self.requests.append((path, body.decode(errors="replace")))
        for waiting in self._expected.values():
            waiting.discard(path)
        return {}

    def sent(self, operation: str) -> list[Any]:
        """Variables of all requests with this name, or what was uploaded to paths that end with it."""
        return [body for name, body in self.requests if name == operation or name.endswith(f"/{operation}")]

    def answer(self, _path: str, body: bytes) -> dict:
        request = json.loads(body)
        operation = re.search(r"(?:query|mutation)\s+(\w+)", request["query"])[1]
        variables = request.get("variables") or {}
        self.requests.append((operation, variables))
        answers = {
            "UpsertBucket": self._upsert,
            "CreateArtifact": self._create,
            "CreateArtifactManifest": self._manifest,
            "CreateArtifactFiles": self._files,
            "CommitArtifact": self._commit,
            "UseArtifact": lambda v: {"useArtifact": {"artifact": {"id": v["input"]["artifactID"]}}},
            "CreateRunFiles": self._run_files,
            "ArtifactType": lambda v: {"project": {"artifact": None}},
            "ServerFeaturesQuery": lambda v: {"serverInfo": {"features": []}},
            "Viewer": lambda v: {"viewer": {"id": "u", "entity": "me", "username": "me", "flags": "{}"}},
        }
        if operation not in answers or operation in self.refused:
            return {"errors": [{"message": f"the stand-in refuses {operation}"}]}
        try:
            return {"data": answers[operation](variables)}
        except Refused as refused:
            return {"errors": [{"message": str(refused)}]}

    def _upsert(self, variables: dict) -> dict:
        project = {"id": "p", "name": variables["project"], "entity": {"id": "e", "name": "me"}}
        bucket = {name: variables.get(name) for name in ("name", "displayName", "config")}
        bucket |= {"id": "b", "project": project, "historyLineCount": 0}
        return {"upsertBucket": {"bucket": bucket, "inserted": True}}

    def _create(self, variables: dict) -> dict:
        asked = variables["input"]
        key = f"{asked['artifactCollectionName']} {asked['digest']}"
        identity = self.artifacts.setdefault(key, f"artifact-{len(self.artifacts)}")
        state = "COMMITTED" if identity in self.committed else "PENDING"
        artifact = {"id": identity, "state": state, "artifactSequence": {"latestArtifact": None}}
        return {"createArtifact": {"artifact": artifact}}

    def _commit(self, variables: dict) -> dict:
        identity = variables["artifactID"]
        if waiting := self._expected.get(identity):
            raise Refused(f"{', '.join(sorted(waiting))} did not come")
        self.committed.add(identity)
        return {"commitArtifact": {"artifact": {"id": identity, "digest": "d"}}}

    def _expect(self, artifact: str, name: str, digest: str | None) -> dict:
        """A file of an artifact, as the client is told where to put it."""
        path = f"/up/{artifact}/{name}"
        self._expected.setdefault(artifact, set()).add(path)
        headers = [f"Content-MD5:{digest}"] if digest else []
        return {"id": "f", "name": name, "displayName": name, "uploadUrl": self.url + path, "uploadHeaders": headers}

    def _manifest(self, variables: dict) -> dict:
        # First the client asks for the manifest's id alone, later, with its digest, for a place to put it.
        manifest: dict[str, Any] = {"id": f"manifest of {variables['artifactID']}"}
        if variables["includeUpload"]:
            manifest["file"] = self._expect(variables["artifactID"], "manifest.json", variables["digest"])
        return {"createArtifactManifest": {"artifactManifest": manifest}}

    def _files(self, variables: dict) -> dict:
        def node(file: dict) -> dict:
            shown = self._expect(file["artifactID"], file["name"], file["md5"])
            return {"node": {**shown, "artifact": {"id": file["artifactID"]}}}

        return {"createArtifactFiles": {"files": {"edges": [*map(node, variables["input"]["artifactFiles"])]}}}

    def _run_files(self, variables: dict) -> dict:
        files = [{"name": name, "uploadUrl": f"{self.url}/up/{name}"} for name in variables["files"]]
        return {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": files}}


class Refused(Exception):
    """What the service answers with an error."""


def md5(body: bytes) -> str:
    """The digest of a body, as Content-MD5 writes it."""
    return base64.b64encode(hashlib.md5(body).digest()).decode()
