"""One worker process: its setup from the settings, the loop, the journal and the checkpoints."""
