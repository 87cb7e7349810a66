"""Make the starters from a folder of plain text.

    PYTHONPATH=tools python -m starters.make CORPUS OUT            # a GPT-2, a BERT and a T5; hours on two cores
    PYTHONPATH=tools python -m starters.make CORPUS OUT --only t5 --epochs 1

Files with ``valid`` in their name are held out. A run that was killed resumes from its last checkpoint when the same
command is run again. ``OUT/<name>/`` is then a checkpoint as ``save_pretrained`` writes it, in half precision, with a
model card and ``training.json``: the corpus, the loss curve, and the held-out scores compared with those of the same
architecture untrained.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from tokenizers import Tokenizer
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerFast,
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint

from demo.text2sql import make_text2sql
from fulltune.errors import FulltuneError
from fulltune.models.bundle import quiet
from fulltune.models.starters import folder
from fulltune.runtime.files import atomic_text, store_errors
from fulltune.runtime.kernels.allocator import keep_freed_pages
from fulltune.training.trainer import Trainer
from starters import corpus
from starters.card import Account, write_account
from starters.families import FAMILIES, VOCABULARY, WORDS, Family, Seeded, train_tokenizer

SEED = 17

#: Windows of the held-out text that are scored.
HELD_OUT_WINDOWS = 400

#: How often the tokenizer reads the generated SQL (70 kB), so that keywords are not spelled letter by letter.
SQL_WEIGHT = 40

console = Console(stderr=True)
app = typer.Typer(add_completion=False)


@app.command()
def make(
    corpus_folder: Annotated[Path, typer.Argument(metavar="CORPUS", help="Folder of .txt files.")],
    out: Annotated[Path, typer.Argument(help="Where checkpoints and starters go.")],
    only: Annotated[list[str], typer.Option(help="gpt2, bert or t5; all by default.")] = list(FAMILIES),  # noqa: B006
    epochs: Annotated[float, typer.Option(help="Times that the corpus is seen.")] = 2.0,
    save_steps: Annotated[int, typer.Option(help="Steps between checkpoints.")] = 100,
    bf16: Annotated[bool, typer.Option(help="Matrix products in bfloat16; the weights stay float32.")] = True,
    start: Annotated[Path | None, typer.Option(help="Starter of the same kind whose training is continued.")] = None,
) -> None:
    """Pretrain the starters; after a kill, resume from the last checkpoint."""
    try:
        for name in only:
            make_starter(name, corpus_folder, out, epochs=epochs, save_steps=save_steps, bf16=bf16, start=start)
    except FulltuneError as error:
        console.print(str(error), style="red")
        raise typer.Exit(1) from error


def make_starter(
    name: str,
    corpus_folder: Path,
    out: Path,
    *,
    epochs: float = 2.0,
    save_steps: int = 100,
    bf16: bool = True,
    start: Path | None = None,
) -> Path:
    """Pretrain one starter on a folder of text, or train another one further; returns its folder below ``out``.

    Raises:
        DataError: The folder has no text to learn from, or none to hold out.
        StoreError: Nothing can be written to ``out``.
    """
    family = FAMILIES[name]
    with store_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    found = corpus.find(corpus_folder)
    shared = shared_tokenizer(found, out) if start is None else Tokenizer.from_file(str(start / "tokenizer.json"))
    tokenizer = family.tokenizer(shared) if start is None else PreTrainedTokenizerFast.from_pretrained(start)
    train = windows(family, tokenizer, shared, found.train, out / "train.npy")
    held_out = windows(family, tokenizer, shared, found.held_out, out / "valid.npy").spread(HELD_OUT_WINDOWS)

    keep_freed_pages()
    set_seed(SEED)
    model = family.build(tokenizer)
    if start is not None:
        model.load_state_dict(type(model).from_pretrained(start, dtype=torch.float32).state_dict())
    if family.prepare is not None:
        family.prepare(model, torch.from_numpy(np.bincount(train.array, minlength=VOCABULARY)))
    checkpoints = out / f"{name}.checkpoints"
    trainer = pretrainer(model, family, tokenizer, (train, held_out), checkpoints, epochs, save_steps, bf16)
    untrained = held_out_loss(trainer, family, tokenizer)
    console.print(f"{name}: {model.num_parameters():,} parameters, {len(train):,} windows, untrained {untrained:.3f}")
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(checkpoints)) if checkpoints.exists() else None)

    target = out / name
    model.config.use_cache = True  # the trainer turned it off
    with quiet():
        model.half().save_pretrained(target)
        tokenizer.save_pretrained(target)
    model.float()  # the shipped weights are scored: rounded to half precision
    trained = held_out_loss(trainer, family, tokenizer)
    console.print(f"{name}: held-out loss {trained:.3f}")
    state = trainer.state
    account = Account(
        name=name,
        objective=family.objective,
        unit=family.unit,
        parameters=model.num_parameters(),
        corpus_sha256=found.sha256(),
        corpus_files=tuple(path.name for path in found.train),
        held_out_files=tuple(path.name for path in found.held_out),
        held_out_windows=len(held_out),
        windows=len(train),
        window=family.window,
        batch_size=family.batch,
        epochs=epochs,
        steps=state.max_steps,
        learning_rate=family.learning_rate,
        precision="bf16-mixed" if bf16 else "float32",
        untrained_loss=untrained,
        trained_loss=trained,
        tokens_per_byte=held_out.tokens_per_byte(shared),
        before=None if start is None else Account.model_validate_json((start / "training.json").read_bytes()),
        curve=tuple((int(log["step"]), float(log["loss"])) for log in state.log_history if "loss" in log),
    )
    write_account(target, account)
    return target


def make_untrained(name: str, out: Path) -> Path:
    """Save the architecture and the tokenizer of a starter with fresh weights, which a starter must beat."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder(name))
    set_seed(SEED)
    with quiet():
        FAMILIES[name].build(tokenizer).save_pretrained(out)
        tokenizer.save_pretrained(out)
    return out


def shared_tokenizer(found: corpus.Corpus, out: Path) -> Tokenizer:
    """Return the tokenizer that all starters share, trained once and cached in ``out``."""
    path = out / "tokenizer.json"
    if not path.exists():
        console.print("training the tokenizer")
        trained = train_tokenizer(chain(corpus.texts(found.train), _statements()))
        atomic_text(path, trained.to_str())
    return Tokenizer.from_file(str(path))


def _statements() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        rows = make_text2sql(folder)["train"]
    return (row["sql"] for _ in range(SQL_WEIGHT) for row in rows)


def windows(
    family: Family, tokenizer: PreTrainedTokenizerFast, shared: Tokenizer, files: Sequence[Path], cache: Path
) -> corpus.Windows:
    """Return the files as windows, framed as the family frames a text."""
    framed = [tokenizer.cls_token_id, tokenizer.sep_token_id] if family.name == "bert" else []
    return corpus.Windows(corpus.tokens(files, shared, cache, end=WORDS), family.window, framed[:1], framed[1:])


def pretrainer(
    model: PreTrainedModel,
    family: Family,
    tokenizer: PreTrainedTokenizerFast,
    data: tuple[corpus.Windows, corpus.Windows],
    checkpoints: Path,
    epochs: float,
    save_steps: int,
    bf16: bool,
) -> Trainer:
    """Return a trainer for one starter, with windows to train on and windows held out."""
    args = TrainingArguments(
        output_dir=str(checkpoints),
        num_train_epochs=epochs,
        per_device_train_batch_size=family.batch,
        per_device_eval_batch_size=family.batch,
        learning_rate=family.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=0.05,
        weight_decay=0.1,
        adam_beta2=0.98,
        max_grad_norm=1.0,
        bf16=bf16,
        use_cpu=not torch.accelerator.is_available(),
        save_steps=save_steps,
        save_total_limit=2,
        logging_steps=20,
        disable_tqdm=True,
        report_to="none",
        seed=SEED,
        remove_unused_columns=False,
    )
    collator = Seeded(family.collator(tokenizer))
    trainer = Trainer(
        model=model,
        args=args,
        data_collator=collator,
        train_dataset=data[0],
        eval_dataset=data[1],
        callbacks=[Progress(collator)],
        optimizers=(_optimizer(model, family, args), None),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _optimizer(model: PreTrainedModel, family: Family, args: TrainingArguments) -> torch.optim.Optimizer | None:
    """Return AdamW with a separate rate for the embeddings, or None (the trainer's own) without one."""
    if family.embedding_rate == 1:
        return None
    embeddings: torch.nn.Parameter = model.get_input_embeddings().weight  # type: ignore[assignment]
    rest = [weight for weight in model.parameters() if weight is not embeddings]
    own = {"params": [embeddings], "lr": args.learning_rate * family.embedding_rate}
    groups: list[dict[str, Any]] = [{"params": rest}, own]
    betas = args.adam_beta1, args.adam_beta2
    return torch.optim.AdamW(groups, lr=args.learning_rate, betas=betas, weight_decay=args.weight_decay, fused=True)


def held_out_loss(trainer: Trainer, family: Family, tokenizer: PreTrainedTokenizerFast) -> float:
    """Return nats per unit of the family's loss, over the held-out windows; always the same masks and spans."""
    learned = trainer.data_collator
    trainer.data_collator = Seeded((family.scored or family.collator)(tokenizer))
    try:
        return float(trainer.evaluate()["eval_loss"])
    finally:
        trainer.data_collator = learned


class Progress(TrainerCallback):
    """Set the collator's epoch and print the loss; the curve is in the trainer's state, like the checkpoints."""

    def __init__(self, collator: Seeded) -> None:
        self.collator = collator

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.collator.epoch = int(state.epoch or 0)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if logs and "loss" in logs:
            console.print(f"step {state.global_step} of {state.max_steps}: loss {float(logs['loss']):.3f}")


if __name__ == "__main__":
    app()
