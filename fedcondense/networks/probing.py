"""A look at a network of one's own before a run: what cannot work is said before any time is spent."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from fedcondense.errors import FedcondenseError, SettingError
from fedcondense.networks.attention import plain_attention
from fedcondense.networks.convnet import Shape
from fedcondense.networks.names import NetworkMaker, build, describe, is_shipped, network_kinds
from fedcondense.networks.readable import check_logits, reason
from fedcondense.networks.trainable import trainable
from fedcondense.randomness import Drawn

__all__ = ["probe"]

T = TypeVar("T")


def probe(
    network: str | NetworkMaker,
    shape: Shape,
    classes: int,
    *,
    layer: str | None = None,
    second_order: bool = False,
    weights: Callable[[nn.Module], dict[str, Tensor]] | None = None,
    images: int = 2,
) -> None:
    """Refuse a network that cannot do what a run will ask of it.

    Networks of the toolkit are built, and known to do the rest. Others are built twice, and a few images pass forward
    and back; that takes milliseconds, draws nothing from a stream of the caller's, and leaves nothing behind.

    Args:
        network: A name, or a function that builds an `nn.Module`.
        shape: (C, H, W) of an image.
        classes: How many outputs are needed.
        layer: Whose features are matched; None: the network is trained, or its gradients are matched.
        second_order: Gradients of its weights are differentiated, too.
        weights: Which of a network's weights are matched, as leaves; None: all that may be trained.
        images: How many the smallest batch of the run has.

    Raises:
        SettingError: It says what cannot work, and what is needed.
    """
    for k, make in enumerate(network_kinds(network)):
        module = build(make, shape, classes, seed=k)
        if is_shipped(make):
            continue
        name = f"network {describe(make)}"
        shared = _shared(module, build(make, shape, classes, seed=k))
        if any(p.requires_grad for p in shared.values()):
            _refuse_shared(name, shared)
        before = {key: buffer.clone() for key, buffer in shared.items() if not isinstance(buffer, nn.Parameter)}
        with (
            Drawn(0) as drawn,
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast("cpu", enabled=False),
        ):
            pixels = torch.randn(images, *shape, dtype=torch.float32, device="cpu", requires_grad=True)
            if layer is not None:
                _try_features(name, module, pixels, layer)
            else:
                _try_training(name, module, pixels, classes, second_order, weights)
            takes_weights = layer is None and (second_order or weights is not None)
            _refuse_second_pass(name, module, pixels, drawn, takes_weights)
        changed = [key for key, value in before.items() if not torch.equal(value, shared[key])]
        if changed:
            _refuse_shared(name, changed)


def _refuse_second_pass(name: str, module: nn.Module, pixels: Tensor, drawn: Drawn, takes_weights: bool) -> None:
    """Refuse a network that passes again for its gradient, where that pass would draw or take weights anew."""
    module.train()
    calls: list[nn.Module] = []
    hooks = [
        one.register_forward_pre_hook(lambda called, _: calls.append(called))
        for one in module.modules()
        if not isinstance(one, torch.jit.ScriptModule)
    ]
    try:
        logits = _done(f"{name}: training on {len(pixels)} images", lambda: cast(Tensor, module(pixels)))
        draws, first = drawn.draws, len(calls)
        if logits.requires_grad:
            _done(f"{name}: its gradient", lambda: logits.float().sum().backward(inputs=[pixels]))
    finally:
        for hook in hooks:
            hook.remove()
    if drawn.draws > draws:
        raise SettingError(
            f"{name} draws by chance (dropout, noise) inside of torch.utils.checkpoint, which draws anew for the "
            "gradient; leave one of the two out"
        )
    if takes_weights and len(calls) > first:
        raise SettingError(
            f"{name} passes again for its gradient (torch.utils.checkpoint), with other weights than this objective "
            "has given it; leave checkpointing out, or take an objective on features"
        )


def _try_features(name: str, module: nn.Module, pixels: Tensor, layer: str) -> None:
    """Refuse features that are no rows, or that images do not move."""
    read = cast(Callable[[Tensor, str], object], module.features)
    rows = _done(f"{name}: its features of {len(pixels)} images", lambda: read(pixels, layer))
    if not (isinstance(rows, Tensor) and rows.ndim == 2 and len(rows) == len(pixels)):
        given = tuple(rows.shape) if isinstance(rows, Tensor) else f"a {type(rows).__name__}"
        raise SettingError(
            f"{name}: its features of {len(pixels)} images are {given}; needed: one row per image, ({len(pixels)}, D)"
        )
    _differentiated(f"{name}: its features", rows.float().sum(), [pixels])


def _try_training(
    name: str,
    module: nn.Module,
    pixels: Tensor,
    classes: int,
    second_order: bool,
    matched: Callable[[nn.Module], dict[str, Tensor]] | None,
) -> None:
    """Refuse a network whose weights a loss does not move, or whose gradients images do not move."""
    module.train()
    named = trainable(module)
    if not named:
        raise SettingError(f"{name}: all its weights are frozen; needed: some with requires_grad=True")
    weights = {key: p.detach().requires_grad_() for key, p in named.items()} if matched is None else matched(module)
    targets = torch.full((len(pixels), classes), 1 / classes, device="cpu")
    with plain_attention():
        logits = _done(
            f"{name}: training on {len(pixels)} images",
            lambda: cast(object, functional_call(module, weights, (pixels,))),
        )
    check_logits(name.removeprefix("network "), logits, len(pixels), classes)
    loss = F.cross_entropy(cast(Tensor, logits), targets.roll(1, 0))
    gradients = _differentiated(f"{name}: its loss", loss, weights.values(), second_order)
    if second_order:
        wide = [g for g in gradients if g.ndim > 1] or gradients
        moved = torch.stack([g.square().sum() for g in wide]).sum()
        _differentiated(
            f"{name}: the gradient of its loss, of which this objective needs the derivative,", moved, [pixels]
        )


def _differentiated(what: str, value: Tensor, by: Iterable[Tensor], create_graph: bool = False) -> list[Tensor]:
    """Return the gradients of a value in those tensors that it depends on; refuse one that depends on none."""
    by = list(by)
    if value.requires_grad:
        found = _done(what, lambda: torch.autograd.grad(value, by, create_graph=create_graph, allow_unused=True))
        if gradients := [g for g in found if g is not None]:
            return gradients
    told = "the images" if len(by) == 1 else "its weights"
    raise SettingError(
        f"{what} cannot be differentiated in {told}: it does not depend on them, or passes no_grad, detach, or a step "
        "without a derivative; take those out of its forward pass"
    )


def _done(what: str, work: Callable[[], T]) -> T:
    try:
        return work()
    except FedcondenseError:
        raise
    except Exception as error:
        raise SettingError(
            f"{what} cannot be computed ({reason(error)}); change that layer, or take another network or objective"
        ) from error


def _shared(one: nn.Module, other: nn.Module) -> dict[str, Tensor]:
    """Return weights and buffers of which both modules hold the same memory, by name."""
    held = {t.untyped_storage().data_ptr() for t in (*other.parameters(), *other.buffers()) if t.numel()}
    mine = (*one.named_parameters(), *one.named_buffers())
    return {name: t for name, t in mine if t.numel() and t.untyped_storage().data_ptr() in held}


def _refuse_shared(name: str, shared: Iterable[str]) -> None:
    first = next(iter(shared))
    raise SettingError(
        f"{name} returns the same module, or the same parts ({first}), each time it is called, so training one network "
        "would go on in the next; return a new one, such as copy.deepcopy(module)"
    )
