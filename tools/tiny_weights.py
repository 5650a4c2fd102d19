"""Write tiny random weights in the layouts of the official Wan 2.1 files, tokenizer included.

    python tools/tiny_weights.py OUT_DIR [--seed 0]
"""

import argparse
from pathlib import Path
import sys

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    """Write the set and tell where it is."""
    parser = argparse.ArgumentParser(prog="tiny_weights.py", description=(
        "Write a tiny set of random weights (under 12 MB) in the layouts of the official files: text-to-video, "
        "image-to-video and first+last frame DiT, VAE, umT5 with tokenizer, CLIP, wav2vec2. Every command of OmniTuner "
        "takes them, so the whole way from media to video can be tried on any machine. The pictures are texture."))
    parser.add_argument("out_dir", type=Path, metavar="OUT_DIR", help="folder to write into; made when it is missing")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same files (default 0)")
    parser.add_argument("--encoders_only", action="store_true", help="write only umT5 with its tokenizer and CLIP, "
                        "which examples/tiny-weights has untrained beside what was trained")
    arguments = parser.parse_args()

    from tools.tiny.write import write_encoders, write_tiny_weights

    write = write_encoders if arguments.encoders_only else write_tiny_weights
    files = write(arguments.out_dir, arguments.seed)
    size = sum(file.stat().st_size for file in files)
    print(f"{len(files)} files, {size / 1e6:.1f} MB of random weights in {arguments.out_dir}")
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))  # started as a file, Python looks in tools/ only
    from common.errors import run

    run(main)
