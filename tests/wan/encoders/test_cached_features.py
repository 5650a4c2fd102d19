"""The contract of every registered feature, on tiny models, and what each encoder makes of its media."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from common.errors import MediaError, WeightsError
from common.fingerprint import text_hash
from common.media.item import Media
from common.media.picture import to_minus_one_one
from wan.conditions.image_latent import image_channels
from wan.encoders.audio import load_audio_encoder
from wan.encoders.base import ModelEncoder
from wan.encoders.features.text import NULL_TEXTS
from wan.encoders.image import load_image_encoder
from wan.encoders.registry import FEATURES
from wan.encoders.specs import SPECS, NullText
from wan.encoders.text import TextEncoder, load_text_encoder
from wan.encoders.vae import load_vae

FRAMES, HEIGHT, WIDTH = 5, 16, 24
SIZES = {"F": 2, "H": 2, "W": 3, "N": FRAMES}
Make = Callable[..., ModelEncoder]


@pytest.fixture(scope="module")
def make(light_vae: Path, light_t5: Path, light_clip: Path, wav2vec2: Path, spiece: bytes,
         tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Function that makes the encoder of a feature with options."""
    tokenizer = tmp_path_factory.mktemp("tokenizer") / "spiece.model"
    tokenizer.write_bytes(spiece)
    models = {
        "vae": (load_vae(light_vae), light_vae),
        "text_encoder": (load_text_encoder(light_t5, tokenizer=tokenizer), light_t5),
        "image_encoder": (load_image_encoder(light_clip, heads=4), light_clip),
        "audio_encoder": (load_audio_encoder(wav2vec2), wav2vec2),
    }

    def of(name: str, **options: object) -> ModelEncoder:
        kind = FEATURES[name].model
        if kind is None:
            return FEATURES[name](**options)
        model, path = models[kind]
        return FEATURES[name](model, path, **options)

    return of


@pytest.fixture(scope="module")
def media() -> Media:
    """One clip with everything."""
    random = np.random.default_rng(0)

    def pictures(*shape: int) -> np.ndarray:
        return random.integers(0, 256, (*shape, HEIGHT, WIDTH, 3), dtype=np.uint8)

    return Media(n_frames=FRAMES, fps=25, frames=pictures(FRAMES), control=pictures(FRAMES), reference=pictures(),
                 caption="a woman speaks", sound=random.standard_normal(3100).astype(np.float32),
                 region_masks={"face": pictures(FRAMES), "lip": pictures(1)},
                 speaker_regions=(pictures(FRAMES), pictures(1)))


def test_registry_and_specs_name_the_same_features() -> None:
    assert list(FEATURES) == list(SPECS)
    assert all(spec.name == name for name, spec in SPECS.items())


@pytest.mark.parametrize("name", list(FEATURES))
def test_every_encoder_keeps_its_contract(name: str, make: Make, media: Media) -> None:
    encoder = make(name)
    tensors = encoder.encode(media)
    assert encoder.spec == SPECS[name]
    encoder.spec.check(tensors, "clip", SIZES)
    assert all(tensor.device.type == "cpu" and not tensor.requires_grad for tensor in tensors.values())
    again = encoder.encode(media)
    assert all(torch.equal(tensor, again[key]) for key, tensor in tensors.items())
    assert encoder.options()["dtype"] == ("float16" if name == "region_masks" else "float32")
    assert all(isinstance(part, str) for item in encoder.options().items() for part in item)
    assert bool(encoder.weights_paths()) == (encoder.model is not None)
    assert all(path.exists() for path in encoder.weights_paths())


@pytest.mark.parametrize("name", list(FEATURES))
def test_an_item_without_the_medium_is_told_which_one(name: str, make: Make) -> None:
    encoder = make(name)
    assert encoder.needs
    with pytest.raises(MediaError, match=f"feature '{name}' needs"):
        encoder.encode(Media(n_frames=FRAMES, fps=25))


def test_latents_are_those_of_the_vae(make: Make, media: Media, light_vae: Path) -> None:
    vae = load_vae(light_vae)
    for name, pictures in (("latents", media.frames), ("control_latents", media.control),
                           ("reference_latents", media.reference)):
        assert torch.equal(make(name).encode(media)["latents"], vae.encode(to_minus_one_one(pictures)[None])[0]), name


def test_image_latents_are_mask_and_latents_of_grey_after_the_picture(make: Make, media: Media,
                                                                      light_vae: Path) -> None:
    video = torch.zeros(1, 3, FRAMES, HEIGHT, WIDTH)
    video[:, :, :1] = to_minus_one_one(media.frames[:1])
    first = make("image_latents").encode(media)["latents"]
    assert torch.equal(first, image_channels(load_vae(light_vae).encode(video)[0]))
    video[:, :, -1:] = to_minus_one_one(media.frames[-1:])
    both = make("image_latents", given="first_last").encode(media)["latents"]
    assert torch.equal(both, image_channels(load_vae(light_vae).encode(video)[0], last_given=True))


def test_a_generation_needs_only_the_given_pictures(make: Make, media: Media) -> None:
    """Of the frames only the given ones are looked at; the length comes from n_frames."""
    for given, pictures in (("first", media.frames[:1]), ("first_last", media.frames[[0, -1]])):
        few = Media(n_frames=FRAMES, fps=25, frames=pictures)
        for name in ("image_latents", "clip"):
            encoder = make(name, given=given)
            expected, found = encoder.encode(media), encoder.encode(few)
            assert all(torch.equal(found[key], tensor) for key, tensor in expected.items()), (name, given)


def test_clip_of_first_and_last_has_both(make: Make, media: Media) -> None:
    encoder = make("clip", given="first_last")
    tensors = encoder.encode(media)
    encoder.spec.check(tensors, "clip", SIZES)
    assert torch.equal(tensors["first"], make("clip").encode(media)["first"])
    assert not torch.equal(tensors["first"], tensors["last"])
    with pytest.raises(MediaError, match="two pictures"):
        encoder.encode(Media(n_frames=5, fps=25, frames=media.frames[:1]))


def test_audio_scope_decides_key_and_span(make: Make, media: Media) -> None:
    whole, clip = make("audio", scope="file"), make("audio", scope="clip")
    assert whole.spec.keyed_by == ("source",) and whole.spec.tensors[0].span_axis == 0
    assert clip.spec.keyed_by == ("source", "span") and clip.spec.tensors[0].span_axis is None
    assert whole.options() != clip.options()
    assert torch.equal(whole.encode(media)["states"], clip.encode(media)["states"])


def test_options_tell_apart_what_changes_the_numbers(make: Make) -> None:
    assert make("latents").options() != make("latents", picture_mode="omniavatar").options()
    assert make("image_latents").options() != make("image_latents", given="first_last").options()
    assert make("clip").options() != make("clip", given="first_last").options()
    assert make("audio").options() != make("audio", stored_dtype=torch.bfloat16).options()
    assert {"tokenizer", "max_tokens", "cleaning"} <= set(make("text").options())
    assert {"scope", "padding", "normalisation", "sample_rate"} <= set(make("audio").options())


@pytest.mark.parametrize("kind", ["empty", "negative"])
def test_the_text_of_a_dropped_caption_is_encoded_once_and_told(make: Make, media: Media, kind: NullText,
                                                               monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, plain = make("text", null=kind), make("text")
    asked: list[str] = []
    encode = TextEncoder.encode

    def listening(self: TextEncoder, prompts: list[str], **more: int) -> list[torch.Tensor]:
        asked.extend(prompts)
        return encode(self, prompts, **more)

    monkeypatch.setattr(TextEncoder, "encode", listening)
    first, second = (encoder.encode(replace(media, caption=caption)) for caption in ("a woman speaks", "a man sings"))
    assert asked == ["a woman speaks", NULL_TEXTS[kind], "a man sings"]
    assert torch.equal(first["null"], second["null"]) and not torch.equal(first["hidden"], second["hidden"])
    assert torch.equal(first["null"], plain.encode(replace(media, caption=NULL_TEXTS[kind]))["hidden"])
    assert plain.encode(media).keys() == {"hidden"}, "a generation pays nothing for it"
    encoder.spec.check(first, "clip", {})
    assert encoder.options().keys() - plain.options().keys() == {"null"}
    assert encoder.options()["null"] == f"{kind} {text_hash(NULL_TEXTS[kind])}"


def test_states_can_be_stored_in_half_the_room(make: Make, media: Media) -> None:
    half = make("audio", stored_dtype=torch.bfloat16).encode(media)["states"]
    assert torch.equal(half, make("audio").encode(media)["states"].to(torch.bfloat16))


def test_of_a_folder_only_the_models_own_files_count(light_vae: Path, light_t5: Path, wav2vec2: Path,
                                                     tmp_path: Path) -> None:
    """The official folder holds every model of a set; a new DiT there must not make the latents stale."""
    for file in (light_vae, light_t5):
        shutil.copy(file, tmp_path / file.name)
    assert FEATURES["latents"](load_vae(tmp_path), tmp_path).weights_paths() == (tmp_path / light_vae.name,)
    audio = FEATURES["audio"](load_audio_encoder(wav2vec2), wav2vec2)
    assert audio.weights_paths() == (wav2vec2 / "model.safetensors", wav2vec2 / "config.json")


def test_text_without_a_tokenizer_fails_before_any_item(light_t5: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(light_t5.parent / "no-hub"))
    with pytest.raises(WeightsError, match="no umT5 tokenizer found"):
        FEATURES["text"](load_text_encoder(light_t5), light_t5)


def test_names_can_be_listed_without_torch() -> None:
    code = "import sys, wan.encoders.specs; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
