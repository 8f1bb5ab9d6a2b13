"""What other tools call it: one sentence per foreign key name, saying what to write here instead.

The names are those of Hugging Face's Trainer, TRL, PEFT, Axolotl, LLaMA-Factory and nanoGPT, and of
the five systems that headway grew from ("seed").
"""

from __future__ import annotations

from collections.abc import Mapping

_HORIZON_EPOCHS = "write train.horizon: {epochs: N}"
_HORIZON_STEPS = "write train.horizon: {steps: N}"
_BATCH = (
    "write train.batch_size: rows per optimizer step over all GPUs (per device × accumulation × "
    "GPUs); hardware.microbatch_size is what one GPU computes at once"
)
_ACCUMULATION = (
    "write nothing: accumulation follows from train.batch_size, hardware.microbatch_size and the "
    "number of GPUs"
)
_WARMUP = "write train.warmup: below 1 a share of the steps (0.03), from 1 on a number of steps"
_SCHEDULE = "write train.schedule: linear, cosine, constant or wsd"
_MODEL = "write task.base_model"
_QLORA = "write task.tuning: {kind: qlora}"
_LORA = "write task.tuning: {kind: lora, rank: 16, alpha: 32}"
_RANK = "write task.tuning.rank, with task.tuning.kind: lora or qlora"
_ALPHA = "write task.tuning.alpha, with task.tuning.kind: lora or qlora"
_DROPOUT = "write task.tuning.dropout, with task.tuning.kind: lora or qlora"
_TARGETS = "write task.tuning.target_modules: all-linear, or a list of module names"
_LENGTH = "write task.max_tokens (sft) or task.sequence_tokens (pretrain), in tokens"
_PRECISION = "write hardware.precision: bf16, fp32 or bf16_pure"
_FP16 = f"{_PRECISION}; fp16 overflows and is not offered"
_CHECKPOINTING = "write hardware.activation_checkpointing: auto, true or false"
_SAVE_STEPS = "write checkpoint.every_steps (and checkpoint.every_minutes)"
_KEEP = "write checkpoint.keep_last and checkpoint.keep_best"
_EVAL_STEPS = "write evaluate.every_steps"
_EVAL = "write an evaluate section ({every_steps: N}); leave it out for no evaluation"
_LOG = "write nothing: every step is in the journal"
_TRACK = "write track: [wandb], [tensorboard] or both; every step is in journal.jsonl anyway"
_ROOT = "write run.root; the run is saved in run.root/run.name"
_NAME = "write run.name"
_OPTIMIZER = "write train.optimizer: adamw, adamw_8bit or paged_adamw_8bit"
_BETAS = "write train.betas: [0.9, 0.999]"
_CLIP = "write train.max_grad_norm"
_DATA = "write task.data.train (and task.data.eval)"
_SUBSET = "write task.data: name a smaller file, or shorten the run with train.horizon"
_EVAL_ROWS = "write evaluate.max_rows"
_TRAIN_ON = "write task.data.train_on: assistant or all"
_TEMPLATE = "write task.data.chat_template, or nothing: the model's own template is used"
_SPECIAL = "write task.special_tokens"
_SHAPE = "write it in task.model, the model's shape (recipe pretrain); sft takes it from the model"
_CONTINUE = "write nothing: `headway train` of the same config continues the newest good checkpoint"
_CLONE = "clone the code, then: headway train CONFIG"
_PAGE = "no server is needed: `headway report` writes one HTML file"
_STATUS = "see `headway status`"
_SPIKE = "write monitor.on_spike: rollback; a spike is judged by the run's own noise"
_SECRET = "secrets stay in the environment, never in a config"
_WORKERS = "write nothing: data is prepared ahead of the step by itself"
_GPUS = "write nothing: start with torchrun --nproc-per-node; train.batch_size is the whole batch"
_MIX = "write task.data.train as a list of sources with their weights"
_EARLY = "write evaluate.early_stop: {patience: N, min_delta: X}"
_COST = "write cost: {gpu: NAME, usd_per_hour: X, budget_usd: Y}"
_UPLOAD = "bucket upload runs beside training: write upload: {to: URL}, or leave it out for none"
_SHARDING = "write nothing: sharding over GPUs is not part of this version; torchrun runs DDP"
_SECTION = (
    "headway's sections are run, train, hardware, evaluate, checkpoint, upload, cost and task"
)

HF, TRL, AXO, FAC, GPT = "HF Trainer", "TRL", "Axolotl", "LLaMA-Factory", "nanoGPT"
PEFT, S000, S001, S002, S004 = "PEFT", "seed 000", "seed 001", "seed 002", "seed 004"

NAMES: Mapping[str, tuple[str, str]] = {
    # how long
    "num_train_epochs": (HF, _HORIZON_EPOCHS),
    "num_epochs": (AXO, _HORIZON_EPOCHS),
    "epochs": ("another tool", _HORIZON_EPOCHS),
    "max_steps": (HF, _HORIZON_STEPS),
    "max_iters": (GPT, _HORIZON_STEPS),
    "num_steps": ("another tool", _HORIZON_STEPS),
    "train_steps": ("another tool", _HORIZON_STEPS),
    # batch
    "per_device_train_batch_size": (HF, _BATCH),
    "micro_batch_size": (AXO, _BATCH),
    "train_batch_size": (HF, _BATCH),
    "gradient_accumulation_steps": (HF, _ACCUMULATION),
    "accumulation_steps": ("another tool", _ACCUMULATION),
    "per_device_eval_batch_size": (HF, "write nothing: evaluation uses hardware.microbatch_size"),
    "eval_batch_size": (AXO, "write nothing: evaluation uses hardware.microbatch_size"),
    "auto_find_batch_size": (HF, "write hardware.microbatch_size: auto"),
    "group_by_length": (HF, "write task.packing: true; packing wastes less than grouping"),
    "train_sampling_strategy": (HF, "write task.packing: true; packing wastes less than grouping"),
    # learning rate
    "lr": ("another tool", "write train.learning_rate"),
    "warmup_ratio": (HF, _WARMUP),
    "warmup_steps": (HF, _WARMUP),
    "warmup_iters": (GPT, _WARMUP),
    "num_warmup_steps": (HF, _WARMUP),
    "lr_scheduler_type": (HF, _SCHEDULE),
    "lr_scheduler": (AXO, _SCHEDULE),
    "lr_scheduler_kwargs": (HF, "write train.min_learning_rate_ratio and train.decay"),
    "cosine_min_lr_ratio": (AXO, "write train.min_learning_rate_ratio"),
    "min_lr": (GPT, "write train.min_learning_rate_ratio: a share of the peak"),
    "min_lr_ratio": (HF, "write train.min_learning_rate_ratio"),
    "decay_lr": (GPT, _SCHEDULE),
    "lr_decay_iters": (GPT, _SCHEDULE),
    # optimizer
    "optim": (HF, _OPTIMIZER),
    "adam_beta1": (HF, _BETAS),
    "adam_beta2": (HF, _BETAS),
    "beta1": (GPT, _BETAS),
    "beta2": (GPT, _BETAS),
    "adam_epsilon": (HF, "write train.eps"),
    "grad_clip": (GPT, _CLIP),
    "gradient_clipping": (AXO, _CLIP),
    "random_state": ("scikit-learn and Unsloth", "write run.seed"),
    "data_seed": (HF, "write run.seed: it decides the data order too"),
    # model and tuning
    "model_name_or_path": (HF, _MODEL),
    "model_name": (S000, _MODEL),
    "base_model": (AXO, _MODEL),
    "base_model_config": (AXO, _MODEL),
    "model_id": ("another tool", _MODEL),
    "pretrained_model_name_or_path": (HF, _MODEL),
    "model_revision": (TRL, "write task.revision"),
    "tokenizer_name": (HF, "write task.tokenizer (pretrain); sft uses the tokenizer of the model"),
    "tokenizer_config": (AXO, "write task.tokenizer (pretrain); sft uses the model's tokenizer"),
    "adapter": (AXO, "write task.tuning.kind: lora or qlora"),
    "adapter_name_or_path": (FAC, "start from an exported, merged model: write task.base_model"),
    "finetuning_type": (FAC, "write task.tuning.kind: full, lora or qlora"),
    "use_lora": (S002, _LORA),
    "use_peft": (TRL, _LORA),
    "lora": (S002, _LORA),
    "peft_config": (TRL, _LORA),
    "use_qlora": (S001, f"{_QLORA} instead of true, {{kind: lora}} instead of false"),
    "load_in_4bit": (HF, f"{_QLORA} instead of true"),
    "load_in_8bit": (HF, f"8-bit weights are not offered; {_QLORA}"),
    "quantization_bit": (FAC, f"{_QLORA} instead of 4"),
    "quantization_method": (FAC, _QLORA),
    "bnb_4bit_quant_type": (HF, f"{_QLORA}: it is NF4 with double quantization"),
    "bnb_4bit_compute_dtype": (HF, f"{_QLORA}; hardware.precision is what it computes in"),
    "bnb_4bit_use_double_quant": (HF, f"{_QLORA}: it is NF4 with double quantization"),
    "double_quantization": (FAC, f"{_QLORA}: it is NF4 with double quantization"),
    "r": (PEFT, _RANK),
    "lora_r": (AXO, _RANK),
    "lora_rank": (FAC, _RANK),
    "lora_alpha": (PEFT, _ALPHA),
    "lora_dropout": (PEFT, _DROPOUT),
    "lora_target": (FAC, _TARGETS),
    "lora_target_modules": (AXO, _TARGETS),
    "lora_target_linear": (AXO, f"{_TARGETS}; all-linear is the default"),
    "modules_to_save": (PEFT, "write task.special_tokens: the rows of new tokens are trained"),
    "additional_target": (FAC, "write task.special_tokens: the rows of new tokens are trained"),
    "lora_modules_to_save": (AXO, "write task.special_tokens: their rows are trained"),
    "stage": (FAC, "write recipe: sft or pretrain"),
    "do_train": (HF, "write nothing: `headway train` trains, `headway evaluate` evaluates"),
    "do_eval": (HF, _EVAL),
    # sequences and loss
    "max_seq_length": (TRL, _LENGTH),
    "max_length": (TRL, _LENGTH),
    "cutoff_len": (FAC, _LENGTH),
    "sequence_len": (AXO, _LENGTH),
    "seq_length": ("another tool", _LENGTH),
    "sequence_length": ("another tool", _LENGTH),
    "model_max_length": (HF, _LENGTH),
    "block_size": (GPT, _LENGTH),
    "max_steps_per_example": (S002, "long rows: write task.max_tokens and task.data.overlong"),
    "sample_packing": (AXO, "write task.packing: true"),
    "packing": (TRL, "write task.packing: true"),
    "eval_packing": (TRL, "write task.packing: it holds for both"),
    "pad_to_sequence_len": (AXO, "write nothing: padding is never trained on nor counted"),
    "neat_packing": (FAC, "write task.packing: true; examples never see each other"),
    "train_on_inputs": (AXO, f"{_TRAIN_ON} (all instead of true)"),
    "train_on_prompt": (FAC, f"{_TRAIN_ON} (all instead of true)"),
    "assistant_only_loss": (TRL, f"{_TRAIN_ON} (assistant instead of true)"),
    "completion_only_loss": (TRL, f"{_TRAIN_ON} (assistant instead of true)"),
    "mask_history": (FAC, _TRAIN_ON),
    "template": (FAC, _TEMPLATE),
    "chat_template_path": (TRL, _TEMPLATE),
    "new_special_tokens": (FAC, _SPECIAL),
    "add_special_tokens": (FAC, _SPECIAL),
    "tokens": (AXO, _SPECIAL),
    "special_tokens": (AXO, f"{_SPECIAL}, a list; the model's own stay as they are"),
    # data
    "dataset_name": (HF, _DATA),
    "dataset": (FAC, _DATA),
    "datasets": (AXO, _DATA),
    "dataset_dir": (FAC, _DATA),
    "dataset_path": ("another tool", _DATA),
    "train_file": (HF, _DATA),
    "validation_file": (HF, "write task.data.eval"),
    "eval_dataset": (FAC, "write task.data.eval"),
    "test_datasets": (AXO, "write task.data.eval"),
    "val_set_size": (AXO, "write task.data.eval"),
    "val_size": (FAC, "write task.data.eval"),
    "dataset_text_field": (TRL, "write nothing: text, messages, prompt/completion are recognised"),
    "max_samples": (FAC, _SUBSET),
    "train_subset": (S000, _SUBSET),
    "max_train_samples": (HF, _SUBSET),
    "max_train_files": (S004, _SUBSET),
    "max_files": (S004, _SUBSET),
    "eval_subset": (S000, _EVAL_ROWS),
    "max_eval_samples": (HF, _EVAL_ROWS),
    "max_eval_batches": (S002, f"{_EVAL_ROWS}: rows, not batches"),
    "eval_iters": (GPT, f"{_EVAL_ROWS}: rows, not batches"),
    "interleave_probs": (FAC, _MIX),
    "mix_strategy": (FAC, _MIX),
    "use_prm800k": (S002, f"{_MIX}; leave a source out"),
    "use_reveal": (S002, f"{_MIX}; leave a source out"),
    "use_eqasc": (S002, f"{_MIX}; leave a source out"),
    "prm800k_weight": (S002, _MIX),
    "reveal_weight": (S002, _MIX),
    "eqasc_weight": (S002, _MIX),
    "dataset_num_proc": (TRL, _WORKERS),
    "preprocessing_num_workers": (FAC, _WORKERS),
    "dataloader_num_workers": (HF, _WORKERS),
    "dataset_prepared_path": (AXO, _WORKERS),
    # hardware
    "bf16": (HF, f"{_PRECISION} (bf16 instead of true)"),
    "fp16": (HF, _FP16),
    "tf32": (HF, f"{_PRECISION}; TF32 is not a setting"),
    "pure_bf16": (FAC, "write hardware.precision: bf16_pure"),
    "mixed_precision": ("Accelerate", _PRECISION),
    "torch_dtype": (HF, _PRECISION),
    "dtype": (GPT, _PRECISION),
    "gradient_checkpointing": (HF, _CHECKPOINTING),
    "disable_gradient_checkpointing": (FAC, _CHECKPOINTING),
    "use_gradient_checkpointing": ("Unsloth", _CHECKPOINTING),
    "torch_compile": (HF, "write hardware.compile: true"),
    "flash_attention": (AXO, "write nothing: the fastest attention of the machine is used"),
    "flash_attn": (FAC, "write nothing: the fastest attention of the machine is used"),
    "attn_implementation": (HF, "write nothing: the fastest attention of the machine is used"),
    "use_liger_kernel": (HF, "write nothing: logits of unsupervised tokens are never computed"),
    "use_cpu": (HF, "write hardware.device: cpu"),
    "no_cuda": (HF, "write hardware.device: cpu"),
    "full_determinism": (HF, "write hardware.deterministic: true"),
    "nproc_per_node": ("torchrun", _GPUS),
    "num_gpus": ("another tool", _GPUS),
    "num_processes": ("Accelerate", _GPUS),
    "deepspeed": (HF, _SHARDING),
    "fsdp": (HF, _SHARDING),
    "fsdp_config": (HF, _SHARDING),
    "ddp_timeout": (HF, "write nothing: a rank that hangs ends the run"),
    # saving and evaluating
    "save_steps": (HF, _SAVE_STEPS),
    "save_strategy": (HF, _SAVE_STEPS),
    "saves_per_epoch": (AXO, _SAVE_STEPS),
    "save_total_limit": (HF, _KEEP),
    "load_best_model_at_end": (
        HF,
        "write checkpoint.keep_best; `headway export --step best` takes it",
    ),
    "metric_for_best_model": (HF, "write checkpoint.keep_best: the best has the lowest loss"),
    "save_only_model": (HF, "write nothing: a checkpoint always holds all that a resume needs"),
    "save_safetensors": (HF, "write nothing: it is always safetensors"),
    "always_save_checkpoint": (GPT, _SAVE_STEPS),
    "eval_steps": (HF, _EVAL_STEPS),
    "eval_interval": (GPT, _EVAL_STEPS),
    "evals_per_epoch": (AXO, _EVAL_STEPS),
    "evaluation_strategy": (HF, _EVAL),
    "eval_strategy": (HF, _EVAL),
    "eval_on_start": (HF, "write evaluate.at_start: true"),
    "early_stopping_patience": (AXO, _EARLY),
    "early_stopping_threshold": (HF, _EARLY),
    "logging_steps": (HF, _LOG),
    "logging_strategy": (HF, _LOG),
    "logging_dir": (HF, _LOG),
    "log_interval": (GPT, _LOG),
    "plot_loss": (FAC, "write nothing: `headway report` draws the curves"),
    "output_dir": (HF, _ROOT),
    "out_dir": (GPT, _ROOT),
    "logdir": ("TensorBoard", "the run's directory is run.root/run.name; see `headway report`"),
    "overwrite_output_dir": (FAC, "write nothing: `headway train --fresh` starts over"),
    "run_name": (HF, _NAME),
    "experiment_name": (S000, _NAME),
    "resume_from_checkpoint": (HF, _CONTINUE),
    "auto_resume_from_checkpoints": (AXO, _CONTINUE),
    "resume": (S000, _CONTINUE),
    "init_from": (GPT, _CONTINUE),
    "config": (
        "another tool",
        "name the file itself: headway train CONFIG; see also extends",
    ),
    # reporting, money, buckets
    "loss_watchdog_threshold": (AXO, _SPIKE),
    "loss_watchdog_patience": (AXO, _SPIKE),
    "logging_nan_inf_filter": (HF, "write monitor.non_finite: {refuse_steps: 3}; NaN is never 0"),
    "report_to": (HF, _TRACK),
    "report_to_wandb": (S000, _TRACK),
    "wandb_project": (AXO, "write track: [{wandb: {project: NAME}}]"),
    "wandb_entity": (AXO, "write track: [{wandb: {entity: NAME}}]"),
    "wandb_name": (AXO, f"{_NAME}: the W&B run is named after it"),
    "wandb_log": (GPT, _TRACK),
    "use_wandb": ("another tool", _TRACK),
    "use_tensorboard": (AXO, _TRACK),
    "budget_cap": (S000, "write cost.budget_usd"),
    "gpu_hourly_rate": (S000, "write cost.usd_per_hour"),
    "gpu_type": (S000, _COST),
    "push_to_hub": (HF, "write nothing: `headway export` writes the weights to a directory"),
    "hub_model_id": (HF, "write nothing: `headway export` writes the weights to a directory"),
    "no_background_upload": (S004, _UPLOAD),
    "hf_token": ("another tool", f"{_SECRET} (HF_TOKEN)"),
    "hub_token": (HF, f"{_SECRET} (HF_TOKEN)"),
    "wandb_api_key": (S000, f"{_SECRET} (WANDB_API_KEY)"),
    "trust_remote_code": (HF, "write nothing: nothing that is loaded may run code"),
    "git_repo": (S000, f"write nothing: {_CLONE}"),
    "git_branch": (S000, f"write nothing: {_CLONE}"),
    "config_path": (S000, f"write nothing: {_CLONE}"),
    "host": ("TensorBoard", _PAGE),
    "port": ("TensorBoard", _PAGE),
    "refresh": (S004, _STATUS),
    "logs_only": (S004, _STATUS),
    "once": (S004, _STATUS),
    "save": (S004, "`headway checkpoints plot` says where it drew the curves; see its --help"),
    # shapes
    "hidden_size": (HF, _SHAPE),
    "num_hidden_layers": (HF, _SHAPE),
    "num_layers": (S004, _SHAPE),
    "num_attention_heads": (HF, _SHAPE),
    "intermediate_size": (HF, _SHAPE),
    "max_position_embeddings": (HF, _SHAPE),
    "vocab_size": (HF, "write nothing: it is the size of task.tokenizer"),
    "n_layer": (GPT, _SHAPE),
    "n_head": (GPT, _SHAPE),
    "n_embd": (GPT, _SHAPE),
    # sections
    "training": (S001, f"write train; {_SECTION}"),
    "model": (S001, f"write {_MODEL[6:]} and task.tuning; {_SECTION}"),
    "data": (S002, f"write task.data; {_SECTION}"),
    "evaluation": ("another tool", f"write evaluate; {_SECTION}"),
    "logging": ("another tool", f"{_LOG}; {_SECTION}"),
}

VALUES: Mapping[tuple[str, str], str] = {
    ("optimizer", "adamw_torch"): "write adamw",
    ("optimizer", "adamw_torch_fused"): "write adamw (it is fused)",
    ("optimizer", "adamw_hf"): "write adamw",
    ("optimizer", "adam"): "write adamw",
    ("optimizer", "adamw_bnb_8bit"): "write adamw_8bit",
    ("optimizer", "paged_adamw_32bit"): "write adamw or paged_adamw_8bit",
    ("schedule", "constant_with_warmup"): "write constant, with train.warmup",
    ("schedule", "cosine_with_min_lr"): "write cosine, with train.min_learning_rate_ratio",
    ("schedule", "warmup_stable_decay"): "write wsd",
    ("schedule", "cosine_with_restarts"): "restarts are not offered; write cosine",
    ("precision", "fp16"): "write bf16; fp16 overflows and is not offered",
    ("precision", "float16"): "write bf16; fp16 overflows and is not offered",
    ("precision", "bfloat16"): "write bf16",
    ("precision", "float32"): "write fp32",
    ("precision", "no"): "write fp32",
    ("precision", "true"): "write bf16",
    ("device", "gpu"): "write cuda",
    ("steps", "-1"): "leave it out, and write epochs or tokens",
}
"""(key, another tool's value in lower case) -> what to write."""


def translate(name: str) -> str | None:
    """What to write for another tool's key or flag (``--num-epochs``), or None if not known."""
    found = NAMES.get(name.lstrip("-").replace("-", "_").lower())
    if found is None:
        return None
    tool, says = found
    return f"{says} ({name} is {tool}'s name)"
