"""Fine-tune a decoder with the script of a typical tutorial; only ``Trainer`` is imported from fulltune.

python examples/classic_tutorial.py gpt2
"""

import sys

from transformers import AutoModelForCausalLM, AutoTokenizer, TrainingArguments

from fulltune import Trainer

model_name = sys.argv[1] if len(sys.argv) > 1 else "gpt2"

train_texts = [
    "Once upon a time an old man lived by the sea.",
    "He had three sons.",
    "The eldest went into the forest and met a fox, and the fox asked him for bread.",
    "He gave her none, and he never came home.",
    "The youngest shared his bread, and the fox showed him the way.",
    "So the youngest son became king.",
]

tokenizer = AutoTokenizer.from_pretrained(model_name)
tokenizer.pad_token = tokenizer.eos_token
model = AutoModelForCausalLM.from_pretrained(model_name)

train_dataset = tokenizer(train_texts, truncation=True, padding=True)

training_args = TrainingArguments(output_dir="results", per_device_train_batch_size=2, num_train_epochs=3)
trainer = Trainer(model=model, args=training_args, train_dataset=train_dataset)
trainer.train()
trainer.save_model("results")
