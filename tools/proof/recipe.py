"""The numbers of the two demos: one place for steps, rates, sizes and what counts as success."""

from dataclasses import dataclass

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
    come to life."""
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
    seed: int = 42


DEMO = Recipe(
    steps=500, batch_size=2, target_frames=33, spans=1, network_dim=32, learning_rate=2e-3,
    network_args=("omniavatar_add.audio_hidden=64", "condition_lr=1e-2"), shift=3, validation_count=4,
    validate_every=250, infer_steps=12, guidance_scale=1, faces=1, sounds=1)
"""`make demo`: minutes on two CPU cores."""

FULL = Recipe(
    steps=1600, batch_size=8, target_frames=33, spans=2, network_dim=32, learning_rate=2e-3,
    network_args=("omniavatar_add.audio_hidden=64", "condition_lr=5e-3"), shift=3, validation_count=4,
    validate_every=200, infer_steps=12, guidance_scale=1, faces=2, sounds=5)
"""`make demo-full`: as long as it needs."""

UNTRAINED_R = 0.2
"""The mean correlation of mouth and sound stays within ± this before training, and with another sound's envelope."""
TRAINED_R = 0.6
"""It reaches at least this after training …"""
LAG = 1
"""… and is highest within ± this many frames, in every clip."""
ZERO_GAP = 1e-6
"""Audio-shift gap that counts as none: the untrained condition adds exactly nothing."""
