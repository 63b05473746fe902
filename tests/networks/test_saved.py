from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import fedcondense as fc
from fedcondense.errors import OutputError, SettingError
from fedcondense.networks import build
from fedcondense.networks.saved import FILE, NetworkCard, UntrustedNetworkError, load_network, save_network

CARD = NetworkCard("convnet1-w16", ("cat", "dog", "Übung"), (1, 8, 8), (0.25,), (0.5,), "one-shot")
KEY = "fedcondense-network"


def network(card: NetworkCard = CARD) -> nn.Module:
    return build(card.network, card.shape, len(card.classes), seed=3)


def images(count: int = 5) -> Tensor:
    return torch.randint(256, (count, *CARD.shape), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return save_network(tmp_path, network(), CARD)


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """Write the file again with another card."""
    content = json.loads(metadata(path)[KEY])
    change(content)
    tensors = safetensors.torch.load_file(path)
    path.write_bytes(safetensors.torch.save(tensors, metadata={KEY: json.dumps(content)}))
    return path


def metadata(path: Path) -> dict[str, str]:
    """Return what the file says beside its weights, without the checksum: files of older versions have none."""
    with safetensors.safe_open(path, framework="pt") as opened:
        told = dict(opened.metadata() or {})
    if KEY in told:
        card = json.loads(told[KEY])
        card.pop("checksum", None)
        told[KEY] = json.dumps(card)
    return told


@given(place=st.integers(0, 10**9), bit=st.integers(0, 7))
@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_every_flipped_bit_is_refused(place: int, bit: int, tmp_path: Path) -> None:
    blob = bytearray(save_network(tmp_path, network(), CARD, overwrite=True).read_bytes())
    blob[place % len(blob)] ^= 1 << bit
    (tmp_path / FILE).write_bytes(bytes(blob))
    with pytest.raises(UntrustedNetworkError):
        load_network(tmp_path)


class TestRoundTrip:
    def test_a_file_or_its_folder_gives_the_network_and_all_that_is_needed_to_use_it(self, path: Path) -> None:
        assert path.name == FILE
        for where in (path, path.parent, str(path)):
            loaded = load_network(where)
            assert loaded.card == replace(CARD, version=fc.__version__)
            assert (loaded.classes, loaded.shape) == (CARD.classes, CARD.shape)
            assert (loaded.mean, loaded.std) == (CARD.mean, CARD.std)
            assert not any(module.training for module in loaded.modules())
            for a, b in zip(loaded.network.state_dict().items(), network().state_dict().items(), strict=True):
                assert a[0] == b[0]
                assert torch.equal(a[1], b[1])

    def test_the_library_has_it_by_its_name(self, path: Path) -> None:
        assert fc.load_network is load_network
        assert "load_network" in fc.__all__

    @pytest.mark.parametrize("name", ["mlp", "convnet2-w16-batch", "vit-small"])
    def test_networks_of_other_kinds_and_with_running_statistics_come_back(self, tmp_path: Path, name: str) -> None:
        card = replace(CARD, network=name, shape=(3, 16, 16), mean=(0.5,) * 3, std=(0.2,) * 3)
        made = network(card)
        for tensor in made.state_dict().values():
            tensor.copy_(torch.rand(tensor.shape) * 2 if tensor.is_floating_point() else torch.full_like(tensor, 7))
        loaded = load_network(save_network(tmp_path, made, card))
        x = torch.rand(2, 3, 16, 16)
        torch.testing.assert_close(loaded(x), made.eval()(x), rtol=0, atol=0)

    def test_a_state_dict_serves_as_well_and_any_reader_opens_the_file(self, tmp_path: Path) -> None:
        state = network().state_dict()
        file = save_network(tmp_path / "net.safetensors", state, CARD)
        assert file.name == "net.safetensors"
        assert safetensors.torch.load_file(file).keys() == state.keys()
        assert load_network(file).classes == CARD.classes

    def test_a_file_is_replaced_only_when_asked(self, path: Path) -> None:
        with pytest.raises(OutputError, match="exists"):
            save_network(path, network(), CARD)
        save_network(path, network(), replace(CARD, strategy="iterative"), overwrite=True)
        assert load_network(path).card.strategy == "iterative"

    def test_weights_of_an_older_version_are_refused_with_what_to_do_and_that_works(self, tmp_path: Path) -> None:
        path = tmp_path / FILE
        path.write_bytes(safetensors.torch.save(network().state_dict()))
        with pytest.raises(UntrustedNetworkError, match=r"save_network\(path, safetensors.torch.load_file\(path\)"):
            load_network(path)
        save_network(path, safetensors.torch.load_file(path), CARD, overwrite=True)
        assert load_network(path).classes == CARD.classes


class TestPredict:
    @pytest.fixture
    def loaded(self, path: Path) -> Any:
        return load_network(path)

    def test_it_is_the_network_on_images_that_it_normalises(self, loaded: Any) -> None:
        """By hand: (x / 255 - mean) / std, softmax, the largest."""
        logits = network().eval()((images().float() / 255 - 0.25) / 0.5)
        torch.testing.assert_close(loaded.probabilities(images()), logits.softmax(1))
        assert torch.equal(loaded.predict(images()), logits.argmax(1))
        assert loaded.predict(images()).dtype == torch.int64

    def test_bytes_and_the_same_in_zero_to_one_are_one(self, loaded: Any) -> None:
        bytes_ = loaded.probabilities(images())
        assert torch.equal(loaded.probabilities(images().float() / 255), bytes_)
        torch.testing.assert_close(loaded.probabilities(images().double() / 255), bytes_)
        assert bytes_.dtype == torch.float32

    def test_many_images_are_what_each_is_and_none_is_none(self, loaded: Any) -> None:
        many = images(1030)
        one_by_one = torch.cat([loaded.probabilities(many[k : k + 1]) for k in (0, 511, 512, 1029)])
        torch.testing.assert_close(loaded.probabilities(many)[[0, 511, 512, 1029]], one_by_one)
        assert loaded.predict(images(0)).shape == (0,)
        assert loaded.probabilities(images(0)).shape == (0, 3)

    @pytest.mark.parametrize(
        ("wrong", "match"),
        [
            (images().float() / 255 * 2 - 1, r"from -1 to .*; needed: \[0, 1\], not normalised, or uint8"),
            (images().float(), r"from 0 to 25\d; needed"),
            (torch.full((1, 1, 8, 8), float("nan")), "from nan to nan"),
            (images().long(), r"torch.int64 .*uint8 or floating point in \[0, 1\]"),
            (images().permute(0, 2, 3, 1), r"\(5, 8, 8, 1\); needed: \(N, 1, 8, 8\)"),
            (images()[0], r"\(1, 8, 8\); needed: \(N, 1, 8, 8\)"),
        ],
        ids=["normalised", "up to 255", "nan", "integers", "channels last", "one image"],
    )
    def test_images_of_another_range_type_or_layout_are_refused(self, loaded: Any, wrong: Tensor, match: str) -> None:
        with pytest.raises(SettingError, match=match):
            loaded.predict(wrong)

    def test_no_graph_is_kept(self, loaded: Any) -> None:
        assert not loaded.probabilities(images()).requires_grad


class Own(nn.Module):
    def __init__(self, shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        self.flat, self.head = nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], classes)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.flat(x))
        return out


class TestOwnNetwork:
    CARD = replace(CARD, network="mine")

    @pytest.mark.parametrize("wrapped", [False, True], ids=["as it is", "as the toolkit wraps it"])
    def test_a_module_or_a_function_takes_the_weights(self, tmp_path: Path, wrapped: bool) -> None:
        made = build(Own, CARD.shape, 3, seed=1) if wrapped else Own(CARD.shape, 3)
        path = save_network(tmp_path, made, self.CARD)
        x = torch.rand(2, *CARD.shape)
        for network in (Own, Own(CARD.shape, 3)):
            assert torch.equal(load_network(path, network=network)(x), made(x))

    def test_without_it_the_name_is_refused_and_never_imported(self, tmp_path: Path) -> None:
        path = save_network(tmp_path, Own(CARD.shape, 3), replace(CARD, network="os.system"))
        with pytest.raises(SettingError, match=r"no network is called 'os.system'.*network="):
            load_network(path)

    def test_weights_that_two_layers_share_are_written(self, tmp_path: Path) -> None:
        made = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 3))
        made[2].weight = made[1].weight
        path = save_network(tmp_path, made, self.CARD)
        assert torch.equal(load_network(path, network=made)(torch.ones(1, 1, 8, 8)), made(torch.ones(1, 1, 8, 8)))

    def test_a_module_of_another_shape_is_refused(self, tmp_path: Path) -> None:
        path = save_network(tmp_path, Own(CARD.shape, 3), self.CARD)
        with pytest.raises(UntrustedNetworkError, match=r"head.weight is torch.float32 \(3, 64\); needed .*\(4, 64\)"):
            load_network(path, network=Own(CARD.shape, 4))


class TestUntrusted:
    """Refused in one line that names the file."""

    def refused(self, path: Path, match: str, **options: Any) -> None:
        with pytest.raises((UntrustedNetworkError, SettingError), match=match) as refusal:
            load_network(path, **options)
        assert str(path) in str(refusal.value)
        assert "\n" not in str(refusal.value)
        assert len(str(refusal.value)) < 1000

    @pytest.mark.parametrize(
        ("change", "match"),
        [
            ({"network": "convnet1-w1"}, "no network is called 'convnet1-w1'"),
            ({"network": "convnet1-w32"}, r"blocks.0.0.weight is torch.float32 \(16, 1, 3, 3\); needed"),
            ({"network": "mlp"}, "weights are missing or of another network"),
            ({"classes": ["a", "b"]}, "classifier.weight is"),
            ({"classes": ["a", "b", "a"]}, "class names repeat"),
            ({"classes": ["a", "b\n", "c"]}, "needed: 1 to 10000 printable texts"),
            ({"classes": ["a", "b", "u\u0308"]}, "form NFC"),
            ({"classes": [["a"], "b", "c"]}, "needed: 1 to 10000 printable texts"),
            ({"classes": "abc"}, "needed: 1 to 10000 printable texts"),
            ({"classes": [str(k) for k in range(10_001)]}, "needed: 1 to 10000"),
            ({"shape": [1, 16, 16]}, "classifier.weight is"),
            ({"shape": [1, 4096, 4096]}, "classifier.weight is"),
            ({"shape": [1, 10**9, 8]}, "needed: .C, H, W., each from 1 to 4096"),
            ({"shape": [1, 8]}, "needed: .C, H, W."),
            ({"shape": [1, 8, True]}, "needed: .C, H, W."),
            ({"mean": [0.1, 0.2]}, "needed: 1 finite numbers"),
            ({"mean": [float("nan")]}, "needed: 1 finite numbers"),
            ({"mean": [1e300]}, "needed: 1 finite numbers"),
            ({"std": [0.0]}, "std is .*above zero"),
            ({"std": ["1"]}, "needed: 1 finite numbers"),
            ({"strategy": "\x1b[31m"}, "strategy is .*printable"),
            ({"version": "9" * 300}, "version is .*at most 200"),
            ({"format": 2}, "format 2; this version reads up to 1: upgrade"),
            ({"format": "1"}, "format '1'"),
            ({"extra": 1}, "card cannot be read"),
        ],
        ids=str,
    )
    def test_a_card_that_cannot_be_or_does_not_fit(self, path: Path, change: dict[str, Any], match: str) -> None:
        self.refused(edit(path, lambda card: card.update(change)), match)

    def test_an_unchanged_card_that_is_written_again_is_accepted(self, path: Path) -> None:
        """The check of the checks above."""
        load_network(edit(path, lambda card: None))

    @pytest.mark.parametrize("text", ["", "[]", "{}", "null", "[" * 100_000, '{"format": 1}'])
    def test_a_card_that_is_none(self, path: Path, text: str) -> None:
        path.write_bytes(safetensors.torch.save(network().state_dict(), metadata={KEY: text}))
        self.refused(path, "its card cannot be read")

    @pytest.mark.parametrize(
        "change",
        [lambda t: t.double(), lambda t: t.half(), lambda t: t.reshape(-1), lambda t: t[:-1]],
        ids=["double", "half", "flat", "shorter"],
    )
    def test_weights_of_another_type_or_shape(self, path: Path, change: Callable[[Tensor], Tensor]) -> None:
        tensors = safetensors.torch.load_file(path)
        tensors["classifier.weight"] = change(tensors["classifier.weight"]).contiguous()
        path.write_bytes(safetensors.torch.save(tensors, metadata=metadata(path)))
        self.refused(path, "classifier.weight is")

    def test_weights_that_are_missing_or_too_many(self, path: Path) -> None:
        tensors, text = safetensors.torch.load_file(path), metadata(path)
        path.write_bytes(safetensors.torch.save(tensors | {"e\x1b\n" * 200: torch.ones(1)}, metadata=text))
        self.refused(path, "1 weights are missing or of another network")
        del tensors["classifier.bias"]
        path.write_bytes(safetensors.torch.save(tensors, metadata=text))
        self.refused(path, "classifier.bias")

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_values_that_are_not_finite(self, path: Path, value: float) -> None:
        tensors = safetensors.torch.load_file(path)
        tensors["classifier.bias"][1] = value
        path.write_bytes(safetensors.torch.save(tensors, metadata=metadata(path)))
        self.refused(path, "classifier.bias has values that are not finite")

    def test_nothing_of_the_networks_size_is_made_before_the_header_fits(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A card that asks for a network of 4 GB: only its outline is built, on the meta device."""
        edit(path, lambda card: card.update(network="mlp", shape=[1, 2896, 2896]))
        made, empty = [], torch.empty

        def noted(*arguments: Any, **options: Any) -> Tensor:
            tensor = empty(*arguments, **options)
            made.append(tensor)
            return tensor

        monkeypatch.setattr(torch, "empty", noted)
        self.refused(path, "weights are missing or of another network")
        assert any(t.numel() > 10**9 for t in made)
        assert {t.device.type for t in made if t.numel() > 1000} == {"meta"}

    @pytest.mark.parametrize("length", [0, 5, 8, 100, -1])
    def test_a_file_that_was_cut(self, path: Path, length: int) -> None:
        path.write_bytes(path.read_bytes()[:length])
        self.refused(path, "is damaged or no safetensors file")

    def test_a_file_or_header_above_the_limit(self, path: Path) -> None:
        size = path.stat().st_size
        load_network(path, limit_bytes=size)
        self.refused(path, f"{size} bytes; allowed: {size - 1}", limit_bytes=size - 1)
        path.write_bytes(b"PK\3\4\5\6\7\0" + path.read_bytes())
        self.refused(path, "Is it a safetensors file")

    def test_a_file_that_is_not_there_or_a_set(self, tmp_path: Path) -> None:
        self.refused(tmp_path, "No such file or directory; give a run's folder")
        ready = Path(fc.__file__).parent / "sets" / "zoo" / "mnist-ipc1.safetensors"
        self.refused(ready, "a synthetic set; needed: a file that save_network wrote")


class TestSaving:
    def test_weights_that_do_not_fit_their_name_are_refused_before_they_are_written(self, tmp_path: Path) -> None:
        with pytest.raises(SettingError, match=r"to save as 'convnet1-w32': .* needed"):
            save_network(tmp_path, network(), replace(CARD, network="convnet1-w32"))
        assert not list(tmp_path.iterdir())

    def test_weights_that_are_not_finite_are_refused(self, tmp_path: Path) -> None:
        state = {name: tensor * float("nan") for name, tensor in network().state_dict().items()}
        with pytest.raises(SettingError, match="not finite"):
            save_network(tmp_path, state, CARD)

    def test_a_card_says_all_that_is_wrong_with_it_at_once(self) -> None:
        with pytest.raises(SettingError, match=r"network is .*classes are .*shape is "):
            NetworkCard("", (), (1, 8), (0.0,), (1.0,))  # type: ignore[arg-type]
