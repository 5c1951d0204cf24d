"""A small Hugging Face Hub: as much of its API as huggingface_hub uses to find, download and upload a model."""

import base64
import contextlib
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

WRITER = "hf_writer"  # the token of the account that may do everything


class Repository:
    """The files of a repository at each of its commits."""

    def __init__(self, private=False, gated=False):
        self.private, self.gated = private, gated
        self.commits = {}  # commit: path to content
        self.refs = {}  # branch: commit
        self.sizes = {}  # path: the size that the list of files announces, where it is another

    def commit(self, files, branch="main"):
        """Add files to a branch, which begins at main, and return the commit."""
        before = self.commits.get(self.refs.get(branch) or self.refs.get("main"), {})
        commit = hashlib.sha1(f"{len(self.commits)} {sorted(files)} {id(self)}".encode()).hexdigest()
        self.commits[commit] = {**before, **files}
        self.refs[branch] = commit
        return commit

    def at(self, revision):
        commit = self.refs.get(revision, revision)
        return (commit, self.commits[commit]) if commit in self.commits else (None, None)


class Hub:
    """Repositories by name, uploaded objects by SHA-256, and a log of the requests."""

    def __init__(self):
        self.repositories, self.objects, self.log = {}, {}, []
        self.broken = False  # answers every request with 503
        self.page = False  # answers every request with a page, as the proxy of a hotel does
        self.address = None

    def add(self, name, folder=None, *, files=None, **options):
        """Add a repository with the files of a folder; return it."""
        made = self.repositories[name] = Repository(**options)
        found = (
            {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
            if folder
            else {}
        )
        made.commit({**found, **(files or {})})
        return made

    def downloads(self):
        """The paths of the files that were downloaded so far."""
        return [
            path.split("/resolve/")[1].split("/", 1)[1]
            for method, path in self.log
            if method == "GET" and "/resolve/" in path
        ]


def handler(hub):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def send(self, content=b"", status=200, **headers):
            body = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), str(value))
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def refuse(self, status, code):
            self.send({"error": code}, status, X_Error_Code=code, X_Error_Message=code)

        def repository(self, name):
            """The repository of a request, or None after an answer that there is none for this account."""
            found, allowed = hub.repositories.get(name), WRITER in self.headers.get("Authorization", "")
            if found is None or (found.private and not allowed):
                return self.refuse(401 if not allowed else 404, "RepoNotFound")
            return found

        def handle_request(self):
            path = unquote(urlsplit(self.path).path)
            hub.log.append((self.command, path))
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if hub.broken:
                return self.send({"error": "down"}, 503)
            if hub.page:
                return self.send(b"<html>Log in</html>")
            writes = self.command in ("POST", "PUT")
            if (
                writes
                and WRITER not in self.headers.get("Authorization", "")
                and not path.startswith("/lfs/")
            ):
                return self.send({"error": "Invalid username or password."}, 401)
            if path.startswith("/lfs/"):
                hub.objects[path.removeprefix("/lfs/")] = body
                return self.send()
            if path == "/api/validate-yaml":
                return self.send({"errors": [], "warnings": []})
            if path == "/api/repos/create":
                return self.create(json.loads(body))
            if path.endswith(".git/info/lfs/objects/batch"):
                return self.lfs(json.loads(body))
            words = [unquote(word) for word in urlsplit(self.path).path.strip("/").split("/")]
            if words[:2] == ["api", "models"]:
                return self.api("/".join(words[2:4]), words[4:], body)
            if words[2:3] == ["resolve"]:
                return self.file("/".join(words[:2]), words[3], "/".join(words[4:]))
            return self.refuse(404, "EntryNotFound")

        do_GET = do_HEAD = do_POST = do_PUT = handle_request  # noqa: N815 (the names of http.server)

        def create(self, asked):
            name = f"{asked['organization']}/{asked['name']}"
            if asked["organization"] != "me":
                return self.send({"error": "You have no rights in this namespace"}, 403)
            if name in hub.repositories:
                return self.send({"error": "already there", "url": f"{hub.address}/{name}"}, 409)
            private = asked.get("private") or asked.get("visibility") == "private"
            hub.repositories[name] = Repository(private=bool(private))
            hub.repositories[name].commit({".gitattributes": b""})
            return self.send({"url": f"{hub.address}/{name}", "name": name, "id": "1"})

        def api(self, name, words, body):
            found = self.repository(name)
            if found is None:
                return None
            if words[:1] == ["preupload"]:
                modes = [
                    {"path": f["path"], "shouldIgnore": False}
                    | {"uploadMode": "lfs" if f["path"].endswith(".safetensors") else "regular"}
                    for f in json.loads(body)["files"]
                ]
                return self.send({"files": modes})
            if words[:1] == ["commit"]:
                return self.commit(name, found, body)
            if (
                words and words[0] != "revision"
            ):  # such as the tree, where transformers looks for more templates
                return self.refuse(404, "EntryNotFound")
            commit, files = found.at("/".join(words[1:]) or "main")
            if commit is None:
                return self.refuse(404, "RevisionNotFound")
            listed = [
                {"rfilename": path, "blobId": commit, "size": found.sizes.get(path, len(content))}
                for path, content in files.items()
            ]
            return self.send(
                {"id": name, "sha": commit, "private": found.private, "siblings": listed, "tags": []}
            )

        def commit(self, name, found, body):
            files = {}
            for line in body.splitlines():
                item = json.loads(line)
                value = item["value"]
                if item["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif item["key"] == "lfsFile":
                    files[value["path"]] = hub.objects[value["oid"]]
            commit = found.commit(files)
            return self.send({"commitUrl": f"{hub.address}/{name}/commit/{commit}", "commitOid": commit})

        def lfs(self, asked):
            objects = [
                {**one, "actions": {"upload": {"href": f"{hub.address}/lfs/{one['oid']}"}}}
                for one in asked["objects"]
            ]
            return self.send({"transfer": "basic", "objects": objects})

        def file(self, name, revision, path):
            found = self.repository(name)
            if found is None:
                return None
            if found.gated:
                return self.refuse(403, "GatedRepo")
            commit, files = found.at(revision)
            if commit is None:
                return self.refuse(404, "RevisionNotFound")
            if path not in files:
                return self.send({}, 404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
            etag = hashlib.sha256(files[path]).hexdigest()
            return self.send(files[path], X_Repo_Commit=commit, ETag=f'"{etag}"')

    return Handler


@contextlib.contextmanager
def running():
    """Serve a Hub in a thread, and yield it."""
    hub = Hub()
    with ThreadingHTTPServer(("127.0.0.1", 0), handler(hub)) as server:
        hub.address = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
