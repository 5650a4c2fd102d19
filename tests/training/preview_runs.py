"""Previews on the tiny weights without a whole training: what tests of rounds, faults and stops work with."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from common.media.sound import read_sound
from common.media.video import read_frames
from tests.training.line import DATA, Constant, Line
from tests.training.runs import settings
from training import preflight
from training.build import build_network, load_base
from training.callbacks import Callback
from training.config import TrainConfig
from training.looking.preview_plan import prepare_previews
from training.looking.previews import Previews
from training.loop import Loop, LoopSettings
from training.processes import Processes
from wan.modules.dit import WanDiT


def write_prompts(folder: Path, root: Path) -> Path:
    """A prompt file of two lines with a picture and a sound of the demo, the second line without a seed."""
    from PIL import Image
    import soundfile

    clip = root / "examples" / "demo" / "clips" / "head_007.mp4"
    Image.fromarray(read_frames(clip, fps=25, count=1)[0]).save(folder / "face.png")
    sound = read_sound(clip)
    soundfile.write(folder / "a.wav", sound.samples.T[:sound.sample_rate // 5], sound.sample_rate)
    path = folder / "prompts.txt"
    path.write_text("# previews\na <b>head</b> speaks --i face.png --a a.wav --w 32 --h 32 --f 5 --s 2 --l 1 --d 3\n"
                    "a head listens --i face.png --a a.wav --w 48 --h 32 --f 5 --s 2 --l 1\n", encoding="utf-8")
    return path


def models(weights: Path) -> dict[str, Any]:
    """Flags of the models that previews need."""
    return {"vae": weights / "Wan2.1_VAE.pth", "t5": weights / "models_t5_umt5-xxl-enc-bf16.pth",
            "wav2vec": weights / "wav2vec2-base-960h", "t5_dtype": "float32"}


def config_of(data: Path, weights: Path, out: Path, prompts: Path, **more: Any) -> TrainConfig:
    """A run with the audio condition and previews of `prompts`."""
    return settings(data, weights, out, sample_prompts=prompts, network_args=["conditions=omniavatar_add"],
                    **{**models(weights), **more})


def ready(config: TrainConfig) -> tuple[Previews, WanDiT]:
    """The callback with the base and a fresh network."""
    plan = preflight.check(config)
    prepared = prepare_previews(config, plan, Processes())
    assert prepared is not None
    dit = load_base(config, plan, torch.device("cpu"))
    network = build_network(config, plan, dit)
    return Previews(prepared, dit=dit, network=network, as_saved=nullcontext), dit


def loop_of(steps: int, *callbacks: Callback, at: int = 0) -> Loop:
    """A run of a model of two lines, which goes on after step `at`."""
    job = Line(DATA)
    loop = Loop(job, optimizer=torch.optim.SGD(job.parameters, lr=0.1), schedule=Constant(),
                settings=LoopSettings(steps=steps), processes=Processes(), callbacks=callbacks)
    loop.state.step, loop.is_resumed = at, at > 0
    return loop
