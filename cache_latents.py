"""Encode videos and pictures with the VAE (and CLIP) into the cache: `python cache_latents.py --help`."""

from common.config import parse, to_toml
from common.devices import grow_memory_in_place
from common.errors import run
from common.launch import start_missing_processes
from common.logs import get_logger, setup_logging
from precompute.config import LATENT_FOREIGN, LatentSettings

EXAMPLES = """examples:
  python cache_latents.py --dataset_config dataset-toml/talking.toml --vae Wan2.1_VAE.pth
  python cache_latents.py --dataset_config dataset-toml/i2v.toml --vae Wan2.1_VAE.pth --clip clip.pth --task i2v-14B
  accelerate launch --num_processes 8 cache_latents.py --dataset_config data.toml --vae Wan2.1_VAE.pth

What is fresh is skipped. Exit code 1 when anything failed; the others are kept."""


def main() -> int:
    """Parse, print the settings, encode."""
    setup_logging()
    grow_memory_in_place()
    if (code := start_missing_processes()) is not None:
        return code
    settings = parse(LatentSettings, prog="cache_latents.py", description=LatentSettings.__doc__ or "", epilog=EXAMPLES,
                     foreign=LATENT_FOREIGN)
    get_logger(__name__).info(to_toml(settings))
    from precompute.scripts import run_latents

    return run_latents(settings)


if __name__ == "__main__":
    run(main)
