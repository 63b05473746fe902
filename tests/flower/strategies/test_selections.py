from __future__ import annotations

from collections.abc import Callable

import pytest
from flwr.app import Message

from fedcondense.data.images import Data
from fedcondense.flower.replies import ReplyLimits
from fedcondense.flower.wire import read_answer
from fedcondense.sets.selection import SELECTIONS
from fedcondense.sets.synthetic import SyntheticSet

Ask = Callable[..., Message]
ReasonOf = Callable[[Message], str]


@pytest.mark.parametrize("method", SELECTIONS)
def test_every_selection_publishes_records_and_is_refused_unless_the_node_allows_it(
    method: str, ask: Ask, train: Data, reason_of: ReasonOf
) -> None:
    reason = reason_of(ask(train, {"ipc": 2, "method": method}, task="select"))
    assert f"method '{method}' publishes real records; this node's config has no allow-real = true" in reason


def test_selections_travel_where_the_node_allows_real_records(ask: Ask, train: Data) -> None:
    reply = ask(train, {"ipc": 2, "method": "random"}, task="select", node={"allow-real": True})
    assert not reply.has_error(), reply.error.reason
    sent = read_answer(reply.content, SyntheticSet, ReplyLimits.of(train.spec).limits).payload
    real = {bytes(image.flatten().tolist()) for image in train.images}
    assert {bytes(image.flatten().tolist()) for image in sent.parts[0].codes["images"]} <= real
    assert sent.counts().tolist() == [2] * 10


def test_they_travel_in_a_codec(ask: Ask, train: Data) -> None:
    asked = {"ipc": 2, "method": "random", "codec": "jpeg-10", "codecs": ["jpeg"]}
    reply = ask(train, asked, task="select", node={"allow-real": True})
    sent = read_answer(reply.content, SyntheticSet, ReplyLimits.of(train.spec).limits).payload
    raw = ask(train, {"ipc": 2, "method": "random"}, task="select", node={"allow-real": True})
    whole = read_answer(raw.content, SyntheticSet, ReplyLimits.of(train.spec).limits).payload.recode("jpeg-10")
    assert sent.parts[0].codec == "jpeg-10"
    assert sent.parts[0].codes.stored == whole.parts[0].codes.stored


@pytest.mark.parametrize(
    ("config", "needed"),
    [
        ({"method": "randon"}, "no method is called 'randon'; did you mean 'random'?"),
        ({"ipc": 99}, "ipc 99 asked for; this node condenses to 1 to 50"),
        ({"ipc": 0}, "ipc = 0; needed"),
    ],
)
def test_what_cannot_be_is_refused(
    config: dict[str, object], needed: str, ask: Ask, train: Data, reason_of: ReasonOf
) -> None:
    assert needed in reason_of(ask(train, config, task="select", node={"allow-real": True}))
