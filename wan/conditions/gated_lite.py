"""A light audio condition of our own, about 105 M parameters at 14B: few cross-attentions, timed and bounded by gates.

Assembled from parts that each have evidence elsewhere (audio.md 5.6): learned mixtures of the encoder's layers
(Wan-S2V, LongCat), windows and a latent frame's own keys (MultiTalk), scale, shift and gate from the timestep
(LongCat), OmniAvatar's addition for tight timing, and a region in which the sound acts. The whole is untested on real
weights.
"""

from dataclasses import dataclass
from typing import ClassVar

from einops import rearrange
from jaxtyping import Float
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.errors import ConditionError
from common.features import AUDIO_HALO, FeatureBatch
from wan.conditions.base import ConditionState
from wan.conditions.frames import LATER_WINDOW, add_to_video, by_frame, linear, windows
from wan.conditions.omniavatar_add import (
    FIRST_BLOCK,
    AudioAddition,
    Residuals,
    clip_vectors,
    joined_states,
    last_hearing_block,
    residuals_of,
)
from wan.conditions.sound import AudioCondition, AudioSettings, Voices
from wan.modules.attention import attend
from wan.modules.hooks import Forward
from wan.modules.norm import LayerNorm, RMSNorm
from wan.variants import Variant

POINTS = 12
"""Attentions in a deep model; half the depth in one of less than 24 blocks."""
RELEASED_POINTS = {
    40: (0, 4, 8, 12, 16, 20, 24, 27, 30, 33, 36, 39),
    30: (0, 3, 6, 9, 12, 14, 17, 19, 21, 24, 26, 28),
}
"""Blocks that attend in models of the released depths: denser in the second half (the first row is Wan-S2V's)."""
GROUPS = 3
"""Mixtures of the encoder's layers: for the shallow, middle and deep attentions."""
HEADS = 4
GATE_WIDTH = 64
TOKENS = LATER_WINDOW
"""Tokens of a latent frame: one for each row of its window."""


@dataclass(frozen=True)
class GatedLiteSettings(AudioSettings):
    """Sizes of the condition; widths of the attention are the model's."""

    audio_hidden: int = 1024
    """Width inside the tokeniser; never above that of a whole window."""
    added_hidden: int = 32
    """Width of the packed token of the additive path."""
    outside: float = 0.1
    """Share of the sound that acts outside of all given regions, 0…1, divided among the speakers."""


def points_of(layers: int) -> tuple[int, ...]:
    """Blocks that attend to the sound, in a model of `layers` blocks: at least one."""
    if layers in RELEASED_POINTS:
        return RELEASED_POINTS[layers]
    count = min(POINTS, max(1, layers // 2))
    return tuple(i * layers // count for i in range(count))


class Tokeniser(nn.Module):
    """Hidden states of a window → one token for each of its rows, once for each mixture of the states."""

    def __init__(self, states: int, width: int, hidden: int, groups: int) -> None:
        super().__init__()
        self.width = width
        self.mixtures = nn.Parameter(torch.zeros(groups, states))
        self.down = nn.Linear(TOKENS * width, min(hidden, TOKENS * width))
        self.up = nn.Linear(self.down.out_features, TOKENS * width)
        self.norm = LayerNorm(width)

    def forward(self, rows: Float[Tensor, "B M K D"]) -> Float[Tensor, "G B F C D"]:
        """Tokens by group; the first latent frame's window is filled up with zeros in front, for frames before -2."""
        mixed = torch.einsum("gk,bmkd->gbmd", self.mixtures.float().softmax(dim=1), rows)
        first, later = windows(mixed.flatten(0, 1))  # GB 1 W0 D, GB T W D
        first = F.pad(first, (0, 0, TOKENS - first.shape[2], 0))
        hidden = F.silu(linear(self.down, torch.cat((first, later), dim=1).flatten(2)))
        tokens = self.norm(linear(self.up, hidden).unflatten(-1, (TOKENS, self.width)))
        return tokens.unflatten(0, (len(mixed), -1))


class GatedAttention(nn.Module):
    """Narrow attention to a latent frame's tokens, with scale, shift and gate from the timestep; `o` starts at zero."""

    def __init__(self, variant: Variant, token_width: int) -> None:
        super().__init__()
        dim, head = variant.dim, variant.head_dim
        self.eps = variant.eps
        self.heads = min(HEADS, variant.heads)
        inner = self.heads * head
        self.q = nn.Linear(dim, inner, bias=False)
        self.k = nn.Linear(token_width, inner, bias=False)
        self.v = nn.Linear(token_width, inner, bias=False)
        self.o = nn.Linear(inner, dim, bias=False)
        self.norm_q, self.norm_k = RMSNorm(head, variant.eps), RMSNorm(head, variant.eps)
        self.time_down = nn.Linear(dim, min(GATE_WIDTH, dim))
        self.time_up = nn.Linear(self.time_down.out_features, 3 * dim)
        for parameter in (self.o.weight, self.time_up.weight, self.time_up.bias):
            nn.init.zeros_(parameter)

    def modulation(self, forward: Forward) -> tuple[Float[Tensor, "B 1|L D"], ...]:
        """Shift, scale and gate, float32; for every token one, or one for all."""
        hidden = F.silu(linear(self.time_down, F.silu(forward.time_embedding.float())))
        return linear(self.time_up, hidden).chunk(3, dim=-1)

    def queries(self, tokens: Float[Tensor, "B L D"], forward: Forward, shift: Tensor, scale: Tensor
                ) -> Float[Tensor, "BF P N K"]:
        """Queries of the video tokens by head, normed."""
        video = tokens[:, forward.video].float()
        video = F.layer_norm(video, video.shape[-1:], eps=self.eps) * (1 + scale) + shift
        queries = linear(self.q, by_frame(video.to(tokens), forward))
        return self.norm_q(queries.unflatten(-1, (self.heads, -1)))

    def heard(self, queries: Float[Tensor, "BF P N K"], sound: Float[Tensor, "BF C W"]) -> Float[Tensor, "BF P A"]:
        """Attention to the tokens of one speaker, before `o`."""
        sound = sound.to(queries)
        keys = self.norm_k(linear(self.k, sound).unflatten(-1, (self.heads, -1)))
        values = linear(self.v, sound).unflatten(-1, (self.heads, -1))
        return attend(queries, keys, values).flatten(2)


class GatedLiteState(ConditionState):
    """Tokens and additions of every speaker's sound for one forward."""

    def __init__(self, condition: "GatedLite", sound: tuple[Float[Tensor, "G B F C W"], ...], added: Residuals,
                 gates: Float[Tensor, "B S F P"] | None) -> None:
        self.condition = condition
        self.sound = sound
        self.added = added
        self.gates = gates

    def before_block(self, i: int, tokens: Float[Tensor, "B L D"], forward: Forward) -> Float[Tensor, "B L D"]:
        """The additive path, in OmniAvatar's blocks."""
        return self.added.add(i, tokens, forward)

    def after_cross_attention(self, i: int, tokens: Float[Tensor, "B L D"], forward: Forward
                              ) -> Float[Tensor, "B L D"]:
        """x + (1 + gate(t)) · o(attention), each speaker's attention times its region's gate."""
        condition = self.condition
        gain = condition.gains.get(i, 1.0)
        if i not in condition.points or gain == 0:
            return tokens
        number = condition.points.index(i)
        attention = condition.attentions[number]
        assert isinstance(attention, GatedAttention)
        shift, scale, gate = attention.modulation(forward)
        queries = attention.queries(tokens, forward, shift, scale)
        total = None
        for s, groups in enumerate(self.sound):
            group = groups[condition.group_of(number)]
            heard = attention.heard(queries, rearrange(group, "b f c w -> (b f) c w"))
            if self.gates is not None:
                heard = heard * rearrange(self.gates[:, s], "b f p -> (b f) p 1").to(heard)
            total = heard if total is None else total + heard
        strength = ((1 + gate) * gain).to(tokens)  # B 1 D, or B L D of the video tokens
        added = linear(attention.o, total).unflatten(0, (len(tokens), -1)).flatten(1, 2) * strength
        return add_to_video(tokens, rearrange(added, "b (f p) d -> (b f) p d", f=forward.grid[0]), forward)


class GatedLite(AudioCondition):
    """Up to 12 narrow attentions to 8 tokens a latent frame, and OmniAvatar's addition, both gated by region.

    Absent sound is zero features or encoded silence. Fresh, it leaves the base bit-equal: `o` and the addition's norm
    start at zero. Without regions, or where a region is 1, all of the sound acts; outside of all regions `outside` of
    it does, and inside another speaker's region none.
    """

    name: ClassVar[str] = "gated_lite"
    features: ClassVar[tuple[str, ...]] = ("audio",)
    hears: ClassVar[tuple[int, int]] = (AUDIO_HALO, AUDIO_HALO)
    Settings: ClassVar[type] = GatedLiteSettings
    settings: GatedLiteSettings

    def __init__(self, settings: GatedLiteSettings, variant: Variant) -> None:
        if not 0 <= settings.outside <= 1:
            raise ConditionError(f"condition '{self.name}': outside = {settings.outside}; it is a share, 0 to 1.")
        if settings.audio_states < 1:
            raise ConditionError(f"condition '{self.name}': audio_states = {settings.audio_states}; it mixes the "
                                 "encoder's hidden states and must know how many there are.")
        self.points = points_of(variant.layers)
        added = range(FIRST_BLOCK, last_hearing_block(variant.layers) + 1) or range(1)
        super().__init__(settings, variant, sorted({*self.points, *added}))
        self.first_added = added[0]
        width = settings.audio_width
        self.tokeniser = Tokeniser(settings.audio_states, width, settings.audio_hidden, min(GROUPS, len(self.points)))
        self.attentions = nn.ModuleList(GatedAttention(variant, width) for _ in self.points)
        self.addition = AudioAddition(self.frame_width + width, settings.added_hidden, variant.dim, len(added))

    def group_of(self, number: int) -> int:
        """Mixture that attention `number` reads."""
        return number * len(self.tokeniser.mixtures) // len(self.points)

    def prepare(self, batch: FeatureBatch, grid: tuple[int, int, int]) -> GatedLiteState:
        """State from the feature `audio`; ConditionError where it is missing or of other frames or widths."""
        voices = self.voices(batch, grid)
        return GatedLiteState(self, tuple(self.tokeniser(rows) for rows in voices.rows), self._added(voices),
                              self._gates(voices))

    def _gates(self, voices: Voices) -> Float[Tensor, "B S F P"] | None:
        """A speaker's region, and where nobody's is, `outside` shared by all."""
        regions = voices.regions
        if regions is None:
            return None
        return regions + self.settings.outside / regions.shape[1] * (1 - regions.sum(1, keepdim=True))

    def _added(self, voices: Voices) -> Residuals:
        """The additive path of every speaker, and of silence with regions: what no gate lets in is silence."""
        first, *rest = (self._residuals(rows) for rows in voices.rows)
        gates = self._gates(voices)
        if gates is None:
            return Residuals(self.first_added, first, gains=self.gains)
        shares = torch.cat((gates, 1 - gates.sum(1, keepdim=True)), dim=1)
        return Residuals(self.first_added, first, (*rest, self._residuals(voices.silence)), shares, self.gains)

    def _residuals(self, rows: Tensor) -> Tensor:
        return residuals_of(self.addition, clip_vectors(joined_states(rows)))
