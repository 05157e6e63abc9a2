"""Errors that a person can fix: shown as a line or a few, with exit code 2, never as a traceback."""


class UsageError(Exception):
    """An error in a command line, a file or a setting of a person. The message names the fix.

    The text is printable, whatever a file or a command line put into the message.
    """

    def __str__(self) -> str:
        text = super().__str__()
        return "".join(char if char.isprintable() or char == "\n" else "\N{REPLACEMENT CHARACTER}" for char in text)


class SettingsError(UsageError):
    """An experiment file or an override that does not fit. One line that begins with the path of the key."""

    def __str__(self) -> str:
        return " ".join(super().__str__().split())
