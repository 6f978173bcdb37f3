"""Processes find one another, and each is told which are missing."""

import concurrent.futures
import functools
import socket
import time

import pytest

from xl_flax import evaluate, train
from xl_flax.errors import LostError, UserError, message
from xl_flax.parallel import rollcall

SECONDS = 1.0


@pytest.fixture
def port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def meet(port, *callers, seconds=SECONDS):
    """What `join` gives or says for each of the callers (count, index), which run at once."""

    def call(caller):
        try:
            links, hosts = rollcall.join(f"127.0.0.1:{port}", *caller, seconds)
        except UserError as error:
            return message(error)
        return sorted(links), sorted(hosts)

    with concurrent.futures.ThreadPoolExecutor(len(callers)) as pool:
        return list(pool.map(call, callers))


def test_all_are_there(port):
    assert meet(port, (3, 2), (3, 0), (3, 1)) == [
        ([0], [0, 1, 2]),
        ([1, 2], [0, 1, 2]),
        ([0], [0, 1, 2]),
    ]


def test_who_is_missing_is_said_on_all_that_came(port):
    begin = time.monotonic()
    said = meet(port, (5, 0), (5, 3))
    assert time.monotonic() - begin < 3 * SECONDS
    for text in said:
        assert "3 of 5 processes did not come within 1 s: processes 1, 2, 4 are missing" in text


def test_a_process_that_came_before_process_0_is_not_missing(port):
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        early = pool.submit(meet, port, (5, 3))
        time.sleep(SECONDS / 2)  # its time is over before that of process 0
        said = [*meet(port, (5, 0)), *early.result()]
    assert all("3 of 5 processes did not come" in text for text in said), said


def test_without_process_0_the_address_is_named(port):
    (said,) = meet(port, (2, 1))
    assert f"process 0 of 2 cannot be reached at 127.0.0.1:{port} within 1 s" in said
    assert "refused" in said
    said = meet(port, (3, 1), (3, 2))
    assert all("process 0 of 3 cannot be reached" in text for text in said)


def test_a_host_without_a_name_is_not_reached():
    with pytest.raises(UserError, match=r"reached at nowhere\.invalid:1234"):
        rollcall.join("nowhere.invalid:1234", 2, 1, 0.5)


@pytest.mark.parametrize(
    ("callers", "expected"),
    [
        (((3, 0), (2, 1)), "process 1 on .* was told of 2 processes, process 0 of 3"),
        (((2, 0), (2, 2)), "has number 2; they go from 0 to 1"),
        (((3, 0), (3, 1), (3, 1)), "two processes have number 1"),
    ],
)
def test_flags_that_contradict_each_other_are_named_on_all(port, callers, expected):
    said = meet(port, *callers)
    assert len(set(said)) == 1
    with pytest.raises(UserError, match=expected):
        raise UserError(said[0])


def test_a_missing_process_is_lost_and_flags_that_contradict_each_other_are_not(port):
    with pytest.raises(LostError):
        rollcall.join(f"127.0.0.1:{port}", 2, 0, 0.1)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        first = pool.submit(rollcall.join, f"127.0.0.1:{port}", 3, 0, SECONDS)
        with pytest.raises(UserError) as raised:
            rollcall.join(f"127.0.0.1:{port}", 2, 1, SECONDS)
        assert not isinstance(raised.value, LostError)
        assert type(first.exception()) is UserError


@pytest.mark.parametrize("failing", [0, 2])
@pytest.mark.parametrize("command", [train, evaluate], ids=lambda module: module.__name__)
def test_a_process_that_fails_before_it_joins_says_why(port, capsys, command, failing):
    """The others hear it at once; those that come later, too."""
    flags = [f"--coordinator=127.0.0.1:{port}", "--num_processes=4", f"--process_id={failing}"]

    def late():
        time.sleep(0.5)
        return meet(port, (4, 3), seconds=20 * SECONDS)

    others = [number for number in (0, 1, 2) if number != failing]
    begin = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        here = pool.submit(meet, port, *((4, i) for i in others), seconds=20 * SECONDS)
        there = pool.submit(late)
        with pytest.raises(SystemExit) as ended:
            command.main(["--gin_file=nowhere.gin", *flags])
        said = here.result() + there.result()
    assert ended.value.code == 1 and time.monotonic() - begin < 10
    assert capsys.readouterr().err.startswith("error: there is no Gin file nowhere.gin in ")
    reason = f"process {failing} of 4 ({socket.gethostname()}) has stopped: there is no Gin file no"
    assert len(said) == 3 and all(text.startswith(reason) for text in said)


def test_all_that_fail_end_at_once(port, capsys):
    def fail(index):
        rollcall.excuse(f"127.0.0.1:{port}", 3, index, 20 * SECONDS, "why")

    begin = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        list(pool.map(fail, range(3)))
    assert time.monotonic() - begin < 5


def test_something_else_at_the_address(port):
    with socket.create_server(("127.0.0.1", port)) as server:
        answer = functools.partial(serve_nonsense, server)
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            pool.submit(answer)
            (other,) = meet(port, (2, 1))
            (own,) = meet(port, (2, 0))
        assert "something else answers there" in other
        assert f"process 0 cannot listen at port {port}" in own


def serve_nonsense(server):
    server.settimeout(SECONDS / 2)
    for _ in range(2):
        try:
            connection, _ = server.accept()
        except TimeoutError:
            return
        with connection:
            connection.sendall(b"\x00\x00\x12 HTTP\n")


def test_strangers_do_no_harm_and_a_process_may_die_and_come_again(port):
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        met = pool.submit(meet, port, (2, 0), seconds=10 * SECONDS)
        for said in (b"GET / HTTP/1.1\r\n\r\n", b'{"process": "1", "of": [2]}\n', b""):
            with connected(port) as stranger:
                stranger.sendall(said)
        (second,) = meet(port, (2, 1), seconds=10 * SECONDS)
        assert second == ([0], [0, 1]) and met.result()[0] == ([1], [0, 1])


def test_one_that_died_is_replaced(port):
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        met = pool.submit(meet, port, (3, 0), seconds=10 * SECONDS)
        with connected(port) as dies:
            dies.sendall(b'{"process": 1, "of": 3, "host": "a"}\n')
        assert meet(port, (3, 1), (3, 2), seconds=10 * SECONDS) == [([0], [0, 1, 2])] * 2
        assert met.result()[0] == ([1, 2], [0, 1, 2])


def connected(port):
    for _ in range(100):
        try:
            return socket.create_connection(("127.0.0.1", port))
        except ConnectionRefusedError:
            time.sleep(0.05)
    raise AssertionError("nobody listens")


@pytest.mark.parametrize("address", ["host", "host:", ":80", "host:http", "host:70000", "host:0"])
def test_addresses_are_checked(address):
    with pytest.raises(UserError, match=r"--coordinator=.*must be HOST:PORT"):
        rollcall.split_address(address)


def test_addresses_of_both_kinds():
    assert rollcall.split_address("[fe80::1]:80") == ("fe80::1", 80)
    assert rollcall.split_address("tpu-0.svc:8476") == ("tpu-0.svc", 8476)
