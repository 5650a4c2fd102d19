"""Every flag of musubi-tuner 0.3.4 for Wan, by our script and by how much its users need it.

Source: kohya-ss/musubi-tuner, commit 30c658c (24 June 2026), the parsers of `wan_cache_latents.py`,
`wan_cache_text_encoder_outputs.py`, `wan_train_network.py` and `wan_generate_video.py`, dumped by introspection.
"""


def _flags(text: str) -> tuple[str, ...]:
    return tuple(text.split())


MUSUBI_FLAGS: dict[str, dict[str, tuple[str, ...]]] = {
    "cache_latents.py": {
        "essential": _flags("""
            dataset_config vae batch_size skip_existing keep_cache i2v clip
            """),
        "useful": _flags("""
            vae_dtype device num_workers debug_mode vae_cache_cpu
            """),
        "rare": _flags("""
            console_width console_back console_num_images disable_cudnn_backend one_frame
            """),
    },
    "cache_text_encoder_outputs.py": {
        "essential": _flags("""
            dataset_config batch_size skip_existing keep_cache t5
            """),
        "useful": _flags("""
            device num_workers fp8_t5
            """),
    },
    "train_network.py": {
        "essential": _flags("""
            config_file dataset_config sdpa flash_attn max_train_steps max_train_epochs max_data_loader_n_workers
            persistent_data_loader_workers seed gradient_checkpointing gradient_accumulation_steps mixed_precision
            logging_dir sample_every_n_steps sample_every_n_epochs sample_prompts optimizer_type learning_rate
            lr_scheduler lr_warmup_steps fp8_base blocks_to_swap timestep_sampling discrete_flow_shift min_timestep
            max_timestep preserve_distribution_shape network_weights network_module network_dim network_alpha
            network_args output_dir output_name resume save_every_n_epochs save_every_n_steps save_state dit vae
            task fp8_scaled t5 clip dit_high_noise
            """),
        "useful": _flags("""
            xformers flash3 split_attn compile compile_backend compile_mode compile_dynamic compile_fullgraph
            compile_cache_size_limit cuda_allow_tf32 cuda_cudnn_benchmark gradient_checkpointing_cpu_offload
            save_precision log_with log_prefix log_tracker_name wandb_run_name log_tracker_config wandb_api_key
            log_config ddp_timeout ddp_gradient_as_bucket_view ddp_static_graph sample_at_first optimizer_args
            max_grad_norm lr_decay_steps lr_scheduler_num_cycles lr_scheduler_power lr_scheduler_min_lr_ratio
            lr_scheduler_type lr_scheduler_args use_pinned_memory_for_block_swap block_swap_h2d_only
            block_swap_ring_size disable_numpy_memmap sigmoid_scale weighting_scheme logit_mean logit_std mode_scale
            num_timestep_buckets show_timesteps no_metadata network_dropout training_comment scale_weight_norms
            base_weights base_weights_multiplier save_last_n_epochs save_last_n_epochs_state save_last_n_steps
            save_last_n_steps_state save_state_on_train_end metadata_title metadata_author metadata_description
            metadata_license metadata_tags metadata_reso metadata_arch vae_dtype fp8_t5 vae_cache_cpu
            force_v2_1_time_embedding timestep_boundary offload_inactive_dit
            """),
        "rare": _flags("""
            sage_attn dynamo_backend dynamo_mode dynamo_fullgraph dynamo_dynamic lr_scheduler_timescale
            img_in_txt_in_offloading guidance_scale dim_from_weights huggingface_repo_id huggingface_repo_type
            huggingface_path_in_repo huggingface_token huggingface_repo_visibility save_state_to_huggingface
            resume_from_huggingface async_upload one_frame
            """),
    },
    "generate_video.py": {
        "essential": _flags("""
            task sample_solver dit dit_high_noise vae t5 clip lora_weight lora_multiplier lora_weight_high_noise
            lora_multiplier_high_noise prompt negative_prompt video_size video_length fps infer_steps save_path seed
            guidance_scale guidance_scale_high_noise image_path flow_shift fp8 fp8_scaled fp8_t5 attn_mode
            blocks_to_swap output_type latent_path from_file interactive
            """),
        "useful": _flags("""
            ckpt_dir force_v2_1_time_embedding offload_inactive_dit lazy_loading disable_numpy_memmap vae_dtype
            vae_cache_cpu include_patterns exclude_patterns save_merged_model cpu_noise timestep_boundary
            end_image_path control_path trim_tail_frames cfg_skip_mode cfg_apply_ratio slg_layers slg_scale
            slg_start slg_end slg_mode device use_pinned_memory_for_block_swap no_metadata lycoris compile
            compile_backend compile_mode compile_dynamic compile_fullgraph compile_cache_size_limit
            """),
        "rare": _flags("""
            video_path one_frame_inference control_image_path control_image_mask_path fp8_fast compile_args
            """),
    },
}
"""Script -> need (essential, useful, rare) -> flags without their dashes."""
