"""What README.md and the strategies' pages show runs as it stands, on small data and for few steps.

Every block of python is run, and every command of a block of sh. What does not run here is named below with the reason:
a new block or command that is neither runnable nor named fails.
"""

from __future__ import annotations

import re
import runpy
import shlex
import shutil
import sys
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

pytest.importorskip("flwr")

from fedcondense.cli import app
from fedcondense.flower import run_settings, served_run
from fedcondense.flower.caps import Caps
from fedcondense.flower.ledger import Allowance
from fedcondense.networks import build
from fedcondense.networks.saved import NetworkCard, save_network
from fedcondense.training.fit import Fit

ROOT = Path(__file__).parents[1]
OBJECTIVE = ROOT / "docs" / "own-objective.md"
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("strategies/*/*.md")), OBJECTIVE, ROOT / "docs" / "trackers.md"]

SMALLER = {  # text by text, in every block; each must occur somewhere
    '"fashion-mnist", root="data"': '"digits"',
    "fc.condense(train, ipc=1)": "fc.condense(train, ipc=1, steps=2)",
    "fc.evaluate(synthetic, test)": "fc.evaluate(synthetic, test, seeds=[0])",
    "fc.evaluate(joined, test)": "fc.evaluate(joined, test, seeds=[0])",
    "asked=Condense(ipc=2)": "asked=Condense(ipc=1, steps=2), measured=Measured(seeds=(0,))",
    "import Condense, federate": "import Condense, Measured, federate",
    "num_nodes=10": "num_nodes=3",
    "ipc=10, seed=k": "ipc=1, steps=2, seed=k",
    '"steps": 200': '"steps": 2, "ipc": 1',
    '"fedavg-5"': '"fedavg-1"',
    "condense digits --ipc 10": "condense digits --ipc 1 --steps 2 --seeds 1",
    "--ipc 10 --seed 17": "--ipc 1 --steps 2 --seed 17",
    "one-shot,iterative-3,fedavg-3": "one-shot,iterative-1,fedavg-1 --clients 3 --ipc 1 --steps 2 --seeds 1",
    "--seconds 5": "--steps 2 --sets 1 --seeds 1 --controls random",
    "folder:/data/site0": "digits",
    "--task condense": "--task condense --set ipc=1 --set steps=2",
    "--set ipc=5": "--set ipc=1 --set steps=2",
    "objective=name, steps=100": "objective=name, steps=2",
    "scale,darker --ipc 1": "scale,darker --ipc 1 --steps 2 --seeds 1",
    "--objective median --ipc 1": "--objective median --ipc 1 --steps 2 --seeds 1",
    "--size 64 --rows one-shot,random-real,local-only": "--size 8 --rows one-shot --ipc 1 --steps 2 --seeds 1",
    "network.onnx": "network.pt2",
    '"mmd", network="convnet2-w16", steps=200': '"dm", network="convnet1-w16", steps=1',
    "recipe=fc.Fit(steps=300)": "recipe=fc.Fit(steps=5)",
    "--output runs/hospitals": "--output runs/tried",
}

BLOCKS_NOT_RUN = {  # by a text that the block holds
    "import wandb": "a service; tried offline by hand, as is the other",
    "import mlflow": "as above",
    "from models.er import Er": "a model file for a checkout of Mammoth; the page says how it was run",
    "simulate(make_server_app": "tests/flower/test_processes.py runs the same apps on Ray",
}

COMMANDS_NOT_RUN = {  # by how the command begins
    "make demo": "installs the package; what it runs is `fedcondense federate`, below",
    "make test": "is this suite",
    "pip install": "installs the package",
    "pip wheel": "builds what it needs",
    "fedcondense sweep table digits --plugin": "as in README.md; tests/cli/test_plugins.py has plugins",
    "fedcondense sweep table mnist --plugin": "needs MNIST; tests/sweeps/test_paired.py compares rows",
    "fedcondense evaluate median.safetensors --protocol published": "takes minutes; tests/training/test_protocols.py",
    "fedcondense evaluate res_DSA": "needs a file of other code; tests/cli/test_evaluate.py has one",
    "fedcondense evaluate images_best.pt": "as above",
    "SITES=": "starts processes; tests/flower/test_processes.py runs deploy.sh",
    "fedcondense review node.toml 3f9a20c1": "of an answer that waits; tests/cli/test_review.py has one",
    "python strategies/condensed-replay/train.py": "takes a minute; tests/avalanche/test_recipe.py runs it",
    "fedcondense train runs/robot/memory.safetensors": "of the program above it; tests/cli/test_network.py does it",
    "fedcondense predict network.safetensors leaf.jpg": "as above",
    "python main.py --model er_condensed": "Mammoth's own, in its checkout",
    "fedcondense show runs/split-fashion": "of the program above, on Fashion-MNIST",
    "export FLWR_": "for flwr alone",
    "flwr run": "starts processes; tests/flower/test_processes.py runs strategies/one-shot, alone and by deploy.sh",
    "flwr supernode register": "needs a SuperLink; tests/flower/test_processes.py does it by deploy.sh",
    "openssl rand": "as above",
    "flower-superlink": "as above",
    "flower-superexec": "as above",
    "flower-supernode": "as above",
    "sha256sum": "of a file that a site condensed, above it",
    "ssh-keygen -Y sign": "needs a key; tests/flower/test_manifest.py signs with one",
    "fedcondense join inbox": "needs files of sites and a manifest; tests/cli/test_by_files.py has both",
    "fedcondense train runs/mail": "as above",
    "fedcondense forget south": "as above",
    "fedcondense report /tmp/one-shot": "of the `flwr run` above it",
}


class Block(NamedTuple):
    """A block of a page."""

    where: str
    language: str
    text: str


def blocks() -> list[Block]:
    found = []
    for page in PAGES:
        for match in re.finditer(r"^```(python|sh)\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE):
            line = page.read_text()[: match.start()].count("\n") + 1
            found.append(Block(f"{page.relative_to(ROOT)}:{line}", match[1], match[2]))
    return found


def commands(text: str) -> list[str]:
    """Return the commands of a block of sh, without comments, each in one line."""
    lines = [re.sub(r"\s+", " ", line).strip() for line in text.replace("\\\n", " ").splitlines()]
    return [line.partition(" # ")[0].strip() for line in lines if line and not line.startswith("#")]


def smaller(text: str) -> str:
    for old, new in SMALLER.items():
        text = text.replace(old, new)
    return text


PYTHON = [block for block in blocks() if block.language == "python"]
SHELL = [block for block in blocks() if block.language == "sh"]
LONGEST = "fedcondense sweep"  # of the command line's block, some fifteen seconds


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run in a folder of the test's own; a node's ledger lies in the home folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["fedcondense"])


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few steps where a server trains and measures networks, which no setting can say."""
    for module, name in ((served_run, "evaluate"), (run_settings, "train_on"), (run_settings, "ServerSide")):
        monkeypatch.setattr(module, name, partial(getattr(module, name), recipe=Fit(steps=20)))


@pytest.fixture
def hospitals(tmp_path: Path) -> None:
    """Make what the page on folders of images speaks of: two sites, a picture, a node's config, a run."""
    noise = np.random.default_rng(0)
    for site in ("north", "south"):
        for name, level in (("healthy", 60), ("ill", 180)):
            (tmp_path / site / name).mkdir(parents=True)
            for k in range(25):
                image = (level + noise.integers(-40, 40, (9, 12))).astype(np.uint8)
                Image.fromarray(image).save(tmp_path / site / name / f"{k}.png")
    shutil.copy(tmp_path / "north" / "ill" / "0.png", tmp_path / "picture.png")
    programs = [block.text for block in PYTHON if block.where.startswith("docs/own-objective.md")]
    for name, program in zip(("median.py", "darker.py", "gentle.py"), programs, strict=True):
        (tmp_path / name).write_text(program)
    config = f'name = "north"\ndata = "folder:{tmp_path}/north"\nsize = 8\nsend = "ask"\n'
    (tmp_path / "node.toml").write_text(config)
    card = NetworkCard("convnet1-w16", ("healthy", "ill"), (1, 8, 8), (0.5,), (0.25,), "one-shot")
    (tmp_path / "runs" / "hospitals").mkdir(parents=True)
    save_network(tmp_path / "runs" / "hospitals", build(card.network, card.shape, 2, 0), card)


@pytest.mark.parametrize("block", PYTHON, ids=lambda block: block.where)
def test_a_block_of_python_runs(block: Block, tmp_path: Path) -> None:
    reasons = [why for text, why in BLOCKS_NOT_RUN.items() if text in block.text]
    if reasons:
        pytest.skip(reasons[0])
    program = tmp_path / "program.py"
    program.write_text(smaller(block.text).replace('"/tmp/', f'"{tmp_path}/'))
    runpy.run_path(str(program), run_name="__main__")


@pytest.mark.parametrize(
    "block",
    [pytest.param(block, id=block.where, marks=[pytest.mark.slow] * (LONGEST in block.text)) for block in SHELL],
)
def test_the_commands_of_a_block_of_sh_run(block: Block, hospitals: None) -> None:
    for command in commands(block.text):
        if any(command.startswith(beginning) for beginning in COMMANDS_NOT_RUN):
            continue
        program, *arguments = shlex.split(smaller(command))
        assert program == "fedcondense", f"{block.where}: {command}; run it here, or name it with the reason"
        ended = CliRunner().invoke(app, arguments)
        assert ended.exit_code == 0, (block.where, command, ended.output, ended.exception)


def test_what_is_named_is_there() -> None:
    """A reason that outlives its block, or a text that is replaced nowhere, hides what is not run."""
    python, shell = "".join(block.text for block in PYTHON), [c for block in SHELL for c in commands(block.text)]
    everything = python + "\n".join(shell)
    assert [text for text in SMALLER if text not in everything] == []
    assert [text for text in BLOCKS_NOT_RUN if text not in python] == []
    assert [text for text in COMMANDS_NOT_RUN if not any(command.startswith(text) for command in shell)] == []


def test_the_page_names_all_caps_with_their_defaults() -> None:
    page = (ROOT / "strategies" / "one-shot" / "README.md").read_text()
    shown = dict(re.findall(r"^\| `([a-z-]+)` \| ([^|]*?) ?\|", page, re.MULTILINE))
    defaults = {item.name.replace("_", "-"): item.default for kind in (Caps, Allowance) for item in fields(kind)}
    texts = {key: str(value).lower() if isinstance(value, bool) else str(value) for key, value in defaults.items()}
    assert {key: shown.get(key) for key in texts} == texts


def test_links_lead_to_files() -> None:
    pages = [*PAGES, ROOT / "ARCHITECTURE.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("experiments/*.md"))]
    for page in pages:
        for link in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
            if "://" not in link:
                assert (page.parent / link).exists(), f"{page.relative_to(ROOT)}: {link}"
