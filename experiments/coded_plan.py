"""What `coded.py` tries: budgets, codecs and methods."""

from __future__ import annotations

from cells import RESULTS

from fedcondense.sets.zoo import ready_sets

PATH = RESULTS / "coded.json"
SEEDS = (0, 1, 2)
HELD_OUT = {"fashion-mnist": 500, "cifar10": 500, "leaves64": 50}  # about, a class
READY_STEPS = 400  # as the ready sets were evaluated when they were made
STEPS = {"fashion-mnist": 1000, "cifar10": 1000, "leaves64": 400}

BUDGETS = {"fashion-mnist": (10_000, 78_400), "cifar10": (30_000, 78_000, 307_200), "leaves64": (123_000, 262_000)}
FULL, HALF, CONDENSED = "random", "half-resolution", "mmd-ridge"
CANDIDATES: dict[tuple[str, int], dict[str, tuple[str, ...]]] = {
    ("fashion-mnist", 10_000): {
        FULL: ("bits-1", "jpeg-10", "sheet-10", "webp-10", "webp-20"),
        HALF: ("webp-20",),
    },
    ("cifar10", 30_000): {
        FULL: ("jpeg-5", "jpeg-10", "jpeg-15", "jpeg-25"),
        HALF: ("jpeg-25",),
    },
    ("fashion-mnist", 78_400): {FULL: ("bits-1", "jpeg-10", "webp-10", "webp-20"), HALF: ()},
    ("cifar10", 78_000): {FULL: ("jpeg-10", "jpeg-15"), HALF: ("jpeg-25",)},
    ("cifar10", 307_200): {FULL: ("jpeg-5", "jpeg-10", "jpeg-15", "jpeg-25"), HALF: ()},
    ("leaves64", 123_000): {FULL: ("jpeg-10", "jpeg-25", "webp-10"), HALF: ()},
    ("leaves64", 262_000): {FULL: ("jpeg-10", "jpeg-25"), HALF: ()},
}
"""What is tried of random images, by budget; herding and k-means take what random images chose."""

CLOSE = 1.0  # points behind the best on one network: two more networks decide

SMALL = (("fashion-mnist", 10_000), ("cifar10", 30_000))
"""Budgets of condensed sets, spent by the rate rule (`fedcondense.condensing.rate`)."""

READY = (
    "raw",
    "bits-1",
    "bits-2",
    "bits-3",
    "jpeg-25",
    "webp-10",
    "webp-30",
    "bits-1-patch",
    "bits-2-patch",
    "bits-2-class",
)
READY_NAMES = tuple(name for name in ready_sets() if not name.startswith("mnist"))
