"""What is wrong with a task, said so that its user can mend it."""

import re
import traceback
from collections.abc import Callable, Sequence

from xl_flax.data.features import Example
from xl_flax.data.fingerprint import is_own_file
from xl_flax.errors import UserError
from xl_flax.files.text import broken_lines


def explain(error: Exception, task: str, split: str, files: Callable[[], Sequence[str]]) -> str:
    """One line that names task, split and culprit. TensorFlow's errors are known by their names.

    Args:
      error: raised by Python code of the task, or by TensorFlow.
      task: its name.
      split: that was read.
      files: gives those of the split.
    """
    name = f"task {task!r}, split {split!r}"
    text, kind = str(error), type(error).__name__
    user_error = re.search(r"UserError: (.*)", text)
    if user_error:  # raised by Python code that TensorFlow called
        return f"{name}: {user_error[1]}"
    if isinstance(error, UnicodeDecodeError) or "Invalid formatting on input string" in text:
        place = next((p for file in files() for p in broken_lines(file)), None)
        return (
            f"{name}: the text is not valid UTF-8{f', {place}' if place else ''}: "
            "convert it (iconv -f ... -t UTF-8) or remove the line"
        )
    if kind == "NotFoundError" or "No file is found" in text:
        return f"{name}: a data file is missing: {_first_line(text)}"
    if kind == "DataLossError":
        return f"{name}: a data file is truncated or damaged: {_first_line(text)}"
    return f"{name}: {_first_line(text)}"


def explain_import(error: BaseException, module: str) -> str:
    """One line for what was raised while a task module was imported: its file and line.

    Args:
      error: of any kind, as `SystemExit`.
      module: its name.
    """
    what = f"cannot import task module {module!r}"
    if isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}."):
        return f"{what} ({error}): is it on PYTHONPATH, and spelt as in Cache.task_modules?"
    said = f"{type(error).__name__}: {_first_line(str(error))}"
    if isinstance(error, SystemExit):
        said = f"it ends the process, with exit code {error.code!r}"
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.name == "<module>"]
    places = [(f.filename, f.lineno) for f in frames if is_own_file(f.filename)]
    if isinstance(error, SyntaxError):
        places = [(error.filename, error.lineno)]
    where = f" at {places[-1][0]}, line {places[-1][1]}" if places else ""
    return f"{what}{where}: {said}"


def _first_line(text: str) -> str:
    text = re.sub(r"\{\{.*?\}\}|\[Op:\w+\]( name:)?", "", text)
    return next((line.strip() for line in text.splitlines() if line.strip()), "unknown error")


def check_languages(
    name: str,
    languages: tuple[str, ...],
    examples: Sequence[Example],
    given: Sequence[tuple[str, ...]],
) -> None:
    """Raises UserError unless all examples have the same languages, and a text for each.

    Args:
      name: of the task and split.
      languages: of the first example.
      examples: some of the task's.
      given: the languages of these examples.
    """
    if other := set(given) - {languages}:
        raise UserError(
            f"{name} has examples in {'-'.join(languages)!r} and in {'-'.join(other.pop())!r}: "
            "make one task for each and name them in a mixture"
        )
    if wrong := {len(example.texts) for example in examples} - {len(languages)}:
        raise UserError(
            f"{name} has examples of {wrong.pop()} texts and {len(languages)} languages "
            f"({', '.join(languages)}): 'tokens' and 'language' need one entry for each text"
        )
