"""The parts of a set: codes of one kind as they are stored, with the record of where they come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fedcondense.ambient import in_own_state
from fedcondense.contract import Batch, Codes, Parametrization
from fedcondense.data.images import settle_spec
from fedcondense.errors import DataError, SettingError
from fedcondense.plain import finite_number, listed, plain_text, plain_values, whole_number
from fedcondense.sets.codecs import RAW, name_of
from fedcondense.sets.coded import Coded

if TYPE_CHECKING:
    from fedcondense.data.images import Data

__all__ = ["Part", "Record", "check_joinable", "to_storage"]

_SECONDS = 1e12  # most that making a set may have taken


@dataclass(frozen=True)
class Record:
    """Where a set comes from and how its images are to be read.

    Values become plain Python when it is made; what a file could not hold is refused then.

    Args:
        data: The data set's name.
        shape: (C, H, W) of a decoded image.
        classes: Class names, by label.
        mean: What decoding subtracts, a value per channel, in [0, 1] space.
        std: What decoding divides by, a value per channel.
        method: The objective that made it, by name if the toolkit ships it, else by its repr; or the selection.
        ipc: Byte budget per class, counted in uncompressed images.
        seed: The root seed.
        network: The network family that features came from; empty for selections.
        augmentation: Operations that condensing drew from, and training on the set should.
        start: What the codes started from.
        steps: Optimisation steps.
        counts: How many records of each class the set stands for, (K,).
        seconds: What condensing took, pools included.
        privacy: The mechanism and its numbers; None: no guarantee is given.

    Raises:
        DataError: Class names that nobody can read, or that repeat, or none.
        SettingError: Another value is none that a file can hold.
    """

    data: str
    shape: tuple[int, int, int]
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    method: str = ""
    ipc: int = 0
    seed: int = 0
    network: str = ""
    augmentation: tuple[str, ...] = ()
    start: str = ""
    steps: int = 0
    counts: tuple[int, ...] = ()
    seconds: float = 0.0
    privacy: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        settle_spec(self, "data", "augmentation")
        if not self.classes:
            raise DataError("no class names; needed: one for each label")
        counts = listed(self.counts, "counts")
        if len(counts) not in (0, len(self.classes)):
            raise SettingError(f"{len(counts)} counts for {len(self.classes)} classes; needed: one for each, or none")
        settled: dict[str, Any] = {"counts": tuple(whole_number(count, "counts with") for count in counts)}
        settled |= {name: whole_number(getattr(self, name), name) for name in ("ipc", "seed", "steps")}
        settled |= {name: plain_text(getattr(self, name), name) for name in ("method", "network", "start")}
        settled["seconds"] = finite_number(self.seconds, "seconds", 0, _SECONDS)
        settled["privacy"] = None if self.privacy is None else plain_values(self.privacy, "privacy")
        for name, value in settled.items():
            object.__setattr__(self, name, value)

    @classmethod
    def of(cls, data: Data, method: str, ipc: int, seed: int) -> Record:
        """Return the record of a set made from `data`; `dataclasses.replace` fills in the other fields."""
        spec = data.spec
        counts = tuple(data.counts.tolist())
        fields = (spec.name, spec.shape, spec.classes, spec.mean, spec.std, method, ipc, seed)
        return cls(*fields, augmentation=spec.operations, counts=counts)


@dataclass(frozen=True, eq=False)
class Part:
    """Codes of one kind, in the dtypes they are stored in.

    Args:
        codes: By the names and dtypes of ``parametrization.storage``; uint8 stands for [0, 1]. `Coded` ones keep the
            bytes that they are stored in.
        targets: (M,) uint8 or int16 labels, or (M, K) float16 probabilities, one for each stored image; or (N, K), one
            for each of the more images that they decode to.
        parametrization: Decodes the codes.
        record: Where they come from.
    """

    codes: Mapping[str, Tensor]
    targets: Tensor
    parametrization: Parametrization
    record: Record

    def __eq__(self, other: object) -> bool:
        """Say whether another part has equal codes, targets, parametrization and record; coded ones are decoded."""
        if not isinstance(other, Part):
            return NotImplemented
        pairs = [(self.targets, other.targets), *((code, other.codes.get(name)) for name, code in self.codes.items())]
        return (self.parametrization, self.record, self.codes.keys()) == (
            other.parametrization,
            other.record,
            other.codes.keys(),
        ) and all(a is b or (b is not None and a.dtype == b.dtype and torch.equal(a, b)) for a, b in pairs)

    @in_own_state
    def decode(self, device: torch.device | str = "cpu") -> Batch:
        """Return images in [0, 1], (N, C, H, W), and probabilities (N, K), both float32."""
        targets, stored = self.targets.to(device), self.stored
        if targets.ndim == 1:  # `one_hot` would take three times the bytes on the way
            labels, size = targets.long().unsqueeze(1), (len(targets), len(self.record.classes))
            targets = torch.zeros(size, dtype=torch.float32, device=targets.device).scatter_(1, labels, 1)
        targets = targets.float()
        codes = {name: _from_storage(t.to(device)) for name, t in self.codes.items()}
        # nothing is learned here, and images are the same at any precision of a network
        with torch.no_grad(), torch.autocast(targets.device.type, enabled=False):
            batch = self.parametrization.decode(codes, targets[:stored])
        return batch if len(targets) == stored else batch._replace(targets=targets)

    @property
    def stored(self) -> int:
        """How many images are stored, M."""
        return self.shapes[next(iter(self.parametrization.storage))][0]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the codes; coded ones are not decoded for it."""
        if isinstance(self.codes, Coded):
            return self.codes.shapes
        return {name: tuple(code.shape) for name, code in self.codes.items()}

    @property
    def codec(self) -> str:
        """The name of what packs the codes; ``"raw"``: nothing does."""
        return name_of(self.codes.codec) if isinstance(self.codes, Coded) else RAW

    @property
    def code_bytes(self) -> int:
        """The bytes of the codes as they are stored."""
        if isinstance(self.codes, Coded):
            return sum(len(one.to_bytes()) for one in self.codes.stored.values())
        return sum(code.nbytes for code in self.codes.values())

    def rows(self, rows: Tensor) -> Mapping[str, Tensor]:
        """Return the codes of some stored images, (M,) int64 ascending; coded ones without another loss."""
        if isinstance(self.codes, Coded):
            return self.codes.rows(rows)
        return {name: code[rows] for name, code in self.codes.items()}

    def labels(self) -> Tensor:
        """Return the class of each stored image, (M,) int64; of a soft label the likeliest, of several their mean's."""
        if self.targets.ndim == 1:
            return self.targets.long()
        rows, classes = self.targets.shape
        means: Tensor = self.targets.float().view(self.stored, rows // max(1, self.stored), classes).mean(1)
        return means.argmax(1)

    @property
    def is_separable(self) -> bool:
        """Whether each stored image is one class's alone, so that some can be left out."""
        return self.targets.ndim == 1 and not self.parametrization.shared


def check_joinable(parts: Sequence[Part]) -> None:
    """Refuse parts that cannot be one set.

    Raises:
        SettingError: There are none, or their images have different shapes.
    """
    if not parts:
        raise SettingError("a synthetic set of no parts; give at least one")
    shapes = {part.record.shape for part in parts}
    if len(shapes) > 1:
        raise SettingError(f"sets of images of different shapes: {sorted(shapes)}; join sets of one shape")


@in_own_state
def to_storage(codes: Codes, targets: Tensor, parametrization: Parametrization) -> tuple[Codes, Tensor]:
    """Round float codes and probabilities to what is stored; one-hot targets become labels of one or two bytes."""
    stored = {}
    for name, dtype in parametrization.storage.items():
        code = codes[name].detach().cpu()
        stored[name] = code.mul(255).round().clamp(0, 255).to(dtype) if dtype == torch.uint8 else code.to(dtype)
    targets = targets.detach().cpu()
    if bool((targets.amax(1) == 1).all()):
        return stored, targets.argmax(1).to(torch.uint8 if targets.shape[1] <= 256 else torch.int16)
    return stored, targets.half()


def _from_storage(code: Tensor) -> Tensor:
    return code.float().div_(255) if code.dtype == torch.uint8 else code.float()
