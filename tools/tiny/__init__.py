"""A tiny set of weights in the layouts of the official files, made from a seed; not trained."""
