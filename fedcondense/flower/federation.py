"""A whole federation in one call: one-shot sets, Flower's FedAvg and the controls on one network and partition."""

from __future__ import annotations

import json
import logging
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.exception import AggregationError
from safetensors.torch import save
from torch import nn

from fedcondense.condensing import Progress, precision_of, prepare
from fedcondense.data.images import Data
from fedcondense.data.partition import Partition
from fedcondense.errors import OutputError, ResumeError, SettingError, unknown
from fedcondense.files import write_file
from fedcondense.flower.baselines import StatisticsRow, feature_statistics, ridge, ridge_dims
from fedcondense.flower.client import LIMIT, ClientCaps, Request, make_client_app
from fedcondense.flower.fedavg import FedAvgRow, LocalTraining, fedavg, fingerprint
from fedcondense.flower.federation_result import ROWS, FederationProgress, FederationResult, rounds_of
from fedcondense.flower.inprocess import log_from, run_in_process
from fedcondense.flower.message import Expected, Reply
from fedcondense.flower.strategy import OneShot
from fedcondense.networks import NETWORKS, default_network, parts
from fedcondense.objectives import DEFAULT_OBJECTIVE
from fedcondense.sets.format import Limits
from fedcondense.sets.synthetic import SyntheticSet
from fedcondense.training.evaluation import Evaluation, evaluate
from fedcondense.training.fit import Fit

__all__ = ["FEDAVG_GRID", "ROWS", "FederationProgress", "FederationResult", "federate"]

_WRITTEN = (
    "report.html",
    "joined.safetensors",
    "weights.safetensors",
    "clients/[0-9]*.safetensors",
    "work/*.safetensors",
    "work/*.checkpoint",
    "result.json",
)  # into a run's folder, by us and by the command line; last what says that there is a run
FEDAVG_GRID = (LocalTraining(0.02), LocalTraining(0.05), LocalTraining(0.1), LocalTraining(0.05, epochs=5))
"""What FedAvg is tuned over; each row takes the best of the grid for its number of rounds, on the test data."""

_SELECTIONS = {
    "random-real": "random",
    "half-resolution-real": "half-resolution",
    "herding": "herding",
    "k-center": "k-center",
    "k-means": "k-means",
}
_MAX_CAPS = ClientCaps(
    max_ipc=2**31, max_steps=2**31, max_seconds=math.inf, max_bytes=2**40, allow_real=True
)  # all nodes are this process, and whoever calls it
_LIMITS = Limits(nbytes=1 << 40, decoded=1 << 40, decoded_bytes=1 << 50, header=1 << 30)


def federate(
    train: Data,
    test: Data,
    partition: Partition,
    *,
    ipc: int = 10,
    objective: str = DEFAULT_OBJECTIVE,
    parametrization: str = "pixels",
    network: str | None = None,
    steps: int | None = None,
    start: str = "gaussian",
    seed: int = 0,
    rows: Sequence[str] = ROWS,
    fedavg_grid: Sequence[LocalTraining] = FEDAVG_GRID,
    recipe: Fit = Fit(),
    evaluation_seeds: Sequence[int] = (0, 1, 2),
    output: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Callable[[FederationProgress], None] | None = None,
) -> FederationResult:
    """Run a federation in one process, over Flower's real serialisation, and the rows it has to be compared with.

    Every client condenses with a seed of its own, to the bytes of at most half of the records it has of a class; the
    server trains on the union. The bytes are those of Flower's messages.

    Args:
        train: All clients' data, on the device that they compute on.
        test: What the server tests on; nothing but FedAvg's settings is selected on it.
        partition: Who holds what.
        ipc: Images per class and client.
        objective: A name in `OBJECTIVES`.
        parametrization: A name in `PARAMETRIZATIONS`.
        network: A name in `NETWORKS`, for condensing, evaluation and FedAvg; by default the one for the images' size.
        steps: Of condensing; None as the objective's recipe says.
        start: What synthetic images start from, a name in `STARTS`; ``"real"`` publishes records.
        seed: All that is random follows from it.
        rows: Which rows to run, as in `ROWS`.
        fedavg_grid: What FedAvg is tuned over.
        recipe: How networks are trained on a set.
        evaluation_seeds: One network is trained and tested for each.
        output: A folder for ``result.json``, ``joined.safetensors``, ``weights.safetensors`` and each client's set in
            ``clients/``; None keeps nothing.
        resume: Go on with what `output` holds; finished rows, sets and rounds are not run again, and all finished rows
            are in the result.
        overwrite: Delete the run that `output` holds, once the client with the most data could start on what is asked.
        progress: Told where it is, a few times a second at most.

    Raises:
        SettingError: A name is unknown, or a number or combination cannot work.
        OutputError: `output` holds another result, and neither `resume` nor `overwrite` is true.
        ResumeError: `output` holds the result of other settings.
    """
    network = network or default_network(train.spec.shape)
    if len(parts(network)) > 1:
        raise SettingError(f"network {network!r}; the clients and the server of a federation share one: name one")
    if not rows:
        raise SettingError(f"no rows; name some of {', '.join(ROWS)}")
    for name in rows:
        if name not in {*ROWS, *_SELECTIONS} and not rounds_of(name):
            raise SettingError(unknown("row", name, {*ROWS, *_SELECTIONS}))
    if steps is not None and steps < 1:
        raise SettingError(f"{steps} steps; give 1 or more, or leave them to the objective's recipe")
    request: dict[str, Any] = {
        "ipc": ipc,
        "objective": objective,
        "parametrization": parametrization,
        "steps": steps or 0,
        "seed": seed,
        "network": network,
        "start": start,
    }
    asked = Request.read(ConfigRecord(request), train)
    most = train.subset(max(partition, key=len))
    prepare(most, ipc, objective, parametrization, network=network, steps=asked.steps, start=start, limit=LIMIT)
    if output is not None and overwrite and not resume and (Path(output) / "result.json").exists():
        for path in (path for pattern in _WRITTEN for path in Path(output).glob(pattern) if path.is_file()):
            path.unlink()
    run = _Run(
        train,
        test,
        partition,
        network,
        seed,
        tuple(evaluation_seeds),
        recipe,
        request=request,
        grid=tuple(fedavg_grid),
        rounds=tuple(sorted({rounds_of(name) for name in rows} - {0})),
        output=None if output is None else Path(output),
        resume=resume,
        progress=progress or (lambda _: None),
    )
    return run.all(rows)


@dataclass
class _Run:
    """One call of `federate`: its settings, and what it has so far."""

    train: Data
    test: Data
    partition: Partition
    network: str
    seed: int
    seeds: tuple[int, ...]
    recipe: Fit
    request: dict[str, Any]
    grid: tuple[LocalTraining, ...]
    rounds: tuple[int, ...]
    output: Path | None
    resume: bool
    progress: Callable[[FederationProgress], None]
    result: FederationResult = field(default_factory=FederationResult)
    fedavg_rows: dict[int, dict[int, FedAvgRow]] = field(default_factory=dict)  # by place in the grid, then by rounds

    def all(self, rows: Sequence[str]) -> FederationResult:
        """Run what is not done, row by row, and write the result after each."""
        self.result.settings = {
            "data": self.train.spec.name,
            "fingerprint": self.train.fingerprint,
            "test": self.test.fingerprint,
            "indices": fingerprint(self.partition),
            "precision": precision_of(self.train.device.type),
            "clients": len(self.partition),
            "seed": self.seed,
            **self.request,
            "recipe": asdict(self.recipe),
            "evaluation_seeds": list(self.seeds),
            "fedavg_grid": [asdict(training) for training in self.grid],
        }
        about = self.partition.to_dict()
        self.result.partition = {**about, "alpha": about["settings"].get("alpha")}
        self.result.versions = {name: version(name) for name in ("torch", "flwr", "numpy")}
        self._read_output()
        for name in rows:
            if name not in self.result.rows:
                self.progress(FederationProgress(name, "starting", 0.0))
                began = time.perf_counter()
                row = self._row(name)
                self.result.rows[name] = {"seconds": round(time.perf_counter() - began, 2), **row}
                self.progress(FederationProgress(name, "done", 1.0))
                self._write_result()
        self.result.rows = {name: self.result.rows[name] for name in dict.fromkeys([*rows, *self.result.rows])}
        self._write_result()
        return self.result

    def _row(self, name: str) -> dict[str, Any]:
        if name == "one-shot":
            return self._one_shot()
        if name in _SELECTIONS:
            return self._sets(name, {**self.request, "method": _SELECTIONS[name], "start": "real"})[0]
        if rounds := rounds_of(name):
            return self._fedavg(rounds)
        return self._statistics(name)

    def _one_shot(self) -> dict[str, Any]:
        """Run our own row and keep the sets, the trained weights and who was refused."""
        row, strategy, evaluation = self._sets("one-shot", self.request)
        assert strategy.joined is not None
        joined = strategy.joined.with_evaluation(evaluation.to_dict())
        self.result.joined = joined
        self.result.coverage = dict(zip(joined.classes, joined.counts().tolist(), strict=True))
        if self.output is not None:
            paths = [self._client_path(reply) for reply in strategy.accepted]
            for stale in set((self.output / "clients").glob("[0-9]*.safetensors")) - set(paths):
                stale.unlink()  # of a run that this folder held before
            for path, reply in zip(paths, strategy.accepted, strict=True):
                self.result.paths.append(reply.synthetic.save(path, overwrite=True))
            self.result.paths.append(joined.save(self.output / "joined.safetensors", overwrite=True))
        return row

    def _client_path(self, reply: Reply) -> Path:
        assert self.output is not None
        digits = len(str(max(len(self.partition) - 1, 10)))
        return self.output / "clients" / f"{reply.partition:0{digits}d}.safetensors"

    def _sets(self, name: str, request: Mapping[str, Any]) -> tuple[dict[str, Any], OneShot, Evaluation]:
        """Run one round of `OneShot` and evaluate the joined set."""
        everyone = len(self.partition)
        found: list[Evaluation] = []

        def step(partition: int, at: Progress) -> None:
            place = f"client {partition + 1} of {everyone}"
            share = (partition + at.step / max(at.steps, 1)) / everyone
            detail = f"{place}, step {at.step} of {at.steps}, loss {at.loss:.3g}"
            self.progress(FederationProgress(name, detail, 0.9 * share))

        def trained(joined: SyntheticSet) -> nn.Module:
            """Evaluate the set, and hand out the first of the networks that this trains: none is trained twice."""
            networks: list[nn.Module] = []

            def make(shape: tuple[int, int, int], classes: int) -> nn.Module:
                networks.append(NETWORKS[self.network](shape, classes))
                return networks[-1]

            def trains(step: int, steps: int) -> None:
                detail = f"training on {len(joined)} images, step {step} of {steps}"
                self.progress(FederationProgress(name, detail, 0.9 + 0.1 * step / steps))

            make.__name__ = self.network  # by which the set's record calls it
            evaluation = evaluate(
                joined, self.test, network=make, recipe=self.recipe, seeds=self.seeds, progress=trains
            )
            found.append(evaluation)
            return networks[0]

        def tested(server_round: int, arrays: ArrayRecord) -> MetricRecord:
            return MetricRecord({"accuracy": found[0].accuracy})

        cache = None if self.output is None else self.output / "work"
        client = make_client_app(self._load, caps=_MAX_CAPS, cache=cache, progress=step)
        strategy = OneShot(
            trained,
            replace(Expected.of(self.train.spec), limits=_LIMITS),
            min_train_nodes=everyone,
            min_available_nodes=everyone,
        )
        server = ServerApp()

        @server.main()
        def main(grid: Grid, context: Context) -> None:
            result = strategy.start(grid, train_config=ConfigRecord(dict(request)), evaluate_fn=tested)
            if self.output is not None and name == "one-shot":
                weights = {key: value.contiguous() for key, value in result.arrays.to_torch_state_dict().items()}
                self.result.paths.append(write_file(self.output / "weights.safetensors", save(weights), overwrite=True))

        with log_from(logging.WARNING):
            grid = run_in_process(server, client, everyone)
        self.result.refused += [
            {"client": refusal.node - 100, "reason": refusal.reason, "row": name} for refusal in strategy.refused
        ]
        up, down = (sum(t[k] for t in grid.traffic.values()) / everyone for k in (1, 0))
        evaluation = found[0]
        row = {
            "accuracy": evaluation.accuracy,
            "accuracy_std": evaluation.accuracy_std,
            "per_class": _plain(evaluation.per_class),
            "bytes_up": up,
            "bytes_down": down,
            "clients": len(strategy.accepted),
            "images": len(strategy.joined or ()),
            "short": self._short(),
            "set_bytes": sum(reply.nbytes for reply in strategy.accepted) / max(1, len(strategy.accepted)),
            "client_seconds": statistics.fmean(reply.seconds for reply in strategy.accepted),
        }
        return row, strategy, evaluation

    def _short(self) -> int:
        """Return how many pairs of a client and a class had too few records for `ipc` images."""
        counts = self.partition.counts
        return int(((counts > 0) & ((counts * LIMIT).floor().clamp(min=1) < self.request["ipc"])).sum())

    def _load(self, context: Context) -> Data:
        return self.train.subset(self.partition[int(context.node_config["partition-id"])])

    def _fedavg(self, rounds: int) -> dict[str, Any]:
        """Take the best of the grid after so many rounds; all rows of FedAvg share the runs, by their checkpoints."""
        best: dict[str, Any] = {"accuracy": -1.0}
        last, diverged = max(self.rounds), None
        for k, training in enumerate(self.grid):

            def done(number: int, total: int, k: int = k, training: LocalTraining = training) -> None:
                where = f"lr {training.lr:g}, {training.epochs} local epochs, round {number} of {total}"
                self.progress(FederationProgress(f"fedavg-{last}", where, (k + number / total) / len(self.grid)))

            if k not in self.fedavg_rows:
                try:
                    self.fedavg_rows[k] = fedavg(
                        self.train,
                        self.partition,
                        self.test,
                        self.network,
                        rounds=last,
                        training=training,
                        seed=self.seed,
                        evaluate_at=self.rounds,
                        checkpoint=None if self.output is None else self.output / "work" / f"fedavg-{k}.safetensors",
                        resume=self.resume,
                        progress=done,
                    )
                except AggregationError as error:  # others of the grid may work
                    self.fedavg_rows[k], diverged = {}, error
            row = self.fedavg_rows[k].get(rounds)
            if row is not None and row.accuracy > best["accuracy"]:
                best = {
                    "accuracy": row.accuracy,
                    "accuracy_std": None,
                    "per_class": _plain(row.per_class),
                    "bytes_up": row.bytes_up,
                    "bytes_down": row.bytes_down,
                    "seconds": round(row.seconds, 2),
                    "lr": training.lr,
                    "local_epochs": training.epochs,
                    "failed": row.failed,
                }
        if diverged is not None and best["accuracy"] < 0:
            raise diverged
        return best

    def _statistics(self, name: str) -> dict[str, Any]:
        """Run a baseline of statistics with a random network for each evaluation seed."""
        found: list[StatisticsRow] = []
        dims = 0
        if name == "ridge-equal-bytes":
            dims = ridge_dims(self._set_bytes(), len(self.train.spec.classes))
        for k, seed in enumerate(self.seeds):
            self.progress(FederationProgress(name, f"network {k + 1} of {len(self.seeds)}", k / len(self.seeds)))
            if name == "feature-statistics":
                found.append(feature_statistics(self.train, self.partition, self.test, self.network, seed=seed))
            else:
                found.append(ridge(self.train, self.partition, self.test, self.network, seed=seed, dims=dims))
        accuracies = [row.accuracy for row in found]
        per_class = torch.tensor([row.per_class for row in found]).mean(0).tolist()
        return {
            "accuracy": statistics.fmean(accuracies),
            "accuracy_std": statistics.stdev(accuracies) if len(accuracies) > 1 else None,
            "per_class": _plain(per_class),
            "bytes_up": found[0].bytes_up,
            "bytes_down": found[0].bytes_down,
        }

    def _set_bytes(self) -> int:
        """Return the mean bytes of a client's set, as measured, or its pixels where that row was not run."""
        if "one-shot" in self.result.rows:
            return int(self.result.rows["one-shot"]["set_bytes"])
        images = (self.partition.counts / 2).ceil().clamp(max=self.request["ipc"]).sum() / len(self.partition)
        return int(images * math.prod(self.train.spec.shape))

    def _read_output(self) -> None:
        """Take what the folder holds of the same settings, or refuse it."""
        if self.output is None:
            return
        path = self.output / "result.json"
        if not path.exists():
            self._write_result()
            return
        if not self.resume:
            raise OutputError(f"{path} exists; choose another output folder, or resume (--resume)")
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
            given = {**self.result.settings, "partition": self.result.partition["hash"]}
            held = {**before["settings"], "partition": before["partition"]["hash"]}
            rows, refused, coverage = dict(before["rows"]), list(before["refused"]), dict(before["coverage"])
        except (ValueError, KeyError, TypeError) as error:
            raise ResumeError(f"{path} is damaged ({error}); delete it to start over") from None
        differs = sorted(key for key in {*given, *held} if given.get(key) != held.get(key))
        if differs:
            raise ResumeError(f"{path} is of another run: {', '.join(differs)} differ; use another output folder")
        self.result.rows, self.result.refused, self.result.coverage = rows, refused, coverage
        joined = self.output / "joined.safetensors"
        if "one-shot" in rows and joined.exists():
            self.result.joined = SyntheticSet.load(joined)
            sets = sorted((self.output / "clients").glob("*.safetensors"))
            self.result.paths = [*sets, joined, self.output / "weights.safetensors"]

    def _write_result(self) -> None:
        if self.output is not None:
            text = json.dumps(self.result.to_dict(), indent=1)
            path = write_file(self.output / "result.json", text.encode(), overwrite=True)
            if path not in self.result.paths:
                self.result.paths.append(path)


def _plain(values: Sequence[float]) -> list[float | None]:
    """Round to what is meaningful, with None for nan, which JSON lacks."""
    return [None if math.isnan(value) else round(value, 3) for value in values]
