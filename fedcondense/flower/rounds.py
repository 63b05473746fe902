"""Rounds of any strategy that asks for sets or sums: sample, ask, wait, read, screen, combine, keep."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Unpack

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.exception import AggregationError
from flwr.serverapp.strategy import Result, Strategy

from fedcondense.ambient import in_own_state
from fedcondense.errors import SettingError
from fedcondense.flower.asking import Asked, Asking, collect, connected, questions
from fedcondense.flower.books import booked, check_enough, check_finite, ever_asked, metrics_of, spent_per_site
from fedcondense.flower.contract import Answer, Known, Question, Screen, Site, State, Verdict
from fedcondense.flower.evaluating import Evaluate
from fedcondense.flower.history import Tally, accuracy_in, tell
from fedcondense.flower.inbox import Inbox, log_odd
from fedcondense.flower.payloads import Weights
from fedcondense.flower.replies import Mailbox, Refusal, ReplyLimits, Sent, kind_of
from fedcondense.flower.screens import log_verdicts, screened
from fedcondense.flower.settings import check, read
from fedcondense.flower.site_metrics import AtSites, question_of
from fedcondense.flower.sites import found_among
from fedcondense.sets.synthetic import SyntheticSet

__all__ = ["AggregationError", "Rounds"]

_LOG = logging.getLogger("flwr")  # Flower's own: what it shows, it shows of us


class Rounds(Strategy):
    """A Flower `Strategy` in rounds of one or more stages; a method derives from it and writes `ask` and `combine`.

    A stage ends when all have answered, when `grace` seconds have passed since `min_replies` usable answers
    arrived, or at the deadline that `start` is given. After a round `state` is what the strategy keeps, `answers`
    and `refused` say whose answers it stands on and who was left out and why, `verdicts` what a screen found, and
    `evaluated` what sites say of the weights, by round. If a round fails, `state` is still that of the round before.

    Args:
        limits: What a reply may hold. Whatever breaks it is left out and named in the log.
        screen: Judges sets per site and class before they are combined.
        asked: The fields of `Asking`: ``min_available_nodes=10, min_replies=8, grace=60``.
    """

    stages: ClassVar[tuple[str, ...]] = ("answer",)
    rounds: int = 1  # unless `start` is told another number
    most_rounds: int | None = None  # that a method has a meaning for
    task: Question  # what is asked, in ways that a strategy may vary from round to round
    network: str = ""  # of the weights, a name in NETWORKS; empty: the task's, else the one for the images' size

    def __init__(
        self, limits: ReplyLimits = ReplyLimits(), screen: Screen | None = None, **asked: Unpack[Asked]
    ) -> None:
        self.asking, self.limits, self.screen = Asking(**asked), limits, screen
        check(self.asking, type(self).__name__)
        self.at_sites = AtSites(self.asking, limits)
        self.evaluated = self.at_sites.found
        self.state = State()
        self.history: list[dict[str, Any]] = []  # of all rounds so far: `fedcondense.flower.history`
        self.answers: tuple[Answer[Any], ...] = ()
        self.refused: tuple[Refusal, ...] = ()
        self.left_out: list[tuple[int, Refusal]] = []  # of all rounds so far, with the round
        self.verdicts: Mapping[tuple[Site, str], Verdict] = {}
        self.screened: list[tuple[int, Site, str, Verdict]] = []  # of all rounds so far
        self.cut: Mapping[str, SyntheticSet] = {}  # what a screen has left out in the last round, by site
        self.keep: Callable[[Rounds], None] = lambda strategy: None  # called after each round
        self.inboxes: dict[str, Inbox] = {}  # what came back in the last round, by stage
        self.barred: frozenset[str] = frozenset()  # keys of sites that are asked no more
        self.last_round = 0  # as `start` is told
        self._mailbox = Mailbox([], limits)

    @abstractmethod
    def ask(
        self, server_round: int, stage: str, state: State, sites: Sequence[Site]
    ) -> Question | Mapping[Site, Question]:
        """Return what all sites are asked in a stage, or what each is; sites that a mapping lacks are not asked.

        An empty mapping ends the run: what the rounds before have left is its result.
        """

    @abstractmethod
    def combine(self, server_round: int, stage: str, state: State, answers: Sequence[Answer[Any]]) -> State:
        """Return what is kept once a stage's usable answers, by name of their sites, are there."""

    def sample(self, nodes: Sequence[int], server_round: int) -> list[int]:
        """Return which nodes are asked in a round, in ascending order: as `Asking` says, or as a method does."""
        return self.asking.sample(nodes, server_round)

    def examine(self, stage: str, answer: Answer[Any]) -> None:
        """Raise UntrustedSetError for an answer that `combine` cannot take: its site is left out, the round goes on.

        Sets are held to `limits` before; sums and numbers of shapes that only the method knows are examined here.
        """

    def again(self, server_round: int, stage: str, state: State, site: Site, reason: str) -> Question | None:
        """Return what a site that refused is asked instead, once in a stage; None: nothing, it is left out."""
        return None

    def kind(self, stage: str, answer: Answer[Any]) -> str:
        """Say in words what an answer must have in common with the others of its stage; nothing: they go together.

        Where they differ, those stay that most sites sent. Sets must have images of one shape.
        """
        return kind_of(answer)

    def summary(self) -> None:
        """Log the settings."""
        self.asking.log()
        _LOG.info("\t└──> Accepts up to %d bytes an answer", self.limits.limits.nbytes)

    @in_own_state
    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord | None = None,
        num_rounds: int | None = None,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
    ) -> Result:
        """Run the rounds that `state` has not seen and return Flower's Result with the last weights.

        Args:
            grid: Reaches the nodes.
            initial_arrays: The global network's weights before the first round, where a strategy takes any.
            num_rounds: How many rounds there are in all; None: as many as the strategy has by itself.
            timeout: Seconds that nodes have for an answer.
            train_config: Fields of the task, in kebab-case, that differ from the strategy's own.
            evaluate_config: Not used: `evaluation` says what nodes are asked.
            evaluate_fn: Called with (round, weights) after each round, and with round 0 if there are initial weights.

        Raises:
            SettingError: A field or number that cannot work.
            AggregationError: A round had fewer usable answers than it needs; `state` is that of the round before.
            UntrustedSetError: Answers of two kinds came (images of two shapes, say), as many of one as of the other.
        """
        number_of_rounds = self.last_round = self.rounds if num_rounds is None else num_rounds
        if not 1 <= number_of_rounds <= (self.most_rounds or number_of_rounds):
            most = f", at most {self.most_rounds} for {type(self).__name__}" if self.most_rounds else ""
            raise SettingError(f"num_rounds {number_of_rounds}; needed: 1 or more{most}")
        if train_config:
            self.task = read(type(self.task), train_config, "train_config", self.task)
        _LOG.info("Starting %s, %d rounds:", type(self).__name__, number_of_rounds)
        self.summary()
        result = Result()
        if initial_arrays and not self.state.round:
            self.state = self.state.but(weights=Weights(dict(initial_arrays.to_torch_state_dict())))
            if evaluate_fn and (evaluated := evaluate_fn(0, initial_arrays)) is not None:
                result.evaluate_metrics_serverapp[0] = evaluated
        for server_round in range(self.state.round + 1, number_of_rounds + 1):
            _LOG.info("[ROUND %d/%d]", server_round, number_of_rounds)
            metrics = self._round(server_round, grid, timeout)
            if metrics is None:
                _LOG.info("round %d: nobody is to be asked; the run ends here", server_round)
                break
            result.train_metrics_clientapp[server_round] = metrics
            result.arrays = self._arrays()
            if (said := self.at_sites.metrics(server_round)) is not None:
                result.evaluate_metrics_clientapp[server_round] = said
            if evaluate_fn and result.arrays and (evaluated := evaluate_fn(server_round, result.arrays)) is not None:
                result.evaluate_metrics_serverapp[server_round] = evaluated
                self.history[-1] |= accuracy_in(evaluated)
            self.keep(self)
            tell(self.history)
        return result

    def _round(self, server_round: int, grid: Grid, timeout: float) -> MetricRecord | None:
        """Go through the stages of a round; None: nobody is to be asked."""
        state, metrics, tally, self.inboxes = self.state, MetricRecord(), Tally(), {}
        for stage in self.stages:
            tally.waits(connected, grid, self.asking, self.state.sites, self.barred)
            mailbox = self._questions(server_round, stage, state, grid)
            if not mailbox.sent:
                return None
            tally.waits(collect, grid, mailbox, timeout, self.asking)
            state, metrics = self.receive(server_round, stage, state, mailbox)
            tally.reads(mailbox, self.answers, self.refused)
        self.state = state.but(round=server_round)
        asked = self.at_sites.ask(server_round, grid, self.evaluation, self.state, self.refused, self.barred)
        tally.waits(collect, grid, asked, timeout, self.asking)
        tally.evaluates(asked)
        self.state = self.at_sites.hear(server_round, asked, self.state)
        self.history.append(tally.entry(server_round, ever_asked(self.state)))
        return metrics

    def evaluation(self, state: State) -> Evaluate | None:
        """Return what nodes are asked about the weights of a round; None: there are none to ask about."""
        network = self.network or str(getattr(getattr(self, "task", None), "network", ""))
        return question_of(state, self.limits, getattr(self, "classes", ()), network, self.asking.seed)

    @property
    def spent(self) -> dict[str, float]:
        """What the rounds so far took per site that was ever asked: bytes up and down, and the site's seconds."""
        return spent_per_site(self.state)

    def without(self, site: Site, first: Inbox) -> State:
        """Return what the first round leaves if a site is silent in it: the others' answers are combined again.

        A strategy whose answers of the first round depend on other sites', or which has several stages, overrides this.

        Args:
            site: Its name and key.
            first: What came back in the first round.

        Raises:
            SettingError: The strategy cannot do without asking again.
        """
        if len(self.stages) > 1:
            raise SettingError(
                f"{type(self).__name__} asks in stages, each of which depends on all answers before: run it anew "
                f"without {site.name} in another folder"
            )
        first.forget(site.key)
        return self.receive(1, self.stages[0], State(), first)[0].but(round=1)

    def _questions(self, server_round: int, stage: str, state: State, grid: Grid) -> Mailbox:
        """Wait for nodes, with a deadline, and return a mailbox with a question for each that is asked."""
        nodes = connected(grid, self.asking, state.sites, self.barred)
        found, names = found_among(grid.get_nodes(), self.sample(nodes, server_round), state.sites)
        sites = [site for site in found if site.key not in self.barred]
        asked = self.ask(server_round, stage, state, sites)
        tasks = asked if isinstance(asked, Mapping) else dict.fromkeys(sites, asked)

        def again(site: Site, reason: str) -> Sent | None:
            task = self.again(server_round, stage, state, site, reason)
            return None if task is None else questions({site: task}, server_round, self.limits.classes)[0]

        sent, kinds = questions(tasks, server_round, self.limits.classes), {task.name for task in tasks.values()}
        _LOG.info("round %d: asking %d nodes: %s", server_round, len(sent), ", ".join(sorted(kinds)))
        judges = partial(self.examine, stage), partial(self.kind, stage)
        return Mailbox(sent, self.limits, *judges, kept=state.sets, names=names, again=again)

    def receive(self, server_round: int, stage: str, state: State, inbox: Inbox) -> tuple[State, MetricRecord]:
        """Screen and combine the usable answers of a stage, however they came; return what is kept, and what it took.

        Raises:
            AggregationError: There are fewer than `Asking.min_replies`, or what they were combined to is not finite.
            UntrustedSetError: Answers of several kinds came, and as many of one as of another.
        """
        self.inboxes[stage] = inbox
        answers, refused = inbox.sorted()
        before, outgrown = state, inbox.outgrown()
        log_odd(server_round, inbox)
        state = state.but(sets={name: one for name, one in state.sets.items() if name not in outgrown})
        if self.screen is not None and any(isinstance(answer.payload, SyntheticSet) for answer in answers):
            known = Known(self.limits.classes, server_round, self.asking.seed)
            answers, gone, self.cut, self.verdicts = screened(self.screen, answers, known)
            refused += [Refusal(site, why) for site, why in gone.items()]
            self.screened += [(server_round, site, name, verdict) for (site, name), verdict in self.verdicts.items()]
            log_verdicts(server_round, self.verdicts, gone)
        self.answers, self.refused = tuple(answers), tuple(refused)
        self.left_out += [(server_round, one) for one in refused]
        check_enough(server_round, answers, refused, max(self.asking.min_replies, 1))
        state = self.combine(server_round, stage, state, answers)
        state = booked(before, state, server_round, inbox, answers)
        check_finite(server_round, state, len(answers))
        return state, metrics_of(answers, refused, self.asking)

    def _arrays(self) -> ArrayRecord:
        return ArrayRecord({} if self.state.weights is None else dict[str, Any](self.state.weights.tensors))

    @in_own_state
    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return the questions of the first stage; `start` asks those of every stage."""
        self._mailbox = self._questions(server_round, self.stages[0], self.state, grid)
        return [sent.message for sent in self._mailbox.sent]

    @in_own_state
    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Read the replies to what `configure_train` returned, and combine them."""
        for reply in replies:
            self._mailbox.take(reply)
        state, metrics = self.receive(server_round, self.stages[0], self.state, self._mailbox)
        self.state = state.but(round=server_round)
        return self._arrays(), metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return what nodes are asked about the weights of the round, as `evaluation` says."""
        self._mailbox = self.at_sites.ask(server_round, grid, self.evaluation, self.state, self.refused, self.barred)
        return [sent.message for sent in self._mailbox.sent]

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Read the replies to what `configure_evaluate` returned."""
        for reply in replies:
            self._mailbox.take(reply)
        self.state = self.at_sites.hear(server_round, self._mailbox, self.state)
        return self.at_sites.metrics(server_round)
