"""Settings of what a clip is shown with in training: given frames, dropouts, length; and what they come to in a run.

Nothing here imports torch, so that `--help` is quick. `training.drawn` does what is said here.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from common.config import Section, flag
from common.errors import ConfigError, raise_all
from common.timebase import floor_frame_count, is_valid_frame_count

if TYPE_CHECKING:
    from wan.conditions.base import Condition

SOUND, REFERENCE = "audio", "reference_latents"
"""Features that training drops."""
PREFIX_FRAMES = (1, 5, 9, 13)
"""OmniAvatar's lengths of what a clip goes on from."""
SHARES = {"prefix_dropout": 0.1, "audio_dropout": 0.1, "text_dropout": 0.1, "audio_text_dropout": 0.05,
          "reference_dropout": 0.05}
"""Shares of the samples where a condition that hears is trained: OmniAvatar's for prefix and sound, else ours."""
EXCLUSIVE = ("audio_dropout", "text_dropout", "audio_text_dropout")
"""Events of one draw: of a sample one of them happens, or none."""
MIN_FRAMES = 17
"""The shortest random length: longer than the longest prefix, and long enough for the audio gap to be measured."""

_WHERE_IT_HEARS = "(default: {:g} where a condition that hears is trained, else 0)"


class ShowingSection(Section):
    """What a clip is shown with."""

    prefix_frames: list[int] | None = flag(
        None, "how many video frames (4n+1) of a clip may be given, clean; one of these lengths is drawn for each "
              "sample (default: 1 5 9 13 where a condition that hears is trained on clips that start from a picture, "
              "else 1)")
    prefix_weights: list[float] | None = flag(None, "how often each of --prefix_frames is drawn (default: equally)")
    prefix_dropout: float | None = flag(
        None, "share of samples of which no frame is given " + _WHERE_IT_HEARS.format(SHARES["prefix_dropout"]),
        ge=0, le=1)
    prefix_corruption: float = flag(
        0.0, "spoil given frames beyond the first by up to this, 0 to 1: blur, colours, noise, as a long generation "
             "does; 0.3 makes long videos drift less", ge=0, le=1)
    audio_dropout: float | None = flag(
        None, "share of samples without their sound: zeros, or silence with the condition's setting null=silence "
        + _WHERE_IT_HEARS.format(SHARES["audio_dropout"]), ge=0, le=1)
    text_dropout: float | None = flag(
        None, "share of samples without their caption: the cached null text stands for it "
        + _WHERE_IT_HEARS.format(SHARES["text_dropout"]), ge=0, le=1)
    audio_text_dropout: float | None = flag(
        None, "share of samples with neither " + _WHERE_IT_HEARS.format(SHARES["audio_text_dropout"]), ge=0, le=1)
    reference_dropout: float | None = flag(
        None, "share of samples without their reference picture, where a condition has a form for that "
        + _WHERE_IT_HEARS.format(SHARES["reference_dropout"]), ge=0, le=1)
    max_tokens: int | None = flag(
        None, "most tokens of a batch (latent frames x height/16 x width/16 x samples): batch sizes fall to what fits, "
              "and a clip that alone is longer is shown from its start as far as it fits", ge=1)
    random_length: bool = flag(False, "show a random length of each batch's clips, from their start")
    min_frames: int | None = flag(None, f"shortest length of --random_length, 4n+1 (default: {MIN_FRAMES}); shorter "
                                        "clips stay whole", ge=1)

    def problems(self) -> Iterable[str]:
        """Lengths that the VAE knows, each once; a weight for each; nothing that waits for a switch."""
        for name, lengths in (("prefix_frames", self.prefix_frames or []), ("min_frames", [self.min_frames or 1])):
            for frames in lengths:
                if not is_valid_frame_count(frames):
                    yield (f"--{name} {frames}: lengths are 4n+1 (1, 5, 9, 13 …). The nearest below is "
                           f"{floor_frame_count(max(1, frames))}.")
        if self.prefix_frames is not None and not self.prefix_frames:
            yield "--prefix_frames needs at least one length, such as 1. To give nothing, use --prefix_dropout 1."
        if len(set(self.prefix_frames or [])) < len(self.prefix_frames or []):
            yield (f"--prefix_frames names a length twice ({' '.join(map(str, self.prefix_frames or []))}); to have it "
                   "more often, use --prefix_weights.")
        yield from self._weight_problems()
        if self.min_frames is not None and not self.random_length:
            yield "--min_frames is the shortest length of --random_length, which is not asked for."

    def _weight_problems(self) -> Iterator[str]:
        weights = self.prefix_weights
        if weights is None:
            return
        if self.prefix_frames is None:
            yield "--prefix_weights needs --prefix_frames, whose lengths they belong to."
        elif len(weights) != len(self.prefix_frames):
            yield (f"--prefix_weights: {len(weights)} values for {len(self.prefix_frames)} --prefix_frames. Give one "
                   "for each.")
        if any(not 0 <= weight < float("inf") for weight in weights) or not any(weights):
            yield "--prefix_weights must be 0 or more, and one of them above 0."


@dataclass(frozen=True)
class Showing:
    """The settings of a run, every default decided. As it stands: the first frame given where one is, no dropout."""

    prefix_frames: tuple[int, ...] = (1,)
    """Lengths in video frames that may be drawn."""
    prefix_weights: tuple[float, ...] = (1.0,)
    """How often each is; all above 0."""
    prefix_dropout: float = 0.0
    prefix_corruption: float = 0.0
    audio_dropout: float = 0.0
    text_dropout: float = 0.0
    audio_text_dropout: float = 0.0
    reference_dropout: float = 0.0
    max_tokens: int | None = None
    min_frames: int | None = None
    """Shortest random length; None: clips are shown whole."""

    @property
    def needs_null_text(self) -> bool:
        """Whether a caption may be dropped."""
        return self.text_dropout + self.audio_text_dropout > 0

    @property
    def needs_null_sound(self) -> bool:
        """Whether a sound may be dropped."""
        return self.audio_dropout + self.audio_text_dropout > 0

    def facts(self) -> dict[str, Any]:
        """For the metadata of the trained file."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def resolve(section: ShowingSection, kinds: Mapping[str, "type[Condition]"]) -> Showing:
    """What `section` comes to where the conditions `kinds` (by name) are trained.

    Raises ConfigError with every setting that these conditions have no use for, and for shares above 1 together.
    """
    hears, starts = _hears(kinds), any(kind.starts_from_picture for kind in kinds.values())
    has_use = {"prefix_dropout": starts,
               "reference_dropout": any(REFERENCE in kind.trained_without for kind in kinds.values())}
    shares = {name: own if (own := getattr(section, name)) is not None
              else usual if hears and has_use.get(name, True) else 0.0 for name, usual in SHARES.items()}
    problems = list(_contradictions(section, kinds))
    if (total := sum(shares[name] for name in EXCLUSIVE)) > 1 + 1e-9:
        together = ", ".join(f"--{name} {shares[name]:g}" for name in EXCLUSIVE)
        problems.append(f"{together} are shares of the samples that exclude each other; together they are {total:g}, "
                        "and can be 1 at most. Lower one of them.")
    frames = section.prefix_frames or (PREFIX_FRAMES if hears and starts else (1,))
    weights = section.prefix_weights or [1.0] * len(frames)
    drawn = [(length, weight) for length, weight in zip(frames, weights, strict=True) if weight > 0]
    if section.prefix_corruption and starts and all(length == 1 for length, _ in drawn):
        problems.append("--prefix_corruption spoils given frames beyond the first, and one frame alone is given. Give "
                        "longer lengths too, such as --prefix_frames 1 5 9 13, or leave it out.")
    raise_all(problems, ConfigError, "what a clip is shown with")
    return Showing(prefix_frames=tuple(length for length, _ in drawn), prefix_weights=tuple(one for _, one in drawn),
                   prefix_corruption=section.prefix_corruption, **shares, max_tokens=section.max_tokens,
                   min_frames=(section.min_frames or MIN_FRAMES) if section.random_length else None)


def _hears(kinds: Mapping[str, "type[Condition]"]) -> bool:
    return any(SOUND in kind.features for kind in kinds.values())


def _contradictions(section: ShowingSection, kinds: Mapping[str, "type[Condition]"]) -> Iterator[str]:
    trained = f"this run trains {' and '.join(kinds)}" if kinds else "this run trains no condition"
    if not any(kind.starts_from_picture for kind in kinds.values()):
        for name in ("prefix_frames", "prefix_dropout", "prefix_corruption"):
            if getattr(section, name):
                yield (f"--{name} needs a condition that starts from a picture (omniavatar_add, reference_channels); "
                       f"{trained}. An image-to-video model has its picture through channels of its own.")
    for name in ("audio_dropout", "audio_text_dropout"):
        if getattr(section, name) and not _hears(kinds):
            yield f"--{name} needs a condition that hears (--network_args conditions=omniavatar_add); {trained}."
        deaf = [key for key, kind in kinds.items() if SOUND in kind.features and SOUND not in kind.droppable]
        if getattr(section, name) and deaf:
            yield f"--{name}: the condition {deaf[0]} has no form for absent sound."
    if section.reference_dropout and not any(REFERENCE in kind.trained_without for kind in kinds.values()):
        reader = next((key for key, kind in kinds.items() if REFERENCE in kind.features), None)
        why = f"{reader} never lacks its reference, by design" if reader else trained
        yield f"--reference_dropout needs a condition that can do without its reference (reference_channels); {why}."
