"""What a run says in numbers and in words: whoever won."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import fedcondense as fc
from fedcondense.errors import DataError
from fedcondense.networks import ConvNet
from fedcondense.networks.saved import NetworkCard, save_network
from fedcondense.report.results import headline, read_result, read_rows, table

HOSTILE = "<script>document.title='owned'</script>"


def row(accuracy: float, bytes_up: float, accuracy_std: float | None = 0.2) -> dict[str, Any]:
    return {
        "accuracy": accuracy,
        "accuracy_std": accuracy_std,
        "bytes_up": bytes_up,
        "bytes_down": 500,
        "seconds": 1.5,
        "per_class": [90.0, 80.0, None],
    }


ROWS = {
    "fedavg-20": row(84, 2_000_000, None),
    "random-real": row(80, 40_000),
    "one-shot": row(83, 40_000),
    "fedavg-1": row(40, 100_000, None),
    HOSTILE: row(1, 1),
}


@pytest.mark.parametrize(("content", "says"), [(None, "does not exist"), ("{", "is damaged"), ("[]", "a list")])
def test_a_folder_without_a_result_is_one_clear_error(content: str | None, says: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "result.json").write_text(content)
    with pytest.raises(DataError, match=says):
        read_result(tmp_path)


def test_a_folder_of_sets_alone_says_how_one_is_shown(tmp_path: Path) -> None:
    train = fc.load_data("digits").train
    fc.select(train, 1).save(tmp_path / "memory.safetensors")
    (tmp_path / "other.safetensors").write_bytes(b"something else")
    shape = train.spec.shape
    card = NetworkCard("own", train.spec.classes, shape, train.spec.mean, train.spec.std, "one")
    save_network(tmp_path, ConvNet(shape, 10, 16, 1, "group"), card)
    with pytest.raises(DataError, match="is not the folder of a federation") as refused:
        read_result(tmp_path)
    assert "it holds memory.safetensors, and a set or memory is shown by its file" in str(refused.value)
    file = tmp_path / "memory.safetensors"
    assert str(refused.value).endswith(f": fedcondense show {file} --output {file.with_suffix('.png')}")


def said(rows: dict[str, Any], **settings: Any) -> str:
    return " ".join(headline(read_rows({"rows": rows, "settings": settings}))).replace("\N{NO-BREAK SPACE}", " ")


class TestTheHeadline:
    def test_names_the_bytes_that_fedavg_needs(self) -> None:
        assert "FedAvg gets there in 20 rounds: 84.0 % with 2 MB, 50 times the bytes." in said(ROWS)

    def test_says_when_fedavg_does_not_get_there(self) -> None:
        text = said({"one-shot": row(83, 40_000), "fedavg-5": row(70, 400_000, None)})
        assert "FedAvg is not there after 5 rounds: 70.0 %" in text

    def test_does_not_call_a_difference_within_the_spread_a_failure_of_fedavg(self) -> None:
        text = said({"one-shot": row(83, 40_000), "fedavg-5": row(82.7, 400_000, None)})
        assert "FedAvg is level in 5 rounds: 82.7 % with 400 kB, 10 times the bytes; no difference seen" in text

    def test_says_when_a_simpler_way_wins(self) -> None:
        text = said({"one-shot": row(83, 40_000), "k-means": row(85, 40_000), "herding": row(84, 1_000)})
        assert "A simpler way wins here: k means, 85.0 ± 0.2 % with 40 kB." in text

    def test_does_not_call_a_lead_within_the_spread_a_win(self) -> None:
        text = said({"one-shot": row(83, 40_000, 1.0), "random-real": row(82, 40_000, 1.0)})
        assert "A simpler way is level, random real, 82.0 ± 1.0 %: no difference seen beyond the spread" in text

    def test_one_image_of_forty_is_no_lead(self) -> None:
        rows = {"one-shot": row(85.0, 40_000, None), "ridge": row(87.5, 30_000, None)}
        text = " ".join(headline(read_rows({"rows": rows, "tested": 40})))
        assert "simpler way wins" not in text
        assert "no difference seen on 40 test images, where a lead of 15.5 points would be one." in text
        text = " ".join(headline(read_rows({"rows": rows, "tested": 10_000})))
        assert "A simpler way wins here: ridge" in text

    def test_of_an_older_file_the_scores_say_how_many_images_were_tested(self) -> None:
        rows = {"one-shot": row(85.0, 40_000, None) | {"scores": {"records": 40}}, "ridge": row(87.5, 30_000, None)}
        assert {one.tested for one in read_rows({"rows": rows})} == {40}

    def test_more_seeds_show_a_smaller_lead(self) -> None:
        rows = {"one-shot": row(83, 40_000, 1.0), "random-real": row(81, 40_000, 1.0)}
        for seeds, is_lead in ((3, True), (2, True), (0, False)):
            ours, other = read_rows({"rows": rows, "settings": {"evaluation_seeds": list(range(seeds))}})
            assert ours.clearly_above(other) == is_lead

    def test_says_what_travels_where_it_is_more_than_one_round_of_images(self) -> None:
        about = {
            "label": "anchored, 3 rounds",
            "travels": "synthetic images once, then weights at 8 bits, every round",
            "rounds": 3,
        }
        text = said({"anchored-3": row(86, 60_000) | {"about": about}})
        assert "anchored, 3 rounds (synthetic images once, then weights at 8 bits, every round) reaches 86.0" in text
        assert "rounds of synthetic images" not in text
        assert said({"one-shot": row(83, 40_000)}).startswith("One round of synthetic images reaches 83.0")

    def test_says_what_wins_with_more_bytes(self) -> None:
        text = said({"one-shot": row(83, 40_000), "ridge": row(90, 400_000)})
        assert "With more bytes, ridge does better: 90.0 ± 0.2 % with 400 kB." in text

    def test_claims_nothing_without_our_row(self) -> None:
        assert "nothing to compare" in said({"fedavg-1": row(40, 1)})

    def test_a_single_run_has_no_spread(self) -> None:
        assert "83.0 % with" in said({"one-shot": row(83, 40_000, 0.0)}, evaluation_seeds=[0])


def test_rows_are_ours_then_fedavg_by_rounds_then_controls() -> None:
    names = [r.name for r in read_rows({"rows": ROWS})]
    assert names == ["one-shot", "fedavg-1", "fedavg-20", "random-real", HOSTILE]


def test_the_table_of_the_terminal_holds_what_the_page_holds() -> None:
    assert table(read_rows({"rows": ROWS}))[1] == (
        "one-shot",
        "83.0 ± 0.2 %",
        "40 kB",
        "500 B",
        "40.5 kB",
        "1.5",
    )
