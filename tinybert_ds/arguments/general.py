"""The arguments of general distillation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from tinybert_ds.arguments.groups import (
    EVAL_STEP,
    MAX_SEQ_LENGTH,
    STUDENT_MODEL,
    STUDENT_TOKENIZER,
    TEACHER_MODEL,
    WORD_LIST,
    Corpora,
    Sampling,
)
from tinybert_ds.arguments.inherit import CALIBRATION_TOKENS
from tinybert_ds.arguments.option import data, like, machine, pace, result
from tinybert_ds.arguments.training import DistillationArguments
from tinybert_ds.errors import ConfigError

_DEFAULT_LENGTH = 128
_SHORTEST_LENGTH = 8


@dataclass(frozen=True, kw_only=True)
class GeneralDistillArguments(Corpora, Sampling, DistillationArguments):
    """General distillation: learn from a pre-trained teacher on unlabelled text."""

    prog = "general_distill.py"
    stages = ("general",)

    teacher_model: str = like(TEACHER_MODEL)
    student_model: list[str] = like(
        STUDENT_MODEL,
        help="The student: a config.json, a directory with one, a shipped name (4L_312, 6L_768, 3L_192), or with "
        "--continue_train a directory with weights. Given several times, the students learn from one teacher "
        "pass, each in a directory of its own name inside --output_dir.",
        repeat=True,
    )
    student_tokenizer: str | None = like(STUDENT_TOKENIZER)
    continue_train: bool = data("Start from the weights in --student_model.", False, recipe=False)
    init: Literal["auto", "teacher", "svd", "random"] = result(
        "Weights of a student that has none. teacher: every layer in closed form from the teacher's, on "
        "--calibration_tokens of the text, with the projections; svd: embeddings of the teacher's leading singular "
        "vectors, the rest random; random: all of them; auto: as the run in --output_dir began; in a new one teacher "
        "where the architectures have a closed form, else random.",
        "auto",
        resolved=True,
        identity="init_embeddings",
        older="init_embeddings",
    )
    calibration_tokens: int = like(CALIBRATION_TOKENS, later=True)
    max_seq_length: int | None = like(
        MAX_SEQ_LENGTH, help="Longest sample in tokens, [CLS] and [SEP] included. Default: as the shards were made."
    )
    phases: str | None = data(
        "Sequence lengths one after the other and their shares of the steps, such as 128:0.9,512:0.1, instead of "
        "--max_seq_length. --train_batch_size is that of the first; the others have as many tokens in a batch. Epochs "
        "are counted at the first length.",
        None,
    )
    max_train_samples: int | None = data(
        "An epoch ends after so many samples, other ones in each epoch. Default: all.", None, least=1
    )
    verify_data: bool = machine(
        "Check the hashes of all shards in the background, once on each host; a damaged one stops the run.", False
    )
    eval_step: int | None = like(EVAL_STEP, None, help="Published name of --save_steps in this command.")
    eval_fraction: float = data("Share of documents held out for eval_loss; 0: none.", 0.005, least=0, below=1)
    eval_steps: int | None = pace("Steps between two evaluations of eval_loss. Default: --save_steps.", None, least=1)
    word_list: str | None = like(WORD_LIST)
    full_sentences: bool = data(
        "Fill samples with whole sentences of one document after the other; no sentence pairs.", False
    )

    @property
    def checkpoint_steps(self) -> int:
        """Steps between two checkpoints, under either of the flag's names."""
        return self.save_steps or self.eval_step or 1000

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
        if self.word_list is not None and not self.do_whole_word_mask:
            found.append("--word_list says which characters are masked together: add --do_whole_word_mask, or drop it")
        if self.continue_train and self.init in ("teacher", "svd"):
            found.append(
                f"--init {self.init} and --continue_train contradict each other: the student's weights are in "
                "--student_model; drop one of them"
            )
        if self.init == "teacher" and self.teacher_engine == "zero3":
            found.append(
                "--init teacher has the whole teacher on every rank, which --teacher_engine zero3 is to avoid; start "
                "the student with launchers/inherit_student.py where the teacher fits and give --continue_train, or "
                "take --init svd"
            )
        if len(self.student_model) > 1 and self.resume not in ("auto", "never"):
            found.append(f"--resume {self.resume} names the checkpoint of one student; several students need auto")
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
