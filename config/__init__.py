"""Settings: YAML in, frozen typed structs out. Knows no torch, no Redis, no other package."""

from config.errors import SettingsError, UsageError
from config.reader import agreed, build, dump, find_experiment, load, parse
from config.settings.experiment import Experiment

__all__ = ["Experiment", "SettingsError", "UsageError", "agreed", "build", "dump", "find_experiment", "load", "parse"]
