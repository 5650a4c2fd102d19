"""Names of attention back ends, as flags spell them. Nothing here imports torch, so that `--help` stays quick."""

AUTO = "auto"
ALIASES = {"torch": "sdpa", "flash": "flash_attn", "flash2": "flash_attn"}
"""musubi-tuner's spellings of what has a name of its own here."""
TRAINING = ("sdpa", "cudnn", "fa4", "flash_attn", "flash3", "efficient", "math")
"""What has a backward pass."""
ONLY_FORWARD = ("cudnn_fp8", "sageattn")
"""What rounds to eight bits, and can only generate."""
HELP = ("auto takes cuDNN's kernel on H100 and later, else torch's choice (sdpa); fa4 is FlashAttention-4 (package "
        "flash-attn-4: exact, and faster on long clips), flash_attn and flash3 its older packages, efficient and math "
        "kernels of torch")


def plain_name(name: str) -> str:
    """The one name of a back end that has several."""
    return ALIASES.get(name, name)
