"""The keys of a dataset TOML: musubi-tuner's, and ours."""

from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field, StrictBool, StrictInt, StrictStr

from common.errors import ConfigError
from common.speakers import parse_box
from common.timebase import floor_frame_count
from dataset.spans import Extraction, ExtractionMode

AudioShort = Literal["error", "silence", "trim"]
AudioSource = Literal["clip", "none"]
ReferenceRule = Literal["first", "random", "random_outside"]
PositiveInt = Annotated[StrictInt, Field(ge=1)]
FramesPerSecond = Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)]
Pixels = Annotated[StrictInt, Field(ge=16)]

WAN_FPS = 16.0
"""Frames per second that Wan was trained at, and that musubi-tuner brings every clip to."""
SPEECH_FPS = 25.0
"""Frames per second of the systems that hear."""

_CLEAN = pydantic.ConfigDict(frozen=True, extra="forbid")


def _as_pair(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("must be a number or [width, height]")
    if isinstance(value, int):
        return (value, value)
    if isinstance(value, list) and len(value) == 1:
        return (value[0], value[0])
    return value


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, int) and not isinstance(value, bool) else value


def _as_path(value: Any) -> Any:
    if isinstance(value, str) and any(ord(letter) < 32 for letter in value):
        raise ValueError(f"the path {value!r} holds a control character: TOML reads \\n, \\t and the like inside "
                         "double quotes. Put a Windows path in single quotes ('C:\\new') or write it with /")
    if not isinstance(value, (str, Path)) or str(value) == "":
        raise ValueError("must be a path in quotes")
    return Path(value)


def _as_box(value: Any) -> Any:
    try:
        parse_box(str(value), "the box")
    except ConfigError as error:
        raise ValueError(str(error)) from error
    return value


Resolution = Annotated[tuple[Pixels, Pixels], pydantic.BeforeValidator(_as_pair)]
PathKey = Annotated[Path, pydantic.BeforeValidator(_as_path)]
PathsKey = Annotated[list[PathKey], Field(min_length=1)]
BoxesKey = Annotated[list[Annotated[StrictStr, pydantic.AfterValidator(_as_box)]], Field(min_length=1)]


class SharedKeys(pydantic.BaseModel):
    """Keys that stand in [general] or in any entry; the entry's own value wins."""

    model_config = _CLEAN

    resolution: Resolution = Field((960, 544), description="[width, height] or one number for both; with enable_bucket "
                                   "it is an area, without it the one size")
    caption_extension: StrictStr = Field(".txt", description="ending of the caption file beside each source")
    batch_size: PositiveInt = Field(1, description="samples of one step (of one process)")
    num_repeats: PositiveInt = Field(1, description="how often an epoch shows each clip")
    enable_bucket: StrictBool = Field(False, description="keep each source's aspect ratio, as near as buckets allow")
    bucket_no_upscale: StrictBool = Field(False, description="never enlarge a source; needs enable_bucket")

    @pydantic.field_validator("caption_extension")
    @classmethod
    def _with_dot(cls, value: str) -> str:
        if not value:
            raise ValueError("is empty; write for example '.txt'")
        return value if value.startswith(".") else f".{value}"


class ClockKeys(SharedKeys):
    """Keys about time and sound; in [general] they hold for every video entry."""

    target_fps: FramesPerSecond | None = Field(None, description="frames per second of the clips, resampled by time "
                                             "stamps; absent: 25 where the entry has sound, else 16")
    audio: AudioSource | None = Field(None, description="'clip': train with each video's own sound; 'none': without")
    audio_short: AudioShort | None = Field(None, description="sound that misses more than a frame of a clip: 'error', "
                                           "'silence' (fill) or 'trim' (use the covered part)")
    reference: ReferenceRule = Field("first", description="still picture of a clip that names none: its first frame, a "
                                     "random frame of the source, or one outside the clip")


class GeneralKeys(ClockKeys):
    """The [general] table."""


class ImageEntry(SharedKeys):
    """A [[datasets]] entry of pictures."""

    name: StrictStr | None = Field(None, description="name of the entry in reports")
    image_directory: PathKey | None = Field(None, description="folder of pictures with captions beside them")
    image_jsonl_file: PathKey | None = Field(None, description="lines of {\"image_path\", \"caption\", ...}")
    cache_directory: PathKey | None = Field(None, description="where features are kept; default: image_directory")
    control_directory: PathKey | None = Field(None, description="control pictures of the same names")
    face_mask_directory: PathKey | None = Field(None, description="pictures of the same names, white where the face is")
    lip_mask_directory: PathKey | None = Field(None, description="the same for the mouth")

    @property
    def kind(self) -> Literal["image", "video"]:
        """What the entry holds."""
        return "image"

    @property
    def directory(self) -> Path | None:
        """Folder of the sources, or None when a list names them."""
        return self.image_directory

    @property
    def list_file(self) -> Path | None:
        """File that lists the sources."""
        return self.image_jsonl_file

    @property
    def extraction(self) -> Extraction:
        """A picture is a clip of one frame."""
        return Extraction("head", (1,))


class VideoEntry(ClockKeys):
    """A [[datasets]] entry of videos."""

    name: StrictStr | None = Field(None, description="name of the entry in reports")
    video_directory: PathKey | None = Field(None, description="folder of videos with captions beside them")
    video_jsonl_file: PathKey | None = Field(None, description="lines of {\"video_path\", \"caption\", ...}")
    manifest_file: PathKey | None = Field(None, description="OmniAvatar manifest: prompt@@image@@audio@@video a line")
    cache_directory: PathKey | None = Field(None, description="where features are kept; default: video_directory")
    control_directory: PathKey | None = Field(None, description="control videos of the same names")
    audio_directory: PathKey | None = Field(None, description="sound files of the same names, in place of own sound")
    face_mask_directory: PathKey | None = Field(None, description="pictures, videos or folders of pictures of the same "
                                                "names, white where the face is")
    lip_mask_directory: PathKey | None = Field(None, description="the same for the mouth")
    audio_directories: PathsKey | None = Field(None, description="several speakers: a folder of sound files for each")
    speaker_boxes: BoxesKey | None = Field(None, description="where each speaker is: left,top,right,bottom as shares "
                                           "of the picture; absent: side by side from the left")
    speaker_mask_directories: PathsKey | None = Field(None, description="the same as masks: a folder for each speaker")
    target_frames: Annotated[list[PositiveInt], Field(min_length=1), pydantic.BeforeValidator(_as_list)] = Field(
        [1], description="lengths of clips in frames; each is floored to 4n+1")
    frame_extraction: ExtractionMode = Field("head", description="which parts of a source become clips")
    frame_stride: PositiveInt = Field(1, description="slide: frames between two starts")
    frame_sample: PositiveInt = Field(1, description="uniform: clips per source")
    max_frames: PositiveInt = Field(129, description="full: longest clip")
    source_fps: FramesPerSecond | None = Field(None, description="musubi-tuner's rule: the source is taken to run at "
                                               "this rate, frames are dropped by index to reach 16")

    @property
    def kind(self) -> Literal["image", "video"]:
        """What the entry holds."""
        return "video"

    @property
    def directory(self) -> Path | None:
        """Folder of the sources, or None when a list names them."""
        return self.video_directory

    @property
    def list_file(self) -> Path | None:
        """File that lists the sources."""
        return self.video_jsonl_file or self.manifest_file

    @property
    def extraction(self) -> Extraction:
        """How clips are cut: lengths floored to 4n+1, and uniform with one sample is head."""
        single = self.frame_extraction == "uniform" and self.frame_sample == 1
        return Extraction("head" if single else self.frame_extraction,
                          tuple(sorted({floor_frame_count(frames) for frames in self.target_frames})),
                          self.frame_stride, self.frame_sample, self.max_frames)


Entry = ImageEntry | VideoEntry

SOURCE_KEYS: dict[str, type[ImageEntry] | type[VideoEntry]] = {
    "image_directory": ImageEntry, "image_jsonl_file": ImageEntry, "video_directory": VideoEntry,
    "video_jsonl_file": VideoEntry, "manifest_file": VideoEntry}
"""Keys that say where an entry's sources are; each entry has exactly one."""

_FRAMEPACK = "belongs to FramePack"
_KONTEXT = "belongs to picture-editing models; Wan's control pictures are brought to the bucket like the frames"
FOREIGN_KEYS: dict[str, tuple[bool, str]] = {
    "fp_latent_window_size": (True, f"{_FRAMEPACK} and changes nothing for Wan"),
    "fp_1f_no_post": (True, f"{_FRAMEPACK} and changes nothing for Wan"),
    "fp_1f_clean_indices": (False, f"{_FRAMEPACK}'s one-frame training, which is not offered"),
    "fp_1f_target_index": (False, f"{_FRAMEPACK}'s one-frame training, which is not offered"),
    "multiple_target": (False, "belongs to models that make several pictures at once"),
    "no_resize_control": (False, _KONTEXT),
    "flux_kontext_no_resize_control": (False, _KONTEXT),
    "qwen_image_edit_no_resize_control": (False, _KONTEXT),
    "control_resolution": (False, _KONTEXT),
    "qwen_image_edit_control_resolution": (False, _KONTEXT),
}
"""musubi-tuner's keys of other architectures: (harmless, reason). What is not harmless is refused unless it is off."""
