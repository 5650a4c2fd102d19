"""The cached features that this package makes: name -> encoder class (`specs.SPECS` has the names without torch)."""

from wan.encoders.base import ModelEncoder
from wan.encoders.features.audio import AudioFeatureEncoder
from wan.encoders.features.clip import ClipEncoder
from wan.encoders.features.image_latents import ImageLatentsEncoder
from wan.encoders.features.latents import ControlLatentsEncoder, LatentsEncoder, ReferenceLatentsEncoder
from wan.encoders.features.masks import RegionMasksEncoder, SpeakerRegionsEncoder
from wan.encoders.features.text import TextFeatureEncoder

FEATURES: dict[str, type[ModelEncoder]] = {
    "latents": LatentsEncoder,
    "control_latents": ControlLatentsEncoder,
    "reference_latents": ReferenceLatentsEncoder,
    "image_latents": ImageLatentsEncoder,
    "clip": ClipEncoder,
    "text": TextFeatureEncoder,
    "audio": AudioFeatureEncoder,
    "region_masks": RegionMasksEncoder,
    "speaker_regions": SpeakerRegionsEncoder,
}
"""Every class is made with (model, weights, **options); its `model` says which loader of `wan` makes the model, if any.
The sounds of further speakers (`audio2` …) are made by `features.voice` around the class of `audio`."""
