"""The streams of the continual experiment, what learns from them, and what is remembered, by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import fedcondense as fc
from fedcondense.memory import Condenser, Maker, Selector

SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Protocol:
    """A stream and a learner's budget."""

    data: str
    images: int  # of the memory, plain
    width: int = 32
    per_class: int | None = None  # real images of a class; None: all
    experiences: int = 5
    stream: str = "classes"  # "classes", "domains" (rotations), or "online" (mini-experiences of 50)
    updates: int = 940  # of the network that GDumb trains last
    rows: tuple[tuple[str, str], ...] = ()  # learner, memory
    steps: Mapping[str, int] = field(default_factory=dict)  # of condensing, by memory; else those of `STEPS`
    adaptive: bool = True  # share the memory among the classes seen so far, where that serves
    max_bytes: int | None = None  # of the file, in the place of `images`; rows are coded memories then
    held_out: int = 0  # images per class, of the training images left over, in the place of the test images


CONTROLS = ("random", "herding", "k-means", "half-resolution")
DISTILLED = ("dm", "dm factor 2", "dm-ridge", "dm-ridge factor 2")
STOCK = (("gdumb-stock", "stock"), ("replay-stock", "stock"))
BEST = "dm-ridge factor 2"
ALIKE = f"{BEST}, group norm"  # made on networks with the learner's norm and width; final shares from the start
KERNEL = "mmd factor 2"  # on networks of the learner's width; final shares from the start
CAPPED = {f"{KERNEL}, {seconds} s": seconds for seconds in (4, 10, 25)}  # each call of the condenser
STEPS = {"pixels": 1200, "multi-formation": 600}
BUDGETS = (50, 100, 200, 400, 800, 1600)


def both(*memories: str) -> tuple[tuple[str, str], ...]:
    return tuple((learner, memory) for memory in memories for learner in ("gdumb", "replay"))


def gdumb(*memories: str) -> tuple[tuple[str, str], ...]:
    return tuple(("gdumb", memory) for memory in memories)


def budget(images: int) -> Protocol:
    """The prototype at another budget, each class with its final share from the start.

    A step of condensing takes longer with more images, so there are fewer: an experience stays below 60 s.
    """
    steps = dict.fromkeys((BEST, f"half {BEST}"), max(60, 600 * 100 // images))
    steps["dm-ridge"] = 400 if images > 800 else STEPS["pixels"]
    memories = (*CONTROLS, "dm-ridge", BEST, f"half {BEST}")
    rows, updates = gdumb(*memories), max(940, 3 * images)
    return Protocol("fashion-mnist", images, 16, 2000, updates=updates, rows=rows, steps=steps, adaptive=False)


FULL = Protocol(
    "fashion-mnist",
    100,
    rows=(*STOCK, *both(BEST, *CONTROLS, ALIKE, KERNEL)),
    steps={ALIKE: 1000},
)

# chosen on held-out training images: `memories.md`
CODED_ROWS = {
    "coded-cifar10": ("jpeg-10", "dct-65", f"{KERNEL} bits-2 + 0.75 jpeg-10", f"{KERNEL} bits-2"),
    "coded-fashion-mnist": ("jpeg-10", "webp-20", f"{KERNEL} bits-2 + 0.75 webp-20", f"{KERNEL} bits-2"),
}
CODED = {
    "coded-cifar10": Protocol("cifar10", 100, 32, 1000, updates=2000, steps={KERNEL: 200}, max_bytes=307_200),
    "coded-fashion-mnist": Protocol(
        "fashion-mnist", 100, 16, 2000, updates=2000, steps={KERNEL: 300}, max_bytes=78_400
    ),
}
CANDIDATES = {
    "coded-cifar10": (
        *("jpeg-5", "jpeg-10", "jpeg-15", "jpeg-25", "dct-65", "dct-45"),
        *(f"{KERNEL} bits-2 + {share} {codec}" for share in (0.5, 0.75) for codec in ("dct-65", "jpeg-10")),
        f"{KERNEL} bits-2",
    ),
    "coded-fashion-mnist": (
        *("jpeg-5", "jpeg-10", "jpeg-25", "webp-10", "webp-20", "dct-65", "dct-100"),
        *(f"{KERNEL} bits-2 + {share} {codec}" for share in (0.5, 0.75) for codec in ("jpeg-10", "webp-20")),
        f"{KERNEL} bits-2",
    ),
}

PROTOCOLS = {
    **{name: replace(coded, rows=gdumb(*CODED_ROWS[name])) for name, coded in CODED.items()},
    **{
        f"{name}-held-out": replace(coded, held_out=200, rows=gdumb(*CANDIDATES[name])) for name, coded in CODED.items()
    },
    "prototype": Protocol(
        "fashion-mnist",
        100,
        16,
        2000,
        rows=(
            *STOCK,
            ("replay-stock", "none"),
            *both(BEST, "dm-ridge", "dm factor 2", "dm", *CONTROLS),
            *(("gdumb-stock", BEST), ("replay-stock", BEST), ("replay-stock", "dm")),
            *both(ALIKE, KERNEL),
        ),
        steps={"dm factor 2": 300, ALIKE: 2000},
    ),
    "capped": Protocol("fashion-mnist", 100, 16, 2000, rows=gdumb(KERNEL, *CAPPED, "half-resolution")),
    "full": FULL,
    # GDumb trains 300 epochs of the 400 images, whatever the memory
    "full-long": replace(FULL, updates=3750, rows=gdumb(BEST, ALIKE, KERNEL, *CONTROLS)),
    "mnist": Protocol(
        "mnist",
        300,
        rows=(("gdumb-stock", "stock"), *gdumb("dm-ridge", *CONTROLS)),
        steps={"dm-ridge": 600},
    ),
    "cifar10": Protocol(
        "cifar10",
        200,
        updates=2000,
        rows=(
            ("gdumb-stock", "stock"),
            *gdumb(BEST, ALIKE, f"{BEST}, shrinking", *CONTROLS),
        ),
        steps={f"{BEST}, shrinking": 200, ALIKE: 500},
        adaptive=False,
    ),
    **{f"budget {images}": budget(images) for images in BUDGETS},
    "domain": Protocol(
        "mnist",
        100,
        16,
        500,
        stream="domains",
        rows=(*STOCK, *both(BEST, "dm-ridge", *CONTROLS)),
        steps={BEST: 300},
    ),
    "online": Protocol(
        "fashion-mnist",
        100,
        16,
        2000,
        stream="online",
        rows=(("replay-stock", "stock"), *(("replay", memory) for memory in (BEST, *CONTROLS))),
        steps={BEST: 50},
    ),
    "cifar100": Protocol(
        "cifar100-cut",
        500,
        updates=2000,
        rows=gdumb(BEST, *CONTROLS),
        steps={BEST: 100},
    ),
}


def is_adaptive(protocol: Protocol, memory: str) -> bool:
    """Say whether a memory starts with large shares that shrink: plain pixels lose by being condensed again."""
    shrinks = protocol.adaptive and memory not in ("dm", "dm-ridge", ALIKE, KERNEL, *CAPPED)
    return protocol.stream != "classes" or shrinks or memory.endswith(", shrinking")


def maker(protocol: Protocol, memory: str) -> Maker:
    """Return what makes a memory's sets: a selection by name, or ``OBJECTIVE [factor 2]``; ``half`` is a hybrid."""
    name = memory.removeprefix("half ").partition(",")[0]
    if name in CONTROLS:
        return Selector(name)
    objective = name.removesuffix(" factor 2")
    stored_as = "pixels" if name == objective else "multi-formation"
    steps = protocol.steps.get(memory, STEPS[stored_as])
    is_kernel = memory == KERNEL or memory in CAPPED
    recipe = replace(fc.OBJECTIVES[objective].recipe, lr=0.04 if is_kernel else 0.02, steps=steps)
    network = f"convnet3-w{protocol.width if memory == ALIKE or is_kernel else 16}" + "-group" * (memory == ALIKE)
    return Condenser(objective, stored_as, network=network, recipe=recipe, max_seconds=CAPPED.get(memory))
