"""Encode captions with umT5-XXL into the cache: `python cache_text_encoder_outputs.py --help`."""

from common.config import parse, to_toml
from common.devices import grow_memory_in_place
from common.errors import run
from common.launch import start_missing_processes
from common.logs import get_logger, setup_logging
from precompute.config import TEXT_FOREIGN, TextSettings

EXAMPLES = """examples:
  python cache_text_encoder_outputs.py --dataset_config dataset-toml/talking.toml --t5 models_t5_umt5-xxl-enc-bf16.pth
  python cache_text_encoder_outputs.py --dataset_config data.toml --t5 umt5_xxl_fp8_e4m3fn_scaled.safetensors

What is fresh is skipped. Exit code 1 when anything failed; the others are kept."""


def main() -> int:
    """Parse, print the settings, encode."""
    setup_logging()
    grow_memory_in_place()
    if (code := start_missing_processes()) is not None:
        return code
    settings = parse(TextSettings, prog="cache_text_encoder_outputs.py", description=TextSettings.__doc__ or "",
                     epilog=EXAMPLES, foreign=TEXT_FOREIGN)
    get_logger(__name__).info(to_toml(settings))
    from precompute.scripts import run_text

    return run_text(settings)


if __name__ == "__main__":
    run(main)
