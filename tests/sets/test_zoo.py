from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import fedcondense.sets.zoo
from fedcondense.data.catalogue import CATALOGUE
from fedcondense.errors import SettingError, UntrustedSetError
from fedcondense.parametrizations import PARAMETRIZATIONS
from fedcondense.sets.zoo import FOLDER, load_set, ready_sets


def test_there_is_a_file_for_each_line_of_the_index_and_no_other() -> None:
    assert sorted(path.name for path in FOLDER.glob("*.safetensors")) == sorted(r.file for r in ready_sets().values())
    assert set(ready_sets()) == {
        f"{data}-ipc{ipc}" for data in ("mnist", "fashion-mnist", "cifar10") for ipc in (1, 10)
    }


def test_a_file_of_one_s_own_is_opened_otherwise() -> None:
    with pytest.raises(SettingError, match=r"SyntheticSet\.load opens it"):
        load_set("runs/mine.safetensors")


@pytest.mark.parametrize("name", ready_sets())
class TestEveryReadySet:
    def test_is_what_the_index_says(self, name: str) -> None:
        ready = ready_sets()[name]
        synthetic = load_set(ready.data, ready.ipc)  # which compares the hash
        record, entry = synthetic.record, CATALOGUE[ready.data]
        assert (record.data, record.ipc, record.steps) == (ready.data, ready.ipc, ready.steps)
        assert (record.method, record.network) == (ready.method, ready.network)
        assert synthetic.parts[0].parametrization == PARAMETRIZATIONS[ready.parametrization]()
        assert (record.shape, record.classes, record.mean) == (entry.shape, entry.classes, entry.mean)
        assert synthetic.nbytes == ready.nbytes == ready.path.stat().st_size < 1_000_000
        assert len(synthetic) == ready.images
        assert synthetic.counts().tolist() == [ready.images // 10] * 10
        assert bool(synthetic.decode().images.isfinite().all())

    def test_holds_its_evaluation_and_no_record(self, name: str) -> None:
        ready = ready_sets()[name]
        synthetic = load_set(ready.data, ready.ipc)
        assert synthetic.record.start == "gaussian"
        assert 0.05 < ready.nearest > ready.nearest_test
        assert synthetic.evaluation is not None
        assert synthetic.evaluation["accuracy"] == pytest.approx(ready.accuracy, abs=0.01)
        assert len(synthetic.evaluation["seeds"]) == 3
        floor = {"mnist": 90, "fashion-mnist": 75, "cifar10": 36}[ready.data]
        assert ready.accuracy > floor

    def test_is_a_row_of_the_page(self, name: str) -> None:
        ready = ready_sets()[name]
        page = (FOLDER / "README.md").read_text()
        assert f"| `{ready.file}`," in page
        assert f"| {ready.accuracy:.1f} ± {ready.accuracy_std:.1f} |" in page


@pytest.mark.parametrize("damage", ["missing", "changed"])
def test_another_file_is_refused(damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ready = ready_sets()["mnist-ipc1"]
    if damage == "changed":
        shutil.copy(ready.path, tmp_path)
        blob = bytearray((tmp_path / ready.file).read_bytes())
        blob[-1] ^= 1
        (tmp_path / ready.file).write_bytes(blob)
    monkeypatch.setattr(fedcondense.sets.zoo, "FOLDER", tmp_path)
    size = ready.nbytes if damage == "changed" else 0
    says = rf"mnist-ipc1\.safetensors: {size} bytes of SHA-256 \w+, the index says .*: install fedcondense anew"
    with pytest.raises(UntrustedSetError, match=says):
        load_set("mnist", 1)


def test_a_set_that_is_not_there_names_those_that_are() -> None:
    with pytest.raises(
        SettingError, match=r"no ready set is called 'cifar10-ipc50'; did you mean .* all of them: cifar10"
    ):
        load_set("cifar10", 50)
    with pytest.raises(SettingError, match="`fedcondense condense svhn` makes others"):
        load_set("svhn")
