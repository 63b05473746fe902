from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, RecordDict
from PIL import Image

from fedcondense.data.images import Data
from fedcondense.data.loading import load_train
from fedcondense.errors import SettingError
from fedcondense.flower import site_data
from fedcondense.flower.site_data import load_partition


def context(node: dict[str, Any], run: dict[str, Any] | None = None) -> Context:
    return Context(1, 1, node, RecordDict(), run or {})


class TestPublicData:
    def test_nodes_divide_a_named_set(self, train: Data) -> None:
        run = {"data": "digits", "alpha": 0.5, "partition-seed": 1}
        parts = [load_partition(context({"partition-id": k, "num-partitions": 3}, run)) for k in range(3)]
        assert sum(map(len, parts)) == len(train)

    def test_a_run_says_how(self) -> None:
        node = {"partition-id": 0, "num-partitions": 3}
        sizes = {len(load_partition(context(node, {"partition-seed": seed}))) for seed in range(3)}
        assert len(sizes) == 3

    def test_a_run_cannot_name_a_path(self) -> None:
        for name in ("folder:/home", "npz:/home/a.npz", "patients", "../patients"):
            with pytest.raises(SettingError, match="node's config"):
                load_partition(context({}, {"data": name}))

    def test_a_run_cannot_name_a_file_that_divides(self, tmp_path: Path) -> None:
        (tmp_path / "lists.json").write_text("[[0, 1], [2]]")
        for file in (tmp_path / "lists.json", tmp_path / "none.json"):
            with pytest.raises(SettingError, match="only the node's own config may") as refused:
                load_partition(context({"partition-id": 0, "num-partitions": 2}, {"partition-by": f"file:{file}"}))
            assert str(tmp_path) not in str(refused.value)

    def test_a_run_cannot_say_where_data_are(self, train: Data, tmp_path: Path) -> None:
        images, labels = np.zeros((4, 8, 8), np.uint8), np.array([0, 1, 0, 1])
        np.savez(tmp_path / "digits.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
        run = {"data": "digits", "data-root": str(tmp_path)}
        assert len(load_partition(context({}, run))) == len(train)
        assert len(load_partition(context({"data-root": str(tmp_path)}, run))) == 4

    @pytest.mark.parametrize(
        "run", [{"alpha": "0.5"}, {"alpha": -1.0}, {"partition-seed": -1}, {"min-partition-size": 1.5}, {"data": 3}]
    )
    def test_values_of_other_types_or_out_of_bounds_are_refused_by_name(self, run: dict[str, Any]) -> None:
        (key,) = run
        with pytest.raises(SettingError, match=f"the run's config: {key} = "):
            load_partition(context({"partition-id": 0, "num-partitions": 3}, run))


class TestOwnData:
    @pytest.mark.parametrize("cache", [False, True])
    @pytest.mark.parametrize("top", ["", "train"])
    def test_all_of_a_folder_are_records(self, tmp_path: Path, top: str, cache: bool) -> None:
        """No fifth is put aside for a test that nobody makes, and no class is too small."""
        for name, count in (("a", 10), ("b", 3)):
            (tmp_path / "site" / top / name / ".ipynb_checkpoints").mkdir(parents=True)
            for k in range(count):
                image = Image.fromarray(np.full((8, 8), 10 * k, np.uint8))
                image.save(tmp_path / "site" / top / name / f"{k}.png")
                image.save(tmp_path / "site" / top / name / ".ipynb_checkpoints" / f"{k}.png")
        node: dict[str, Any] = {"data": f"folder:{tmp_path / 'site'}"}
        for _ in range(2):
            held = load_partition(context(node | ({"cache": str(tmp_path / "cache")} if cache else {})))
            assert held.counts.tolist() == [10, 3]
            assert held.spec.classes == ("a", "b")

    @pytest.mark.parametrize("cache", [False, True])
    def test_a_run_or_the_node_says_the_size_of_images(self, tmp_path: Path, cache: bool) -> None:
        for k in range(12):
            (tmp_path / "site" / "a").mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((200, 150 + k), 9, np.uint8)).save(tmp_path / "site" / "a" / f"{k}.png")
        node: dict[str, Any] = {"data": f"folder:{tmp_path / 'site'}"}
        node |= {"cache": str(tmp_path / "cache")} if cache else {}
        assert load_partition(context(node, {"size": 16})).spec.shape == (1, 16, 16)
        assert load_partition(context(node | {"size": 32})).spec.shape == (1, 32, 32)
        assert load_partition(context(node | {"size": 32}, {"size": 0})).spec.shape == (1, 32, 32)
        with pytest.raises(SettingError, match=r"asks for images of 16 pixels .* this node's config says 32"):
            load_partition(context(node | {"size": 32}, {"size": 16}))
        with pytest.raises(SettingError, match="the run's config: size = 1000"):
            load_partition(context(node, {"size": 1000}))

    def test_nodes_that_divide_the_same_load_it_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        loaded: list[str] = []

        def load(name: str, *given: Any) -> Data:
            loaded.append(name)
            return load_train(name, *given)

        monkeypatch.setattr(site_data, "load_train", load)
        node = {"data": "digits", "num-partitions": 3, "partition-by": "iid", "partition-seed": 91}
        site_data._loaded.cache_clear()
        for k in range(3):
            load_partition(context(node | {"partition-id": k}))
        assert loaded == ["digits"]

    def test_a_site_keeps_all_of_them(self, train: Data) -> None:
        assert len(load_partition(context({"data": "digits", "partition-id": 5}))) == len(train)

    @pytest.mark.parametrize(
        "run", [{"alpha": 0.1}, {"partition-by": "iid"}, {"partition-seed": 7}, {"min-partition-size": 1}]
    )
    def test_no_run_divides_them(self, run: dict[str, Any]) -> None:
        """A server that chose divisions could single records out."""
        (key,) = run
        node = {"data": "digits", "partition-id": 0, "num-partitions": 3}
        with pytest.raises(
            SettingError, match=f"the run's config sets {key}; this node's config names data of its own"
        ):
            load_partition(context(node, run))

    def test_a_run_that_says_the_defaults_or_names_data_changes_nothing(self) -> None:
        node = {"data": "digits", "partition-id": 0, "num-partitions": 3, "partition-seed": 7}
        run = {"data": "cifar10", "partition-by": "dirichlet", "alpha": 0.5, "partition-seed": 42}
        assert load_partition(context(node, run)).fingerprint == load_partition(context(node)).fingerprint

    def test_their_own_config_divides_them(self, train: Data) -> None:
        nodes = [{"data": "digits", "partition-id": k, "num-partitions": 3, "partition-by": "iid"} for k in range(3)]
        sizes = [len(load_partition(context(node))) for node in nodes]
        assert sum(sizes) == len(train)
        assert max(sizes) - min(sizes) <= 10

    def test_a_file_that_their_own_config_names_divides_them(self, tmp_path: Path) -> None:
        (tmp_path / "lists.json").write_text("[[0, 1, 5], [2]]")
        node = {"data": "digits", "partition-id": 0, "num-partitions": 2, "partition-by": f"file:{tmp_path}/lists.json"}
        assert len(load_partition(context(node))) == 3

    def test_a_key_that_nobody_knows_is_refused(self) -> None:
        with pytest.raises(SettingError, match="no setting is called 'dta'; did you mean 'data'"):
            load_partition(context({"dta": "digits"}))
