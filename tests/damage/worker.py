"""A process that stays warm and runs one command after the other, as `python -m` would run it.

Reads one JSON object a line: {"module": …, "arguments": […], "folder": …}. Answers with one line:
{"code": …, "out": …, "err": …}; what C++ code and other threads print counts as well.
"""

import importlib
import json
import os
import sys
import tempfile
import threading
import traceback


def run(module: str, arguments: list[str], folder: str) -> dict:
    """Runs one command in a folder and catches what it prints."""
    os.chdir(folder)
    sys.argv = [module, *arguments]
    kept = os.dup(1), os.dup(2)
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
        try:
            from xl_flax import cli

            cli.run(importlib.import_module(module).main)
            code = 0
        except SystemExit as stop:
            code = stop.code
        except BaseException:
            traceback.print_exc()
            code = 70
        sys.stdout.flush()
        sys.stderr.flush()
        for descriptor, number in zip(kept, (1, 2), strict=True):
            os.dup2(descriptor, number)
            os.close(descriptor)
        said = []
        for file in (out, err):
            file.seek(0)
            said.append(file.read().decode(errors="replace"))
    return {"code": code, "out": said[0], "err": said[1]}


def serve() -> None:
    """Serves until its input ends."""
    import resource

    answers = os.fdopen(os.dup(1), "w")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in sys.stdin:
        answer = run(**json.loads(line))
        answer["threads"] = threading.active_count()
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    os._exit(0)  # without waiting for threads of what was interrupted


if __name__ == "__main__":
    serve()
