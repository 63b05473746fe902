"""The same apps under Ray, through `flwr run`, and on SuperNodes, of which one is killed."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from fedcondense.data.loading import load_data
from fedcondense.flower.client import app as client_app
from fedcondense.flower.hosts.inprocess import run_in_process
from fedcondense.flower.server import make_server_app
from fedcondense.sets.synthetic import SyntheticSet

pytestmark = pytest.mark.slow

APP = Path(__file__).parents[2] / "strategies" / "one-shot"
BIN = Path(sys.executable).parent


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A private FLWR_HOME and ports; the SuperLink that `flwr run` leaves running is ended."""
    variables = {
        **os.environ,
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join([str(APP.parents[1]), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep),
        "FLWR_HOME": str(tmp_path / "flwr"),
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(free_port()),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "OMP_NUM_THREADS": "1",
    }
    yield variables
    for pid in superlinks(str(tmp_path / "flwr")):
        os.kill(pid, signal.SIGTERM)


def superlinks(home: str) -> list[int]:
    """Return the SuperLinks that run with this FLWR_HOME."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            if process.name.isdecimal() and f"FLWR_HOME={home}".encode() in (process / "environ").read_bytes():
                command = (process / "cmdline").read_bytes()
                if b"flower-superlink" in command:
                    found.append(int(process.name))
        except OSError:
            continue  # gone meanwhile, or of somebody else
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def flower(arguments: Sequence[str], environment: dict[str, str]) -> str:
    done = subprocess.run(
        arguments, env=environment, check=True, capture_output=True, text=True, timeout=900, stdin=subprocess.DEVNULL
    )
    return done.stdout


def in_process(folder: Path, run_config: dict[str, Any]) -> SyntheticSet:
    run_in_process(make_server_app(), client_app, 2, run_config={**run_config, "output": str(folder)})
    return SyntheticSet.load(folder / "joined.safetensors")


RUN: dict[str, Any] = {"ipc": 1, "objective": "dm", "steps": 5, "data": "digits", "wait": 600.0}


def images(joined: SyntheticSet) -> list[bytes]:
    return [part.codes["images"].numpy().tobytes() for part in joined.parts]


@pytest.mark.filterwarnings("ignore")  # Ray and Flower warn of their own parts
def test_ray_gives_the_sets_that_one_process_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The contract that guards the three private imports of flwr."""
    pytest.importorskip("ray")
    from fedcondense.flower.hosts.simulation import simulate

    monkeypatch.setenv("PYTHONPATH", str(APP.parents[1]))
    # A simulation has no run config: it stands in the server app, and the nodes take their defaults (digits).
    server = make_server_app({**RUN, "output": str(tmp_path / "ray")})
    simulate(server, client_app, 2)
    assert os.environ["PYTHONPATH"] == str(APP.parents[1])
    ray = SyntheticSet.load(tmp_path / "ray" / "joined.safetensors")
    assert images(ray) == images(in_process(tmp_path / "own", RUN))


def test_flwr_run_works_as_the_readme_says(tmp_path: Path, environment: dict[str, str]) -> None:
    config = f'ipc=1 objective="dm" steps=5 output="{tmp_path / "run"}"'
    nodes = "num-supernodes=2 client-resources-num-cpus=1"
    command = ["flwr", "run", str(APP), "--stream", "--run-config", config, "--federation-config", nodes]
    flower(command, environment)
    listed = json.loads(flower(["flwr", "list", "--format", "json"], environment))
    assert [run["status"] for run in listed["runs"]] == ["finished:completed"]
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["rows"]["one-shot"]["accuracy"] > 20
    assert images(SyntheticSet.load(tmp_path / "run" / "joined.safetensors")) == images(
        in_process(tmp_path / "own", RUN)
    )


def test_a_supernode_that_is_killed_in_mid_round_costs_its_own_set_only(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    """Two SuperNodes; one is killed, children included, while it condenses."""
    port, nodes = free_port(), [free_port(), free_port()]
    home = Path(environment["FLWR_HOME"])
    home.mkdir()
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "loopback"\n[superlink.loopback]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
    )
    started: list[subprocess.Popen[bytes]] = []

    def start(name: str, *arguments: str) -> subprocess.Popen[bytes]:
        with open(tmp_path / f"{name}.log", "wb") as log:
            process = subprocess.Popen(
                arguments, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
            )
        started.append(process)
        return process

    try:
        start(
            "superlink",
            *("flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", str(port)),
            "--disable-runtime-dependency-installation",
        )
        wait_until(lambda: is_healthy(port), 600, "the SuperLink is up")
        supernodes = [
            start(
                f"node{k}",
                *("flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{port}"),
                *("--host", "127.0.0.1", "--port", str(nodes[k])),
                *("--node-config", f"partition-id={k} num-partitions=2 max-seconds=inf max-steps=10000000"),
            )
            for k in (0, 1)
        ]
        # Both condense for some seconds. The SuperLink notices the death after 50: the grace period ends the round.
        output = tmp_path / "run"
        config = f'ipc=1 objective="dm" steps=2000 grace=5.0 timeout=900.0 output="{output}"'
        run = start("run", "flwr", "run", str(APP), "loopback", "--stream", "--run-config", config)
        wait_until(lambda: bool(children_of(supernodes[1].pid, "flwr-clientapp")), 600, "node 1 works")
        time.sleep(3)
        os.killpg(supernodes[1].pid, signal.SIGKILL)
        run.wait(timeout=900)
        result = json.loads((output / "result.json").read_text())
        assert result["rows"]["one-shot"]["clients"] == 1
        assert [path.name for path in (output / "clients").iterdir()] == ["client-0.safetensors"]
        assert len(result["refused"]) == 1
        assert result["refused"][0]["client"].startswith("node-")
        assert result["refused"][0]["reason"]
    finally:
        for process in started:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
        for process in started:
            try:
                process.wait(timeout=600)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.skipif(not shutil.which("openssl") or not shutil.which("curl"), reason="needs openssl and curl")
def test_the_deployment_script_has_tls_known_nodes_and_one_that_comes_late(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    names, digits = ("north", "south", "late"), load_data("digits").train
    for k, name in enumerate(names):
        data = digits.subset(torch.arange(60 * k, 60 * k + 60))
        for n, (image, label) in enumerate(zip(data.images, data.labels, strict=True)):
            path = tmp_path / name / data.spec.classes[int(label)] / f"{n}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image[0].numpy()).save(path)
    folder = tmp_path / "deployment"
    environment |= {
        "PORT": str(free_port()),
        "SITES": f"folder:{tmp_path}/north folder:{tmp_path}/south",
        "RUN": 'data="" ipc=1 objective="dm" steps=5 min-available-nodes=3 wait=600.0',
        "NODE": "min-records=2",
    }
    with subprocess.Popen([APP / "deploy.sh", folder], env=environment, stdin=subprocess.DEVNULL) as run:
        joined = folder / "joined"
        wait_until(lambda: joined.exists() and len(joined.read_text().split()) == 2, 600, "two sites")
        flower(["sh", str(folder / "add.sh"), f"folder:{tmp_path}/late"], environment)
        assert run.wait(timeout=900) == 0
    assert {path.stem for path in (folder / "result" / "clients").iterdir()} == set(names)
    started = [int(pid) for pid in (folder / "started").read_text().split()]
    assert len(started) == 2 + 2 * len(names)
    wait_until(lambda: not any(map(is_alive, started)), 60, "all that was started has ended")


def is_alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return "flower" in Path(f"/proc/{pid}/cmdline").read_text()
    return False


def children_of(pid: int, name: str) -> list[int]:
    """Return the processes of a session whose command holds `name`."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            is_child = process.name.isdecimal() and os.getsid(int(process.name)) == pid
            if is_child and name.encode() in (process / "cmdline").read_bytes():
                found.append(int(process.name))
        except OSError:
            continue
    return found


def is_healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def wait_until(holds: Any, seconds: float, what: str) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"after {seconds:.0f} s it does not hold that {what}"
        time.sleep(0.1)
