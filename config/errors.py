"""Errors that a person can mend: shown as one line, exit code 2, never as a traceback."""


class UsageError(Exception):
    """Something that a person typed, forgot or misplaced. The message says what to do.

    As text it is one printable line, whatever came out of a file or a command line into it.
    """

    def __str__(self) -> str:
        line = " ".join(super().__str__().split())
        return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in line)


class SettingsError(UsageError):
    """An experiment file or an override that does not fit. The message begins with the path of the key."""
