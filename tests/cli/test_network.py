"""`predict` and `export-network`: a trained network on pictures, and as a file for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fedcondense.memory import Memory, Selector
from fedcondense.networks import build
from fedcondense.networks.saved import NetworkCard, save_network


@pytest.fixture
def run(tmp_path: Path) -> Path:
    card = NetworkCard("convnet1-w16", ("ash", "elm"), (1, 8, 8), (0.5,), (0.25,), "one-shot")
    return save_network(tmp_path / "run", build(card.network, card.shape, 2, 0), card).parent


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    noise = np.random.default_rng(0)
    for name in ("ash", "elm"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for k in range(3):
            image = noise.integers(0, 256, (20, 30 + k, 3), dtype=np.uint8)
            Image.fromarray(image).save(tmp_path / "pictures" / name / f"{k}.png")
    return tmp_path / "pictures"


def test_each_picture_gets_a_class_and_folders_of_classes_are_scored(cli: Any, run: Path, pictures: Path) -> None:
    found = cli.done("predict", run, pictures)
    assert [Path(one["file"]).name for one in found["predictions"]] == ["0.png", "1.png", "2.png"] * 2
    one = found["predictions"][0]
    assert one["class"] == max(one["probabilities"], key=one["probabilities"].get)
    right = sum(Path(one["file"]).parent.name == one["class"] for one in found["predictions"])
    assert found["scores"]["accuracy"] == pytest.approx(100 * right / 6)
    said = cli.run("predict", run, pictures).stdout
    assert "sensitivity" in said
    assert "2.png" in said


def test_a_network_made_of_a_memory_s_file_alone_knows_its_classes(cli: Any, tmp_path: Path) -> None:
    """Dark ash and light elm, seen by a memory one at a time: the file is all that `train` gets."""
    noise = torch.Generator().manual_seed(0)
    memory = Memory(8, Selector("random"), every_samples=20)
    for k in range(40):
        dark = torch.randint(0, 100, (1, 3, 16, 16), generator=noise, dtype=torch.uint8)
        memory.observe(dark + 150 * (k % 2), [("ash", "elm")[k % 2]])
    file, network = memory.save(tmp_path / "memory.safetensors"), tmp_path / "network.safetensors"
    quick = ("--network", "convnet1-w16", "--steps", 20)
    assert cli.done("train", file, "-o", network, *quick) == {"images": 8, "output": str(network)}
    for name, low in (("ash", 0), ("elm", 150)):
        (tmp_path / "new" / name).mkdir(parents=True)
        pixels = np.full((16, 16, 3), low + 50, dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "new" / name / "0.png")
    assert cli.done("predict", network, tmp_path / "new")["scores"]["accuracy"] == 100
    assert "exists" in cli.refused("train", file, "-o", network, *quick)
    assert "give -o NAME.safetensors, and no --data" in cli.refused("train", file)
    assert "leave out --output" in cli.refused("train", tmp_path, "-o", network)


def test_pictures_of_other_folders_are_not_scored(cli: Any, run: Path, pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "ours").mkdir()
    (pictures / "ash" / "0.png").rename(tmp_path / "ours" / "x.png")
    assert cli.done("predict", run, tmp_path / "ours")["scores"] is None
    ended = cli.run("predict", run, tmp_path / "ours", pictures)
    assert "not scored: no class of this network is called 'ours'; it has ash, elm" in ended.stderr
    assert "sensitivity" not in cli.run("predict", run, pictures / "ash" / "1.png").stdout


def test_broken_pictures_are_refused_or_left_out(cli: Any, run: Path, pictures: Path) -> None:
    (pictures / "elm" / "1.png").write_bytes(b"gone")
    assert cli.refused("predict", run, pictures).endswith("save them anew, or have them left out: --skip-broken")
    alone = cli.refused("predict", run, pictures / "elm" / "1.png")
    assert alone.endswith("remove them or save them anew")  # of what is all broken, nothing would be left
    assert len(cli.done("predict", run, pictures, "--skip-broken")["predictions"]) == 5


def test_a_network_becomes_a_file_that_says_what_it_is(cli: Any, run: Path, tmp_path: Path) -> None:
    found = cli.done("export-network", run, "-o", tmp_path / "net.pt2")
    assert found["classes"] == ["ash", "elm"]
    assert found["off"] < 1e-5
    assert (tmp_path / "net.pt2").stat().st_size > 1000
    assert "exists" in cli.refused("export-network", run, "-o", tmp_path / "net.pt2")
    assert ".onnx" in cli.refused("export-network", run, "-o", tmp_path / "net.bin")
    assert "weights.safetensors" in cli.refused("export-network", tmp_path / "nothing", "-o", tmp_path / "n.pt2")
