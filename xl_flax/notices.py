"""Notices of Google's machines that they will be taken away: as good as SIGTERM, and earlier.

Compute Engine's metadata server has two values that say so:

- `instance/maintenance-event` is TERMINATE_ON_HOST_MAINTENANCE before the machine is stopped: an
  hour before where it has GPUs, else a minute. NONE is none; MIGRATE_ON_HOST_MAINTENANCE moves the
  machine with all that runs, which goes on.
  (https://cloud.google.com/compute/docs/metadata/getting-live-migration-notice and
  https://cloud.google.com/compute/docs/gpus/gpu-host-maintenance)
- `instance/preempted` is TRUE once a spot or preemptible machine is being preempted; it then has
  some 30 seconds. (https://cloud.google.com/compute/docs/instances/create-use-spot)

With `wait_for_change=true` a request waits until the value is another one than that of `last_etag`.
(https://cloud.google.com/compute/docs/metadata/querying-metadata)

The server is asked only where GCE_METADATA_HOST names it, as for Google's own libraries: a machine
elsewhere looks up no names. `launch/host.sh` sets it on TPUs.
"""

import contextlib
import http.client
import os
import sys
import threading
import time
from collections.abc import Callable

HOST = "GCE_METADATA_HOST"
GOES = {  # what a value is when the machine goes
    "maintenance-event": "TERMINATE_ON_HOST_MAINTENANCE",
    "preempted": "TRUE",
}
WAIT = 60  # seconds that a request waits for a change
PAUSE = 1.0  # seconds before the server is asked again


def watch(ask: Callable[[], None]) -> None:
    """From now on `ask` is called, in another thread, when this machine is to be taken away."""
    if host := os.environ.get(HOST):
        for name in GOES:
            threading.Thread(target=_watch, args=(host, name, ask), daemon=True).start()


def _watch(host: str, name: str, ask: Callable[[], None]) -> None:
    """Asks until the value becomes that with which the machine goes.

    One that stands at the start stops nothing: the command was started all the same, and would be
    again and again. SIGTERM still comes at the end.
    """
    before, etag = GOES[name], ""
    while True:
        with contextlib.suppress(OSError, http.client.HTTPException):  # as while it is maintained
            value, etag = _ask(host, name, etag)
            if value == GOES[name] != before:
                print(f"this machine is taken away: {name} is {value}", file=sys.stderr, flush=True)
                ask()
                return
            before = value
        time.sleep(PAUSE)


def _ask(host: str, name: str, etag: str) -> tuple[str, str]:
    """The value, once it is another one than that with this tag; and its tag."""
    query = f"?wait_for_change=true&timeout_sec={WAIT}&last_etag={etag}" if etag else ""
    # Not by urllib: it would go through a proxy where one is set.
    connection = http.client.HTTPConnection(host, timeout=WAIT + 30)
    try:
        path = f"/computeMetadata/v1/instance/{name}{query}"
        connection.request("GET", path, headers={"Metadata-Flavor": "Google"})
        answer = connection.getresponse()
        value = answer.read().decode("utf-8", "replace").strip()
        if answer.status != http.HTTPStatus.OK:
            raise http.client.HTTPException(f"{answer.status}")
        return value, answer.headers.get("ETag", "")
    finally:
        connection.close()
