"""An afternoon of whoever keeps the server: files by mail, a late site, one that wants to be forgotten."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from fedcondense.data.loading import load_data
from fedcondense.sets.selection import select

pytest.importorskip("flwr")


@pytest.fixture
def post(tmp_path: Path) -> Path:
    """Return a folder with two sites' files and a manifest of both."""
    digests = {}
    for seed, site in enumerate(("north", "south")):
        file = select(load_data("digits").train, 1, "random", seed=seed).save(tmp_path / f"{site}.safetensors")
        digests[site] = hashlib.sha256(file.read_bytes()).hexdigest()
    lines = "".join(f'{site} = "{digest}"\n' for site, digest in digests.items())
    (tmp_path / "sites.toml").write_text(f"[sites]\n{lines}")
    return tmp_path


def files(post: Path) -> list[Path]:
    return sorted(post.glob("*.safetensors"))


def test_join_train_and_forget_lead_to_each_other(cli: Any, post: Path) -> None:
    run, manifest = post / "run", ("--manifest", post / "sites.toml")
    ended = cli.run("join", post / "south.safetensors", *manifest, "-o", run)
    assert ended.exit_code == 0, ended.output
    assert "north is left out: no file with its SHA-256 was given" in ended.stderr.splitlines()
    assert f"next: fedcondense train {run}" in ended.stderr
    late = cli.done("join", *files(post), *manifest, "-o", run)
    assert late["taken"] == {"north": "north.safetensors"}
    assert (late["known"], late["sites"], late["images"], late["round"]) == (
        ["south.safetensors"],
        ["north", "south"],
        20,
        2,
    )
    assert late["ages"]["south"]["rounds"] == 1
    quick = ("--network", "convnet1-w16", "--steps", 5, "--seeds", 1)
    trained = cli.done("train", run, "--data", "digits", *quick)
    assert trained["accuracy"] > 0
    assert (run / "weights.safetensors").exists()
    ended = cli.run("forget", "south", run)
    assert ended.exit_code == 0, ended.output
    assert "what others received cannot be recalled" in ended.stderr
    assert not (run / "clients" / "south.safetensors").exists()
    assert (run / "weights.safetensors").exists()
    assert (run / "report.html").read_text().count("10 images of 10 classes") == 1


def test_what_cannot_be_is_one_line_and_writes_nothing(cli: Any, post: Path) -> None:
    run = post / "run"
    assert "No such file" in cli.refused("join", *files(post), "--manifest", post / "none.toml", "-o", run)
    assert "holds no federation by files" in cli.refused("train", run)
    assert "holds no run" in cli.refused("forget", "north", run)
    (post / "sites.toml").write_text(f'[sites]\nnorth = "{"0" * 64}"\n')
    said = cli.refused("join", post / "north.safetensors", "--manifest", post / "sites.toml", "-o", run)
    assert "none of 1 files can be used: north.safetensors: its SHA-256 is" in said
    assert not (run / "result.json").exists()
