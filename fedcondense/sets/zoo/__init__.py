"""Ready sets that come with the package: made by `experiments/zoo.py`, verified by their hash when they are read."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from fedcondense.errors import SettingError, UntrustedSetError, unknown
from fedcondense.sets.synthetic import SyntheticSet

__all__ = ["FOLDER", "ReadySet", "load_set", "ready_sets"]

FOLDER = Path(__file__).parent
"""Where the files and their index, ``zoo.json``, lie."""


@dataclass(frozen=True)
class ReadySet:
    """A line of the index: what a file is, and what was measured on it.

    Args:
        data: The data set's name.
        ipc: Images per class whose bytes it takes.
        file: Its name in `FOLDER`.
        sha256: Of its bytes, in hexadecimal.
        nbytes: Its length: codes, labels, record and evaluation.
        images: How many it decodes to.
        accuracy: Percent, the mean over networks that were trained on it from scratch, last step.
        accuracy_std: Standard deviation over those networks, in points.
        network: Which network condensed it and was tested.
        method: The objective.
        parametrization: How the images are stored.
        steps: Optimisation steps.
        cpu_seconds: What condensing took of one core.
        nearest: Root mean square difference, a pixel in [0, 1], of its image that is closest to a training image.
        nearest_test: The same of as many real test images: what strangers of the same kind are apart.
        codec: What packs its images.
    """

    data: str
    ipc: int
    file: str
    sha256: str
    nbytes: int
    images: int
    accuracy: float
    accuracy_std: float
    network: str
    method: str
    parametrization: str
    steps: int
    cpu_seconds: float
    nearest: float
    nearest_test: float
    codec: str = "raw"

    @property
    def path(self) -> Path:
        """Where the file lies on this machine."""
        return FOLDER / self.file


def ready_sets() -> dict[str, ReadySet]:
    """Return what there is, by a name such as ``"fashion-mnist-ipc10"``."""
    return dict(_index())


@cache
def _index() -> dict[str, ReadySet]:
    return {name: ReadySet(**line) for name, line in json.loads((FOLDER / "zoo.json").read_text()).items()}


def load_set(data: str, ipc: int = 10) -> SyntheticSet:
    """Load a ready set: no data and no condensing needed.

    Args:
        data: ``"mnist"``, ``"fashion-mnist"`` or ``"cifar10"``.
        ipc: Images per class, 1 or 10.

    Raises:
        SettingError: There is no such set; the message lists those that there are.
        UntrustedSetError: The file is not the one that the index was written for.

    Example:
        >>> synthetic = load_set("fashion-mnist", ipc=1)
        >>> synthetic.name, synthetic.shape, len(synthetic)
        ('fashion-mnist', (1, 28, 28), 40)
    """
    name = f"{data}-ipc{ipc}"
    if Path(data).suffix == ".safetensors":
        raise SettingError(f"{data} is a file: SyntheticSet.load opens it; load_set takes the name of a ready set")
    if name not in ready_sets():
        raise SettingError(f"{unknown('ready set', name, ready_sets())}; `fedcondense condense {data}` makes others")
    ready = ready_sets()[name]
    blob = ready.path.read_bytes() if ready.path.is_file() else b""
    found = hashlib.sha256(blob).hexdigest()
    if found != ready.sha256:
        raise UntrustedSetError(
            f"{ready.path}: {len(blob)} bytes of SHA-256 {found[:12]}, the index says {ready.nbytes} of "
            f"{ready.sha256[:12]}; the file is missing or was changed: install fedcondense anew"
        )
    return SyntheticSet.from_bytes(blob)
