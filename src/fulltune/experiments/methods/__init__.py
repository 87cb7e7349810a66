"""Full fine-tuning, LoRA, QLoRA and prompt tuning under one protocol."""
