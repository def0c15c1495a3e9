"""Sentence encoders in their directories: looked at before anything is loaded, loaded, asked for vectors, saved.

N texts, V width of the vectors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tinybert_ds.data.sts import StsPairs
from tinybert_ds.data.task_batches import TaskSource, encode
from tinybert_ds.data.task_files import Examples
from tinybert_ds.data.tokenizer import load_tokenizer, returns_token_types, special_ids
from tinybert_ds.engine.prediction import Model, predict_logits
from tinybert_ds.engine.ranks.process_group import World, write_on_main
from tinybert_ds.engine.student import ENCODER_PREFIX, full_state, state_below
from tinybert_ds.errors import ConfigError
from tinybert_ds.models.capture import CapturingEncoder
from tinybert_ds.models.fingerprint import model_fingerprint
from tinybert_ds.models.pretrained import Role, load_encoder, read_config
from tinybert_ds.models.probe import check_capture, positions_of
from tinybert_ds.models.sentence.directory import read_modules, save_sentence_encoder
from tinybert_ds.models.sentence.head import SentenceEncoder, SentenceHead
from tinybert_ds.models.sentence.modules import Dense, SentenceModules
from tinybert_ds.types import Batch, EncoderOutput, LossTerms

_HEAD_PREFIX = "objective.head."
NO_PROMPT = "none"


class SentenceDirectory(NamedTuple):
    """A sentence encoder's directory as far as it is known without its transformer's weights."""

    path: str
    config: Any
    modules: SentenceModules
    tokenizer: PreTrainedTokenizerFast
    max_seq_length: int  # what it cuts texts to

    @property
    def width(self) -> int:
        """V."""
        return self.modules.width(self.config.hidden_size)

    @property
    def vectors(self) -> tuple[int, bool]:
        """V, and whether the vectors have length 1."""
        return self.width, self.modules.normalised

    def fingerprint(self) -> str:
        """Hash everything that its vectors depend on."""
        digest = xxhash.xxh3_128(model_fingerprint(self.path).encode())
        values = replace(self.modules, layers=())
        digest.update(repr(sorted(vars(values).items())).encode())
        for layer in self.modules.layers:
            digest.update(type(layer).__name__.encode())
            for part in layer:
                digest.update(part.numpy().tobytes() if isinstance(part, Tensor) else str(part).encode())
        return digest.hexdigest()

    def prompt(self, name: str | None) -> str:
        """Return what stands before a text; `name` None: what its files say.

        Raises:
            ConfigError: There is no such prompt, or its tokens would have to be left out of the vectors.
        """
        stated = self.modules.default_prompt if name is None else name
        if stated is None or stated == NO_PROMPT:
            return ""
        if stated not in self.modules.prompts:
            known = ", ".join((*self.modules.prompts, NO_PROMPT))
            raise ConfigError(f"--prompt_name {stated}: {self.path} has no such prompt; it has {known}")
        if not self.modules.include_prompt:
            raise ConfigError(
                f"{self.path} leaves the tokens of its prompts out of its vectors (include_prompt), which is not "
                f"understood; give --prompt_name {NO_PROMPT}, or another model"
            )
        return self.modules.prompts[stated]


def read_sentence_directory(path: str, lower_case: bool | None, *, role: Role) -> SentenceDirectory:
    """Read what a directory says of its sentence encoder.

    Raises:
        ModelError: See `read_config`, `read_modules` and `load_tokenizer`.
    """
    config = read_config(path, role=role)
    modules = read_modules(path, config.hidden_size)
    tokenizer = load_tokenizer(path, True if lower_case is None and modules.lower_case else lower_case)
    length = modules.max_seq_length or length_limit(config, tokenizer)
    return SentenceDirectory(path, config, modules, tokenizer, length)


def length_limit(config: Any, tokenizer: PreTrainedTokenizerFast) -> int:
    """Return what sentence-transformers cuts texts to where a directory does not say it.

    Where it takes the config's number of positions, of which RoBERTa's kind uses two less, those are left out: the
    longest texts would have none.
    """
    stated, limit = tokenizer.model_max_length, getattr(config, "max_position_embeddings", None)
    return int(stated if limit is None else min(stated, positions_of(config) or limit))


def last_state_encoder(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, max_seq_length: int
) -> CapturingEncoder:
    """Wrap a model so that it returns its last state, after a look at whether it takes the longest text."""
    encoder = CapturingEncoder(
        model,
        states=[model.config.num_hidden_layers],
        attention_layers=(),
        logits=False,
        token_types=returns_token_types(tokenizer),
    )
    check_capture(encoder, sequence_length=max_seq_length)
    return encoder


def load_sentence_encoder(directory: SentenceDirectory, max_seq_length: int, *, role: Role) -> SentenceEncoder:
    """Load a sentence encoder in float32 and eval mode; `max_seq_length` is what it will be given."""
    model = load_encoder(directory.path, role=role)
    encoder = last_state_encoder(model, directory.tokenizer, max_seq_length)
    return SentenceEncoder(encoder, SentenceHead(directory.modules)).eval()


def as_model(encoder: SentenceEncoder) -> Model:
    """Return a sentence encoder in the form in which whole splits are run through models."""

    def run(batch: Batch, teacher_output: EncoderOutput | None) -> LossTerms:
        vectors = encoder(batch).logits
        assert vectors is not None
        return {"logits": vectors}

    return run


def encode_texts(
    model: Model,
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerFast,
    *,
    max_seq_length: int,
    batch_size: int,
    world: World,
) -> NDArray[np.float32]:
    """Return the vectors (N, V) of texts, on every rank; the ranks share the work."""
    rows = encode(Examples(Path(), (list(texts),), None), tokenizer, max_seq_length)
    source = TaskSource(
        rows,
        global_batch_size=batch_size,
        max_seq_length=max_seq_length,
        pad_id=special_ids(tokenizer).pad,
        shuffle=False,
    )
    return predict_logits(model, source, world)


def judge_likeness(
    model: Model,
    pairs: Sequence[StsPairs],
    tokenizer: PreTrainedTokenizerFast,
    *,
    prompt: str,
    max_seq_length: int,
    batch_size: int,
    world: World,
) -> dict[str, float]:
    """Return Spearman's correlation for each file of scored pairs, "eval_FILE_spearman"; the same on all ranks."""
    results = {}
    for one in pairs:
        texts = [prompt + text for text in one.texts.texts[0]]
        vectors = encode_texts(
            model, texts, tokenizer, max_seq_length=max_seq_length, batch_size=batch_size, world=world
        )
        results[f"eval_{one.name}_spearman"] = one.judge(vectors)
    return results


def export_sentence_student(
    engine: Any, directory: Path, *, tokenizer: PreTrainedTokenizerFast, modules: SentenceModules, world: World
) -> None:
    """Write the engine's student, its modules with the engine's weights, for sentence-transformers; on all ranks."""
    state = full_state(engine)
    model_state = state_below(state, ENCODER_PREFIX)
    trained = replace(modules, layers=_with_weights(modules, state_below(state, _HEAD_PREFIX)))
    model = engine.module.encoder.model
    write_on_main(
        world, directory, lambda: save_sentence_encoder(model, tokenizer, directory, trained, state_dict=model_state)
    )


def _with_weights(modules: SentenceModules, state: Mapping[str, Tensor]) -> tuple[Any, ...]:
    """The layers with the weights of a head's state dict."""
    return tuple(
        Dense(state[f"layers.{n}.linear.weight"], state.get(f"layers.{n}.linear.bias"), layer.activation)
        if isinstance(layer, Dense)
        else layer
        for n, layer in enumerate(modules.layers)
    )
