"""What holds for every network by name, and what the names say."""

from __future__ import annotations

from copy import deepcopy
from functools import cache, partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedcondense.data.images import Data, Spec
from fedcondense.errors import SettingError
from fedcondense.networks import NETWORKS, NORMS, ConvNet, build, default_network, describe
from fedcondense.networks.names import CONVNETS, OTHERS
from fedcondense.sets.selection import select
from fedcondense.training.evaluation import evaluate
from fedcondense.training.fit import Fit

Shape = tuple[int, int, int]
TINY = partial(ConvNet, width=8, depth=2)
SHAPES = ((1, 28, 28), (3, 32, 32))
QUICK = Fit(steps=2, batch=4)


def images(count: int, *shape: int) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(0))


@cache
def built(name: str, shape: Shape) -> nn.Module:
    """Build a network once for the tests that leave its weights and running statistics alone."""
    return build(name, shape, 6, seed=0)


def toy(shape: Shape) -> Data:
    """Two classes, two images each."""
    pixels = torch.randint(0, 256, (4, *shape), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    spec = Spec("toy", shape, ("a", "b"), (0.5,) * shape[0], (0.3,) * shape[0])
    return Data(pixels, torch.arange(2).repeat(2), spec)


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("norm", NORMS)
def test_a_convnet_is_what_its_name_says(depth: int, norm: str) -> None:
    for width in (16, 32, 64, 128):
        name = f"convnet{depth}-w{width}" + ("" if norm == "instance" else f"-{norm}")
        network = build(name, (3, 32, 32), 6, seed=0)
        twin = ConvNet((3, 32, 32), 6, width=width, depth=depth, norm=norm)
        assert str(network) == str(twin)
    assert len(CONVNETS) == 5 * 4 * len(NORMS)


@pytest.mark.parametrize("norm", NORMS)
def test_a_convnet_reads_eight_pixels_as_deep_as_it_fits(norm: str) -> None:
    for depth in (1, 2, 3):
        name = f"convnet{depth}-w16" + ("" if norm == "instance" else f"-{norm}")
        assert build(name, (1, 8, 8), 6, seed=0)(images(2, 1, 8, 8)).shape == (2, 6)


def test_the_names_that_files_of_the_first_version_hold_are_there() -> None:
    names = "convnet2-w32 convnet3-w16 convnet3-w32 convnet3-w32-batch convnet3-w32-none convnet3-w64 convnet3-w128"
    assert {*names.split(), "convnet4-w32", "convnet4-w128", "resnet18", "resnet18-batch"} <= set(NETWORKS)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", [*OTHERS, "convnet1-w16-layer", "convnet4-w16-batch"])
class TestEveryNetwork:
    def test_features_are_what_the_last_linear_layer_is_fed(self, name: str, shape: Shape) -> None:
        network = built(name, shape).eval()
        head = [m for m in network.modules() if isinstance(m, nn.Linear)][-1]
        fed: list[Tensor] = []
        x = images(2, *shape)
        hook = head.register_forward_pre_hook(lambda module, inputs: fed.append(inputs[0]))
        logits = network(x)
        hook.remove()
        assert logits.shape == (2, 6)
        assert fed[0].shape == (2, head.in_features)
        torch.testing.assert_close(network.features(x), fed[0])  # type: ignore[operator]
        torch.testing.assert_close(network.features(x, "logits"), logits)  # type: ignore[operator]
        torch.testing.assert_close(head(fed[0]), logits)

    def test_features_tell_images_apart(self, name: str, shape: Shape) -> None:
        """A norm over a single pixel, or a head that starts at zero, would give all images the same."""
        network = built(name, shape).eval()
        for layer in ("embedding", "logits"):
            features = network.features(images(2, *shape), layer).detach()  # type: ignore[operator]
            assert float((features[0] - features[1]).norm() / features.norm()) > 1e-3

    def test_nothing_in_it_is_random(self, name: str, shape: Shape) -> None:
        network = deepcopy(built(name, shape)).train()  # running statistics move
        x = images(2, *shape)
        torch.testing.assert_close(network(x), network(x))
        assert all(m.p == 0 for m in network.modules() if isinstance(m, nn.Dropout))

    def test_trains_in_evaluate(self, name: str, shape: Shape) -> None:
        test = toy(shape)
        measured = evaluate(select(test, 1), test, network=name, recipe=QUICK, seeds=[0])
        assert measured.network == name
        assert 0 <= measured.accuracy <= 100


@pytest.mark.parametrize("name", OTHERS)
def test_gradients_of_weights_can_be_differentiated_in_the_images(name: str) -> None:
    """Gradient matching and unrolled training ask for it; torch's fused attention and hard sigmoid cannot."""
    network = build(name, (1, 28, 28), 3, seed=0)
    x = images(2, 1, 28, 28).requires_grad_()
    loss = F.cross_entropy(network(x), torch.tensor([0, 1]))
    gradients = torch.autograd.grad(loss, list(network.parameters()), create_graph=True)
    sum((g.square().sum() for g in gradients), torch.zeros(())).backward()
    assert x.grad is not None
    assert bool(x.grad.isfinite().all())
    assert float(x.grad.abs().sum()) > 0


@pytest.mark.parametrize("name", OTHERS)
def test_other_channels_and_sizes_up_to_64_pixels(name: str) -> None:
    for shape in ((3, 28, 28), (1, 32, 32), (3, 64, 64)):
        assert build(name, shape, 6, seed=0).eval()(images(1, *shape)).shape == (1, 6)


@pytest.mark.parametrize(
    ("name", "smallest"),
    [("mlp", 1), ("lenet", 12), ("alexnet", 8), ("vgg11", 28), ("resnet18", 9), ("mobilenet-v3-small", 9),
     ("vit-small", 8)],
)  # fmt: skip
def test_the_smallest_size_works_and_what_is_below_is_refused(name: str, smallest: int) -> None:
    shape = (1, smallest, smallest)
    features = build(name, shape, 6, seed=0).features(images(3, *shape))  # type: ignore[operator]
    assert float(features.detach().std(0).mean()) > 0
    if smallest > 1:
        few = smallest - 1
        says = f"{name} needs images of {smallest}x{smallest} or more, these are {few}x{few}; take mlp or a ConvNet"
        with pytest.raises(SettingError, match=says):
            build(name, (1, few, few), 6, seed=0)


@pytest.mark.parametrize("side", [(30, 30), (28, 32)])
def test_a_transformer_refuses_what_its_patches_do_not_cover(side: tuple[int, int]) -> None:
    with pytest.raises(
        SettingError, match=r"squares whose side is a multiple of 4, these images are .*; take resnet18"
    ):
        build("vit-small", (1, *side), 6, seed=0)


@pytest.mark.parametrize("name", [n for n in OTHERS if n != "vit-small"])
def test_images_need_not_be_square(name: str) -> None:
    assert build(name, (1, 30, 44), 6, seed=0).eval()(images(1, 1, 30, 44)).shape == (1, 6)


def test_equal_seeds_build_equal_networks_and_the_global_state_stays() -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first, second, other = (build(TINY, (1, 8, 8), 3, seed) for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), before)
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name])
    assert not torch.equal(first.classifier.weight, other.classifier.weight)  # type: ignore[union-attr, arg-type]


def test_unknown_names_are_refused_with_the_closest_and_the_scheme_of_the_others() -> None:
    with pytest.raises(SettingError, match="no network is called 'convnet3-w33'; did you mean 'convnet3-w3") as refused:
        build("convnet3-w33", (1, 8, 8), 10, 0)
    assert "convnetD-wW of depth D 1 to 5 and width W 16, 32, 64, 128, then perhaps -group, -layer" in str(
        refused.value
    )
    assert "alexnet, lenet, mlp, mobilenet-v3-small, resnet18, resnet18-batch, vgg11" in str(refused.value)
    with pytest.raises(SettingError, match="did you mean 'vgg11'"):
        build("vgg-11", (1, 8, 8), 10, 0)


@pytest.mark.parametrize(
    ("side", "name"), [(8, "convnet2-w32"), (16, "convnet3-w32"), (32, "convnet3-w32"), (64, "convnet4-w32")]
)
def test_the_default_is_as_deep_as_the_image_is_large(side: int, name: str) -> None:
    assert default_network((1, side, side)) == name


def test_a_network_is_described_by_its_name_or_by_what_builds_it() -> None:
    assert describe("convnet3-w32") == "convnet3-w32"
    assert describe(nn.Identity) == "Identity"
    assert "width=8" in describe(TINY)


@pytest.mark.parametrize("name", [*OTHERS, *(name for name in CONVNETS if "-w16" in name)])
def test_weights_are_those_after_a_global_seed_which_stays_as_it_was(name: str) -> None:
    """Published results rely on them, bit for bit."""
    before = torch.get_rng_state()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        expected = NETWORKS[name]((1, 32, 32), 3).state_dict()
    found = build(name, (1, 32, 32), 3, seed=11).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    pairs = zip(expected.values(), found.values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
