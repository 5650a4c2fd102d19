"""The numbers of the two demos: one place for steps, rates, sizes and what counts as success."""

from dataclasses import dataclass, replace

FPS = 25
FRAMES = 81
"""Frames of the shipped clips and of what is generated: 3.24 s."""
SIZE = 128


@dataclass(frozen=True)
class Recipe:
    """How one demo trains, generates and validates."""

    steps: int
    """Optimiser steps."""
    batch_size: int
    target_frames: int
    """Frames of the spans that are cut from each shipped clip."""
    spans: int
    """Spans cut from each clip, spread evenly (`frame_extraction = "uniform"`)."""
    network_dim: int
    learning_rate: float
    network_args: tuple[str, ...]
    """Settings of the audio condition and of the LoRA: `audio_hidden` is the width of the packed audio token;
    `condition_lr` is the condition's own learning rate, because its last layers start at zero and it has few steps to
    come to life; `patch_lr` that of its patch embedding, which spoils the picture at such a rate."""
    shift: float
    """`--discrete_flow_shift` in training: above 1 more high noise, where the mouth is decided."""
    validation_count: int
    """Clips kept out of training, for the audio-shift gap."""
    validate_every: int
    infer_steps: int
    guidance_scale: float
    faces: int
    """How many of the unseen faces are used."""
    sounds: int
    """How many of the unseen utterances are used."""
    train_args: tuple[str, ...] = ()
    """More flags of train_network.py."""
    conditions: str = "omniavatar_add"
    """Conditions that are trained, as `--network_args conditions=…` takes them."""
    reference: str = "first"
    """Key of the dataset: which frame of a clip is its reference picture."""
    seed: int = 42


HIGH_NOISE = ("--min_timestep", "750", "--lr_warmup_steps", "30", "--validation_sigmas", "0.7", "0.9", "0.97")
"""Flags of both demos: noise levels below 0.75 show the mouth already, so that sound has nothing to tell there, and a
base that is not to be changed otherwise need not be trained at them."""
SHOWN = ("--prefix_frames", "1", "--prefix_dropout", "0", "--audio_dropout", "0", "--text_dropout", "0",
         "--audio_text_dropout", "0")
"""Flags of both demos: each clip starts from its picture and is heard, so that the few steps all tell of the sound."""
RATES = ("omniavatar_add.audio_hidden=64", "condition_lr=2e-2", "patch_lr=3e-4", "loraplus_lr_ratio=8")
"""`--network_args` of both demos."""

DEMO = Recipe(
    steps=450, batch_size=1, target_frames=33, spans=1, network_dim=16, learning_rate=1e-3, network_args=RATES,
    shift=3, validation_count=4, validate_every=150, infer_steps=12, guidance_scale=1, faces=1, sounds=1,
    train_args=HIGH_NOISE + SHOWN)
"""`make demo`: minutes on two CPU cores."""

FULL = Recipe(
    steps=800, batch_size=4, target_frames=33, spans=2, network_dim=32, learning_rate=1e-3, network_args=RATES,
    shift=3, validation_count=4, validate_every=150, infer_steps=12, guidance_scale=1, faces=2, sounds=5,
    train_args=HIGH_NOISE + SHOWN)
"""`make demo-full`: as long as it needs."""

GOING_ON = ("--prefix_frames", "1", "13", "--prefix_dropout", "0", "--audio_dropout", "0", "--text_dropout", "0",
            "--audio_text_dropout", "0", "--reference_dropout", "0")
"""Half of the samples start from a picture, half go on from 13 frames, as the chunks of a long video do."""
PROTOCOL = replace(FULL, train_args=HIGH_NOISE + GOING_ON)
DESIGNS = {
    "omniavatar_add": PROTOCOL,
    "frame_xattn": replace(PROTOCOL, conditions="frame_xattn,reference_channels", network_args=(
        "frame_xattn.audio_hidden=128", "frame_xattn.audio_tokens=8", "frame_xattn.token_width=128",
        "condition_lr=1e-3", "patch_lr=3e-4", "loraplus_lr_ratio=8")),
    "gated_lite": replace(PROTOCOL, conditions="gated_lite,reference_channels", network_args=(
        "gated_lite.audio_hidden=128", "gated_lite.added_hidden=64", "condition_lr=6e-3", "patch_lr=3e-4",
        "loraplus_lr_ratio=8")),
}
"""`tools/designs.py`: everything is equal but the conditions, their sizes and their learning rate."""

LONG_ARGS = ("--lr_warmup_steps", "30", "--prefix_frames", "1", "13", "--prefix_weights", "0.3", "0.7",
             "--prefix_dropout", "0.1", "--prefix_corruption", "0.4", "--audio_dropout", "0", "--text_dropout", "0",
             "--audio_text_dropout", "0", "--reference_dropout", "0")
LONG = replace(PROTOCOL, steps=1200, learning_rate=5e-4, reference="random", seed=7, train_args=LONG_ARGS,
               validation_count=0, network_args=("condition_lr=3e-3", "patch_lr=2e-3", "loraplus_lr_ratio=8"))
"""Goes on from a design under the protocol, for long videos: all noise levels, since a chunk shall also continue what
is drawn finely; spoilt prefixes, and a reference from anywhere in the clip, so that looks are taken from it."""
LONG_SETTINGS = ("--stitch", "latent", "--sink", "reference", "--color_match", "1", "--ease_seams", "12")
"""Flags of generate_video.py for the minute of speech."""

UNTRAINED_R = 0.2
"""The mean correlation of mouth and sound stays within ± this before training, and with another sound's envelope."""
TRAINED_R = 0.6
"""It reaches at least this after training …"""
LAG = 1
"""… and is highest within ± this many frames, in every clip."""
ZERO_GAP = 1e-6
"""Audio-shift gap that counts as none: the untrained condition adds exactly nothing."""
