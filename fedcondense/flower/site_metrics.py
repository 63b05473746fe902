"""How good a round's weights are at the sites: what is asked, what each site says, and what that comes to."""

from __future__ import annotations

import logging
import math
import statistics
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from flwr.app import MetricRecord, RecordDict
from flwr.serverapp import Grid

from fedcondense.errors import SettingError
from fedcondense.flower.asking import Asking, questions
from fedcondense.flower.books import ALONE, booked
from fedcondense.flower.checked_grid import floats_of
from fedcondense.flower.contract import Answer, Site, State
from fedcondense.flower.evaluating import Evaluate, check_sums, numbers_of
from fedcondense.flower.held import HELD_THERE
from fedcondense.flower.inbox import SILENT, Refusal, ReplyLimits
from fedcondense.flower.replies import Mailbox
from fedcondense.flower.sites import found_among, names_of, natural
from fedcondense.training.fit import Fit

__all__ = ["AtSites", "Evaluated", "SiteMetrics", "aggregate", "question_of"]

_LOG = logging.getLogger("flwr")  # Flower's own: what it shows, it shows of us
_NEVER = "does not evaluate"  # in a state, in the place of how good a site is alone
_ALWAYS = ("allow-evaluate = true", "keep-apart = 0.1", "does not know the task")  # reasons of those who refuse again
_WEIGHTS = ("num-examples", "accuracy", "macro-accuracy")  # what every site says


class SiteMetrics(NamedTuple):
    """What one site says of a network, on the records that it keeps apart."""

    site: Site
    records: int
    accuracy: float  # percent
    macro: float  # percent, mean over the classes that it has records of
    loss: float = math.nan  # mean cross-entropy; nan: the site does not say
    alone: float = math.nan  # percent of a network that it trained on its own records alone; nan: unknown

    @property
    def is_below(self) -> bool:
        """Whether the site would do better alone."""
        return self.accuracy < self.alone

    def to_dict(self) -> dict[str, Any]:
        """Return what ``result.json`` says."""
        said = {"site": self.site.name, "records": self.records, "accuracy": self.accuracy}
        said |= {"macro_accuracy": self.macro, "loss": self.loss, "local_only": self.alone}
        return {name: round(value, 4) if isinstance(value, float) else value for name, value in said.items()}


class Evaluated(NamedTuple):
    """What sites say after a round, by name."""

    sites: tuple[SiteMetrics, ...]
    refused: tuple[Refusal, ...] = ()

    @classmethod
    def of_nodes(cls, said: Mapping[int, Mapping[str, float]], infos: Iterable[Any]) -> Evaluated:
        """Take the checked numbers of Flower's own evaluation, by node; those of another app may be other numbers."""
        sites, _ = found_among(infos, said, {})
        names = names_of(sites, {})
        found = [
            SiteMetrics(
                names[site.node],
                int(said[site.node]["num-examples"]),
                said[site.node].get("accuracy", math.nan),
                said[site.node].get("macro-accuracy", math.nan),
                said[site.node].get("loss", math.nan),
            )
            for site in sites
        ]
        return cls(tuple(sorted(found, key=lambda one: natural(one.site.name))))

    def metrics(self, asking: Asking) -> MetricRecord | None:
        """Return Flower's metrics of the round, and ours beside them; None: no site said anything."""
        if not self.sites:
            return None
        found = (asking.evaluate_metrics_aggr_fn or aggregate)(self._records(), asking.weighted_by_key)
        ours: dict[str, Any] = {
            "sites": len(self.sites),
            "sites-refused": len(self.refused),
            "accuracy-mean": statistics.fmean(one.accuracy for one in self.sites),
            "accuracy-worst": self.worst.accuracy,
            "sites-below-local-only": sum(one.is_below for one in self.sites),
        }
        return MetricRecord({**ours, **found})

    @property
    def worst(self) -> SiteMetrics:
        """The site with the lowest accuracy."""
        return min(self.sites, key=lambda one: one.accuracy)

    def to_dict(self, server_round: int) -> dict[str, Any]:
        """Return what ``result.json`` says; `accuracy` is the mean over records, `accuracy_mean` over sites."""
        said: dict[str, Any] = {"round": server_round, "sites": [one.to_dict() for one in self.sites]}
        said["refused"] = [{"client": site.name, "reason": reason} for site, reason in self.refused]
        if self.sites:
            mean = aggregate(self._records(), "num-examples")
            alone = [one.alone for one in self.sites if math.isfinite(one.alone)]
            said |= {"accuracy": mean["accuracy"], "macro_accuracy": mean["macro-accuracy"]}
            said |= {"accuracy_mean": statistics.fmean(one.accuracy for one in self.sites)}
            said |= {"worst": self.worst.site.name, "accuracy_worst": self.worst.accuracy}
            said |= {"local_only_mean": statistics.fmean(alone)} if alone else {}
            said |= {"below_local_only": [one.site.name for one in self.sites if one.is_below]}
        return {name: round(value, 4) if isinstance(value, float) else value for name, value in said.items()}

    def _records(self) -> list[RecordDict]:
        """Return each site's numbers as Flower's nodes send them."""
        records = []
        for one in self.sites:
            said = {"num-examples": one.records, "accuracy": one.accuracy, "macro-accuracy": one.macro}
            more = {"loss": one.loss, "local-only": one.alone}
            said |= {name: value for name, value in more.items() if math.isfinite(value)}
            records.append(RecordDict({"metrics": MetricRecord(said)}))  # type: ignore[arg-type]  # numbers
        return records


class AtSites:
    """Asks sites after each round how good its weights are, and keeps what they say; no round fails of it.

    Args:
        asking: Who is asked, and how metrics become one.
        limits: Of replies.

    Raises:
        SettingError: Sites are to be weighed by what they do not say.
    """

    def __init__(self, asking: Asking, limits: ReplyLimits) -> None:
        if asking.evaluate_metrics_aggr_fn is None and asking.weighted_by_key not in _WEIGHTS:
            raise SettingError(
                f"weighted_by_key {asking.weighted_by_key!r}; sites say {', '.join(_WEIGHTS)}: name one of them, or "
                "give an evaluate_metrics_aggr_fn of your own"
            )
        self.asking, self.limits = asking, limits
        self.found: dict[int, Evaluated] = {}  # by round

    def ask(
        self,
        server_round: int,
        grid: Grid,
        evaluation: Callable[[State], Evaluate | None],
        state: State,
        refused: Sequence[Refusal],
        barred: Collection[str] = (),
    ) -> Mailbox:
        """Return a mailbox with a question to each site that is sampled; how good a site is alone is asked once.

        Nodes that are silent in the round are still at work, or wait for their people; those whose config does not let
        them evaluate got weights once. Neither is asked.

        Args:
            server_round: Of the run.
            grid: Reaches the nodes.
            evaluation: Says what is asked about a state's weights.
            state: After the round.
            refused: Who was left out of the round.
            barred: Keys of sites that are asked no more.
        """
        silent = {site.node for site, reason in refused if reason in (SILENT, HELD_THERE)}
        nodes = self.asking.sample_to_evaluate(set(grid.get_node_ids()) - silent, server_round)
        question = evaluation(state) if nodes else None
        if question is None:
            return Mailbox([], self.limits)
        sites, names = found_among(grid.get_nodes(), nodes, state.sites)
        known, said = replace(question, alone=0), {site: state.numbers.get(ALONE + site.key) for site in sites}
        asked = {site: question if alone is None else known for site, alone in said.items() if alone != _NEVER}
        asked = {site: task for site, task in asked.items() if site.key not in barred}

        def examine(answer: Answer[Any]) -> None:
            check_sums(answer.payload, len(question.classes))

        _LOG.info("round %d: asking %d nodes how good the weights are", server_round, len(asked))
        return Mailbox(questions(asked, server_round, self.limits.classes), self.limits, examine, names=names)

    def hear(self, server_round: int, mailbox: Mailbox, state: State) -> State:
        """Keep what sites say; return a state with what that took, who refuses for good, and how good each is alone."""
        if not mailbox.sent:
            return state
        answers, refused = mailbox.sorted()
        numbers: dict[str, float | int | str] = {}
        sites = []
        for site, reason in refused:
            _LOG.warning("%s does not say how good the weights are: %s", site.name, reason)
            if any(told in reason for told in _ALWAYS):
                numbers[ALONE + site.key] = _NEVER
        for answer in answers:
            said = numbers_of(answer.payload)  # type: ignore[arg-type]  # as the question says
            if "local-only" in said:
                numbers[ALONE + answer.site.key] = said["local-only"]
            alone = said.get("local-only", float(state.numbers.get(ALONE + answer.site.key, math.nan)))
            judged = (int(said["num-examples"]), said["accuracy"], said["macro-accuracy"])
            sites.append(SiteMetrics(answer.site, *judged, said.get("loss", math.nan), alone))
        self.found[server_round] = Evaluated(tuple(sites), tuple(refused))
        state = booked(state, state, server_round, mailbox, answers, is_combined=False)
        return state.but(numbers={**state.numbers, **numbers})

    def metrics(self, server_round: int) -> MetricRecord | None:
        """Return what Flower's result says of a round; None: no site said anything."""
        return self.found[server_round].metrics(self.asking) if server_round in self.found else None


def aggregate(records: list[RecordDict], weighting_metric_name: str) -> MetricRecord:
    """Return the weighted mean of the metrics that all records have, as Flower's own does, without the weights.

    Where all weights are 0, sites count alike.
    """
    metrics = [floats_of(next(iter(record.metric_records.values()))) for record in records]
    weights = [one[weighting_metric_name] for one in metrics]
    total = sum(weights)
    shares = [weight / total if total else 1 / len(weights) for weight in weights]
    common = [name for name in metrics[0] if name != weighting_metric_name and all(name in one for one in metrics)]
    return MetricRecord(
        {name: sum(share * one[name] for share, one in zip(shares, metrics, strict=True)) for name in common}
    )


def question_of(
    state: State, limits: ReplyLimits, classes: tuple[str, ...], network: str, seed: int
) -> Evaluate | None:
    """Return what sites are asked about a state's weights; None: it has none, or nobody knows of which classes.

    Args:
        state: After a round.
        limits: They name classes and normalisation where the server knows the data; else the union of the sets does.
        classes: Of a network's outputs that do not follow the union; empty: they do.
        network: Of the weights.
        seed: The root seed.
    """
    joined = state.joined
    classes = classes or limits.classes or (() if joined is None else joined.classes)
    if state.weights is None or not classes:
        return None
    mean, std = limits.mean or (), limits.std or ()
    if joined is not None:
        mean, std = mean or joined.record.mean, std or joined.record.std
    return Evaluate(state.weights, classes, network, mean, std, Fit.steps, seed)
