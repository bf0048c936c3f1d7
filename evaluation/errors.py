"""Errors of answers files."""

from alignkd.vlm.errors import InputError


class AnswersError(InputError):
    """The answers cannot be scored. The message leaves naming their file to the caller."""
