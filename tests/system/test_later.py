"""Each test runs in an interpreter of its own, since this process has imported the modules."""

import subprocess
import sys

import pytest


def run(code: str) -> list[str]:
    """Return the lines that the code prints."""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def test_a_module_is_imported_with_the_first_use():
    code = "import sys; from edged.system.later import ssl; print('ssl' in sys.modules)"
    assert run(f"{code}; ssl.create_default_context(); print('ssl' in sys.modules)") == ["False", "True"]


def test_asyncio_serves_without_ssl_and_still_speaks_tls():
    assert run("""
import sys
from edged.system.later import import_asyncio
import_asyncio()
import asyncio
async def serve():
    server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
    server.close()
asyncio.run(serve())
print("ssl" in sys.modules)
import asyncio.selector_events, asyncio.sslproto, ssl
print(asyncio.selector_events.sslproto.SSLProtocol is asyncio.sslproto.SSLProtocol)
print(asyncio.sslproto.SSLAgainErrors == (ssl.SSLWantReadError, ssl.SSLSyscallError))
""") == ["False", "True", "True"]


def test_paho_knows_the_errors_of_tls_once_tls_is_used():
    assert run("""
import sys
from edged.system.later import import_paho
import_paho()
import paho.mqtt.client as paho
try:
    raise BlockingIOError
except paho.ssl.SSLWantReadError:
    print("an error of TLS")
except BlockingIOError:
    print("ssl" in sys.modules, "hashlib" in sys.modules, "urllib.request" in sys.modules)
import ssl
print(paho.ssl.SSLWantReadError is ssl.SSLWantReadError, paho.ssl.SSLContext is ssl.SSLContext)
""") == ["False False False", "True True"]


@pytest.mark.parametrize("method", ["ZIP_DEFLATED", "ZIP_BZIP2", "ZIP_LZMA"])
def test_archives_are_read_whatever_packed_them(method):
    assert run(f"""
import io
from edged.system.later import zipfile
file = io.BytesIO()
with zipfile.ZipFile(file, "w", zipfile.{method}) as archive:
    archive.writestr("name", "content")
print(zipfile.ZipFile(file).read("name").decode())
""") == ["content"]


def test_structs_are_converted_without_typing_extensions():
    assert run("""
import sys
from edged.system.later import import_msgspec
import_msgspec()
import msgspec
class Options(msgspec.Struct):
    port: "int | None" = None
print("typing_extensions" in sys.modules, msgspec.convert({"port": 1}, Options).port)
import typing_extensions
""") == ["False 1"]


def test_a_thread_waits_while_another_thread_imports_the_module(tmp_path, monkeypatch):
    (tmp_path / "slow.py").write_text("""
import threading
import user
other = threading.Thread(target=user.use)
other.start()
other.join(0.2)  # time for the other thread to see half a module
answer = 42
""")
    (tmp_path / "user.py").write_text("""
from edged.system.later import _Later
slow = _Later("slow")
seen = []
def use():
    seen.append(slow.answer)
""")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert run("import user; user.use(); user.slow.other.join(); print(user.seen)") == ["[42, 42]"]


def test_paho_asks_for_the_proxies_of_pysocks_by_a_later_import(monkeypatch):
    monkeypatch.setenv("mqtt_proxy", "http://proxy:8080")
    assert run("""
from edged.system.later import import_paho
import_paho()
from paho.mqtt import client
print(client.urllib.request.getproxies()["mqtt"])
""") == ["http://proxy:8080"]
