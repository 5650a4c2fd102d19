"""Encode any features by name into the cache: `python cache_conditions.py --help`."""

from common.config import parse, to_toml
from common.devices import grow_memory_in_place
from common.errors import run
from common.launch import start_missing_processes
from common.logs import get_logger, setup_logging
from precompute.config import ConditionSettings

EXAMPLES = """examples:
  python cache_conditions.py --features latents text --dataset_config data.toml --vae Wan2.1_VAE.pth --t5 umt5.pth

What is fresh is skipped. Exit code 1 when anything failed; the others are kept."""


def main() -> int:
    """Parse, print the settings, encode."""
    setup_logging()
    grow_memory_in_place()
    if (code := start_missing_processes()) is not None:
        return code
    settings = parse(ConditionSettings, prog="cache_conditions.py", description=ConditionSettings.__doc__ or "",
                     epilog=EXAMPLES)
    get_logger(__name__).info(to_toml(settings))
    from precompute.scripts import run_conditions

    return run_conditions(settings)


if __name__ == "__main__":
    run(main)
