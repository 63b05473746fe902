"""Site by site: who answered and at what cost; the file may be old, or hold anything."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from fedcondense.report.by_site import broken_in, held_back, sites_in, uncounted
from fedcondense.report.page import said_of, write_report
from fedcondense.report.results import NONE, read_rows

HELD = {"client": "east", "reason": "its answer is held for review there", "round": 2, "row": "one-shot", "held": True}
RUN: dict[str, Any] = {
    "rows": {"one-shot": {"bytes_up": 900.0, "about": {"travels": "synthetic images"}}, "ridge": {"accuracy": 50.0}},
    "held": {"names": ["north", "south", "north+2"], "classes": ["oak", "elm"], "counts": [[30, 0], [10, 40], [30, 2]]},
    "by_site": [
        {"site": "east", "last": None, "records": None, "bytes_up": None, "bytes_down": 70.0, "seconds": None},
        {"site": "north", "last": 2, "records": 32, "broken": 0, "bytes_up": 900.0, "bytes_down": 80.0, "seconds": 4.5},
        {"site": "south", "last": 1, "records": 50, "broken": 3, "bytes_up": 1.2e6, "bytes_down": 80.0, "seconds": 9.0},
    ],
    "ages": {"south": {"rounds": 1, "round": 1, "at": "2026-11-30T08:00:00"}},
    "refused": [
        {"client": "south", "reason": "no reply within the deadline", "round": 2, "row": "one-shot"},
        {"client": "north", "reason": "a mistake", "round": 1, "row": "one-shot"},
        {"client": "north", "reason": "of another row", "round": 3, "row": "ridge"},
        HELD,
    ],
    "sites_evaluated": {
        "sites": [
            {"site": "north", "accuracy": 80.0, "records": 14, "local_only": 70.0, "macro_accuracy": 64.0},
            {"site": "south", "accuracy": 60.0, "records": 240, "local_only": 70.0},
        ]
    },
}


def lines(result: dict[str, Any]) -> dict[str, dict[str, str]]:
    """Return what the table says by site and column; ``did`` is what became of asking it."""
    table = sites_in(result, read_rows(result))
    return {
        name: {
            "did": did,
            **{head: " ".join(filter(None, cell)) for head, cell in zip(table.heading, cells, strict=True)},
        }
        for name, did, _, cells in table.lines
    }


def test_each_site_has_its_own_line() -> None:
    found = lines(RUN)
    assert list(found) == ["east", "north", "south"]
    assert found["north"] == {
        "did": "answered",
        "records": "32",
        "classes": "2 oak, elm",
        "sent": "900 B",
        "received": "80 B",
        "seconds": "4.5",
        "broken images": NONE,
        "accuracy there": "80.0 % of 14 kept apart",
        "macro there": "64.0 %",
        "alone, there": "70.0 %",
    }
    assert found["south"]["alone, there"] == "70.0 % better than together"
    few = [{"site": "south", "accuracy": 60.0, "records": 24, "local_only": 70.0}]
    assert lines({**RUN, "sites_evaluated": {"sites": few}})["south"]["alone, there"] == "70.0 %", "two records more"
    assert found["south"]["broken images"] == "3"
    why = "left out: no reply within the deadline; its last answer is of round 1, 1 round ago, 2026-11-30"
    assert found["south"]["did"] == why
    assert found["east"]["did"] == "answer held for review there"
    assert {value for head, value in found["east"].items() if head not in ("did", "received")} == {NONE}


def test_a_site_that_came_after_the_sets_is_named_beside_the_counts() -> None:
    late = {"site": "late", "last": 3, "records": 20, "bytes_up": 500.0}
    assert uncounted({**RUN, "by_site": [*RUN["by_site"], late]}).startswith(
        "Not among them: late, whose set has never"
    )
    many = [{**late, "site": f"late-{k}"} for k in range(7)]
    assert "late-4 and 2 more, whose sets have never" in uncounted({**RUN, "by_site": [*RUN["by_site"], *many]})


def test_who_has_never_answered_is_not_counted_as_late() -> None:
    assert uncounted(RUN) == ""
    assert uncounted({"by_site": [{"site": "north", "last": 1}]}) == "", "without sets there are no counts at all"


def test_a_site_whose_node_is_gone_is_absent_and_not_refused(tmp_path: Path) -> None:
    gone = {"client": "south", "reason": "its node is gone", "round": 2, "row": "one-shot", "absent": True}
    run = RUN | {"refused": [gone, HELD]}
    assert lines(run)["south"]["did"].startswith("absent: its node is gone; its last answer is of round 1")
    (tmp_path / "result.json").write_text(json.dumps(run))
    page = write_report(tmp_path).read_text()
    assert "Absent: 2" in page
    assert "Refused:" not in page


def test_a_held_answer_is_counted_and_said_with_the_next_step() -> None:
    said = held_back(RUN, read_rows(RUN))
    assert said.startswith("1 of 3 sites holds its answer for review there: east. Once people there have agreed")
    assert "another run with the same settings" in said
    failed = {"refused": [HELD, {**HELD, "client": "west"}], "error": "round 1: 0 usable answers of 2"}
    (first, *_) = said_of(failed, read_rows(failed))
    assert first.startswith("2 of 2 sites hold their answer for review there: east, west.")
    assert "resume = true" in first
    assert held_back({**RUN, "refused": []}, read_rows(RUN)) == ""


def test_an_older_file_has_what_it_knows() -> None:
    old = {key: RUN[key] for key in ("rows", "refused", "sites_evaluated")} | {"sites": ["north"]}
    found = lines(old)
    assert set(found["north"]) == {"did", "accuracy there", "macro there", "alone, there"}
    assert found["north"]["did"] == "answered"  # in a later round than the one in which it was left out


def test_a_comparison_shows_who_holds_what_and_each_site_alone() -> None:
    alone = {"accuracy": 40.0, "sites": [61.05, 20.0], "names": ["client-0", "client-1"]}
    made = {"rows": {**RUN["rows"], "local-only": alone}, "classes": ["oak", "elm"], "broken": ["client-1/oak/a b.png"]}
    found = lines(made | {"partition": {"counts": [[3, 0], [1, 2]]}})
    assert found["client-0"] == {
        "did": "answered",
        "records": "3",
        "classes": "1 oak",
        "broken images": NONE,
        "alone, on the test data": "61.0 %",
    }
    assert found["client-1"]["broken images"] == "1"


def test_broken_files_are_named_where_the_result_names_them_and_else_counted() -> None:
    assert broken_in({"broken": ["south/oak/a.png"]}) == (
        "1 image file was left out, since it cannot be read:",
        ["south/oak/a.png"],
    )
    said, files = broken_in(RUN)
    assert said == (
        "3 image files were left out, since they cannot be read (south 3); their names stay at the sites (fedcondense "
        "node check)."
    )
    assert files == []
    assert broken_in({}) == ("", [])


def test_a_hundred_sites_are_shown_and_the_others_counted() -> None:
    many = {"by_site": [{"site": f"s{k}", "last": 1, "bytes_up": 5.0} for k in range(130)]}
    table = sites_in(many, [])
    assert (len(table.lines), table.more) == (100, 30)


def test_whatever_the_file_holds_the_page_is_written(tmp_path: Path) -> None:
    for odd in (None, 3, "text", [None, 3, {"site": ["x"], "last": "x", "records": math.nan}], {"sites": 3}):
        result: dict[str, Any] = {key: odd for key in RUN if key != "rows"}
        sites_in(result, [])
        broken_in({"broken": odd, "by_site": odd})
    import json

    hostile = {**RUN, "by_site": [{"site": "<script>alert(1)</script>", "last": 1}], "broken": ["<img src=x>"]}
    (tmp_path / "result.json").write_text(json.dumps(hostile))
    page = write_report(tmp_path).read_text()
    assert "<script>alert" not in page
    assert "<img src=x>" not in page
