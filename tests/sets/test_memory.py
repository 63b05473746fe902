"""Small files that decode to much: memory stays below a multiple of the limits, which the system enforces here."""

from __future__ import annotations

import subprocess
import sys

import pytest

resource = pytest.importorskip("resource")

SCRIPT = """
import resource
import torch
from fedcondense.errors import UntrustedSetError
from fedcondense.parametrizations import Bases, Hallucinators, Latents, MultiFormation, Pixels
from fedcondense.sets.format import Limits
from fedcondense.sets.parts import Part, Record
from fedcondense.sets.synthetic import SyntheticSet

torch.set_num_threads(1)
MB = 1 << 20
half = {"dtype": torch.float16}


def made(parametrization, shape, classes, **codes):
    rows = len(next(iter(codes.values())))
    labels = torch.zeros(rows, dtype=torch.uint8 if classes <= 256 else torch.int16)
    record = Record("x", shape, tuple(map(str, range(classes))), (0.5,) * shape[0], (0.25,) * shape[0])
    return SyntheticSet([Part(codes, labels, parametrization, record)])


def images(count, shape, classes, parametrization=Pixels()):
    return made(parametrization, shape, classes, images=torch.zeros(count, *shape, dtype=torch.uint8))


def latents(side, count):
    kind = Latents(upsamplings=4)
    stem, flat = torch.zeros(2, 32, side // 16, side // 16, **half), torch.zeros(kind._convolutions(32, 1), **half)
    return made(kind, (1, side, side), 2, latents=torch.zeros(count, 1, **half), stem=stem, convolutions=flat)


def hallucinators(side, count, channels, bases):
    kind = Hallucinators(count=count, bases=1, downsample=8, channels=channels)
    small, weights = side // 8, 20 * channels + 1
    codes = {"bases": torch.zeros(bases, 1, small, small, dtype=torch.uint8)}
    return made(kind, (1, side, side), 2, **codes, hallucinators=torch.zeros(count, weights, **half))


def bases(side, count):
    coefficients, small = torch.zeros(count, 4, **half), torch.zeros(4, 1, side, side, **half)
    return made(Bases(downsample=1), (1, side, side), 2, coefficients=coefficients, bases=small)


files = {
    "labels": images(25_000, (1, 1, 1), 1300),
    "too many labels": images(25_000, (1, 1, 1), 1400),
    "tiles": images(7_000, (1, 8, 8), 10, MultiFormation(8)),
    "too many tiles": images(9_000, (1, 8, 8), 10, MultiFormation(8)),
    "bases": bases(64, 8_000),
    "hallucinators": hallucinators(256, 16, 4, 30),
    "parts": SyntheticSet.join([images(1, (1, 1, 1), 300)] * 500),
    "large parts": SyntheticSet.join([images(1, (1, 512, 512), 2, MultiFormation(8)), bases(512, 60)]),
}
blobs = {name: made.to_bytes() for name, made in files.items()}
for name, make in {"latents": lambda: latents(4096, 1), "maps": lambda: hallucinators(4096, 1, 4, 1)}.items():
    import fedcondense.parametrizations.decoding as decoding
    allowed, decoding._AT_ONCE = decoding._AT_ONCE, 1 << 40
    blobs[name] = make().to_bytes()
    decoding._AT_ONCE = allowed
del files
limits = Limits(decoded_bytes=128 * MB)
SyntheticSet.from_bytes(blobs["parts"], limits).decode()
pages = int(open("/proc/self/statm").read().split()[0])
most = pages * resource.getpagesize() + 3 * 128 * MB + 128 * MB
resource.setrlimit(resource.RLIMIT_AS, (most, most))
for name, blob in blobs.items():
    try:
        synthetic = SyntheticSet.from_bytes(blob, limits)
        print(name, len(synthetic.decode().images), len(synthetic.weights()), len(synthetic.counts()))
        del synthetic
    except UntrustedSetError:
        print(name, "refused")
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc and limits the address space")
def test_crafted_files_are_refused_or_decoded_in_a_multiple_of_the_limit() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    said = dict(line.rsplit(" ", 1) if "refused" in line else line.split(" ", 1) for line in done.stdout.splitlines())
    assert [name for name, what in said.items() if what == "refused"] == [
        *("too many labels", "too many tiles", "latents", "maps")
    ]
    assert len(done.stdout.splitlines()) == 10
