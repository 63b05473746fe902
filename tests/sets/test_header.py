"""Headers of strangers: bounded in memory and time, and of one meaning."""

from __future__ import annotations

import json
import time

import pytest

from fedcondense.errors import UntrustedSetError
from fedcondense.sets.format import Limits
from fedcondense.sets.synthetic import SyntheticSet

MANY = 1_000_000


def outer(text: bytes) -> bytes:
    return len(text).to_bytes(8, "little") + text


def inner(text: str) -> bytes:
    return outer(b'{"__metadata__":{"fedcondense":' + json.dumps(text).encode() + b"}}")


HEADERS = {
    "deep": (outer(b"[" * MANY), "a header of 1000000 lists and objects, 1000000 deep"),
    "deep within": (inner("[" * MANY), "a header of 1000000 lists"),
    "deep again and again": (inner("[" + "[" * 30 + "]" * 30 + "]"), "a header of 31 lists and objects, 31 deep"),
    "wide": (outer(b"[" + b"[]," * MANY + b"0]"), "a header of 1000001 lists and objects, 2 deep"),
    "wide within": (inner("[" + "{}," * MANY + "0]"), "a header of 1000001 lists"),
    "brackets in a text": (outer(b'{"' + b"[" * 100 + b'\\"[[": 0}'), "without a fedcondense record"),
    "many names of one": (inner('{"version":1,' + '"a":0,' * MANY + '"a":0}'), "'?a'? occurs twice in the header"),
    "the last name again": (
        inner("{" + "".join(f'"{i}":0,' for i in range(MANY // 10)) + '"7":0}'),
        "7 occurs twice in the header",
    ),
    "two meanings": (inner('{"version":1,"version":2}'), "version occurs twice in the header"),
    "two shapes": (outer(b'{"0.images":{"dtype":"U8","shape":[1],"shape":[2],"data_offsets":[0,1]}}'), "shape occurs"),
    "two bytes a character": (outer('{"__metadata__":{}}'.encode("utf-16")), "malformed: 'utf-8' codec"),
    "four bytes a character": (outer('{"__metadata__":{}}'.encode("utf-32-le")), "malformed"),
    "a mark of order": (outer(b"\xef\xbb\xbf{}"), "malformed: Unexpected UTF-8 BOM"),
    "not a number": (inner('{"version":1,"parts":[],"x":NaN}'), "NaN in the header"),
    "no end": (inner('{"version":1,"parts":[],"x":-Infinity}'), "-Infinity in the header"),
    "a long number": (inner('{"version":' + "1" * MANY + "}"), "malformed: Exceeds the limit"),
    "quotes without an end": (outer(b'{"a":"' + b'\\"' * MANY), "malformed: Unterminated string"),
    "a list": (inner("[]"), "the fedcondense record is no object"),
}


@pytest.mark.parametrize("kind", HEADERS)
def test_a_header_that_takes_long_or_means_two_things_is_refused(kind: str) -> None:
    blob, reason = HEADERS[kind]
    began = time.process_time()
    with pytest.raises(UntrustedSetError, match=reason) as refused:
        SyntheticSet.from_bytes(blob, Limits())
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 500
    assert time.process_time() - began < 30  # one that is quadratic takes minutes
