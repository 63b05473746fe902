"""What came back in a round as a file, as it arrived: from it the round is combined again without one of its sites.

A state holds sets as they were combined: on the scale that most sites have, and without what screens left out, both of
which follow from all sites together. What a site that wants to be forgotten had to do with either is undone only if
the others' answers are judged anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from fedcondense.ambient import in_own_state
from fedcondense.checksums import dump_tensors, load_tensors
from fedcondense.errors import ResumeError, UntrustedSetError
from fedcondense.flower.contract import Answer, Site
from fedcondense.flower.inbox import Inbox, ReplyLimits
from fedcondense.flower.payloads import Payload
from fedcondense.sets.synthetic import SyntheticSet

__all__ = ["dump_answers", "load_answers"]

_FORMAT = 1


def dump_answers(inbox: Inbox) -> bytes:
    """Return the bytes of what came back; kept sets and limits are the strategy's own, and not among them."""
    payloads = {f"{node}": bytearray(answer.payload.to_bytes()) for node, answer in inbox.answers.items()}
    about = {
        "format": _FORMAT,
        "bytes_down": inbox.bytes_down(),
        "sites": [[site.name, site.key, site.node] for site in inbox.sites],
        "names": inbox.names,
        "claims": {f"{node}": claim for node, claim in inbox.claims.items()},
        "refused": {f"{node}": reason for node, reason in inbox.refused.items()},
        "answers": {f"{node}": _about(answer) for node, answer in inbox.answers.items()},
    }
    tensors = {node: torch.frombuffer(blob, dtype=torch.uint8) for node, blob in payloads.items()}
    return dump_tensors(tensors, "answers", about)


@in_own_state
def load_answers(
    blob: bytes,
    where: str,
    limits: ReplyLimits,
    *,
    kinds: Iterable[type[Payload]] = (SyntheticSet,),
    kind: Callable[[Answer[Any]], str] | None = None,
    kept: Mapping[str, SyntheticSet] | None = None,
) -> Inbox:
    """Return what `dump_answers` was given.

    Args:
        blob: The file's bytes.
        where: What messages call it.
        limits: What answers may hold together.
        kinds: What payloads may be.
        kind: As in `Inbox`.
        kept: As in `Inbox`.

    Raises:
        ResumeError: The bytes are damaged, of another format, or hold payloads of other kinds.
    """
    payloads = {one.__name__: one for one in kinds}
    try:
        tensors, about = load_tensors(blob, "answers")
        if about["format"] != _FORMAT:
            raise ResumeError(f"{where} is of format {about['format']}; this version reads {_FORMAT}: start over")
        sites = {node: Site(name, key, node) for name, key, node in about["sites"]}
        down = int(about["bytes_down"])
        inbox = Inbox(list(sites.values()), limits, kind=kind, kept=kept, names=about["names"], bytes_down=down)
        inbox.claims = {int(node): claim for node, claim in about["claims"].items()}
        inbox.refused = {int(node): reason for node, reason in about["refused"].items()}
        for node, said in about["answers"].items():
            payload = payloads[said.pop("kind")].from_bytes(tensors[node].numpy().tobytes(), limits.limits)
            inbox.answers[int(node)] = Answer(sites[int(node)], payload, **said)
    except (ValueError, KeyError, TypeError, UntrustedSetError) as broken:
        if isinstance(broken, ResumeError):
            raise
        raise ResumeError(f"{where} holds no answers of this run ({broken}); start over in another folder") from None
    return inbox


def _about(answer: Answer[Any]) -> dict[str, Any]:
    said = answer._asdict()
    del said["site"], said["payload"]
    return {"kind": type(answer.payload).__name__, **said}
