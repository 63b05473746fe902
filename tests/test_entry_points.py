"""Each public entry point gives the same bits whatever the caller's state, and leaves that state as it was."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fedcondense as fc
from fedcondense import condensing, networks, training
from fedcondense.data import from_dataset
from fedcondense.memory import Condenser, Memory, Selector
from fedcondense.networks.saved import NetworkCard, save_network
from fedcondense.sets import show_set
from fedcondense.sources import Near, Pool, Trajectories
from fedcondense.sweeps import Cell, EvaluationPlan, SetRecipe
from fedcondense.sweeps.compute import compute
from fedcondense.training.fit import fit

SMALL = "convnet1-w16"
FIT = fc.Fit(steps=2, batch=8, cutmix=0.5)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def default_device(device: str) -> Iterator[None]:
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


STATES: dict[str, tuple[Callable[[], Any], ...]] = {  # "meta" stands for a GPU
    "no gradients, float64": (torch.no_grad, partial(default_dtype, torch.float64)),
    "inference, another device": (torch.inference_mode, partial(default_device, "meta")),
    "bfloat16, in a device's context": (partial(default_dtype, torch.bfloat16), lambda: torch.device("meta")),
}


def ambient() -> tuple[Any, ...]:
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
        torch.is_autocast_cache_enabled(),
        torch.backends.cuda.flash_sdp_enabled(),
        torch.get_rng_state().tolist(),
    )


def digest(value: Any) -> str:
    """Return a text that is equal for equal bits, dtypes and devices."""
    if isinstance(value, Tensor):
        assert not value.is_inference(), "what is kept may be used where gradients are"
        bits = hashlib.sha256(value.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()).hexdigest()
        return f"{value.dtype} {value.device} {tuple(value.shape)} {bits}"
    if isinstance(value, nn.Module):
        return digest(value.state_dict())
    if isinstance(value, fc.SyntheticSet):
        return digest([[part.codes, part.targets] for part in value.parts])
    if isinstance(value, fc.Data):
        return digest([value.images, value.labels, value.spec.mean])
    if isinstance(value, Mapping):
        return f"{[(key, digest(item)) for key, item in value.items()]}"
    if isinstance(value, list | tuple):
        return f"{[digest(item) for item in value]}"
    return repr(value)


@cache
def data() -> fc.Data:
    train, _ = fc.load_data("digits")
    return train.subset(torch.cat([(train.labels == c).nonzero().squeeze(1)[: 42 if c == 3 else 12] for c in range(5)]))


@cache
def made() -> fc.SyntheticSet:
    synthetic = fc.condense(data(), 2, "dm", network=SMALL, steps=1)
    return synthetic.with_evaluation(fc.evaluate(synthetic, data(), network=SMALL, recipe=FIT, seeds=[0]).to_dict())


def short(name: str) -> Any:
    """Return an objective with a recipe whose experts, if it has any, take little."""
    objective: Any = fc.OBJECTIVES[name]
    if name not in ("mtt", "mtt-recompute", "tesla"):
        return objective
    source = partial(Trajectories, experts=1, latest=1, span=1, interval=1, batch=8)
    objective = replace(objective, window=2)
    return partial(fc.condense, objective=objective, recipe=replace(objective.recipe, source=source))


def built(name: str, _: Path) -> Any:
    return networks.build(name, (3, 32, 32), 5, 9)


def condensed(
    name: str, _: Path, *, start: str | None = None, parametrization: str = "pixels", ipc: int | str = 1
) -> Any:
    objective = short(name)
    call = objective if isinstance(objective, partial) else partial(fc.condense, objective=objective)
    return call(data(), ipc, parametrization=parametrization, network=SMALL, steps=2, start=start)


class Own(nn.Module):
    """A network of a user's own, with what follows the defaults of the process, and with dropout."""

    def __init__(self, shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Dropout(0.5))
        self.head = nn.Linear(16, classes)
        self.scale = nn.Parameter(torch.tensor([1.0]) * torch.full((16,), 0.5))

    def forward(self, images: Tensor) -> Tensor:
        places = torch.arange(16, device=images.device) / 16  # whole numbers become what the default says
        noise = torch.randn_like(images) + torch.rand(1, device=images.device)
        found: Tensor = self.head(self.body(images + 0.1 * noise) * self.scale + places)
        return found


class Items(torch.utils.data.Dataset[Any]):
    classes = ("a", "b")

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.full((1, 8, 8), index / 20), index % 2


def listed(numbers: Any) -> Any:
    """Return a list, which the functions take in a tensor's place."""
    return list(numbers)


def steps_of_a_loop() -> Any:
    loop = condensing.prepare(data(), 1, "dm", "pixels", network=SMALL, steps=3)
    plan = condensing.estimate(loop)
    loss = loop.step()
    return plan.nbytes, plan.memory, loss, loop.codes, condensing.run(loop)


def sums_of_sites() -> Any:
    objective: Any = fc.OBJECTIVES["dm"]
    spec, make = data().spec, partial(networks.build, SMALL, data().spec.shape, 5)
    pool = partial(Pool, make, (), 5, size=1, seed=3)
    pieces = [condensing.sums(objective, pool().entry(0), data().subset(listed(range(k, 78, 2)))) for k in (0, 1)]
    holder = condensing.Summed(spec, objective, 3, [{0: piece} for piece in pieces])
    return condensing.add_up(pieces), fc.condense(holder, 1, objective, network=SMALL, steps=1, source=pool())


def memory(of: Any) -> Any:
    kept = Memory(20, of, real_fraction=0.5, minimum=2)
    kept.add(data())
    kept.resize(10)
    again = Memory(10, of, real_fraction=0.5, minimum=2)
    again.from_bytes(kept.to_bytes())
    return kept.synthetic, again.synthetic


def through_files(folder: Path) -> Any:
    path = made().save(folder / "set.safetensors", overwrite=True)
    fc.export(made(), folder / "set.npz", overwrite=True)
    return (
        fc.load_data(f"npz:{folder}/set.npz"),
        fc.SyntheticSet.load(path),
        fc.SyntheticSet.from_bytes(made().to_bytes()),
    )


def imported(folder: Path) -> Any:
    images, targets = made().decode()
    for name, tensor in (("images", images), ("labels", targets.argmax(1))):
        torch.save(tensor, folder / f"{name}.pt")
    return fc.import_tensors(folder / "images.pt", folder / "labels.pt", data=data().spec)


def saved_network(folder: Path, name: str, network: Any = None) -> Any:
    spec = data().spec
    card = NetworkCard(name, tuple(spec.classes[:5]), spec.shape, spec.mean, spec.std)
    save_network(folder, networks.build(network or name, spec.shape, 5, 4), card, overwrite=True)
    loaded = fc.load_network(folder, network=network)
    return loaded, loaded.probabilities(data().images), loaded.predict(data().images)


def trained(network: Any) -> Any:
    module = training.train_on(made(), data(), network=network, recipe=FIT)
    training.fit_on(module, data(), FIT, operations=("color", "flip"))
    fit(module, *data().batch(), FIT, weights=made().weights()[:1].expand(len(data())))
    return module, training.accuracy(module, data())


def evaluated(network: Any) -> Any:
    found = fc.evaluate(made(), data(), network=network, recipe=FIT, seeds=[0], weighted=True)
    return found.accuracies, found.per_class


def near() -> Any:
    make = partial(networks.build, SMALL, data().spec.shape, 5)
    return Near(make, (), 5, size=1, seed=3, weights=make(0).state_dict()).entry(0).network


def cell() -> Any:
    made_by = SetRecipe("digits", "random", 1)
    outcome, blob = compute(Cell(made_by, EvaluationPlan((SMALL,), networks=1, fit=FIT)), None)
    return outcome.get("error"), outcome.get("measured"), outcome.get("images"), blob is not None


def tensors_of_a_set() -> Any:
    one = fc.SyntheticSet(made().parts)  # which has decoded nothing yet
    return one.pixels(), one.decode(), one.weights(), one.counts(), one.restrict(made().classes[:2])


ENTRY_POINTS: dict[str, Callable[[Path], Any]] = {
    "load_data": lambda _: fc.load_data("digits"),
    "load_sites": lambda _: fc.load_sites(["digits", "other=digits"])[0],
    "load_data of a torch data set": lambda _: fc.load_data(Items()),
    "from_dataset": lambda _: from_dataset(Items()),
    "as_data": lambda _: fc.as_data(Items(), size=8),
    "Data": lambda _: (
        data().batch(listed([0, 2])),
        data().subset(listed([1, 2])),
        data().per_class(2, torch.Generator()),
    ),
    "partition": lambda _: [
        fc.partition(data(), 2, by, min_partition_size=1).indices for by in ("iid", "dirichlet", "shards")
    ],
    "partition of labels": lambda _: fc.partition(listed([0, 1, 0, 1]), 2, "iid").indices,
    "plan": lambda _: replace(fc.plan(data(), 1, network=SMALL, steps=2), seconds=0),
    "rate_of": lambda _: condensing.rate_of(data().spec, data().counts.tolist(), "3 kB"),
    "condense within a budget": partial(condensed, "dm", ipc="3 kB"),
    "select within a budget": lambda _: fc.select(data(), "3 kB", codec="jpeg-10"),
    "select": lambda _: [fc.select(data(), 1, name) for name in fc.SELECTIONS],
    "relabel": lambda _: fc.relabel(made(), data(), network=SMALL, recipe=FIT),
    "relabel by a network of one's own": lambda _: fc.relabel(made(), data(), network=Own, recipe=FIT),
    "train": lambda _: fc.train(made(), network=SMALL, recipe=FIT).state_dict(),
    "score": lambda _: fc.score(fc.train(made(), network=SMALL, recipe=FIT), data()),
    "evaluate": lambda _: evaluated(SMALL),
    "evaluate a network of one's own": lambda _: evaluated(Own),
    "evaluate_as_recorded": lambda _: training.evaluate_as_recorded(made(), data()).accuracies,
    "train_on, fit_on, fit, accuracy": lambda _: trained(SMALL),
    "train_on a network of one's own": lambda _: trained(Own),
    "prepare, estimate, step, run": lambda _: steps_of_a_loop(),
    "sums, add_up, Summed": lambda _: sums_of_sites(),
    "images_per_class": lambda _: condensing.images_per_class(data(), 3).images,
    "SyntheticSet": lambda _: tensors_of_a_set(),
    "SyntheticSet in a file, export": through_files,
    "import_tensors": imported,
    "load_set": lambda _: fc.load_set("mnist", 1),
    "ready_sets": lambda _: fc.ready_sets(),
    "show_set": lambda folder: show_set(made(), folder / "set.png").read_bytes(),
    "load_network": lambda folder: saved_network(folder, SMALL),
    "load_network of one's own": lambda folder: saved_network(folder, "own", Own),
    "Memory that condenses": lambda _: memory(Condenser("dm", "pixels", network=SMALL, steps=1)),
    "Memory that selects": lambda _: memory(Selector("herding")),
    "Near": lambda _: near(),
    "a cell of a sweep": lambda _: cell(),
    "condense a network of one's own": lambda _: fc.condense(data(), 1, "dm", network=Own, steps=2),
    **{f"condense, {name}": partial(condensed, name) for name in fc.OBJECTIVES},
    **{f"condense from {name}": partial(condensed, "dm", start=name) for name in fc.STARTS},
    **{
        f"condense {name}": partial(condensed, "dm-ridge", parametrization=name, ipc=3)
        for name in ("multi-formation", "bases", "hallucinators")
    },
    **{f"build {name}": partial(built, name) for name in ("convnet2-w16-batch", "lenet", "vit-small")},
}
VALUES = {"Checkpoint", "DataSet", "Evaluation", "FedcondenseError", "Fit", "Limits", "Partition", "Plan", "Progress"}
VALUES |= {"Logger", "Protocol", "Spec", "Within", "logged"}  # hold what they are given, are raised, or compute nothing
VALUES |= {"export_network"}  # tests/networks/test_exported.py has it, with an extra


@cache
def expected(name: str, folder: Path) -> str:
    return digest(ENTRY_POINTS[name](folder))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files")


def test_every_public_name_that_can_be_called_is_in_the_table() -> None:
    told = " ".join(ENTRY_POINTS).replace(",", " ").split()
    assert {name for name in fc.__all__ if callable(getattr(fc, name))} - VALUES - {"export"} <= {*told}
    assert "export" in told


@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_the_callers_state_changes_no_bit_and_is_left_as_it_was(name: str, folder: Path) -> None:
    data(), made()
    wanted = expected(name, folder)
    for state, contexts in STATES.items():
        with ExitStack() as stack:
            for context in contexts:
                stack.enter_context(context())
            before = ambient()
            found = ENTRY_POINTS[name](folder)
            assert ambient() == before, state
        assert digest(found) == wanted, state
