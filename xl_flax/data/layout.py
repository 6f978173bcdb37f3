"""How examples lie in rows, and what happens to those that are longer than a row."""

import dataclasses

from xl_flax.errors import UserError

MAX_LENGTH = 2**16 - 1  # lengths of segments are stored as uint16
PACKINGS = ("packed", "single")
POLICIES = ("cut", "truncate", "window", "drop")


@dataclasses.dataclass(frozen=True)
class Layout:
    """The rows of a dataset. `str(layout)` names its folder in the cache."""

    length: int
    """Tokens per row, special tokens included."""
    packing: str = "packed"
    """"packed": as many examples in a row as fit; "single": one example, or one piece of it."""
    too_long: str | None = None
    """What happens to an example that is longer than a row. "cut": its last text is cut into
    pieces, each with the whole other texts; "window": the same, but the pieces overlap; "truncate":
    the longest text loses its last token, again and again, until the example fits; "drop": it is
    left out, as it is under "cut" and "window" if its other texts leave no room for a piece of the
    last one that is longer than the stride. None: "cut" for examples of one text without features,
    "drop" for others."""
    stride: int = 0
    """Tokens that two windows which follow each other share; for "window" only."""

    def __post_init__(self):
        if not isinstance(self.length, int) or not 3 <= self.length <= MAX_LENGTH:
            raise UserError(
                f"Rows.length = {self.length!r}: choose between 3 and {MAX_LENGTH} tokens per row"
            )
        if self.packing not in PACKINGS:
            raise UserError(f"Rows.packing = {self.packing!r}: use 'packed' or 'single'")
        if self.too_long not in (None, *POLICIES):
            known = ", ".join(map(repr, POLICIES))
            raise UserError(f"Rows.too_long = {self.too_long!r}: use None or one of {known}")
        if not isinstance(self.stride, int) or self.stride < 0:
            raise UserError(f"Rows.stride = {self.stride!r}: give a number of tokens, at least 0")
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
        packing = words.pop(0) if words and words[0] in PACKINGS else "packed"
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

    def resolve(self, plain: bool) -> str:
        """What really happens to examples that are too long: one of `POLICIES`.

        Args:
          plain: whether the examples are one text each, without features.
        """
        return self.too_long or ("cut" if plain else "drop")
