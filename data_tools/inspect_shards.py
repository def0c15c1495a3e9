"""Shows what is in a corpus directory, checks its files, prints samples as text, adopts shards of other tools."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from data_tools.adopt_shards import adopt_shards, special_share
from data_tools.corpus_directory import describe_report, unknown_words
from tinybert_ds.arguments import parse
from tinybert_ds.arguments.inspect import InspectArguments
from tinybert_ds.command_line import run_command
from tinybert_ds.data.corpus import CorpusSource
from tinybert_ds.data.indexed import hash_file
from tinybert_ds.data.manifest import TOKENIZER_NAME, Manifest, open_corpus
from tinybert_ds.errors import DataError
from tinybert_ds.progress import progress_bar


def main(arguments: Sequence[str] | None = None) -> None:
    """Inspect the corpus that the command line names."""
    options = parse(InspectArguments, arguments)
    directory = Path(options.directory)
    if options.adopt:
        assert options.bert_model is not None
        manifest = adopt_shards(directory, options.bert_model, options.lower_case, options.dtype_codes)
        print(f"adopted {len(manifest.shards)} shards; train with --pregenerated_data {directory}")
        if share := special_share(directory, manifest):
            print(f"note: {share:.2%} of the tokens are special ones; they are trained on like any other.")
    manifest = open_corpus(directory).manifest
    print_counts(manifest)
    if options.verify:
        verify(directory, manifest)
    if options.decode > 0:
        for text in decode_samples(directory, manifest, options.decode, options.seed):
            print(text)


def print_counts(manifest: Manifest) -> None:
    """Print what the manifest says, shard by shard."""
    print(
        f"{manifest.documents:,} documents, {manifest.sentences:,} sentences, {manifest.tokens:,} tokens, "
        f"vocabulary {manifest.special_ids.vocab_size:,}, fingerprint {manifest.fingerprint}"
    )
    print(unknown_words(manifest) or "tokens unknown to the tokeniser were not counted when it was made")
    for shard in manifest.shards:
        sources = ", ".join(f"{source.name}[{source.begin}:{source.end}]" for source in shard.sources)
        print(
            f"  {shard.name}: {shard.documents:,} documents, {shard.sentences:,} sentences, {shard.tokens:,} tokens"
            + f" from {sources}" * bool(sources)
        )
    if left_out := describe_report(manifest.report):
        print(f"  left out{left_out}")


def verify(directory: Path, manifest: Manifest) -> None:
    """Compare every file with its hash.

    Raises:
        DataError: files differ; all are named.
    """
    damaged = []
    files = {**manifest.files, **manifest.other_files}
    total = sum(record.bytes for record in files.values())
    with progress_bar(total=total, desc="verifying", unit="B", unit_scale=True) as bar:
        for name, record in files.items():
            path = directory / name
            if not path.is_file() or hash_file(path) != record:
                damaged.append(str(path))
            bar.update(record.bytes)
    if damaged:
        raise DataError(
            f"{len(damaged)} of {len(files)} files are missing or not what was written: "
            f"{', '.join(damaged)}. Restore them from a copy, or remove the directory and write the corpus again."
        )
    print(f"all {len(files)} files are as they were written")


def decode_samples(directory: Path, manifest: Manifest, count: int, seed: int) -> list[str]:
    """The first samples of epoch 0 as text, special tokens included, masked where the manifest says so."""
    tokenizer = Tokenizer.from_file(str(directory / TOKENIZER_NAME))
    source = CorpusSource(
        directory,
        split="train",
        eval_fraction=0.0,
        global_batch_size=count,
        max_seq_length=manifest.sampling.max_seq_len,
        seed=seed,
        one_seq=True if manifest.documents == 1 else None,
    )
    (batch,) = source.micro_batches(0, 0, rank=0, world_size=1, accumulation=1)
    rows = zip(batch.input_ids, batch.attention_mask, strict=True)
    return [tokenizer.decode(ids[mask.bool()].tolist(), skip_special_tokens=False) for ids, mask in rows]


if __name__ == "__main__":
    run_command(main)
