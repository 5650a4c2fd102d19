"""musubi-tuner's generation flags that this program does not have, each with the answer that its user gets."""

from common.config import Foreign

_WAN22 = "models with two experts (Wan 2.2) come later; give the one DiT of a Wan 2.1 model to --dit"
_STATIC = "each size has a graph of its own, which is the fastest"
_WHOLE = "a block is always compiled whole"
_GRAPHS = "the limit is 256 graphs; a bucket takes two or three"
_SKIP_LAYER = "skip-layer guidance comes later; --guidance_scale alone is used until then"
_ONE_FRAME = "one-frame inference belongs to FramePack models, which OmniTuner does not run"

FOREIGN = (
    Foreign("dit_high_noise", "coming", _WAN22),
    Foreign("lora_weight_high_noise", "coming", _WAN22),
    Foreign("lora_multiplier_high_noise", "coming", _WAN22),
    Foreign("guidance_scale_high_noise", "coming", _WAN22),
    Foreign("timestep_boundary", "coming", _WAN22),
    Foreign("offload_inactive_dit", "coming", _WAN22),
    Foreign("lazy_loading", "coming", _WAN22),
    Foreign("force_v2_1_time_embedding", "accepted", "the time embedding is computed once for all tokens wherever "
                                                     "they share one time"),
    Foreign("disable_numpy_memmap", "accepted", "weights are read one tensor at a time, without numpy"),
    Foreign("vae_cache_cpu", "coming", "the VAE's memory does not grow with the length of the video; use a smaller "
                                       "--video_size until then"),
    Foreign("save_merged_model", "coming", "merge at load with --lora_weight until then; a tool will write merged "
                                           "files"),
    Foreign("lycoris", "accepted", "LoHa, LoKr and DoRA files are known by their keys; merging them needs no flag"),
    Foreign("cpu_noise", "accepted", "noise is always drawn on the CPU, so a seed means the same on every device, "
                                     "and the same as in ComfyUI"),
    Foreign("video_path", "refused", "musubi-tuner parses it and never reads it. --image_path starts from a picture, "
                                     "--control_path follows a video"),
    Foreign("one_frame_inference", "refused", _ONE_FRAME),
    Foreign("control_image_path", "refused", _ONE_FRAME),
    Foreign("control_image_mask_path", "refused", _ONE_FRAME),
    Foreign("slg_mode", "coming", _SKIP_LAYER),
    Foreign("slg_layers", "coming", _SKIP_LAYER),
    Foreign("slg_scale", "coming", _SKIP_LAYER),
    Foreign("slg_start", "coming", _SKIP_LAYER),
    Foreign("slg_end", "coming", _SKIP_LAYER),
    Foreign("use_pinned_memory_for_block_swap", "accepted", "swapped blocks always lie in page-locked memory"),
    Foreign("compile_dynamic", "accepted", _STATIC),
    Foreign("compile_fullgraph", "accepted", _WHOLE),
    Foreign("compile_cache_size_limit", "accepted", _GRAPHS),
    Foreign("compile_args", "refused", "musubi-tuner has given this form up itself; use --compile and the single "
                                       "--compile_… flags"),
    Foreign("interactive", "coming", "put prompts into a file for --from_file; models are loaded once for all of them",
                                     ),
)
