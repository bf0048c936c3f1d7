"""The base class of the project's errors. It lies in the lowest room, so that every room can derive from it."""


class AlignkdError(ValueError):
    """An error that a user can cause and correct.

    The message is one complete line: what was found, what was expected, and the next step.
    """
