"""The exceptions that reach the user as a sentence instead of a traceback."""


class UserError(Exception):
    """Bad input, with a remedy.

    The message is a single line that names the file, key or value at fault and says what to do about it.
    The command line prints it after ``error:`` and exits with status :attr:`exit_code`.
    """

    exit_code = 2


class RunFailed(UserError):
    """The input was fine but the run could not go on, for example because the loss became infinite."""

    exit_code = 1
