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


MEMORY = "RESOURCE_EXHAUSTED"  # the run is too large for the device


def device_failed(error: BaseException) -> bool:
    """Whether an error is one of a device, or of what devices send, and not for want of memory."""
    kinds = {kind.__name__ for kind in type(error).__mro__}  # JAX is not imported for this
    return "JaxRuntimeError" in kinds and MEMORY not in str(error)


def message(error: UserError) -> str:
    """What an error says; Gin adds where it was when a configurable raised it."""
    return str(error).split("\n  In call to configurable")[0]
