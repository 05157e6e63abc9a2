"""One worker process: settings to objects, the loop, the journal and the checkpoints."""
