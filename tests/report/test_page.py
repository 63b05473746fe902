"""The report: true to the numbers, complete, self-contained, and safe from what clients send."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fedcondense.parametrizations.pixels import Pixels
from fedcondense.report.page import write_report
from fedcondense.report.results import NONE
from fedcondense.sets.parts import Part, Record
from fedcondense.sets.synthetic import SyntheticSet

HOSTILE = "<script>document.title='owned'</script><img src=http://evil.example/x onerror=alert(1)>\"'\x1b[31m{{ 7*7 }}"
NAME = HOSTILE.replace("\x1b", "")  # as far as a class or method can be called so
CLASSES = ("cat", "dog", NAME)
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


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


def result(**changes: Any) -> dict[str, Any]:
    whole = {
        "rows": ROWS,
        "partition": {"counts": [[5, 0, 3], [1, 9, 0]], "hash": "feedbeef", "by": "dirichlet", "alpha": 0.1},
        "refused": [{"client": HOSTILE, "reason": HOSTILE}, {"client": 3, "reason": "part 0: NaN"}],
        "coverage": {"cat": 2, "dog": 1, NAME: 1},
        "classes": list(CLASSES),
        "settings": {"data": HOSTILE, "seeds": [0, 1], "recipe": {"steps": 400}, HOSTILE: HOSTILE},
        "command": f"fedcondense federate {HOSTILE}",
        "versions": {"torch": HOSTILE},
    }
    return whole | changes


def write_run(folder: Path, content: Any) -> Path:
    """Write what `federate` would: a result and three sets, one of which is damaged."""
    (folder / "clients").mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps(content))
    generator = torch.Generator().manual_seed(0)
    for client in range(2):
        images = torch.randint(256, (3, 1, 4, 4), dtype=torch.uint8, generator=generator)
        record = Record("made-up", (1, 4, 4), CLASSES, (0.5,), (0.5,), method=NAME, ipc=1, counts=(5, 1, 3))
        part = Part({"images": images}, torch.tensor([0, 2, 2], dtype=torch.uint8), Pixels(), record)
        SyntheticSet([part]).save(folder / "clients" / f"{client:02d}.safetensors")
    (folder / "clients" / "02.safetensors").write_bytes(b"not a set")
    return folder


class Page(HTMLParser):
    """Collects tags with their attributes, and the text outside of styles."""

    VOID = ("meta", "img", "source", "br")

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another tag"

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).replace("\N{NO-BREAK SPACE}", " ").split())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("page") / "run", result())


@pytest.fixture(scope="module")
def page(folder: Path) -> Page:
    return Page(write_report(folder).read_text(encoding="utf-8"))


class TestThePage:
    def test_is_well_formed(self, page: Page) -> None:
        assert page.open == []

    def test_loads_nothing_and_runs_nothing(self, page: Page) -> None:
        assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "iframe", "object", "embed", "form", "base"})
        for tag, attributes in page.tags:
            assert not [name for name in attributes if name.startswith("on")], tag
            for name in ("src", "srcset", "href"):
                assert (attributes.get(name) or "data:").startswith("data:"), tag

    def test_forbids_requests_by_a_policy_of_its_own(self, page: Page) -> None:
        policies = [a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
        assert policies == [
            "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
        ]

    def test_shows_hostile_text_as_text(self, page: Page) -> None:
        assert page.text.count("<script>document.title='owned'</script>") >= 8
        assert "{{ 7*7 }}" in page.text
        assert "49" not in re.findall(r"\b49\b", page.text)

    def test_describes_every_picture(self, page: Page) -> None:
        texts = [attributes.get("alt") for tag, attributes in page.tags if tag == "img"]
        assert len(texts) == 1 + 2 * 2, "the plot, and two classes of two clients"
        assert all(texts)

    def test_names_every_row_and_refusal(self, page: Page) -> None:
        for text in ("one-shot", "FedAvg, 20 rounds", "random real", "83.0 ± 0.2 %", "40 kB", "2 MB", "part 0: NaN"):
            assert text in page.text

    def test_says_which_controls_publish_records(self, page: Page) -> None:
        assert page.text.count("publishes records") == 1

    def test_counts_what_each_class_has(self, page: Page) -> None:
        assert "cat 6 2 2 90.0 %" in page.text, "records, clients, synthetic images, accuracy"

    def test_a_damaged_set_is_a_sentence_without_the_path(self, page: Page, folder: Path) -> None:
        assert "02.safetensors:" in page.text
        assert str(folder.parent) not in page.text

    def test_images_are_the_stored_pixels(self, page: Page, folder: Path, tmp_path: Path) -> None:
        sources = [
            a["src"] or "" for tag, a in page.tags if tag == "img" and (a["src"] or "").startswith("data:image/png")
        ]
        picture = tmp_path / "picture.png"
        picture.write_bytes(base64.b64decode(sources[0].partition(",")[2]))
        stored = SyntheticSet.load(folder / "clients" / "00.safetensors").parts[0].codes["images"][0, 0]
        with Image.open(picture) as drawn:
            assert np.asarray(drawn.convert("L")).flatten().tolist() == stored.flatten().tolist()


def test_every_cell_of_a_table_that_folds_says_its_column(tmp_path: Path) -> None:
    """Below a width its lines become cards, which have no heading."""
    verdict = {"client": "a", "class": "cat", "weight": 0.25, "why": "odd", "round": 1}
    rows = {"one-shot": {**row(83, 40_000), "history": [rounds_of(1), rounds_of(2)]}}
    text = write_report(write_run(tmp_path / "run", result(rows=rows, screened=[verdict]))).read_text()
    assert "@media (max-width: 40rem) {\n  .narrow, .narrow tbody" in text
    assert "@media (max-width: 64rem) {\n  .wide, .wide tbody" in text
    tables = re.findall(r'<table class="([^"]*)">.*?<tbody>(.*?)</tbody>', text, re.DOTALL)
    folding = [body for kinds, body in tables if {"narrow", "wide"} & set(kinds.split())]
    assert len(folding) == len(tables) - 1 == 5, "all but the map of who holds what"
    for body in folding:
        cells = re.findall(r"<td[^>]*>", body)
        assert cells
        assert all("data-label=" in cell for cell in cells)


@pytest.mark.parametrize(
    ("data", "title"),
    [
        ("folder:/srv/leaves/test", "leaves"),
        ("folder:/srv/leaves", "leaves"),
        ("digits", "digits"),
        ("", "a federation"),
    ],
)
def test_a_run_is_called_by_its_data_and_the_path_is_among_the_settings(data: str, title: str, tmp_path: Path) -> None:
    content = result(rows={"one-shot": row(83, 40_000)}, settings={"data": data})
    page = Page(write_report(write_run(tmp_path / "run", content)).read_text(encoding="utf-8"))
    assert f"{title}: one-shot" in page.text
    assert f"data {data}".strip() in page.text


def test_what_counts_as_a_lead_is_said_beside_the_rows(tmp_path: Path) -> None:
    text = write_report(write_run(tmp_path / "run", result(tested=40))).read_text()
    assert "95 % interval of the difference, which follows from 40 test images per row" in text
    assert "95 % interval of the difference" not in write_report(write_run(tmp_path / "old", result())).read_text()


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"rows": None, "partition": [], "refused": {}, "settings": 3},
        result(partition={"counts": [[1, 2], [3]]}),
        result(partition={"counts": [["a", None, 1]]}),
        result(refused=["no mapping"], coverage=[1]),
        {"rows": {"one-shot": {"accuracy": "high", "bytes_up": None}}},
        {"rows": {"one-shot": {"accuracy": 50, "bytes_up": 0}}},
    ],
)
def test_a_page_is_written_whatever_is_missing_or_odd(content: Any, tmp_path: Path) -> None:
    assert Page(write_report(write_run(tmp_path / "run", content)).read_text(encoding="utf-8")).open == []


def rounds_of(number: int, **more: Any) -> dict[str, Any]:
    known = {"round": number, "accuracy": 70.0 + number, "asked": 9, "answered": 8, "sites": 9, "memory": 5_000_000}
    return {**known, "bytes_up": 10.0, "bytes_down": 20.0, "total_up": 90, "total_down": 180, "seconds": 1.0, **more}


def test_rows_of_several_rounds_have_curves_and_a_table_each(tmp_path: Path) -> None:
    """Over rounds and over bytes, for light and for dark paper; a row of one round is a point of them."""
    rows = {
        "one-shot": {**row(83, 40_000), "history": [rounds_of(1)]},
        "fedavg-2": {**row(84, 80_000), "history": [rounds_of(1), rounds_of(2)]},
    }
    page = Page(write_report(write_run(tmp_path / "run", result(rows=rows))).read_text(encoding="utf-8"))
    described = [a.get("alt") or "" for tag, a in page.tags if tag == "img"]
    assert [text.partition(".")[0] for text in described if text.startswith("Accuracy over")][1:] == [
        "Accuracy over rounds",
        "Accuracy over bytes per site, up and down together",
    ]
    assert "one-shot: 1 rounds, 71.0 %; FedAvg: 2 rounds, 72.0 %" in " ".join(described)
    assert "FedAvg: 2 rounds round accuracy answered" in page.text
    assert f"2 72.0 % 8 of 9 10 B 20 B 60 B 1.0 {NONE} {NONE} 5 MB" in page.text


def test_rounds_of_a_server_app_are_those_of_its_row(tmp_path: Path) -> None:
    content = result(rows={"fedavg": row(84, 1_000)}, rounds=[rounds_of(1), {"round": 2, "accuracy": 84.0}])
    page = Page(write_report(write_run(tmp_path / "run", content)).read_text(encoding="utf-8"))
    assert f"2 84.0 % {NONE} of {NONE}" in page.text


@pytest.mark.parametrize("rows", [ROWS, {"one-shot": ROWS["one-shot"]}])
def test_what_sites_took_is_said_to_be_of_one_way_where_there_are_several(rows: Any, tmp_path: Path) -> None:
    content = result(rows=rows, by_site=[{"site": "north", "last": 1, "bytes_up": 9, "bytes_down": 9, "seconds": 1.0}])
    page = Page(write_report(write_run(tmp_path / "run", content)).read_text(encoding="utf-8"))
    whose = "those of one-shot, " if len(rows) > 1 else ""
    assert f"Bytes and seconds are {whose}of all rounds together" in page.text


@pytest.mark.parametrize("rounds", [None, "many", [{"round": 1, "accuracy": 70.0}], [{"round": 1}, {"round": 2}]])
def test_without_two_rounds_that_were_measured_there_are_no_curves(rounds: Any, tmp_path: Path) -> None:
    content = result(rows={"one-shot": row(83, 40_000)}, rounds=rounds)
    page = Page(write_report(write_run(tmp_path / "run", content)).read_text(encoding="utf-8"))
    assert sum(tag == "img" for tag, _ in page.tags) == 1 + 2 * 2


@pytest.mark.parametrize("is_shown", [False, True])
def test_what_screens_left_out_is_told_and_shown_if_asked(is_shown: bool, tmp_path: Path) -> None:
    verdict = {"client": HOSTILE, "class": "cat", "weight": 0.25, "why": HOSTILE, "round": 1}
    told = [verdict, {**verdict, "weight": 1.0, "why": "not enough others"}, "no mapping"]
    folder = write_run(tmp_path / "run", result(screened=told))
    (folder / "refused").mkdir()
    shutil.copy(folder / "clients" / "00.safetensors", folder / "refused" / "ward.safetensors")
    page = Page(write_report(folder, shows_refused=is_shown).read_text(encoding="utf-8"))
    assert "Screened: 1" in page.text
    assert "25 %" in page.text
    assert "For 1 classes of sites there were not enough others" in page.text
    assert ("ward" in page.text) == is_shown


def test_an_absent_client_is_shown_with_the_age_of_its_set(tmp_path: Path) -> None:
    ages = {"00": {"rounds": 2, "round": 1, "at": f"2026-11-29{HOSTILE}"}, "01": {"rounds": "x"}, "02": 3}
    text = write_report(write_run(tmp_path / "run", result(ages=ages))).read_text()
    assert text.count("of round 1 (2026-11-29), 2 rounds ago") == 1


def test_half_a_character_of_a_stranger_is_a_question_mark(tmp_path: Path) -> None:
    odd = {"client": "a", "reason": "half a \ud83d"}
    page = write_report(write_run(tmp_path / "run", result(refused=[odd], settings={"data": "\udc00"})))
    assert "half a ?" in page.read_text(encoding="utf-8")


def test_one_hundred_classes_are_a_map_without_numbers(tmp_path: Path) -> None:
    counts = [list(range(100)) for _ in range(3)]
    text = write_report(write_run(tmp_path / "run", result(partition={"counts": counts}, classes=None))).read_text()
    assert 'class="heat dense"' in text


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_a_browser_shows_the_whole_page_and_runs_nothing(tmp_path: Path) -> None:
    report = write_report(write_run(tmp_path / "run", result()))
    picture = tmp_path / "picture.png"
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--hide-scrollbars"]
    flags += [f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1000,1400"]

    def browse(*more: str) -> str:
        asked = [str(CHROMIUM), *flags, *more, report.as_uri()]
        return subprocess.run(asked, check=True, capture_output=True, text=True, timeout=600).stdout

    browse(f"--screenshot={picture}")
    with Image.open(picture) as shown:
        assert shown.size == (1000, 1400)
        colors = shown.convert("RGB").getcolors(maxcolors=1 << 20)
        assert colors is not None
        assert len(colors) > 50, "an empty or unstyled page has fewer"
    dom = browse("--dump-dom")
    assert "<title>" in dom
    assert "owned</title>" not in dom
    assert dom.count("<img") == 5
