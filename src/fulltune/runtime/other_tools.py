"""Translate names of other training tools into config keys, for messages: transformers, TRL, PEFT, Axolotl, Keras."""

from __future__ import annotations

from fulltune.errors import closest

#: Config key, and what other tools call it.
_NAMES = {
    "model": "base_model model_name model_name_or_path pretrained_model_name_or_path model_id model_path checkpoint",
    "method": "finetuning_type peft peft_type peft_method training_type use_peft use_lora",
    "task": "task_type problem_type task_name",
    "data": "dataset datasets data_config data_args dataset_config",
    "data.train": (
        "train_file train_data train_dataset train_path data_path dataset_path data_files dataset_name train_set"
    ),
    "data.valid": (
        "validation_file val_file val_data valid_file valid_data dev_file dev validation val "
        "validation_dataset validation_data val_dataset"
    ),
    "data.eval": (
        "test_file test_data eval_file eval_data test eval_dataset test_dataset test_size val_set_size "
        "val_size validation_split eval_split test_split"
    ),
    "data.text": "text_column text_field text_col dataset_text_field content_column input_text",
    "data.label": "label_column label_col label_field target_column labels_column y",
    "data.source": "source_column input_column",
    "data.target": "target_col output_column summary_column",
    "data.prompt": "prompt_column instruction_column",
    "data.completion": "completion_column response_column",
    "data.messages": "messages_column field_messages chat_column conversation_column conversations_column",
    "data.group": "group_column groups group_by",
    "data.id": "id_column index_column",
    "data.instruction": "source_prefix prefix system_prompt prompt_template",
    "data.limit": "max_train_samples max_samples train_size n_train num_train_samples",
    "data.eval_limit": "max_eval_samples max_test_samples max_val_samples",
    "data.max_length": (
        "max_seq_length max_seq_len seq_len sequence_len sequence_length cutoff_len model_max_length "
        "block_size context_length max_source_length max_input_length maxlen"
    ),
    "data.max_target_length": "generation_max_length max_output_length",
    "data.databases": "database db db_path sqlite database_path",
    "train": "training training_args training_arguments trainer_args hyperparameters hparams train_args args",
    "train.epochs": "num_train_epochs num_epochs n_epochs max_epochs epoch nb_epochs",
    "train.max_steps": "steps num_steps num_training_steps max_iters total_steps",
    "train.batch_size": (
        "per_device_train_batch_size per_gpu_train_batch_size train_batch_size micro_batch_size batch bs batchsize"
    ),
    "train.accumulation": (
        "gradient_accumulation_steps gradient_accumulation grad_accum accumulate_grad_batches "
        "accumulation_steps grad_acc"
    ),
    "train.learning_rate": "lr init_lr base_lr max_lr initial_learning_rate rate step_size",
    "train.scheduler": "lr_scheduler_type lr_scheduler schedule scheduler_type lr_schedule",
    "train.warmup": "warmup_ratio warmup_steps num_warmup_steps warmup_proportion",
    "train.weight_decay": "wd decay adam_weight_decay",
    "train.max_grad_norm": "gradient_clip_val gradient_clipping grad_clip clip_grad_norm clipnorm max_gradient_norm",
    "train.label_smoothing": "label_smoothing_factor",
    "train.class_weights": "class_weight balanced weighted_loss",
    "train.optimizer": "optim optimizer_type",
    "train.gradient_checkpointing": "activation_checkpointing use_gradient_checkpointing checkpoint_activations",
    "train.evaluations": (
        "eval_strategy evaluation_strategy eval_steps evals_per_epoch val_check_interval "
        "evaluate_during_training eval_on_start do_eval eval_every"
    ),
    "train.seed": "random_state random_seed rng_seed",
    "evaluation.batch_size": "per_device_eval_batch_size per_gpu_eval_batch_size eval_batch_size",
    "evaluation.max_new_tokens": "max_generated_tokens generation_max_new_tokens",
    "guards.overfitting": "early_stopping early_stop",
    "guards.overfitting.patience": "early_stopping_patience",
    "guards.overfitting.metric": "metric_for_best_model monitor best_metric",
    "regularize.dropout": "hidden_dropout hidden_dropout_prob",
    "regularize.layer_decay": "layerwise_lr_decay llrd layer_wise_decay",
    "checkpoints.every": "save_steps save_strategy saves_per_epoch save_every",
    "checkpoints.keep": "save_total_limit max_checkpoints",
    "speed.packing": "sample_packing",
    "speed.precision": "bf16 fp16 tf32 mixed_precision torch_dtype dtype",
    "adapter": "peft_config lora lora_config adapters",
    "adapter.rank": "lora_r lora_rank r",
    "adapter.alpha": "lora_alpha",
    "adapter.dropout": "lora_dropout",
    "adapter.targets": "target_modules lora_target_modules lora_target lora_target_linear",
    "trainer.report_to": "report_to logging loggers wandb use_wandb wandb_project tensorboard",
    "trainer.deepspeed": "deepspeed",
    "trainer.fsdp": "fsdp fsdp_config",
    "trainer.dataloader_num_workers": "num_workers dataloader_num_workers workers",
    "trainer.use_cpu": "no_cuda use_cpu device",
    "trainer.train_sampling_strategy": "group_by_length length_column_name",
}
_KEYS = {name: key for key, names in _NAMES.items() for name in names.split()}

#: Options without a key, and the way to get the same.
_INSTEAD = {
    **dict.fromkeys(("output_dir", "save_dir", "out_dir", "output", "out", "logging_dir"), "use the option --out DIR"),
    **dict.fromkeys(("resume_from_checkpoint", "resume"), "use `fulltune run --resume RUN`"),
    **dict.fromkeys(("push_to_hub", "hub_model_id", "hub_token"), "use `fulltune models export NAME --push REPO`"),
    **dict.fromkeys(("tokenizer", "tokenizer_name", "tokenizer_type"), "remove it: the model's tokenizer is used"),
    **dict.fromkeys(("num_labels", "n_classes", "num_classes"), "remove it: classes are those of the data"),
    **dict.fromkeys(("load_in_4bit", "load_in_8bit", "quantization"), "write `method: qlora`"),
    **dict.fromkeys(("do_train", "do_predict"), "remove it: `fulltune run` trains and evaluates"),
    "load_best_model_at_end": "remove it: with data.valid the best step is kept",
    "overwrite_output_dir": "remove it: every run has its own folder",
    "save_safetensors": "remove it: weights are always written as safetensors",
    "trust_remote_code": "remove it: code of checkpoints is never run",
}


def key_for(name: str) -> str:
    """Return the config key that another tool calls by this name, or an empty text."""
    return _KEYS.get(_plain(name), "")


def instead_of(name: str) -> str:
    """Return what to do instead of an option of another tool, as an instruction, or an empty text."""
    plain = _plain(name)
    return f"write it as {_KEYS[plain]}" if plain in _KEYS else _INSTEAD.get(plain, "")


def similar_to(name: str) -> str:
    """Return the config key of the option of another tool whose name is closest, or an empty text."""
    return _KEYS.get(closest(_plain(name), _KEYS), "")


def _plain(name: str) -> str:
    return name.strip().lstrip("-").lower().replace("-", "_")
