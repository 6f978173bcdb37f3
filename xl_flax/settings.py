"""What settings may be: declared in the annotations of the classes that Gin configures.

A configuration class inherits from `Settings`; an annotation says all that a field alone can get
wrong, its type and its range, and `__post_init__` is for what two fields can get wrong together:

    @gin.configurable
    @dataclasses.dataclass(frozen=True)
    class Schedule(Settings):
        steps: Count = gin.REQUIRED
        rate: Annotated[float, Interval(gt=0, lt=1)] = 0.15

`Schedule(steps="x")` then raises "Schedule.steps = 'x': must be a whole number, at least 1".
"""

import dataclasses
import functools
import itertools
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

import gin
from annotated_types import DocInfo, Ge, Gt, Interval, Len, Lt, Predicate, doc
from annotated_types import GroupedMetadata as Grouped
from pydantic import TypeAdapter, ValidationError
from pydantic_core import SchemaError

from xl_flax.errors import UserError
from xl_flax.files import remote
from xl_flax.files.read import LOCAL, is_local

LIMIT = 2**31  # devices count in int32
FLOAT_LIMIT = 2.0**128  # and what is larger is infinite in float32
LIMITS = {LIMIT: "less than 2^31", FLOAT_LIMIT: "less than 2^128"}
# "strict": "1" is no number, and True is none either; a whole number is a float all the same.
RULES = {"strict": True, "allow_inf_nan": False, "arbitrary_types_allowed": True}
WIDTH = 100  # characters of a value that an error shows


def _is_pattern(text: str) -> bool:
    try:
        re.compile(text)
    except (re.error, OverflowError, RecursionError):
        return False
    return True


def _ascends(phases: Sequence[tuple[int, Any]]) -> bool:
    firsts = [first for first, _ in phases]
    return firsts[0] == 0 and all(a < b for a, b in itertools.pairwise(firsts))


T = typing.TypeVar("T")
Count = Annotated[int, Ge(1), Lt(LIMIT)]
Natural = Annotated[int, Ge(0), Lt(LIMIT)]
Positive = Annotated[float, Gt(0), Lt(FLOAT_LIMIT)]
NonNegative = Annotated[float, Ge(0), Lt(FLOAT_LIMIT)]
Finite = Annotated[float, Gt(-FLOAT_LIMIT), Lt(FLOAT_LIMIT), doc("a finite number")]
Share = Annotated[float, Interval(ge=0, le=1)]
Fraction = Annotated[float, Interval(ge=0, lt=1)]
Rate = Annotated[float, Interval(gt=0, lt=1)]
Name = Annotated[str, Len(1)]
Seeds = Annotated[Sequence[Natural], Len(1), doc("a list of seeds, as in [0, 1, 2]")]
Names = Annotated[Sequence[Name], Len(1), doc("a list of names, as in ['deu', 'eng']")]
LocalPath = Annotated[str, Len(1), Predicate(is_local), doc(LOCAL)]
# Of which `remote.staged` makes a local path.
Folder = Annotated[str, Len(1), Predicate(remote.is_folder), doc(remote.FOLDER)]
Pattern = Annotated[str, Predicate(_is_pattern), doc("a regular expression")]
LayerNumber = Annotated[
    int,
    Ge(-LIMIT),
    Lt(LIMIT),
    doc("a layer: 0 = the embeddings, i = after layer i, -1 = the last"),
]
# (first row, value), ...: what holds from this row of a stream on.
Phases = Annotated[Sequence[tuple[Annotated[int, Ge(0)], T]], Len(1), Predicate(_ascends)]
PHASES = "phases [(first row, {}), ...] that begin at row 0 and ascend"
MixtureName = Annotated[
    Name | Phases[Name], doc(f"the name of a mixture or task, or {PHASES.format('name')}")
]
MixtureNames = Annotated[
    Name | Annotated[Sequence[Name], Len(1)] | Phases[Name],
    doc(f"the name of a mixture or task, a list of such, or {PHASES.format('name')}"),
]


@dataclasses.dataclass(frozen=True)
class Settings:
    """A class that Gin configures, whose fields are what their annotations say.

    Raises:
      UserError: one is not; the message names class and field, the value and what is allowed.
    """

    def __post_init__(self):
        # What a base class declares holds, too, where a class gives a field another default.
        for base in type(self).__mro__:
            for name, kind in kinds(base).items() if dataclasses.is_dataclass(base) else ():
                check(f"{type(self).__name__}.{name}", getattr(self, name), kind)

    def stage(self, *names: str) -> None:
        """Makes local paths of fields that may be addresses: those of their stages."""
        for name in names:
            value = getattr(self, name)
            one = isinstance(value, str)
            paths = remote.staged(value) if one else [*map(remote.staged, value)]
            object.__setattr__(self, name, paths)

    def fail(self, message: str) -> typing.NoReturn:
        """Raises UserError with the name of the class, as in "MaskedLM.mask = 0.9 and …"."""
        raise UserError(f"{type(self).__name__}.{message}")


@functools.cache
def kinds(configurable: type | typing.Callable) -> dict[str, Any]:
    """The annotations of a dataclass's fields, or of a function's parameters, by name."""
    hints = typing.get_type_hints(configurable, include_extras=True)
    if dataclasses.is_dataclass(configurable):
        return {f.name: hints[f.name] for f in dataclasses.fields(configurable) if f.init}
    return {name: hint for name, hint in hints.items() if name != "return"}


def check(name: str, value: Any, kind: Any) -> None:
    """Raises UserError unless a value is what an annotation says.

    Args:
      name: of the setting, as in "TrainConfig.steps".
      value: of the setting. Where a tuple belongs, a list will do.
      kind: the annotation.
    """
    for form in (value, _tuples(value)):
        try:
            _adapter(kind).validate_python((form,))
            return
        except ValidationError as error:
            met = [each["ctx"]["lt"] for each in error.errors() if each["type"] == "less_than"]
    limit = next((f" (and {LIMITS[each]})" for each in met if each in LIMITS), "")
    allowed = describe(kind) + limit
    raise UserError(f"{name} = {_shown(value)}: must be {allowed}{_hint(value)}")


def bindings(name: str, *fields: str) -> dict[str, Any]:
    """What Gin binds to some fields of a configurable, checked as if it were made.

    Raises:
      UserError: a value is not what is declared.
    """
    bound = {k: v for k, v in gin.get_bindings(name).items() if k in fields}
    declared = kinds(gin.get_configurable(name))
    for field, value in bound.items():
        check(f"{name}.{field}", value, declared[field])
    return bound


@functools.cache
def _adapter(kind: Any) -> TypeAdapter:
    # Of one in a tuple, since Pydantic takes no rules for a dataclass that stands alone.
    try:
        return TypeAdapter(tuple[kind], config=RULES)
    except SchemaError:  # somebody's own, of which isinstance cannot tell, as a Protocol
        return TypeAdapter(Any)


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if type(value) in (list, tuple) else value


def _shown(value: Any) -> str:
    """A value as Gin writes it, in a few characters."""
    text = " ".join(_text(value).split())
    return text if len(text) <= WIDTH else f"{text[:WIDTH]}…"


def _text(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        items = ", ".join(map(_text, value))
        one = "," if len(value) == 1 else ""
        return f"[{items}]" if isinstance(value, list) else f"({items}{one})"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return f"@{type(value).__name__}()"
    return f"@{value.__name__}" if _is_bare(value) else repr(value)


def _is_bare(value: Any) -> bool:
    """Whether this is a class or function, as of a reference without parentheses."""
    return isinstance(value, (type, types.FunctionType))


def _hint(value: Any) -> str:
    bare = next(filter(_is_bare, value if isinstance(value, (list, tuple)) else [value]), None)
    return "" if bare is None else f"; its parentheses are missing: @{bare.__name__}()"


# ---- Annotations in words

BOUNDS = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}
BOUNDS |= {"multiple_of": "a multiple of"}
ITEMS = "a list, each item of it "


def describe(kind: Any) -> str:
    """What an annotation allows, as in "a whole number, at least 1, or None"."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        return _describe_annotated(args[0], list(_flat(args[1:])))
    if origin in (Literal, typing.Union, types.UnionType):
        *first, last = _alternatives(kind)
        if last.removeprefix(ITEMS) in first:
            last = "a list of such"
        comma = "," if any("," in words for words in first) else ""
        return f"{', '.join(first)}{comma} or {last}" if first else last
    if origin is tuple and Ellipsis not in args:
        return f"({'; '.join(map(describe, args))})"
    if origin in (list, tuple, Sequence):
        return f"{ITEMS}{describe(args[0])}"
    if origin in (dict, Mapping):
        return f"a dictionary {{{describe(args[0])}: {describe(args[1])}}}"
    words = {int: "a whole number", float: "a finite number", bool: "True or False"}
    words |= {str: "a string", type(None): "None"}
    if kind in words:
        return words[kind]
    name = getattr(kind, "__name__", str(kind))
    example = f", as in @{name}()" if dataclasses.is_dataclass(kind) else ""
    return f"{'an' if name[0] in 'AEIOU' else 'a'} {name}{example}"


def _describe_annotated(kind: Any, metadata: list[Any]) -> str:
    if docs := [m.documentation for m in metadata if isinstance(m, DocInfo)]:
        return docs[0]
    if kind is str:
        return "a string that is not empty"
    bounds = {k: getattr(item, k) for item in metadata for k in BOUNDS if hasattr(item, k)}
    bounds = {k: bound for k, bound in bounds.items() if bound not in LIMITS}
    within = kind is float and {"le", "lt"} & set(bounds)  # then it is finite anyway
    text = "a number" if within else describe(kind)
    if {"ge", "le"} <= set(bounds):
        return f"{text} from {bounds['ge']} to {bounds['le']}"
    limits = [f"{BOUNDS[k]} {bound}" for k, bound in bounds.items()]
    return f"{text}, {' and '.join(limits)}" if limits else text


def _flat(metadata: typing.Iterable[Any]) -> Iterator[Any]:
    for item in metadata:
        yield from item if isinstance(item, Grouped) else (item,)


def _alternatives(kind: Any) -> list[str]:
    """What a union or a choice of words allows, each in words."""
    if typing.get_origin(kind) is Literal:
        return list(map(repr, typing.get_args(kind)))
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return [words for each in typing.get_args(kind) for words in _alternatives(each)]
    return [describe(kind)]
