"""The address and the settings of an endpoint."""

import pytest
from support.chat_server import MODEL, PASSWORD
from support.endpoint_evaluation import endpoint_config

from rgtrain.errors import ConfigError
from rgtrain.evaluation.declared_keys import keys_of
from rgtrain.evaluation.endpoint_settings import EndpointSettings, parse_endpoint

KEYS = keys_of(EndpointSettings)


@pytest.mark.parametrize("key", KEYS.values(), ids=list(KEYS))
def test_every_setting_is_described_and_refuses_an_invalid_value(key):
    assert key.description and key.rule.words
    with pytest.raises(ConfigError, match=f"^endpoint's {key.name} is -1.5; give {key.rule.words}$"):
        parse_endpoint({key.name: -1.5}, base_url="http://localhost:8000/v1", model=MODEL)


@pytest.mark.parametrize(
    "url", ["http://", "http://[", "http://host:port/v1", "http://a b/v1", "ftp://host", "host/v1", 5, ""]
)
def test_an_invalid_address_is_refused_before_anything_starts(tmp_path, url):
    with pytest.raises(ConfigError, match="base_url"):
        endpoint_config(tmp_path, url)


def test_the_error_for_an_address_without_a_scheme_does_not_show_its_password():
    with pytest.raises(ConfigError, match="needs the endpoint's address, but base_url is") as refusal:
        parse_endpoint({}, base_url=f"me:{PASSWORD}@host/v1", model=MODEL)
    assert PASSWORD not in str(refusal.value)
