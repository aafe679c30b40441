"""The state file of the service is whole, has one user and fits its environment."""

import json

import pytest

from rgtrain.environments import GroupReport, open_environment
from rgtrain.environments.service.service_state import ServiceState
from rgtrain.errors import ConfigError


@pytest.fixture(scope="module")
def environment():
    # Nothing is scored here, so no scoring processes start.
    with open_environment(
        mixture={"chain_sum": {}, "gcd": {}},
        mixture_policy={"name": "adaptive"},
        validation_size=1,
        hold_out_shipped=False,
    ) as environment:
        yield environment


def test_a_restarted_service_continues_from_its_state(environment, tmp_path):
    path = tmp_path / "state.json"
    state = ServiceState(environment, path)
    groups = [GroupReport(environment.problem(0).id, [1, 0], [1, 0])]
    assert state.report(groups, report_id="a")[0]
    environment.take(3)
    after = environment.state_dict()
    state.close()
    environment.report(groups)
    assert environment.state_dict() != after
    restarted = ServiceState(environment, path)
    assert environment.state_dict() == after
    assert not restarted.report(groups, report_id="a")[0]
    assert environment.state_dict() == after
    restarted.close()


def test_a_report_that_cannot_be_used_changes_nothing(environment, tmp_path):
    path = tmp_path / "state.json"
    state = ServiceState(environment, path)
    before = environment.state_dict()
    groups = [GroupReport(environment.problem(0).id, [1], [1]), GroupReport("absent", [1], [1])]
    with pytest.raises(ConfigError):
        state.report(groups, report_id="b")
    assert environment.state_dict() == before
    assert state.report(groups[:1], report_id="b")[0]
    state.close()


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "{}", "[" * 100_000, json.dumps({"environment": {}, "report_ids": []}), "\udcff"],
    ids=["empty", "cut", "list", "no keys", "deep", "no state", "no UTF-8"],
)
def test_a_damaged_file_is_refused_and_kept(environment, tmp_path, content):
    path = tmp_path / "state.json"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    before = environment.state_dict()
    with pytest.raises(ConfigError, match="damaged"):
        ServiceState(environment, path)
    assert environment.state_dict() == before
    assert path.read_bytes() == content.encode("utf-8", "surrogateescape")


def test_two_services_cannot_share_a_file(environment, tmp_path):
    state = ServiceState(environment, tmp_path / "state.json")
    with pytest.raises(ConfigError, match="another service uses"):
        ServiceState(environment, tmp_path / "state.json")
    state.close()
    ServiceState(environment, tmp_path / "state.json").close()
    with pytest.raises(ConfigError, match="cannot be written"):
        ServiceState(environment, tmp_path / "absent" / "state.json")
