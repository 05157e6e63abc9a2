"""Errors that a person can mend: shown as one line, exit code 2, never as a traceback."""


class UsageError(Exception):
    """Something that a person typed, forgot or misplaced. The message says what to do."""


class SettingsError(UsageError):
    """An experiment file or an override that does not fit. The message begins with the path of the key."""
