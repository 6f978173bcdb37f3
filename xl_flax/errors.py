"""The exceptions for mistakes that a user can mend."""


class UserError(ValueError):
    """Bad input: the message names the culprit and the remedy.

    The commands print it as one line, without a traceback, and exit with status 1.
    """


class LostError(UserError):
    """Another process of the run is gone, hangs or did not come: nothing is wrong with this one.

    The commands exit with status 76 (`stopping.LOST`): starting all of them again may help.
    """


class MissingError(UserError):
    """A file is not there yet, and the message says which command makes it."""


def message(error: UserError) -> str:
    """What an error says; Gin adds where it was when a configurable raised it."""
    return str(error).split("\n  In call to configurable")[0]
