"""The Wan DiT: embed, run the blocks, head.

It knows no condition, LoRA, fp8, swap or checkpointing: conditions act through hooks, the rest attaches from outside.
Matrix products run in the dtype of the weights; time embedding, modulation, norms, RoPE and head in float32.
"""

from collections.abc import Mapping, Sequence

from einops import rearrange
from jaxtyping import Float
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.errors import ConditionError
from wan.modules.attention import check_backend
from wan.modules.attention_names import AUTO, plain_name
from wan.modules.block import Attention, PassInputs, WanAttentionBlock
from wan.modules.constants import Constants
from wan.modules.embeddings import Float32Linear, ImageEmbedding, pad_text, timestep_sinusoid, unpatchify
from wan.modules.hooks import ExtraTokens, Forward, HookPoints, Hooks, checked, collect
from wan.modules.modulation import Modulation, Segment
from wan.modules.rope import grid_positions, rope_table
from wan.variants import Variant

Text = Sequence[Float[Tensor, "_ Dt"]] | Float[Tensor, "B _ Dt"]
Timestep = Float[Tensor, " B"] | Float[Tensor, "B L"]


class Head(nn.Module):
    """Last norm, shifted and scaled by the time embedding, and the projection to patches, in float32."""

    def __init__(self, variant: Variant) -> None:
        super().__init__()
        self.eps = variant.eps
        self.patch = variant.patch
        p, q, r = variant.patch
        self.head = Float32Linear(variant.dim, p * q * r * variant.out_channels)
        self.modulation = nn.Parameter(torch.randn(1, 2, variant.dim) / variant.dim**0.5)

    def forward(self, tokens: Float[Tensor, "B L D"], inputs: PassInputs) -> Float[Tensor, "B C F H W"]:
        """Velocity from the tokens after the last block; extra tokens are dropped here."""
        tokens = tokens[:, inputs.forward.video].float()
        shift, scale = (inputs.forward.time_embedding + row.float() for row in self.modulation.unbind(1))
        normed = F.layer_norm(tokens, tokens.shape[-1:], eps=self.eps)
        patches = self.head(normed * (1 + scale) + shift)
        return unpatchify(patches, inputs.forward.grid, self.patch).to(inputs.output_dtype)


class WanDiT(nn.Module):
    """Wan diffusion transformer of any `Variant`, under the official key names."""

    def __init__(self, variant: Variant) -> None:
        super().__init__()
        self.variant = variant
        dim = variant.dim
        self.patch_embedding = nn.Conv3d(variant.in_channels, dim, kernel_size=variant.patch, stride=variant.patch)
        self.text_embedding = nn.Sequential(nn.Linear(variant.text_dim, dim), nn.GELU(approximate="tanh"),
                                            nn.Linear(dim, dim))
        self.time_embedding = nn.Sequential(Float32Linear(variant.freq_dim, dim), nn.SiLU(), Float32Linear(dim, dim))
        self.time_projection = nn.Sequential(nn.SiLU(), Float32Linear(dim, 6 * dim))
        if variant.has_image_branch:
            assert variant.image_dim is not None
            positions = variant.image_tokens if variant.has_image_positions else None
            self.img_emb = ImageEmbedding(variant.image_dim, dim, positions=positions)
        self.blocks = nn.ModuleList(WanAttentionBlock(variant) for _ in range(variant.layers))
        self.head = Head(variant)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the tokens: that of the patch embedding, which no quantiser touches."""
        return self.patch_embedding.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where the patch embedding lives."""
        return self.patch_embedding.weight.device

    def set_attention(self, backend: str | None) -> None:
        """Use the named back end in every attention (None, auto: sdpa); ConfigError when it is not to be had."""
        check_backend(backend or AUTO)
        backend = None if backend in (None, AUTO) else plain_name(backend)
        for module in self.modules():
            if isinstance(module, Attention):
                module.backend = backend

    def forward(self, latents: Float[Tensor, "B C F H W"], timestep: Timestep, text: Text, *,
                channels: Float[Tensor, "B X F H W"] | None = None,
                clip_features: Float[Tensor, "B T Dc"] | None = None,
                conditions: Mapping[str, Hooks] | None = None,
                pass_name: str = "conditional", constants: Constants | None = None) -> Float[Tensor, "B C F H W"]:
        """Velocity (noise - data) of `latents`, in their dtype.

        `timestep` 0…1000, a sample or a video token; `text` a `T D` a sample, of at most 512 tokens; `channels` are
        joined to the latents (20 for image-to-video, 32 for Fun-Control); `clip_features` hold 257 tokens (514 for
        first+last frame; may be absent for Fun-Control, which then sees zeros); `conditions` are prepared states.
        `constants` spares the calls of later steps of one pass what text, picture and positions alone decide.
        Raises ConditionError where an input is missing, superfluous or of the wrong shape.
        """
        tokens, inputs = self.embed(latents, timestep, text, channels=channels, clip_features=clip_features,
                                    conditions=conditions, pass_name=pass_name, constants=constants)
        for i in range(len(self.blocks)):
            tokens = self.run_block(i, tokens, inputs)
        return self.head(tokens, inputs)

    def embed(self, latents: Float[Tensor, "B C F H W"], timestep: Timestep, text: Text, *,
              channels: Float[Tensor, "B X F H W"] | None = None,
              clip_features: Float[Tensor, "B T Dc"] | None = None,
              conditions: Mapping[str, Hooks] | None = None,
              pass_name: str = "conditional", constants: Constants | None = None
              ) -> tuple[Float[Tensor, "B M D"], PassInputs]:
        """First part of `forward`: all tokens (video, then extra ones) and what the blocks share."""
        grid = self._grid(latents)
        points = collect((conditions or {}).values())
        constants = constants or Constants()
        time_embedding, table = self._embed_time(timestep, grid)
        forward = Forward(grid=grid, video=slice(0, grid[0] * grid[1] * grid[2]), time_embedding=time_embedding,
                          modulation=table, pass_name=pass_name,
                          text=constants.once("text", lambda: self._embed_text(text)))
        image = constants.once("image", lambda: self._embed_image(clip_features, len(latents)))

        tokens = self._embed_patches(latents.to(self.dtype), channels, points, forward)  # B L D
        positions = grid_positions(grid, tokens.device)
        modulation: Modulation = (Segment(tokens.shape[1], table),)
        for state in points.extra_tokens:
            extra = state.extra_tokens(forward)
            if extra is not None:
                tokens = torch.cat((tokens, extra.tokens.to(tokens)), dim=1)
                positions = torch.cat((positions, extra.positions.to(positions)))
                modulation += (self._extra_segment(extra),)
        rope = constants.once("rope", lambda: rope_table(positions, self.variant.head_dim))
        inputs = PassInputs(text=forward.text, image=image, rope=rope, modulation=modulation,
                            forward=forward, points=points, output_dtype=latents.dtype)
        return tokens, inputs

    def run_block(self, i: int, tokens: Float[Tensor, "B M D"], inputs: PassInputs) -> Float[Tensor, "B M D"]:
        """Block `i` together with the hooks in and around it; checkpointing wraps this method."""
        for state in inputs.points.before_block:
            tokens = checked(state.before_block(i, tokens, inputs.forward), tokens, state, "before_block")
        tokens = self.blocks[i](i, tokens, inputs)
        for state in inputs.points.after_block:
            tokens = checked(state.after_block(i, tokens, inputs.forward), tokens, state, "after_block")
        return tokens

    def _grid(self, latents: Tensor) -> tuple[int, int, int]:
        sizes = [divmod(length, patch) for length, patch in zip(latents.shape[2:], self.variant.patch, strict=True)]
        if any(rest for _, rest in sizes):
            raise ConditionError(f"latents of {list(latents.shape)}: height and width must be even, because a token "
                                 f"covers 2x2. Use pictures whose sides are multiples of "
                                 f"{self.variant.spatial_multiple}.")
        return sizes[0][0], sizes[1][0], sizes[2][0]

    def _embed_time(self, timestep: Tensor, grid: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
        timestep = timestep[:, None] if timestep.ndim == 1 else timestep  # B 1 or B L
        length = grid[0] * grid[1] * grid[2]
        if timestep.shape[1] not in (1, length):
            raise ConditionError(f"{timestep.shape[1]} timesteps a sample; expected one, or one for each of the "
                                 f"{length} tokens.")
        embedding = self.time_embedding(timestep_sinusoid(timestep, self.variant.freq_dim))
        return embedding, self.time_projection(embedding).unflatten(-1, (6, -1))

    def _extra_segment(self, extra: ExtraTokens) -> Segment:
        count = extra.tokens.shape[1]
        timesteps = extra.timesteps
        if timesteps is None:
            timesteps = torch.zeros(count, device=extra.tokens.device)
        table = self.time_projection(self.time_embedding(timestep_sinusoid(timesteps, self.variant.freq_dim)))
        return Segment(count, table.unflatten(-1, (6, -1))[None])  # 1 M 6 D

    def _embed_text(self, text: Text) -> Tensor:
        padded = pad_text([one.to(self.device, self.dtype) for one in text], self.variant.text_length)
        return self.text_embedding(padded)

    def _embed_image(self, features: Tensor | None, batch: int) -> Tensor | None:
        variant = self.variant
        if not variant.has_image_branch:
            if features is not None:
                raise ConditionError(f"clip_features were given to a model ({variant.family}) that has no image "
                                     "branch. Leave them out, or use an image-to-video model.")
            return None
        if features is None:
            if variant.family != "fun_control":
                raise ConditionError(f"this {variant.family} model needs clip_features "
                                     f"(B {variant.image_tokens} {variant.image_dim}); none were given.")
            # Text-to-video Fun-Control sees CLIP features of zeros (VideoX-Fun `pipeline_wan_fun_control`).
            shape = (batch, variant.image_tokens, variant.image_dim or 0)
            features = torch.zeros(shape, device=self.device)
        if features.shape[1] != variant.image_tokens:
            raise ConditionError(f"clip_features have {features.shape[1]} tokens; this {variant.family} model takes "
                                 f"{variant.image_tokens} (257 a picture).")
        return self.img_emb(features.to(self.device, self.dtype))

    def _embed_patches(self, latents: Tensor, channels: Tensor | None, points: HookPoints, forward: Forward) -> Tensor:
        joined = [latents] if channels is None else [latents, channels.to(latents)]
        for state in points.input_channels:
            extra = state.input_channels(latents, forward)
            if extra is not None:
                joined.append(extra.to(latents))
        found = sum(part.shape[1] for part in joined)
        if found != self.variant.in_channels:
            raise ConditionError(f"this {self.variant.family} model takes {self.variant.latent_channels} latent and "
                                 f"{self.variant.extra_channels} extra channels; got {latents.shape[1]} and "
                                 f"{found - latents.shape[1]}.")
        patches = self.patch_embedding(torch.cat(joined, dim=1))  # B D F h w
        for state in points.added_patches:
            added = state.added_patches(latents, forward)
            if added is not None:
                patches = patches + checked(added, patches, state, "added_patches")
        # Laid out like every block's tokens: one graph serves, and what is copied out and back comes back alike.
        tokens = rearrange(patches, "b d f h w -> b (f h w) d").contiguous()
        for state in points.after_patch_embedding:
            changed = state.after_patch_embedding(tokens, forward)
            tokens = checked(changed, tokens, state, "after_patch_embedding")
        return tokens

