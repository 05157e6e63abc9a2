"""Every setting of an experiment, as frozen structs with their ranges, defaults and checks; one file for each block."""
