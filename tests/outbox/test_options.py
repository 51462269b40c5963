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
        ({"ca_file": "a"}, "have no effect without TLS"),
        ({"password_file": "a"}, "needs a username"),
        ({"server_name": "a"}, "has no effect without TLS"),
        ({"server_name": "a:1", "tls": True}, "server_name is 'a:1'"),
        ({"path": "mqtt"}, "path is 'mqtt'"),
        ({"path": "/a b"}, "path is '/a b'"),
        ({"path": "/a\r\nX: y"}, "path is"),
        ({"username": "${USER}"}, "username is"),
    ],
)
def test_options_that_contradict_one_another(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        MqttOptions(**options)
    assert caught.value.hint


@pytest.mark.parametrize(
    "host", ["broker", "broker.local.", "10.0.0.1", "::1", "fe80::1%eth0", "münchen.example", "xn--mnchen-3ya.example"]
)
def test_a_good_host(host: str) -> None:
    assert MqttOptions(host=host).host == host


PARTS = "separate the parts of a name by single dots, and the four numbers of an address, each up to 255"


@pytest.mark.parametrize(
    ("host", "hint"),
    [
        ("mqtt://x", 'write host = "x"'),
        ("x:1884", 'write host = "x", port = 1884'),
        ("[::1]", 'write host = "::1"'),
        ("[::1]:1884", 'write host = "::1", port = 1884'),
        (" x ", 'write host = "x"'),
        ("x\n", 'write host = "x"'),
        ("x/", 'write host = "x"'),
        ("mqtts://me@x:8884", 'write host = "x", port = 8884, username = "me", tls = true'),
        ("wss://x/ws", 'write host = "x", transport = "websockets", tls = true, path = "/ws"'),
        ("my broker", "write the name or the address of the host alone, without blanks"),
        *((wrong, PARTS) for wrong in ("a..b", ".a", "a.b..", ".", "a" * 64 + ".b", "10.0.0", "10.0.0.256", ":::")),
        ("x:y:z", "write the name or the address of the host alone, without blanks"),
        ("${BROKER}", "write the name or the address: variables are not replaced here"),
        ("mqtt://$BROKER", "write the name or the address: variables are not replaced here"),
    ],
)
def test_a_host_that_is_spelled_wrongly_is_refused_with_the_right_spelling(host: str, hint: str) -> None:
    with pytest.raises(ConfigError, match="neither a name nor an address") as caught:
        MqttOptions(host=host)
    assert caught.value.hint == hint


def test_a_password_in_a_host_is_not_shown() -> None:
    with pytest.raises(ConfigError) as caught:
        MqttOptions(host="mqtt://me:secret@x")
    assert "secret" not in f"{caught.value}{caught.value.hint}"


def test_over_websockets_the_ports_are_those_of_web_servers() -> None:
    assert MqttOptions(host="x", transport="websockets").broker == "x:80"
    assert MqttOptions(host="x", transport="websockets", tls=True).broker == "x:443"
    assert MqttOptions(host="x", transport="websockets", port=9001).broker == "x:9001"


@pytest.mark.parametrize("prefix", ["edged", "site/plant-1/edged", "a.b_c"])
def test_a_good_prefix(prefix: str) -> None:
    assert msgspec.convert({"prefix": prefix}, MqttOptions).prefix == prefix


@pytest.mark.parametrize("prefix", ["", "/edged", "edged/", "a//b", "a/+", "#", "$SYS", "a b", "a\n", "a" * 201])
def test_a_bad_prefix(prefix: str) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"prefix": prefix}, MqttOptions)
