"""A federation by files: whose a file is follows from the manifest alone; all else is as by Flower."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from fedcondense.data.images import Data
from fedcondense.errors import DataError, ResumeError, SettingError
from fedcondense.flower.by_files import join
from fedcondense.flower.files_run import FilesRun, Joined, Trained, train
from fedcondense.flower.forgetting import forget
from fedcondense.flower.manifest import read_manifest
from fedcondense.flower.run_folder import RunFolder
from fedcondense.networks.saved import load_network
from fedcondense.report.page import write_report
from fedcondense.sets.selection import select
from fedcondense.sets.synthetic import SyntheticSet

QUICK = Trained(network="convnet1-w16", seeds=1, steps=20)


@pytest.fixture(scope="module")
def sets(train: Data) -> dict[str, SyntheticSet]:
    """Return the sets of four sites, of their own records each."""
    parts = {f"site-{k}": train.subset(torch.arange(200 * k, 200 * k + 200)) for k in range(4)}
    return {name: select(part, 1, "random", seed=k) for k, (name, part) in enumerate(parts.items())}


class Desk:
    """Files that sites have handed in, and the folder of the run."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.drop = folder / "run", folder / "drop"
        self.drop.mkdir()

    def hand_in(self, sets: Mapping[str, SyntheticSet | bytes]) -> dict[str, str]:
        """Write files, called by their sites for the reader's sake alone, and return their SHA-256."""
        found = {}
        for name, one in sets.items():
            blob = one if isinstance(one, bytes) else one.to_bytes()
            (self.drop / f"{name}.safetensors").write_bytes(blob)
            found[name] = hashlib.sha256(blob).hexdigest()
        return found

    def join(self, sites: Mapping[str, Any], files: Sequence[str | Path] | None = None, **more: Any) -> Joined:
        """Join all files that lie there, or some."""
        manifest = self.drop / "sites.json"
        own = {key: more.pop(key) for key in ("allowed_signers",) if key in more}
        manifest.write_text(json.dumps({"sites": dict(sites), **own}))
        given = sorted(self.drop.glob("*.safetensors")) if files is None else [self.drop / file for file in files]
        return join(self.folder, given, read_manifest(manifest), **more)


@pytest.fixture
def train_data(train: Data) -> Data:
    return train


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def lines(joined: Joined) -> dict[str, str]:
    return {refusal.site.name: refusal.reason for refusal in joined.refused}


def left(folder: Path) -> dict[str, bytes]:
    """Return what a run stands in: the last state, the sets and the network."""
    names = ("weights.safetensors", "clients/*.safetensors")
    found = {str(path.relative_to(folder)): path.read_bytes() for name in names for path in folder.glob(name)}
    joined = SyntheticSet(SyntheticSet.load(folder / "joined.safetensors").parts)  # how long measuring took is in it
    state = sorted((folder / "rounds").glob("*.state"))[-1].read_bytes()
    return {**found, "joined": joined.to_bytes(), "state": state}


class TestJoin:
    def test_sets_are_joined_in_the_order_of_their_sites_and_the_folder_is_a_runs(
        self, desk: Desk, sets: dict[str, SyntheticSet]
    ) -> None:
        digests = desk.hand_in(sets)
        joined = desk.join(digests)
        assert (joined.refused, joined.known, sorted(joined.taken)) == ([], [], list(sets))
        flat = SyntheticSet.join(sets.values())
        assert (desk.folder / "joined.safetensors").read_bytes() == flat.to_bytes()
        result = RunFolder(desk.folder).read_result()
        assert result["sites"] == list(sets)
        assert result["coverage"] == dict.fromkeys(flat.classes, 4)
        assert result["rows"]["by-files"]["bytes_up"] == sum(len(one.to_bytes()) for one in sets.values()) / 4
        assert "site-0" in write_report(desk.folder).read_text()

    def test_what_a_file_is_called_or_says_decides_nothing(self, desk: Desk, sets: dict[str, SyntheticSet]) -> None:
        """A file that is called by another site, and claims an accuracy, is its own site's and claims nothing."""
        blob = sets["site-0"].with_evaluation({"accuracy": 99.9}).to_bytes()
        desk.hand_in({"site-1": blob})
        joined = desk.join({"site-9": hashlib.sha256(blob).hexdigest()})
        assert joined.taken == {"site-9": "site-1.safetensors"}
        assert SyntheticSet.load(desk.folder / "clients" / "site-9.safetensors").evaluation is None

    def test_each_file_that_cannot_be_used_is_a_line_and_the_others_go_on(
        self, desk: Desk, sets: dict[str, SyntheticSet], train: Data
    ) -> None:
        other = select(train, 1, "random", seed=9)
        digests = desk.hand_in({**sets, "stray": other, "broken": b"no set", "site-3": sets["site-0"]})
        (desk.drop / "again.safetensors").write_bytes(sets["site-1"].to_bytes())
        os.mkfifo(desk.drop / "pipe.safetensors")
        stray = digests.pop("stray")
        sites = {**digests, "site-2": "0" * 64, "site-5": "f" * 64, "bad": "12", "SITE-1": "e" * 64}
        joined = desk.join({name: sites[name] for name in reversed(sites)})
        assert joined.taken == {"site-0": "site-0.safetensors"}
        assert lines(joined) == {
            "SITE-1": "no file with its SHA-256 was given",
            "site-1": "differs from SITE-1 in case alone, and files are named by sites: call it something else",
            "bad": "sha256 = '12'; needed: 64 hexadecimal digits, as sha256sum prints",
            "broken": "6 bytes; needed: a safetensors file that `save` wrote",
            "site-2": "no file with its SHA-256 was given",
            "site-2.safetensors": f"its SHA-256 is {digests['site-2'][:12]}..., and 000000000000... that of site-2: "
            "damaged, or another file",
            "site-3": "has the very file of site-0 in the manifest: each site sends its own",
            "site-3.safetensors": "is the file of site-0 once more; one of them counts",
            "site-5": "no file with its SHA-256 was given",
            "pipe.safetensors": "is no regular file",
            "stray.safetensors": f"its SHA-256 {stray[:12]}... is not in the manifest",
            **dict.fromkeys(
                ("again.safetensors", "site-1.safetensors"),
                f"its SHA-256 {digests['site-1'][:12]}... is not in the manifest",
            ),
        }
        kept = RunFolder(desk.folder).read_result()["refused"]
        assert {one["client"]: one["reason"] for one in kept} == lines(joined)

    def test_nothing_is_written_where_no_file_can_be_used(self, desk: Desk, sets: dict[str, SyntheticSet]) -> None:
        desk.hand_in({"site-0": b"no set"})
        with pytest.raises(DataError, match=r"none of 1 files can be used: site-0.safetensors: its SHA-256 .* not in"):
            desk.join({"site-1": "0" * 64})
        assert not (desk.folder / "result.json").exists()

    def test_a_late_site_is_in_and_an_absent_one_stays_with_its_age(
        self, desk: Desk, sets: dict[str, SyntheticSet]
    ) -> None:
        digests = desk.hand_in({name: sets[name] for name in ("site-0", "site-2")})
        desk.join(digests)
        digests |= desk.hand_in({"site-1": sets["site-1"]})
        joined = desk.join(digests)
        assert (joined.taken, joined.refused) == ({"site-1": "site-1.safetensors"}, [])
        assert joined.known == ["site-0.safetensors", "site-2.safetensors"]
        assert (desk.folder / "joined.safetensors").read_bytes() == SyntheticSet.join(
            [sets[f"site-{k}"] for k in range(3)]
        ).to_bytes()
        ages = RunFolder(desk.folder).read_result()["ages"]
        assert {name: (age["rounds"], age["round"]) for name, age in ages.items()} == {
            "site-0": (1, 1),
            "site-2": (1, 1),
        }
        assert all(age["at"].startswith("20") for age in ages.values())

    def test_joining_the_same_files_once_more_changes_nothing(self, desk: Desk, sets: dict[str, SyntheticSet]) -> None:
        digests = desk.hand_in(sets)
        desk.join(digests)
        before = {path: path.read_bytes() for path in desk.folder.rglob("*.*") if path.is_file()}
        joined = desk.join(digests)
        assert (joined.taken, joined.refused, len(joined.known)) == ({}, [], 4)
        assert {path: path.read_bytes() for path in desk.folder.rglob("*.*") if path.is_file()} == before

    def test_a_new_set_takes_the_place_of_the_last_but_for_classes_that_it_lacks(
        self, desk: Desk, sets: dict[str, SyntheticSet], train: Data
    ) -> None:
        desk.join(desk.hand_in(sets))
        new = select(train.subset((train.labels < 4).nonzero().flatten()), 2, "random", seed=7)
        joined = desk.join(desk.hand_in({"site-1": new}), ["site-1.safetensors"])
        kept = joined.state.sets["site-1"]
        assert kept.counts().tolist() == [2] * 4 + [1] * 6
        assert kept.parts[0].targets.equal(new.parts[0].targets)

    def test_sets_are_held_to_the_data_that_are_named_as_by_flower(
        self, desk: Desk, sets: dict[str, SyntheticSet]
    ) -> None:
        wrong = sets["site-1"].with_record(classes=tuple("abcdefghij"))
        scaled = sets["site-2"].with_record(mean=(0.9,), std=(0.001,))
        joined = desk.join(desk.hand_in({**sets, "site-1": wrong, "site-2": scaled}), data="digits")
        assert "are not among the 10 of this run" in lines(joined)["site-1"]
        assert {part.record.std for one in joined.state.sets.values() for part in one.parts} == {
            sets["site-0"].record.std
        }
        with pytest.raises(SettingError, match="has 'digits': leave it out, or begin another folder"):
            desk.join({"a": "0" * 64}, [], data="")

    def test_screens_judge_as_by_flower(self, desk: Desk, sets: dict[str, SyntheticSet], train: Data) -> None:
        greedy = select(train, 20, "random", seed=5)
        joined = desk.join(desk.hand_in({**sets, "site-3": greedy}), screens="share")
        assert joined.state.sets["site-3"].counts().tolist() == [2] * 10
        result = RunFolder(desk.folder).read_result()
        assert {one["client"] for one in result["screened"] if one["weight"] < 1} == {"site-3"}
        assert len(SyntheticSet.load(desk.folder / "refused" / "site-3.safetensors")) == 200

    @pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="needs ssh-keygen")
    def test_where_the_manifest_names_signers_a_file_without_its_sites_signature_is_refused(
        self, desk: Desk, sets: dict[str, SyntheticSet]
    ) -> None:
        digests = desk.hand_in({name: sets[name] for name in ("site-0", "site-1")})
        key = desk.drop / "key"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
        (desk.drop / "signers").write_text(f"site-0,site-1 {key.with_suffix('.pub').read_text()}")
        sign = ["ssh-keygen", "-Y", "sign", "-n", "fedcondense", "-f", str(key), str(desk.drop / "site-0.safetensors")]
        subprocess.run(sign, check=True, capture_output=True)
        joined = desk.join(digests, allowed_signers="signers")
        assert joined.taken == {"site-0": "site-0.safetensors"}
        assert "site-1.safetensors.sig is not there or no signature" in lines(joined)["site-1"]

    def test_a_folder_of_another_run_is_refused(self, desk: Desk, sets: dict[str, SyntheticSet]) -> None:
        RunFolder(desk.folder).write_result({"settings": {"strategy": "one-shot"}, "rows": {}})
        with pytest.raises(SettingError, match="no federation by files"):
            desk.join(desk.hand_in(sets))


class TestTrain:
    def test_a_network_is_trained_on_the_union_and_measured_where_data_are_named(
        self, desk: Desk, sets: dict[str, SyntheticSet], test: Data
    ) -> None:
        desk.join(desk.hand_in(sets))
        row = train(desk.folder, QUICK._replace(data="digits"), test)
        network = load_network(desk.folder)
        right = (network.predict(test.images) == test.labels).float().mean()
        assert row["accuracy"] == pytest.approx(100 * float(right), abs=0.01)
        result = RunFolder(desk.folder).read_result()
        assert result["rounds"] == [{"round": 1, "accuracy": round(row["accuracy"], 3)}]
        joined = SyntheticSet.load(desk.folder / "joined.safetensors")
        assert joined.evaluation is not None
        assert joined.evaluation["accuracy"] == round(row["accuracy"], 3)

    def test_without_data_the_network_has_the_classes_of_the_union(
        self, desk: Desk, sets: dict[str, SyntheticSet]
    ) -> None:
        desk.join(desk.hand_in(sets))
        assert "accuracy" not in train(desk.folder, QUICK)
        assert load_network(desk.folder).classes == sets["site-0"].classes

    def test_a_network_goes_when_another_set_comes(self, desk: Desk, sets: dict[str, SyntheticSet], test: Data) -> None:
        digests = desk.hand_in({"site-0": sets["site-0"]})
        desk.join(digests)
        train(desk.folder, QUICK, test)
        digests |= desk.hand_in({"site-1": sets["site-1"]})
        desk.join(digests)
        assert not (desk.folder / "weights.safetensors").exists()
        assert "accuracy" not in RunFolder(desk.folder).read_result()["rows"]["by-files"]


class TestForget:
    @pytest.mark.parametrize("name", ["site-0", "site-2"])  # in the first call of join, and alone in the second
    def test_it_is_bit_equal_to_a_run_in_which_the_site_never_handed_in_anything(
        self, name: str, tmp_path: Path, sets: dict[str, SyntheticSet], test: Data, train_data: Data
    ) -> None:
        """The site's scale is in the median, and its many images are in what a screen calls usual."""
        odd, other = (
            select(train_data, 3, "random", seed=seed).with_record(mean=(0.9,), std=(0.01,)) for seed in (8, 9)
        )
        first = {"site-0": odd, "site-1": sets["site-1"], "site-3": sets["site-3"]}
        third = {"site-1": sets["site-0"].with_record(seed=77)}
        calls = [first, {"site-2": other}, third]
        desks = []
        for which in ("all", "without"):
            (tmp_path / which).mkdir()
            desks.append(Desk(tmp_path / which))
        for desk, absent in zip(desks, ("", name), strict=True):
            for call in calls:
                digests = desk.hand_in({site: one for site, one in call.items() if site != absent})
                listed = {**digests, **({name: "0" * 64} if absent in call else {})}
                if digests:
                    desk.join(listed, [f"{site}.safetensors" for site in digests], screens="share")
        train(desks[0].folder, QUICK, test)
        train(desks[1].folder, QUICK, test)
        assert left(desks[0].folder) != left(desks[1].folder)
        done = forget(desks[0].folder, name, test=test)
        assert (done.site, done.left) == (name, "")
        assert left(desks[0].folder) == left(desks[1].folder)
        whole = b"".join(path.read_bytes() for path in desks[0].folder.rglob("*.*") if path.is_file())
        gone = odd if name == "site-0" else other
        assert gone.parts[0].codes["images"].numpy().tobytes()[:640] not in whole
        result = RunFolder(desks[0].folder).read_result()
        assert name not in result["sites"]
        assert [one["site"] for one in result["forgotten"]] == [name]

    def test_what_was_interrupted_is_finished_by_the_same_call_and_nothing_else_goes_on_before(
        self, desk: Desk, sets: dict[str, SyntheticSet], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        digests = desk.hand_in(sets)
        desk.join(digests)

        def killed(self: FilesRun, files: Any) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(FilesRun, "write", killed)
            with pytest.raises(KeyboardInterrupt):
                forget(desk.folder, "site-1")
        with pytest.raises(ResumeError, match="finish that: fedcondense forget site-1"):
            desk.join(digests)
        with pytest.raises(SettingError, match="site-1 is half forgotten"):
            forget(desk.folder, "site-2")
        assert forget(desk.folder, "site-1").rounds == (1,)
        assert RunFolder(desk.folder).read_result()["sites"] == ["site-0", "site-2", "site-3"]

    def test_a_forgotten_site_is_not_taken_in_again(self, desk: Desk, sets: dict[str, SyntheticSet]) -> None:
        digests = desk.hand_in(sets)
        desk.join(digests)
        forget(desk.folder, "site-1")
        joined = desk.join(digests)
        assert joined.taken == {}
        assert "take it out of the manifest, or give the site a new name" in lines(joined)["site-1"]

    def test_the_last_site_leaves_an_empty_run_that_others_may_join(
        self, desk: Desk, sets: dict[str, SyntheticSet]
    ) -> None:
        desk.join(desk.hand_in({"site-0": sets["site-0"]}))
        assert forget(desk.folder, "site-0").left == "no other site has a set there"
        with pytest.raises(DataError, match="holds no set to train on"):
            train(desk.folder, QUICK)
        desk.join(desk.hand_in({"site-1": sets["site-1"]}), ["site-1.safetensors"])
        assert RunFolder(desk.folder).read_result()["sites"] == ["site-1"]

    def test_a_name_that_is_none_names_the_closest(self, desk: Desk, sets: dict[str, SyntheticSet]) -> None:
        desk.join(desk.hand_in(sets))
        with pytest.raises(SettingError, match="did you mean 'site-1'"):
            forget(desk.folder, "sit-1")
