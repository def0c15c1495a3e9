"""Writes the part of a model's vocabulary that a corpus needs, and the model with the embeddings of that part."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydantic import TypeAdapter
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from typing_extensions import TypedDict

from data_tools.piece_counts import Counts, count_pieces, find_counted
from data_tools.ranks import find_ranks
from tinybert_ds.arguments import identity_of, parse
from tinybert_ds.arguments.trim import TrimArguments
from tinybert_ds.command_line import run_command
from tinybert_ds.data.order import Ints
from tinybert_ds.data.part_vocabulary import (
    always_kept,
    choose_tokens,
    ids_in_whole,
    load_state,
    needed_counts,
    part_of,
    vocabulary_of,
)
from tinybert_ds.data.tokenizer import load_tokenizer, special_ids, tokenizer_fingerprint, tokenizer_json, with_backend
from tinybert_ds.data.vocabulary import judge_unknown, unknown_id
from tinybert_ds.errors import ConfigError, DataError, ModelError
from tinybert_ds.files import make_output_directory, refuse_file, refuse_foreign_files, write_atomically
from tinybert_ds.models.embedding_rows import take_rows
from tinybert_ds.models.fingerprint import model_fingerprint
from tinybert_ds.models.labels import HeadKind, output_names
from tinybert_ds.models.pretrained import load_classifier, load_encoder, load_masked_lm, read_config
from tinybert_ds.models.saving import save_student
from tinybert_ds.models.sentence.directory import has_modules, read_modules, save_sentence_encoder
from tinybert_ds.records import Count, read_record, sealed
from tinybert_ds.shared_work.claims import POLL_SECONDS, Claims, describe_differences

RECORD_NAME = "trimmed.json"
"""Beside the model, written last: what it was made of, and what was counted."""
WORK_NAME = "unfinished"
_IDENTITY_NAME = "identity.json"
_HEADS: Mapping[str, HeadKind] = {
    "SequenceClassification": "one",
    "TokenClassification": "tokens",
    "QuestionAnswering": "spans",
}
"""End of an architecture's name -> what its head answers."""
_KINDS = ("WordPiece", "Unigram", "BPE")


class _Whole(NamedTuple):
    """The vocabulary that is trimmed."""

    tokenizer: PreTrainedTokenizerFast
    state: dict[str, Any]  # its JSON
    always: set[int]
    size: int  # largest id + 1


class Trimmed(TypedDict):
    """What was counted, of the record of a trimmed vocabulary."""

    tokens: Count  # of the corpus
    used: Count  # tokens of the vocabulary that stand in it
    kept: Count
    left_out: Count  # tokens of the corpus that are not kept: they are spelled with shorter ones
    unspelled: Count  # of these, tokens with a character that no kept token is
    skipped: Count  # places of the inputs that could not be read


class _Record(TypedDict):
    identity: dict[str, Any]
    counts: Trimmed


_RECORD = TypeAdapter(_Record)
_IDENTITY = TypeAdapter(dict[str, Any])


def main(arguments: Sequence[str] | None = None) -> None:
    """Trim the vocabulary that the command line names; say what was kept."""
    options = parse(TrimArguments, arguments)
    directory, ranks = Path(options.output_dir), find_ranks()
    whole = _read_whole(options)
    inputs = find_counted(
        options.corpus,
        tokenizer_json(whole.tokenizer),
        tokenizer_fingerprint(whole.tokenizer),
        whole.size,
        text_field=options.text_field,
        skip=options.skip_bad_input,
    )
    identity = {
        **identity_of(options),
        "model": [model_fingerprint(options.model), tokenizer_fingerprint(whole.tokenizer)],
        "corpus": [[item.name, *item.state] for item in inputs],
        **_kept_behind(options.model),
    }
    if (record := _finished(directory, identity)) is None:
        work = _begin(directory, identity)
        try:
            counts, skipped = count_pieces(work, inputs, whole.size, shown=ranks.rank == 0)
            _judge(counts, whole, allowed=options.allow_unknown)
            record = _finish(options, whole, counts, skipped, identity)
        except FileNotFoundError:
            record = _finished(directory, identity)  # another process was faster
            if record is None:
                raise
    elif ranks.rank == 0:
        print(f"{directory} already holds this vocabulary, finished; nothing to do.")
    if ranks.rank == 0:
        for line in describe(record["counts"], whole.size):
            print(line)


def describe(counts: Trimmed, size: int) -> list[str]:
    """Return what was counted, in words.

    Args:
        size: Tokens of the whole vocabulary.
    """
    share = counts["left_out"] / max(counts["tokens"], 1)
    lines = [
        f"{counts['kept']:,} of {size:,} tokens are kept; {counts['used']:,} stand in the corpus, which has "
        f"{counts['tokens']:,}",
        f"{counts['left_out']:,} tokens of the corpus ({share:.3%}) are not kept: there the part spells with shorter "
        f"ones what the whole spells with these; {counts['unspelled']:,} of them hold a character that the part does "
        "not know",
    ]
    return lines + ([f"{counts['skipped']:,} places of the inputs could not be read"] if counts["skipped"] else [])


def _read_whole(options: TrimArguments) -> _Whole:
    read_config(options.model, role="model")
    tokenizer = load_tokenizer(options.model, options.lower_case)
    state = json.loads(tokenizer_json(tokenizer))
    kind = state["model"]["type"]
    if kind not in _KINDS:
        raise ModelError(
            f"the tokeniser of {options.model} is {kind}; the vocabularies of {', '.join(_KINDS)} can be trimmed"
        )
    special_ids(tokenizer)  # a student of the part needs them
    always = always_kept(tokenizer)
    if options.keep <= len(always):
        raise ConfigError(
            f"--keep is {options.keep}, but {len(always)} special tokens and bytes of {options.model} are always kept; "
            "give more, such as 40000"
        )
    return _Whole(tokenizer, state, always, max(vocabulary_of(state).values()) + 1)


def _judge(counts: Counts, whole: _Whole, *, allowed: bool) -> None:
    tokens, unknown = int(counts.sum()), unknown_id(load_state(whole.state))
    if not tokens:
        raise DataError("--corpus holds not one token; give text, or shards that have some")
    found = 0 if unknown is None else int(counts[unknown])
    if warning := judge_unknown(found, tokens, text="--corpus", allowed=allowed):
        print(f"warning: {warning}", flush=True)


def _finished(directory: Path, identity: dict[str, Any]) -> _Record | None:
    """Return the record of a directory that is finished; None where it is not.

    Raises:
        ConfigError: It holds another vocabulary, or files of something else.
    """
    refuse_file(directory)
    path = directory / RECORD_NAME
    if not path.is_file():
        names = [file.name for file in directory.iterdir()] if directory.is_dir() else []
        if not (directory / WORK_NAME / _IDENTITY_NAME).is_file():
            names = [name for name in names if name != WORK_NAME]
            refuse_foreign_files(directory, names, "holds files that are no trimmed vocabulary")
        return None
    record = read_record(path, _RECORD, "remove the directory to begin anew", ConfigError)
    if differences := describe_differences(record["identity"], json.loads(json.dumps(identity))):
        raise ConfigError(
            f"--output_dir {directory} holds a vocabulary that was made of something else: {differences}; give an "
            "empty or new directory (nothing was changed)"
        )
    shutil.rmtree(directory / WORK_NAME, ignore_errors=True)  # of a process that was killed behind its last file
    return record


def _begin(directory: Path, identity: dict[str, Any]) -> Path:
    """Make the directory of unfinished work, or go on with one that is there."""
    make_output_directory(directory)
    work, wanted = directory / WORK_NAME, json.loads(json.dumps(identity))
    work.mkdir(exist_ok=True)
    path = work / _IDENTITY_NAME
    if not path.is_file():
        write_atomically(path, json.dumps(wanted) + "\n")
    found = read_record(path, _IDENTITY, f"remove {str(work)!r} to begin anew", ConfigError)
    if differences := describe_differences(found, wanted):
        raise ConfigError(
            f"--output_dir {directory} holds an unfinished vocabulary of something else: {differences}; finish that "
            f"one with its own command, remove {str(work)!r}, or give another directory"
        )
    return work


def _finish(options: TrimArguments, whole: _Whole, counts: Counts, skipped: int, identity: dict[str, Any]) -> _Record:
    """Let one process choose and write; the others wait for it."""
    directory = Path(options.output_dir)
    while True:
        with Claims(directory / WORK_NAME).take("finish", again=True) as claim:
            if claim is not None:
                kept = choose_tokens(whole.state, needed_counts(whole.state, counts), whole.always, options.keep)
                state = part_of(whole.state, kept)
                tokenizer = with_backend(whole.tokenizer, load_state(state))
                tokenizer.name_or_path = "the part"
                ids_in_whole(tokenizer, whole.tokenizer)
                model = take_rows(_load_model(options.model), kept)
                if has_modules(options.model):
                    modules = read_modules(options.model, model.config.hidden_size)
                    save_sentence_encoder(model, tokenizer, directory, modules)
                else:
                    save_student(model, tokenizer, directory)
                _check_written(directory, state)
                record: _Record = {"identity": identity, "counts": _count(whole, counts, kept, skipped)}
                write_atomically(directory / RECORD_NAME, json.dumps(sealed(record), indent=1) + "\n")
                shutil.rmtree(directory / WORK_NAME, ignore_errors=True)
                return record
        time.sleep(POLL_SECONDS)


def _count(whole: _Whole, counts: Counts, kept: Ints, skipped: int) -> Trimmed:
    gone = counts.copy()
    gone[kept] = 0
    tokens = {number: token for token, number in vocabulary_of(whole.state).items()}
    known = {character for number in kept for character in _letters(tokens[int(number)], whole.state)}
    has_bytes = whole.state["model"].get("byte_fallback") or "ByteLevel" in json.dumps(whole.state["pre_tokenizer"])
    unspelled = [
        int(gone[number])
        for number in np.flatnonzero(gone)
        if not has_bytes and not known.issuperset(_letters(tokens[int(number)], whole.state, whole=True))
    ]
    return {
        "tokens": int(counts.sum()),
        "used": int((counts > 0).sum()),
        "kept": len(kept),
        "left_out": int(gone.sum()),
        "unspelled": sum(unspelled),
        "skipped": skipped,
    }


def _letters(token: str, state: dict[str, Any], *, whole: bool = False) -> set[str]:
    """The characters of a token; without `whole` those that it is, which is none for a token of several."""
    text = token.removeprefix(state["model"].get("continuing_subword_prefix") or "") or token
    return set(text) if whole or len(text) == 1 else set()


def _kept_behind(directory: str) -> dict[str, str]:
    """What stands behind the encoder and was left out by earlier versions, which wrote nothing in its place."""
    if has_modules(directory):
        return {"keeps": "modules"}
    architecture = _head_of(read_config(directory, role="model"))
    return {"keeps": architecture} if architecture in _HEADS and architecture != "SequenceClassification" else {}


def _head_of(config: Any) -> str:
    """The head that a config names, such as "MaskedLM"."""
    return (getattr(config, "architectures", None) or [""])[0].rpartition("For")[2]


def _load_model(directory: str) -> PreTrainedModel:
    """The model with the head that its config names, where that is one for masked words, labels, tags or spans."""
    config = read_config(directory, role="model")
    architecture = _head_of(config)
    if architecture == "MaskedLM":
        return load_masked_lm(directory)
    if (kind := _HEADS.get(architecture)) is None:
        return load_encoder(directory, role="model")
    names = None if kind == "one" and config.num_labels == 1 else output_names(config)
    return load_classifier(directory, label_names=names, role="model", head="required", kind=kind)


def _check_written(directory: Path, state: dict[str, Any]) -> None:
    """Refuse a tokeniser that transformers does not read as it was written."""
    found = json.loads(tokenizer_json(load_tokenizer(directory, None)))
    if any(found[part] != state[part] for part in ("normalizer", "pre_tokenizer", "model", "post_processor")):
        raise ModelError(
            f"transformers does not read the tokeniser in {directory} as it was written; report this with the "
            "tokenizer.json of --model"
        )


if __name__ == "__main__":
    run_command(main)
