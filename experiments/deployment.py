"""What each port of a deployment lets whom do, tried: a SuperLink and two SuperNodes on this machine, and a stranger.

    python experiments/deployment.py            # about four minutes; results/deployment.json
    python experiments/deployment.py --table    # what was found, as the page quotes it

The stranger has the CA's certificate, which is no secret, and reaches a port. Each attempt is made against three
layouts: TLS with known nodes; besides, apps under a SuperExec with a shared secret; besides, a proxy that lets sites
reach ``/v1/fleet/`` and nothing else. The last one needs nginx.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

RESULT = Path(__file__).parent / "results" / "deployment.json"
BIN = Path(sys.executable).parent
PORT = 18_401
SECRET = "a patient's record, which no task asks for"

_APP = """
import time

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

client = ClientApp()
server = ServerApp()


@client.query("read_file")
def read_file(message: Message, context: Context) -> Message:
    with open(context.node_config["records"], encoding="utf-8") as file:
        return Message(RecordDict({"file": ConfigRecord({"text": file.read()})}), reply_to=message)


@server.main()
def main(grid: Grid, context: Context) -> None:
    time.sleep(float(context.run_config["wait"]))
    asked = [Message(RecordDict({}), node, "query.read_file") for node in grid.get_node_ids()]
    replies = list(grid.send_and_receive(asked, timeout=60))
    texts = [str(reply.error.reason) if reply.has_error() else reply.content["file"]["text"] for reply in replies]
    with open(context.run_config["output"], "w", encoding="utf-8") as file:
        file.write("|".join(texts))
"""
_PROJECT = """
[project]
name = "reader"
version = "0.1.0"
description = "Returns a file of each node"
license = "Apache-2.0"
dependencies = []
[tool.flwr.app]
publisher = "stranger"
[tool.flwr.app.components]
serverapp = "reader:server"
clientapp = "reader:client"
[tool.flwr.app.config]
output = ""
wait = 0.0
"""
_NGINX = """
pid {here}/nginx.pid;
error_log {here}/nginx.log;
events {{}}
http {{
    access_log off;
    client_body_temp_path {here}/body;
    proxy_temp_path {here}/proxy;
    fastcgi_temp_path {here}/f;
    uwsgi_temp_path {here}/u;
    scgi_temp_path {here}/s;
    server {{
        listen 127.0.0.1:{public} ssl;
        ssl_certificate {here}/server.pem;
        ssl_certificate_key {here}/server.key;
        client_max_body_size 0;
        location /v1/fleet/ {{
            proxy_pass https://127.0.0.1:{port};
            proxy_ssl_trusted_certificate {here}/ca.crt;
            proxy_ssl_verify on;
            proxy_ssl_name localhost;
        }}
        location / {{ return 403; }}
    }}
}}
"""


class Deployment:
    """A SuperLink and two SuperNodes in a folder, until the stack closes."""

    def __init__(self, here: Path, stack: ExitStack, layout: str) -> None:
        self.here, self.stack, self.layout = here, stack, layout
        self.public = PORT + 1 if layout == "proxy" else PORT
        quiet = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
        quiet["PATH"] = os.pathsep.join([str(BIN), os.environ.get("PATH", "")])  # a SuperLink starts others by name
        self.environment = {**os.environ, **quiet, "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1"}
        self.keys()
        for user, port in (("owner", PORT), ("stranger", self.public)):
            (here / user).mkdir()
            config = f'[superlink]\ndefault = "link"\n[superlink.link]\naddress = "127.0.0.1:{port}"\n'
            (here / user / "config.toml").write_text(f'{config}root-certificates = "{here}/ca.crt"\n')
        (here / "app").mkdir()
        (here / "app" / "reader.py").write_text(_APP)
        (here / "app" / "pyproject.toml").write_text(_PROJECT)
        self.secret = ["--superexec-auth-secret-file", str(here / "superexec.secret")]
        self.isolated = ["--isolation", "process", *self.secret] if layout != "guide" else []
        self.superlink()
        if layout == "proxy":
            (here / "nginx.conf").write_text(_NGINX.format(here=here, port=PORT, public=self.public))
            self.start("proxy", ["nginx", "-c", f"{here}/nginx.conf", "-g", "daemon off;"])
        for node in (0, 1):
            self.node(node)

    def keys(self) -> None:
        """Make a certificate authority, the server's certificate, a key per node and the secret."""
        commands = (
            'openssl req -x509 -newkey rsa:2048 -nodes -days 3 -keyout ca.key -out ca.crt -subj "/CN=test CA" '
            "-addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign,cRLSign",
            'openssl req -newkey rsa:2048 -nodes -keyout server.key -out server.csr -subj "/CN=localhost"',
            "printf 'subjectAltName=DNS:localhost,IP:127.0.0.1\\nbasicConstraints=CA:FALSE\\n' > san.ext",
            "openssl x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 3 -out server.pem "
            "-extfile san.ext",
            "openssl rand -hex 32 > superexec.secret && chmod 600 superexec.secret",
            *(f'ssh-keygen -q -t ecdsa -b 384 -N "" -f {name}' for name in ("node0", "node1", "strange")),
        )
        for command in commands:
            subprocess.run(command, shell=True, cwd=self.here, check=True, capture_output=True)

    def superlink(self) -> None:
        """Start the SuperLink and wait until it answers."""
        tls = ["--ssl-ca-certfile", "ca.crt", "--ssl-certfile", "server.pem", "--ssl-keyfile", "server.key"]
        options = ["--enable-supernode-auth", "--host", "127.0.0.1", "--port", str(PORT), *self.isolated]
        command = [str(BIN / "flower-superlink"), *tls, *options, "--disable-runtime-dependency-installation"]
        self.start("superlink", command)
        self.wait_for(f"https://127.0.0.1:{PORT}/health")
        if self.isolated:
            address = ["--runtime-api-address", f"127.0.0.1:{PORT}", "--root-certificates", "ca.crt"]
            self.start("superlink-exec", [str(BIN / "flower-superexec"), *address, *self.secret])

    def node(self, node: int) -> None:
        """Register a node's key, which only the owner of the SuperLink may do, and start it."""
        self.flwr("owner", "supernode", "register", str(self.here / f"node{node}.pub"), "link", "--name", f"site{node}")
        records = self.here / f"records{node}"
        records.write_text(SECRET)
        local = ["--host", "127.0.0.1", "--port", str(PORT + 100 + node)]
        link = ["--root-certificates", "ca.crt", "--superlink", f"127.0.0.1:{self.public}"]
        config = ["--node-config", f"records='{records}'"]
        key = ["--auth-supernode-private-key", f"node{node}"]
        self.start(f"node{node}", [str(BIN / "flower-supernode"), *link, *key, *local, *config, *self.isolated])
        if self.isolated:
            address = ["--insecure", "--runtime-api-address", f"127.0.0.1:{PORT + 100 + node}"]
            self.start(f"node{node}-exec", [str(BIN / "flower-superexec"), *address, *self.secret])

    def start(self, name: str, command: list[str]) -> subprocess.Popen[bytes]:
        """Start a process that ends with the stack."""
        log = self.stack.enter_context((self.here / f"{name}.log").open("wb"))
        process = subprocess.Popen(
            command, cwd=self.here, env=self.environment, stdout=log, stderr=log, start_new_session=True
        )
        self.stack.callback(_end, process)
        return process

    def wait_for(self, url: str) -> None:
        """Wait until a server answers at all."""
        for _ in range(120):
            if _asked(url, None, self.here / "ca.crt")[0]:
                return
            time.sleep(0.5)
        raise TimeoutError(f"{url} does not answer")

    def flwr(self, user: str, *arguments: str) -> str:
        """Run Flower's command line as a user and return what it printed."""
        environment = {**self.environment, "FLWR_HOME": str(self.here / user)}
        command = [str(BIN / "flwr"), *arguments]
        ended = subprocess.run(command, env=environment, cwd=self.here, capture_output=True, text=True, check=False)
        return ended.stdout + ended.stderr

    def read_records(self, user: str) -> str:
        """Start a run of an app that returns a file of each node, as a user; say what came back."""
        output = self.here / f"taken-{user}"
        said = self.flwr(user, "run", "app", "link", "--stream", "--run-config", f"output='{output}'")
        if not output.exists():
            return f"refused: {_first_error(said)}"
        taken = output.read_text().split("|")
        return f"{taken.count(SECRET)} of 2 nodes' files came back"

    def start_run(self, wait: float = 0.0) -> None:
        """Let the owner start a run and do not wait for it."""
        asked = f"output='{self.here / 'own'}' wait={wait}"
        command = [str(BIN / "flwr"), "run", "app", "link", "--run-config", asked]
        environment = {**self.environment, "FLWR_HOME": str(self.here / "owner")}
        process = subprocess.Popen(
            command, env=environment, cwd=self.here, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self.stack.callback(process.wait)

    def stop_run(self, user: str) -> str:
        """Stop the owner's run as a user."""
        before = self.runs("owner")
        self.start_run(wait=60.0)
        for _ in range(60):
            if new := [run for run in self.runs("owner") if run not in before]:
                break
            time.sleep(0.5)
        said = self.flwr(user, "stop", str(new[0]), "link")
        self.flwr("owner", "stop", str(new[0]), "link")
        return "stopped" if "success" in said.lower() else f"refused: {_first_error(said)}"

    def runs(self, user: str) -> list[str]:
        """Return the ids of the runs that a user sees."""
        listed = self.flwr(user, "list", "link", "--format", "json")
        try:
            return [str(run["run-id"]) for run in json.loads(listed)["runs"]]
        except (ValueError, KeyError):
            return []

    def join(self, key: str) -> str:
        """Start a node with a key and return whether it stays."""
        link = ["--root-certificates", "ca.crt", "--superlink", f"127.0.0.1:{self.public}"]
        local = ["--host", "127.0.0.1", "--port", str(PORT + 109), "--auth-supernode-private-key", key]
        process = self.start(f"node-{key}", [str(BIN / "flower-supernode"), *link, *local])
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            return "it joined"
        said = (self.here / f"node-{key}.log").read_text(errors="replace")
        return f"refused: {'exit code 305' if '305' in said else _first_error(said)}"


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and whatever it started."""
    for number in (15, 9):
        try:
            os.killpg(process.pid, number)
            process.wait(10)
            return
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue


def _first_error(said: str) -> str:
    """Return the line of an output that tells what was wrong."""
    found = re.search(r"\d{3} (?:Forbidden|Unauthorized)|[A-Z][^\n]*(?:fail|denied|not )[^\n]*", said)
    return f"HTTP {found[0]}" if found and found[0][0].isdigit() else found[0][:120] if found else "no word"


def _asked(url: str, body: bytes | None, ca: Path) -> tuple[int, bytes]:
    """Return status and body of a request; 0 where nobody answers."""
    import ssl

    context = ssl.create_default_context(cafile=str(ca)) if url.startswith("https") else None
    kind = {"Content-Type": "application/protobuf", "flwr-package-name": "flwr", "flwr-package-version": "1.42.0"}
    try:
        request = urllib.request.Request(url, data=body, headers={**kind, "flwr-component-name": "SuperExec"})
        with urllib.request.urlopen(request, timeout=5, context=context) as reply:
            return reply.status, reply.read()
    except urllib.error.HTTPError as refused:
        return refused.code, refused.read()
    except OSError:
        return 0, b""


def take_task(url: str, ca: Path, deployment: Deployment, what: str) -> str:
    """Ask a Runtime API for tasks, as an app's process does, while the owner's run goes on."""
    from flwr.proto.runtime_pb2 import AcquireTaskRequest, AcquireTaskResponse

    body = AcquireTaskRequest(supported_task_types=[what]).SerializeToString()
    status, _ = _asked(url, body, ca)
    if status != 200:
        return f"refused: HTTP {status}" if status else "no answer"
    deployment.start_run()
    for _ in range(1_500):
        status, found = _asked(url, body, ca)
        answer = AcquireTaskResponse.FromString(found) if status == 200 else None
        if answer is not None and answer.token:
            return f"took over a {what} task of the owner's run"
        time.sleep(0.01)
    return "answered, but the own SuperExec was faster each time"


def attempts(deployment: Deployment) -> Iterator[tuple[str, str]]:
    """Yield what was tried and what came of it."""
    here, ca = deployment.here, deployment.here / "ca.crt"
    yield "the owner starts a run", deployment.read_records("owner")
    yield "a stranger starts a run that reads files", deployment.read_records("stranger")
    yield "a node joins whose key is not registered", deployment.join("strange")
    listed = len(deployment.runs("stranger"))
    yield "a stranger lists runs", f"{listed} listed" if listed else "none listed"
    yield "a stranger stops the owner's run", deployment.stop_run("stranger")
    said = deployment.flwr("stranger", "supernode", "register", str(here / "strange.pub"), "link", "--name", "site9")
    is_in = "success" in said.lower()
    yield "a stranger registers a node's key", "registered" if is_in else f"refused: {_first_error(said)}"
    runtime = "v1/runtime/acquire-task"
    yield (
        "a stranger takes the server's task",
        take_task(f"https://127.0.0.1:{deployment.public}/{runtime}", ca, deployment, "flwr-serverapp"),
    )
    yield (
        "a process on a node's host takes the node's task",
        take_task(f"http://127.0.0.1:{PORT + 100}/{runtime}", ca, deployment, "flwr-clientapp"),
    )


LAYOUTS = {
    "guide": "TLS, `--enable-supernode-auth`",
    "secret": "and `--isolation process` with a SuperExec's secret",
    "proxy": "and a proxy that passes `/v1/fleet/` alone",
}


@contextmanager
def deployed(layout: str) -> Iterator[Deployment]:
    """Start a layout in a folder of its own and end it."""
    with tempfile.TemporaryDirectory(prefix="fedcondense-") as folder, ExitStack() as stack:
        yield Deployment(Path(folder), stack, layout)


def table() -> str:
    """Return what was found, a row per attempt."""
    found: dict[str, Any] = json.loads(RESULT.read_text())["layouts"]
    lines = [f"| | {' | '.join(LAYOUTS[name] for name in found)} |", f"|---|{'---|' * len(found)}"]
    for attempt in next(iter(found.values())):
        lines.append(f"| {attempt} | {' | '.join(told[attempt] for told in found.values())} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--only", choices=LAYOUTS)
    given = parser.parse_args()
    if given.table:
        print(table())
        return
    found: dict[str, dict[str, str]] = {}
    for layout in [given.only] if given.only else LAYOUTS:
        with deployed(layout) as deployment:
            found[layout] = {}
            for attempt, outcome in attempts(deployment):
                found[layout][attempt] = outcome
                print(f"{layout}: {attempt}: {outcome}", flush=True)
    if not given.only:
        from importlib.metadata import version

        RESULT.write_text(json.dumps({"flwr": version("flwr"), "layouts": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
