"""The folder of a federation by files: what was taken in, what follows from it, and a network trained on that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from fedcondense.ambient import in_own_state
from fedcondense.data import Data, load_data
from fedcondense.errors import DataError, ResumeError, SettingError, UntrustedSetError
from fedcondense.files import hold
from fedcondense.flower.answers_file import load_answers
from fedcondense.flower.books import ages, by_site
from fedcondense.flower.contract import Answer, Question, Site, State
from fedcondense.flower.inbox import Inbox, Refusal, ReplyLimits
from fedcondense.flower.payloads import Weights
from fedcondense.flower.rounds import AggregationError, Rounds
from fedcondense.flower.run_folder import RunFolder, judged, plain, refusals
from fedcondense.flower.screens import screen_of
from fedcondense.flower.stores import Latest
from fedcondense.flower.strategies.one_shot import log_absent, train_network
from fedcondense.networks import default_network
from fedcondense.networks.saved import NetworkCard, load_network, save_network
from fedcondense.sets.synthetic import SyntheticSet
from fedcondense.training.evaluation import evaluate
from fedcondense.training.fit import Fit
from fedcondense.training.scores import score

__all__ = ["BY_FILES", "FileRounds", "FilesRun", "Joined", "Taken", "Trained", "train"]

BY_FILES = "by-files"
"""What ``result.json`` calls the strategy, and its row."""

_ABOUT = {
    "label": "by files",
    "travels": "synthetic images",
    "seen": "the server sees each site's synthetic images and class counts",
}


class FileRounds(Rounds):
    """Rounds whose answers are files: nobody is asked, and each site's last set counts."""

    def ask(self, server_round: int, stage: str, state: State, sites: Sequence[Site]) -> Question:
        """Ask nobody.

        Raises:
            SettingError: Always.
        """
        raise SettingError("sites of a federation by files are not asked; fedcondense join reads what they hand in")

    def combine(self, server_round: int, stage: str, state: State, answers: Sequence[Answer[SyntheticSet]]) -> State:
        """Keep the last set of each site and class; what was trained on those before is out of date."""
        sets = Latest().take(server_round, answers, state.sets)
        log_absent(server_round, SyntheticSet.join(sets.values()), self.limits)
        return state.but(sets=sets, weights=None)


class Taken(NamedTuple):
    """Where a set came from."""

    site: str
    file: str  # its name
    at: str  # when, as ISO 8601
    join: int = 0  # by which call of `join`, counted from 1 on


class Joined(NamedTuple):
    """What a call of `join` did."""

    state: State
    taken: dict[str, str]  # names of files, by site
    refused: list[Refusal]
    known: list[str]  # files that an earlier call had taken in
    remarks: Mapping[str, str] = {}  # of which sites a part is left out, and why


class Trained(NamedTuple):
    """How a network is trained on the union."""

    network: str = ""  # a name in NETWORKS; empty: the one for the images' size
    seed: int = 0
    seeds: int = 3  # networks that are measured, from `seed` on; the first is kept
    steps: int = Fit.steps  # of training
    data: str = ""  # what they are tested on; empty: nothing
    size: int = 0  # pixels a side that these are brought to; 0: they stay


@dataclass
class FilesRun:
    """A federation by files, as its folder holds it.

    Args:
        folder: Of the run.
        record: What ``result.json`` says.
        rounds: As they stand.
    """

    folder: RunFolder
    record: dict[str, Any]
    rounds: FileRounds

    @classmethod
    def open(
        cls,
        path: Path,
        asked: Mapping[str, str | int | None] = {},
        data_root: str | None = None,
        forgetting: str = "",
    ) -> FilesRun:
        """Open a folder, or begin a run in an empty one.

        Args:
            path: The folder.
            asked: ``screens``, names in `SCREENS`; ``data``, a data set whose shape and classes sets must have (empty:
                any will do); ``size``, which that is brought to. What is None or missing is as the run has it.
            data_root: Where the data lie.
            forgetting: A site of which what is left is to be removed.

        Raises:
            SettingError: The run has other settings, or is no federation by files.
            OutputError: The folder holds something else, or cannot be written.
            ResumeError: What it holds is damaged, or a site is half forgotten.
        """
        folder, given = RunFolder(path), {name: value for name, value in asked.items() if value is not None}
        if folder.holds_run():
            record = folder.read_result()
        else:
            folder.check_free()
            record = {"settings": {"strategy": BY_FILES, "data": "", "screens": "", "size": 0, **given}}
        settings = record.get("settings", {})
        if settings.get("strategy") != BY_FILES:
            raise SettingError(f"{path} holds a run that is no federation by files; give a folder of its own")
        if (site := record.get("forgetting", {}).get("site", forgetting)) != forgetting:
            raise ResumeError(f"{path}: {site} is being forgotten; finish that: fedcondense forget {site} {path}")
        for name, now in given.items():
            if now != (was := settings.get(name, 0)):
                raise SettingError(f"{name} {now!r}; {path} has {was!r}: leave it out, or begin another folder")
        name, size = settings["data"], settings.get("size")
        spec = load_data(name, data_root, size).test.spec if name else None
        rounds = FileRounds(ReplyLimits() if spec is None else ReplyLimits.of(spec), screen_of(settings["screens"]))
        rounds.state = folder.read_state()
        return cls(folder, record, rounds)

    @property
    def files(self) -> dict[str, Taken]:
        """What was taken in so far, by SHA-256."""
        return {digest: Taken(**one) for digest, one in self.record.get("files", {}).items()}

    @property
    def forgotten(self) -> dict[str, str]:
        """Who was forgotten, and when."""
        return {str(one["site"]): str(one["at"]) for one in self.record.get("forgotten", [])}

    def take(
        self, inbox: Inbox, strays: Sequence[Refusal], files: Mapping[str, Taken], known: Sequence[str] = ()
    ) -> Joined:
        """Combine what came in, and write it.

        Args:
            inbox: Sets by site, and why others have none.
            strays: Files that are no site's.
            files: As in `files`, of this call.
            known: Files of this call that an earlier one took in.

        Raises:
            DataError: No set is left; the folder stays as it was.
        """
        rounds, number = self.rounds, self.rounds.state.round + 1
        try:
            state, _ = rounds.receive(number, rounds.stages[0], rounds.state, inbox)
        except (AggregationError, UntrustedSetError) as error:
            raise DataError(f"nothing is joined: {error}") from None
        rounds.state = state.but(round=number)
        rounds.left_out += [(number, one) for one in strays]
        names, place = {one.site.name for one in rounds.answers}, max(self.folder.rounds.answered(), default=0) + 1
        taken = {digest: one._replace(join=place) for digest, one in files.items() if one.site in names}
        self.folder.rounds.write_answers(place, inbox)
        self.folder.write_state(rounds.state)  # before the result: what is not in it is taken in once more
        self.write({**self.files, **taken})
        refused = [*rounds.refused, *strays]
        remarks = {**inbox.thinned(), **inbox.outgrown()}
        return Joined(rounds.state, {one.site: one.file for one in taken.values()}, refused, list(known), remarks)

    def write(self, files: Mapping[str, Taken]) -> None:
        """Write what follows from the state; a network that was trained on another goes."""
        rounds, state, joined = self.rounds, self.rounds.state, self.rounds.state.joined
        (self.folder.path / "weights.safetensors").unlink(missing_ok=True)
        row = {name.replace("-", "_"): value for name, value in rounds.spent.items()}
        row |= {"clients": len(state.sets), "images": 0 if joined is None else len(joined), "seen_rounds": state.round}
        new = refusals(rounds.left_out, BY_FILES)
        said = {(one["client"], one["reason"]) for one in new}
        before = [one for one in self.record.get("refused", []) if (one["client"], one["reason"]) not in said]
        counts = [] if joined is None else joined.counts().tolist()
        classes = () if joined is None else joined.classes
        at = {one.site: one.at for one in sorted(files.values(), key=lambda one: one.join)}
        away = {name: {**age, "at": at.get(name)} for name, age in ages(state).items() if name in state.sets}
        self.record |= {
            "rows": {BY_FILES: {"about": {**_ABOUT, "rounds": state.round}, **row}},
            "rounds": self.record.get("rounds", []),
            "refused": [*before, *new],
            "screened": [*self.record.get("screened", []), *judged(rounds.screened)],
            "classes": list(rounds.limits.classes or classes),
            "coverage": dict(zip(classes, counts, strict=True)),
            "sites": list(state.sets),
            "ages": away,
            "by_site": by_site(state),
            "files": {digest: one._asdict() for digest, one in files.items()},
        }
        if joined is not None:
            self.folder.write_sets(state.sets, joined)
        self.folder.write_refused(rounds.cut)
        self.folder.write_result(self.record)

    def forget(self, found: dict[str, Any]) -> None:
        """Combine all that ever came in anew, without what a site handed in; rounds that had nothing else are none.

        Each step may be done twice, so that one that was interrupted is finished by the same call.

        Args:
            found: Who it is (``site``), and what else ``result.json`` keeps of that it was forgotten.

        Raises:
            ResumeError: What came in is damaged or gone.
        """
        rounds, folder = self.rounds, self.folder.rounds
        rounds.state = State()
        for place in folder.answered():
            inbox = load_answers(*folder.read_answers(place), rounds.limits, kept=rounds.state.sets)
            inbox.forget(found["site"])
            folder.write_answers(place, inbox)
            try:
                state, _ = rounds.receive(rounds.state.round + 1, rounds.stages[0], rounds.state, inbox)
            except (AggregationError, UntrustedSetError):
                continue
            rounds.state = state.but(round=rounds.state.round + 1)
        self.folder.take_back(0)
        if rounds.state.round:
            folder.write_state(rounds.state)
        left = {digest: one for digest, one in self.files.items() if one.site != found["site"]}
        self.record |= {"refused": [], "screened": [], "rounds": []}
        self.record["forgotten"] = [*self.record.get("forgotten", []), found]
        self.record = {name: value for name, value in self.record.items() if name not in ("forgetting", "trained")}
        self.write(left)


@in_own_state
def train(path: Path, how: Trained, test: Data | None = None) -> dict[str, Any]:
    """Train a network on the union of all sites' sets, measure it, and return the row of ``result.json``.

    Args:
        path: The folder of a federation by files.
        how: Network and seeds.
        test: What is tested on; None: nothing is measured, and the union's classes are the network's.

    Raises:
        SettingError: The folder holds another run, or none.
        DataError: It holds no set.
    """
    if not RunFolder(path).holds_run():
        raise DataError(f"{path} holds no federation by files; begin one: fedcondense join FILE... -o {path}")
    with hold(path, is_folder=True):
        run = FilesRun.open(path)
        state, joined = run.rounds.state, run.rounds.state.joined
        if joined is None:
            raise DataError(f"{path} holds no set to train on; take one in: fedcondense join FILE... -o {path}")
        row, recipe = run.record["rows"][BY_FILES], Fit(steps=how.steps)
        if test is None:
            network = train_network(joined, how.network, recipe, how.seed)
            classes, measured = joined.classes, None
        else:
            found: list[nn.Module] = []
            seeds = range(how.seed, how.seed + how.seeds)
            measured = evaluate(
                joined, test, network=how.network or None, recipe=recipe, seeds=seeds, trained=found.append
            )
            network, classes = found[0], test.spec.classes
            spread = measured.accuracy_std if how.seeds > 1 else None
            row |= {"accuracy": measured.accuracy, "accuracy_std": spread, "per_class": plain(measured.per_class)}
            entry = {"round": state.round, "accuracy": round(measured.accuracy, 3)}
            run.record["rounds"] = [one for one in run.record["rounds"] if one["round"] != state.round] + [entry]
            run.record["classes"] = list(classes)
        record = joined.record
        name = how.network or default_network(joined.shape)
        card = NetworkCard(name, classes, joined.shape, record.mean, record.std, BY_FILES)
        weights = dict(Weights.of(network).tensors)
        save_network(path / "weights.safetensors", weights, card, overwrite=True)
        if test is not None:
            row["scores"] = score(load_network(path).to(test.device), test).to_dict()
        if measured is not None:
            run.folder.write_sets(state.sets, joined.with_evaluation(measured.to_dict()))
        run.record["trained"] = how._asdict()
        run.folder.write_result(run.record)
        return dict(row)
