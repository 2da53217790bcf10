"""What GPT-NeoX calls things, and what it assumes.

Source: `NeoXArgs*` in megatron/neox_arguments of github.com/EleutherAI/gpt-neox.
"""

from typing import Any

# What it calls an option whose value means the same here. Of two names the first one counts.
SAME = {
    "num_layers": "model.num_layers",
    "hidden_size": "model.hidden_size",
    "num_attention_heads": "model.num_heads",
    "seq_length": "model.seq_length",
    "hidden_dropout": "model.dropout",
    "attention_dropout": "model.attention.dropout",
    "init_method_std": "model.init_std",
    "train_iters": "training.steps",
    "train_epochs": "training.epochs",
    "train_batch_size": "training.global_batch_size",
    "train_micro_batch_size_per_gpu": "training.micro_batch_size",
    "batch_size": "training.micro_batch_size",
    "gradient_accumulation_steps": "training.accumulation_steps",
    "gas": "training.accumulation_steps",
    "seed": "training.seed",
    "optimizer.params.lr": "optimizer.lr",
    "lr": "optimizer.lr",
    "optimizer.params.betas": "optimizer.betas",
    "optimizer.params.eps": "optimizer.eps",
    "optimizer.params.weight_decay": "optimizer.weight_decay",
    "weight_decay": "optimizer.weight_decay",
    "zero_optimization.stage": "parallel.zero_stage",
    "zero_stage": "parallel.zero_stage",
    "save": "output.run_dir",
    "checkpoint_factor": "checkpoint.interval",
    "save_interval": "checkpoint.interval",
    "keep_last_n_checkpoints": "checkpoint.keep_last",
    "eval_interval": "evaluation.interval",
    "eval_iters": "evaluation.batches",
    "use_wandb": "logging.wandb",
    "hostfile": "launch.hostfile",
    "master_addr": "launch.master_addr",
    "master_port": "launch.master_port",
    "eod_mask_loss": "data.mask_document_ends",
    "maximum_tokens": "generation.max_new_tokens",
    "temperature": "generation.temperature",
    "zero_reduce_scatter": "deepspeed.zero_optimization.reduce_scatter",
    "zero_contiguous_gradients": "deepspeed.zero_optimization.contiguous_gradients",
    "zero_reduce_bucket_size": "deepspeed.zero_optimization.reduce_bucket_size",
    "zero_allgather_bucket_size": "deepspeed.zero_optimization.allgather_bucket_size",
}

# Options whose 0 means none there.
NONE_FOR_ZERO = {
    "gradient_clipping": "optimizer.gradient_clipping",
    "clip_grad": "optimizer.gradient_clipping",
    "optimizer.params.max_grad_norm": "optimizer.gradient_clipping",
    "top_k": "generation.top_k",
    "top_p": "generation.top_p",
}

_SAME_WORDS = {word: word for word in ("pdsh", "openmpi", "mpich", "impi", "mvapich", "slurm")}
# Its words to ours, where another word means the same.
WORDS: dict[str, tuple[str, dict[Any, Any]]] = {
    "pos_emb": ("model.position", {"learned": "learned", "alibi": "alibi", "none": "none"}),
    "no_weight_tying": ("model.tied_head", {True: False, False: True}),
    "norm": ("model.residual", {"layernorm": "pre_norm", "te_layernorm": "pre_norm"}),
    "lr_decay_style": (
        "schedule.name",
        {"cosine": "cosine", "linear": "linear", "constant": "constant"},
    ),
    "pack_impl": (
        "data.packing",
        {"packed": "stream", "pack_until_overflow": "until_overflow", "unpacked": "document"},
    ),
    "zero_optimization.cpu_offload": ("parallel.offload", {True: "optimizer", False: "none"}),
    "zero_optimization.offload_optimizer.device": (
        "parallel.offload",
        {"cpu": "optimizer", "none": "none", None: "none"},
    ),
    "launcher": ("launch.launcher", _SAME_WORDS),
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
    "model.dropout": 0.0,
    "model.attention.dropout": 0.0,
    "optimizer.lr": 0.001,
    "optimizer.betas": [0.9, 0.999],
    "optimizer.weight_decay": 0.1,
    "optimizer.decay_embeddings": True,
    "schedule.name": "linear",
    "parallel.zero_stage": 0,
    "checkpoint.keep_last": None,
    "evaluation.interval": 1000,
    "evaluation.batches": 100,
    "generation.max_new_tokens": 64,
    "generation.temperature": 0.0,
}

# Of its Lion, where nothing is said.
LION_BETAS = [0.9, 0.99]

_OPTIMIZERS = "optimizer.name has no such value; of GPT-NeoX's it knows Adam and Lion"
# Settings for which only these values have a counterpart, with what the others ask for.
ONLY: dict[str, tuple[tuple[Any, ...], str]] = {
    "optimizer.type": (("Adam", "AdamW", "adam", "adamw", "cpu_adam"), _OPTIMIZERS),
    "optimizer_type": (("adam", "cpu_adam"), _OPTIMIZERS),
    "use_bnb_optimizer": ((False,), "the optimizer's state has 32 bits"),
    "checkpoint_scale": (("linear",), "checkpoint.interval is a number of steps"),
    "gpt_j_residual": ((False,), "attention and feed-forward beside one another"),
    "gpt_j_tied": ((False,), "attention and feed-forward beside one another"),
    "init_method": (("normal",), "the first weights have another distribution"),
    "output_layer_init_method": (("scaled_normal",), "the first weights have another distribution"),
    "use_bias_in_norms": ((True,), "a LayerNorm has biases"),
    "use_qk_layernorm": ((False,), "queries and keys have no norm"),
    "layernorm_epsilon": ((1e-5,), "a LayerNorm's epsilon is 1e-5"),
    "opt_pos_emb_offset": ((0,), "positions begin at 0"),
    "sliding_window_width": ((None,), "every token sees all before it"),
    "num_unique_layers": ((None,), "no layers share their weights"),
    "model_arch": (("gpt2",), "a decoder is the only kind of model"),
    "use_mup": ((False,), "no muP: rates and first weights do not depend on the width"),
    "train_impl": (("normal",), "training is next-token prediction"),
    "dataset_impl": (("gpt2",), "training is next-token prediction"),
    "z_loss": ((0,), "the loss is cross-entropy alone"),
    "weight_by_num_documents": ((False,), "the weights of datasets are given, not drawn"),
    "finetune": ((False,), "a run begins with new weights"),
    "te_fp8_format": ((None,), "no arithmetic of 8 bits"),
    "data_types.grad_accum_dtype": (("fp32", None), "gradients are summed in fp32"),
    "fp32_allreduce": ((True,), "gradients are summed in fp32"),
    "num_experts": ((0, 1), "layers have no experts"),
    "moe_num_experts": ((0, 1), "layers have no experts"),
    "soft_prompt_tuning.enabled": ((False,), "all weights are trained"),
    "zero_optimization.offload_param.device": (
        ("none", None),
        "parallel.offload: all, with ZeRO 3",
    ),
}

# Details of something else: as good as refused where that is, without a meaning where it is not.
PART_OF = {
    **dict.fromkeys(("rotary_*", "rpe_*"), ("pos_emb",)),
    **dict.fromkeys(("rms_norm_epsilon", "scalenorm_epsilon"), ("norm",)),
    **dict.fromkeys(("dpo_*", "kto_*"), ("train_impl",)),
    **dict.fromkeys(("mup_*", "coord_check", "save_base_shapes", "base_shapes_file"), ("use_mup",)),
    "weighted_sampler_alpha": ("weight_by_num_documents",),
    **dict.fromkeys(("moe_*", "expert_interval"), ("num_experts", "moe_num_experts")),
    "enable_expert_tensor_parallelism": ("num_experts", "moe_num_experts"),
    **dict.fromkeys(("use_tutel", "create_moe_param_group"), ("num_experts", "moe_num_experts")),
    **dict.fromkeys(("mamba_*", "gmlp_attn_dim", "sparsity_config.*"), ("attention_config",)),
    **dict.fromkeys(("dim_att", "head_size", "ffn_dim"), ("attention_config",)),
    "te_fp8_*": ("te_fp8_format",),
}

# Sections of DeepSpeed's that its engine hands to a model or a loader of its own.
WITHOUT_EFFECT = (
    *("curriculum_learning", "data_efficiency", "progressive_layer_drop", "sparse_attention"),
    *("compression_training", "quantize_training", "eigenvalue", "hybrid_engine", "autotuning"),
)
# What fp16 hands on to DeepSpeed.
LOSS_SCALE = (
    *("loss_scale", "initial_scale_power", "loss_scale_window", "hysteresis"),
    *("consecutive_hysteresis", "min_loss_scale", "auto_cast"),
)

_KERNEL = "kernels are chosen by ops.backend"
_READER = "datasets are always memory-mapped"
_SPREAD = "layers are not split over ranks; parallel.pipeline_stages and zero_stage spread them"
_LOGS = "what is logged changes nothing that is learned"
_MEMORY = "what it saves is memory; see training.checkpoint_activations"
_LAUNCH = "the launcher finds it out"
_PROMPT = "generate.py takes its prompts on the command line"
_STOP = "a run ends with its last step, or when it is asked to"
_RESUME = "a run resumes with all of its state"
# Settings that change nothing that is learned, and need no option here, with the reason.
NOT_NEEDED = {
    **dict.fromkeys(("data_impl", "mmap_warmup", "use_shared_fs"), _READER),
    "num_workers": "data.prefetch reads ahead",
    "distributed_backend": "follows the device",
    **dict.fromkeys(
        ("*_fusion", "use_flash_attn*", "use_flashattn*", "te_*", "onnx_safe"), _KERNEL
    ),
    "attention_softmax_in_fp32": "softmax is computed in fp32",
    "apply_query_key_layer_scaling": "scores are scaled in one step",
    "fp16_lm_cross_entropy": "the loss is computed in fp32",
    **dict.fromkeys(("use_cpu_initialization", "lazy_mpu_init"), "weights are made where they run"),
    **dict.fromkeys(("model_parallel_size", "context_parallel_size", "sequence_parallel"), _SPREAD),
    **dict.fromkeys(
        ("output_layer_parallelism", "partition_activations", "is_pipe_parallel"), _SPREAD
    ),
    **dict.fromkeys(("topology_order", "*_model_parallel_size"), _SPREAD),
    "pipe_partition_method": "stages are balanced by cost, or by parallel.boundaries",
    "param_sharing_style": "no layers share their weights",
    "checkpoint_num_layers": _MEMORY,
    **dict.fromkeys(("synchronize_each_layer", "profile_backward"), "changes no number"),
    **dict.fromkeys(("contiguous_checkpointing", "checkpoint_in_cpu"), _MEMORY),
    "deepspeed_activation_checkpointing": _MEMORY,
    **dict.fromkeys(("log_*", "wandb_*", "comet_*", "use_comet", "tensorboard_*"), _LOGS),
    **dict.fromkeys(("gradient_noise_scale_*", "memory_profiling*", "profile", "profile_*"), _LOGS),
    **dict.fromkeys(("char_level_ppl", "git_hash", "comment", "monitor_config"), _LOGS),
    "tokenizer_type": "data.tokenizer is a file, which tells its kind",
    **dict.fromkeys(("fp16.fp16", "bf16.bf16", "fp16.type"), "precision decides"),
    **dict.fromkeys(
        ("fp16.*", "dynamic_loss_scale", "loss_scale*", "min_scale", "hysteresis"),
        "only fp16 scales its loss",
    ),
    "bf16.*": "only fp16 scales its loss",
    **dict.fromkeys(("deepspeed_slurm", "deepspeed_mpi", "no_ssh_check", "force_multi"), _LAUNCH),
    **dict.fromkeys(("global_num_gpus", "num_gpus", "num_nodes", "world_size", "rank"), _LAUNCH),
    **dict.fromkeys(("local_rank", "include", "exclude", "detect_nvlink_pairs"), _LAUNCH),
    **dict.fromkeys(
        ("user_script", "iteration", "do_train", "do_valid", "do_test"), "set while it runs"
    ),
    **dict.fromkeys(
        ("config_files", "save_iters", "deepscale", "deepscale_config"), "set while it runs"
    ),
    **dict.fromkeys(("adlr_autoresume", "adlr_autoresume_*", "exit_interval"), _STOP),
    **dict.fromkeys(("no_save_optim", "no_save_rng", "no_load_optim", "no_load_rng"), _RESUME),
    "checkpoint_validation_with_forward_pass": "checkpoints are verified by their checksums",
    **dict.fromkeys(("s3_path", "s3_chunk_size"), "checkpoint.upload takes a URL"),
    **dict.fromkeys(
        ("override_lr_scheduler", "use_checkpoint_lr_scheduler"),
        "the schedule follows the configuration",
    ),
    **dict.fromkeys(
        ("text_gen_type", "prompt_end", "sample_input_file", "sample_output_file"), _PROMPT
    ),
    **dict.fromkeys(
        ("num_samples", "recompute", "return_logits", "precompute_model_name"), _PROMPT
    ),
    **dict.fromkeys(("eval_tasks", "eval_results_prefix"), "tasks are another program's"),
    **dict.fromkeys(
        ("test_data_paths", "test_data_weights", "test_label_data_paths"),
        "nothing is kept for a test run",
    ),
    "allow_chopped": "what does not fit into a sample goes on in the next",
    "short_seq_prob": "samples are as long as data.packing says",
}

# Those that are reckoned with.
NUMBERS = (
    *("optimizer.params.eps", "min_lr", "warmup", "pipe_parallel_size", "vocab_size"),
    *("zero_optimization.stage", "zero_stage", "padded_vocab_size"),
)
ABOVE_ZERO = (
    *("lr", "optimizer.params.lr", "hidden_size", "num_layers", "num_attention_heads"),
    *("num_kv_heads", "seq_length", "max_position_embeddings", "intermediate_size"),
    *("feedforward_size", "expansion_factor", "mlp_multiple_of", "train_iters", "lr_decay_iters"),
    *("lr_decay_fraction", "train_batch_size", "make_vocab_size_divisible_by"),
    *("model_parallel_size", "checkpoint_num_layers"),
)
