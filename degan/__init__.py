"""GANs on several machines: models, losses, data, metrics, training modes and the worker."""
