"""Processes that say nothing are named, on all others; what ends one says with which code."""

import concurrent.futures
import socket
import time

import jax
import pytest

from xl_flax import stopping
from xl_flax.errors import LostError, UserError
from xl_flax.parallel import peers as peers_lib
from xl_flax.parallel import rollcall
from xl_flax.parallel.peers import Peers


@pytest.fixture
def ended(monkeypatch):
    """The codes with which processes would have ended; and quick beats."""
    codes = []
    monkeypatch.setattr(stopping, "end", codes.append)
    monkeypatch.setattr(stopping, "_hooks", [])
    for name, value in {"BEAT": 0.05, "BEATS": 8, "GRACE": 0.0, "NEWS": 0.2, "SOON": 0.1}.items():
        monkeypatch.setattr(peers_lib, name, value)
    monkeypatch.setattr(peers_lib, "_end_later", lambda code: None)
    monkeypatch.setattr(peers_lib.atexit, "register", lambda function, code: codes.append(code))
    return codes


@pytest.fixture
def meet(ended):
    """Makes so many processes, of which some say nothing after the roll call."""
    made = []

    def meet(count, silent=()):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        with concurrent.futures.ThreadPoolExecutor(count) as pool:
            join = lambda i: rollcall.join(f"127.0.0.1:{port}", count, i, 20.0)  # noqa: E731
            joined = list(pool.map(join, range(count)))
        made.extend(Peers(i, *joined[i]) for i in range(count) if i not in silent)
        made_links.extend(link for links, _ in joined for link in links.values())
        return made

    made_links = []
    yield meet
    for peers in made:
        peers._leaving = True  # else they would end this process
    for link in made_links:
        link.close()


def wait_for(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("silent", [0, 2])
def test_who_says_nothing_is_named_on_all_others(meet, ended, capfd, silent):
    meet(3, [silent])
    wait_for(lambda: len(ended) == 2)
    assert ended == [stopping.LOST] * 2
    host = socket.gethostname()
    # Here both write to one stream, and their lines may meet.
    before, *errors = capfd.readouterr().err.split("error: ")
    assert not before and len(errors) == 2
    for text in errors:
        assert text.startswith(f"process {silent} of 3 ({host}) has not been heard of for")


def test_who_waits_at_a_place_is_told_by_an_exception(meet, ended):
    first, second = meet(3, [2])
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(peers.gather, "a place") for peers in (first, second)]
        for each in waiting:
            with pytest.raises(LostError, match="process 2 of 3"):
                each.result(20)


def test_whoever_beats_lives_however_long_it_takes(meet, ended, monkeypatch, capfd):
    monkeypatch.setattr(peers_lib, "PATIENCE", 0.3)
    first, second = meet(2)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(first.gather, "the cache")
        time.sleep(1.0)  # more than twice the silence that ends a run
        second.gather("the cache")
        waiting.result(20)
    assert not ended
    assert "still waiting for process 1 at 'the cache'" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UserError("no such file"), 1),
        (OSError(28, "No space left on device"), 1),
        (TypeError("a mistake"), 1),
        (jax.errors.JaxRuntimeError("UNAVAILABLE: the chip is gone"), stopping.LOST),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory"), 1),
        (stopping.Stopped(), stopping.CODE),
    ],
    ids=lambda value: str(value)[:20],
)
def test_the_code_says_whether_starting_again_may_help(meet, ended, error, code):
    _, second = meet(2)
    second.failed(error)
    wait_for(lambda: len(ended) == 2)
    assert ended == [code, code]  # its own, and that of process 0


def test_a_collective_that_fails_first_is_not_the_reason(meet, ended):
    """Gloo gives up after half a minute, before silence is long enough."""
    first, _ = meet(3, [2])
    with pytest.raises(LostError, match="process 2 of 3 .* not been heard of"):
        first.failed(jax.errors.JaxRuntimeError("Gloo all-reduce failed: timed out"))


def test_an_error_that_follows_from_a_lost_process_is_not_the_reason(meet, ended):
    (first,) = meet(2, [1])
    first._links[1].close()
    with pytest.raises(LostError, match="process 1 of 2 .* is gone"):
        first.failed(jax.errors.JaxRuntimeError("Gloo all-reduce failed"))
    assert stopping.LOST in ended
