"""Where the files of a model are, and whether they are all there: old layouts, adapters, files not fetched whole."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tinybert_ds.errors import ModelError
from tinybert_ds.strict_formats import parse_json

_MODULES_FILE, _OLD_FOLDERS = "modules.json", ("0_Transformer", "0_BERT", "0_RoBERTa")
_ADAPTER_FILE = "adapter_config.json"
_ADAPTER_CLASSES = {
    "SEQ_CLS": "AutoPeftModelForSequenceClassification",
    "FEATURE_EXTRACTION": "AutoPeftModelForFeatureExtraction",
}
_POINTER = b"version https://git-lfs.github.com/spec/"


def model_files(path: str | Path) -> Path:
    """Return where the files of a model are: there, or in the folder of sentence-transformers' old layout.

    That layout keeps config, weights and tokeniser of the transformer in `0_Transformer/`.

    Args:
        path: A model directory, or a file, which is returned as it is.

    Raises:
        ModelError: The directory holds a PEFT adapter, which is no model without its base.
    """
    path = Path(path)
    if not path.is_dir():
        return path
    _refuse_adapter(path)
    if (path / "config.json").is_file():
        return path
    folders = [path / name for name in (*_first_module(path), *_OLD_FOLDERS)]
    found = next((folder for folder in folders if (folder / "config.json").is_file()), None)
    if found is None:
        return path
    _refuse_adapter(found)
    return found


def require_fetched(files: Iterable[Path]) -> None:
    """Refuse files that are empty, or that Git LFS left as pointers to their content.

    Raises:
        ModelError: Names the first of them and says how to fetch it.
    """
    for file in files:
        try:
            with file.open("rb") as handle:
                begin = handle.read(len(_POINTER))
        except OSError as error:
            raise ModelError(f"{file} cannot be read ({error.strerror}); make it readable or copy it again") from error
        if begin == _POINTER:
            raise ModelError(
                f"{file} is a pointer of Git LFS, not the file itself; fetch it with `git lfs install && git -C "
                f"{file.parent} lfs pull`, or download the file and put it there"
            )
        if not begin:
            raise ModelError(f"{file} is empty; its copy or download was cut short: fetch it again")


def _first_module(directory: Path) -> list[str]:
    """The folder that modules.json names for the first module; the root itself, "", in the new layout."""
    try:
        modules = parse_json((directory / _MODULES_FILE).read_bytes())
        folder = modules[0]["path"]
    except (OSError, ValueError, LookupError, TypeError):  # no such layout, or an unreadable list of it
        return []
    is_inside = isinstance(folder, str) and not Path(folder).is_absolute() and ".." not in Path(folder).parts
    return [folder] if is_inside else []


def _refuse_adapter(directory: Path) -> None:
    file = directory / _ADAPTER_FILE
    if not file.is_file():
        return
    try:
        task_type = parse_json(file.read_bytes()).get("task_type")
    except (OSError, ValueError, AttributeError):
        task_type = None
    name = _ADAPTER_CLASSES.get(str(task_type), "AutoPeftModel")
    merged = f"{directory}-merged"
    raise ModelError(
        f"{directory} holds a PEFT adapter ({_ADAPTER_FILE}), which is a part of a model; merge it into its base and "
        f'give the result: pip install peft && python -c "from peft import {name} as M; '
        f'M.from_pretrained({str(directory)!r}).merge_and_unload().save_pretrained({merged!r})", and copy the '
        "tokeniser files of the base beside it"
    )
