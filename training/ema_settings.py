"""Settings of the average of the trained weights; imports no torch, so that `--help` stays quick."""

from common.config import Section, flag


class EmaSection(Section):
    """Average: a calmer network from the last steps of the run."""

    ema_decay: float = flag(
        0.0, "save, validate and preview an exponential moving average of the trained weights in place of the weights "
             "themselves: after each step it keeps this share of itself. 0.999 averages about the last thousand steps, "
             "0.99 the last hundred; the first steps count less. The last weights are written too, as "
             "NAME-raw.safetensors. 0 is off", ge=0, lt=1)
