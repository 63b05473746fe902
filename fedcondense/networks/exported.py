"""A trained network as a file that other programs run: `torch.export`, or ONNX with the extra ``export``.

Classes and normalisation are inside: the network takes images as they are decoded, uint8, and gives probabilities. What
was written is read back and run before it is called done.
"""

from __future__ import annotations

import copy
import importlib.util
import io
import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedcondense.ambient import in_own_state
from fedcondense.errors import MissingExtraError, OutputError, SettingError
from fedcondense.files import write_file
from fedcondense.networks.saved import SavedNetwork

__all__ = ["EXPORTS", "Deployed", "export_network"]

_TRIED = (1, 2, 5)  # images at a time that an exported network is compared on
_CLOSE = 1e-4  # in probability
_CARD = "fedcondense.json"  # of a torch.export file; of ONNX these are metadata


class Deployed(nn.Module):
    """Images as they are decoded to the probability of each class.

    Args:
        saved: The network; a copy on the CPU is taken.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, saved: SavedNetwork) -> None:
        super().__init__()
        self.network = copy.deepcopy(saved.network).cpu().float().eval()
        self.register_buffer("mean", torch.tensor(saved.mean, dtype=torch.float32).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(saved.std, dtype=torch.float32).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Return (N, K) float32 for images (N, C, H, W), uint8."""
        probabilities: Tensor = self.network((images.float() / 255 - self.mean) / self.std).softmax(1)
        return probabilities


def export_network(saved: SavedNetwork, path: str | os.PathLike[str], *, overwrite: bool = False) -> float:
    """Write a network for other programs, run what was written, and return how far its probabilities are off at most.

    Args:
        saved: What `load_network` returned.
        path: A file whose ending is in `EXPORTS`: ``.pt2`` for torch.export, ``.onnx`` for ONNX. Both take any number
            of images at a time, uint8 (N, C, H, W), and give ``probabilities`` (N, K). Class names, shape and
            normalisation are in ``fedcondense.json`` of the former (`torch.export.load` with `extra_files`), and in the
            metadata of the latter.
        overwrite: Replace a file that is there.

    Raises:
        SettingError: Another ending, or a network whose steps depend on its images, so that no graph holds them.
        MissingExtraError: ONNX without the extra ``export``.
        OutputError: The path cannot be written, or what was written gives other probabilities.
    """
    path = Path(path)
    if path.suffix not in EXPORTS:
        raise SettingError(f"{path.name}: needed: a name that ends in {' or '.join(EXPORTS)}")
    shape, card = saved.shape, saved.card
    told = {
        "classes": list(card.classes),
        "shape": list(shape),
        "mean": list(card.mean),
        "std": list(card.std),
        "input": f"images: uint8 (N, {', '.join(map(str, shape))})",
        "output": f"probabilities: float32 (N, {len(card.classes)})",
        "network": card.network,
        "fedcondense": card.version,
    }
    network = Deployed(saved)
    write, read = EXPORTS[path.suffix]
    blob = write(network, shape, told)
    with torch.inference_mode():
        again, off = read(blob), 0.0
        generator = torch.Generator().manual_seed(0)
        for count in _TRIED:
            images = torch.randint(256, (count, *shape), dtype=torch.uint8, generator=generator)
            off = max(off, float((again(images) - network(images)).abs().max()))
    if not off <= _CLOSE:
        raise OutputError(f"{path.name}: as exported, probabilities are off by {off:.2g}; needed: {_CLOSE} at most")
    write_file(path, blob, overwrite)
    return off


@in_own_state
def _traced(network: nn.Module, shape: tuple[int, ...]) -> torch.export.ExportedProgram:
    images = torch.zeros(3, *shape, dtype=torch.uint8)
    try:
        with torch.no_grad():
            return torch.export.export(network, (images,), dynamic_shapes=({0: torch.export.Dim("images", min=1)},))
    except Exception as error:  # whatever a network of one's own or torch's tracer raises
        why = " ".join(str(error).split())[:200]
        raise SettingError(
            f"this network has no fixed graph ({type(error).__name__}: {why}); needed: a forward pass that does not "
            "depend on its images, so export one of NETWORKS, or deploy it by load_network"
        ) from None


def _write_torch(network: nn.Module, shape: tuple[int, ...], told: dict[str, Any]) -> bytes:
    stream = io.BytesIO()
    torch.export.save(_traced(network, shape), stream, extra_files={_CARD: json.dumps(told)})
    return stream.getvalue()


def _read_torch(blob: bytes) -> Callable[[Tensor], Tensor]:
    found: Callable[[Tensor], Tensor] = torch.export.load(io.BytesIO(blob)).module()
    return found


def _write_onnx(network: nn.Module, shape: tuple[int, ...], told: dict[str, Any]) -> bytes:
    _needs_onnx()
    program = _traced(network, shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's own converter, about itself
        made = torch.onnx.export(
            program, (), dynamo=True, input_names=["images"], output_names=["probabilities"], verbose=False
        )
    assert made is not None
    model = made.model_proto
    for key, value in told.items():
        model.metadata_props.add(key=key, value=value if isinstance(value, str) else json.dumps(value))
    blob: bytes = model.SerializeToString()
    return blob


def _read_onnx(blob: bytes) -> Callable[[Tensor], Tensor]:
    import onnxruntime

    session = onnxruntime.InferenceSession(blob, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def _needs_onnx() -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(package, "export")


EXPORTS: dict[
    str,
    tuple[Callable[[nn.Module, tuple[int, ...], dict[str, Any]], bytes], Callable[[bytes], Callable[[Tensor], Tensor]]],
] = {".pt2": (_write_torch, _read_torch), ".onnx": (_write_onnx, _read_onnx)}
"""How a network is written and read back, by a file's ending."""
