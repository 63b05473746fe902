"""What the library notes of each site: bytes and seconds of all rounds, and its last answer."""

from __future__ import annotations

from fedcondense.flower.books import booked, by_site, spent_per_site
from fedcondense.flower.contract import Answer, Site, State
from fedcondense.flower.inbox import Inbox, ReplyLimits
from fedcondense.flower.payloads import Metrics
from fedcondense.flower.state_file import digest_of

NORTH, SOUTH = Site("north", "aa", 1), Site("south", "bb", 2)


def answer(site: Site, nbytes: int, records: int = 5, broken: int = 0) -> Answer[Metrics]:
    return Answer(site, Metrics({}), records, 1.5, nbytes, broken=broken)


def test_rounds_add_up_and_the_last_answer_says_records_and_broken_files() -> None:
    asked = Inbox([SOUTH, NORTH], ReplyLimits(), bytes_down=200)
    state = booked(State(), State(), 1, asked, [answer(NORTH, 100), answer(SOUTH, 40, broken=2)])
    state = booked(state, state, 2, asked, [answer(NORTH, 11, records=7)])
    state = booked(state, state, 2, asked, [answer(SOUTH, 1, records=1)], is_combined=False)  # an evaluation
    assert by_site(state) == [
        {"site": "north", "last": 2, "records": 7, "broken": 0, "bytes_up": 111.0, "bytes_down": 300.0, "seconds": 3.0},
        {"site": "south", "last": 1, "records": 5, "broken": 2, "bytes_up": 41.0, "bytes_down": 300.0, "seconds": 3.0},
    ]
    assert spent_per_site(state)["bytes-up"] == 76.0


def test_of_a_round_that_failed_its_answers_are_there() -> None:
    (found,) = by_site(State(), [answer(NORTH, 100, broken=1)])
    assert (found["site"], found["last"], found["bytes_up"], found["broken"]) == ("north", None, 100.0, 1)


def test_what_a_run_took_is_no_part_of_what_it_learned() -> None:
    asked = Inbox([NORTH], ReplyLimits(), bytes_down=200)
    found = [booked(State(), State(), 1, asked, [answer(NORTH, nbytes)]) for nbytes in (100, 900)]
    assert digest_of(found[0]) == digest_of(found[1])


def test_a_site_that_comes_again_with_another_key_counts_once() -> None:
    again = Site("north", "cc", 3)
    state = booked(State(), State(), 1, Inbox([NORTH], ReplyLimits()), [answer(NORTH, 100)])
    state = booked(state, state, 2, Inbox([again], ReplyLimits()), [answer(again, 40, records=7)])
    assert spent_per_site(state)["bytes-up"] == 140.0
    (found,) = by_site(state)
    assert (found["site"], found["last"], found["records"], found["bytes_up"]) == ("north", 2, 7, 140.0)
