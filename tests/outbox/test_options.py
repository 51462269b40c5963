from typing import Any

import msgspec
import pytest

from edged.core.errors import ConfigError
from edged.outbox.options import MqttOptions


def test_where_the_broker_is() -> None:
    assert MqttOptions().broker == ""
    assert MqttOptions(host="broker").broker == "broker:1883"
    assert MqttOptions(host="broker", tls=True).broker == "broker:8883"
    assert MqttOptions(host="::1", port=1884).broker == "[::1]:1884"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cert_file": "a", "tls": True}, "cert_file and key_file go together"),
        ({"key_file": "a", "tls": True}, "cert_file and key_file go together"),
        ({"ca_file": "a"}, "mean nothing without TLS"),
        ({"password_file": "a"}, "needs a username"),
    ],
)
def test_options_that_contradict_one_another(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        MqttOptions(**options)
    assert caught.value.hint


@pytest.mark.parametrize("prefix", ["edged", "site/plant-1/edged", "a.b_c"])
def test_a_good_prefix(prefix: str) -> None:
    assert msgspec.convert({"prefix": prefix}, MqttOptions).prefix == prefix


@pytest.mark.parametrize("prefix", ["", "/edged", "edged/", "a//b", "a/+", "#", "$SYS", "a b", "a\n", "a" * 201])
def test_a_bad_prefix(prefix: str) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"prefix": prefix}, MqttOptions)
