"""Average saved networks of one run into one file (post-hoc EMA), LoRA and conditions alike.

    python tools/average_checkpoints.py output/talking-0000*.safetensors --out output/talking-ema.safetensors
    python tools/average_checkpoints.py output/talking-step*.safetensors --sigma_rel 0.15 --out talking-ema.safetensors

The files are put in the order of their training steps. By default average <- 0.95 * average + 0.05 * next, from the
oldest file on; --sigma_rel takes the power-function profile of Karras et al. 2023 instead. The shares are printed. The
factors of a LoRA are averaged one by one, which is not the average of their products; how far the two lie apart is
printed too.
"""

import argparse
from pathlib import Path
import sys

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common.errors import run  # noqa: E402

DECAY = 0.95
FAR = 0.1
"""Distance of product of averages and average of products from which on a note is printed."""


def parser() -> argparse.ArgumentParser:
    """The flags; musubi-tuner's spellings are taken too."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("checkpoints", type=Path, nargs="+", metavar="CHECKPOINT", help="network files of one run")
    flags.add_argument("--out", "--output_file", type=Path, required=True, help="safetensors file to write")
    flags.add_argument("--decay", "--beta", type=float,
                       help=f"share that the average keeps at each next file; default: {DECAY}")
    flags.add_argument("--decay2", "--beta2", type=float, help="decay at the last file; in between it is interpolated")
    flags.add_argument("--sigma_rel", type=float, help="width of the power-function profile as a share of the run, "
                                                       "such as 0.1; the oldest file then has no share")
    flags.add_argument("--no_sort", action="store_true", help="the files stand in the right order, oldest first")
    flags.add_argument("--any_run", action="store_true", help="take files of different runs, such as one that went on "
                                                              "from another; ranks and keys must still be the same")
    return flags


def main(arguments: list[str] | None = None) -> int:
    """Check, average, write, and print the shares."""
    given = parser().parse_args(arguments)

    from common.errors import ConfigError
    from networks.average import (
        average,
        decaying_shares,
        distance_from_products,
        in_time,
        metadata_of,
        power_shares,
        read_checkpoint,
        refuse_strangers,
    )
    from networks.files import save_network

    if given.sigma_rel is not None and (given.decay is not None or given.decay2 is not None):
        raise ConfigError("--sigma_rel and --decay are two rules. Give one.")
    resolved = [path.resolve() for path in given.checkpoints]
    if len(set(resolved)) < 2 or len(set(resolved)) < len(resolved):
        raise ConfigError(f"{len(resolved)} checkpoints, {len(set(resolved))} different ones: give two or more, each "
                          "once.")
    if given.out.suffix != ".safetensors" or given.out.resolve() in resolved:
        raise ConfigError(f"--out {given.out}: name a file that ends in .safetensors and is none of those averaged.")
    checkpoints = [read_checkpoint(path) for path in given.checkpoints]
    refuse_strangers(checkpoints, any_run=given.any_run)
    order = "as given"
    if not given.no_sort:
        checkpoints, order = in_time(checkpoints)
    decay = DECAY if given.decay is None else given.decay
    if given.sigma_rel is not None:
        shares, rule = power_shares(len(checkpoints), given.sigma_rel), f"sigma_rel {given.sigma_rel:g}"
    else:
        shares = decaying_shares(len(checkpoints), decay, given.decay2)
        rule = f"decay {decay:g}" + ("" if given.decay2 is None else f" to {given.decay2:g}")
    print(f"{len(checkpoints)} checkpoints, oldest first by {order}; {rule}:")
    for one, share in zip(checkpoints, shares, strict=True):
        print(f"  {share:7.2%}  {one.path.name}" + ("" if one.steps is None else f"  (step {one.steps})"))
    averaged = average(checkpoints, shares)
    save_network(given.out, averaged, metadata_of(checkpoints, shares, rule))
    print(f"{given.out}: {len(averaged)} tensors")
    distance = distance_from_products(checkpoints, shares, averaged)
    if distance is not None:
        print(f"the averaged factors' products differ from the averaged products by at most {distance:.2%} of a layer"
              + ("; that is much: average files that lie closer together" if distance > FAR else ""))
    return 0


if __name__ == "__main__":
    run(main)
