"""What the weights of a network do not say of themselves: which network, which classes, which normalisation."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass

from fedcondense.errors import FedcondenseError, SettingError

__all__ = ["NetworkCard", "UntrustedNetworkError"]

_CLASSES, _SIDE, _TEXT = 10_000, 4096, 200
_LARGEST = 1e6  # of a mean or deviation: what is normalised by them stays finite in single precision


class UntrustedNetworkError(FedcondenseError, ValueError):
    """A network's file that breaks the format, a limit, or does not fit its network."""


@dataclass(frozen=True)
class NetworkCard:
    """What a network's weights leave open: architecture, classes, image shape and normalisation.

    Args:
        network: A name in `NETWORKS`, or the name of a network of one's own.
        classes: The class names, in the order of the outputs.
        shape: (C, H, W) of an image.
        mean: Subtracted from images in [0, 1], one value per channel.
        std: What images are divided by then, one value per channel.
        strategy: How it was trained, ``one-shot`` say.
        version: Of fedcondense; `save_network` fills it in.

    Raises:
        SettingError: A value cannot be; the message lists all that cannot.
    """

    network: str
    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    strategy: str = ""
    version: str = ""

    def __post_init__(self) -> None:
        names, shape = self.classes, self.shape
        wrong = [
            f"{name} is {value!r:.100}; needed: a printable text of at most {_TEXT} characters"
            for name, value in (("network", self.network), ("strategy", self.strategy), ("version", self.version))
            if not _is_text(value)
        ]
        if self.network == "":
            wrong.append("network is empty; needed: a name")
        if not (isinstance(names, tuple) and 1 <= len(names) <= _CLASSES and all(n and _is_text(n) for n in names)):
            wrong.append(f"classes are {names!r:.100}; needed: 1 to {_CLASSES} printable texts in Unicode's form NFC")
        elif len(set(names)) != len(names):
            wrong.append("class names repeat; needed: each once")
        if not (
            isinstance(shape, tuple) and len(shape) == 3 and all(type(n) is int and 1 <= n <= _SIDE for n in shape)
        ):
            wrong.append(f"shape is {shape!r:.100}; needed: (C, H, W), each from 1 to {_SIDE}")
        else:
            for name, value in (("mean", self.mean), ("std", self.std)):
                if not (isinstance(value, tuple) and len(value) == shape[0] and all(map(_is_number, value))):
                    wrong.append(f"{name} is {value!r:.100}; needed: {shape[0]} finite numbers, one per channel")
                elif name == "std" and min(value) < 1e-6:
                    wrong.append(f"std is {value!r:.100}; needed: above zero")
        if wrong:
            raise SettingError("; ".join(wrong))


def _is_text(value: object) -> bool:
    return (
        isinstance(value, str)
        and len(value) <= _TEXT
        and value.isprintable()
        and unicodedata.is_normalized("NFC", value)
    )


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and abs(value) <= _LARGEST  # type: ignore[arg-type]  # NaN is not
