"""The one exception for mistakes that a user can mend."""


class UserError(ValueError):
    """Bad input: the message names the culprit and the remedy.

    The commands print it as one line, without a traceback, and exit with status 1.
    """
