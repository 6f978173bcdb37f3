"""Object stores over loopback: servers of the protocols of Google Cloud Storage and S3."""

import contextlib
import os
import shutil
import socket
import subprocess
import time
import urllib.request

import pytest

from xl_flax import cli
from xl_flax.files import remote

MOTO = os.path.join(cli.ROOT, ".venv-moto", "bin", "moto_server")  # tests/run.sh makes it
KEYS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
}


MEMORY = "memory://bucket/run"


def memory(monkeypatch, stage):
    """A store in memory, whose addresses may be given; it is empty. Tries are not far apart."""
    monkeypatch.setitem(remote.SCHEMES, "memory", ("fsspec", "none", "nobody"))
    monkeypatch.setenv(remote.STAGE_DIR, str(stage))
    monkeypatch.setattr(remote, "WAITS", (0.0, 0.0))
    fs = remote._file_system("memory")
    fs.store.clear()
    fs.pseudo_dirs[:] = [""]  # folders that another test made stand in a list of their own
    return fs


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@contextlib.contextmanager
def google():
    """A server with the bucket gs://bucket; what commands need in their environment."""
    pytest.importorskip("gcsfs", reason="gcsfs is not installed (extra gcs)")
    server = pytest.importorskip("gcp_storage_emulator.server", reason="no emulator of GCS")
    port = free_port()
    running = server.create_server("127.0.0.1", port, in_memory=True, default_bucket="bucket")
    with pytest.MonkeyPatch.context() as patch:  # more than five clients may wait for their turn
        patch.setattr(server.server.HTTPServer, "request_queue_size", 100)
        running.start()
    try:
        yield {"STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{port}"}
    finally:
        running.stop()


@contextlib.contextmanager
def amazon():
    """A server with the bucket s3://bucket; what commands need in their environment."""
    pytest.importorskip("s3fs", reason="s3fs is not installed (extra s3)")
    moto = shutil.which("moto_server") or (MOTO if os.path.exists(MOTO) else None)
    if moto is None:
        pytest.skip("there is no moto_server: tests/run.sh makes .venv-moto")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    running = subprocess.Popen(
        [moto, "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        for _ in range(100):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(url)
                break
            time.sleep(0.1)
        yield {"AWS_ENDPOINT_URL": url} | KEYS
    finally:
        running.terminate()
        running.wait()


SERVERS = {"gs": google, "s3": amazon}


@contextlib.contextmanager
def store(scheme):
    """A server, which this process reads, too; its file system of fsspec."""
    with SERVERS[scheme]() as environment, pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        forget()
        fs = remote._file_system(scheme)
        if not (scheme == "gs" or fs.exists("bucket")):
            fs.mkdir("bucket")
        yield fs
    forget()


def forget():
    """File systems keep the server that they were made for."""
    if remote._file_system.cache_info().currsize:
        import fsspec

        for scheme in SERVERS:
            with contextlib.suppress(ImportError):
                fsspec.get_filesystem_class(scheme).clear_instance_cache()
    remote._file_system.cache_clear()
