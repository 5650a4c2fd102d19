"""Whether two versions of transformers give the same audio features: encodes with two interpreters and compares.

    python -m benchmarks.transformers_versions PYTHON_A PYTHON_B [--models GOLDEN_FOLDER]

An interpreter is a path such as /tmp/old/bin/python, with torch, transformers, safetensors, einops, jaxtyping, soxr,
xxhash, platformdirs and pyloudnorm. The models are random and tiny, written once by PYTHON_A: wav2vec2 with group norm
(the base models), with stable layer norm (the large ones), and Whisper; `--models` adds every wav2vec2 folder below a
folder, such as the golden ones. A line each: model, preset, frame rate, shape, largest difference, of what magnitude.
"""

import argparse
from pathlib import Path
import subprocess
import sys
import tempfile

ROOT = Path(__file__).resolve().parent.parent
RATES = (25, 16)
SECONDS = 3


def main() -> None:
    """Run both interpreters and print the comparison; exit code 1 where features differ by more than rounding."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pythons", nargs="+", metavar="PYTHON", help="two interpreters")
    parser.add_argument("--models", type=Path, help="folder with further wav2vec2 folders")
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--dump", type=Path, nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.write:
        return write_models(arguments.write)
    if arguments.dump:
        return dump(*arguments.dump, arguments.models)
    if len(arguments.pythons) != 2:
        parser.error("two interpreters are compared")
    sys.exit(compare(*arguments.pythons, arguments.models))


def compare(first: str, second: str, more: Path | None) -> int:
    """Print the differences; 1 where one is above 1e-4 of the features' root mean square."""
    import torch

    with tempfile.TemporaryDirectory() as folder:
        models = Path(folder) / "models"
        _ask(first, "--write", str(models))
        outputs = []
        for number, python in enumerate((first, second)):
            output = Path(folder) / f"{number}.pt"
            extra = ["--models", str(more)] if more else []
            _ask(python, "--dump", str(models), str(output), *extra)
            outputs.append(torch.load(output, weights_only=True))
    versions = [output.pop("versions") for output in outputs]
    print(f"{versions[0]}  against  {versions[1]}")
    worst = 0.0
    for name, ours in outputs[0].items():
        theirs = outputs[1][name]
        largest, size = (ours - theirs).abs().max().item(), ours.pow(2).mean().sqrt().item()
        worst = max(worst, largest / size)
        print(f"{name:44s} {list(ours.shape)!s:16s} largest difference {largest:.2e}, root mean square {size:.2f}")
    print(f"largest of all, relative to the root mean square: {worst:.2e}")
    return int(worst > 1e-4 or outputs[0].keys() != outputs[1].keys())


def _ask(python: str, *words: str) -> None:
    subprocess.run([python, "-m", "benchmarks.transformers_versions", python, *words], cwd=ROOT, check=True)


def write_models(folder: Path) -> None:
    """Three random models in Hugging Face folders."""
    import torch
    from transformers import Wav2Vec2Config, Wav2Vec2Model, WhisperConfig, WhisperModel

    sizes = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 96,
             "conv_dim": (32,) * 7, "num_conv_pos_embeddings": 32, "num_conv_pos_embedding_groups": 4}
    torch.manual_seed(0)
    Wav2Vec2Model(Wav2Vec2Config(**sizes)).save_pretrained(folder / "base")
    Wav2Vec2Model(Wav2Vec2Config(**sizes, do_stable_layer_norm=True, feat_extract_norm="layer", conv_bias=True)
                  ).save_pretrained(folder / "large")
    WhisperModel(WhisperConfig(d_model=64, encoder_layers=4, encoder_attention_heads=4, encoder_ffn_dim=96,
                               num_mel_bins=128, decoder_layers=1, decoder_attention_heads=4, decoder_ffn_dim=64,
                               vocab_size=60, pad_token_id=1, bos_token_id=2, eos_token_id=3,
                               decoder_start_token_id=4)).save_pretrained(folder / "whisper")


def dump(folder: Path, output: Path, more: Path | None) -> None:
    """Features of one sound by every preset that a model fits, and the versions they were made with."""
    import json

    import torch
    import transformers

    from wan.audio_presets import PRESETS
    from wan.encoders.audio import load_audio_encoder

    torch.set_num_threads(1)
    time = torch.arange(SECONDS * 16_000) / 16_000
    sound = 0.1 * torch.randn(len(time), generator=torch.Generator().manual_seed(1)) * (1 + torch.sin(20 * time))
    features = {"versions": f"transformers {transformers.__version__}, torch {torch.__version__}"}
    configs = [*folder.glob("*/config.json"), *(more.glob("*/config.json") if more else [])]
    for path in sorted(configs):
        kind = json.loads(path.read_text(encoding="utf-8")).get("model_type")
        for preset in PRESETS.values():
            if preset.model != kind:
                continue
            encoder = load_audio_encoder(path.parent, preset=preset)
            for fps in RATES if preset.is_by_frame else RATES[:1]:
                name = f"{path.parent.name} {preset.name} {fps} fps"
                features[name] = encoder.encode(sound, sample_rate=16_000, fps=fps)
    torch.save(features, output)


if __name__ == "__main__":
    main()
