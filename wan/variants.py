"""What a Wan DiT can be (`Variant`, read from its weights) and what the user asks of it (`Task`, musubi-tuner names).

Importable without torch: the command lines read `TASKS` for their help.
"""

from dataclasses import dataclass
from os import PathLike
from typing import Literal

from common.errors import ConfigError, WeightsError, nearest

Family = Literal["t2v", "i2v", "flf2v", "fun_control", "wan22_i2v", "wan22_ti2v"]

DEFAULT_NEGATIVE_PROMPT = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，JPEG压缩残留，丑陋的，残缺的，"
    "多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，形态畸形的肢体，手指融合，静止不动的画面，杂乱的背景，三条腿，背景人很多，倒着走")
"""Wan's own negative prompt (`shared_config.sample_neg_prompt`); a task may put a few words in front."""

OMNIAVATAR_NEGATIVE_PROMPT = (
    "Vivid color tones, background/camera moving quickly, screen switching, subtitles and special effects, mutation, "
    "overexposed, static, blurred details, subtitles, style, work, painting, image, still, overall grayish, worst "
    "quality, low quality, JPEG compression residue, ugly, incomplete, extra fingers, poorly drawn hands, poorly drawn "
    "face, deformed, disfigured, malformed limbs, fingers merging, motionless image, chaotic background, three legs, "
    "crowded background with many people, walking backward")
"""Negative prompt of OmniAvatar's `configs/inference.yaml`."""


@dataclass(frozen=True)
class Variant:
    """Widths and branches of one DiT, found from the keys and shapes of its weights and typed nowhere else."""

    dim: int
    ffn_dim: int
    layers: int
    heads: int
    in_channels: int
    """Channels of the patch embedding: those of the latents and those joined to them."""
    out_channels: int
    text_dim: int
    freq_dim: int = 256
    has_image_branch: bool = False
    """Cross-attention has keys and values for CLIP tokens (k_img, v_img, img_emb)."""
    image_dim: int | None = None
    """Width of the CLIP features (1280 in released models); None without an image branch."""
    has_image_positions: bool = False
    """`img_emb.emb_pos` is there: a first+last frame model, which sees the tokens of two pictures."""
    text_length: int = 512
    patch: tuple[int, int, int] = (1, 2, 2)
    eps: float = 1e-6
    vae_stride: tuple[int, int, int] = (4, 8, 8)

    @property
    def head_dim(self) -> int:
        """Width of one attention head (128 in released models)."""
        return self.dim // self.heads

    @property
    def latent_channels(self) -> int:
        """Channels of the latents that the model denoises."""
        return self.out_channels

    @property
    def extra_channels(self) -> int:
        """Channels that the patch embedding takes beside the latents: 0, 20 (I2V), 32 (Fun-Control)."""
        return self.in_channels - self.out_channels

    @property
    def spatial_multiple(self) -> int:
        """Width and height of a video must be multiples of this many pixels (VAE stride times patch)."""
        return self.vae_stride[2] * self.patch[2]

    @property
    def image_tokens(self) -> int:
        """CLIP tokens that the image branch expects: 257 a picture, two pictures for first+last frame; 0 without."""
        return 0 if not self.has_image_branch else 514 if self.has_image_positions else 257

    @property
    def family(self) -> Family:
        """Kind of model by its channels and branches. WeightsError when it is none that is known."""
        kind = (self.extra_channels, self.has_image_branch, self.has_image_positions)
        families: dict[tuple[int, bool, bool], Family] = {
            (0, False, False): "t2v" if self.out_channels == 16 else "wan22_ti2v",
            (20, True, False): "i2v",
            (20, True, True): "flf2v",
            (32, True, False): "fun_control",
            (20, False, False): "wan22_i2v",
        }
        if kind not in families:
            branch = "with" if self.has_image_branch else "without"
            raise WeightsError(f"a DiT of {self.in_channels} input and {self.out_channels} output channels {branch} an "
                               "image branch is none that is known. Known: text-to-video 16, image-to-video and "
                               "first+last frame 36, Fun-Control 48 input channels.")
        return families[kind]


@dataclass(frozen=True)
class Task:
    """One `--task`: the model that it needs and the defaults of generation. Source: musubi-tuner `wan/configs`."""

    name: str
    family: Family
    dim: int
    layers: int
    in_channels: int
    steps: int = 50
    shift: float = 5.0
    guidance: float = 5.0
    fps: int = 16
    frames: int = 81
    negative_prefix: str = ""
    """Words in front of the default negative prompt."""
    uses_clip: bool = False
    """The first picture's CLIP features are read (the last one's too for first+last frame)."""
    shift_480p: float | None = None
    """Shift at 832x480 and 480x832, where it differs."""

    @property
    def negative_prompt(self) -> str:
        """Default negative prompt of the task."""
        return self.negative_prefix + DEFAULT_NEGATIVE_PROMPT

    def shift_for(self, width: int, height: int) -> float:
        """Default flow shift at a picture size in pixels."""
        is_480p = {width, height} == {480, 832}
        return self.shift_480p if is_480p and self.shift_480p is not None else self.shift


TASKS: dict[str, Task] = {task.name: task for task in (
    Task("t2v-1.3B", "t2v", dim=1536, layers=30, in_channels=16),
    Task("t2v-14B", "t2v", dim=5120, layers=40, in_channels=16),
    Task("t2i-14B", "t2v", dim=5120, layers=40, in_channels=16, frames=1),
    Task("i2v-14B", "i2v", dim=5120, layers=40, in_channels=36, steps=40, shift_480p=3.0, uses_clip=True,
         negative_prefix="镜头晃动，"),
    Task("flf2v-14B", "flf2v", dim=5120, layers=40, in_channels=36, steps=40, uses_clip=True,
         negative_prefix="镜头切换，"),
    Task("t2v-1.3B-FC", "fun_control", dim=1536, layers=30, in_channels=48),
    Task("t2v-14B-FC", "fun_control", dim=5120, layers=40, in_channels=48),
    Task("i2v-14B-FC", "fun_control", dim=5120, layers=40, in_channels=48, steps=40, shift_480p=3.0, uses_clip=True,
         negative_prefix="镜头晃动，"),
)}
"""Every task by musubi-tuner's name."""

LATER_TASKS = ("t2v-A14B", "i2v-A14B", "ti2v-5B", "s2v-14B", "animate-14B", "vace-1.3B", "vace-14B")
"""Names that users may try and that no version supports yet."""

SMALLEST_RELEASED_DIM = 1536


def find_task(name: str) -> Task:
    """Task by name; ConfigError names the nearest one, or says that it comes later."""
    if name in TASKS:
        return TASKS[name]
    if name in LATER_TASKS:
        raise ConfigError(f"--task {name}: Wan 2.2 and VACE models come later. Use one of {', '.join(TASKS)}.")
    raise ConfigError(f"--task {name} is unknown{nearest(name, TASKS)}. Use one of {', '.join(TASKS)}.")


def check_task(task: str, variant: Variant, path: str | PathLike[str]) -> None:
    """Refuse weights of another model than `task` needs; WeightsError names both.

    Tiny models (narrower than any released one) are compared by family only.
    """
    wanted = find_task(task)
    if variant.family != wanted.family:
        fitting = [name for name, other in TASKS.items() if other.family == variant.family]
        remedy = f"Use --task {' or '.join(fitting)}" if fitting else "No task fits these weights yet"
        raise WeightsError(f"{path} does not fit --task {task}: found {_describe(variant)}; needed: {wanted.family} "
                           f"model of {wanted.in_channels} input channels. {remedy}, or give the weights of {task}.")
    if variant.dim < SMALLEST_RELEASED_DIM:
        return
    if (variant.dim, variant.layers) != (wanted.dim, wanted.layers):
        raise WeightsError(f"{path} does not fit --task {task}: found {_describe(variant)}; needed: {wanted.dim} wide, "
                           f"{wanted.layers} layers. Give the weights of {task}, or the task of these weights.")


def _describe(variant: Variant) -> str:
    return (f"{variant.family} model of {variant.in_channels} input channels "
            f"({variant.dim} wide, {variant.layers} layers)")
