"""Settings of previews in training: which videos, how often, and the models beside the DiT that they need."""

from collections.abc import Iterable
from pathlib import Path

from common.config import Section, flag
from wan.text_storage import FP8_T5_DIFFERS, FP8_T5_HELP

DTYPES = ("float32", "bfloat16", "float16")


class PreviewSection(Section):
    """Previews: videos made while training, by the code of generate_video.py."""

    sample_prompts: Path | None = flag(
        None, "file of prompts to make previews of, in any form that generate_video.py --from_file takes: one a line "
              "with options behind it (--w --h --f --d --s --l --i --a --n …), .toml or .json; without any of the "
              "flags below they are made once, at the end",
        differs="a line means what it means to generate_video.py --from_file, defaults too (steps, flow shift, fps); "
                "a line without a seed gets a fixed one")
    sample_every_n_steps: int | None = flag(None, "make the previews every n optimiser steps, and at the end", ge=1)
    sample_every_n_epochs: int | None = flag(None, "make them every n epochs, and at the end; both flags together act "
                                                   "as either", ge=1)
    sample_at_first: bool = flag(False, "make them before the first step too: shows in minutes that prompts, pictures "
                                        "and sounds are right, and what the run starts from")
    sample_held_out: int = flag(0, "also previews of this many held-out clips (--validation_count, "
                                   "--validation_split): first frame, sound and caption are read from the "
                                   "dataset's media", ge=0)
    sample_infer_steps: int | None = flag(None, "solver steps of previews whose line names none (--s), held-out clips "
                                                "among them (default: as in generate_video.py, the task's 40 or 50)",
                                          ge=1)
    vae: Path | None = flag(None, "VAE weights (Wan2.1_VAE.pth), for previews")
    t5: Path | None = flag(None, "umT5-XXL text encoder, for previews; freed before training begins")
    tokenizer: Path | None = flag(None, "spiece.model or its folder, where it does not lie beside --t5")
    clip: Path | None = flag(None, "CLIP weights, for previews of image-to-video and first+last frame models")
    wav2vec: Path | None = flag(None, "folder of the audio encoder, for previews with a sound")
    vae_dtype: str = flag("float32", "precision of the VAE in previews: float32 is Wan's own", choices=DTYPES,
                          differs="the default is float32, Wan's own precision; musubi-tuner's is bfloat16")
    t5_dtype: str = flag("bfloat16", "precision of umT5 in previews: bfloat16 is Wan's own", choices=DTYPES)
    clip_dtype: str = flag("float32", "precision of CLIP in previews", choices=DTYPES)
    fp8_t5: bool = flag(False, FP8_T5_HELP, differs=FP8_T5_DIFFERS)
    text_encoder_cpu: bool = flag(False, "read the previews' texts on the CPU, with nothing of umT5 on the GPU")

    def problems(self) -> Iterable[str]:
        """How often needs a what."""
        for name in ("sample_every_n_steps", "sample_every_n_epochs", "sample_at_first"):
            if getattr(self, name) and not self.is_wanted:
                yield (f"--{name} needs something to show: --sample_prompts with a file of prompts, or "
                       "--sample_held_out with a number of held-out clips.")

    @property
    def is_wanted(self) -> bool:
        """Whether any preview is made."""
        return self.sample_prompts is not None or self.sample_held_out > 0
