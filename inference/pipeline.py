"""Generation from request to file: plan, encode, denoise, decode, write; models are loaded once for many requests."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from jaxtyping import Float
import torch
from torch import Tensor

from common.dtypes import dtype_name
from common.errors import MediaError, UserError
from common.logs import get_logger
from common.media.item import Media
from inference.denoise import Watch, denoise
from inference.forward import ClipVelocity
from inference.inputs import ORDER, Prepared, assemble, make_encoder, media_for, texts_of
from inference.model_files import ModelFiles, inspect_models, with_official_folder
from inference.models import Models
from inference.outputs import write_result
from inference.plan import Plan, make_plan
from inference.provenance import note_other_encoder
from inference.record import make_record
from inference.request import GenerationRequest
from inference.result import GenerationResult
from wan.encoders.base import Encoder
from wan.encoders.registry import FEATURES
from wan.modules.vae import Vae

log = get_logger(__name__)


def noise_for(plan: Plan) -> Float[Tensor, "1 16 T h w"]:
    """The starting noise: drawn on the CPU in float32, so that a seed means the same on every device.

    The stream is torch's own for the seed, as with musubi-tuner's `--cpu_noise` and in ComfyUI.
    """
    source = torch.Generator("cpu").manual_seed(plan.seed)
    return torch.randn((1, *plan.latent_shape), generator=source, dtype=torch.float32)


@torch.no_grad()
def decode_with(vae: Vae, latents: Float[Tensor, "16 T h w"]) -> Float[Tensor, "3 F H W"]:
    """Pixels in -1…1, float32 on the CPU; on the VAE's device lie only a few frames at a time."""
    return torch.cat([chunk[0].float().cpu() for chunk in vae.decode_chunks(latents[None])], dim=1)


class Pipeline:
    """Models that stay loaded between generations. Make one with `load_pipeline`."""

    def __init__(self, files: ModelFiles, models: Models) -> None:
        self.files = files
        self.models = models
        self._compared: set[str] = set()

    def plan(self, request: GenerationRequest) -> Plan:
        """Check a request and fill in its defaults; no model is loaded."""
        return make_plan(with_official_folder(request), self.files)

    def prepare(self, plan: Plan) -> Prepared:
        """Encode the text, pictures and sound of a plan."""
        [outcome] = self.prepare_each([plan])
        if isinstance(outcome, UserError):
            raise outcome
        return outcome

    @torch.no_grad()
    def prepare_each(self, plans: Sequence[Plan], *, free: bool = False) -> list[Prepared | UserError]:
        """Encode several plans, one model after the other; with `free` each model is let go when its work is done.

        A plan whose media turn out unusable gives its error and does not stop the others.
        """
        texts = self._texts(plans) if plans else {}
        if free:
            self.models.free("text_encoder")
        features: list[dict[str, Any]] = [{} for _ in plans]
        errors: dict[int, UserError] = {}
        for name in ORDER:
            for number, plan in enumerate(plans):
                if name not in plan.features or number in errors:
                    continue
                try:
                    features[number][name] = self._encoder(name, plan).encode(media_for(name, plan))
                except MediaError as error:
                    errors[number] = error
            if free and FEATURES[name].model != "vae":
                self.models.free(FEATURES[name].model)
        return [errors.get(number) or assemble(plan, features[number], texts[plan.prompt],
                                               texts.get(plan.negative_prompt, texts[plan.prompt]))
                for number, plan in enumerate(plans)]

    def _encoder(self, name: str, plan: Plan) -> Encoder:
        kind = FEATURES[name].model
        encoder = make_encoder(name, self.models.get(kind), self.models.path(kind), plan)
        if name not in self._compared:
            self._compared.add(name)
            note_other_encoder(self.files.adapters, encoder)
        return encoder

    def _texts(self, plans: Sequence[Plan]) -> dict[str, Tensor]:
        encoder = self._encoder("text", plans[0])
        return {text: encoder.encode(Media(n_frames=1, fps=1.0, caption=text))["hidden"] for text in texts_of(plans)}

    @torch.no_grad()
    def sample(self, prepared: Prepared, *, watch: Watch | None = None) -> Float[Tensor, "16 T h w"]:
        """Latents of a prepared clip, float32 on the CPU."""
        plan = prepared.plan
        conditions = self.models.get("conditions")
        guidance = plan.guide(frozenset(name for one in conditions.values() for name in one.droppable))
        noise = noise_for(plan).to(self.models.device)
        velocity = ClipVelocity(self.models.get("dit"), conditions, prepared, guidance, noise)
        try:
            latents = denoise(velocity, noise, plan.sampling, guidance=guidance, write_given=velocity.write_given,
                              watch=watch)
        except torch.OutOfMemoryError as error:
            width, height = plan.size
            raise UserError(f"{width}x{height} with {plan.length.frames} frames does not fit into the memory of "
                            f"{self.models.device}. Use --fp8_scaled, a smaller --video_size or a lower --video_length."
                            ) from error
        return latents[0].cpu()

    def decode(self, latents: Float[Tensor, "16 T h w"]) -> Float[Tensor, "3 F H W"]:
        """Pixels in -1…1, float32 on the CPU."""
        return decode_with(self.models.get("vae"), latents)

    def generate(self, request: GenerationRequest, *, watch: Watch | None = None) -> GenerationResult:
        """One clip; written where `request.save_path` says. The models stay loaded."""
        prepared = self.prepare(self.plan(request))
        return self.finish(prepared, self.sample(prepared, watch=watch))

    def finish(self, prepared: Prepared, latents: Float[Tensor, "16 T h w"]) -> GenerationResult:
        """Decode latents, and write the result if its request names a place."""
        plan, now = prepared.plan, datetime.now()
        video = self.decode(latents)[:, :plan.shown_frames]
        # The default precision hangs on the device; the record names it, so that the settings mean the same anywhere.
        plan = replace(plan, request=plan.request.model_copy(update={"dit_dtype": dtype_name(self.models.dit_dtype)}))
        record = make_record(plan, vars(self.files), now, self.models.device)
        result = GenerationResult(video=video, latents=latents, sound=plan.written_sound, fps=plan.fps,
                                  settings=plan.request, record=record)
        if plan.request.save_path is None:
            return result
        return replace(result, path=write_result(result, now))


def load_pipeline(request: GenerationRequest, **loaded: Any) -> Pipeline:
    """A pipeline for the models that `request` names; they are loaded when first needed.

    `loaded` gives models that are in memory already (`dit`, `vae`, `text_encoder`, `image_encoder`, `audio_encoder`,
    `conditions`), for example a trainer's.
    """
    files = inspect_models(request)
    return Pipeline(files, Models(files, request, loaded))
