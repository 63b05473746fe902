"""A trained network in one file with all that its use needs: classes, image shape, normalisation, architecture.

The file is a safetensors file of the weights. Its metadata hold, under ``fedcondense-network``, the `NetworkCard` as
JSON beside a format number. Any safetensors reader opens it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from fedcondense.ambient import in_own_state, own_state
from fedcondense.checksums import PLACE, DamagedError, check_file, seal
from fedcondense.errors import SettingError
from fedcondense.files import write_file
from fedcondense.networks import NETWORKS, NetworkMaker, build, named
from fedcondense.networks.card import NetworkCard, UntrustedNetworkError
from fedcondense.networks.headed import Headed
from fedcondense.networks.names import is_shipped, made
from fedcondense.networks.passes import repeatable
from fedcondense.networks.readable import made_by

__all__ = ["FILE", "NetworkCard", "SavedNetwork", "UntrustedNetworkError", "load_network", "save_network"]

FILE = "weights.safetensors"
"""The name of a network's file in a run's folder."""

_FORMAT = 1
_KEY = "fedcondense-network"
_HEADER = 8 << 20  # bytes
_LARGEST = 1e6  # of a mean or deviation: what is normalised by them stays finite in single precision
_AT_ONCE = 512  # images
_SINGLE = {torch.float32, torch.int64, torch.int32, torch.uint8, torch.bool}
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class SavedNetwork(nn.Module):
    """A network with its card, in evaluation mode, that labels images.

    Args:
        network: Maps normalised images (N, C, H, W) to logits (N, K).
        card: What it is; its fields `classes`, `shape`, `mean` and `std` are at hand here, too.

    Example:
        >>> card = NetworkCard("convnet1-w16", ("cat", "dog"), (1, 8, 8), (0.5,), (0.25,))
        >>> network = SavedNetwork(build(card.network, card.shape, 2, seed=0), card)
        >>> network.predict(torch.zeros(3, 1, 8, 8, dtype=torch.uint8)).shape
        torch.Size([3])
    """

    def __init__(self, network: nn.Module, card: NetworkCard) -> None:
        super().__init__()
        self.network, self.card = network, card
        self.classes, self.shape, self.mean, self.std = card.classes, card.shape, card.mean, card.std
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, K) of images that are normalised already, as every network of the toolkit does."""
        logits: Tensor = self.network(images)
        return logits

    @in_own_state
    @torch.no_grad()
    def probabilities(self, images: Tensor) -> Tensor:
        """Return the probability of each class, (N, K) float32, on the device of the images.

        Args:
            images: (N, C, H, W) of the network's shape: uint8 from 0 to 255, or floating point in [0, 1]. They are
                normalised here.

        Raises:
            SettingError: The images are of another shape, type or range.
        """
        if not isinstance(images, Tensor):
            raise SettingError(f"images: a {type(images).__name__}; needed: a tensor (N, C, H, W), such as Data.images")
        given, needed = f"images of {images.dtype} {tuple(images.shape)}", f"(N, {', '.join(map(str, self.shape))})"
        if tuple(images.shape[1:]) != self.shape or not (images.dtype == torch.uint8 or images.is_floating_point()):
            raise SettingError(f"{given}; needed: {needed}, uint8 or floating point in [0, 1]")
        if images.is_floating_point() and len(images):
            low, high = float(images.min()), float(images.max())
            if not (low >= 0 and high <= 1):
                raise SettingError(
                    f"{given} from {low:.3g} to {high:.3g}; needed: [0, 1], not normalised, or uint8 from 0 to 255"
                )
        first = next(self.network.parameters(), torch.empty(0, dtype=torch.float32))
        blank = torch.empty(0, len(self.classes), dtype=torch.float32, device=first.device)
        mean, std = (blank.new_tensor(v).view(1, -1, 1, 1) for v in (self.mean, self.std))
        found = [blank]
        for k, piece in enumerate(images.split(_AT_ONCE) if len(images) else ()):
            pixels = piece.to(first.device)
            pixels = pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels.float()
            with repeatable(self.network, 0, k):
                logits = self(((pixels - mean) / std).to(first.dtype))
            found.append(logits.float().softmax(1))
        return torch.cat(found).to(images.device)

    @in_own_state
    def predict(self, images: Tensor) -> Tensor:
        """Return the most probable class of each image, (N,) int64: an index into `classes`. See `probabilities`."""
        return self.probabilities(images).argmax(1)


@in_own_state
def save_network(
    path: str | os.PathLike[str],
    network: nn.Module | Mapping[str, Tensor],
    card: NetworkCard,
    *,
    overwrite: bool = False,
) -> Path:
    """Write a network's file and return its path.

    Args:
        path: A file that ends in ``.safetensors``, or a folder, which gets ``weights.safetensors``.
        network: The module, or its state dict, such as that of a run.
        card: What it is.
        overwrite: Replace a file that is there.

    Raises:
        SettingError: The weights do not fit the network of the card's name, or are not finite.
        OutputError: The path cannot be written, or is there already.
    """
    state = network.state_dict() if isinstance(network, nn.Module) else network
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}  # some are shared
    import fedcondense  # here: the package imports this module

    content = {"checksum": PLACE, "format": _FORMAT, **asdict(replace(card, version=fedcondense.__version__))}
    try:
        for name, tensor in tensors.items():
            _check_finite(name, tensor)
        if card.network in NETWORKS:
            outline = _outline(NETWORKS[card.network], card)
            _fitting({name: (t.dtype, tuple(t.shape)) for name, t in tensors.items()}, [outline])
    except UntrustedNetworkError as error:
        raise SettingError(f"a network to save as {card.network!r}: {error}") from None
    blob = seal(safetensors.torch.save(tensors, metadata={_KEY: json.dumps(content)}))
    return write_file(_file_of(path), blob, overwrite)


@in_own_state
def load_network(
    path: str | os.PathLike[str],
    *,
    network: nn.Module | NetworkMaker | None = None,
    limit_bytes: int = 1 << 30,
) -> SavedNetwork:
    """Read a network's file: from a run, or of unknown origin.

    The header is checked before memory is allocated. The network is looked up by its name in `NETWORKS`, or given here;
    nothing that a file names is imported.

    Args:
        path: The file, or a folder with a ``weights.safetensors``.
        network: For a network of one's own: the module, whose weights are replaced, or a function of an image shape and
            a number of classes that builds it.
        limit_bytes: How large the file may be.

    Raises:
        UntrustedNetworkError: The file is missing, damaged, too large, without a card, or does not fit.
        SettingError: The network of its name is not known here.
    """
    path = _file_of(path)
    try:
        size = path.stat().st_size
        if size > limit_bytes:
            _refuse(f"{size} bytes; allowed: {limit_bytes} (limit_bytes)")
        with open(path, "rb") as file:
            if (length := int.from_bytes(file.read(8), "little")) > _HEADER:
                _refuse(f"a header of {length} bytes; allowed: {_HEADER}. Is it a safetensors file?")
        with safetensors.safe_open(path, framework="pt") as opened:
            card = _card(opened.metadata() or {}, path)
            found = {name: _slice(opened.get_slice(name)) for name in opened.keys()}  # noqa: SIM118
            if network is None:
                make = _known(card.network)
                _fitting(found, [_outline(make, card)])
                candidates = [build(make, card.shape, len(card.classes), seed=0)]
            else:
                candidates = _own(network, card)
                if network is not candidates[0] and {dtype for dtype, _ in found.values() if dtype} <= _SINGLE:
                    candidates[0].float()  # as `build` does: what was trained was in single precision
            target = _fitting(found, candidates)
            tensors = {name: opened.get_tensor(name) for name in found}
        for name, tensor in tensors.items():
            _check_finite(name, tensor)
    except OSError as error:
        raise UntrustedNetworkError(f"{path}: {error.strerror or error}; give a run's folder or its {FILE}") from None
    except safetensors.SafetensorError as error:
        raise UntrustedNetworkError(
            f"{path} is damaged or no safetensors file ({_printable(error)}); get it again"
        ) from None
    except (UntrustedNetworkError, SettingError) as error:
        raise type(error)(f"{path}: {error}") from None
    target.load_state_dict(tensors)
    return SavedNetwork(target, card)


def _file_of(path: str | os.PathLike[str]) -> Path:
    path = Path(path)
    return path if path.suffix == ".safetensors" and not path.is_dir() else path / FILE


def _card(metadata: Mapping[str, str], path: Path) -> NetworkCard:
    """Read the card and check the file by its checksum, which older ones lack, or raise with what is wrong."""
    if _KEY not in metadata:
        what = (
            "a synthetic set" if "fedcondense" in metadata else "weights that do not say of which network and classes"
        )
        _refuse(
            f"{what}; needed: a file that save_network wrote. Weights of an older version become one with "
            "save_network(path, safetensors.torch.load_file(path), NetworkCard(...))"
        )
    try:
        content = json.loads(metadata[_KEY])
        number = content.pop("format")
        if type(number) is not int or not 1 <= number <= _FORMAT:
            _refuse(f"format {number!r:.50}; this version reads up to {_FORMAT}: upgrade fedcondense")
        if content.pop("checksum", None) is not None:
            check_file(path)
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in content.items()}
        return NetworkCard(**values)
    except DamagedError as error:
        _refuse(f"damaged since it was written ({error}); get it again")
    except (SettingError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        _refuse(f"its card cannot be read ({_printable(error)}); get it again")


def _known(name: str) -> NetworkMaker:
    try:
        return named(name)
    except SettingError as error:
        raise SettingError(f"{error}. A network of one's own is given by network=") from None


def _outline(make: NetworkMaker, card: NetworkCard) -> nn.Module:
    """Build a network without memory for its weights."""
    with own_state(), torch.device("meta"):
        return (make if is_shipped(make) else partial(made_by, make))(card.shape, len(card.classes))


def _own(network: nn.Module | NetworkMaker, card: NetworkCard) -> list[nn.Module]:
    """Return a network of one's own, unchanged and wrapped with readable features (`Headed`)."""
    module = network if isinstance(network, nn.Module) else made(partial(network, card.shape, len(card.classes)), 0)
    return [module, *([Headed(module)] if any(isinstance(m, nn.Linear) for m in module.modules()) else [])]


_Outline = tuple[torch.dtype | None, tuple[int, ...]]


def _fitting(found: Mapping[str, _Outline], candidates: list[nn.Module]) -> nn.Module:
    """Return the first module whose weights have these names, if they have these types and shapes, too."""
    for module in candidates:
        needed = _weights(module)
        if needed.keys() == found.keys():
            wrong = [name for name in needed if found[name] != needed[name]]
            if wrong:
                given, other = (f"{dtype} {shape}" for dtype, shape in (found[wrong[0]], needed[wrong[0]]))
                _refuse(f"{wrong[0]} is {given}; needed for this network, image shape and classes: {other}")
            return module
    differ = sorted(_weights(candidates[0]).keys() ^ found.keys())
    raise UntrustedNetworkError(f"{len(differ)} weights are missing or of another network, first {differ[:3]!r:.200}")


def _weights(module: nn.Module) -> dict[str, _Outline]:
    return {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in module.state_dict().items()}


def _slice(part: Any) -> _Outline:
    return _DTYPES.get(part.get_dtype()), tuple(part.get_shape())


def _check_finite(name: str, tensor: Tensor) -> None:
    if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
        _refuse(f"{name} has values that are not finite; train again or get the file again")


def _printable(error: Exception) -> str:
    return "".join(c if c.isprintable() else "?" for c in str(error))[:300]


def _refuse(reason: str) -> NoReturn:
    raise UntrustedNetworkError(reason)
