"""What a node of the installed app holds: data of its own, or its part of a public set; images are decoded once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from flwr.app import Context

from fedcondense.data import Data, load_train
from fedcondense.data.catalogue import CATALOGUE
from fedcondense.data.layouts import SIDES
from fedcondense.data.partitions import FROM_FILE, partition
from fedcondense.errors import SettingError, unknown
from fedcondense.flower.kept import Kept, keep_data, kept_data
from fedcondense.flower.node_config import KEPT_BYTES, Desk, NodeConfig, place_of
from fedcondense.flower.settings import keys_of, number, read

__all__ = ["load_partition"]


def load_partition(context: Context) -> Data:
    """Return the data of a node that was started from the command line.

    The node's config names them: ``data`` (as `load_data`, ``folder:...`` for a site's own), ``data-root``, and where
    they are to be divided ``num-partitions``, ``partition-id`` and the rule. A node that names none divides a public
    data set as the run says; a run can name data sets of the toolkit only, and never says where they are. The run's
    ``size`` says what images are brought to, unless the node's config does.

    Raises:
        SettingError: A run that would divide a node's own data: chosen divisions can single records out. Or one that
            asks for another size of images than the node's config.
    """
    config = _sized(place_of(context, Desk(is_stock=True)).config, context.run_config)
    run = {key: value for key, value in context.run_config.items() if key in _RUN}
    if config.data:
        chosen = sorted(key for key in run if key != "data" and run[key] != _RUN[key])
        if chosen:
            raise SettingError(
                f"the run's config sets {', '.join(chosen)}; this node's config names data of its own, which no run "
                "divides: leave the keys out of the run, or set them in the node's config"
            )
        if not config.num_partitions:
            return _train(config)
        return _divided(config)[config.partition_id]
    public = read(_Public, run, "the run's config")
    name = public.data or "digits"
    if name not in CATALOGUE:
        known = unknown("data set", name[:100], CATALOGUE)
        raise SettingError(f"{known}; a node's own data are named in the node's config: data = ...")
    whole = replace(_PUBLIC, data=name, **{key: getattr(config, key) for key in _OF_NODE})
    if public.partition_by.startswith(FROM_FILE):
        raise SettingError(
            "the run's config names a file of this node; only the node's own config may: partition-by = ..."
        )
    if not config.num_partitions:
        return _train(whole)
    return _divided(public.onto(whole))[config.partition_id]


@dataclass(frozen=True)
class _Public:
    """How a run divides a public data set; `keep_apart` is `place_of`'s to heed."""

    data: str = "digits"
    partition_by: str = "dirichlet"
    alpha: float = number(0.5, 0)
    partition_seed: int = number(42, 0)
    min_partition_size: int = number(10, 0)
    keep_apart: float = number(0.0, 0, 1)

    def onto(self, config: NodeConfig) -> NodeConfig:
        """Return a node's config with this division."""
        return replace(config, **{k: v for k, v in vars(self).items() if k != "data"})


@dataclass(frozen=True)
class _Asked:
    """What a run says of the images, whoever's they are."""

    size: int = number(0, 0, SIDES[1])


_PUBLIC = NodeConfig()
_OF_NODE = ("data_root", "num_partitions", "size")  # what a node says itself where it holds its part of a public set

_READ = ["all images are records, broken files have names", 3]
"""How files become records; kept data of another way are decoded anew."""

_RUN = {key: item.default for key, item in keys_of(_Public).items()}


def _sized(config: NodeConfig, run: Mapping[str, Any]) -> NodeConfig:
    """Return a node's config with the size of images that the run asks for, where it says none itself."""
    asked = read(_Asked, {"size": run["size"]} if "size" in run else {}, "the run's config").size
    if config.size and asked and config.size != asked:
        raise SettingError(
            f"the run asks for images of {asked} pixels a side (size); this node's config says {config.size}: agree on "
            "one, or leave it out of one of the two"
        )
    return replace(config, size=config.size or asked)


def _train(config: NodeConfig) -> Data:
    """Return all that is there to learn from, which nodes of one process share that divide the same."""
    return _loaded(config.data, config.data_root, config.size, config.skip_broken, config.cache)


@lru_cache(maxsize=1)
def _loaded(name: str, root: str, size: int, skips: bool, cache: str) -> Data:
    """Load data; of a folder of images what a process before this one has decoded."""

    def load() -> Data:
        return load_train(name, root or None, size or None, skips)

    folder = Path(name.removeprefix("folder:"))
    if not cache or not name.startswith("folder:") or not folder.is_dir():
        return load()
    kept, key = Kept(Path(cache), KEPT_BYTES), _key(folder, [size, skips])
    data = kept_data(kept, key)
    if data is None:
        data = load()
        keep_data(kept, key, data)
    return data


def _key(folder: Path, how: list[Any]) -> str:
    """Name decoded data by the files that they follow from, their paths, sizes and times, and by how they are read."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    told = [[str(path.relative_to(folder)), *((s := path.stat()).st_size, s.st_mtime_ns)] for path in files]
    told.append([*_READ, *how])
    return f"data-{hashlib.sha256(json.dumps(told).encode()).hexdigest()[:32]}"


@lru_cache(maxsize=1)
def _divided(config: NodeConfig) -> list[Data]:
    train = _train(config)
    held = partition(
        train,
        config.num_partitions,
        config.partition_by,
        alpha=config.alpha,
        seed=config.partition_seed,
        min_partition_size=config.min_partition_size,
    )
    return [train.subset(index) for index in held]
