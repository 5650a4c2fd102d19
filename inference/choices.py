"""Words that settings and samplers share; no library is imported here."""

from typing import Literal

Annealing = Literal["none", "linear", "cosine"]
Order = Literal["omniavatar", "multitalk"]
SkipMode = Literal["none", "early", "late", "middle", "early_late", "alternate"]
