"""Whether a generation sees its inputs through the encoders that the LoRA was trained with."""

from common.fingerprint import weights_fingerprint
from common.logs import get_logger
from inference.adapters import Adapters
from inference.listening import note_other_hearing
from networks.metadata import Origin
from wan.encoders.base import Encoder

log = get_logger(__name__)

FLAGS = {"text": "--t5", "clip": "--clip", "audio": "--wav2vec", "image_latents": "--vae", "reference_latents": "--vae",
         "control_latents": "--vae"}


def note_other_encoder(adapters: Adapters, encoder: Encoder) -> bool:
    """Warn where a LoRA's metadata tells of other weights for the encoder's feature; whether it did."""
    name = encoder.spec.name
    if name == "audio":
        note_other_hearing(adapters)
    files = {}
    for file, _ in adapters.files:
        origin = Origin.read(file.metadata)
        trained = origin.encoders.get(name, {}).get("fingerprint") if origin else None
        if trained:
            files[file.path.name] = trained
    if not files:
        return False
    own = weights_fingerprint(encoder.weights_paths())
    strangers = [path for path, trained in files.items() if trained != own]
    for path in strangers:
        log.warning("%s was trained with other weights than %s for the feature '%s'; the result will suffer if "
                    "they are another model and not another copy.", path, FLAGS.get(name, name), name)
    return bool(strangers)
