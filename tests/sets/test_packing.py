"""What a file may say of packed tensors and hold: anything else is refused in one line, in bounded memory."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import zlib
from collections.abc import Callable
from typing import Any

import PIL.features
import pytest
import torch
from PIL import Image

import fedcondense as fc
from fedcondense.errors import SettingError, UntrustedSetError
from fedcondense.parametrizations import Pixels
from fedcondense.sets.codecs import Chunk
from fedcondense.sets.coded import Stored
from fedcondense.sets.format import Limits
from fedcondense.sets.parts import Part, Record

LIMITS = Limits(decoded=5_000, decoded_bytes=8 << 20)


def pixels(channels: int, count: int = 24) -> fc.SyntheticSet:
    """Two classes of smooth images, 16 by 16."""
    noise = torch.rand(count, channels, 4, 4, generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.interpolate(noise, size=(16, 16), mode="bilinear").mul(255).to(torch.uint8)
    labels = (torch.arange(count) >= count // 2).to(torch.uint8)
    record = Record("toy", (channels, 16, 16), ("a", "b"), (0.5,) * channels, (0.25,) * channels)
    return fc.SyntheticSet([Part({"images": smooth}, labels, Pixels(), record)])


GREY, COLOUR = pixels(1), pixels(3)
SOFT = fc.SyntheticSet(
    [Part(GREY.parts[0].codes, torch.tensor([[0.75, 0.25]] * 24).half(), Pixels(), GREY.parts[0].record)]
)


def edited(
    blob: bytes,
    edit: Callable[[dict[str, Any]], None] = lambda packed: None,
    **tensors: bytes | Callable[[bytes], bytes],
) -> bytes:
    """Return a file with what it says of packed tensors edited, others in their place, and a checksum that is right."""
    end = 8 + int.from_bytes(blob[:8], "little")
    header, data = json.loads(blob[8:end]), b""
    content = json.loads(header["__metadata__"]["fedcondense"])
    edit(content["parts"][0].setdefault("codec", {}))
    header["__metadata__"]["fedcondense"] = json.dumps(content, separators=(",", ":"))
    for name, slot in header.items():
        if name == "__metadata__":
            continue
        given = tensors.get(name[2:])
        begin, stop = slot["data_offsets"]
        mine = blob[end + begin : end + stop]
        if given is not None:
            mine = given(mine) if callable(given) else given
            slot |= {"shape": [len(mine)], "dtype": "U8"}
        slot["data_offsets"] = [len(data), len(data) + len(mine)]
        data += mine
    text = json.dumps(header, separators=(",", ":")).encode()
    whole = len(text).to_bytes(8, "little") + text + data
    place = re.search(rb'"crc32[\\]+":[\\]+"', whole)
    assert place is not None
    head, tail = whole[: place.end()], whole[place.end() + 8 :]
    return head + f"{zlib.crc32(head + tail):08x}".encode() + tail


def refused(blob: bytes, says: str, limits: Limits = LIMITS) -> None:
    with pytest.raises(UntrustedSetError, match=says) as error:
        fc.SyntheticSet.from_bytes(blob, limits)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 600


def one_chunk(data: bytes, shape: tuple[int, ...] = (24, 1, 16, 16)) -> bytes:
    return Stored(shape, (Chunk(shape[0], data),)).to_bytes()


def saved(size: tuple[int, int], mode: str, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.linear_gradient("L").resize(size).convert(mode).save(file, kind, **options)
    return file.getvalue()


def says(codec: Any = None, shape: Any = None, name: str = "images") -> Callable[[dict[str, Any]], None]:
    def edit(packed: dict[str, Any]) -> None:
        packed[name] = [packed[name][0] if codec is None else codec, packed[name][1] if shape is None else shape]

    return edit


BITS = GREY.recode("bits-2").to_bytes()


def test_an_unchanged_file_that_is_put_together_again_is_read() -> None:
    assert fc.SyntheticSet.from_bytes(edited(BITS), LIMITS).to_bytes() == BITS


@pytest.mark.parametrize(
    ("edit", "why"),
    [
        (says("zip-2"), "part 0 is packed by zip-2, and no codec is called 'zip-2'.*; or upgrade fedcondense"),
        (says("bits-0"), "0 bits a value; needed: from 1 to 6"),
        (says("bits-9"), "9 bits a value"),
        (says("jpeg-0"), "jpeg of quality 0; needed: a whole number from 1 to 100"),
        (says("webp-101"), "webp of quality 101"),
        (says("palette-65"), "a palette of 65 colours; needed: from 2 to 64"),
        (says("palette-16"), "palette stores colour, these images have 1 channels; choose bits-1 to bits-6"),
        (says("raw"), "packed by raw to .*; needed: a codec of images"),
        (says("bits-2\n"), "no codec|settings|needed"),
        (says(shape=[24, 1, 16]), r"to \(24, 1, 16\); needed: a codec of images, \(N, C, H, W\)"),
        (says(shape=[24, 1, 0, 16]), r"to \(24, 1, 0, 16\); needed"),
        (says("palette-16", [24, 3, 0, 0]), "needed: a codec of images"),
        (says("webp-9", [24, 1, 16, 0]), "needed: a codec of images"),
        (says("jpeg-9", [24, 2, 16, 16]), "jpeg stores one channel or three, these images have 2"),
        (says("jpeg-9", [24, 1, 5000, 16]), "jpeg stores at most 4096 values a side"),
        (says(shape=[24, 1, 16, -16]), "needed: a shape"),
        (says(shape=[24, 1, 16, 16.0]), "needed: a shape"),
        (says(shape=[2**40, 1, 16, 16]), "needed: a shape"),
        (says(shape=[2**39, 1, 16, 16]), "allowed|targets"),
        (says(shape=[25, 1, 16, 16]), "25 codes for 25 images but 24 targets"),
        (says(shape=[23, 1, 16, 16]), "23 codes for 23 images but 24 targets"),
        (says(shape=[24, 1, 32, 16]), "."),
        (
            lambda packed: packed.update(images="bits-2"),
            "images of part 0 is packed by bits-2; needed: a codec's name",
        ),
        (lambda packed: packed.update(images=["bits-2"]), "needed: a codec's name and a shape"),
        (lambda packed: packed.update(bases=["bits-2", [1, 1, 1, 1]]), "a codec of part 0 for bases"),
        (lambda packed: packed.clear(), "codec {} of part 0; needed: an object"),
        (lambda packed: packed.update(targets=["runs", [24]]), "runs"),
        (lambda packed: packed.update(targets=["bits-2", [24]]), "soft labels by 'bits-2'.*, or 'runs' for hard ones"),
        (
            lambda packed: packed.update(targets=["top-3", [24, 3]]),
            r"soft labels of part 0 unpack to \(24, 3\); needed",
        ),
    ],
)
def test_what_a_header_says_of_packed_tensors(edit: Callable[[dict[str, Any]], None], why: str) -> None:
    refused(edited(BITS, edit), why)


@pytest.mark.parametrize(
    ("table", "why"),
    [
        (b"", "a table of chunks that is cut off"),
        (b"\x80", "a table of chunks that is cut off"),
        (b"\x80\x00", "of more bytes than it needs"),
        (b"\xff\xff\xff\xff\xff\x01", "a number that is too large"),
        (b"\x00", "chunks of 0 images in 1 bytes; needed: 24"),
        (b"\x19" + b"\x01\x00" * 25, "25 chunks of 24 images; allowed: 24"),
        (b"\xff\xff\xff\x7f", "268435455 chunks of 24 images"),
        (b"\x01\x18\x05abc", "chunks of 24 images in 8 bytes; needed: 24, 6"),
        (b"\x01\x18\x01abc", "chunks of 24 images in 4 bytes; needed: 24, 6"),
        (b"\x02\x00\x00\x18\x01a", "a chunk of no images"),
        (b"\x01\x17\x01a", "chunks of 23 images"),
    ],
)
def test_tables_of_chunks_that_lie(table: bytes, why: str) -> None:
    refused(edited(BITS, images=table), why)


@pytest.mark.parametrize(
    ("name", "data", "why"),
    [
        ("top-1", b"", "0 bytes of soft labels; needed: 72"),
        ("top-1", b"\x05\x00" * 24 + b"\xff" * 24, "soft labels of class 5; needed: below 2"),
        ("top-1", b"\x01\x00" * 24 + b"\x07" * 24, "written in another way"),
        ("top-0", b"", "needed: 'top-3', say"),
        ("top-01", b"", "needed: 'top-1'"),
        ("top-" + "9" * 400, b"", "soft labels by 'top-9+"),
        ("runs", b"\x18\0\0\0\0\0", "part 0 has soft labels by 'runs'.*, or 'runs' for hard ones"),
    ],
)
def test_packed_soft_labels(name: str, data: bytes, why: str) -> None:
    blob = SOFT.recode("bits-2", labels="top-1").to_bytes()
    refused(edited(blob, lambda packed: packed.update(targets=[name, [24, 2]]), targets=data), why)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"\x18\0\0\0\0", "5 bytes of runs for labels"),
        (b"\x17\0\0\0\0\0", "runs of 23 labels; needed: 24"),
        (b"\xff\xff\xff\xff\0\0" * 40, "runs of .* labels; needed: 24"),
        (b"\x0c\0\0\0\0\0" * 2, "needed: 24, each run of one label and longest"),
        (b"\x18\0\0\0\0\0\0\0\0\0\1\0", "each run of one label and longest"),
        (b"\x18\0\0\0\0\1", "label 256, which torch.uint8 does not hold"),
        (b"\x18\0\0\0\7\0", "labels of part 0 up to 7; needed: below 2"),
    ],
)
def test_packed_hard_labels(data: bytes, why: str) -> None:
    refused(edited(BITS, lambda packed: packed.update(targets=["runs", [24]]), targets=data), why)


def deflated(size: int) -> bytes:
    coder = zlib.compressobj(9, zlib.DEFLATED, -15)
    return b"\4" + coder.compress(bytes(size)) + coder.flush()


@pytest.mark.parametrize(
    ("codec", "data", "why"),
    [
        ("bits-1", bytes(3) + deflated(24 * 16 * 2 - 1), "767 bytes or more inside; needed: exactly 768"),
        ("bits-1", bytes(3) + deflated(24 * 16 * 2 + 1), "769 bytes or more inside; needed: exactly 768"),
        ("bits-1", bytes(3) + deflated(1 << 26), "769 bytes or more inside"),
        ("bits-1", bytes(3) + deflated(768)[:-1], "768 bytes or more inside|damaged"),
        ("bits-1", bytes(3) + deflated(768) + b"x", "768 bytes or more inside"),
        ("bits-1", bytes(3) + b"\x09" + bytes(768), "packed in an unknown way"),
        ("bits-1", bytes(3), "3 bytes of 1 bits a value; needed: more than 3"),
        ("bits-1", b"", "0 bytes of 1 bits a value"),
        ("bits-1-class", b"\x01" + bytes(4) + b"\xff\xff\xff\xff", "unknown way|inside|damaged"),
        ("bits-1-class", b"\x01" + bytes(4) + b"\x19\0\0\0\5" + b"\2" * 24 + deflated(768), "group 2 of 2"),
        ("jpeg-9", saved((16, 384), "L", "JPEG"), "segments .*; needed: of one frame and scan"),
        (
            "jpeg-9",
            saved((16, 400), "L", "JPEG", restart_marker_rows=2),
            r"a strip of \[400, 16\].*needed: \[\[384, 16\], 4\]",
        ),
        ("jpeg-9", saved((16, 384), "L", "JPEG", restart_marker_rows=1), "with a mark every 2 blocks"),
        ("jpeg-9", saved((16, 384), "RGB", "JPEG", restart_marker_rows=1), "sampled|strip"),
        ("jpeg-9", saved((16, 384), "L", "JPEG", restart_marker_rows=2, progressive=True), "a JPEG with segments"),
        ("jpeg-9", saved((16, 384), "L", "JPEG", restart_marker_rows=2, comment=b"x"), "a JPEG with segments"),
        (
            "jpeg-9",
            saved((16, 384), "L", "JPEG", restart_marker_rows=2)[:-9],
            "no JPEG from its first mark to its last",
        ),
        ("jpeg-9", saved((16, 384), "L", "JPEG", restart_marker_rows=2)[:-40] + b"\xff\xd9", "a strip of 2. images"),
        ("jpeg-9", saved((16, 384), "L", "PNG"), "no JPEG from its first mark to its last"),
        ("webp-9", saved((80, 64), "RGB", "WEBP"), r"a sheet of \(80, 64\); needed: \(80, 80\)"),
        ("webp-9", saved((80, 80), "RGB", "WEBP", lossless=True), "no WebP of one lossy frame alone"),
        (
            "webp-9",
            saved((80, 80), "RGB", "WEBP", save_all=True, append_images=[Image.new("RGB", (80, 80))]),
            "no WebP of one lossy frame alone; needed: neither alpha nor animation nor metadata",
        ),
        ("webp-9", saved((80, 80), "RGB", "WEBP")[:-9], "a WebP of .* bytes with a frame of"),
        ("webp-9", saved((80, 80), "RGB", "WEBP") + b"more", "a WebP of .* bytes with a frame of"),
        ("webp-9", saved((80, 80), "L", "JPEG"), "no WebP of one lossy frame alone"),
    ],
)
def test_chunks_that_hold_something_else(codec: str, data: bytes, why: str) -> None:
    refused(edited(BITS, says(codec), images=one_chunk(data)), f"malformed: .*({why})")


def test_a_codec_whose_library_is_missing_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for codec, feature in (("webp-30", "webp"), ("jpeg-30", "jpg")):
        blob = GREY.recode(codec).to_bytes()
        with monkeypatch.context() as without:
            without.setattr(PIL.features, "check", lambda name, missing=feature: name != missing)
            why = f"needs a Pillow with {feature.upper()}, .*; run: pip install --force-reinstall .* pillow$"
            refused(blob, why)
            with pytest.raises(SettingError, match=why):
                GREY.recode(codec)


def test_a_coded_set_is_of_version_2_which_readers_of_version_1_refuse_by_its_number() -> None:
    assert b'\\"version\\":2,' in BITS
    whole = BITS.replace(b'\\"version\\":2,', b'\\"version\\":1,')
    place = whole.index(b'crc32\\":\\"') + len(b'crc32\\":\\"')
    digits = f"{zlib.crc32(whole[:place] + whole[place + 8 :]):08x}".encode()
    refused(whole[:place] + digits + whole[place + 8 :], "format version 1 with a checksum")


@pytest.mark.parametrize("codec", ["bits-2", "bits-1-patch", "jpeg-30", "webp-30", "palette-8"])
def test_limits_are_those_of_what_is_decoded(codec: str) -> None:
    blob = COLOUR.recode(codec).to_bytes()
    refused(blob, "decodes to 24 images", Limits(decoded=23))
    refused(blob, "allowed: 1000000 and 73727", Limits(decoded_bytes=4 * 24 * 3 * 16 * 16 - 1))
    assert len(fc.SyntheticSet.from_bytes(blob, Limits(decoded=24))) == 24


SCRIPT = """
import io, resource, sys, zlib
import torch
from PIL import Image
from fedcondense.errors import UntrustedSetError
from fedcondense.parametrizations import Pixels
from fedcondense.sets.codecs import Chunk, codec_named
from fedcondense.sets.coded import Coded, Stored
from fedcondense.sets.format import Limits
from fedcondense.sets import format
from fedcondense.sets.parts import Part, Record
from fedcondense.sets.synthetic import SyntheticSet

torch.set_num_threads(1)
MB = 1 << 20


def saved(size, mode, kind, **options):
    file = io.BytesIO()
    Image.new(mode, size).save(file, kind, **options)
    return file.getvalue()


def inflates(size):
    coder = zlib.compressobj(1, zlib.DEFLATED, -15)
    return b"\\x04" + coder.compress(bytes(size)) + coder.flush()


def made(codec, count, channels, side, chunk, chunks):
    labels = torch.zeros(count, dtype=torch.uint8)
    record = Record("x", (channels, side, side), ("a",), (0.5,) * channels, (0.25,) * channels)
    stored = Stored((count, channels, side, side), (Chunk(count // chunks, chunk),) * chunks)
    return SyntheticSet([Part(Coded(codec_named(codec), {"images": stored}), labels, Pixels(), record)])


def grouped(packed):
    return b"\\1" + bytes(4) + len(packed).to_bytes(4, "little") + packed


files = {
    "bits": made("bits-2", 16, 1, 512, bytes(5) + inflates(1 * MB), 1),
    "patch": made("bits-1-patch", 16, 1, 512, grouped(inflates(16 * 128 * 128)) + inflates(MB // 2), 1),
    "palette": made("palette-16", 5, 3, 512, bytes(48) + inflates(5 * MB // 8), 1),
    "jpeg": made("jpeg-9", 16, 1, 512, saved((512, 4096), "L", "JPEG", restart_marker_rows=64), 2),
    "webp": made("webp-9", 16, 1, 512, saved((2048, 2048), "RGB", "WEBP", method=0), 1),
    "bomb of bits": made("bits-2", 16, 1, 512, bytes(5) + inflates(160 * MB), 1),
    "bomb of groups": made("bits-1-patch", 16, 1, 512, grouped(inflates(160 * MB)), 1),
    "bomb of a palette": made("palette-16", 5, 3, 512, bytes(48) + inflates(160 * MB), 1),
    "bomb of a strip": made("jpeg-9", 16, 1, 512, saved((8192, 8192), "L", "JPEG", restart_marker_rows=64), 2),
    "bomb of a sheet": made("webp-9", 16, 1, 512, saved((4096, 4096), "RGB", "WEBP", method=0), 1),
}
sheet = files["webp"].parts[0].codes.stored["images"].chunks[0].data
says_more = sheet[:26] + b"\\xff\\x3f" * 2 + sheet[30:]
files["a sheet that says more"] = made("webp-9", 16, 1, 512, says_more, 1)
check, format.check_values = format.check_values, lambda *_: None  # which would decode
blobs = {name: one.to_bytes() for name, one in files.items()}
format.check_values = check
del files
limits = Limits(decoded_bytes=17 * MB)
small = SyntheticSet.from_bytes(made("bits-2", 1, 1, 8, bytes(5) + inflates(16), 1).to_bytes(), limits)
pages = int(open("/proc/self/statm").read().split()[0])
most = pages * resource.getpagesize() + 5 * 16 * MB
resource.setrlimit(resource.RLIMIT_AS, (most, most))
for name, blob in blobs.items():
    try:
        synthetic = SyntheticSet.from_bytes(blob, limits)
        print(name, len(synthetic.decode().images))
        del synthetic
    except UntrustedSetError as error:
        print(name, "refused", str(error).isprintable())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc and limits the address space")
def test_nothing_is_allocated_beyond_a_multiple_of_the_limit() -> None:
    """Sets that decode to 16 MB, bombs of 160 MB and pictures of up to 8192 pixels a side, in five times 16 MB."""
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines() == [
        *("bits 16", "patch 16", "palette 5", "jpeg 16", "webp 16"),
        *(f"bomb of {what} refused True" for what in ("bits", "groups", "a palette", "a strip", "a sheet")),
        "a sheet that says more refused True",
    ]
