"""The arguments of general distillation."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from tinybert_ds.arguments.common import DistillationArguments, option
from tinybert_ds.errors import ConfigError

_DEFAULT_LENGTH = 128
_SHORTEST_LENGTH = 8


@dataclass(frozen=True, kw_only=True)
class GeneralDistillArguments(DistillationArguments):
    """General distillation: learn from a pre-trained teacher on unlabelled text."""

    pregenerated_data: list[str] = field(
        metadata={
            "help": "Directories of shards made by data_tools/pregenerate_training_data.py. Several are read as one, "
            "each to its end; as DIR=WEIGHT ... they give these shares of the samples, and an epoch ends with the "
            "first that ends."
        }
    )
    teacher_model: str = option("Hugging Face directory of the pre-trained teacher.")
    student_model: list[str] = option(
        "The student: a config.json, a directory with one, a shipped name (4L_312, 6L_768, 3L_192), or with "
        "--continue_train a directory with weights. Given several times, the students learn from one teacher pass, "
        "each in a directory of its own name inside --output_dir.",
        action="extend",
    )
    continue_train: bool = option("Start from the weights in --student_model.", False)
    init_embeddings: Literal["random", "svd"] = option(
        "Embeddings of a student that starts without weights: random, or the leading singular vectors of the "
        "teacher's.",
        "random",
    )
    max_seq_length: int | None = option(
        "Longest sample in tokens, [CLS] and [SEP] included. Default: as the shards were made.", None
    )
    phases: str | None = option(
        "Sequence lengths one after the other and their shares of the steps, such as 128:0.9,512:0.1, instead of "
        "--max_seq_length. --train_batch_size is that of the first; the others have as many tokens in a batch. Epochs "
        "are counted at the first length.",
        None,
    )
    max_train_samples: int | None = option(
        "An epoch ends after so many samples, other ones in each epoch. Default: all.", None
    )
    verify_data: bool = option(
        "Check the hashes of all shards in the background, once on each host; the first damaged one stops the run.",
        False,
    )
    eval_step: int | None = option("Published name of --save_steps in this command.", None)
    eval_fraction: float = option("Share of documents held out for eval_loss; 0: none.", 0.005)
    eval_steps: int | None = option("Steps between two evaluations of eval_loss. Default: --save_steps.", None)
    one_seq: bool = option("No random second sentences. Default: as the shards were made.", False)
    full_sentences: bool = option(
        "Fill samples with whole sentences of one document after the other; no sentence pairs. Default: as the shards "
        "were made.",
        False,
    )
    short_seq_prob: float | None = option(
        "Share of documents cut to a random shorter length. Default: as the shards were made.", None
    )
    masked_lm_prob: float | None = option(
        "Share of tokens masked, anew in every epoch; 0: none. Default: as the shards were made.", None
    )
    max_predictions_per_seq: int | None = option(
        "Most masked tokens in a sample. Default: as the shards were made.", None
    )
    do_whole_word_mask: bool = option("Mask whole words. Default: as the shards were made.", False)
    reduce_memory: bool = option("Means nothing any more: shards are always memory-mapped.", False)

    @property
    def checkpoint_steps(self) -> int:
        """Steps between two checkpoints, under either of the flag's names."""
        return self.save_steps or self.eval_step or 1000

    @property
    def corpora(self) -> list[tuple[str, float | None]]:
        """The directories of --pregenerated_data and their weights."""
        return [split_weight(word) for word in self.pregenerated_data]

    @property
    def phase_list(self) -> list[tuple[int, float]]:
        """(longest sample, share of the steps) of each phase; one phase without --phases.

        Where no flag gives a length, it is 128 until `open_corpora` has read what the corpora were made for.

        Raises:
            ConfigError: --phases is not a list of LENGTH:SHARE with shares that sum to 1.
        """
        if self.phases is None:
            return [(_DEFAULT_LENGTH if self.max_seq_length is None else self.max_seq_length, 1.0)]
        try:
            pairs = [part.split(":") for part in self.phases.split(",")]
            phases = [(int(length), float(share)) for length, share in pairs]
        except ValueError:
            phases = []
        shares = [share for _, share in phases]
        if not phases or not min(shares) > 0 or not abs(sum(shares) - 1) < 1e-6:
            raise ConfigError(
                f"--phases is {self.phases!r}; give LENGTH:SHARE,... with positive shares that sum to 1, such as "
                "128:0.9,512:0.1"
            )
        return phases

    def phase_batch_size(self, length: int) -> int:
        """Rows of a step of a phase: as many tokens as in a step of the first.

        Raises:
            ConfigError: that is no whole number of rows.
        """
        first = self.phase_list[0][0]
        rows, rest = divmod(self.train_batch_size * first, length)
        if rest or not rows:
            raise ConfigError(
                f"--train_batch_size {self.train_batch_size} samples of {first} tokens are {rows} samples of {length} "
                f"tokens and {rest} tokens left over; give a --train_batch_size that is a multiple of "
                f"{length // math.gcd(length, first)}"
            )
        return rows

    def phase_max_samples(self, length: int) -> int | None:
        """--max_train_samples of a phase: as many tokens as in the first."""
        if self.max_train_samples is None:
            return None
        return -(-self.max_train_samples * self.phase_list[0][0] // length)

    def problems(self) -> list[str]:
        found = super().problems() + self._corpus_problems() + self._phase_problems()
        if self.save_steps and self.eval_step and self.save_steps != self.eval_step:
            found.append(
                f"--save_steps {self.save_steps} and --eval_step {self.eval_step} are two names of one setting here; "
                "give one of them"
            )
        if self.continue_train and self.init_embeddings != "random":
            found.append(
                f"--init_embeddings {self.init_embeddings} and --continue_train contradict each other: the student's "
                "embeddings are in --student_model; drop one of them"
            )
        if not 0 <= self.eval_fraction < 1:
            found.append(f"--eval_fraction is {self.eval_fraction}; it must be in [0, 1)")
        if len(self.student_model) > 1 and self.resume not in ("auto", "never"):
            found.append(f"--resume {self.resume} names the checkpoint of one student; several students need auto")
        if self.max_train_samples is not None and self.max_train_samples < 1:
            found.append(f"--max_train_samples is {self.max_train_samples}; it must be at least 1")
        for name in ("short_seq_prob", "masked_lm_prob"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                found.append(f"--{name} is {value}; it must be in [0, 1]")
        return found

    def _corpus_problems(self) -> list[str]:
        found = []
        directories = [directory for directory, _ in self.corpora]
        weights = [weight for _, weight in self.corpora]
        if None in weights and any(weight is not None for weight in weights):
            found.append("--pregenerated_data gives weights to some directories only; give DIR=WEIGHT for all or none")
        found += [
            f"--pregenerated_data names {directory} more than once; give it once, with a larger weight"
            for directory in dict.fromkeys(directories)
            if directories.count(directory) > 1
        ]
        if self.full_sentences and self.one_seq:
            found.append("--full_sentences and --one_seq contradict each other; give one of them")
        if self.full_sentences and self.short_seq_prob:
            found.append("--full_sentences fills every sample: it has no --short_seq_prob; give one of them")
        return found

    def _phase_problems(self) -> list[str]:
        flag = "--max_seq_length" if self.phases is None else "--phases"
        found = []
        try:
            lengths = [length for length, _ in self.phase_list]
            if self.max_seq_length not in (None, *lengths):
                found.append(
                    f"--max_seq_length {self.max_seq_length} is none of the lengths of --phases {self.phases}; leave "
                    "it away"
                )
            for length, _ in self.phase_list:
                if length < _SHORTEST_LENGTH:
                    found.append(f"{flag} is {length}; it must be at least {_SHORTEST_LENGTH}")
                else:
                    self.phase_batch_size(length)
        except ConfigError as error:
            found.append(str(error))
        return found


def split_weight(word: str) -> tuple[str, float | None]:
    """The directory and the weight of DIR=WEIGHT; a name with a = in it that is no number is a directory."""
    directory, equals, weight = word.rpartition("=")
    try:
        return (directory, float(weight)) if equals else (word, None)
    except ValueError:
        return word, None
