"""What GPT-NeoX and Megatron-LM call things, and what they assume."""

from typing import Any

# What they call an option whose value means the same here. NeoX's names, then Megatron's.
SAME = {
    "num_layers": "model.num_layers",
    "hidden_size": "model.hidden_size",
    "num_attention_heads": "model.num_heads",
    "seq_length": "model.seq_length",
    "feedforward_size": "model.ffn_hidden_size",
    "intermediate_size": "model.ffn_hidden_size",
    "ffn_hidden_size": "model.ffn_hidden_size",
    "padded_vocab_size": "model.vocab_size",
    "hidden_dropout": "model.dropout",
    "attention_dropout": "model.attention.dropout",
    "init_method_std": "model.init_std",
    "train_iters": "training.steps",
    "train_epochs": "training.epochs",
    "train_batch_size": "training.global_batch_size",
    "global_batch_size": "training.global_batch_size",
    "train_micro_batch_size_per_gpu": "training.micro_batch_size",
    "batch_size": "training.micro_batch_size",
    "micro_batch_size": "training.micro_batch_size",
    "gradient_accumulation_steps": "training.accumulation_steps",
    "gas": "training.accumulation_steps",
    "seed": "training.seed",
    "optimizer.params.lr": "optimizer.lr",
    "lr": "optimizer.lr",
    "optimizer.params.eps": "optimizer.eps",
    "adam_eps": "optimizer.eps",
    "optimizer.params.weight_decay": "optimizer.weight_decay",
    "weight_decay": "optimizer.weight_decay",
    "gradient_clipping": "optimizer.gradient_clipping",
    "clip_grad": "optimizer.gradient_clipping",
    "pipeline_model_parallel_size": "parallel.pipeline_stages",
    "zero_optimization.stage": "parallel.zero_stage",
    "zero_stage": "parallel.zero_stage",
    "save": "output.run_dir",
    "save_interval": "checkpoint.interval",
    "checkpoint_factor": "checkpoint.interval",
    "keep_last_n_checkpoints": "checkpoint.keep_last",
    "eval_interval": "evaluation.interval",
    "eval_iters": "evaluation.batches",
    "use_wandb": "logging.wandb",
    "wandb_project": "logging.wandb_project",
    "hostfile": "launch.hostfile",
    "launcher": "launch.launcher",
    "master_addr": "launch.master_addr",
    "master_port": "launch.master_port",
    "eod_mask_loss": "data.mask_document_ends",
    "reset_attention_mask": "data.isolate_documents",
}

# Theirs to ours, where a word means another one.
WORDS: dict[str, tuple[str, dict[Any, Any]]] = {
    "pos_emb": ("model.position", {"learned": "learned", "alibi": "alibi", "none": "none"}),
    "position_embedding_type": (
        "model.position",
        {"learned_absolute": "learned", "alibi": "alibi", "none": "none"},
    ),
    "no_weight_tying": ("model.tied_head", {True: False, False: True}),
    "untie_embeddings_and_output_weights": ("model.tied_head", {True: False}),
    "disable_bias_linear": ("model.biases", {True: False}),
    "activation": ("model.activation", {"gelu": "gelu", "relu": "relu", "swiglu": "swiglu"}),
    "swiglu": ("model.activation", {True: "swiglu"}),
    "norm": ("model.residual", {"layernorm": "pre_norm"}),
    "normalization": ("model.residual", {"LayerNorm": "pre_norm"}),
    "apply_residual_connection_post_layernorm": ("model.residual", {False: "pre_norm"}),
    "precision": ("precision", {"fp16": "fp16", "fp32": "fp32", "bfloat16": "bf16"}),
    "fp16": ("precision", {True: "fp16"}),
    "bf16": ("precision", {True: "bf16"}),
    "fp16.enabled": ("precision", {True: "fp16", False: "fp32"}),
    "bf16.enabled": ("precision", {True: "bf16", False: "fp32"}),
    "use_distributed_optimizer": ("parallel.zero_stage", {True: 1}),
    "zero_optimization.cpu_offload": ("parallel.offload", {True: "optimizer", False: "none"}),
    "lr_decay_style": (
        "schedule.name",
        {"cosine": "cosine", "linear": "linear", "constant": "constant", "WSD": "wsd"},
    ),
    "pack_impl": (
        "data.packing",
        {"packed": "stream", "pack_until_overflow": "until_overflow", "unpacked": "document"},
    ),
}

# What they assume where a configuration says nothing.
DEFAULTS = {
    "model.residual": "pre_norm",
    "model.position": "learned",
    "model.tied_head": True,
    "model.dropout": 0.1,
    "model.attention.dropout": 0.1,
    "optimizer.betas": [0.9, 0.999],
    "optimizer.weight_decay": 0.01,
    "parallel.zero_stage": 0,
    "evaluation.interval": 1000,
    "evaluation.batches": 100,
}

# Settings that change nothing that is learned, and need no option here, with the reason.
_KERNEL = "kernels are chosen by ops.backend"
_READER = "datasets are always memory-mapped"
NOT_NEEDED = {
    "data_impl": _READER,
    "mmap_warmup": _READER,
    "num_workers": "data.prefetch reads ahead",
    "distributed_backend": "follows the device",
    "scaled_upper_triang_masked_softmax_fusion": _KERNEL,
    "bias_gelu_fusion": _KERNEL,
    "use_flash_attn": _KERNEL,
    "attention_backend": _KERNEL,
    "transformer_impl": _KERNEL,
    "use_mcore_models": _KERNEL,
    "optimizer.type": "AdamW",
    "optimizer": "AdamW",
    "output_layer_parallelism": "layers are not split over ranks",
    "partition_activations": "layers are not split over ranks",
    "synchronize_each_layer": "changes nothing that is learned",
    "nproc_per_node": "deepy.py starts a rank per device",
    "nnodes": "launch.hostfile names the nodes",
    "node_rank": "the launcher numbers them",
    "log_interval": "every step is logged",
    "log_dir": "logs are in output.run_dir",
    "reset_position_ids": "data.isolate_documents resets learned positions; alibi needs none",
    "tokenizer_type": "data.tokenizer is a tokenizer.json",
    "checkpoint_scale": "checkpoint.interval is linear",
    "fp16.fp16": "precision decides",
    "fp16.type": "precision decides",
}
# Those of the above whose value must be the one that we have.
ONLY: dict[str, tuple[Any, ...]] = {
    "optimizer.type": ("Adam", "AdamW", "adam", "adamw", "cpu_adam"),
    "optimizer": ("adam",),
    "checkpoint_scale": ("linear",),
    "gpt_j_residual": (False,),
    "init_method": ("normal",),
    "output_layer_init_method": ("scaled_normal",),
    "model_parallel_size": (1,),
    "tensor_model_parallel_size": (1,),
    "context_parallel_size": (1,),
}

# Those that are reckoned with.
NUMBERS = (
    *("lr", "optimizer.params.lr", "min_lr", "adam_beta1", "adam_beta2"),
    *("train_iters", "train_samples", "lr_decay_iters", "lr_warmup_iters", "lr_wsd_decay_iters"),
    *("warmup", "lr_warmup_fraction", "train_batch_size", "global_batch_size", "hidden_size"),
    *("vocab_size", "padded_vocab_size", "make_vocab_size_divisible_by", "pipe_parallel_size"),
    *("model_parallel_size", "tensor_model_parallel_size"),
)
