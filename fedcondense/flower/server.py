"""The server app: settings from the run's config, one round of `OneShot`, the result in a folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import partial
from importlib.metadata import version
from logging import INFO
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import Result
from flwr.supercore import log
from safetensors.torch import save
from torch import nn

from fedcondense.data.images import Data
from fedcondense.errors import OutputError, SettingError, unknown
from fedcondense.files import write_file
from fedcondense.flower.message import Expected
from fedcondense.flower.strategy import OneShot, train_network
from fedcondense.objectives import DEFAULT_OBJECTIVE
from fedcondense.sets.synthetic import SyntheticSet
from fedcondense.training.evaluation import Evaluation, evaluate, train_on

__all__ = ["ServerSettings", "app", "make_server_app"]


@dataclass(frozen=True)
class ServerSettings:
    """What a run may set, by these names in kebab-case.

    Args:
        ipc: Images per class and client.
        objective: A name in the nodes' `OBJECTIVES`.
        parametrization: A name in the nodes' `PARAMETRIZATIONS`.
        network: A name in `NETWORKS`, on nodes and server; empty: the one for the images' size.
        steps: Of condensing; 0 as the objective's recipe says.
        start: What synthetic images start from; nodes refuse ``"real"`` unless their own config allows it.
        seed: All that is random follows from it.
        min_available_nodes: How many nodes must connect before any is asked.
        fraction_train: Share of them that is asked.
        min_replies: How many usable sets the round needs.
        wait: Seconds to wait for the nodes to connect.
        timeout: Seconds that nodes have for their answer.
        grace: Seconds to wait for the others after `min_replies` sets; negative: until the timeout.
        data: The data set whose test split the server evaluates on; empty: it has none.
        data_root: Where that lies; empty: the variable FEDCONDENSE_DATA.
        output: An absolute folder for the result; empty: ``~/fedcondense-runs/RUN-ID``.
        partition_by: For nodes that divide a named data set among them; see `load_partition`.
        alpha: As `partition_by`.
        partition_seed: As `partition_by`.
        min_partition_size: As `partition_by`.
    """

    ipc: int = 10
    objective: str = DEFAULT_OBJECTIVE
    parametrization: str = "pixels"
    network: str = ""
    steps: int = 0
    start: str = "gaussian"
    seed: int = 0
    min_available_nodes: int = 2
    fraction_train: float = 1.0
    min_replies: int = 1
    wait: float = 60.0
    timeout: float = 3600.0
    grace: float = -1.0
    data: str = ""
    data_root: str = ""
    output: str = ""
    partition_by: str = "dirichlet"
    alpha: float = 0.5
    partition_seed: int = 42
    min_partition_size: int = 10

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> ServerSettings:
        """Cast and check a run's config: Flower does not, and turns ``timeout=150`` into an int.

        Raises:
            SettingError: It says all that is wrong.
        """
        known = {item.name.replace("_", "-"): type(item.default) for item in fields(cls)}
        values: dict[str, Any] = {}
        wrong = []
        for key, value in config.items():
            kind = known.get(key)
            if kind is None:
                wrong.append(unknown("setting", key, known))
            elif kind is float and isinstance(value, int) and not isinstance(value, bool):
                values[key.replace("-", "_")] = float(value)
            elif type(value) is not kind:
                wrong.append(f"{key} = {value!r}; needed: {kind.__name__}")
            else:
                values[key.replace("-", "_")] = value
        settings = cls(**values)
        for name in ("ipc", "min_available_nodes", "min_replies"):
            if getattr(settings, name) < 1:
                wrong.append(f"{name.replace('_', '-')} = {getattr(settings, name)}; needed: 1 or more")
        if not 0 < settings.fraction_train <= 1:
            wrong.append(f"fraction-train = {settings.fraction_train:g}; needed: above 0, up to 1")
        if settings.timeout <= 0 or settings.wait < 0:
            wrong.append(f"timeout = {settings.timeout:g}, wait = {settings.wait:g}; needed: seconds")
        if settings.output and not Path(settings.output).is_absolute():
            wrong.append(f"output = {settings.output!r}; needed: an absolute path, the SuperLink runs elsewhere")
        if wrong:
            raise SettingError("; ".join(wrong))
        return settings

    @property
    def asked(self) -> ConfigRecord:
        """What goes to the clients."""
        names = ("ipc", "objective", "parametrization", "steps", "seed", "network", "start")
        return ConfigRecord({name: getattr(self, name) for name in names})


def make_server_app(
    config: Mapping[str, Any] | None = None,
    *,
    test: Data | None = None,
    sink: Callable[[OneShot, Result], None] | None = None,
) -> ServerApp:
    """Return a ServerApp that runs one round of `OneShot` and leaves the result in a folder.

    The folder gets ``result.json``, ``joined.safetensors``, ``weights.safetensors`` and each client's set in
    ``clients/``, as that of `federate`, so that ``fedcondense report`` and ``show`` read it. ``flwr run`` exits with 0
    even if the app failed: ``result.json`` then has an ``error``, and who was refused.

    Args:
        config: Settings by `ServerSettings`' names in kebab-case; the run's own config goes before them.
        test: What the server evaluates on, instead of the data set that the settings name.
        sink: Called with the strategy and Flower's Result at the end, for callers in the same process.
    """
    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        asked = {**(config or {}), **context.run_config}
        output = _output(asked, context.run_id)
        if (output / "result.json").exists():
            raise OutputError(f"{output} holds a result; give another output")
        strategy: OneShot | None = None
        try:
            settings = ServerSettings.read(asked)
            data = test or _test(settings)
            evaluations: list[Evaluation] = []
            strategy = _strategy(settings, data)
            result = strategy.start(
                grid,
                timeout=settings.timeout,
                train_config=settings.asked,
                evaluate_fn=None if data is None else partial(_evaluated, strategy, settings, data, evaluations),
            )
        except Exception as failed:
            record = {
                "error": str(failed) or type(failed).__name__,
                "rows": {},
                "settings": asked,
                "refused": _refused(strategy),
            }
            write_file(output / "result.json", json.dumps(record, indent=1, default=str).encode(), overwrite=False)
            raise
        _write(output, settings, strategy, result, evaluations)
        if sink is not None:
            sink(strategy, result)

    return server


def _test(settings: ServerSettings) -> Data | None:
    if not settings.data:
        return None
    from fedcondense.data.loading import load_data

    return load_data(settings.data, settings.data_root or None).test


def _output(asked: Mapping[str, Any], run: int) -> Path:
    """Return the folder that is asked for; where that is none, one that failures can be written to all the same."""
    named = asked.get("output")
    if isinstance(named, str) and Path(named).is_absolute():
        return Path(named)
    return Path.home() / "fedcondense-runs" / str(run)


def _strategy(settings: ServerSettings, test: Data | None) -> OneShot:
    def trained(joined: SyntheticSet) -> nn.Module:
        if test is None:
            return train_network(joined, settings.network, seed=settings.seed)
        return train_on(joined, test, network=settings.network or None, seed=settings.seed)

    return OneShot(
        trained,
        Expected() if test is None else Expected.of(test.spec),
        fraction_train=settings.fraction_train,
        min_train_nodes=min(settings.min_available_nodes, 2),
        min_available_nodes=settings.min_available_nodes,
        min_replies=settings.min_replies,
        wait=settings.wait,
        grace=None if settings.grace < 0 else settings.grace,
        seed=settings.seed,
    )


def _evaluated(
    strategy: OneShot,
    settings: ServerSettings,
    test: Data,
    evaluations: list[Evaluation],
    server_round: int,
    arrays: ArrayRecord,
) -> MetricRecord:
    """Evaluate the joined set and keep what was found."""
    assert strategy.joined is not None
    evaluations.append(evaluate(strategy.joined, test, network=settings.network or None))
    return MetricRecord({"accuracy": evaluations[0].accuracy, "accuracy-std": evaluations[0].accuracy_std})


def _write(
    output: Path, settings: ServerSettings, strategy: OneShot, result: Result, evaluations: list[Evaluation]
) -> None:
    """Write the sets, the weights and what was measured."""
    joined = strategy.joined
    assert joined is not None
    row: dict[str, Any] = {
        "bytes_up": sum(reply.nbytes for reply in strategy.accepted) / len(strategy.accepted),
        "clients": len(strategy.accepted),
        "images": len(joined),
        "client_seconds": sum(reply.seconds for reply in strategy.accepted) / len(strategy.accepted),
    }
    for evaluation in evaluations:
        joined = joined.with_evaluation(evaluation.to_dict())
        row |= {"accuracy": evaluation.accuracy, "accuracy_std": evaluation.accuracy_std}
        row["per_class"] = [None if value != value else round(value, 3) for value in evaluation.per_class]
    for reply in strategy.accepted:
        reply.synthetic.save(output / "clients" / f"{reply.partition:02d}.safetensors", overwrite=True)
    joined.save(output / "joined.safetensors", overwrite=True)
    weights = {key: value.contiguous() for key, value in result.arrays.to_torch_state_dict().items()}
    write_file(output / "weights.safetensors", save(weights), overwrite=True)
    record = {
        "rows": {"one-shot": row},
        "settings": _plain(settings) | {"data": settings.data or joined.name},
        "refused": _refused(strategy),
        "classes": list(joined.classes),
        "coverage": dict(zip(joined.classes, joined.counts().tolist(), strict=True)),
        "versions": {name: version(name) for name in ("torch", "flwr", "numpy")},
    }
    write_file(output / "result.json", json.dumps(record, indent=1, allow_nan=False).encode(), overwrite=True)
    log(INFO, "wrote %s", output)


def _refused(strategy: OneShot | None) -> list[dict[str, Any]]:
    """Return who was left out; a node id where the reply did not say its partition."""
    if strategy is None:
        return []
    return [
        {"client": f"node {r.node}" if r.partition is None else r.partition, "node": str(r.node), "reason": r.reason}
        for r in strategy.refused
    ]


def _plain(settings: ServerSettings) -> dict[str, Any]:
    return {item.name: getattr(settings, item.name) for item in fields(settings)}


app = make_server_app()
