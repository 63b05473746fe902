"""What sites say of a network, in words; the file may hold anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fedcondense.report.at_sites import at_sites
from fedcondense.report.page import said_of, write_report
from fedcondense.report.results import read_rows

HOSTILE = "<script>document.title='owned'</script>"
FOUND: dict[str, Any] = {
    "round": 2,
    "sites": [{"site": "a", "records": 10}, {"site": "b", "records": 30}],
    "refused": [],
    "accuracy": 80.04,
    "macro_accuracy": 70.0,
    "accuracy_mean": 65.0,
    "worst": "a",
    "accuracy_worst": 50.0,
    "local_only_mean": 62.5,
    "below_local_only": ["a"],
}


def said(**changes: Any) -> str:
    return " ".join(at_sites({"sites_evaluated": FOUND | changes}))


def test_it_says_means_the_worst_site_and_who_does_better_alone() -> None:
    assert said() == (
        "After round 2 the network is right for 80.0 % of 40 records that 2 sites kept apart (mean over sites 65.0 %, "
        "macro 70.0 %, worst a with 50.0 %). Networks that they trained alone reach 62.5 % on average, and are better "
        "for a."
    )
    assert said(below_local_only=[]).endswith("and are better for none of them, as far as their records tell.")
    one = {"site": "a", "accuracy": 50.0, "local_only": 60.0}
    assert said(sites=[{**one, "records": 10}]).endswith("none of them, as far as their records tell.")
    assert said(sites=[{**one, "records": 1000}]).endswith("are better for a.")
    many = [{**one, "site": str(k), "records": 60} for k in range(4)]
    assert said(sites=many, below_local_only=list("0123")).endswith(
        "are better by 10.0 points on all their records together, though no single site's tell."
    )
    assert "alone" not in said(local_only_mean=None)


def test_who_did_not_evaluate_is_named_with_the_first_reason() -> None:
    many = [{"client": f"c{k}", "reason": "no"} for k in range(8)]
    assert said(refused=many).endswith("c0, c1, c2, c3, c4 and 3 more did not evaluate: no.")
    nobody = {"round": 1, "sites": [], "refused": many[:1]}
    assert at_sites({"sites_evaluated": nobody}) == ["c0 did not evaluate: no."]


@pytest.mark.parametrize("result", [{}, {"sites_evaluated": None}, {"sites_evaluated": []}, {"sites_evaluated": {}}])
def test_a_run_that_asked_nobody_says_nothing(result: dict[str, Any]) -> None:
    assert at_sites(result) == []


def test_what_a_file_says_wrongly_is_left_out() -> None:
    odd = {"sites": [3, {"records": "many"}], "refused": 7, "below_local_only": "a", "accuracy_mean": "x"}
    assert "of 0 records that 2 sites kept apart (mean over sites nan %" in said(**odd)


def test_where_the_server_measured_nothing_the_sites_alone_are_heard() -> None:
    result: dict[str, Any] = {"rows": {"one-shot": {"bytes_up": 3}}, "sites_evaluated": FOUND}
    assert said_of(result, read_rows(result)) == at_sites(result)
    assert len(said_of({"rows": result["rows"]}, read_rows(result))) == 1
    result["rows"]["one-shot"] |= {"accuracy": 50.0, "about": {"travels": "synthetic images"}}
    assert said_of(result, read_rows(result))[1:] == at_sites(result)


def test_a_strangers_text_is_escaped(tmp_path: Path) -> None:
    import json

    odd = FOUND | {"worst": HOSTILE, "refused": [{"client": HOSTILE, "reason": HOSTILE}], "below_local_only": [HOSTILE]}
    (tmp_path / "result.json").write_text(json.dumps({"rows": {}, "sites_evaluated": odd}))
    assert HOSTILE not in write_report(tmp_path).read_text()
