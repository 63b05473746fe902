from __future__ import annotations

import shlex
import tomllib
from typing import Any

from fedcondense.report.by_class import coverage_of, over_all
from fedcondense.report.page import said_of
from fedcondense.report.results import ReportRow, read_rows
from fedcondense.report.served import command_of

RUN: dict[str, Any] = {
    "rows": {"one-shot": {"bytes_up": 7854.0, "bytes_down": 700.0, "about": {"travels": "synthetic images"}}},
    "rounds": [{"round": 1, "seconds": 200.0, "total_up": 15000}, {"round": 2, "seconds": 57.5, "total_up": 708}],
    "sites": ["north", "south"],
    "coverage": {"oak": 3, "elm": 4},
    "held": {"names": ["north", "south"], "classes": ["oak", "elm"], "counts": [[30, 0], [10, 40]]},
    "asked": {"strategy": "anchored", "ipc": 2, "data": "", "loss": "balanced", "resume": False, "output": "/tmp/x"},
}


def test_a_run_that_nobody_tested_says_what_came_and_what_to_do() -> None:
    said = said_of(RUN, read_rows(RUN))
    assert said[0] == "2 sites sent 7 synthetic images, 15.7 kB in all."
    assert "allow-evaluate = true" in said[1]
    measured = {**RUN, "rows": {"one-shot": {**RUN["rows"]["one-shot"], "accuracy": 80.0}}}
    assert "sent" not in said_of(measured, read_rows(measured))[0]


def test_sites_that_do_better_alone_are_named() -> None:
    alone = {"accuracy": 40.0, "sites": [61.05, 20.0, 50.5], "names": ["north", "south", "east"]}
    run = {**RUN, "rows": {"one-shot": {**RUN["rows"]["one-shot"], "accuracy": 49.4}, "local-only": alone}}
    (said,) = (text for text in said_of(run, read_rows(run)) if text.startswith("Alone"))
    assert said == "Alone, some sites do better on the same test records: north 61.0 %, east 50.5 %."
    few = said_of({**run, "tested": 100}, read_rows({**run, "tested": 100}))
    assert not any(text.startswith("Alone") for text in few), "11.6 points are no lead on 100 images"
    better = {**run, "rows": {**run["rows"], "one-shot": {**run["rows"]["one-shot"], "accuracy": 70.0}}}
    assert not any(text.startswith("Alone") for text in said_of(better, read_rows(better)))


def test_seconds_are_those_of_its_rounds() -> None:
    assert read_rows(RUN)[0].seconds == 257.5


def test_the_command_is_one_that_can_be_typed() -> None:
    words = shlex.split(command_of(RUN))
    assert words[:3] == ["flwr", "run", "strategies/anchored"]
    given = tomllib.loads("\n".join(words[-1].split(" ")))
    assert given == {"strategy": "anchored", "ipc": 2, "data": "", "loss": "balanced"}
    assert command_of({"command": "fedcondense federate digits"}) == "fedcondense federate digits"
    assert command_of({}) == ""


def test_classes_show_intervals_where_they_were_scored() -> None:
    one = {"name": "oak", "records": 9, "sensitivity": 50.0, "sensitivity_interval": [20.0, 80.0], "auroc": 0.75}
    scores = {"accuracy": 60.0, "accuracy_interval": [40.0, 77.0], "balanced_accuracy": 55.0, "records": 20}
    row = ReportRow(
        "one-shot", travels="synthetic images", scores={**scores, "calibration_error": 5.0, "classes": [one]}
    )
    oak, elm = coverage_of(RUN, [row], ["oak", "elm"], RUN["held"]["counts"])
    assert (oak["records"], oak["clients"], oak["arrived"]) == (40, 2, 3)
    assert oak["sensitivity"].replace("\N{NO-BREAK SPACE}", " ") == "50.0 % (20.0 to 80.0)"
    assert oak["auroc"] == "0.750"
    assert elm["sensitivity"] == oak["specificity"] == "\N{EN DASH}"
    assert "60.0 % (40.0 to 77.0) on 20 test records" in over_all([row])
    assert over_all([ReportRow("one-shot", travels="synthetic images", scores={"accuracy": "nonsense"})]) == ""
