"""A tiny set of weights in the layouts of the official files: random from a seed, or trained by `train_*.py`."""
