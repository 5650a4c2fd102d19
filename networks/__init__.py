"""Trainable add-ons to a model: LoRA, condition weights beside it, their files, and merging them into a base."""
