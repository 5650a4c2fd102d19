"""Which files a request runs on, and what their headers tell; nothing but headers and LoRA files is read."""

from dataclasses import dataclass
from pathlib import Path

from common.errors import ConfigError, WeightsError, raise_all
from inference.adapters import Adapters, read_adapters, refuse_misfits
from inference.listening import preset_for, refuse_other_rows
from inference.request import GenerationRequest
from wan.audio_presets import OMNIAVATAR, AudioPreset
from wan.variants import TASKS, Task, Variant, check_task, find_task
from wan.weights.dit import DitFacts, inspect_dit, read_parameters

OFFICIAL_NAMES = {
    "vae": "Wan2.1_VAE.pth",
    "t5": "models_t5_umt5-xxl-enc-bf16.pth",
    "clip": "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth",
}
"""Files of an official folder, by the flag that they fill."""


@dataclass(frozen=True)
class ModelFiles:
    """Paths of the models, and what the DiT and the LoRA files say about themselves."""

    dit: Path
    vae: Path
    t5: Path
    tokenizer: Path | None
    clip: Path | None
    wav2vec: Path | None
    facts: DitFacts
    """What the DiT's file tells of itself."""
    task: Task
    adapters: Adapters
    preset: AudioPreset = OMNIAVATAR
    """How the sound is heard."""

    @property
    def variant(self) -> Variant:
        """Widths and branches of the DiT."""
        return self.facts.variant


def with_official_folder(request: GenerationRequest) -> GenerationRequest:
    """`request` with the paths that `--ckpt_dir` fills; ConfigError when it is no folder."""
    folder = request.ckpt_dir
    if folder is None:
        return request
    if not folder.is_dir():
        raise ConfigError(f"--ckpt_dir {folder}: no such folder.")
    found = {"dit": folder} | {flag: folder / name for flag, name in OFFICIAL_NAMES.items() if (folder / name).exists()}
    given = {flag for flag in found if getattr(request, flag) is not None}
    return request.model_copy(update={flag: path for flag, path in found.items() if flag not in given})


def inspect_models(request: GenerationRequest, adapters: Adapters | None = None) -> ModelFiles:
    """Find the files of a request, and read the headers of the DiT and the LoRA files.

    `adapters` stand for the files of `--lora_weight` where the network is in memory already, attached to its DiT.
    Raises one ConfigError that lists every path that is missing; WeightsError and NetworkFileError for files that are
    not what was asked for.
    """
    request = with_official_folder(request)
    raise_all(_path_problems(request), ConfigError, "model files")
    assert request.dit and request.vae and request.t5
    found = inspect_dit(request.dit)
    if request.blocks_to_swap > found.variant.layers:
        raise ConfigError(f"--blocks_to_swap {request.blocks_to_swap}: this model has {found.variant.layers} blocks. "
                          "Use at most that.")
    if request.task is not None:
        check_task(request.task, found.variant, request.dit)
    task = find_task(request.task) if request.task is not None else guess_task(found.variant, request.dit)
    empties = found.empty().state_dict()
    dit = request.dit
    if adapters is None:
        adapters = read_adapters(request, dict.fromkeys(name.rpartition(".")[0] for name in empties),
                                 lambda name: read_parameters(dit, [name])[name])
        refuse_misfits(adapters, empties)
    conditions = adapters.build_conditions(found.variant)
    preset = preset_for(adapters, request)
    _check_encoders(request, preset)
    if request.wav2vec and request.audio:
        refuse_other_rows(conditions, request.wav2vec, preset)
    return ModelFiles(request.dit, request.vae, request.t5, request.tokenizer, request.clip, request.wav2vec,
                      found, task, adapters, preset)


def _check_encoders(request: GenerationRequest, preset: AudioPreset) -> None:
    """Refuse files of other models, or in part, from their names and shapes; nothing is read on the meta device."""
    import wan

    if request.vae:
        wan.load_vae(request.vae, device="meta")
    if request.t5:
        wan.load_text_encoder(request.t5, tokenizer=request.tokenizer, device="meta")
    if request.clip:
        wan.load_image_encoder(request.clip, device="meta")
    if request.wav2vec and request.audio:
        wan.load_audio_encoder(request.wav2vec, device="meta", preset=preset)


def guess_task(variant: Variant, path: Path) -> Task:
    """The task of a model: of its family the one of its width, else the first; WeightsError when none fits."""
    fitting = [task for task in TASKS.values() if task.family == variant.family]
    if not fitting:
        raise WeightsError(f"{path}: a {variant.family} model, which no task fits yet.")
    return next((task for task in fitting if (task.dim, task.layers) == (variant.dim, variant.layers)), fitting[0])


def _path_problems(request: GenerationRequest) -> list[str]:
    problems = [f"--{flag} is required" for flag in ("dit", "vae", "t5") if getattr(request, flag) is None]
    for flag in ("dit", "vae", "t5", "clip", "tokenizer", "wav2vec"):
        path = getattr(request, flag)
        # A pattern such as *-of-00006.safetensors is looked up by the loader.
        if path is not None and not path.exists() and not set("*?[") & set(path.name):
            problems.append(f"--{flag} {path}: no such file or folder")
    problems += [f"--lora_weight {path}: no such file" for path in request.lora_weight if not path.exists()]
    return problems
