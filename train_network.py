"""Train a LoRA, and conditions such as audio, on a Wan model: ``accelerate launch train_network.py --help``."""

import logging

from common.config import parse
from common.devices import grow_memory_in_place
from common.errors import run
from common.launch import start_missing_processes
from common.logs import setup_logging
from training.config import TrainConfig
from training.foreign import FOREIGN

DESCRIPTION = """Train a LoRA (and with it conditions, such as audio) on a Wan 2.1 video model.

Before it: cache_latents.py, cache_text_encoder_outputs.py and, for audio, cache_audio_features.py.
After it: generate_video.py --lora_weight OUTPUT_DIR/OUTPUT_NAME.safetensors."""
EPILOG = "Flags of musubi-tuner that mean something else here, or nothing: docs/coming-from-musubi.md"


def main() -> int:
    """Read the settings, then train."""
    setup_logging(others=logging.ERROR)
    grow_memory_in_place()
    if (code := start_missing_processes()) is not None:
        return code
    config = parse(TrainConfig, prog="train_network.py", description=DESCRIPTION, epilog=EPILOG, foreign=FOREIGN)
    from training import train

    train(config)
    return 0


if __name__ == "__main__":
    run(main)
