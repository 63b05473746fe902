"""What a node gives away over its life: counted in a file before the work begins, and held to an allowance.

One question keeps to its caps; many add up. The ledger counts all of them, over processes, runs and servers, in a file
that only grows (`fedcondense.flower.chain` says what is noticed and what cannot be). A process that dies while it
charges has answered nothing. Its charge counts if its line is whole; a torn line counts as one question, since its
numbers cannot be read and a crash must not be free.
"""

from __future__ import annotations

import json
import math
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedcondense.errors import ResumeError, SettingError
from fedcondense.flower.chain import Turn, turn
from fedcondense.flower.settings import number

__all__ = ["Allowance", "Charge", "Ledger"]


@dataclass(frozen=True)
class Allowance:
    """What a node gives away over its life, all servers and runs together.

    The defaults are guesses with room for ordinary use: FedDM over 20 rounds at 10 images per class (20 questions, 200
    images of a class) and ten one-shot runs (100 images). 200 questions at 10 images per class, which took 1.43 MB out
    of a node in half a minute, end at the 31st.

    Args:
        life_questions: Questions of any kind. Rounds that carry no images count too: a hundred is three to five
            runs of 20 rounds.
        life_images: Stored images of any one class, in the bytes of uncompressed ones.
        life_decoded: Images of any one class that the stored ones decode to: four per stored one, as at factor 2.
        life_bytes: Bytes of all answers. Small images meet `life_images` first (20 rounds of CIFAR-10 at 10 images per
            class: 6 MB); 96x96 in colour are 55 MB over as many rounds.
        life_epsilon: The sum of what private answers spent; plain addition, which overstates the loss and never
            understates it. Published work calls 1 to 10 meaningful.
    """

    life_questions: int = number(100, 0)
    life_images: int = number(300, 0)
    life_decoded: int = number(1200, 0)
    life_bytes: int = number(64 << 20, 0)
    life_epsilon: float = number(8.0, 0)


@dataclass(frozen=True)
class Charge:
    """What an answer takes from an allowance, or all of them took.

    Args:
        questions: How many.
        images: Stored images, by class name.
        decoded: Images that they decode to, by class name.
        nbytes: Bytes that are sent.
        epsilon: Of differential privacy; 0 for what is not private at all.

    Raises:
        SettingError: A number is negative or not finite: it would give allowance back.
    """

    questions: int = 1
    images: Mapping[str, int] = field(default_factory=dict)
    decoded: Mapping[str, int] = field(default_factory=dict)
    nbytes: int = 0
    epsilon: float = 0.0

    def __post_init__(self) -> None:
        whole = (self.questions, self.nbytes, *self.images.values(), *self.decoded.values())
        named = all(type(name) is str for name in (*self.images, *self.decoded))
        if not named or not all(type(n) is int and n >= 0 for n in whole) or not 0 <= self.epsilon < math.inf:
            raise SettingError(
                f"a charge of {self!r:.200}; needed: whole numbers from 0, by class name, and a finite epsilon from 0"
            )

    def __add__(self, other: Charge) -> Charge:
        return Charge(
            self.questions + other.questions,
            dict(Counter(self.images) + Counter(other.images)),
            dict(Counter(self.decoded) + Counter(other.decoded)),
            self.nbytes + other.nbytes,
            self.epsilon + other.epsilon,
        )


@dataclass(frozen=True)
class Ledger:
    """The charges of a node's life; `open` makes one. It holds no state of the file: any number of processes agree."""

    path: Path | None
    allowance: Allowance
    _charges: list[Charge] = field(default_factory=list, repr=False)  # where there is no file
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @classmethod
    def open(cls, path: Path | None, allowance: Allowance) -> Ledger:
        """Return the ledger of a file, which is begun where there is none; None: in memory, for this process.

        Raises:
            ResumeError: The file is damaged, or missing although its neighbour says that it was there.
            OutputError: The file cannot be made or written.
        """
        ledger = cls(path, allowance)
        ledger.spent()
        return ledger

    def charge(self, what: str, charge: Charge) -> None:
        """Count a charge, on the disk when this returns; do it before the work.

        Args:
            what: The task and who asks, for whoever reads the file.
            charge: What the answer will take.

        Raises:
            SettingError: It would exceed the allowance. Nothing is counted.
            ResumeError: The file is damaged; see `open`.
        """
        if self.path is None:
            with self._lock:
                _check(sum(self._charges, _NOTHING), charge, self.allowance)
                self._charges.append(charge)
            return
        with turn(self.path) as file:
            _check(_spent(file), charge, self.allowance)
            entry: dict[str, Any] = {"when": datetime.now(UTC).isoformat(timespec="seconds"), "what": what[:200]}
            entry |= {item.name: getattr(charge, item.name) for item in fields(charge)}
            file.append(json.dumps(entry, default=dict).encode())  # ASCII without a line break, whatever was given

    def spent(self) -> Charge:
        """Return the totals.

        Raises:
            ResumeError: The file is damaged; see `open`.
        """
        if self.path is None:
            with self._lock:
                return sum(self._charges, _NOTHING)
        with turn(self.path) as file:
            return _spent(file)


_NOTHING = Charge(questions=0)


def _spent(file: Turn) -> Charge:
    """Add up what a file counted."""
    spent = Charge(questions=file.torn)
    for line in file.lines:
        try:
            entry = json.loads(line)
            spent += Charge(**{item.name: entry[item.name] for item in fields(Charge)})
        except (ValueError, LookupError, TypeError, AttributeError):
            raise ResumeError(
                f"{file.path} holds a line that is no charge: {line[:100]!r}; is it another file?"
            ) from None
    return spent


def _check(spent: Charge, charge: Charge, allowance: Allowance) -> None:
    """Refuse a charge that exceeds the allowance, naming all that it exceeds, classes by the first and their number."""
    after = spent + charge
    over = [
        f"{name} {spent_} + {more}, allowed {allowed}"
        for name, spent_, more, allowed in (
            ("questions", spent.questions, charge.questions, allowance.life_questions),
            ("bytes", spent.nbytes, charge.nbytes, allowance.life_bytes),
            ("epsilon", spent.epsilon, charge.epsilon, allowance.life_epsilon),
        )
        if more and spent_ + more > allowed
    ]
    for name, before, more, total, allowed in (
        ("stored images", spent.images, charge.images, after.images, allowance.life_images),
        ("decoded images", spent.decoded, charge.decoded, after.decoded, allowance.life_decoded),
    ):
        classes = [label for label in more if more[label] and total[label] > allowed]
        if classes:
            first = classes[0]
            others = f" and of {len(classes) - 1} more classes" if len(classes) > 1 else ""
            over.append(f"{name} of {first[:100]!r} {before.get(first, 0)} + {more[first]}, allowed {allowed}{others}")
    if over:
        raise SettingError(
            f"more than this node gives away in its life: {'; '.join(over)}. Ask for less, or let whoever runs the "
            "node raise life-questions, life-images, life-decoded, life-bytes or life-epsilon in its config"
        )
