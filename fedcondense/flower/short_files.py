"""A payload's file in a message, its header packed against a text that both ends have.

A file begins with eight bytes, the length of its header, and the header, JSON, of which nearly all is known before:
names of fields, and the classes that the question named by a digest. Raw deflate (RFC 1951) with these as its preset
dictionary leaves a sixth. What follows the header, codes that have no order to find, travels as it is. The first byte
says which dictionary: 0 none, the file is as it was; 1 the fixed one; 2 the classes before it.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Sequence

from fedcondense.errors import UntrustedSetError

__all__ = ["MOST_BYTES", "digest_of", "pack_file", "unpack_file"]

MOST_BYTES = 1 << 20
"""Larger files travel as Arrays, which Flower sends in pieces; beside them a header is nothing."""

_PLAIN, _FIXED, _CLASSES = 0, 1, 2
_RAW = -15  # deflate without a header and a checksum: files have one of their own

# Part of wire 3: it may not change. What is likeliest stands last, where references to it are shortest.
_TEXT = rb"""
{"gram":{"dtype":"F32","shape":[1],"data_offsets":[0,1]},"products":{"dtype":"F32","shape":[1,10],"data_offsets":[1,2]}}
{"labels":{"dtype":"I64"},"counts":{"dtype":"I64"},"means":{"dtype":"F16"},"variances":{"dtype":"F16"},"rows":"scales":
\"hallucinators\",\"bases\",\"latents\",\"settings\":{\"count\":4,\"factor\":4},\"factor\":2,\"targets\":[\"top-3\",
"0.coefficients":"0.bases":"1.images":{"dtype":"U8","1.targets":{"dtype":"I16","
\"method\":\"ncfm\",\"dm-ridge\",\"dm\",\"random\",\"herding\",\"k-center\",\"k-means\",\"half-resolution\",\"ipc\":1,
\"start\":\"real\",\"grey\",\"noise\",\"network\":\"convnet2-w32\",\"resnet18\",\"convnet4-w64\",\"convnet3-w128\",
\"data\":\"cifar10\",\"shape\":[3,32,32],\"mean\":[0.4914,0.4822,0.4465],\"std\":[0.247,0.2435,0.2616],\"jpeg-10\",[
\"codec\":{\"images\":[\"webp-20\",[\"palette-16\",[\"bits-1\",[\"bits-3\",[10,3,16,16]]},\"bits-2-patch\",\"class\",
\"color\",\"crop\",\"cutout\",\"scale\",\"rotate\"],\"data\":\"mnist\",\"shape\":[1,64,64],\"data\":\"folder
{"__metadata__":{"fedcondense":"{\"crc32\":\"00000000\",\"version\":2,\"classes\":[\"0\",\"1\",\"2\",\"3\",\"4\",\"5\",
\"6\",\"7\",\"8\",\"9\"],\"parts\":[{\"parametrization\":\"multi-formation\",\"codec\":{\"images\":[\"bits-2\",[10,1,28
,28]]},\"record\":{\"data\":\"fashion-mnist\",\"shape\":[1,28,28],\"mean\":[0.2861],\"std\":[0.353],\"method\":\"
mmd-ridge\",\"ipc\":10,\"network\":\"convnet3-w32\",\"augmentation\":[\"color\",\"crop\",\"cutout\",\"flip\",\"scale\",
\"rotate\"],\"start\":\"gaussian\",\"counts\":[0,0,0],\"seconds\":0.0}}]}"},"0.images":{"dtype":"U8","shape":[100],
"data_offsets":[0,100]},"0.targets":{"dtype":"U8","shape":[10],"data_offsets":[100,110]}}       """.replace(b"\n", b"")


def digest_of(classes: Sequence[str]) -> str:
    """Return eight hexadecimal digits by which two ends see that they have the same names in the same order."""
    return hashlib.sha256(_names(classes)).hexdigest()[:8]


def pack_file(blob: bytes, classes: Sequence[str] = ()) -> bytes:
    """Return a file with its header packed, if that is shorter.

    Args:
        blob: A file that begins with its header's length; anything else travels as it is.
        classes: Names in their order that the receiver has, too.
    """
    length = 8 + int.from_bytes(blob[:8], "little")
    if length > len(blob):
        return bytes([_PLAIN]) + blob
    kind = _CLASSES if classes else _FIXED
    packer = zlib.compressobj(9, zlib.DEFLATED, _RAW, 9, zlib.Z_DEFAULT_STRATEGY, _dictionary(classes))
    packed = bytes([kind]) + packer.compress(blob[:length]) + packer.flush() + blob[length:]
    return packed if len(packed) <= len(blob) else bytes([_PLAIN]) + blob


def unpack_file(data: bytes, classes: Sequence[str], most: int) -> bytes:
    """Return the file that `pack_file` was given; the data are of unknown origin.

    Args:
        data: What arrived.
        classes: Names that the question named.
        most: Bytes that a header may take; inflation stops there.

    Raises:
        UntrustedSetError: They are something else, or the header is longer.
    """
    kind = data[0] if data else _PLAIN
    if not data or kind > _CLASSES or (kind == _CLASSES and not classes):
        raise UntrustedSetError("a file packed in a way that the question did not name")
    if kind == _PLAIN:
        return data[1:]
    unpacker = zlib.decompressobj(_RAW, _dictionary(classes if kind == _CLASSES else ()))
    try:
        header = unpacker.decompress(memoryview(data)[1:], most + 8)
    except zlib.error:
        raise UntrustedSetError("a packed header that is damaged") from None
    if not unpacker.eof:
        raise UntrustedSetError(f"a packed header that is cut off, or of more than {most} bytes")
    return header + unpacker.unused_data


def _dictionary(classes: Sequence[str]) -> bytes:
    """Return the preset dictionary; deflate sees its last 32 kB."""
    return (json.dumps(_names(classes).decode(), ensure_ascii=False)[1:-1].encode() if classes else b"") + _TEXT


def _names(classes: Sequence[str]) -> bytes:
    return json.dumps(list(classes), ensure_ascii=False, separators=(",", ":")).encode()
