"""A site that is forgotten: all that follows from what it sent goes, and is made again from what the others sent.

What it sent in the first round is taken out of what came back then (`answers_file`), and the others' answers are
combined anew (`Rounds.without`). What it sent first in a later round is undone by the last state before that. The
rounds after are dropped: what others sent in them they made knowing of it. A resumed run asks them again, and asks the
forgotten site no more. Each step may be done twice, so that the same call finishes what was interrupted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

from flwr.app import ArrayRecord
from flwr.serverapp import Grid

from fedcondense.ambient import in_own_state
from fedcondense.data import Data
from fedcondense.data.loading import load_test
from fedcondense.errors import FedcondenseError, SettingError, UntrustedSetError, unknown
from fedcondense.files import hold
from fedcondense.flower.answers_file import load_answers
from fedcondense.flower.arrivals import KeepingGrid
from fedcondense.flower.books import ages, by_site, first_round, spent_per_site
from fedcondense.flower.contract import Site, State
from fedcondense.flower.files_run import BY_FILES, FilesRun, Trained, train
from fedcondense.flower.history import accuracy_in
from fedcondense.flower.inbox import Inbox
from fedcondense.flower.rounds import AggregationError, Rounds
from fedcondense.flower.run_folder import RunFolder, judged, plain, records_by_site, refusals
from fedcondense.flower.run_settings import code_of, side_of
from fedcondense.flower.running import accuracy_of_weights
from fedcondense.flower.served_run import ServedRun
from fedcondense.flower.server import read_settings

__all__ = ["Forgotten", "forget"]

_OF_ROUNDS = ("rounds", "refused", "screened")  # what result.json says round by round


class Forgotten(NamedTuple):
    """What was done."""

    site: str
    rounds: tuple[int, ...]  # from its first answer on: what they left is gone, or made anew
    round: int  # the run stands after it
    left: str = ""  # what is still to do; nothing: the run is done
    went_down: tuple[int, ...] = ()  # rounds in which sites were sent something that followed from its answers


@in_own_state
def forget(path: Path, site: str, *, test: Data | None = None, data_root: str | None = None) -> Forgotten:
    """Make a run's folder what it would be if a site had never answered.

    Args:
        path: The folder of a run of ``flwr run`` or of a federation by files.
        site: As ``result.json`` and ``clients`` call it.
        test: What the server tested on, where the run's settings do not name it.
        data_root: Where the data lie that they name.

    Raises:
        SettingError: No such site has answered, or this strategy cannot forget; the message says what to do instead.
        ResumeError: What the folder holds is damaged.
        OutputError: The folder cannot be written, or a run is writing it.
    """
    folder = RunFolder(path)
    if not folder.holds_run():
        raise SettingError(f"{path} holds no run; give the folder that a run wrote its result.json to")
    with hold(path, is_folder=True):
        record = folder.read_result()
        if (other := record.get("forgetting", {}).get("site", site)) != site:
            raise SettingError(f"{other} is half forgotten there; finish that first: fedcondense forget {other} {path}")
        if "partition" in record:
            raise SettingError(f"{path} compares strategies on sites of one process: run it anew without {site}")
        if record.get("settings", {}).get("strategy") != BY_FILES:
            return _ServedSite(folder, record, site, test, data_root).forget()
        trained = record.get("trained")
        done = _forget_files(path, site, data_root)
    if trained and done.round:
        how = Trained(**trained)
        try:
            train(path, how, test or (load_test(how.data, data_root, how.size) if how.data else None))
        except FedcondenseError as error:  # the site is gone all the same
            return done._replace(left=f"its network is not trained anew ({error}): fedcondense train {path}")
    return done


def _forget_files(path: Path, site: str, data_root: str | None) -> Forgotten:
    """Take a site out of all rounds of a federation by files: nobody else's file follows from its own."""
    run = FilesRun.open(path, data_root=data_root, forgetting=site)
    found, last = run.record.get("forgetting"), run.rounds.state.round
    if found is None:
        sites = {one.site for one in run.files.values()}
        if site not in sites:
            raise _nobody(run.record, "site that has handed in a set", site, sites)
        found = _entry(site, site, first_round(run.rounds.state, site) or 1, last)
        run.record["forgetting"] = found
        run.folder.write_result(run.record)
    run.forget(found)
    left = "" if run.rounds.state.round else "no other site has a set there"
    return Forgotten(site, tuple(found["rounds"]), run.rounds.state.round, left)


def _nobody(record: Mapping[str, Any], kind: str, site: str, known: Iterable[str]) -> SettingError:
    """Return what is wrong with a site's name: it went before, or nobody has it."""
    if any(one.get("site") == site for one in record.get("forgotten", [])):
        return SettingError(f"{site} is forgotten already; nothing of it is left in the run")
    return SettingError(unknown(kind, site, known))


class _ServedSite:
    """A site of a run of the server app, which is forgotten."""

    def __init__(
        self, folder: RunFolder, record: dict[str, Any], site: str, test: Data | None, data_root: str | None
    ) -> None:
        self.folder, self.record, self.site = folder, record, site
        self.asked: dict[str, Any] = dict(record.get("asked") or record.get("settings", {}))
        self.settings, self.own, self.entry = read_settings(self.asked)
        if test is None and self.settings.data:
            where = data_root or self.settings.data_root or None
            test = load_test(self.settings.data, where, self.settings.size or None)
        self.test, name = test, self.settings.strategy
        if code_of(self.settings, self.own, self.entry, test) != record.get("code"):
            raise SettingError(
                f"{folder.path}: the code of {name} or the test data are not those of the run; give the data that the "
                "server tested on, and the version of fedcondense that it ran"
            )
        self.side = side_of(self.settings, self.own, test)
        strategy = self.entry.make(self.side)
        if not isinstance(strategy, Rounds):
            raise SettingError(
                f"{name} is one of Flower's own: {site} is in the weights that it keeps, and nothing takes it out; "
                "run it anew without the site in another folder"
            )
        strategy.asking = replace(strategy.asking, min_replies=1)  # whoever is left is enough to go on from
        self.strategy = strategy

    def forget(self) -> Forgotten:
        """Rebuild what the site is not in, write it, and finish a run that has no round left to do."""
        last = self.folder.read_state()
        found = self.record.get("forgetting") or self._found(last)
        state, why = self._rebuilt(found)
        self.record["forgetting"] = found
        self.folder.write_result(self.record)
        if self.inbox is not None:
            self.folder.rounds.write_answers(1, self.inbox)
        self.folder.take_back(0 if self.inbox is not None else state.round)
        if state.round:
            self.folder.write_state(state)
        rounds = self.settings.num_rounds or self.entry.rounds
        missing = range(state.round + 1, rounds + 1)
        left = why or (f"rounds from {missing[0]} to {missing[-1]} are to be run again" if missing else "")
        self._write(state, found, left)
        if not left:
            run = ServedRun(self.folder, self.asked, self.folder.read_result())
            run(KeepingGrid(cast(Grid, None), self.folder.arrived), self.test, self.settings, self.own, self.entry)
        after = tuple(number for number in found["rounds"] if number > found["rounds"][0])
        return Forgotten(self.site, tuple(found["rounds"]), state.round, left, after)

    def _found(self, last: State) -> dict[str, Any]:
        """Return who the site is and in which rounds its answers count."""
        keys = {name: key for key, name in last.sites.items() if name}
        first = first_round(last, self.site)
        if first is None:
            answered = self._answers().answered()
            keys |= answered
            if self.site not in answered:
                known = {name for name in keys if name in answered or first_round(last, name) is not None}
                raise _nobody(self.record, "site that has answered", self.site, known)
        return _entry(self.site, keys[self.site], first or 1, last.round)

    def _rebuilt(self, found: dict[str, Any]) -> tuple[State, str]:
        """Return the last state that the site is not in; an empty one, and why, where nothing is left."""
        first = int(found["rounds"][0])
        state = self.folder.rounds.read_state_before(first) if first > 1 else None
        if state is not None:
            self.inbox = None
            return state, ""
        self.inbox = self._answers()
        try:
            return self.strategy.without(Site(self.site, str(found["key"])), self.inbox), ""
        except (AggregationError, UntrustedSetError) as error:
            return State(), f"nothing is left to go on from ({error})"

    def _answers(self) -> Inbox:
        """Return what came back in the first round."""
        kinds, stage = {task.payload for task in self.entry.tasks}, self.strategy.stages[0]
        alike = partial(self.strategy.kind, stage)
        return load_answers(*self.folder.rounds.read_answers(1), self.strategy.limits, kinds=kinds, kind=alike)

    def _write(self, state: State, found: dict[str, Any], left: str) -> None:
        """Write what is true of the run now; `left` is what is still to do."""
        record, name, joined = self.record, self.settings.strategy, state.joined
        said = {key: [one for one in record.get(key, []) if one.get("round", 0) <= state.round] for key in _OF_ROUNDS}
        row = {"about": record.get("rows", {}).get(name, {}).get("about", self.entry.about(1))}
        row |= {key.replace("-", "_"): value for key, value in spent_per_site(state).items()}
        row |= {"seen_rounds": state.round} | ({} if joined is None else {"images": len(joined)})
        measured: dict[str, float] = {}
        if left and self.test is not None and state.weights is not None:  # else the run that follows measures
            arrays = ArrayRecord(dict(state.weights.tensors))
            percent, per_class = accuracy_of_weights(arrays, self.side, self.test)
            row |= {"accuracy": percent, "accuracy_std": None, "per_class": plain(per_class.tolist())}
            measured = accuracy_in(row)
        for one in said["rounds"]:
            one.pop("sites_accuracy", None)  # a mean that the site's records are in
        if self.inbox is not None:  # the round was combined anew
            said["refused"] = refusals(self.strategy.left_out, name)
            said["screened"] = judged(self.strategy.screened)
            answers = self.strategy.answers
            up = sum(answer.nbytes for answer in answers)
            for one in said["rounds"]:
                one |= {"answered": len(answers), "bytes_up": round(up / max(1, one["asked"]), 1), "total_up": up}
                one.pop("accuracy", None)
                one |= measured
            row["clients"] = len(answers)
        del record["forgetting"]
        for key in ("digest", "versions", "asked"):
            record.pop(key, None)
        record |= {
            **said,
            "rows": {name: row},
            "settings": self.asked,
            "sites": list(state.sets),
            "coverage": {} if joined is None else dict(zip(joined.classes, joined.counts().tolist(), strict=True)),
            "ages": ages(state),
            "by_site": by_site(state),
            "held": records_by_site(state.sets, record.get("classes", [])),
            "sites_evaluated": {},
            "forgotten": [*record.get("forgotten", []), found],
            "error": f"{self.site} was forgotten; {left or 'what follows is being made anew'}: resume = true",
        }
        self.folder.write_result(record)


def _entry(site: str, key: str, first: int, last: int) -> dict[str, Any]:
    """Return what ``result.json`` keeps: nothing of what the site sent, and its key, by which it is not asked again."""
    at = datetime.now(UTC).isoformat(timespec="seconds")
    return {"site": site, "key": key, "at": at, "rounds": list(range(first, last + 1))}
