"""Settings of train_network.py, spelled as musubi-tuner spells them where it has them."""

from collections.abc import Iterable
from pathlib import Path
import re
from typing import Literal

from common.config import Section, flag
from common.errors import ConfigError
from training.ema_settings import EmaSection
from training.estimating.estimate_settings import PreflightSection
from training.keeping.state_settings import StateSection
from training.looking.early_stopping_settings import EarlyStoppingSection
from training.looking.preview_settings import PreviewSection
from training.looking.validation_settings import ValidationSection
from training.phase_settings import PhaseSection
from training.region_settings import RegionSection
from training.showing import ShowingSection
from training.small_card_settings import SmallCardSection
from wan.memory.compile_modes import DIFFERS as MODE_DIFFERS
from wan.memory.compile_modes import HELP as MODE_HELP
from wan.memory.compile_modes import Mode, mode_problems
from wan.memory.policy_names import policy_problems
from wan.modules.attention_names import ALIASES, AUTO, TRAINING, plain_name
from wan.modules.attention_names import HELP as ATTENTION_HELP
from wan.variants import TASKS, find_task

TIMESTEP_RULES = ("sigma", "uniform", "sigmoid", "shift", "flux_shift", "flux2_shift", "ideogram4_shift", "qwen_shift",
                  "krea2_shift", "logsnr", "qinglong_flux", "qinglong_qwen")
WEIGHTINGS = ("logit_normal", "mode", "cosmap", "sigma_sqrt", "none", "diffsynth_gauss")
_PLAIN_NAME = re.compile(r"[^/\\:*?\"<>|\x00-\x1f]+")


class DataSection(Section):
    """Data and model."""

    dataset_config: Path = flag(required=True, help="dataset TOML, the one that the cache scripts were given")
    task: str = flag("t2v-14B", f"model that the weights must be: {', '.join(TASKS)}")
    dit: Path = flag(required=True, help="weights of the base DiT: a file, any shard of a set, its index, or a folder")
    require_sources: bool = flag(False, "refuse caches whose media are absent, instead of trusting them with one line")
    base_weights: list[Path] = flag([], "LoRA files that are merged into the base before training",
                                    differs="merged while the base is read, before any float8 rounding, so it acts "
                                            "with --fp8_base too")
    base_weights_multiplier: list[float] = flag([], "strength of each of --base_weights (default 1 for all)")

    def problems(self) -> Iterable[str]:
        """The task is known; a multiplier for each file, or fewer."""
        try:
            find_task(self.task)
        except ConfigError as error:
            yield str(error)
        if len(self.base_weights_multiplier) > len(self.base_weights):
            yield (f"--base_weights_multiplier: {len(self.base_weights_multiplier)} values for "
                   f"{len(self.base_weights)} --base_weights.")

    @property
    def merges(self) -> list[tuple[Path, float]]:
        """Files to merge with their strengths; missing strengths are 1."""
        missing = [1.0] * (len(self.base_weights) - len(self.base_weights_multiplier))
        return list(zip(self.base_weights, [*self.base_weights_multiplier, *missing], strict=True))


class LengthSection(Section):
    """Length and batches."""

    max_train_steps: int = flag(1600, "optimiser steps; --max_train_epochs wins over it", ge=1)
    max_train_epochs: int | None = flag(None, "epochs; an epoch shows every item (and its repeats) once", ge=1)
    gradient_accumulation_steps: int = flag(1, "batches that make one optimiser step; 4 with batch size 1 learns as "
                                               "batch size 4 does", ge=1)
    max_data_loader_n_workers: int = flag(8, "threads that read caches ahead, at most one a processor; 0 reads in "
                                             "between the steps", ge=0, differs="threads instead of processes")
    seed: int | None = flag(None, "seed of every draw; without one a random seed is taken and printed",
                            differs="draws hang on seed, epoch and place in the epoch, not on the number of processes")
    max_grad_norm: float = flag(1.0, "limit of the gradient's norm, which calms outliers; 0 for none", ge=0)
    explosion_factor: float = flag(100.0, "stop before a step whose loss is more than this many times the median of "
                                          "the last 100 (or its gradient's norm ten times as many), naming its items; "
                                          "0 lets it pass", ge=0)


class SpeedSection(Section):
    """Precision, memory and speed."""

    mixed_precision: Literal["no", "fp16", "bf16"] | None = flag(
        None, "bf16 holds and runs the base in bfloat16, no in float32 (default: what accelerate launch was told, "
              "else bf16 on a GPU and no on the CPU); trained weights are always float32",
        differs="the base is brought to this precision whatever its file holds")
    fp8_base: bool = flag(False, "hold the base's block weights as float8: half the memory of bfloat16",
                          differs="block weights with scales (musubi-tuner's --fp8_base --fp8_scaled); norms, "
                                  "embeddings and head stay as they are")
    fp8_scaled: bool = flag(False, "the same as --fp8_base here; musubi-tuner wants both")
    fp8_fast: bool = flag(False, "multiply in float8 too, forward and backward, on GPUs that have units for it (RTX "
                                 "40, H100 and later): faster, less exact (docs/performance.md); stores float8 too",
                          differs="in training too; weights keep one scale each")
    gradient_checkpointing: bool = flag(False, "keep only the input of each block and compute the block again in the "
                                               "backward pass: far less memory, a third more time")
    memory: str | None = flag(
        None, "how blocks save memory for the backward pass: none (everything is kept), matmuls (products are kept), "
              "attention (self-attention is kept), full (all is computed again, as --gradient_checkpointing), a mix "
              "such as matmuls:15,attention, or auto: the fastest that fits on this GPU, with attention in host memory "
              "and block swap where they must be (docs/performance.md)")
    compile: Literal["auto", "on", "off"] = flag(
        "auto", "compile the blocks: the first step of each size takes a minute longer, the others a fifth to a third "
                "less; alone it means on, auto is on where CUDA and a compiler are there and the run is long enough to "
                "win by it, and one line says what was decided (docs/performance.md)",
        differs="a block at a time and whole; where a block cannot be compiled it runs uncompiled and one line says "
                "why. Without it auto decides")
    compile_backend: str = flag("inductor", "torch.compile's backend")
    compile_mode: Mode | None = flag(None, MODE_HELP, differs=MODE_DIFFERS)
    sdpa: bool = flag(False, "attention by torch's own choice of kernel")
    flash_attn: bool = flag(False, "attention by the flash-attn package")
    attn_mode: str | None = flag(None, f"attention back end (default: auto): {ATTENTION_HELP}",
                                 choices=(AUTO, *TRAINING, *ALIASES))
    cuda_allow_tf32: bool = flag(False, "let float32 products on the GPU round to TF32: faster, less exact")
    cuda_cudnn_benchmark: bool = flag(False, "let cuDNN try its kernels on each new shape")

    def problems(self) -> Iterable[str]:
        """One attention, a precision that we train in."""
        chosen = {name for name, given in (("sdpa", self.sdpa), ("flash_attn", self.flash_attn)) if given}
        chosen |= {plain_name(self.attn_mode)} if self.attn_mode else set()
        if len(chosen) > 1:
            yield f"--attn_mode, --sdpa and --flash_attn name {' and '.join(sorted(chosen))}. Give one."
        if self.mixed_precision == "fp16":
            yield FP16_REFUSED
        if self.memory is not None and self.gradient_checkpointing:
            yield "--gradient_checkpointing is --memory full. Give one of the two."
        if self.memory not in (None, "auto"):
            yield from policy_problems(self.memory)

    @property
    def attention(self) -> str:
        """Name of the attention back end; `auto` is decided by `choose_attention`."""
        return plain_name(self.attn_mode or ("flash_attn" if self.flash_attn else "sdpa" if self.sdpa else AUTO))

    @property
    def uses_fp8(self) -> bool:
        """Whether the base's block weights are held as float8."""
        return self.fp8_base or self.fp8_scaled or self.fp8_fast

    @property
    def compiles(self) -> bool:
        """Whether blocks are compiled; `auto` is not decided yet, and counts as off."""
        return self.compile == "on"

    @property
    def activations(self) -> str:
        """Activation policies as text; `auto` is not decided yet."""
        return self.memory or ("full" if self.gradient_checkpointing else "none")


FP16_REFUSED = ("--mixed_precision fp16 is not offered: Wan's activations overflow float16 and small gradients vanish "
                "in it. Use bf16 (float16 weight files are read and cast).")


class NoiseSection(Section):
    """Noise levels and loss."""

    timestep_sampling: str = flag(
        "sigma", "rule that draws a noise level for each sample; shift with --discrete_flow_shift 3 to 5 is a good "
                 "start for video", choices=TIMESTEP_RULES,
        differs="the model's time is 1000*sigma as in generation (not +1); rule sigma obeys --discrete_flow_shift, "
                "and --min_timestep 0 is its clean end")
    discrete_flow_shift: float = flag(1.0, "above 1 moves draws to high noise: 3 at 480p, 5 at 720p are usual", gt=0)
    sigmoid_scale: float = flag(1.0, "above 1 spreads the draws of sigmoid, shift and the …_shift rules to both ends",
                                gt=0)
    weighting_scheme: str = flag("none", "weight of the loss by noise level (sigma_sqrt, cosmap, diffsynth_gauss), or "
                                         "density of the sigma rule (logit_normal, mode)", choices=WEIGHTINGS)
    logit_mean: float = flag(0.0, "mean of the normal draw in logit_normal and logsnr")
    logit_std: float = flag(1.0, "its deviation", gt=0)
    mode_scale: float = flag(1.29, "strength of weighting scheme mode")
    min_timestep: int | None = flag(None, "lowest time that is trained, 0 (clean, the default) to 999", ge=0, le=999)
    max_timestep: int | None = flag(None, "highest time that is trained, 1 to 1000 (pure noise, the default)", ge=1,
                                    le=1000, differs="0 is clean and 1000 pure noise under every rule")
    preserve_distribution_shape: bool = flag(False, "cut the rule's law to min…max instead of squeezing it in between")
    num_timestep_buckets: int | None = flag(None, "spread the draws of each epoch evenly over this many slices", ge=2)
    show_timesteps: Literal["image", "console"] | None = flag(
        None, "show how often each noise level will be drawn, and stop: as text, or as a PNG in --output_dir")

    def problems(self) -> Iterable[str]:
        """The range must not be empty."""
        low, high = self.min_timestep or 0, 1000 if self.max_timestep is None else self.max_timestep
        if low >= high:
            yield f"--min_timestep {low} must be below --max_timestep {high} (0 is clean, 1000 pure noise)."


class NetworkSection(Section):
    """Network: what is trained."""

    network_module: str = flag("networks.lora_wan", "kind of network: networks.lora_wan, or networks.lycoris_wan with "
                                                       "--network_args algo=dora, loha or lokr (docs/networks.md)")
    network_dim: int | None = flag(None, "rank of the LoRA: 16 to 64 for a style or a person, 128 for a new skill such "
                                         "as audio (default 4)", ge=1)
    network_alpha: float = flag(1.0, "the LoRA acts with strength alpha / rank; alpha = rank gives strength 1, the "
                                     "default 1 gives 1 / rank and wants a higher learning rate", ge=0)
    network_dropout: float | None = flag(None, "share of rank activations dropped in training", ge=0, lt=1)
    network_args: list[str] = flag(
        [], "more settings, key=value: include_patterns, exclude_patterns (Python lists of regular expressions on "
            "module names), rank_dropout, module_dropout, loraplus_lr_ratio, conditions=omniavatar_add to train the "
            "audio condition, its settings as omniavatar_add.audio_hidden=32, condition_lr=1e-3 where conditions "
            "shall learn at a rate of their own, and patch_lr=1e-4 for their patch embedding; rank_patterns, "
            "alpha_patterns and lr_patterns give some layers a rank, alpha or rate of their own, as "
            "rank_patterns={'ffn': 16, 'self_attn': 64} (docs/networks.md)")
    network_weights: Path | None = flag(None, "go on from this file",
                                        differs="a key that matches nothing is an error, and conditions inside are "
                                                "taken up too")
    dim_from_weights: bool = flag(False, "take rank and alpha from --network_weights")
    scale_weight_norms: float | None = flag(None, "limit of the norm of each LoRA pair after every step", gt=0)

    def problems(self) -> Iterable[str]:
        """Pairs have an equals sign; a rank from weights needs them; only our own modules are run."""
        if self.dim_from_weights and self.network_weights is None:
            yield "--dim_from_weights needs --network_weights."
        if self.dim_from_weights and self.network_dim is not None:
            yield "--network_dim and --dim_from_weights both set the rank. Give one."
        for pair in self.network_args:
            if "=" not in pair:
                yield f"--network_args '{pair}' is not of the form key=value."
        if not self.network_module.startswith("networks."):
            hint = (" Use networks.lycoris_wan with --network_args algo=loha, lokr or dora."
                    if self.network_module.startswith("lycoris") else "")
            yield f"--network_module '{self.network_module}' is no module of networks/.{hint}"


class OptimiserSection(Section):
    """Optimiser and schedule."""

    optimizer_type: str = flag("AdamW", "AdamW, AdamW8bit, Adafactor, Prodigy, any of torch.optim, or package.Class")
    optimizer_args: list[str] = flag([], "its settings as name=value, such as weight_decay=0.01")
    learning_rate: float = flag(2e-6, "step size; 1e-4 to 2e-4 is usual for LoRA, 1 for Prodigy", gt=0)
    lr_scheduler: str = flag("constant", "course of the learning rate: constant, constant_with_warmup, linear, cosine, "
                                         "cosine_with_restarts, cosine_with_min_lr, polynomial, inverse_sqrt, "
                                         "warmup_stable_decay, rex, piecewise_constant, adafactor",
                             differs="warm-up works with each of them, constant too; steps are optimiser steps")
    lr_warmup_steps: int | float | str = flag(0, "steps in which the rate rises from 0: a number, or a share as 0.1 or "
                                                 "10%")
    lr_decay_steps: int | float | str = flag(0, "length of the last phase of warmup_stable_decay, likewise")
    lr_scheduler_num_cycles: int = flag(1, "restarts of the cosine", ge=1)
    lr_scheduler_power: float = flag(1.0, "power of polynomial", gt=0)
    lr_scheduler_timescale: int | None = flag(None, "time scale of inverse_sqrt (default: the warm-up)", ge=1)
    lr_scheduler_min_lr_ratio: float | None = flag(None, "lowest rate as a share of the highest", ge=0, le=1)
    lr_scheduler_type: str = flag("", "any scheduler class instead, as torch.optim.lr_scheduler.CosineAnnealingLR")
    lr_scheduler_args: list[str] = flag([], "its settings as name=value, such as T_max=100")

    def problems(self) -> Iterable[str]:
        """Pairs have an equals sign."""
        for name in ("optimizer_args", "lr_scheduler_args"):
            for pair in getattr(self, name):
                if "=" not in pair:
                    yield f"--{name} '{pair}' is not of the form name=value."


class SavingSection(Section):
    """Output."""

    output_dir: Path = flag(required=True, help="folder of the run: checkpoints, settings and loss log")
    output_name: str = flag("lora", "name of the files: NAME.safetensors, NAME-000010.safetensors after epoch 10, "
                                    "NAME-step00000500.safetensors after step 500")
    save_every_n_epochs: int | None = flag(None, "write a checkpoint every n epochs", ge=1)
    save_every_n_steps: int | None = flag(None, "write a checkpoint every n steps", ge=1)
    save_at_first: bool = flag(False, "write a checkpoint before the first step too, NAME-step00000000.safetensors: "
                                      "what the run starts from, to compare with")
    save_last_n_epochs: int | None = flag(None, "keep only the last n epoch checkpoints", ge=1)
    save_last_n_steps: int | None = flag(None, "delete step checkpoints that are more than n steps old", ge=1)
    save_precision: Literal["float", "fp32", "fp16", "bf16"] | None = flag(
        None, "precision of saved weights (default fp32, as they are trained)")
    no_metadata: bool = flag(False, "write only the metadata that loading needs")
    training_comment: str | None = flag(None, "any text, kept in the metadata")
    metadata_title: str | None = flag(None, "title in the metadata (default: --output_name)")
    metadata_author: str | None = flag(None, "author in the metadata")
    metadata_description: str | None = flag(None, "description in the metadata")
    metadata_license: str | None = flag(None, "licence in the metadata")
    metadata_tags: str | None = flag(None, "tags in the metadata, separated by commas")
    metadata_reso: str | None = flag(None, "resolution in the metadata, such as 832,480 (default: the dataset's)")
    metadata_arch: str | None = flag(None, "architecture in the metadata (default: wan2.1/lora)")

    def problems(self) -> Iterable[str]:
        """The name is one file name; what shall be kept must be written first."""
        if not _PLAIN_NAME.fullmatch(self.output_name) or self.output_name.strip(". ") == "":
            yield f"--output_name '{self.output_name}' is no plain file name. Folders belong into --output_dir."
        if self.metadata_reso is not None and not re.fullmatch(r"\d+([,x]\d+)?", self.metadata_reso):
            yield f"--metadata_reso '{self.metadata_reso}' is not of the form 832,480."
        for unit in ("epochs", "steps"):
            if getattr(self, f"save_last_n_{unit}") and not getattr(self, f"save_every_n_{unit}"):
                yield f"--save_last_n_{unit} needs --save_every_n_{unit}."


class LoggingSection(Section):
    """Logging and processes."""

    logging_dir: Path | None = flag(None, "write TensorBoard logs into a time-stamped folder here")
    log_with: Literal["tensorboard", "wandb", "all"] | None = flag(
        None, "tracker (default: tensorboard where --logging_dir is given); metrics.jsonl is always written")
    log_prefix: str | None = flag(None, "text before the time stamp of the log folder")
    log_tracker_name: str | None = flag(None, "name of the tracker's project (default network_train)")
    log_tracker_config: Path | None = flag(None, "TOML with settings of each tracker, such as [wandb] tags = […]")
    wandb_run_name: str | None = flag(None, "name of the run at Weights & Biases")
    wandb_api_key: str | None = flag(None, "key for Weights & Biases; better in the environment (WANDB_API_KEY)",
                                     secret=True)
    log_config: bool = flag(False, "tell the trackers the settings too (without paths and secrets)")
    loss_history_every_n_steps: int = flag(
        100, "bring loss_history.png, loss_history.json and timesteps.png up to date every n steps; the loss history "
             "is at every validation too, and all are at the end", ge=1)
    smi_every: int = flag(0, "on an NVIDIA GPU, ask nvidia-smi every n steps how much memory is used, by other "
                             "programs too, and log it; 0 for never", ge=0)
    ddp_timeout: int | None = flag(None, "minutes that processes wait for each other", ge=1)


class TrainConfig(Section):
    """All settings of a training run."""

    data: DataSection
    network: NetworkSection
    optimiser: OptimiserSection
    ema: EmaSection
    length: LengthSection
    phases: PhaseSection
    showing: ShowingSection
    noise: NoiseSection
    regions: RegionSection
    speed: SpeedSection
    small_card: SmallCardSection
    saving: SavingSection
    state: StateSection
    validation: ValidationSection
    previews: PreviewSection
    early_stopping: EarlyStoppingSection
    preflight: PreflightSection
    logging: LoggingSection

    def for_later_starts(self, *, compile: str) -> "TrainConfig":
        """The settings without what was asked of one start alone, such as `--force`: what goes on with this run.

        `compile` is --compile as it was asked for: what `auto` comes to is decided anew (`settle_compile`).
        """
        speed = self.speed.model_copy(update={"compile": compile})
        return self.model_copy(update={"state": self.state.for_later_starts(), "speed": speed})

    def problems(self) -> Iterable[str]:
        """What waits for held-out clips needs some; graphs that are recorded need weights that stay."""
        yield from mode_problems(None if self.speed.compile == "off" else self.speed.compile_mode,
                                 self.small_card.moving)
        if not self.validation.is_wanted:
            yield from self.early_stopping.without_held_out_clips()
