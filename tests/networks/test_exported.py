from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedcondense.errors import OutputError, SettingError
from fedcondense.networks import build
from fedcondense.networks.exported import Deployed, export_network
from fedcondense.networks.saved import NetworkCard, SavedNetwork


def saved(network: str | nn.Module = "convnet2-w16", shape: tuple[int, int, int] = (3, 16, 16)) -> SavedNetwork:
    name = network if isinstance(network, str) else "own"
    module = build(network, shape, 3, 0) if isinstance(network, str) else network
    channels = shape[0]
    return SavedNetwork(module, NetworkCard(name, ("ash", "elm", "oak"), shape, (0.4,) * channels, (0.2,) * channels))


IMAGES = torch.randint(256, (7, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))


def test_what_is_exported_says_what_the_network_says() -> None:
    """`predict` of a saved network and the module that is exported are one function."""
    network = saved()
    torch.testing.assert_close(Deployed(network)(IMAGES), network.probabilities(IMAGES))


@pytest.mark.parametrize("network", ["convnet2-w16", "convnet2-w16-batch", "lenet"])
def test_torch_export_holds_classes_and_takes_any_number(tmp_path: Path, network: str) -> None:
    before = saved(network)
    assert export_network(before, tmp_path / "a.pt2") < 1e-5
    files: dict[str, Any] = {"fedcondense.json": ""}
    again = torch.export.load(tmp_path / "a.pt2", extra_files=files).module()
    for images in (IMAGES, IMAGES[:1]):
        torch.testing.assert_close(again(images), before.probabilities(images), rtol=1e-4, atol=1e-5)
    told = json.loads(files["fedcondense.json"])
    assert told["classes"] == ["ash", "elm", "oak"]
    assert told["mean"] == [0.4] * 3


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch's converter, about itself
def test_onnx_holds_classes_and_takes_any_number(tmp_path: Path) -> None:
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    before = saved()
    assert export_network(before, tmp_path / "a.onnx") < 1e-5
    session = runtime.InferenceSession(tmp_path / "a.onnx", providers=["CPUExecutionProvider"])
    for images in (IMAGES, IMAGES[:1]):
        (found,) = session.run(["probabilities"], {"images": images.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), before.probabilities(images), rtol=1e-4, atol=1e-5)
    told = {one.key: one.value for one in onnx.load(tmp_path / "a.onnx").metadata_props}
    assert json.loads(told["classes"]) == ["ash", "elm", "oak"]


class Undecided(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(768, 3)

    def forward(self, images: Tensor) -> Tensor:
        flat = images.flatten(1)
        return self.last(flat if float(flat.sum()) > 0 else -flat)  # type: ignore[no-any-return]


def test_a_network_without_a_fixed_graph_is_refused_in_a_line(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="no fixed graph"):
        export_network(saved(Undecided()), tmp_path / "a.pt2")
    assert not (tmp_path / "a.pt2").exists()


def test_the_network_that_is_exported_stays_as_it_was(tmp_path: Path) -> None:
    network = saved().double()
    export_network(network, tmp_path / "a.pt2")
    assert {value.dtype for value in network.network.parameters()} == {torch.float64}


def test_other_endings_and_files_that_are_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"ends in \.pt2 or \.onnx"):
        export_network(saved(), tmp_path / "a.pt")
    (tmp_path / "a.pt2").write_text("mine")
    with pytest.raises(OutputError, match="exists"):
        export_network(saved(), tmp_path / "a.pt2")
    assert (tmp_path / "a.pt2").read_text() == "mine"
