"""What the metadata server of a machine says ends a command as SIGTERM does."""

import contextlib
import http.server
import os
import subprocess
import sys
import threading
import time
import urllib.parse

import pytest

from xl_flax import notices, stopping

# A command that waits to be asked, as training does.
COMMAND = """
import time
from xl_flax import cli, notices, stopping

notices.PAUSE = 0.05

def main(argv):
    with stopping.deferred():
        print("begins", flush=True)
        while not stopping.asked():
            time.sleep(0.05)
        return stopping.CODE

cli.run(main)
"""


class Server(http.server.ThreadingHTTPServer):
    """A metadata server on loopback: values that can change, and requests that wait for it."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.values = {"maintenance-event": "NONE", "preempted": "FALSE"}
        self.changed = threading.Condition()
        self.asked, self.down = [], False
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def change(self, name, value):
        with self.changed:
            self.values[name] = value
            self.changed.notify_all()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        path, _, query = self.path.partition("?")
        folder, _, name = path.rpartition("/")
        flavor, server = self.headers["Metadata-Flavor"], self.server
        server.asked.append(self.path)
        if folder != "/computeMetadata/v1/instance" or flavor != "Google" or server.down:
            self.send_error(503)
            return
        query = dict(urllib.parse.parse_qsl(query))
        with server.changed:
            if query.get("wait_for_change") == "true":
                server.changed.wait_for(
                    lambda: server.values[name] != query["last_etag"], int(query["timeout_sec"])
                )
            value = server.values[name]
        self.send_response(200)
        self.send_header("ETag", value)
        self.end_headers()
        self.wfile.write(value.encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with contextlib.closing(Server()) as server:
        yield server
        server.shutdown()


Server.close = Server.server_close


def wait_for(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_command_ends_as_by_sigterm_when_its_machine_goes(server):
    host = f"127.0.0.1:{server.server_port}"
    command = subprocess.Popen(
        [sys.executable, "-c", COMMAND], env=os.environ | {notices.HOST: host},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert command.stdout.readline() == "begins\n"
    wait_for(lambda: sum("last_etag" in path for path in server.asked) == 2)
    server.change("maintenance-event", "MIGRATE_ON_HOST_MAINTENANCE")  # goes on elsewhere
    wait_for(lambda: any("last_etag=MIGRATE" in path for path in server.asked))
    assert command.poll() is None
    server.change("preempted", "TRUE")
    errors = command.communicate(timeout=30)[1]
    assert command.returncode == stopping.CODE
    assert errors == "this machine is taken away: preempted is TRUE\n"


def test_a_notice_that_stands_at_the_start_stops_nothing_and_the_next_does(server, monkeypatch):
    asked = threading.Event()
    monkeypatch.setattr(notices, "PAUSE", 0.02)
    monkeypatch.setenv(notices.HOST, f"127.0.0.1:{server.server_port}")
    name, goes = "maintenance-event", "TERMINATE_ON_HOST_MAINTENANCE"
    server.values[name] = goes
    server.down = True  # for a moment
    notices.watch(asked.set)
    wait_for(lambda: len(server.asked) > 4)
    server.down = False
    wait_for(lambda: any(f"last_etag={goes}" in path for path in server.asked))
    assert not asked.is_set()
    server.change(name, "NONE")
    wait_for(lambda: any(f"{name}?" in p and "last_etag=NONE" in p for p in server.asked))
    assert not asked.is_set()
    server.change(name, goes)
    assert asked.wait(30)


def test_elsewhere_nobody_is_asked(monkeypatch):
    monkeypatch.delenv(notices.HOST, raising=False)
    before = threading.active_count()
    notices.watch(lambda: None)
    assert threading.active_count() == before
