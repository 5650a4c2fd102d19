"""musubi-tuner's training flags that this program does not have, each with the answer that its user gets."""

from common.config import Foreign

_STATES = "states are saved by the clock and few of them stay: --save_last_n_states (2)"
_EXPERTS = "models with two experts (Wan 2.2) come later; give the one DiT of a Wan 2.1 model to --dit"
_STATIC = "each size has a graph of its own, which is the fastest"
_WHOLE = "a block is always compiled whole"
_GRAPHS = "the limit is 256 graphs; a bucket takes two or three"
_DYNAMO = "musubi-tuner's older route through accelerate; leave it out (--compile does it)"
_NO_DDP = "gradients are summed in one bucket without DistributedDataParallel, so there is nothing to tune"
_HUB = "nothing is uploaded from here; leave it out and use 'hf upload' on --output_dir when you want to share"

FOREIGN = (
    Foreign("vae_cache_cpu", "accepted", "previews decode a few frames at a time, and between them the VAE lies in the "
                                         "CPU's memory"),
    Foreign("one_frame", "refused", "one-frame previews belong to FramePack models, which OmniTuner does not train"),
    Foreign("dit_high_noise", "coming", _EXPERTS),
    Foreign("timestep_boundary", "coming", _EXPERTS),
    Foreign("offload_inactive_dit", "coming", _EXPERTS),
    Foreign("force_v2_1_time_embedding", "accepted", "a clip with one time for all tokens is embedded once anyway"),
    Foreign("flash3", "refused", "the same kernel is --attn_mode flash3"),
    Foreign("xformers", "refused", "torch's own attention (--sdpa) computes the same and needs no package"),
    Foreign("sage_attn", "refused", "SageAttention has no backward pass (musubi-tuner refuses it in training too); "
                                    "leave it out"),
    Foreign("split_attn", "accepted", "the samples of a batch are equally long, so attention needs no mask"),
    Foreign("compile_dynamic", "accepted", _STATIC),
    Foreign("compile_fullgraph", "accepted", _WHOLE),
    Foreign("compile_cache_size_limit", "accepted", _GRAPHS),
    Foreign("dynamo_backend", "refused", _DYNAMO),
    Foreign("dynamo_mode", "refused", _DYNAMO),
    Foreign("dynamo_fullgraph", "refused", _DYNAMO),
    Foreign("dynamo_dynamic", "refused", _DYNAMO),
    Foreign("persistent_data_loader_workers", "accepted", "caches are read by threads, which live for the whole run"),
    Foreign("use_pinned_memory_for_block_swap", "accepted", "swapped blocks always lie in page-locked memory"),
    Foreign("block_swap_h2d_only", "accepted", "the base is frozen, so blocks are always copied one way"),
    Foreign("img_in_txt_in_offloading", "refused", "it belongs to HunyuanVideo"),
    Foreign("disable_numpy_memmap", "accepted", "weights are read one tensor at a time, without numpy"),
    Foreign("guidance_scale", "accepted", "it belongs to HunyuanVideo; Wan has no embedded guidance"),
    Foreign("save_last_n_epochs_state", "accepted", _STATES),
    Foreign("save_last_n_steps_state", "accepted", _STATES),
    Foreign("ddp_gradient_as_bucket_view", "accepted", _NO_DDP),
    Foreign("ddp_static_graph", "accepted", _NO_DDP),
    Foreign("huggingface_repo_id", "refused", _HUB),
    Foreign("huggingface_repo_type", "refused", _HUB),
    Foreign("huggingface_path_in_repo", "refused", _HUB),
    Foreign("huggingface_token", "refused", _HUB),
    Foreign("huggingface_repo_visibility", "refused", _HUB),
    Foreign("save_state_to_huggingface", "refused", _HUB),
    Foreign("resume_from_huggingface", "refused", _HUB),
    Foreign("async_upload", "refused", _HUB),
)
