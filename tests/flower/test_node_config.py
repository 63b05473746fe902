"""A node's own config, which is read before anything else is done."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from flwr.app import Context, Message, RecordDict

from fedcondense.data.images import Data
from fedcondense.errors import SettingError
from fedcondense.flower.caps import Caps
from fedcondense.flower.hosts.inprocess import InProcessGrid, task_identity
from fedcondense.flower.ledger import Allowance
from fedcondense.flower.node_config import KEPT_APART, Desk, NodeConfig, place_of
from fedcondense.flower.settings import keys_of
from fedcondense.flower.strategies.one_shot import Condense
from fedcondense.flower.wire import pack_question
from fedcondense.randomness import stream

ReasonOf = Callable[[Message], str]


def placed(config: dict[str, Any], **desk: Any) -> Any:
    return place_of(Context(1, 77, config, RecordDict(), {}), Desk(**desk))


class TestConfig:
    def test_the_nodes_own_config_goes_before_the_apps_caps(self) -> None:
        caps = placed({"max-ipc": 3, "allow-real": True}, caps=Caps(max_ipc=9, max_steps=7)).caps
        assert caps == Caps(max_ipc=3, max_steps=7, allow_real=True)
        assert placed({"life-images": 5}).allowance == Allowance(life_images=5)

    @pytest.mark.parametrize("key", [*keys_of(Caps), *keys_of(Allowance), *keys_of(NodeConfig)])
    def test_a_key_that_looks_like_one_of_ours_is_refused_whoever_loads_the_data(self, key: str) -> None:
        if len(key) > 4:
            with pytest.raises(SettingError, match=f"no setting is called '{key}s'; did you mean '{key}'"):
                placed({f"{key}s": 1})

    @pytest.mark.parametrize("key", ["max-epochs", "allow-everything", "min-age", "life-of-pi"])
    def test_what_begins_like_a_cap_is_refused(self, key: str) -> None:
        with pytest.raises(SettingError, match=f"no setting is called '{key}'"):
            placed({key: 1})

    def test_keys_of_a_loader_of_ones_own_pass_unless_the_app_is_stock(self) -> None:
        placed({"hospital": "st-marys"})
        with pytest.raises(SettingError, match="no setting is called 'hospital'"):
            placed({"hospital": "st-marys"}, is_stock=True)

    def test_all_that_is_wrong_is_said_at_once(self) -> None:
        with pytest.raises(SettingError) as refused:
            placed({"max-ipc": 0, "allow-real": "yes", "max-bites": 3, "life-epsilon": float("nan")})
        for needed in ("max-ipc = 0", "allow-real = 'yes'; needed: true or false", "'max-bites'", "life-epsilon = nan"):
            assert needed in str(refused.value)

    @pytest.mark.parametrize(
        ("config", "needed"),
        [
            ({"partition-id": -1}, "partition-id = -1 in this node's config; needed: 0 or more"),
            ({"partition-id": 3, "num-partitions": 3}, "partition-id = 3 in this node's config; needed: 0 to 2"),
            ({"name": "../x"}, "name = '../x' in this node's config; needed: letters, digits"),
            ({"threads": -1}, "threads = -1; needed: a whole number from 0"),
            ({"share-with": "all"}, "share-with = 'all' in this node's config; needed: server, or sites"),
        ],
    )
    def test_numbers_and_names_that_cannot_be_are_refused(self, config: dict[str, Any], needed: str) -> None:
        with pytest.raises(SettingError, match=needed):
            placed(config)

    @pytest.mark.parametrize(
        ("config", "name", "place"),
        [
            ({"name": "st-marys", "partition-id": 3}, "st-marys", 3),
            ({"partition-id": 3}, "client-3", 3),
            ({"name": "st-marys"}, "st-marys", 77),
            ({}, "node-77", 77),
        ],
    )
    def test_what_it_calls_itself_and_its_own_number(self, config: dict[str, Any], name: str, place: int) -> None:
        context = Context(1, 77, config, RecordDict(), {})
        found = placed(config)
        assert (found.name(context), found.place(context)) == (name, place)

    @pytest.mark.parametrize(
        ("config", "run", "is_stock", "share"),
        [
            ({}, {}, False, 0.0),
            ({"data": "digits"}, {}, False, KEPT_APART),
            ({"data": "digits", "keep-apart": 0.0}, {}, True, 0.0),
            ({"data": "digits", "keep-apart": 0.3}, {}, True, 0.3),
            ({"keep-apart": 1}, {}, False, 1),
            ({}, {}, True, 0.0),
            ({}, {"keep-apart": 0.2}, True, 0.2),
            ({"keep-apart": 0.3}, {"keep-apart": 0.2}, True, 0.3),
            ({}, {"keep-apart": 0.2}, False, 0.0),
            ({"data": "digits"}, {"keep-apart": 0.2}, True, KEPT_APART),
        ],
    )
    def test_own_data_are_kept_apart_by_default_and_public_ones_if_the_run_says_so(
        self, config: dict[str, Any], run: dict[str, Any], is_stock: bool, share: float
    ) -> None:
        assert place_of(Context(1, 77, config, RecordDict(), run), Desk(is_stock=is_stock)).kept_share == share

    def test_a_run_that_keeps_no_share_apart_is_refused(self) -> None:
        with pytest.raises(SettingError, match=r"the run's config: keep-apart = 1\.5; needed: a number from 0 to 1"):
            place_of(Context(1, 77, {}, RecordDict(), {"keep-apart": 1.5}), Desk(is_stock=True))

    def test_what_is_kept_apart_and_what_is_learned_from_are_all_records(self, train: Data) -> None:
        found = placed({"keep-apart": 0.3})
        learned, apart = found.enough(train), found.apart(train)
        assert len(learned) + len(apart) == len(train)
        assert (apart.counts == (0.3 * train.counts.double()).floor()).all()

    def test_no_class_falls_below_min_records_by_it(self, train: Data) -> None:
        few = train.subset(train.per_class(11, stream(0)))
        for least, kept in ((11, 0), (10, 1), (9, 2), (12, 0)):
            found = placed({"keep-apart": 0.5, "min-records": least})
            assert found.apart(few).counts.tolist() == [kept] * 10
            if least < 12:
                assert found.enough(few).counts.tolist() == [11 - kept] * 10

    def test_the_data_are_not_loaded_before_the_config_is_read(self, train: Data, reason_of: ReasonOf) -> None:
        from fedcondense.flower.client import make_client_app

        def load(context: Context) -> Data:
            raise AssertionError("loaded")

        with task_identity():
            grid = InProcessGrid(make_client_app(load), 1, node_config={"max-ipcs": 3})
            message = Message(pack_question(Condense(), 1), 100, "query.condense")
            assert "did you mean 'max-ipc'" in reason_of(next(iter(grid.send_and_receive([message]))))


@pytest.mark.parametrize(
    "key",
    ["min_records", "MIN-RECORDS", "minimum-records", "records-min", "max-ips", "allow_weights", "Max.Ipc", "life"],
)
def test_a_key_that_looks_like_a_cap_is_never_left_out_in_silence(key: str) -> None:
    context = Context(1, 1, {key: 50, "color": "mine"}, RecordDict(), {})
    with pytest.raises(SettingError, match="no setting is called"):
        place_of(context, Desk())


def test_a_part_of_a_divided_set_needs_its_number() -> None:
    for number in ({}, {"partition-id": 3}, {"partition-id": -1}, {"partition-id": 1.0}, {"partition-id": "1"}):
        context = Context(1, 1, {"num-partitions": 3, **number}, RecordDict(), {})
        with pytest.raises(SettingError, match="partition-id"):
            place_of(context, Desk(is_stock=True))


def test_a_device_or_threads_that_this_machine_lacks_are_refused_before_the_data_are_read() -> None:
    for config in ({"device": "meta"}, {"device": "cuda:99"}, {"threads": 100_000}):
        with pytest.raises(SettingError, match=r"device|threads"):
            place_of(Context(1, 1, dict(config), RecordDict(), {}), Desk())


def test_alpha_is_the_same_wherever_nothing_else_is_said() -> None:
    import inspect

    from fedcondense.cli.federation import federate
    from fedcondense.data.dirichlet import partition_dirichlet
    from fedcondense.flower.server import ServerSettings

    alphas = {inspect.signature(f).parameters["alpha"].default for f in (federate, partition_dirichlet)}
    assert alphas == {NodeConfig().alpha, ServerSettings().alpha} == {0.5}
