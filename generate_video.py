"""Generate video from a prompt, pictures and a sound."""

from common.config import parse
from common.devices import grow_memory_in_place
from common.errors import run
from common.logs import setup_logging
from inference.foreign import FOREIGN
from inference.request import GenerationRequest

EXAMPLES = """
examples
  text to video:
    python generate_video.py --dit Wan2.1-T2V-1.3B --vae Wan2.1_VAE.pth --t5 models_t5_umt5-xxl-enc-bf16.pth \\
        --prompt "a fox runs through snow" --video_size 480 832 --video_length 81 --save_path fox.mp4
  a picture that talks (LoRA with an audio condition; the sound rules the length):
    python generate_video.py --dit Wan2.1-T2V-14B --vae Wan2.1_VAE.pth --t5 models_t5_umt5-xxl-enc-bf16.pth \\
        --wav2vec wav2vec2-base-960h --lora_weight talking.safetensors --image_path face.png --audio speech.wav \\
        --prompt "a woman speaks to the camera" --video_size 480 832 --save_path talking.mp4
  a long speech: made in chunks, watched while it grows (talking.mp4.parts/so-far.mp4), gone on with after a stop:
    add --resume to the same command
  two people, each with a sound:
    add --audio2 other.wav --speaker_boxes 0,0,0.5,1 0.5,0,1,1
  image to video, first and last picture:
    add --clip models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth --image_path first.png
    and, with a first+last frame model, --end_image_path last.png
  many at once, models loaded once; one prompt a line, options behind it:
    a fox runs through snow --w 832 --h 480 --f 81 --d 42
    the woman laughs --i face.png --a laugh.wav --l 4.5 --n blurred
    python generate_video.py … --from_file prompts.txt --save_path out/
  make a video again: the JSON beside it holds its settings
    python generate_video.py --config_file talking.json --save_path again.mp4

exit code: 0 all done, 1 something failed (the list is the last thing that is shown), 130 stopped by Ctrl-C
"""


def main() -> int:
    """Parse, then generate; the settings with their defaults filled in are shown before any model is loaded."""
    setup_logging()
    grow_memory_in_place()
    request = parse(GenerationRequest, prog="generate_video.py", description=__doc__, epilog=EXAMPLES, foreign=FOREIGN)
    from inference.command import run_request

    return run_request(request)


if __name__ == "__main__":
    run(main)
