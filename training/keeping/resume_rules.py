"""What may change between a run and its continuation: one word for every setting.

A continuation that differs from what was asked for the first time is either no other training, or it is told, or it is
refused. `docs/resume.md` has this table; a test holds the two together, and another one walks through it.
"""

from collections.abc import Mapping
from enum import Enum
import functools
from pathlib import Path
from typing import Any

from common.config import flags_of
from training.config import TrainConfig


class Rule(Enum):
    """What a changed setting means for `--resume`."""

    FREE = "may change"
    """It decides nothing about what is learnt."""
    TOLD = "may change, is told"
    """It changes how it is learnt from here on, in a way that somebody may well want."""
    DATA = "compared by content"
    """Paths may change; what lies there may not (`--resume_new_data` accepts other training clips)."""
    FRESH = "needs --resume_weights_only"
    """The optimiser, the schedule or the draws would not be those of one run."""
    NEVER = "refused"
    """The saved weights do not fit, or would mean something else."""


RULES: Mapping[str, Rule] = {
    **dict.fromkeys((
        "require_sources", "max_data_loader_n_workers", "sdpa", "flash_attn", "attn_mode", "gradient_checkpointing",
        "cuda_cudnn_benchmark", "show_timesteps", "network_weights", "dim_from_weights", "output_dir", "output_name",
        "save_every_n_epochs", "save_every_n_steps", "save_at_first", "save_last_n_epochs", "save_last_n_steps",
        "save_precision", "no_metadata", "training_comment", "metadata_title", "metadata_author",
        "metadata_description", "metadata_license", "metadata_tags", "metadata_reso", "metadata_arch",
        "max_validation_steps", "validation_sigmas", "validate_every_n_steps", "logging_dir", "log_with", "log_prefix",
        "log_tracker_name", "log_tracker_config", "wandb_run_name", "wandb_api_key", "log_config", "ddp_timeout",
        "resume", "resume_weights_only", "resume_new_data", "force", "continue_training", "min_sufficient_epochs",
        "save_state", "save_state_on_train_end", "save_state_every_n_steps", "save_state_every_n_minutes",
        "save_last_n_states", "explosion_factor", "sample_prompts", "sample_every_n_steps", "sample_every_n_epochs",
        "sample_at_first", "sample_held_out", "sample_infer_steps", "vae", "t5", "tokenizer", "clip", "wav2vec",
        "vae_dtype", "t5_dtype", "clip_dtype", "blocks_to_swap", "block_swap_ring_size",
        "gradient_checkpointing_cpu_offload", "fp8_t5", "text_encoder_cpu", "early_stopping_patience_steps",
        "early_stopping_patience_evals",
        "early_stopping_min_delta", "early_stopping_metric", "save_best", "smi_every",
        "loss_history_every_n_steps", "memory", "preflight",
        "dry_run", "preflight_device", "preflight_vram"), Rule.FREE),
    **dict.fromkeys(("max_train_steps", "max_train_epochs", "max_grad_norm", "cuda_allow_tf32", "compile",
                     "compile_backend", "compile_mode"), Rule.TOLD),
    **dict.fromkeys(("dataset_config", "phases", "dit", "base_weights", "validation_split", "validation_count",
                     "validation_items", "validation_seed"), Rule.DATA),
    **dict.fromkeys((
        "base_weights_multiplier", "gradient_accumulation_steps", "seed", "mixed_precision", "fp8_base", "fp8_scaled",
        "timestep_sampling", "discrete_flow_shift", "sigmoid_scale", "weighting_scheme", "logit_mean", "logit_std",
        "mode_scale", "min_timestep", "max_timestep", "preserve_distribution_shape", "num_timestep_buckets",
        "network_dropout", "scale_weight_norms", "optimizer_type", "optimizer_args", "learning_rate", "lr_scheduler",
        "lr_warmup_steps", "lr_decay_steps", "lr_scheduler_num_cycles", "lr_scheduler_power", "lr_scheduler_timescale",
        "lr_scheduler_min_lr_ratio", "lr_scheduler_type", "lr_scheduler_args", "prefix_frames", "prefix_weights",
        "prefix_dropout", "prefix_corruption", "audio_dropout", "text_dropout", "audio_text_dropout",
        "reference_dropout", "max_tokens", "random_length", "min_frames", "face_weight", "lip_weight",
        "region_mixture", "ema_decay", "network_args", "fp8_fast"), Rule.FRESH),
    **dict.fromkeys(("task", "network_module", "network_dim", "network_alpha"), Rule.NEVER),
}
"""By the flag's name; no flag is without one (tested)."""


def changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """{name: (value before, value now)} of what differs; what one side lacks is None there."""
    return {name: (before.get(name), now.get(name)) for name in dict.fromkeys([*before, *now])
            if before.get(name) != now.get(name)}


def _changed_settings(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The same of the settings that there are now; what the version that wrote `before` did not know had the effect of
    its default."""
    defaults = default_values()
    return changed({name: before.get(name, defaults.get(name)) for name in now}, now)


@functools.cache
def default_values() -> Mapping[str, Any]:
    """Every setting as it is where nobody gives it, as JSON has it."""
    return {field.name: plain(field.info.get_default(call_default_factory=True))
            for field in flags_of(TrainConfig) if not field.required}


def plain(value: Any) -> Any:
    """A setting as JSON has it."""
    if isinstance(value, Path):
        return str(value)
    return [plain(one) for one in value] if isinstance(value, (list, tuple)) else value


def refusals(before: Mapping[str, Any], now: Mapping[str, Any], *, weights_only: bool) -> list[str]:
    """A sentence for every setting whose change the rules refuse."""
    refused = {Rule.NEVER} if weights_only else {Rule.NEVER, Rule.FRESH}
    return [f"--{name} was {_shown(old)}, is {_shown(new)} ({RULES[name].value})"
            for name, (old, new) in _changed_settings(before, now).items() if RULES.get(name) in refused]


def told(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """A sentence for every change that is allowed and worth a line."""
    return [f"--{name} was {_shown(old)}, is {_shown(new)} from here on"
            for name, (old, new) in _changed_settings(before, now).items() if RULES.get(name) is Rule.TOLD]


def _shown(value: Any) -> str:
    return "not set" if value is None else "empty" if value in ("", []) else str(value)
