from __future__ import annotations

import copy
import json
import os
import pickle
import zlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch

from fedcondense.contract import Objective
from fedcondense.data.images import Data, Spec
from fedcondense.errors import OutputError, ResumeError, SettingError, UntrustedSetError
from fedcondense.memory import Condenser, Memory, Selector
from fedcondense.networks import NETWORKS, NetworkMaker
from fedcondense.objectives import OBJECTIVES
from fedcondense.sets.selection import select
from fedcondense.sets.synthetic import SyntheticSet

RANDOM = Selector("random")
OTHER_MAKERS: list[dict[str, Any]] = [
    {"objective": "mine"},
    {"network": "mine"},
    {"network": lambda shape, classes: torch.nn.Linear(1, classes)},
    {"recipe": replace(OBJECTIVES["dm"].recipe, lr=0.5)},
]


def numbered(name: str, first: int, last: int) -> Data:
    """Return images (N, 1, 2, 2) of one group whose bytes count up, so that each says when it came."""
    values = torch.arange(first, last)
    images = torch.stack([values // 256, values % 256], 1).to(torch.uint8).view(-1, 1, 2, 1).repeat(1, 1, 1, 2)
    return Data(
        images, torch.zeros(len(values), dtype=torch.int64), Spec("numbers", (1, 2, 2), (name,), (0.5,), (0.25,))
    )


class TestFile:
    @pytest.fixture
    def memory(self, piece: Callable[..., Data]) -> Memory:
        """A memory with all that it can hold: condensed, real and waiting images."""
        memory = Memory(20, Condenser("dm", steps=1), real_fraction=0.3, minimum=20, seed=3)
        memory.add(piece(0, 1))
        memory.add(piece(2, count=5))
        memory.note = {"who": "a test", "values": [0.1, 1]}
        return memory

    @staticmethod
    def fresh(**changes: Any) -> Memory:
        settings: dict[str, Any] = {"real_fraction": 0.3, "minimum": 20, "seed": 3}
        return Memory(**{"images": 20, "make": Condenser("dm", steps=1), **settings, **changes})

    def test_nbytes_is_the_length_of_the_file_and_mostly_images(self, memory: Memory, tmp_path: Path) -> None:
        path = memory.save(tmp_path / "memory.safetensors")
        assert memory.nbytes == path.stat().st_size
        codes = sum(code.numel() for part in SyntheticSet.load(path).parts for code in part.codes.values())
        assert memory.image_bytes == codes

    def test_the_file_is_at_most_a_tenth_more_than_its_images_and_the_records(self) -> None:
        spec = Spec("noise", (1, 28, 28), tuple("abcdefghij"), (0.5,), (0.25,))
        images = torch.randint(0, 256, (400, 1, 28, 28), dtype=torch.uint8)
        memory = Memory(100, RANDOM)
        memory.add(Data(images, torch.arange(10).repeat(40), spec))
        assert memory.image_bytes == 100 * 784
        assert memory.nbytes <= 1.1 * memory.image_bytes

    def test_an_empty_memory_takes_no_bytes_and_writes_no_file(self, tmp_path: Path) -> None:
        memory = Memory(20, RANDOM)
        assert (memory.nbytes, memory.image_bytes, memory.synthetic) == (0, 0, None)
        with pytest.raises(SettingError, match="train on an experience before"):
            memory.save(tmp_path / "memory.safetensors")
        assert not list(tmp_path.iterdir())

    def test_the_file_opens_as_a_synthetic_set(self, memory: Memory, tmp_path: Path) -> None:
        opened = SyntheticSet.load(memory.save(tmp_path / "memory.safetensors"))
        assert memory.synthetic is not None
        assert torch.equal(opened.pixels().images, memory.synthetic.pixels().images)
        assert opened.classes == ("0", "1", "2")

    def test_a_loaded_memory_goes_on_as_if_it_had_stayed(
        self, memory: Memory, piece: Callable[..., Data], tmp_path: Path
    ) -> None:
        again = self.fresh()
        again.load(memory.save(tmp_path / "memory.safetensors"))
        assert again.to_bytes() == memory.to_bytes()
        assert again.note == {"who": "a test", "values": [0.1, 1]}
        for one in (again, memory):
            one.add(piece(0, 2, count=40, begin=40))
        kept = [one.synthetic.with_record(seconds=0.0).to_bytes() for one in (again, memory) if one.synthetic]
        assert kept[0] == kept[1]

    def test_a_pickled_memory_is_its_file_and_what_it_was_made_with(self, memory: Memory) -> None:
        pickled = pickle.dumps(memory)
        assert pickle.loads(pickled).to_bytes() == memory.to_bytes()
        assert len(pickled) < memory.nbytes + 5000
        assert pickle.loads(pickle.dumps(Memory(20, RANDOM))).names == []
        assert copy.deepcopy(memory).seconds == memory.seconds

    def test_a_maker_with_functions_is_the_same_maker_in_another_process(
        self, piece: Callable[..., Data], tiny: NetworkMaker, means: Objective
    ) -> None:
        """The repr of a function holds its address; the settings hold none."""

        def maker() -> Condenser:
            return Condenser(means, network=lambda shape, classes: tiny(shape, classes), recipe=means.recipe)

        first, second = Memory(4, maker()), Memory(4, maker())
        assert first.settings() == second.settings()
        assert "0x" not in json.dumps(first.settings())
        first.add(piece(0, 1))
        second.from_bytes(first.to_bytes())

    @pytest.mark.parametrize(
        "change",
        OTHER_MAKERS,
        ids=["a plugin's objective", "a plugin's network", "a function", "a recipe"],
    )
    def test_other_code_of_its_maker_is_other_settings(
        self, change: dict[str, Any], monkeypatch: pytest.MonkeyPatch, means: Objective, tiny: NetworkMaker
    ) -> None:
        monkeypatch.setitem(OBJECTIVES, "mine", means)
        monkeypatch.setitem(NETWORKS, "mine", tiny)
        first = Memory(4, Condenser(**change)).settings()
        assert Memory(4, Condenser(**change)).settings() == first
        monkeypatch.setitem(OBJECTIVES, "mine", OBJECTIVES["dm-ridge"])
        monkeypatch.setitem(NETWORKS, "mine", NETWORKS["mlp"])
        others: dict[str, Any] = {"recipe": OBJECTIVES["dm"].recipe}
        others["network"] = lambda shape, classes: torch.nn.Linear(2, classes)
        other = {name: others[name] for name, value in change.items() if not isinstance(value, str)}
        assert Memory(4, Condenser(**change | other)).settings() != first

    @pytest.mark.parametrize(
        ("changes", "says"),
        [
            ({"images": 30}, "images was 20, is 30"),
            ({"groups": 5}, "groups was None, is 5"),
            ({"update": "append"}, "update was 'recondense', is 'append'"),
            ({"real_fraction": 0.0}, "real_fraction was 0.3, is 0.0"),
            ({"minimum": 1}, "minimum was 20, is 1"),
            ({"seed": 4}, "seed was 3, is 4"),
            ({"make": Condenser("dm", steps=2)}, "steps=2"),
        ],
    )
    def test_other_settings_are_refused_by_name(
        self,
        memory: Memory,
        tmp_path: Path,
        changes: dict[str, Any],
        says: str,
        unchanged: Callable[[Memory], AbstractContextManager[None]],
    ) -> None:
        path, other = memory.save(tmp_path / "memory.safetensors"), self.fresh(**changes)
        with unchanged(other), pytest.raises(ResumeError, match=r"memory\.safetensors.*other settings") as refused:
            other.load(path)
        assert says in str(refused.value)
        assert len(str(refused.value).removeprefix(str(path))) < 300

    def test_what_is_no_memory_is_refused(
        self, memory: Memory, tmp_path: Path, digits: Data, unchanged: Callable[[Memory], AbstractContextManager[None]]
    ) -> None:
        whole = memory.save(tmp_path / "memory.safetensors").read_bytes()
        plain = select(digits, 1).to_bytes()
        cases = {
            "missing": (None, "No such file"),
            "plain": (plain, "no memory; give a file that a memory's `save` wrote"),
            "truncated": (whole[:-1], "damaged: the checksum is another; cut off"),
            "longer": (whole + b"x", "damaged: the checksum is another"),
            "empty": (b"", "0 bytes"),
            "text": (b"hello, this is no memory", "header"),
        }
        for name, (blob, says) in cases.items():
            path = tmp_path / name
            if blob is not None:
                path.write_bytes(blob)
            with unchanged(memory), pytest.raises(UntrustedSetError, match=f"{name}.*{says}"):
                memory.load(path)

    @pytest.mark.parametrize(
        ("field", "value", "says"),
        [
            ("added", "3", "whole numbers"),
            ("added", -1, "whole numbers"),
            ("seen", {"0": 1.5, "1": 1}, "whole numbers"),
            ("seen", {"0": 30}, "leaves out"),
            ("seen", 5, "no memory"),
            ("settings", None, "no memory"),
            ("note", [1], "no memory"),
        ],
    )
    def test_a_file_whose_description_was_changed_is_refused(
        self,
        memory: Memory,
        field: str,
        value: Any,
        says: str,
        unchanged: Callable[[Memory], AbstractContextManager[None]],
    ) -> None:
        blob = memory.to_bytes()
        length = int.from_bytes(blob[:8], "little")
        header = json.loads(blob[8 : 8 + length])
        content = json.loads(header["__metadata__"]["fedcondense"])
        content["beside"]["memory"][field] = value
        header["__metadata__"]["fedcondense"] = json.dumps(content, separators=(",", ":"))
        text = json.dumps(header, separators=(",", ":")).encode()
        changed = len(text).to_bytes(8, "little") + text + blob[8 + length :]
        at = changed.index(content["crc32"].encode())
        crc = zlib.crc32(changed[:at] + changed[at + 8 :])
        changed = changed[:at] + f"{crc:08x}".encode() + changed[at + 8 :]
        with unchanged(memory), pytest.raises(UntrustedSetError, match=says):
            memory.from_bytes(changed)

    def test_many_small_additions_still_load(self) -> None:
        """Each has a record of its own: the header outgrows what is allowed of a stranger's set."""
        memory = Memory(2500, RANDOM, update="append", groups=2500)
        for k in range(2500):
            memory.sets.append(select(numbered(f"a#{k}", k, k + 1), 1))
            memory.seen[f"a#{k}"] = 1
        assert int.from_bytes(memory.to_bytes()[:8], "little") > 1 << 20
        assert len(pickle.loads(pickle.dumps(memory)).sets) == 2500

    def test_an_existing_file_is_not_replaced_unasked(self, memory: Memory, tmp_path: Path) -> None:
        path = memory.save(tmp_path / "memory.safetensors")
        with pytest.raises(OutputError, match="overwrite=True"):
            memory.save(path)
        memory.save(path, overwrite=True)
        assert os.listdir(tmp_path) == ["memory.safetensors"]

    def test_any_safetensors_reader_opens_it(self, memory: Memory, tmp_path: Path) -> None:
        with safetensors.safe_open(memory.save(tmp_path / "memory.safetensors"), framework="pt") as file:
            assert file.get_tensor("0.images").dtype == torch.uint8
