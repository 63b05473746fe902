"""Codecs: how stored images become bytes, one file each, and the dict that names them.

`codec_named` reads names: the word before the first hyphen is an entry of `CODECS`, what follows are its settings, as
in ``"bits-2"``, ``"bits-2-patch"``, ``"jpeg-10"``, ``"webp-20"`` and ``"palette-16"``. ``"raw"`` is none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, fields

from fedcondense.errors import SettingError, unknown
from fedcondense.sets.codecs.bits import Bits
from fedcondense.sets.codecs.contract import Chunk, Codec, Inexact
from fedcondense.sets.codecs.jpeg import Jpeg
from fedcondense.sets.codecs.palette import Palette
from fedcondense.sets.codecs.webp import WebP

__all__ = [
    "CODECS",
    "RAW",
    "Bits",
    "Chunk",
    "Codec",
    "Inexact",
    "Jpeg",
    "Palette",
    "WebP",
    "codec_named",
    "name_of",
]

RAW = "raw"

CODECS: dict[str, Callable[..., Codec]] = {"bits": Bits, "jpeg": Jpeg, "webp": WebP, "palette": Palette}
"""What files may name and receivers look up; a user adds a line with a frozen dataclass."""

_EXAMPLES = "such as raw, bits-2, bits-2-patch, jpeg-10, webp-20, palette-16"
_LONGEST = 60  # characters of a name


def codec_named(name: str) -> Codec | None:
    """Return the codec of a name; None for ``"raw"``, which is none.

    Raises:
        SettingError: No codec has this name, or its settings cannot work.
    """
    if name == RAW:
        return None
    family, *settings = name.split("-") if isinstance(name, str) and len(name) <= _LONGEST else [str(name)[:_LONGEST]]
    if family not in CODECS:
        raise SettingError(f"{unknown('codec', str(name)[:_LONGEST], (RAW, *CODECS))}; needed: a name {_EXAMPLES}")
    try:
        codec = CODECS[family](*(int(one) if one.isascii() and one.isdigit() else one for one in settings))
    except TypeError:  # too few settings or too many
        raise SettingError(f"codec {name!r}; needed: a name {_EXAMPLES}") from None
    if name_of(codec) != name:
        raise SettingError(f"codec {name!r}; needed: {name_of(codec)!r}")
    return codec


def name_of(codec: Codec | None) -> str:
    """Return a codec's name: its word in `CODECS` and its settings, those at the end left out that are defaults.

    Raises:
        SettingError: Its class is not in `CODECS`.
    """
    if codec is None:
        return RAW
    family = next((word for word, entry in CODECS.items() if entry is type(codec)), None)
    if family is None:
        raise SettingError(f"{type(codec).__name__} is not in CODECS; add it by name, so that readers find it")
    settings = [(getattr(codec, item.name), item.default) for item in fields(codec)]  # type: ignore[arg-type]
    while settings and settings[-1][1] is not MISSING and settings[-1][0] == settings[-1][1]:
        settings.pop()
    return "-".join([family, *(str(value) for value, _ in settings)])
