"""A request with every default filled in and every rule checked, before a model is loaded."""

from dataclasses import dataclass
import secrets

from jaxtyping import Float
from torch import Tensor

from common.errors import ConfigError, raise_all
from common.logs import get_logger
from common.media.sound import Sound, mono16k
from common.timebase import (
    AUDIO_SAMPLE_RATE_HZ,
    ceil_frame_count,
    floor_frame_count,
    full_chunk_rows,
    omniavatar_frames_for_tokens,
)
from inference.denoise import Sampling
from inference.guidance import ClassifierFree, Guidance, Scale, TextThenAudio
from inference.listening import fills_chunks
from inference.model_files import ModelFiles
from inference.request import GenerationRequest
from inference.scene import Scene, read_scene
from inference.segments import (
    OMNIAVATAR_SILENCE_S,
    Segment,
    SoundTiming,
    chunk_problem,
    cut_into_segments,
)
from inference.sizes import OMNIAVATAR_SIZES, Length, clip_length, clip_size, nearest_size, size_problem
from inference.speakers import speaker_problems, speaker_regions
from inference.speed import distilled_defaults
from wan.variants import OMNIAVATAR_NEGATIVE_PROMPT, Variant

log = get_logger(__name__)

AUDIO_FPS = 25.0
AUDIO_GUIDANCE = 4.5
"""OmniAvatar's; also the rate that a dataset with sound is read at by default."""


@dataclass(frozen=True)
class Plan:
    """What will be made."""

    request: GenerationRequest
    """Settings with every default filled in: the ones that reproduce the result."""
    variant: Variant
    """The model that makes it."""
    scene: Scene
    size: tuple[int, int]
    """Width and height in pixels."""
    length: Length
    picture_mode: str
    features: tuple[str, ...]
    """Features to encode, beside the text."""
    segments: tuple[Segment, ...]
    """The chunks; one but for long sounds."""
    timing: SoundTiming = SoundTiming()
    starts_from_picture: bool = False
    """Whether the first latent frame is given: the picture itself."""
    regions: Float[Tensor, "S h w"] | None = None
    """Where each speaker is heard, at latent size; None for one speaker who is heard everywhere."""
    hears_silence: bool = False
    """Whether a condition wants encoded silence in place of absent sound."""
    fills_chunks: bool = False
    """Whether the sound is heard with silence behind it until every chunk is full."""

    @property
    def fps(self) -> float:
        """Frames a second of the video."""
        assert self.request.fps is not None
        return self.request.fps

    @property
    def seed(self) -> int:
        """Seed of the noise."""
        assert self.request.seed is not None
        return self.request.seed

    @property
    def guidance(self) -> float:
        """Guidance scale."""
        assert self.request.guidance_scale is not None
        return self.request.guidance_scale

    def guide(self, dropped: frozenset[str] = frozenset()) -> Guidance:
        """How text and sound are guided; `dropped` are the features that an unconditional pass lacks."""
        asked = self.request
        text = Scale(self.guidance, asked.guidance_annealing, asked.guidance_interval, asked.cfg_skip)
        if asked.audio_scale is None:
            return ClassifierFree(text, dropped)
        audio = Scale(asked.audio_scale, asked.audio_annealing or asked.guidance_annealing,
                      asked.audio_interval or asked.guidance_interval, asked.cfg_skip)
        return TextThenAudio(text, audio, dropped, asked.guidance_order)

    @property
    def sampling(self) -> Sampling:
        """Solver, steps and shift."""
        assert self.request.infer_steps is not None and self.request.flow_shift is not None
        return Sampling(self.request.sample_solver, self.request.infer_steps, self.request.flow_shift,
                        tuple(self.request.denoising_steps))

    @property
    def guides_every_step(self) -> bool:
        """Whether nothing leaves out guidance in a part of the steps."""
        asked, whole = self.request, (0.0, 1.0)
        return asked.guidance_interval == whole and asked.audio_interval in (None, whole) and asked.cfg_skip is None

    @property
    def prompt(self) -> str:
        """What the video shows."""
        return self.request.prompt or ""

    @property
    def negative_prompt(self) -> str:
        """What guidance leads away from."""
        return self.request.negative_prompt or ""

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        """Latent channels, frames, height and width of the clip, or of a long one's first chunk."""
        return self.shape_of(self.segments[0])

    def shape_of(self, segment: Segment) -> tuple[int, int, int, int]:
        """Latent channels, frames, height and width of a chunk."""
        _, rows, columns = self.variant.vae_stride
        return self.variant.latent_channels, segment.latents, self.size[1] // rows, self.size[0] // columns

    @property
    def is_long(self) -> bool:
        """Whether several chunks make the video."""
        return len(self.segments) > 1

    @property
    def sound_rows(self) -> int:
        """Frames that the sound is heard at, to the end of the last chunk."""
        return self.segments[-1].rows(self.timing).stop

    def rows_heard(self, rows: int) -> int:
        """Rows of a sound of `rows` frames as it is heard: with the silence behind it, where chunks are filled."""
        longest, overlap = _longest_chunk(self.request, self.size), self.request.overlap_frame
        return full_chunk_rows(rows, longest, overlap) if self.fills_chunks and longest > overlap else rows

    @property
    def sound_lead_s(self) -> float:
        """Seconds of silence in front of the sound in the written video."""
        return self.timing.mux_lead_s(self.fps)

    @property
    def summary(self) -> str:
        """One line for a list of prompts."""
        sound = "" if self.scene.sound is None else f", {self.scene.sound.duration_s:.2f} s of sound"
        sound += f" in {len(self.segments)} chunks" if self.is_long else ""
        return (f"{self.size[0]}x{self.size[1]}, {self.shown_frames} frames at {self.fps:g} fps{sound}, "
                f"{self.sampling.steps} steps, seed {self.seed}: {self.prompt}")

    @property
    def written_sound(self) -> Sound | None:
        """The driving sound; cut where the video is shorter because the user wants it so."""
        sound = self.scene.sound
        if sound is None or (self.request.video_length is None and self.request.trim_tail_frames == 0):
            return sound
        samples = max(round((self.shown_frames / self.fps - self.sound_lead_s) * sound.sample_rate), 0)
        return Sound(sound.samples[:, :samples], sound.sample_rate)

    @property
    def shown_frames(self) -> int:
        """Frames that are written."""
        return self.length.shown - self.request.trim_tail_frames


def make_plan(request: GenerationRequest, files: ModelFiles) -> Plan:
    """Read the request's media, fill in defaults, check everything.

    Raises one ConfigError with every problem (MediaError when a picture or sound cannot be read).
    """
    problems = [*_input_problems(request, files), *_size_problems(request, files)]
    raise_all(problems, ConfigError, "generate")
    scene = read_scene(request)
    adapters, task = files.adapters, files.task
    mode = adapters.picture_mode or ("omniavatar" if "reference_latents" in adapters.features else "wan_i2v")
    asked = _asked_size(request, files, scene)
    size = clip_size(*asked, mode, scene.shape)
    if size != (asked[1], asked[0]):
        log.info("size %dx%d: the shape of %s at the area of --video_size %d %d", *size, request.image_path, *asked)
    fps = request.fps or adapters.fps or (AUDIO_FPS if "audio" in adapters.features else float(task.fps))
    timing = _timing(request, files)
    total = clip_length(request.video_length, task.frames, fps=fps, shift=timing.shift,
                        sound_s=None if scene.sound is None else scene.sound.duration_s + timing.lead_s)
    segments = _segments(request, total, size, fps, timing, scene, first_known=int(adapters.starts_from_picture))
    length = Length(segments[0].frames, total)
    if request.control_path is not None:
        _refuse_short_control(request, fps, length.frames)
    if request.trim_tail_frames >= length.shown:
        raise ConfigError(f"--trim_tail_frames {request.trim_tail_frames} leaves nothing of {length.shown} frames.")
    if adapters.fps and fps != adapters.fps:
        log.info("note: the LoRA was trained at %g fps; %g fps are asked for", adapters.fps, fps)
    filled = _filled(request, files, size).model_copy(update={"fps": fps, "video_size": asked})
    _, rows, columns = files.variant.vae_stride
    regions = speaker_regions(request, size, (size[1] // rows, size[0] // columns), mode)
    return Plan(request=filled, variant=files.variant, scene=scene, size=size, length=length, picture_mode=mode,
                features=_features(request, files), starts_from_picture=adapters.starts_from_picture,
                segments=segments, timing=timing, regions=regions, hears_silence=adapters.hears_silence,
                fills_chunks=timing.shift > 0 or fills_chunks(adapters))


def _asked_size(request: GenerationRequest, files: ModelFiles, scene: Scene) -> tuple[int, int]:
    """Height and width: as asked, or with OmniAvatar's file the one of its sizes that is nearest to the picture's."""
    if "video_size" in request.model_fields_set or not files.adapters.is_omniavatar or scene.shape is None:
        return request.video_size
    height, width = nearest_size(scene.shape, OMNIAVATAR_SIZES[request.max_hw])
    log.info("size %dx%d: of OmniAvatar's sizes the nearest to the picture's shape", width, height)
    return height, width


def _timing(request: GenerationRequest, files: ModelFiles) -> SoundTiming:
    is_omniavatar = request.omniavatar_lead or files.adapters.is_omniavatar
    silence_s = OMNIAVATAR_SILENCE_S if is_omniavatar else 0.0
    return SoundTiming(silence_s if request.audio_lead is None else request.audio_lead, shift=int(is_omniavatar))


def _segments(request: GenerationRequest, total: int, size: tuple[int, int], fps: float, timing: SoundTiming,
              scene: Scene, *, first_known: int) -> tuple[Segment, ...]:
    """The chunks of a video; without sound it is one, however long."""
    if scene.sound is None:
        return cut_into_segments(total, ceil_frame_count(total), 1, first_known=first_known)
    longest = _longest_chunk(request, size)
    if problem := chunk_problem(total, longest, request.overlap_frame, fps):
        raise ConfigError(f"--audio {request.audio}: {problem}")
    if total > longest and request.end_image_path is not None:
        raise ConfigError(f"--end_image_path: {total / fps:.2f} s need several chunks of {longest} frames, and only a "
                          "single chunk can end in a picture. Cut the sound, or raise --max_tokens or --chunk_frames.")
    loudness = _loudness(scene.sound, total, fps, timing) if request.seams_in_pauses else None
    return cut_into_segments(total, longest, request.overlap_frame, first_known=first_known, whole=timing.shift > 0,
                             loudness=loudness)


def _longest_chunk(request: GenerationRequest, size: tuple[int, int]) -> int:
    """Frames of a full chunk at a size (width, height)."""
    return request.chunk_frames or omniavatar_frames_for_tokens(request.max_tokens, size[1], size[0])


def _loudness(sound: Sound, total: int, fps: float, timing: SoundTiming) -> list[float]:
    """Energy of the sound at every frame of the video: the mean square of its samples."""
    samples = mono16k(sound)
    begins = [round((frame / fps - timing.mux_lead_s(fps)) * AUDIO_SAMPLE_RATE_HZ) for frame in range(total + 1)]
    pieces = [samples[max(begin, 0):max(end, 0)] for begin, end in zip(begins, begins[1:], strict=False)]
    return [float((piece.astype("float64")**2).mean()) if len(piece) else 0.0 for piece in pieces]


def _refuse_short_control(request: GenerationRequest, fps: float, frames: int) -> None:
    from common.media.video import count_frames

    assert request.control_path is not None
    available = count_frames(request.control_path, fps)
    if available < frames:
        fits = f"Ask for --video_length {floor_frame_count(available)}" if available else "Give another one"
        raise ConfigError(f"--control_path {request.control_path}: has {available} frames at {fps:g} fps, and {frames} "
                          f"are to be made. {fits}.")


def _filled(request: GenerationRequest, files: ModelFiles, size: tuple[int, int]) -> GenerationRequest:
    """The request with the task's defaults, or those of audio-driven video, where it says nothing."""
    task, is_audio_driven = files.task, "audio" in files.adapters.features
    defaults = {
        "task": task.name, "seed": secrets.randbelow(2**32), "infer_steps": task.steps,
        "flow_shift": task.shift_for(*size),
        "guidance_scale": AUDIO_GUIDANCE if is_audio_driven else task.guidance, **distilled_defaults(request),
        "negative_prompt": OMNIAVATAR_NEGATIVE_PROMPT if is_audio_driven else task.negative_prompt}
    if is_audio_driven:
        defaults["audio_preset"] = files.preset.name
    filled = {name: value for name, value in defaults.items() if getattr(request, name) is None}
    timing = _timing(request, files)
    filled |= {"audio_lead": timing.lead_s, "omniavatar_lead": timing.shift > 0}
    needs_euler = files.adapters.is_omniavatar or request.denoising_steps
    if needs_euler and "sample_solver" not in request.model_fields_set:
        filled["sample_solver"] = "euler"
    return request.model_copy(update=filled)


def _features(request: GenerationRequest, files: ModelFiles) -> tuple[str, ...]:
    wanted = list(files.adapters.features)
    if files.variant.family == "fun_control":
        wanted += ["control_latents"] + (["image_latents"] if request.image_path else [])
        wanted += ["clip"] if request.image_path and request.clip else []
    elif files.variant.extra_channels:
        wanted.append("image_latents")
        if files.variant.has_image_branch:
            wanted.append("clip")
    return tuple(dict.fromkeys(wanted))


def _size_problems(request: GenerationRequest, files: ModelFiles) -> list[str]:
    problem = size_problem(*request.video_size, files.variant.spatial_multiple)
    return [problem] if problem else []


def _input_problems(request: GenerationRequest, files: ModelFiles) -> list[str]:
    """What is missing or superfluous for this model and these LoRA files."""
    family, heard = files.variant.family, files.adapters.features
    problems = []
    if not request.prompt:
        problems.append("--prompt is required")
    for flag in ("image_path", "end_image_path", "control_path", "audio"):
        path = getattr(request, flag)
        if path is not None and not path.exists():
            problems.append(f"--{flag} {path}: no such file")
    takes_picture = family != "t2v" or "reference_latents" in heard
    if request.sink == "reference" and "reference_latents" not in heard:
        problems.append("--sink reference: no file of --lora_weight has a condition that shows the model a reference "
                        "picture (omniavatar_add, reference_channels). Leave it out")
    if request.image_path is None and (family in ("i2v", "flf2v") or "reference_latents" in heard):
        needs = f"a {family} model" if family != "t2v" else f"the condition '{next(iter(files.adapters.conditions))}'"
        problems.append(f"--image_path is required: {needs} starts from a picture")
    if request.image_path is not None and not takes_picture:
        problems.append("--image_path: a text-to-video model does not start from a picture. Use image-to-video "
                        "weights, or a LoRA with an audio condition")
    if family == "flf2v" and request.end_image_path is None:
        problems.append("--end_image_path is required: this model is made for a first and a last picture")
    if family != "flf2v" and request.end_image_path is not None:
        problems.append("--end_image_path: only first+last frame models (flf2v) take a last picture; this is a "
                        f"{family} model")
    if (family == "fun_control") != (request.control_path is not None):
        problems.append("--control_path is required: this is a Fun-Control model" if family == "fun_control" else
                        f"--control_path: only Fun-Control models follow a control video; this is a {family} model")
    if family in ("i2v", "flf2v") and request.clip is None:
        problems.append(f"--clip is required: a {family} model looks at the picture through CLIP")
    return problems + _sound_problems(request, heard) + speaker_problems(request)


def _sound_problems(request: GenerationRequest, heard: tuple[str, ...]) -> list[str]:
    problems = []
    if "audio" not in heard and request.audio is not None:
        problems.append("--audio: nothing here can follow a sound. Give --lora_weight a file that was trained with an "
                        "audio condition (--network_args conditions=omniavatar_add)")
    if "audio" not in heard and request.audio_scale is not None:
        problems.append("--audio_scale: nothing here hears a sound. Leave it out; --guidance_scale guides the text")
    if "audio" in heard and request.audio is None:
        problems.append("--audio is required: the LoRA holds an audio condition")
    if "audio" in heard and request.wav2vec is None:
        problems.append("--wav2vec is required: the sound is heard through wav2vec2")
    return problems
