import os

from rgtrain.upstream.masked_tracking import masking_secrets


def test_trackers_record_the_configuration_without_its_secrets(monkeypatch):
    monkeypatch.setenv("WANDB_HTTPS_PROXY", "")
    recorded = []
    proxy = "http://me:SECRET@host"
    make_trackers = masking_secrets(lambda **arguments: recorded.append(arguments))
    make_trackers(
        config={"trainer": {"wandb_proxy": proxy, "test_freq": 2}, "hub": {"api_key": "SECRET"}},
        default_backend=["console"],
    )
    assert recorded == [
        {"config": {"trainer": {"test_freq": 2}, "hub": {"api_key": "***"}}, "default_backend": ["console"]}
    ]
    assert os.environ["WANDB_HTTPS_PROXY"] == proxy
