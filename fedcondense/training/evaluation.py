"""What a synthetic set is worth: networks trained on it from scratch, tested on real data, last step counting."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fedcondense.ambient import in_own_state
from fedcondense.arguments import device_of, instance_of
from fedcondense.checkpoints import Checkpoint
from fedcondense.data.given import as_test
from fedcondense.data.images import Batch, Data
from fedcondense.errors import DataError, DivergenceError, SettingError
from fedcondense.loggers import log_numbers
from fedcondense.networks import NetworkMaker, build, default_network, describe, network_kinds, probe
from fedcondense.networks.passes import repeatable
from fedcondense.plain import listed, whole_number
from fedcondense.progress import counted
from fedcondense.randomness import child_seed
from fedcondense.sets.synthetic import SyntheticSet
from fedcondense.training.fit import Fit, accuracy, fit, of_network
from fedcondense.training.measured import Evaluation, missing_classes
from fedcondense.training.midway import Midway
from fedcondense.training.protocols import Protocol, protocol_named
from fedcondense.training.resuming import follows_from, keeping

__all__ = ["Evaluation", "batch_for", "evaluate", "evaluate_as_recorded", "train_on"]


_LEAST_BATCH, _LEAST_TEST = 64, 1000  # fewer images take hardly less time
_MOST_IMAGES = 10_000_000  # what a file may ask for; about an hour of one CPU core at width 32


@counted("evaluating")
@in_own_state
def evaluate(
    synthetic: SyntheticSet,
    test: Any,
    *,
    network: str | NetworkMaker | None = None,
    protocol: str | Protocol = "short",
    recipe: Fit | None = None,
    seeds: Iterable[int] = (0, 1, 2),
    weighted: bool = False,
    device: torch.device | str | None = None,
    progress: Callable[[int, int], None] | None = None,
    trained: Callable[[torch.nn.Module], None] | None = None,
    checkpoint: Checkpoint | None = None,
) -> Evaluation:
    """Train one network per seed on the set, and test each after its last step.

    About 11 s of one CPU core a network at width 32, 28x28 and 10,000 test images. Nothing is selected on `test`.

    Args:
        synthetic: The set; classes are matched to those of `test` by name.
        test: Real images: `Data`, or what `as_data` takes; of a name or folder the test split. They are
            normalised as the set is, unless they are `Data`.
        network: A name in `NETWORKS`, ``"torchvision:NAME"``, a class or function that builds a module, or a module,
            whose weights are drawn anew (`Anew`); None: the protocol's, as the image size asks.
        protocol: A name in `PROTOCOLS`: ``"short"``, or ``"published"``, at 10 to 250 times the cost.
        recipe: How to train; None: as the protocol says.
        seeds: One a network: its weights, batches and augmentation.
        weighted: Let an image count by the records that it stands for. Off: where few images stand for many records
            it cost 1 to 5 points (`experiments/federation.md`), and the counts of a federation are what clients claim.
        device: Where to run; None: where `test` is.
        progress: Called with (step, steps), over all networks; without one a bar is drawn on a terminal.
        trained: Called with each network once it is trained; not with those that a checkpoint has tested already.
        checkpoint: Where networks that were tested and the one in training are kept, and whether to go on from there;
            whoever has the result removes the file. A resumed evaluation ends equal on one CPU with as many threads.

    Raises:
        DataError: No test images.
        DivergenceError: A network's outputs are not finite after training.
        SettingError: No seeds, the shapes differ, no class of the set is one of the test data, or the network cannot be
            trained on them.
        ResumeError, OutputError: As in `condense`, of the checkpoint.
    """
    seeds = tuple(whole_number(seed, "seed") for seed in listed(seeds, "seeds"))
    if not seeds:
        raise SettingError("no seeds; give one per network, such as [0, 1, 2]")
    if not isinstance(test, Data):
        test = as_test(test)
        record = synthetic.record  # images of which nobody says how they are normalised are as those of the set
        test = Data(test.images, test.labels, replace(test.spec, mean=record.mean, std=record.std))
    if not len(test):
        raise DataError(f"{test.spec.name}: no images to test on; give a test part, or data that have one")
    device = device_of(device) if device is not None else test.device
    named = protocol_named(protocol)
    recipe, network = named.recipe if recipe is None else recipe, network or named.network(synthetic.shape)
    _check_training(synthetic, test, network, recipe)
    test = test.to(device)
    missing = missing_classes(synthetic, test)
    accuracies, per_class = [], []
    follows = partial(follows_from, synthetic, test, network, recipe, weighted, device)
    with keeping(checkpoint, follows, seeds) as kept:
        for k, seed in enumerate(seeds):
            found = kept.tested(seed)
            if found is None:
                step = of_network(progress, k, len(seeds))
                module = _train_on(synthetic, test, network, recipe, seed, weighted, device, step, kept.midway(seed))
                _check_finite(module, test, seed)
                if trained is not None:
                    trained(module)
                found = accuracy(module, test)
                kept.add(seed, *found)
            percent, classes = found
            log_numbers(k + 1, {"accuracy": percent})
            accuracies.append(percent)
            per_class.append(classes)
    return Evaluation(
        accuracies=tuple(accuracies),
        per_class=tuple(torch.stack(per_class).mean(0).tolist()),
        network=describe(network),
        recipe=recipe,
        seeds=seeds,
        weighted=weighted,
        test=f"{test.spec.name}, {len(test)} images",
        seconds=kept.seconds,
        missing=missing,
    )


@in_own_state
def evaluate_as_recorded(
    synthetic: SyntheticSet,
    test: Data,
    device: torch.device | str | None = None,
    progress: Callable[[int, int], None] | None = None,
    checkpoint: Checkpoint | None = None,
) -> Evaluation:
    """Evaluate a set as the evaluation in its file was made: on one machine it gives the same number.

    Args:
        synthetic: The set, with its evaluation.
        test: Data of the classes that the set names.
        device: As in `evaluate`.
        progress: As in `evaluate`.
        checkpoint: As in `evaluate`.

    Raises:
        SettingError: The set's file holds no evaluation, or one that cannot be repeated.
    """
    given = synthetic.evaluation
    if given is None:
        raise SettingError("this set holds no evaluation; call `evaluate` and keep its result with `with_evaluation`")
    try:
        recipe, seeds = Fit(**given["recipe"]), [int(seed) for seed in given["seeds"]]
        network, weighted = str(given["network"]), bool(given["weighted"])
        network_kinds(network)
        steps, batch = recipe.steps_on(len(synthetic)), min(recipe.batch, len(synthetic))
        images = steps * max(batch, _LEAST_BATCH) + max(len(test), _LEAST_TEST)
        if images * len(seeds) > _MOST_IMAGES:
            raise SettingError(f"{len(seeds)} networks of {steps} steps of {batch} images")
    except (KeyError, TypeError, ValueError) as error:
        raise SettingError(
            f"this set's evaluation cannot be repeated ({error}); `evaluate` measures the set anew"
        ) from None
    return evaluate(
        synthetic,
        test,
        network=network,
        recipe=recipe,
        seeds=seeds,
        weighted=weighted,
        device=device,
        progress=progress,
        checkpoint=checkpoint,
    )


@in_own_state
def train_on(
    synthetic: SyntheticSet,
    like: Data,
    *,
    network: str | NetworkMaker | None = None,
    recipe: Fit = Fit(),
    seed: int = 0,
    weighted: bool = False,
    device: torch.device | str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> torch.nn.Module:
    """Build a network with the classes of `like` and train it on the set.

    Args:
        synthetic: The set.
        like: Data whose classes, in their order, are the outputs of the network.
        network: As in `evaluate`.
        recipe: How to train.
        seed: Weights, batches and augmentation.
        weighted: Let an image count by the records that it stands for.
        device: Where; None: where `like` is.
        progress: Called with (step, steps).

    Raises:
        SettingError: As in `evaluate`.
    """
    _check_training(synthetic, like, network, recipe)
    seed = whole_number(seed, "seed")
    device = device_of(device) if device is not None else like.device
    return _train_on(synthetic, like, network, recipe, seed, weighted, device, progress)


def _check_finite(module: torch.nn.Module, test: Data, seed: int) -> None:
    """Refuse a network that left the finite numbers: the class that it names is always the first."""
    module.eval()
    with torch.no_grad(), repeatable(module, 0, "finite"):
        outputs = module(test.batch(torch.arange(min(2, len(test)), device="cpu")).images)
    module.train()
    if not bool(outputs.isfinite().all()):
        raise DivergenceError(
            f"the network of seed {seed} gives outputs that are not finite after training; take a smaller step size "
            "(Fit(lr=...), or a --protocol that a --plugin adds to fc.PROTOCOLS), or mend its forward pass"
        )


def _check_training(synthetic: SyntheticSet, like: Data, network: str | NetworkMaker | None, recipe: Fit) -> None:
    """Refuse shapes, recipes and networks that cannot work, before anything is decoded."""
    instance_of("recipe", recipe, Fit, "a Fit, which says how a network is trained")
    if synthetic.shape != like.spec.shape:
        raise SettingError(
            f"the set has images of {synthetic.shape}, the data of {like.spec.shape}; give data of one shape, "
            f"such as data that is brought to {synthetic.shape[-1]} pixels a side (size={synthetic.shape[-1]}, --size)"
        )
    network = network or default_network(synthetic.shape)
    probe(network, synthetic.shape, len(like.spec.classes), images=min(2, recipe.batch, len(synthetic)))


def _train_on(
    synthetic: SyntheticSet,
    like: Data,
    network: str | NetworkMaker | None,
    recipe: Fit,
    seed: int,
    weighted: bool,
    device: torch.device,
    progress: Callable[[int, int], None] | None,
    midway: Midway | None = None,
) -> torch.nn.Module:
    classes = like.spec.classes
    batch, kept = batch_for(synthetic, classes, device)
    module = build(
        network or default_network(synthetic.shape), synthetic.shape, len(classes), child_seed(seed, "network")
    )
    weights = synthetic.weights().to(device)[kept] if weighted else None
    operations = synthetic.record.augmentation or like.spec.operations
    fit(
        module.to(device),
        *batch,
        recipe,
        seed=seed,
        weights=weights,
        operations=operations,
        progress=progress,
        midway=midway,
    )
    return module


def batch_for(
    synthetic: SyntheticSet, classes: Sequence[str], device: torch.device | str = "cpu"
) -> tuple[Batch, Tensor]:
    """Return a set's images, normalised, with targets that index other classes, by name, and which images those are.

    Images of which less than half a label is of these classes are left out.

    Args:
        synthetic: The set.
        classes: The names, in the order of the targets' columns.
        device: Where.

    Returns:
        batch: (N, C, H, W) and (N, K).
        kept: (M,) bool, of the set's M images.

    Raises:
        SettingError: None of the set's classes is among these.
    """
    images, targets = synthetic.decode(device)
    places = {name: k for k, name in enumerate(classes)}
    columns = [places.get(name, -1) for name in synthetic.classes]
    known = torch.tensor([c >= 0 for c in columns], device=device)
    if not bool(known.any()):
        raise SettingError(f"no class of the set ({', '.join(synthetic.classes[:5])}, ...) is one of the data's")
    full = targets.new_zeros(len(targets), len(classes))
    full[:, [c for c in columns if c >= 0]] = targets[:, known]
    kept = full.sum(1) > 0.5
    return Batch(images[kept], full[kept]), kept
