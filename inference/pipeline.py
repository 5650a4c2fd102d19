"""Generation from request to file: plan, encode, denoise, decode, write; models are loaded once for many requests."""

from collections.abc import Mapping, Sequence
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
from inference.adapters import Adapters
from inference.caches import check_step_cache, finish_cache, make_cache
from inference.debug import tell_inputs, told
from inference.decoding import Decoding, decode_with
from inference.denoise import Watch, denoise
from inference.forward import ClipVelocity
from inference.inputs import ORDER, Prepared, assemble, hear_sounds, make_encoder, media_for, texts_of
from inference.long import check_outputs, frame_stats, identity_of, make_long
from inference.model_files import ModelFiles, inspect_models, with_official_folder
from inference.models import Models
from inference.noise import fresh_noise, noise_for
from inference.outputs import write_result
from inference.plan import Plan, make_plan
from inference.provenance import note_other_encoder
from inference.record import make_record
from inference.request import GenerationRequest
from inference.result import GenerationResult
from inference.unfinished import check_unfinished, with_kept_seed
from wan.encoders.base import Encoder
from wan.encoders.features.audio import AudioFeatureEncoder
from wan.encoders.registry import FEATURES

log = get_logger(__name__)




class Pipeline:
    """Models that stay loaded between generations. Make one with `load_pipeline`."""

    def __init__(self, files: ModelFiles, models: Models) -> None:
        self.files = files
        self.models = models
        self._compared: set[str] = set()

    def plan(self, request: GenerationRequest) -> Plan:
        """Check a request and fill in its defaults; no model is loaded."""
        plan = make_plan(with_kept_seed(with_official_folder(request)), self.files)
        check_outputs(plan)
        check_step_cache(plan)
        if plan.is_long:
            check_unfinished(plan.request, identity_of(self._with_dtype(plan), self._record(plan, datetime.now())))
        return plan

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
        sounds: dict[int, Sequence[Mapping[str, Tensor]]] = {}
        errors: dict[int, UserError] = {}
        for name in ORDER:
            for number, plan in enumerate(plans):
                if name not in plan.features or number in errors:
                    continue
                try:
                    encoder = self._encoder(name, plan)
                    if isinstance(encoder, AudioFeatureEncoder):
                        sounds[number] = hear_sounds(encoder, plan)
                    else:
                        features[number][name] = encoder.encode(media_for(name, plan))
                except MediaError as error:
                    errors[number] = error
            kind = FEATURES[name].model
            if free and kind is not None and kind != "vae":
                self.models.free(kind)
        return [errors.get(number) or assemble(plan, features[number], sounds.get(number, ()), texts[plan.prompt],
                                               texts.get(plan.negative_prompt, texts[plan.prompt]))
                for number, plan in enumerate(plans)]

    def _encoder(self, name: str, plan: Plan) -> Encoder:
        kind = FEATURES[name].model
        assert kind is not None, f"a generation makes '{name}' with a model"
        encoder = make_encoder(name, self.models.get(kind), self.models.path(kind), plan)
        if name not in self._compared:
            self._compared.add(name)
            note_other_encoder(self.files.adapters, encoder)
        return encoder

    def _texts(self, plans: Sequence[Plan]) -> dict[str, Tensor]:
        encoder = self._encoder("text", plans[0])
        return {text: encoder.encode(Media(n_frames=1, fps=1.0, caption=text))["hidden"] for text in texts_of(plans)}

    @torch.no_grad()
    def sample(self, prepared: Prepared, *, noise: Float[Tensor, "1 16 T h w"] | None = None,
               watch: Watch | None = None, chunk: int = 0, description: str = "denoising"
               ) -> Float[Tensor, "16 T h w"]:
        """Latents of a prepared clip, or of its chunk of that number, from `noise` (default: the clip's).

        float32 on the CPU.
        """
        plan = prepared.plan
        conditions = self.models.get("conditions")
        guidance = plan.guide(frozenset(name for one in conditions.values() for name in one.droppable))
        noise = (noise_for(plan) if noise is None else noise).to(self.models.device)
        if plan.request.debug:
            tell_inputs(prepared, noise)
            watch = told(watch)
        cache = make_cache(plan)
        velocity = ClipVelocity(self.models.get("dit"), conditions, prepared, guidance, noise, cache)
        try:
            with self.models.parked():
                latents = denoise(velocity, noise, plan.sampling, guidance=guidance, write_given=velocity.write_given,
                                  watch=watch, fresh=fresh_noise(plan.seed, chunk, noise.shape),
                                  description=description)
        except torch.OutOfMemoryError as error:
            width, height = plan.size
            raise UserError(f"{width}x{height} with {plan.length.frames} frames does not fit into the memory of "
                            f"{self.models.device}. Use --fp8_scaled, --blocks_to_swap, a smaller --video_size, or "
                            "fewer frames (--video_length; --max_tokens with sound).") from error
        if cache is not None:
            finish_cache(plan, cache)
        return latents[0].cpu()

    def decode(self, latents: Float[Tensor, "16 T h w"]) -> Float[Tensor, "3 F H W"]:
        """Pixels in -1…1, float32 on the CPU."""
        return decode_with(self.models.get("vae"), latents)

    def generate(self, request: GenerationRequest, *, watch: Watch | None = None) -> GenerationResult:
        """One video; written where `request.save_path` says. The models stay loaded."""
        return self.make(self.prepare(self.plan(request)), watch=watch)

    def make(self, prepared: Prepared, *, watch: Watch | None = None, free: bool = False) -> GenerationResult:
        """The video of a prepared plan; with `free` the DiT is let go as soon as it has done its part."""
        if prepared.plan.is_long:
            prepared = replace(prepared, plan=self._with_dtype(prepared.plan))
            return make_long(self, prepared, self._record(prepared.plan, datetime.now()), watch=watch)
        latents = self.sample(prepared, watch=watch)
        if free:
            self.models.free("dit", "conditions")
        return self.finish(prepared, latents)

    def finish(self, prepared: Prepared, latents: Float[Tensor, "16 T h w"]) -> GenerationResult:
        """Decode latents, and write the result if its request names a place."""
        plan, now = self._with_dtype(prepared.plan), datetime.now()
        decoding = Decoding(self.models.get("vae"), latents, plan.shown_frames)
        result = GenerationResult(video=decoding.video, latents=latents, sound=plan.written_sound, fps=plan.fps,
                                  settings=plan.request, record=self._record(plan, now))
        if (stats := frame_stats(plan)) is not None:
            decoding.finish()
            stats.measure(result.frames)
            stats.write()
        if plan.request.save_path is not None:
            result = replace(result, path=write_result(result, now, decoding))
        decoding.finish()
        return result

    def _with_dtype(self, plan: Plan) -> Plan:
        """The default precision hangs on the device; the record names it, so that settings mean the same anywhere."""
        return replace(plan, request=plan.request.model_copy(update={"dit_dtype": dtype_name(self.models.dit_dtype)}))

    def _record(self, plan: Plan, now: datetime) -> dict[str, Any]:
        return make_record(self._with_dtype(plan), vars(self.files), now, self.models.device)


def load_pipeline(request: GenerationRequest, adapters: Adapters | None = None, **loaded: Any) -> Pipeline:
    """A pipeline for the models that `request` names; they are loaded when first needed.

    `loaded` gives models that are in memory already (`dit`, `vae`, `text_encoder`, `image_encoder`, `audio_encoder`,
    `conditions`), for example a trainer's; `adapters` tell what is trained on them (`adapters_in_training`) and stand
    for `--lora_weight`.
    """
    files = inspect_models(request, adapters)
    return Pipeline(files, Models(files, request, loaded))
