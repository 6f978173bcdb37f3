"""How examples lie in rows, and what happens to those that are longer than a row."""

import dataclasses
from typing import Annotated, Literal, get_args

from annotated_types import Interval

from xl_flax.errors import UserError
from xl_flax.settings import Natural, Settings

# Tokens per row: [CLS], one more and [SEP]; lengths of segments are stored as uint16.
Length = Annotated[int, Interval(ge=3, le=2**16 - 1)]
Packing = Literal["packed", "single"]
Policy = Literal["cut", "truncate", "window", "drop"]


@dataclasses.dataclass(frozen=True)
class Layout(Settings):
    """The rows of a dataset. `str(layout)` names its folder in the cache."""

    length: Length
    """Tokens per row, special tokens included."""
    packing: Packing = "packed"
    """"packed": as many examples in a row as fit; "single": one example, or one piece of it."""
    too_long: Policy | None = None
    """What happens to an example that is longer than a row. "cut": its last text is cut into
    pieces, each with the whole other texts; "window": the same, but the pieces overlap; "truncate":
    the longest text loses its last token, again and again, until the example fits; "drop": it is
    left out, as it is under "cut" and "window" if its other texts leave no room for a piece of the
    last one that is longer than the stride. None: "cut" for examples of one text without features,
    "drop" for others."""
    stride: Natural = 0
    """Tokens that two windows which follow each other share; for "window" only."""

    def __post_init__(self):
        super().__post_init__()
        if self.stride and self.too_long != "window":
            raise UserError(
                f"Rows.stride = {self.stride} has no effect with Rows.too_long = "
                f"{self.too_long!r}: set Rows.too_long = 'window'"
            )
        if self.stride > self.length - 3:
            raise UserError(
                f"Rows.stride = {self.stride} leaves nothing new in windows of Rows.length = "
                f"{self.length}: choose at most {self.length - 3}"
            )

    def __str__(self) -> str:
        """As in "128", "128-single", "128-truncate" or "384-single-window-128"."""
        packing = "" if self.packing == "packed" else f"-{self.packing}"
        too_long = f"-{self.too_long}" if self.too_long else ""
        return f"{self.length}{packing}{too_long}" + (f"-{self.stride}" if self.stride else "")

    @classmethod
    def parse(cls, text: str) -> "Layout":
        """The layout that `str` gave.

        Raises:
          UserError: the text names none.
        """
        length, *words = text.split("-")
        packing = words.pop(0) if words and words[0] in get_args(Packing) else "packed"
        too_long = words.pop(0) if words else None
        stride = words.pop(0) if words else "0"
        if words or not length.isdecimal() or not stride.isdecimal():
            raise UserError(
                f"{text!r} is no layout: expected LENGTH[-single][-TOO_LONG[-STRIDE]], as in 128, "
                "128-single-truncate or 384-single-window-128"
            )
        layout = cls(int(length), packing, too_long, int(stride))
        if str(layout) != text:
            raise UserError(f"{text!r} is no layout; did you mean {str(layout)!r}?")
        return layout

    def resolve(self, plain: bool) -> Policy:
        """What really happens to examples that are too long.

        Args:
          plain: whether the examples are one text each, without features.
        """
        return self.too_long or ("cut" if plain else "drop")
