"""What all commands share: Gin flags as in T5X, readable errors, exit codes."""

import argparse
import ast
import contextlib
import difflib
import importlib
import inspect
import logging
import os
import re
import sys
import tokenize
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import TextIO

import gin

from xl_flax import notices, stopping
from xl_flax.errors import LostError, UserError, device_failed, message
from xl_flax.files import remote
from xl_flax.files.read import check_local, check_regular

EXIT_DONE, EXIT_ERROR, EXIT_USAGE = 0, 1, 2
EXIT_PREEMPTED = stopping.CODE  # what is complete is saved: run the same command again
EXIT_LOST = stopping.LOST  # another process is gone, hangs or did not come

# What Gin files may configure. None of these imports TensorFlow.
CONFIGURABLES = (
    "xl_flax.converters.pretrained",
    "xl_flax.data.manifest",
    "xl_flax.data.stream",
    "xl_flax.data.vocabulary",
    "xl_flax.evaluation.alignment",
    "xl_flax.evaluation.choice",
    "xl_flax.evaluation.classification",
    "xl_flax.evaluation.config",
    "xl_flax.evaluation.masked_lm",
    "xl_flax.evaluation.mining",
    "xl_flax.evaluation.parsing",
    "xl_flax.evaluation.questions",
    "xl_flax.evaluation.representation",
    "xl_flax.evaluation.retrieval",
    "xl_flax.evaluation.tagging",
    "xl_flax.models.config",
    "xl_flax.objectives.choice",
    "xl_flax.objectives.classification",
    "xl_flax.objectives.contrastive",
    "xl_flax.objectives.mlm",
    "xl_flax.objectives.momentum",
    "xl_flax.objectives.parsing",
    "xl_flax.objectives.questions",
    "xl_flax.objectives.tlm",
    "xl_flax.parallel.mesh",
    "xl_flax.training.config",
    "xl_flax.training.optimizer",
    "xl_flax.training.transfer",
)


class Help(argparse.HelpFormatter):
    """Wraps each paragraph of a description; one with indented lines stays as it is."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        fill = super()._fill_text
        paragraphs = text.strip("\n").split("\n\n")
        return "\n\n".join(p if "\n " in f"\n{p}" else fill(p, width, indent) for p in paragraphs)


ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def parse(
    argv: Sequence[str],
    description: str,
    extra: Callable[[argparse.ArgumentParser], None] | None = None,
    needless: Sequence[str] = (),
    once: str | None = None,
) -> argparse.Namespace:
    """Parses a command's flags and the Gin configuration they name.

    Args:
      argv: the arguments after the command's name.
      description: what `--help` prints.
      extra: adds the command's own flags to the parser.
      needless: macros and parameters that a file may leave to be set, and that are not needed.
      once: a parameter that only one of several files may set, but for those of runs, unless a
        flag sets it.

    Returns:
      The namespace; `gin_flags` holds the Gin flags as they were given, for passing on.

    Raises:
      UserError: a Gin file, name or value that does not exist or cannot be read.
    """
    parser = argparse.ArgumentParser(
        description=description,
        formatter_class=Help,
        allow_abbrev=False,
        epilog="Gin values: --gin.NAME=VALUE sets a macro or a parameter, as in "
        "--gin.MODEL_DIR=/data/run or --gin.TrainConfig.steps=500; repeatable, the last one wins.",
    )
    parser.add_argument(
        "--gin_file", action="append", default=[], help="a Gin file; repeatable, in this order"
    )
    parser.add_argument(
        "--gin_search_paths",
        default="",
        help="comma-separated folders in which Gin files and their includes are looked for",
    )
    if extra:
        extra(parser)
    args, unknown = parser.parse_known_args(argv)
    bindings = []
    for flag in unknown:
        match = re.fullmatch(r"--gin\.([^=]+)=(.*)", flag, re.DOTALL)
        if not match:
            parser.error(f"unknown argument {flag!r}; Gin values look like --gin.NAME=VALUE")
        bindings.append(f"{match[1]} = {_literal(match[2])}")
    args.gin_flags = (
        [f"--gin_file={f}" for f in args.gin_file]
        + ([f"--gin_search_paths={args.gin_search_paths}"] if args.gin_search_paths else [])
        + unknown
    )
    check_paths(args, "gin_file")
    search_paths = [p for p in args.gin_search_paths.split(",") if p]
    said = any(binding.startswith(f"{once} = ") for binding in bindings)
    load_gin(args.gin_file, bindings, search_paths, needless, None if said else once)
    return args


def check_paths(args: argparse.Namespace, *names: str) -> None:
    """Raises UserError if a flag's path, or one of its paths, is an address such as gs://bucket."""
    for name in names:
        value = getattr(args, name) or []
        for path in value if isinstance(value, list) else [value]:
            check_local(path, f"--{name}")


def stage_paths(args: argparse.Namespace, *names: str) -> None:
    """Makes local paths of flags that may be addresses: those of their stages.

    Raises:
      UserError: an address that cannot be read.
    """
    for name in names:
        path = getattr(args, name)
        if path and not remote.is_folder(path):
            raise UserError(f"--{name} = {path!r}: must be {remote.FOLDER}")
        setattr(args, name, remote.staged(path) if path else path)


def load_gin(
    files: Sequence[str],
    bindings: Sequence[str] = (),
    search_paths: Sequence[str] = (),
    needless: Sequence[str] = (),
    once: str | None = None,
) -> None:
    """Reads Gin files (also relative to the project's root), then bindings.

    Args:
      files: in the order in which they count.
      bindings: lines of Gin.
      search_paths: more folders in which files are looked for.
      needless: macros and parameters that are "none" where the files leave them to be set.
      once: a parameter that only one of the files may set, but for those of runs.
    """
    for module in CONFIGURABLES:
        importlib.import_module(module)
    for path in (ROOT, *search_paths):
        gin.add_config_file_search_path(path)
    where = ""
    try:
        with _quiet():
            setting = []
            for where in files if once and len(files) > 1 else ():
                gin.clear_config()
                gin.parse_config_file(where)
                text = f"\n{gin.config_str()}"  # a run's file may build upon another one
                own = f"\n{once} = " in text and "\nTrainConfig." not in text
                setting += [where] if own else []
            gin.clear_config()
            for where in files:
                gin.parse_config_file(where)
        if len(setting) > 1:
            raise UserError(
                f"{' and '.join(setting)} all set {once}, and only the last would count: write a "
                "Gin file that includes them and lists what you want, with a scope for each, as "
                f"gin/runs/bible.gin does; or say here what counts: --gin.{once}=…"
            )
        from_files = gin.config_str()
        for name in needless:
            if f"\n{name} = %gin.REQUIRED\n" in f"\n{from_files}":
                gin.parse_config(f"{name} = 'none'")
        for where in bindings:
            gin.parse_config(where)
    except tokenize.TokenError as error:
        raise UserError(f"{where}: {error.args[0]}: is a bracket or quote left open?") from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"{where}, or what it includes, is no UTF-8 text: {explain(error)}"
        ) from error
    except (OSError, ValueError, SyntaxError, ImportError, TypeError) as error:
        raise UserError(_module_line(error) + explain(error)) from error
    except (Exception, SystemExit) as error:
        if not (place := _module_line(error)):
            raise
        raise UserError(f"{place}{type(error).__name__} {explain(error)}") from error
    _check_macros(gin.config_str(), from_files)


def _module_line(error: BaseException) -> str:
    """File and line of the module that raised this while a Gin file imported it; else nothing."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.name == "<module>"]
    return f"{frames[-1].filename}, line {frames[-1].lineno}: " if frames else ""


def _open(path: str) -> TextIO:
    check_regular(path)
    return open(path, encoding="utf-8")


# Gin reads regular files by itself, and would say of a FIFO or a folder that it is not there.
gin.config.register_file_reader(_open, os.path.exists)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Gin logs an error for each folder in which a file is not, also where the next one has it."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)


def _check_macros(config: str, from_files: str) -> None:
    """Refuses a value that is required but not set, and a macro that is set but not used."""
    if lacking := re.findall(r"^([\w./]+) = %gin\.REQUIRED$", config, re.MULTILINE):
        raise UserError(_unset(", ".join(lacking)))
    # Another flag may have replaced the binding that used the macro: the files' use counts too.
    used = set(re.findall(r"%(\w+)", config + from_files))
    for name in re.findall(r"^(\w+) = ", config, re.MULTILINE):
        if name not in used:
            close = difflib.get_close_matches(name, used, n=1, cutoff=0.5)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise UserError(f"{name} is set, but nothing uses a value of this name{hint}")


def _unset(name: str) -> str:
    flag = "NAME" if "," in name else name
    return f"{name} must be set: in a Gin file (--gin_file), or with --gin.{flag}=VALUE"


def run(main: Callable[[Sequence[str]], int | None]) -> None:
    """Runs a command's `main(argv)`, prints mistakes of the user as one line, and exits."""
    stopping.listen()
    notices.watch(stopping.ask)
    try:
        code = main(sys.argv[1:]) or EXIT_DONE
    except UserError as error:
        print(f"error: {message(error)}", file=sys.stderr)
        code = EXIT_LOST if isinstance(error, LostError) else EXIT_ERROR
    except OSError as error:
        path = error.filename2 or error.filename or "a file"  # the first of two is temporary
        print(f"error: {path}: {error.strerror or error}", file=sys.stderr)
        code = EXIT_ERROR
    except stopping.Stopped as stopped:
        print(stopping.LINE, file=sys.stderr)
        # JAX compiles in a thread of its own, which crashes when Python takes its modules down.
        stopping.end(stopped.code)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = EXIT_ERROR
    except Exception as error:
        if _from_gin(error) or _from_chips(error):
            print(f"error: {explain(error)}", file=sys.stderr)
            code = EXIT_ERROR
        elif device_failed(error):
            traceback.print_exc()  # which names the program that ran
            print("error: a device failed: run the same command again", file=sys.stderr)
            code = EXIT_LOST
        else:
            raise
    sys.stdout.flush()
    sys.exit(code)


def explain(error: Exception) -> str:
    """One line for an error that Gin raised: what is wrong, where, and what may have been meant."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines) or type(error).__name__
    text = re.sub(r" In bindings string line 1\b.*", "", text)  # a flag, which the user sees
    missing = re.search(r"Required bindings for `(\w+)` not provided in config: (\[.*?\])", text)
    if missing:
        names = ast.literal_eval(missing[2])
        return _unset(", ".join(f"{missing[1]}.{name}" for name in names))
    macro = re.search(r"macro\(\) missing .* in scope '(\w+)'", text)
    if macro:
        return _unset(macro[1])
    file = re.search(r"Unable to open file: (.*?)\. Searched config paths: (\[.*?\])\.", text)
    if file:
        paths = [path or os.getcwd() for path in ast.literal_eval(file[2])]
        folders = ", ".join(dict.fromkeys(paths))
        return f"there is no Gin file {file[1]} in {folders}{text[file.end() :]}"
    unknown = re.search(r"No configurable matching (?:reference )?'@?(\w+)", text)
    if unknown:
        close = difflib.get_close_matches(unknown[1], _names(), n=1, cutoff=0.5)
        return text + (f" Did you mean {close[0]!r}?" if close else "")
    parameter = re.search(r"Configurable '([\w.]+)' doesn't have a parameter named '(\w+)'", text)
    if parameter:
        made = gin.get_configurable(parameter[1])
        names = inspect.signature(made.__init__ if inspect.isclass(made) else made).parameters
        close = difflib.get_close_matches(parameter[2], names, n=1, cutoff=0.5)
        return text + (f" Did you mean {close[0]!r}?" if close else "")
    return text


def _from_gin(error: Exception) -> bool:
    """Whether Gin raised this because a value is missing."""
    return "Required bindings for" in str(error) or "macro() missing" in str(error)


def _from_chips(error: Exception) -> bool:
    """Whether JAX raised this because it cannot begin to use the chips of this machine."""
    return isinstance(error, RuntimeError) and "Unable to initialize backend" in str(error)


def _names() -> list[str]:
    """Names that Gin files may use, for suggestions."""
    return [
        name
        for module in CONFIGURABLES
        for name, value in vars(sys.modules[module]).items()
        if callable(value) and getattr(value, "__module__", None) == module
    ]


def _literal(value: str) -> str:
    """A Gin value; a bare word or path, as a shell user would write it, becomes a string."""
    if value.startswith("~/"):
        value = os.path.expanduser(value)
    try:
        ast.literal_eval(value)
    except (ValueError, SyntaxError):
        if not value.lstrip().startswith(("@", "%", "[", "(", "{")):
            return repr(value)
    return value
