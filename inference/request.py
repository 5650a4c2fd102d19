"""The settings of one generation, spelled as musubi-tuner spells them where it has them."""

from collections.abc import Iterable
from pathlib import Path
import re
from typing import Literal

from common.config import Section, flag
from common.errors import ConfigError
from common.timebase import floor_frame_count, is_valid_frame_count
from inference.choices import Annealing, Order
from inference.segments import overlap_problem
from inference.speed import LISTED_SOLVERS, SpeedChoice
from wan.audio_presets import PresetName
from wan.memory.compile_modes import DIFFERS as MODE_DIFFERS
from wan.memory.compile_modes import HELP as MODE_HELP
from wan.memory.compile_modes import Mode, mode_problems
from wan.modules.attention_names import ALIASES, AUTO, ONLY_FORWARD, TRAINING
from wan.modules.attention_names import HELP as ATTENTION_HELP
from wan.text_storage import FP8_T5_DIFFERS, FP8_T5_HELP
from wan.variants import TASKS, find_task

OutputType = Literal["video", "images", "latent", "both", "latent_images"]
VIDEO_SUFFIXES = (".mp4", ".m4v")
FOREIGN_VIDEO_SUFFIXES = (".mov", ".mkv", ".webm", ".avi", ".gif", ".wmv", ".flv")
NO_SUCH_ATTENTION = {
    "xformers": "is not offered, because torch's own attention computes the same without a package. Use torch.",
}
DTYPES = ("float32", "bfloat16", "float16")


class ModelChoice(Section):
    """Weights and how they are held."""

    task: str | None = flag(None, f"model that the weights must be: {', '.join(TASKS)} (default: read from the "
                                  "weights)",
                            group="Models")
    ckpt_dir: Path | None = flag(None, "official Wan 2.1 folder; fills --dit, --vae, --t5, --clip and --tokenizer "
                                       "where they are not given", group="Models")
    dit: Path | None = flag(None, "DiT weights: a file, a folder, or one shard of a set; official, ComfyUI and "
                                  "diffusers layouts", group="Models")
    vae: Path | None = flag(None, "VAE weights (Wan2.1_VAE.pth)", group="Models")
    t5: Path | None = flag(None, "umT5-XXL text encoder (models_t5_umt5-xxl-enc-bf16.pth, or ComfyUI's file)",
                           group="Models")
    tokenizer: Path | None = flag(None, "spiece.model or its folder (default: inside ComfyUI's file, beside the "
                                        "weights, in google/umt5-xxl/ there, or the hub cache; nothing is downloaded)",
                                  group="Models")
    clip: Path | None = flag(None, "CLIP weights; image-to-video and first+last frame models need them",
                             group="Models")
    wav2vec: Path | None = flag(None, "folder of wav2vec2-base-960h, or of the audio encoder that the preset names; "
                                      "--audio needs it", group="Models")
    audio_preset: PresetName | None = flag(None, "whose way to hear (default: the one that the LoRA was trained with, "
                                                 "else omniavatar; docs/audio.md)", group="Models")
    device: str | None = flag(None, "device to run on (default: cuda where there is one, else cpu)", group="Models")
    dit_dtype: str | None = flag(None, "precision of the DiT (default: bfloat16 on a GPU, or float16 where the file "
                                       "is; float32 on the CPU)", choices=DTYPES, group="Models")
    vae_dtype: str = flag("float32", "precision of the VAE: float32 is Wan's own", choices=DTYPES, group="Models",
                          differs="the default is float32, Wan's own precision; musubi-tuner's is bfloat16")
    vae_compile: bool = flag(False, "compile the VAE (CUDA): a minute or more for each size, then decoding takes "
                                    "a fifth less; for many videos in one run", group="Models")
    t5_dtype: str = flag("bfloat16", "precision of umT5: bfloat16 is Wan's own", choices=DTYPES, group="Models")
    clip_dtype: str = flag("float32", "precision of CLIP", choices=DTYPES, group="Models")
    fp8: bool = flag(False, "hold the DiT's block weights as float8, half the memory of bfloat16", group="Models")
    fp8_scaled: bool = flag(False, "like --fp8 with a scale for every 64 weights: closer to the original",
                            group="Models")
    fp8_fast: bool = flag(False, "multiply in float8 too, on GPUs that have units for it (RTX 40, H100 and later): "
                                 "faster and less exact; stores float8 with one scale a weight", group="Models")
    compile: bool = flag(False, "compile the DiT's blocks: the first step of each size takes half a minute longer, the "
                                "others about a quarter less", group="Models")
    compile_backend: str = flag("inductor", "torch.compile's backend", group="Models")
    compile_mode: Mode | None = flag(None, MODE_HELP, group="Models", differs=MODE_DIFFERS)
    fp8_t5: bool = flag(False, FP8_T5_HELP, group="Models", differs=FP8_T5_DIFFERS)
    text_encoder_cpu: bool = flag(False, "read the texts on the CPU: slower by seconds a prompt, and nothing of umT5 "
                                         "is ever on the GPU", group="Models")
    blocks_to_swap: int = flag(0, "blocks of the DiT, evenly spread, whose weights wait in page-locked host memory and "
                                  "are brought just ahead of use; up to all of them (14B: 40)", ge=0, group="Models",
                               differs="one way and always page-locked; all blocks may be swapped")
    attn_mode: str = flag(AUTO, f"attention back end: {ATTENTION_HELP}; cudnn_fp8 (nvidia-cudnn-frontend) and sageattn "
                                "round to eight bits: faster still, not quite the same video",
                          choices=(AUTO, *TRAINING, *ONLY_FORWARD, *ALIASES, *NO_SUCH_ATTENTION), group="Models",
                          differs="the default is auto: cuDNN's kernel on H100 and later, else torch's choice")


class LoraChoice(Section):
    """LoRA files, and the conditions inside them."""

    lora_weight: list[Path] = flag([], "LoRA, DoRA, LoHa or LoKr files: OmniTuner, musubi-tuner/kohya, LyCORIS, "
                                       "diffusers/peft or ComfyUI layout; an audio condition inside is restored by "
                                       "itself", group="LoRA")
    lora_multiplier: list[float] = flag([], "strength of each LoRA, or one for all (default: 1)", group="LoRA")
    lora_attach: bool = flag(False, "run the LoRAs beside the base instead of adding them to its weights: slower, "
                                    "exact on float8 weights", group="LoRA")
    include_patterns: list[str] = flag([], "regular expressions; only LoRA modules in whose name one is found are "
                                           "used, for example self_attn or blocks\\.1[0-9]\\.ffn", group="LoRA")
    exclude_patterns: list[str] = flag([], "regular expressions; LoRA modules in whose name one is found are left "
                                           "out", group="LoRA")

    def multipliers(self) -> list[float]:
        """One multiplier for each LoRA file."""
        given = self.lora_multiplier or [1.0]
        return given * len(self.lora_weight) if len(given) == 1 else given


class SceneChoice(Section):
    """What is to be seen and heard."""

    prompt: str | None = flag(None, "what the video shows", group="Scene")
    negative_prompt: str | None = flag(None, "what guidance leads away from (default: the task's own)", group="Scene")
    image_path: Path | None = flag(None, "first picture, or the face of an audio-driven video", group="Scene")
    end_image_path: Path | None = flag(None, "last picture, for first+last frame models", group="Scene")
    control_path: Path | None = flag(None, "control video or folder of pictures, for Fun-Control models",
                                     group="Scene")
    audio: Path | None = flag(None, "sound that drives the video and is written into it; needs a LoRA with an audio "
                                    "condition", group="Scene")
    audio2: list[Path] = flag([], "sounds of the second and further speakers; the others are silent for each of them",
                              group="Scene")
    audio_channel: int | None = flag(None, "channel of the sound that is heard, 1 is the left (default: the mean of "
                                           "all); the video gets all channels", ge=1, group="Scene")
    speaker_boxes: list[str] = flag([], "where the speakers are, in the order of the sounds: left,top,right,bottom for "
                                        "each, as shares of the video's width and height (default: side by side from "
                                        "the left)", group="Scene")
    speaker_masks: list[Path] = flag([], "the same as pictures, white where the speaker is, in the shape of "
                                         "--image_path", group="Scene")
    audio_lead: float | None = flag(None, "seconds of silence in front of the sound, for the model and in the video "
                                          "(default: 0; 0.3 as OmniAvatar does, with its file or --omniavatar_lead)",
                                    ge=0, group="Scene")
    audio_gain: str | None = flag(None, "strength of the audio condition by block: 0.5 everywhere, or 2-8:0.5,12:0 "
                                        "with 1 in the other blocks (default: as trained)", group="Scene")
    video_size: tuple[int, int] = flag((256, 256), "height and width in pixels, multiples of 16; for image-to-video "
                                                   "this is the area, and the picture rules the shape", group="Scene")
    video_length: int | None = flag(None, "frames, 4n+1 (default: the sound's length, else the task's, 81)",
                                    group="Scene")
    fps: float | None = flag(None, "frames a second (default: what the LoRA was trained at, else 25 with sound, else "
                                   "16)",
                             group="Scene", gt=0)
    trim_tail_frames: int = flag(0, "drop this many frames at the end", group="Scene", ge=0)
    from_file: Path | None = flag(None, "file of prompts, one a line with options (--w --h --f --d --s --l --fs --i "
                                        "--ei --a --n …), OmniAvatar's prompt@@image@@audio lines, .toml or .json",
                                  group="Scene")
    latent_path: list[Path] = flag([], "latent files of an earlier run: only decode them", group="Scene")


class SamplingChoice(Section):
    """How noise becomes video."""

    infer_steps: int | None = flag(None, "solver steps (default: the task's, 40 or 50)", group="Sampling", ge=1)
    sample_solver: Literal["unipc", "dpm++", "euler", "vanilla", "lcm"] = flag(
        "unipc", "solver; vanilla is euler's name in musubi-tuner; lcm draws fresh noise in every step, for distilled "
                 "LoRAs", group="Sampling")
    flow_shift: float | None = flag(None, "above 1: more steps at high noise (default: the task's)", group="Sampling",
                                    gt=0)
    guidance_scale: float | None = flag(None, "strength of the prompt against the negative one; 1 halves the time "
                                              "(default: the task's, 5)", group="Sampling")
    seed: int | None = flag(None, "number that fixes the noise (default: random, and told)", group="Sampling", ge=0,
                            lt=2**63)


class GuidanceChoice(Section):
    """How text and sound are guided."""

    audio_scale: float | None = flag(None, "strength of the sound, where it shall differ from --guidance_scale: three "
                                           "passes a step in place of two (OmniAvatar suggests 3)", group="Guidance")
    guidance_order: Order = flag("omniavatar", "with --audio_scale: text is guided first and sound on top "
                                               "(omniavatar), or sound first and text on top (multitalk)",
                                 group="Guidance")
    guidance_annealing: Annealing = flag("none", "how the strength falls to 1 over the steps", group="Guidance")
    audio_annealing: Annealing | None = flag(None, "the same for --audio_scale (default: like --guidance_annealing)",
                                             group="Guidance")
    guidance_interval: tuple[float, float] = flag((0.0, 1.0), "share of the steps with guidance, from and to; outside "
                                                              "one pass is enough", group="Guidance")
    audio_interval: tuple[float, float] | None = flag(None, "the same for --audio_scale (default: like "
                                                            "--guidance_interval)", group="Guidance")

    def interval_problems(self) -> Iterable[str]:
        """Intervals that are no part of 0 to 1."""
        for name in ("guidance_interval", "audio_interval"):
            interval = getattr(self, name)
            if interval is not None and not 0 <= interval[0] < interval[1] <= 1:
                yield (f"--{name} {interval[0]:g} {interval[1]:g}: expected two shares of the steps, the first below "
                       "the second, from 0 to 1. 0 0.8 leaves out the last fifth.")


class LongChoice(Section):
    """Sounds that are longer than one chunk."""

    max_tokens: int = flag(30000, "longest chunk of an audio-driven video, counted as OmniAvatar counts its token "
                                  "budget", group="Long video", ge=1)
    chunk_frames: int | None = flag(None, "longest chunk in frames, 4n+1, in place of --max_tokens", group="Long video")
    overlap_frame: int = flag(13, "frames, 4n+1, that a chunk takes over from the one before", group="Long video")
    stitch: Literal["pixel", "latent"] = flag("pixel", "how they are taken over: decoded and encoded again, as "
                                                       "OmniAvatar does, or as the latents that they are",
                                              group="Long video")
    sink: Literal["none", "reference"] = flag("none", "what stands in the first of the frames that a chunk takes over: "
                                                      "none, that frame, or reference, the picture itself, against "
                                                      "drift over many chunks", group="Long video")
    ease_seams: int = flag(0, "frames over which small differences at a seam fade: what stands still is drawn a little "
                              "anew by every chunk (12 is half a second)", group="Long video", ge=0)
    seams_in_pauses: bool = flag(False, "let chunks end where nobody speaks; they get up to a third shorter",
                                 group="Long video")
    color_match: float = flag(0.0, "how far each frame's colours (mean and spread in Lab) are brought back to the "
                                   "picture's, 0 to 1, against drift over many chunks", group="Long video", ge=0, le=1)
    omniavatar_lead: bool = flag(False, "hear and place the sound as OmniAvatar does: 0.3 s of silence in front, the "
                                        "sound one frame later, every chunk full; its own file brings this by itself",
                                 group="Long video")
    max_hw: Literal[720, 1280] = flag(720, "sizes to choose from where OmniAvatar's file is loaded and no --video_size "
                                           "is given: 720 (400x720, 720x720, 720x400) or 1280 (up to 720x1280)",
                                      group="Long video")
    audio_window: float = flag(120.0, "seconds of sound that the audio encoder hears at once; a longer sound is heard "
                                      "in windows of this length, which changes its features a little",
                               group="Long video", ge=20)
    resume: bool = flag(False, "go on with the chunks that an interrupted run left beside --save_path",
                        group="Long video")

    def long_problems(self) -> Iterable[str]:
        """Chunk lengths off the rule."""
        if problem := overlap_problem(self.overlap_frame):
            yield problem
        if self.chunk_frames is not None and not is_valid_frame_count(self.chunk_frames):
            yield frame_count_problem(self.chunk_frames, "--chunk_frames")


class DebugChoice(Section):
    """Looking inside."""

    no_lora: bool = flag(False, "leave out the LoRA weights and keep the audio condition that their file brings",
                         group="Debugging")
    frame_stats: Path | None = flag(None, "write figures of every frame there, a JSON line each: min, max, mean, std, "
                                          "change to the frame before and to the picture, sharpness", group="Debugging")
    debug: bool = flag(False, "tell shape, dtype, mean and deviation of text, sound, pictures, masks and of the "
                              "latents after each step", group="Debugging")


class OutputChoice(Section):
    """Where the result goes."""

    save_path: Path | None = flag(None, "a video file (.mp4 …), or a folder whose files are named by time and seed",
                                  group="Output")
    output_type: OutputType = flag("video", "video; images (PNG frames); latent (for --latent_path); both (video and "
                                            "latent); latent_images", group="Output")
    no_metadata: bool = flag(False, "write neither the JSON beside the video nor the prompt into files; the tag that "
                                    "says generated stays", group="Output")


class GenerationRequest(OutputChoice, DebugChoice, SpeedChoice, SamplingChoice, GuidanceChoice, LongChoice, SceneChoice,
                        LoraChoice, ModelChoice):
    """Settings of one generation; every field is a flag of generate_video.py."""

    def problems(self) -> Iterable[str]:
        """Rules that need no file to be opened."""
        if self.task is not None:
            try:
                find_task(self.task)
            except ConfigError as error:
                yield str(error)
        if self.video_length is not None and not is_valid_frame_count(self.video_length):
            yield frame_count_problem(self.video_length)
        if len(self.lora_multiplier) not in (0, 1, len(self.lora_weight)):
            yield (f"--lora_multiplier has {len(self.lora_multiplier)} values for {len(self.lora_weight)} LoRA "
                   "files. Give one for each, or one for all.")
        yield from self.interval_problems()
        yield from self.long_problems()
        yield from self.speed_problems()
        yield from mode_problems(self.compile_mode if self.compile else None,
                                 "--blocks_to_swap" if self.blocks_to_swap else "")
        yield from self._step_problems()
        if self.attn_mode in NO_SUCH_ATTENTION:
            yield f"--attn_mode {self.attn_mode}: {NO_SUCH_ATTENTION[self.attn_mode]}"
        for pattern in (*self.include_patterns, *self.exclude_patterns):
            try:
                re.compile(pattern)
            except re.error as error:
                yield f"'{pattern}' is no regular expression: {error}."
        if self.save_path is not None and self.save_path.suffix.lower() in FOREIGN_VIDEO_SUFFIXES:
            yield f"--save_path {self.save_path}: videos are written as .mp4. Use that ending, or a folder."
        if self.resume and (self.save_path is None or self.save_path.suffix.lower() not in VIDEO_SUFFIXES):
            yield (f"--resume: --save_path must name the video, and it is {self.save_path or 'not given'}. The chunks "
                   "lie in a folder beside it that is called as it with .parts behind.")
        if self.frame_stats is not None and self.from_file is not None:
            yield "--frame_stats is of one video. Give prompt, picture and sound of one line of --from_file instead."
        if self.latent_path and self.from_file:
            yield "--latent_path only decodes and --from_file only generates. Give one of the two."

    def _step_problems(self) -> Iterable[str]:
        """`--denoising_steps` and `--cfg_skip_mode` beside flags that say otherwise."""
        listed = len(self.denoising_steps)
        if listed and self.infer_steps not in (None, listed):
            yield f"--infer_steps {self.infer_steps}: --denoising_steps lists {listed}. Leave --infer_steps out."
        if listed and "sample_solver" in self.model_fields_set and self.sample_solver not in LISTED_SOLVERS:
            yield (f"--sample_solver {self.sample_solver} spreads its steps by itself. --denoising_steps goes with "
                   "euler (its default) or lcm.")
        if self.cfg_skip_mode != "none" and (self.guidance_interval, self.audio_interval) != ((0.0, 1.0), None):
            yield ("--cfg_skip_mode and --guidance_interval or --audio_interval both say which steps are guided. Give "
                   "one.")


def frame_count_problem(frames: int, flag_name: str = "--video_length") -> str:
    """Sentence for a number of frames that is not 4n+1."""
    if frames < 1:
        return f"{flag_name} {frames}: a video has at least 1 frame. Use 4n+1 frames, such as 81."
    below = floor_frame_count(frames)
    return f"{flag_name} {frames}: Wan makes 4n+1 frames. Use {below} or {below + 4}."
