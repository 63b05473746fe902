"""How good a round's weights are at the sites: what is asked, what each site says, and what that comes to."""

from __future__ import annotations

import logging
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from flwr.app import MetricRecord, RecordDict

from fedcondense.errors import SettingError
from fedcondense.flower.asking import Asking, questions
from fedcondense.flower.checked_grid import floats_of
from fedcondense.flower.contract import Answer, Site, State
from fedcondense.flower.evaluating import Evaluate, check_sums, numbers_of
from fedcondense.flower.payloads import Metrics
from fedcondense.flower.replies import Mailbox, Refusal, ReplyLimits
from fedcondense.flower.sites import found_among, names_of, natural
from fedcondense.flower.spent import ALONE, add_spent, library_numbers
from fedcondense.training.fit import Fit

__all__ = [
    "Evaluated",
    "SiteMetrics",
    "aggregate",
    "check_weighting",
    "mailbox_of",
    "question_of",
    "train_metrics",
]

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
    def of(cls, mailbox: Mailbox, state: State) -> Evaluated:
        """Read the answers to `Evaluate`, and name who gave none."""
        answers, refused = mailbox.sorted()
        for site, reason in refused:
            _LOG.warning("%s does not say how good the weights are: %s", site.name, reason)
        sites = []
        for answer in answers:
            said = numbers_of(answer.payload)  # type: ignore[arg-type]  # as the question says
            alone = said.get("local-only", float(state.numbers.get(ALONE + answer.site.key, math.nan)))
            judged = (int(said["num-examples"]), said["accuracy"], said["macro-accuracy"])
            sites.append(SiteMetrics(answer.site, *judged, said.get("loss", math.nan), alone))
        return cls(tuple(sites), tuple(refused))

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

    def noted(self, state: State, mailbox: Mailbox) -> State:
        """Return a state with these sites, what asking them took, and how good each is alone, which is asked once.

        A site whose config does not let it evaluate is noted, too: weights are not sent to it again.
        """
        numbers = library_numbers(state)
        add_spent(numbers, mailbox.sent, mailbox.answers.values())
        numbers |= {ALONE + one.site.key: one.alone for one in self.sites if math.isfinite(one.alone)}
        numbers |= {ALONE + site.key: _NEVER for site, why in self.refused if any(reason in why for reason in _ALWAYS)}
        names = {sent.site.key: sent.site.name for sent in mailbox.sent}
        names |= {one.site.key: one.site.name for one in self.sites}
        names |= {key: name for key, name in state.sites.items() if name}
        return state.but(sites={**state.sites, **names}, numbers={**state.numbers, **numbers})

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


def check_weighting(asking: Asking) -> None:
    """Refuse a weight that sites do not say, before any is asked.

    Raises:
        SettingError: It is none of what they say.
    """
    if asking.evaluate_metrics_aggr_fn is None and asking.weighted_by_key not in _WEIGHTS:
        raise SettingError(
            f"weighted_by_key {asking.weighted_by_key!r}; sites say {', '.join(_WEIGHTS)}: name one of them, or give "
            "an evaluate_metrics_aggr_fn of your own"
        )


def train_metrics(answers: Sequence[Answer[Any]], refused: int, asking: Asking) -> MetricRecord:
    """Return a round's metrics, and those that `Asking.train_metrics_aggr_fn` makes of the answers."""
    ours: dict[str, Any] = {
        "clients": len(answers),
        "refused": refused,
        "num-examples": sum(answer.num_examples for answer in answers),
        "bytes-up": sum(answer.nbytes for answer in answers),
        "client-seconds": sum(answer.seconds for answer in answers),
    }
    if asking.train_metrics_aggr_fn is None:
        return MetricRecord(ours)
    records = []
    for answer in answers:
        said: dict[str, Any] = {"num-examples": answer.num_examples, "seconds": answer.seconds, "bytes": answer.nbytes}
        more = answer.payload.numbers if isinstance(answer.payload, Metrics) else {}
        records.append(RecordDict({"metrics": MetricRecord({**more, **said})}))
    return MetricRecord({**ours, **asking.train_metrics_aggr_fn(records, asking.weighted_by_key)})


def question_of(state: State, limits: ReplyLimits, network: str, seed: int) -> Evaluate | None:
    """Return what sites are asked about a state's weights; None: it has none, or nobody knows of which classes.

    Args:
        state: After a round.
        limits: They name classes and normalisation where the server knows the data; else the union of the sets does.
        network: Of the weights.
        seed: The root seed.
    """
    joined = state.joined
    classes = limits.classes or (() if joined is None else joined.classes)
    if state.weights is None or not classes:
        return None
    mean, std = limits.mean or (), limits.std or ()
    if joined is not None:
        mean, std = mean or joined.record.mean, std or joined.record.std
    return Evaluate(state.weights, classes, network, mean, std, Fit.steps, seed)


def mailbox_of(
    question: Evaluate,
    server_round: int,
    found: tuple[Sequence[Site], Mapping[str, str]],
    state: State,
    limits: ReplyLimits,
) -> Mailbox:
    """Return a mailbox with a question to each site; how good it is alone is asked once.

    Args:
        question: What sites are asked that have not said yet how good they are alone.
        server_round: Of the run.
        found: The sites, and names that are taken, as `found_among` gives them.
        state: After the round.
        limits: Of replies.
    """
    sites, names = found
    known = replace(question, alone=0)
    said = {site: state.numbers.get(ALONE + site.key) for site in sites}
    asked = {site: question if alone is None else known for site, alone in said.items() if alone != _NEVER}

    def examine(answer: Answer[Any]) -> None:
        check_sums(answer.payload, len(question.classes))

    return Mailbox(questions(asked, server_round, limits.classes), limits, examine, names=names)
