from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

import fedcondense as fc
from fedcondense.errors import OutputError, SettingError
from fedcondense.flower import Condense, federate
from fedcondense.loggers import log_numbers, logged, logger_of


class Kept:
    def __init__(self) -> None:
        self.said: list[tuple[str, dict[str, float], int]] = []
        self.closed = 0

    def log(self, name: str, values: Mapping[str, float], step: int) -> None:
        self.said.append((name, dict(values), step))

    def close(self) -> None:
        self.closed += 1


class Broken(Kept):
    def log(self, name: str, values: Mapping[str, float], step: int) -> None:
        self.said.append((name, dict(values), step))
        raise ConnectionError("no route to host")


def test_condensing_tells_its_loss_and_stays_as_it_is(tmp_path: Path) -> None:
    train, _ = fc.load_data("digits")
    plain = fc.condense(train, ipc=1, steps=3)
    with logged(f"jsonl:{tmp_path / 'new' / 'x.jsonl'}"):
        heard = fc.condense(train, ipc=1, steps=3)
    lines = [json.loads(line) for line in (tmp_path / "new" / "x.jsonl").read_text().splitlines()]
    assert [line["name"] for line in lines] == ["condensing digits"] * len(lines)
    assert lines[-1]["step"] == 3
    assert lines[0]["loss"] > 0
    assert heard.with_record(seconds=0.0).to_bytes() == plain.with_record(seconds=0.0).to_bytes()


def test_a_federation_tells_rounds_and_rows_by_name() -> None:
    train, test = fc.load_data("digits")
    logger = Kept()
    with logged(logger):
        found = federate(
            train,
            test,
            fc.partition(train, 2, "iid"),
            asked=Condense(ipc=1, steps=1),
            rows=["one-shot"],
        )
    said = {name: (values, step) for name, values, step in logger.said if "accuracy" in values}
    assert [step for name, _, step in logger.said if "evaluating" in name] == [1, 2, 3]
    values, step = next(one for name, one in said.items() if name.startswith("one-shot") and "evaluating" not in name)
    assert (values["accuracy"], step) == (found.rows["one-shot"]["accuracy"], 1)
    assert any("client-1" in name and "loss" in values for name, values, _ in logger.said)
    assert logger.closed == 1


def test_tensorboard_draws_a_curve_a_number(tmp_path: Path) -> None:
    with logged(f"tensorboard:{tmp_path}"):
        for step in (1, 2):
            log_numbers(step, {"loss": 1 / step, "note": "words are none", "gone": float("nan")})
    events = EventAccumulator(str(tmp_path)).Reload()
    assert events.Tags()["scalars"] == ["fedcondense/loss"]
    assert [(point.step, point.value) for point in events.Scalars("fedcondense/loss")] == [(1, 1.0), (2, 0.5)]


def test_a_logger_that_fails_ends_no_run(caplog: pytest.LogCaptureFixture) -> None:
    broken = Broken()
    with logged(broken):
        for step in (1, 2, 3):
            log_numbers(step, {"loss": 1.0})
    assert len(broken.said) == 1
    assert caplog.text.count("the logger failed") == 1
    assert "the logger failed (ConnectionError: no route to host); the run goes on without it" in caplog.text


def test_what_is_no_logger_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(
        SettingError, match=r"no logger is called 'wandb'; all of them: jsonl, tensorboard; .* --plugin FILE"
    ):
        logger_of("wandb:x")
    with pytest.raises(SettingError, match="says not where to; needed: jsonl:PATH"), logged("jsonl"):
        pass
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="needed: a file that numbers can be appended to"):
        logger_of(f"jsonl:{tmp_path / 'file' / 'x'}")
    with logged(None):
        log_numbers(1, {"loss": 1.0})  # nobody listens
