"""Encode the sound of every clip into the cache: `python cache_audio_features.py --help`."""

from common.config import parse, to_toml
from common.devices import grow_memory_in_place
from common.errors import run
from common.launch import start_missing_processes
from common.logs import get_logger, setup_logging
from precompute.config import AudioSettings

EXAMPLES = """examples:
  python cache_audio_features.py --dataset_config dataset-toml/talking.toml --wav2vec wav2vec2-base-960h
  python cache_audio_features.py --dataset_config data.toml --wav2vec wav2vec2-base-960h --audio_short silence

What is fresh is skipped. Exit code 1 when anything failed; the others are kept."""


def main() -> int:
    """Parse, print the settings, encode."""
    setup_logging()
    grow_memory_in_place()
    if (code := start_missing_processes()) is not None:
        return code
    settings = parse(AudioSettings, prog="cache_audio_features.py", description=AudioSettings.__doc__ or "",
                     epilog=EXAMPLES)
    get_logger(__name__).info(to_toml(settings))
    from precompute.scripts import run_audio

    return run_audio(settings)


if __name__ == "__main__":
    run(main)
