"""`review`: what a node holds back, looked at and decided."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message
from PIL import Image

from fedcondense.flower import Condense
from fedcondense.flower.client import app
from fedcondense.flower.hosts.inprocess import InProcessGrid, task_identity
from fedcondense.flower.wire import pack_question


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Return the config of a node that was asked for a set and holds its answer."""
    node = {"name": "north", "data": "digits", "ledger": str(tmp_path / "l"), "send": "ask", "review-seconds": 0.0}
    file = tmp_path / "node.toml"
    file.write_text("\n".join(f"{key} = {json.dumps(value)}" for key, value in node.items()))
    with task_identity():
        grid = InProcessGrid(app, ["north"], node_config=node)
        content = pack_question(Condense(ipc=1, steps=1, network="convnet1-w16"), 1)
        grid.send_and_receive([Message(content, dst_node_id=100, message_type="query.condense")])
    return file


def test_an_answer_is_listed_shown_and_sent(cli: Any, config: Path, tmp_path: Path) -> None:
    (held,) = cli.done("review", config)["answers"]
    assert held["decision"] == ""
    page = tmp_path / "look.html"
    (shown,) = cli.done("review", config, held["sha256"][:10], "--output", page)["answers"]
    assert min(shown["nearest"].values()) > 0
    text = page.read_text()
    assert held["sha256"] in text
    assert text.count("data:image/png;base64,") == 10
    assert "must not leave" in text
    assert page.stat().st_mode & 0o77 == 0
    (sent,) = cli.done("review", config, held["sha256"], "--send")["answers"]
    assert sent["decision"] == "send"
    assert "send" in cli.run("review", config).stdout


def test_the_next_command_shows_what_waits(cli: Any, config: Path) -> None:
    said = cli.run("review", config)
    held = json.loads(cli.run("review", config, "--format", "json").stdout)["answers"][0]
    assert f"next: fedcondense review {config} {held['sha256'][:12]} --output review.html" in said.stderr


def test_the_size_that_a_run_said_is_that_of_the_page(cli: Any, tmp_path: Path) -> None:
    """The node's config names none: what is held says it."""
    for name, level in (("ill", 30), ("well", 200)):
        (tmp_path / "site" / name).mkdir(parents=True)
        for k in range(25):
            noise = np.random.default_rng(k).integers(0, 50, (20, 30)).astype(np.uint8)
            Image.fromarray(noise + np.uint8(level)).save(tmp_path / "site" / name / f"{k}.png")
    node = {"data": f"folder:{tmp_path / 'site'}", "ledger": str(tmp_path / "l"), "send": "ask", "review-seconds": 0.0}
    with task_identity():
        grid = InProcessGrid(app, ["north"], run_config={"size": 16}, node_config=node)
        content = pack_question(Condense(ipc=1, steps=1, network="convnet1-w16"), 1)
        grid.send_and_receive([Message(content, dst_node_id=100, message_type="query.condense")])
    config = " ".join(f"{key}={json.dumps(value)}" for key, value in node.items())
    (held,) = cli.done("review", config)["answers"]
    (shown,) = cli.done("review", config, held["sha256"], "-o", tmp_path / "look.html")["answers"]
    assert set(shown["nearest"]) == {"ill", "well"}
    cli.done("review", config, held["sha256"], "--send")
    with task_identity():
        grid = InProcessGrid(app, ["north"], run_config={"size": 16}, node_config=node)
        (reply,) = grid.send_and_receive([Message(content, dst_node_id=100, message_type="query.condense")])
    assert not reply.has_error()
    (line,) = (one for one in cli.done("node", "log", config)["lines"] if one["nbytes"])
    assert held["sha256"] in line["reason"]


def test_images_that_are_no_squares_are_looked_at_as_they_are(cli: Any, tmp_path: Path) -> None:
    (tmp_path / "site" / "ill").mkdir(parents=True)
    for k in range(25):
        noise = np.random.default_rng(k).integers(0, 250, (12, 16)).astype(np.uint8)
        Image.fromarray(noise).save(tmp_path / "site" / "ill" / f"{k}.png")
    node = {"data": f"folder:{tmp_path / 'site'}", "ledger": str(tmp_path / "l"), "send": "ask", "review-seconds": 0.0}
    with task_identity():
        grid = InProcessGrid(app, ["north"], node_config=node)
        content = pack_question(Condense(ipc=1, steps=1, network="convnet1-w16"), 1)
        grid.send_and_receive([Message(content, dst_node_id=100, message_type="query.condense")])
    config = " ".join(f"{key}={json.dumps(value)}" for key, value in {**node, "size": 0}.items())
    (held,) = cli.done("review", config)["answers"]
    (shown,) = cli.done("review", config, held["sha256"], "-o", tmp_path / "look.html")["answers"]
    assert set(shown["nearest"]) == {"ill"}


def test_mistakes_are_one_line(cli: Any, config: Path, tmp_path: Path) -> None:
    assert "no answer here starts with 'ffff'" in cli.refused("review", config, "ffff", "--send")
    assert "which answer?" in cli.refused("review", config, "--send")
    (held,) = cli.done("review", config)["answers"]
    assert "give one of them" in cli.refused("review", config, held["sha256"], "--send", "--withhold")
    assert "by its name" in cli.refused("review", config, held["sha256"], "--output", tmp_path / "look.png")
    cli.done("review", config, held["sha256"], "--send")
    assert "decided before: send" in cli.refused("review", config, held["sha256"], "--withhold")
    assert 'send = "ask"' in cli.refused("review", 'data="digits"')
