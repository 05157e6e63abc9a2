"""Settings: YAML in, frozen typed structs out. The package knows no torch, no Redis and no other package."""

from config.errors import SettingsError, UsageError
from config.reader import agreed, build, dump, find_experiment, load, parse
from config.settings.experiment import Experiment

__all__ = ["Experiment", "SettingsError", "UsageError", "agreed", "build", "dump", "find_experiment", "load", "parse"]
