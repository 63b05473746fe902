from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from fedcondense.data.images import Data
from fedcondense.errors import SettingError
from fedcondense.flower.ledger import Allowance, Charge, Ledger
from fedcondense.flower.payloads import Sums
from fedcondense.flower.preview import check_node, plan_answer, preview, read_config
from fedcondense.sets.synthetic import SyntheticSet

OWN: dict[str, Any] = {"data": "digits", "num-partitions": 4, "partition-id": 1, "partition-by": "iid"}
QUICK: dict[str, Any] = {"ipc": 1, "objective": "dm", "steps": 2, "network": "convnet1-w16"}


class TestReadConfig:
    def test_a_file_and_a_command_lines_words_say_the_same(self, tmp_path: Path) -> None:
        wanted = {"data": "folder:/data/my site", "max-ipc": 10, "allow-real": True, "alpha": 0.5}
        (tmp_path / "node.toml").write_text("\n".join(f"{key} = {json.dumps(v)}" for key, v in wanted.items()))
        assert read_config(str(tmp_path / "node.toml")) == wanted
        assert read_config('data="folder:/data/my site" max-ipc=10 allow-real=true alpha=0.5') == wanted

    def test_a_file_that_is_not_there_is_said(self) -> None:
        with pytest.raises(SettingError, match="no such file"):
            read_config("nosuch.toml")

    @pytest.mark.parametrize("text", ["max-ipc=", "a=b=c", "data=digits", 'data="digits'])
    def test_what_is_neither_is_refused(self, text: str) -> None:
        with pytest.raises(SettingError, match="is no node's config"):
            read_config(text)


class TestCheckNode:
    def test_it_says_what_the_node_holds_and_leaves_out(self, tmp_path: Path) -> None:
        path = tmp_path / "ledger"
        Ledger.open(path, Allowance()).charge("a", Charge(2))
        checked = check_node({**OWN, "min-records": 37, "ledger": str(path), "name": "st-marys"})
        assert checked.name == "st-marys"
        assert sum(checked.classes.values()) == pytest.approx(1433 / 4, abs=10)
        assert checked.left_out == {name: n for name, n in checked.classes.items() if n < 37}
        assert checked.left_out
        assert checked.spent is not None
        assert checked.spent.questions == 2
        assert checked.placed.caps.min_records == 37

    def test_nothing_is_kept(self, tmp_path: Path) -> None:
        for name in ("ash", "elm"):
            (tmp_path / "scans" / name).mkdir(parents=True)
            for k in range(12):
                Image.new("L", (8, 8), 20 * k).save(tmp_path / "scans" / name / f"{k}.png")
        places = {key: str(tmp_path / "kept" / key) for key in ("cache", "ledger", "log")}
        config = {"data": f"folder:{tmp_path / 'scans'}", "min-records": 1, "max-seconds": float("inf"), **places}
        check_node(config)
        plan_answer(config, "condense", {"ipc": 1, "steps": 1, "network": "convnet1-w16"})
        assert not (tmp_path / "kept").exists()

    def test_public_data_are_not_counted(self) -> None:
        assert check_node({"num-partitions": 4, "partition-id": 1}).spent is None

    @pytest.mark.parametrize("key", ["ledger", "log", "cache"])
    def test_a_place_that_cannot_be_written_is_no_place(self, key: str) -> None:
        with pytest.raises(SettingError, match=rf"{key} /proc/x: .*name another place"):
            check_node({**OWN, key: "/proc/x"})

    def test_a_key_that_is_misspelt_is_named(self) -> None:
        with pytest.raises(SettingError, match="did you mean 'max-ipc'"):
            check_node({"max-ipcs": 3})


class TestPreview:
    def test_it_is_what_the_node_would_send_and_leaves_no_trace(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        config = {**OWN, "max-seconds": float("inf"), "cache": str(tmp_path / "c"), "ledger": str(tmp_path / "l")}
        found = preview(config, "condense", QUICK)
        assert isinstance(found.payload, SyntheticSet)
        assert found.payload.counts().tolist() == [1] * 10
        assert found.cost.images == {str(k): 1 for k in range(10)}
        assert list(tmp_path.iterdir()) == []

    def test_it_says_how_close_images_come_to_records(self, train: Data) -> None:
        config = {**OWN, "max-seconds": float("inf"), "allow-real": True}
        real = preview(config, "select", {"ipc": 1})
        made = preview(config, "condense", QUICK)
        assert set(real.nearest) == set(made.nearest) == set(train.spec.classes)
        assert set(real.nearest.values()) == {0.0}
        assert min(made.nearest.values()) > 0.01

    def test_sums_have_no_images(self, train: Data) -> None:
        found = preview({**OWN, "max-seconds": 1e6}, "products", {"classes": list(train.spec.classes), "dims": 3})
        assert isinstance(found.payload, Sums)
        assert found.nearest == {}
        assert found.payload.tensors["gram"].dtype == torch.float32

    @pytest.mark.parametrize(
        ("config", "task", "fields", "needed"),
        [
            ({"max-ipc": 1}, "condense", {"ipc": 2}, "this node condenses to 1 to 1"),
            ({}, "select", {}, "has no allow-real = true"),
            ({}, "condence", {}, "no task is called 'condence'; did you mean 'condense'"),
            ({}, "condense", {"ipcs": 3}, "task condense: no setting is called 'ipcs'"),
            ({"min-records": 10**6}, "condense", {}, r"no class has 1000000 records.*\(min-records\)"),
        ],
    )
    def test_what_the_node_would_refuse_is_refused_in_the_same_words(
        self, config: dict[str, Any], task: str, fields: dict[str, Any], needed: str
    ) -> None:
        with pytest.raises(SettingError, match=needed):
            preview({**OWN, **config}, task, fields)

    def test_weights_that_a_node_would_refuse_are_refused(self) -> None:
        with pytest.raises(SettingError, match="has no allow-weights = true"):
            preview(OWN, "match_near", {})
