"""What Megatron-LM calls things, and what it assumes.

Source: megatron/training/arguments.py of github.com/NVIDIA/Megatron-LM; some names are of earlier
versions, and of forks that others' scripts are written for.
"""

from typing import Any

# What it calls an option whose value means the same here. Of two names the first one counts.
SAME = {
    "num_layers": "model.num_layers",
    "hidden_size": "model.hidden_size",
    "num_attention_heads": "model.num_heads",
    "seq_length": "model.seq_length",
    "encoder_seq_length": "model.seq_length",
    "encoder_num_layers": "model.num_layers",
    "hidden_dropout": "model.dropout",
    "attention_dropout": "model.attention.dropout",
    "init_method_std": "model.init_std",
    "train_iters": "training.steps",
    "global_batch_size": "training.global_batch_size",
    "micro_batch_size": "training.micro_batch_size",
    "batch_size": "training.micro_batch_size",
    "seed": "training.seed",
    "exit_duration_in_mins": "training.time_limit_minutes",
    "deterministic_mode": "training.deterministic",
    "lr": "optimizer.lr",
    "adam_eps": "optimizer.eps",
    "weight_decay": "optimizer.weight_decay",
    "pipeline_model_parallel_size": "parallel.pipeline_stages",
    "zero_stage": "parallel.zero_stage",
    "save": "output.run_dir",
    "save_interval": "checkpoint.interval",
    "async_save": "checkpoint.asynchronous",
    "eval_interval": "evaluation.interval",
    "eval_iters": "evaluation.batches",
    "hostfile": "launch.hostfile",
    "master_addr": "launch.master_addr",
    "master_port": "launch.master_port",
    "eod_mask_loss": "data.mask_document_ends",
    "loss_scale": "deepspeed.fp16.loss_scale",
}

# Its words to ours, where another word means the same.
WORDS: dict[str, tuple[str, dict[Any, Any]]] = {
    "position_embedding_type": (
        "model.position",
        {"learned_absolute": "learned", "alibi": "alibi", "none": "none"},
    ),
    "untie_embeddings_and_output_weights": ("model.tied_head", {True: False}),
    "disable_bias_linear": ("model.biases", {True: False}),
    "swiglu": ("model.activation", {True: "swiglu"}),
    "normalization": ("model.residual", {"LayerNorm": "pre_norm"}),
    "fp16": ("precision", {True: "fp16"}),
    "bf16": ("precision", {True: "bf16"}),
    "use_distributed_optimizer": ("parallel.zero_stage", {True: 1}),
    "cpu_optimizer": ("parallel.offload", {True: "optimizer"}),
    "optimizer_cpu_offload": ("parallel.offload", {True: "optimizer"}),
    "lr_decay_style": (
        "schedule.name",
        {"cosine": "cosine", "linear": "linear", "constant": "constant", "WSD": "wsd"},
    ),
}

# What stands in for words without a counterpart: of our positions alibi is the nearest to rotary
# ones, since both are relative and have no table.
INSTEAD = {"model.position": "alibi"}

# What it assumes where a configuration says nothing.
DEFAULTS = {
    "model.residual": "pre_norm",
    "model.position": "learned",
    "model.tied_head": True,
    "model.biases": True,
    "model.activation": "gelu",
    "model.dropout": 0.1,
    "model.attention.dropout": 0.1,
    "optimizer.weight_decay": 0.01,
    "optimizer.decay_embeddings": True,
    "schedule.name": "linear",
    "parallel.zero_stage": 0,
    "checkpoint.keep_last": None,
    "evaluation.interval": 1000,
    "evaluation.batches": 100,
}

# Of its Muon: the scale of updates that is ours, its options, and where matrices and state lie.
MUON_SCALE = 0.2
MUON = {
    "muon_momentum": "optimizer.momentum",
    "muon_nesterov": "optimizer.nesterov",
    "muon_use_nesterov": "optimizer.nesterov",
    "muon_num_ns_steps": "optimizer.newton_schulz_steps",
}
MUON_NOT_NEEDED = ("muon_tp_mode", "use_distributed_optimizer", "zero_stage")

# Settings for which only these values have a counterpart, with what the others ask for.
ONLY: dict[str, tuple[tuple[Any, ...], str]] = {
    "script": ((), "a decoder that predicts the next token is the only kind of model"),
    "module": (
        ("pretrain_gpt",),
        "a decoder that predicts the next token is the only kind of model",
    ),
    "deepspeed_config": ((), "settings in a file of their own: see the section `deepspeed`"),
    "use_checkpoint_args": ((), "the model is the configuration's, not a checkpoint's"),
    "spec": ((), "layers are those of megatron_gptx/model"),
    "optimizer": (("adam",), "optimizer.name has no such value"),
    "muon_scale_mode": (("spectral",), "updates are scaled by the longer side of a matrix"),
    "muon_scalar_optimizer": (("adam",), "beside Muon, AdamW updates the rest"),
    "muon_no_split_qkv": ((), "queries, keys and values are orthogonalised apart"),
    "apply_residual_connection_post_layernorm": ((), "a branch joins the stream before its norm"),
    "add_qkv_bias": ((), "attention and feed-forwards have biases together, or none has"),
    "qk_layernorm": ((), "queries and keys have no norm"),
    **dict.fromkeys(
        ("norm_epsilon", "layernorm_epsilon"), ((1e-5,), "a LayerNorm's epsilon is 1e-5")
    ),
    "squared_relu": ((), "activations are gelu, relu and swiglu"),
    "quick_geglu": ((), "activations are gelu, relu and swiglu"),
    "window_size": ((), "every token sees all before it"),
    "init_method_xavier_uniform": ((), "the first weights have another distribution"),
    "multi_latent_attention": ((), "every head has keys and values of its own"),
    "num_experts": ((), "layers have no experts"),
    "mtp_num_layers": ((), "only the next token is predicted"),
    "fp8_format": ((), "no arithmetic of 8 bits"),
    "fp8_hybrid": ((), "no arithmetic of 8 bits"),
    "rampup_batch_size": ((), "the batch has one size from the first step on"),
    "decoupled_lr": ((), "embedding and head have the same rate as the rest"),
    "lr_warmup_init": ((0,), "warm-up begins near 0"),
    "weight_decay_incr_style": (("constant",), "weight decay has one value"),
    "start_weight_decay": ((), "weight decay has one value"),
    "end_weight_decay": ((), "weight decay has one value"),
    "mock_data": ((), "there are no made-up data; set data.train"),
    **dict.fromkeys(
        ("data_args_path", "per_split_data_args_path"), ((), "name the datasets in data.train")
    ),
    "finetune": ((), "a run begins with new weights"),
    "pretrained_checkpoint": ((), "a run begins with new weights"),
    **dict.fromkeys(
        ("fim_split_sample", "fim_no_prefix"), ((), "documents are cut at two random tokens")
    ),
    "fim_fragment_rate": ((), "documents are cut at two random tokens"),
}

# Details of something else: as good as refused where that is, without a meaning where it is not.
PART_OF = {
    **dict.fromkeys(
        ("rotary_*", "use_rope_scaling", "rope_*"),
        ("position_embedding_type", "use_rotary_position_embeddings"),
    ),
    "num_query_groups": ("group_query_attention",),
    **dict.fromkeys(("lion_*", "muon_*"), ("optimizer",)),
    **dict.fromkeys(("moe_*", "*expert*"), ("num_experts",)),
    **dict.fromkeys(("fp8_*", "no_fp8_*"), ("fp8_format", "fp8_hybrid")),
    "decoupled_min_lr": ("decoupled_lr",),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "*_head_dim"), ("multi_latent_attention",)),
    **dict.fromkeys(("hybrid_*", "mamba_*"), ("spec", "script")),
    **dict.fromkeys(("bert_*", "ict_*", "retro_*", "vocab_extra_ids"), ("script",)),
    **dict.fromkeys(("decoder_seq_length", "decoder_num_layers"), ("script",)),
}

_KERNEL = "kernels are chosen by ops.backend"
_READER = "datasets are always memory-mapped"
_SPREAD = "layers are not split over ranks; parallel.pipeline_stages and zero_stage spread them"
_LOGS = "what is logged changes nothing that is learned"
_MEMORY = "what it saves is memory; see training.checkpoint_activations"
_LAUNCH = "the launcher finds it out"
_STOP = "a run ends with its last step, or when it is asked to"
_RESUME = "a run resumes with all of its state"
_TRAFFIC = "DeepSpeed decides how ranks exchange gradients and weights"
_FORMAT = "checkpoints have one format"
_SCALE = "only fp16 scales its loss, and finds the scale"
# Settings that change nothing that is learned, and need no option here, with the reason.
NOT_NEEDED = {
    **dict.fromkeys(("data_impl", "mmap_warmup", "no_mmap_bin_files", "data_cache_path"), _READER),
    **dict.fromkeys(("s3_cache_path", "no_create_attention_mask_in_dataloader"), _READER),
    "num_workers": "data.prefetch reads ahead",
    "num_dataset_builder_threads": "data.prefetch reads ahead",
    "dataloader_type": "the order of samples is computed",
    "distributed_backend": "follows the device",
    **dict.fromkeys(
        ("*_fusion", "use_flash_attn*", "attention_backend", "transformer_impl"), _KERNEL
    ),
    **dict.fromkeys(("use_mcore_models", "use_legacy_models", "use_cpu_initialization"), _KERNEL),
    **dict.fromkeys(("onnx_safe", "te_*", "enable_cuda_graph", "cuda_graph_*"), _KERNEL),
    **dict.fromkeys(("cross_entropy_*", "manual_gc*", "empty_unused_memory_level"), _KERNEL),
    **dict.fromkeys(
        ("attention_softmax_in_fp32", "no_query_key_layer_scaling"), "softmax is computed in fp32"
    ),
    "openai_gelu": "gelu is exact, theirs an approximation",
    "apply_query_key_layer_scaling": "scores are scaled in one step",
    **dict.fromkeys(
        ("muon_coefficient_type", "muon_fp32_matmul_prec"),
        "each of them approximates the same orthogonal matrix",
    ),
    "apply_layernorm_1p": "a scale of 1 + w learns what a scale of w does",
    "fp16_lm_cross_entropy": "the loss is computed in fp32",
    "calculate_per_token_loss": "every token weighs the same",
    **dict.fromkeys(
        ("accumulate_allreduce_grads_in_fp32", "grad_reduce_in_bf16"),
        "gradients are summed in fp32",
    ),
    **dict.fromkeys(
        ("loss_scale_window", "initial_loss_scale", "min_loss_scale", "hysteresis"), _SCALE
    ),
    **dict.fromkeys(
        ("tensor_model_parallel_size", "model_parallel_size", "sequence_parallel"), _SPREAD
    ),
    **dict.fromkeys(
        ("context_parallel_size", "cp_comm_type", "tp_comm_*", "*_model_parallel_size"), _SPREAD
    ),
    **dict.fromkeys(("num_layers_per_virtual_pipeline_stage", "decoder_first_pipeline_*"), _SPREAD),
    **dict.fromkeys(("decoder_last_pipeline_*", "standalone_embedding_stage"), _SPREAD),
    **dict.fromkeys(("overlap_*", "no_overlap_*", "ddp_*", "delay_*", "align_*"), _TRAFFIC),
    **dict.fromkeys(
        ("use_contiguous_buffers_in_local_ddp", "no_async_tensor_model_parallel_allreduce"),
        _TRAFFIC,
    ),
    **dict.fromkeys(("distributed_timeout_minutes", "nccl_*", "use_ring_exchange_p2p"), _TRAFFIC),
    **dict.fromkeys(
        ("no_scatter_gather_tensors_in_pipeline", "high_priority_stream_groups"), _TRAFFIC
    ),
    **dict.fromkeys(("recompute_*", "activations_checkpoint_*", "distribute_*"), _MEMORY),
    **dict.fromkeys(("checkpoint_num_layers", "fine_grained_activation_offloading"), _MEMORY),
    **dict.fromkeys(("deepspeed", "DDP_impl", "no_pipeline_parallel"), _TRAFFIC),
    **dict.fromkeys(("deepspeed_activation_checkpointing", "partition_activations"), _MEMORY),
    **dict.fromkeys(("num_nodes", "num_gpus", "force_multi", "deepspeed_mpi"), _LAUNCH),
    **dict.fromkeys(("nproc_per_node", "nnodes", "node_rank", "rdzv_*", "standalone"), _LAUNCH),
    **dict.fromkeys(("local_rank", "lazy_mpu_init", "tee", "max_restarts", "use_env"), _LAUNCH),
    **dict.fromkeys(("exit_interval", "exit_signal_handler", "adlr_autoresume*"), _STOP),
    **dict.fromkeys(("log_*", "timing_log_*", "wandb_*", "tensorboard_*", "no_log_*"), _LOGS),
    **dict.fromkeys(
        ("profile", "profile_*", "use_pytorch_profiler", "record_memory_history"), _LOGS
    ),
    **dict.fromkeys(("one_logger_*", "enable_one_logger", "barrier_with_*", "check_for_*"), _LOGS),
    **dict.fromkeys(
        ("no_check_for_nan_in_loss_and_grad", "no_barrier_*"),
        "a step that is not finite is never applied",
    ),
    **dict.fromkeys(("ckpt_*", "dist_ckpt_*", "use_dist_ckpt", "auto_detect_ckpt_format"), _FORMAT),
    **dict.fromkeys(("non_persistent_*", "load_checkpoint_*"), _FORMAT),
    **dict.fromkeys(("no_save_optim", "no_save_rng", "no_load_optim", "no_load_rng"), _RESUME),
    **dict.fromkeys(
        ("exit_on_missing_checkpoint", "use_tokenizer_model_from_checkpoint_args"), _RESUME
    ),
    **dict.fromkeys(
        (
            *("override_opt_param_scheduler", "use_checkpoint_opt_param_scheduler"),
            *("override_lr_scheduler", "use_checkpoint_lr_scheduler"),
        ),
        "the schedule follows the configuration",
    ),
    **dict.fromkeys(
        ("tokenizer_*", "tiktoken_*", "legacy_tokenizer"),
        "data.tokenizer is a file, which tells its kind",
    ),
    "null_tokenizer_*": "data.tokenizer is a file, which tells its kind",
    "test_data_path": "nothing is kept for a test run",
    **dict.fromkeys(
        ("fim_pad_token", "fim_eod_token"), "fill_in_the_middle keeps the length of documents"
    ),
    **dict.fromkeys(
        ("skip_train", "full_validation", "eval_micro_batch_size"), "evaluate.py evaluates"
    ),
    "kv_channels": "every head has hidden_size / num_attention_heads channels",
}

# Those that are reckoned with.
NUMBERS = (
    *("min_lr", "adam_beta1", "adam_beta2", "lr_warmup_iters", "lr_warmup_samples"),
    *("lion_beta1", "lion_beta2", "muon_momentum", "muon_extra_scale_factor"),
    *("lr_warmup_fraction", "vocab_size", "padded_vocab_size", "clip_grad", "num_experts"),
)
ABOVE_ZERO = (
    *("lr", "hidden_size", "ffn_hidden_size", "num_layers", "num_attention_heads"),
    *("num_query_groups", "kv_channels", "seq_length", "max_position_embeddings", "train_iters"),
    *("train_samples", "lr_decay_iters", "lr_decay_samples", "lr_wsd_decay_iters"),
    *("lr_wsd_decay_samples", "global_batch_size", "make_vocab_size_divisible_by"),
    *("tensor_model_parallel_size", "model_parallel_size", "recompute_num_layers"),
    *(
        "muon_num_ns_steps",
        "checkpoint_num_layers",
        "activations_checkpoint_num_layers",
        "save_retain_interval",
    ),
)
