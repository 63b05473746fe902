"""The folder of a run: one writer and one reader, for `federate`, ``flwr run`` and deployment.

``result.json`` says what was asked and measured, ``weights.safetensors`` is the network with its classes
(`load_network`), ``joined.safetensors`` the union, ``clients/SITE.safetensors`` each site's set,
``refused/SITE.safetensors`` what a screen left out of it, ``rounds`` what the strategy kept after a round and what had
come back in it (`round_files`), and ``arrived`` the replies of a round that is not done.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fedcondense.checksums import check, dump_json
from fedcondense.errors import FedcondenseError, OutputError, ResumeError
from fedcondense.files import write_file
from fedcondense.flower.arrivals import ENDING
from fedcondense.flower.contract import Site, State, Verdict
from fedcondense.flower.held import is_held
from fedcondense.flower.inbox import Refusal, is_absent
from fedcondense.flower.round_files import RoundFiles
from fedcondense.flower.sites import is_set_name
from fedcondense.flower.wire import own_version
from fedcondense.networks.saved import load_network
from fedcondense.sets.synthetic import SyntheticSet

__all__ = ["FORMAT", "RunFolder", "coverage", "judged", "plain", "records_by_site", "refusals"]

_PROBE = 1 << 16  # bytes: a disk that takes no more is full
FORMAT = 2
"""Of ``result.json``; a file without it is of 1, which lacks what rows say of themselves."""

_WRITTEN = (
    "report.html",
    "joined.safetensors",
    "weights.safetensors",
    "clients/[0-9]*.safetensors",  # of format 1; a run's own are named in its result
    "refused/*.safetensors",
    "rounds/[0-9]*.state",
    "rounds/[0-9]*.answers",
    f"arrived/*{ENDING}",
    "work/*.safetensors",
    "work/*.checkpoint",
    "work/*.kept",
    "work/.lock",
    "result.json",
)  # into a run's folder, by us and by the command line; last what says that there is a run


@dataclass(frozen=True)
class RunFolder:
    """A folder that holds one run.

    Args:
        path: It is made when something is written.
    """

    path: Path

    @property
    def result(self) -> Path:
        """The path of ``result.json``."""
        return self.path / "result.json"

    @property
    def arrived(self) -> Path:
        """The folder of the replies to what is being asked."""
        return self.path / "arrived"

    @property
    def rounds(self) -> RoundFiles:
        """The files of the rounds."""
        return RoundFiles(self.path / "rounds")

    def holds_run(self) -> bool:
        """Say whether a run has written here."""
        return self.result.exists()

    def clear(self) -> None:
        """Delete what the run wrote, and nothing else, if another can be written in its place."""
        self.check_writable()
        named = self._sets()
        for path in (*named, *(path for pattern in _WRITTEN for path in self.path.glob(pattern) if path.is_file())):
            path.unlink(missing_ok=True)

    def check_free(self) -> None:
        """Refuse a folder that holds a run, unless that failed before it left anything, or that cannot be written.

        Raises:
            OutputError: It does, or cannot.
        """
        if self.holds_run() and not self._is_empty():
            unfinished = ", or go on with it (resume = true)" if self.is_unfinished() else ""
            raise OutputError(f"{self.path} holds a result; give another output{unfinished}")
        self.check_writable()

    def check_writable(self) -> None:
        """Refuse a folder that cannot be written, before nodes work for it or what it holds is deleted.

        Raises:
            OutputError: It cannot.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path) as file:
                file.write(bytes(_PROBE))
                file.flush()
        except OSError as error:
            raise OutputError(f"{self.path}: {error.strerror}; give an output that can be written") from error

    def is_unfinished(self) -> bool:
        """Say whether the run here failed or was killed, or is not done."""
        try:
            return bool(self.read_result().get("error"))
        except ResumeError:
            return False

    def read_unfinished(self) -> dict[str, Any]:
        """Return what ``result.json`` holds of a run that is to go on.

        Raises:
            ResumeError: It is damaged, or the run is done.
        """
        record = self.read_result()
        if not record.get("error"):
            raise ResumeError(f"{self.path} holds a finished run; give another output, or leave resume out")
        return record

    def write_result(self, record: Mapping[str, Any]) -> Path:
        """Write ``result.json``; what was there before is replaced as a whole."""
        versions = {"fedcondense": own_version(), **{name: version(name) for name in ("torch", "flwr", "numpy")}}
        text = json.dumps(_finite({"format": FORMAT, **record, "versions": versions}), allow_nan=False, default=str)
        return write_file(self.result, dump_json(json.loads(text)), overwrite=True)

    def read_result(self) -> dict[str, Any]:
        """Return what ``result.json`` holds.

        Raises:
            ResumeError: It is damaged, or of a later version.
        """
        try:
            blob = self.result.read_bytes()
            record = json.loads(blob.decode("utf-8"))
            newer = record.get("format", 1) > FORMAT
            if record.pop("checksum", None) is not None:  # which older ones lack
                check(blob)
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise ResumeError(f"{self.result} is damaged ({error}); delete it to start over") from None
        if newer:
            raise ResumeError(f"{self.result} is of format {record['format']}; update fedcondense to read it")
        return dict(record)

    def write_sets(self, sets: Mapping[str, SyntheticSet], joined: SyntheticSet) -> list[Path]:
        """Write each site's set as it travelled, and the union; sets of sites that are no longer in it go."""
        paths = {self.path / "clients" / f"{name}.safetensors": synthetic for name, synthetic in sets.items()}
        for stale in set(self._sets()) - set(paths):
            stale.unlink(missing_ok=True)
        written = [synthetic.save(path, overwrite=True) for path, synthetic in paths.items()]
        return [*written, joined.save(self.path / "joined.safetensors", overwrite=True)]

    def write_refused(self, cut: Mapping[str, SyntheticSet]) -> list[Path]:
        """Write what a screen has left out of each site's set, for people to look at; that of earlier rounds goes."""
        for stale in (self.path / "refused").glob("*.safetensors"):
            stale.unlink(missing_ok=True)
        return [one.save(self.path / "refused" / f"{name}.safetensors", overwrite=True) for name, one in cut.items()]

    def fault(self, sites: Iterable[str]) -> str:
        """Return why the union, the sets of these sites or the network cannot be read; nothing if all can."""
        sets = [self.path / "clients" / f"{name}.safetensors" for name in sites]
        try:
            for path in (self.path / "joined.safetensors", *sets):
                SyntheticSet.load(path)
            load_network(self.path)
        except FedcondenseError as damaged:
            return str(damaged)
        return ""

    def write_state(self, state: State) -> Path:
        """Write what a strategy keeps after a round; of earlier rounds the last and the first stay."""
        return self.rounds.write_state(state)

    def read_state(self) -> State:
        """Return the state of the last finished round; an empty one if there is none.

        Raises:
            ResumeError: It is damaged.
        """
        return self.rounds.read_state()

    def take_back(self, server_round: int) -> None:
        """Delete the states after a round, and what the run ended with: the network, the union, the sites' sets."""
        self.rounds.drop_states(server_round)
        ends = (
            "report.html",
            "joined.safetensors",
            "weights.safetensors",
            "refused/*.safetensors",
            f"arrived/*{ENDING}",
        )
        for path in (*self._sets(), *(path for pattern in ends for path in self.path.glob(pattern))):
            path.unlink(missing_ok=True)

    def _is_empty(self) -> bool:
        """Say whether the run here failed, and neither a row nor a round of it is there."""
        try:
            record = self.read_result()
        except ResumeError:
            return False
        left = record.get("rows") or any(self.arrived.glob(f"*{ENDING}")) or self.read_state().round
        return bool(record.get("error")) and not left

    def _sets(self) -> list[Path]:
        """Return the paths of the sets that the run in this folder names as its own."""
        try:
            sites = self.read_result().get("sites", [])
        except ResumeError:
            return []
        names = [name for name in sites if isinstance(name, str) and is_set_name(name)]
        return [self.path / "clients" / f"{name}.safetensors" for name in names]


def refusals(left_out: Sequence[tuple[int, Refusal]], row: str) -> list[dict[str, Any]]:
    """Return who was left out of a row's rounds, as ``result.json`` says it."""
    return [
        {"client": site.name, "node": str(site.node), "reason": reason, "row": row, "round": server_round}
        | ({"held": True} if is_held(reason) else {"absent": True} if is_absent(reason) else {})
        for server_round, (site, reason) in left_out
    ]


def judged(verdicts: Iterable[tuple[int, Site, str, Verdict]]) -> list[dict[str, Any]]:
    """Return what screens found, as ``result.json`` says it; what counts fully without a word is left out."""
    return [
        {"client": site.name, "class": name, "weight": round(verdict.weight, 3), "why": verdict.why, "round": number}
        for number, site, name, verdict in verdicts
        if verdict.weight < 1 or verdict.why
    ]


def _finite(value: Any) -> Any:
    """Return a record with texts in the place of infinite numbers, and null for nan: JSON has neither."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value


def plain(values: Iterable[float]) -> list[float | None]:
    """Round to what is meaningful, with None for nan, which JSON lacks."""
    return [None if value != value else round(value, 3) for value in values]


def records_by_site(sets: Mapping[str, SyntheticSet], classes: Sequence[str]) -> dict[str, Any]:
    """Return how many records of each class each site holds, as the records of their sets say."""
    counts = []
    for one in sets.values():
        most = dict.fromkeys(classes, 0)
        for part in one.parts:  # those of one site are of the same records
            known = zip(part.record.classes, part.record.counts, strict=False)  # some records say no counts
            most |= {name: max(most[name], count) for name, count in known if name in most}
        counts.append(list(most.values()))
    return {"names": list(sets), "classes": list(classes), "counts": counts}


def coverage(joined: SyntheticSet | None) -> dict[str, int]:
    """Return how many synthetic images of each class arrived."""
    return {} if joined is None else dict(zip(joined.classes, joined.counts().tolist(), strict=True))
