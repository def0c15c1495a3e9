"""Directories of sentence-transformers, read and written without that package.

`modules.json` names the modules in their order. The transformer lies in the root, or in an old layout in a folder of
its own; each other module has a folder with a config.json and, where it has weights, a model.safetensors.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from tinybert_ds.errors import ModelError
from tinybert_ds.files import write_atomically
from tinybert_ds.foreign_text import listed, quoted, shown
from tinybert_ds.models.directory import model_files, require_fetched
from tinybert_ds.models.foreign import foreign_code
from tinybert_ds.models.saving import save_student
from tinybert_ds.models.sentence.head import ACTIVATIONS
from tinybert_ds.models.sentence.modules import POOLINGS, Dense, Layer, Normalise, SentenceModules
from tinybert_ds.strict_formats import read_json

logger = logging.getLogger(__name__)

MODULES_FILE = "modules.json"
MODEL_FILE = "config_sentence_transformers.json"
_TRANSFORMER_FILE = "sentence_bert_config.json"
_TRANSFORMER_FILES = "sentence_*_config.json"  # older versions have the architecture's name in the middle
_CONFIG_FILE = "config.json"
_WEIGHTS_FILE, _OLD_WEIGHTS_FILE = "model.safetensors", "pytorch_model.bin"
_OLD_POOLINGS = {
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}
_UNDERSTOOD = "Transformer, Pooling, Dense, Normalize and Dropout"


def has_modules(directory: str | Path) -> bool:
    """Whether a directory says how sentence vectors are made of its model's states."""
    return (Path(directory) / MODULES_FILE).is_file()


def read_modules(directory: str | Path, hidden_size: int) -> SentenceModules:
    """Read what a sentence-transformers directory does with its transformer's states.

    Args:
        directory: Without a modules.json its model is read as sentence-transformers reads it: the mean of its states.
        hidden_size: H of the transformer.

    Raises:
        ModelError: Files that cannot be read, a module that is not understood, or widths that do not fit.
    """
    directory = Path(directory)
    if not has_modules(directory):
        logger.warning(
            "%s has no %s: its vectors are the mean of its last states, as sentence-transformers takes them",
            directory,
            MODULES_FILE,
        )
        return SentenceModules(("mean",))
    model = _object(directory / MODEL_FILE) if (directory / MODEL_FILE).is_file() else {}
    _require_kind(model, directory)
    transformer = _transformer_values(model_files(directory))
    prompts = model.get("prompts") or {}
    if not isinstance(prompts, dict) or not all(isinstance(text, str) for text in prompts.values()):
        raise ModelError(f"{directory / MODEL_FILE}: prompts must be an object of texts; correct it")
    how_texts_come: dict[str, Any] = {
        "max_seq_length": _length(transformer.get("max_seq_length"), directory),
        "lower_case": transformer.get("do_lower_case") is True,
        "prompts": {name: text for name, text in prompts.items() if text},
        "default_prompt": model.get("default_prompt_name"),
    }
    if prompts.get(how_texts_come["default_prompt"]) == "":
        how_texts_come["default_prompt"] = None
    if how_texts_come["default_prompt"] not in (None, *prompts):
        raise ModelError(
            f"{directory / MODEL_FILE}: default_prompt_name {shown(how_texts_come['default_prompt'])} is none of its "
            f"prompts {listed(prompts) or '(none)'}; correct it"
        )
    pooling, layers = _read_chain(directory, hidden_size)
    return SentenceModules(pooling["modes"], layers, include_prompt=pooling["include_prompt"], **how_texts_come)


def save_sentence_encoder(
    model: PreTrainedModel,
    tokenizer: Any,
    directory: str | Path,
    modules: SentenceModules,
    *,
    state_dict: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a directory that `sentence_transformers.SentenceTransformer` opens; call it on one rank.

    It is a plain Hugging Face directory, too. Its config.json goes first and comes back last, so that a set of files
    that were not written together does not load.

    Args:
        model, tokenizer, state_dict: See `saving.save_student`.
        directory: Made if absent.
        modules: What stands behind the model, with its weights.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / _CONFIG_FILE).unlink(missing_ok=True)
    write_modules(directory, modules, model.config.hidden_size)
    save_student(model, tokenizer, directory, state_dict=state_dict)


def write_modules(directory: Path, modules: SentenceModules, hidden_size: int) -> None:
    """Write all of a sentence-transformers directory but the transformer, of this hidden size, and its tokeniser."""
    behind = ["Normalize" if isinstance(layer, Normalise) else "Dense" for layer in modules.layers]
    names = ["Transformer", "Pooling", *behind]
    folders = ["", *(f"{number}_{name}" for number, name in enumerate(names[1:], start=1))]
    for folder in folders[1:]:
        (directory / folder).mkdir(exist_ok=True)
    _write(directory / folders[1] / _CONFIG_FILE, _pooling_values(modules, hidden_size))
    for folder, layer in zip(folders[2:], modules.layers, strict=True):
        if isinstance(layer, Dense):
            _write_dense(directory / folder, layer)
    length = {"max_seq_length": modules.max_seq_length, "do_lower_case": modules.lower_case}
    _write(directory / _TRANSFORMER_FILE, length)
    said = {"prompts": dict(modules.prompts), "default_prompt_name": modules.default_prompt}
    _write(directory / MODEL_FILE, {**said, "similarity_fn_name": "cosine"})
    kinds = [f"sentence_transformers.models.{name}" for name in names]
    listing = [
        {"idx": number, "name": str(number), "path": folder, "type": kind}
        for number, (folder, kind) in enumerate(zip(folders, kinds, strict=True))
    ]
    _write(directory / MODULES_FILE, listing)


def _read_chain(directory: Path, hidden_size: int) -> tuple[dict[str, Any], tuple[Layer, ...]]:
    """Return what the Pooling says, and the layers behind it."""
    chain = _chain(directory)
    kinds = [kind for kind, _ in chain]
    if kinds[:2] != ["Transformer", "Pooling"]:
        raise ModelError(
            f"{directory / MODULES_FILE} begins with {listed(kinds[:2]) or 'nothing'}; a sentence encoder here is a "
            "Transformer, then a Pooling, then any Dense and Normalize"
        )
    pooling = _read_pooling(chain[1][1], hidden_size)
    width, layers = hidden_size * len(pooling["modes"]), list[Dense | Normalise]()
    for kind, folder in chain[2:]:
        if kind == "Dense":
            dense = _read_dense(folder, width)
            width = len(dense.weight)
            layers.append(dense)
        elif kind == "Normalize":
            layers.append(Normalise())
        elif kind != "Dropout":  # which does nothing outside training
            raise ModelError(
                f"{directory / MODULES_FILE} has the module {shown(kind)}, which is not understood; what is are "
                f"{_UNDERSTOOD}"
            )
    return pooling, tuple(layers)


def _chain(directory: Path) -> list[tuple[str, Path]]:
    """Return the kind and the folder of each module that modules.json names."""
    file = directory / MODULES_FILE
    content = read_json(file, "modules of the sentence encoder", ModelError)
    found = []
    for item in content if isinstance(content, list) else [None]:
        kind, path = (item.get("type"), item.get("path")) if isinstance(item, dict) else (None, None)
        if not isinstance(kind, str) or not isinstance(path, str):
            raise ModelError(f'{file} must be a list of modules with "type" and "path"; fetch the model again')
        if Path(path).is_absolute() or ".." in Path(path).parts:
            raise ModelError(f"{file} names {quoted(path)}, which is not inside the directory; correct it")
        found.append((kind.rpartition(".")[2], directory / path))
    return found


def _require_kind(model: Mapping[str, Any], directory: Path) -> None:
    kind = model.get("model_type", "SentenceTransformer")
    if kind != "SentenceTransformer":
        raise ModelError(
            f"{directory / MODEL_FILE} says that the model is a {shown(kind)}, which gives no sentence vectors; give a "
            "SentenceTransformer"
        )


def _transformer_values(directory: Path) -> dict[str, Any]:
    files = sorted(directory.glob(_TRANSFORMER_FILES)) if directory.is_dir() else []
    files = [file for file in files if file.name != MODEL_FILE]
    return _object(files[0]) if files else {}


def _length(value: Any, directory: Path) -> int | None:
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and value > 0):
        return value
    raise ModelError(
        f"{directory / _TRANSFORMER_FILE}: max_seq_length is {shown(repr(value))}; it must be a number of tokens"
    )


def _read_pooling(folder: Path, hidden_size: int) -> dict[str, Any]:
    file = folder / _CONFIG_FILE
    content = _object(file)
    stated = content.get("pooling_mode")
    if stated is None:
        stated = [name for name, key in _OLD_POOLINGS.items() if content.get(key) is True] or ["mean"]
    modes = (stated,) if isinstance(stated, str) else tuple(stated) if isinstance(stated, list) else ()
    if not modes or any(mode not in POOLINGS for mode in modes):
        raise ModelError(f"{file} has pooling_mode {shown(repr(stated))}; allowed are {', '.join(POOLINGS)}")
    width = content.get("embedding_dimension", content.get("word_embedding_dimension", hidden_size))
    if width != hidden_size:
        raise ModelError(
            f"{file} pools states of width {shown(width)}, the transformer's have {hidden_size}; give the files of one "
            "model"
        )
    return {"modes": modes, "include_prompt": content.get("include_prompt") is not False}


def _read_dense(folder: Path, features: int) -> Dense:
    file = folder / _CONFIG_FILE
    content = _object(file)
    reads = content.get("module_input_name", "sentence_embedding")
    if content.get("use_residual") or {reads, content.get("module_output_name") or reads} != {"sentence_embedding"}:
        raise ModelError(
            f"{file} has a residual connection, or works on something else than the sentence's vector; such a dense "
            "layer is not understood"
        )
    activation = str(content.get("activation_function") or "torch.nn.Identity").rpartition(".")[2]
    if activation not in ACTIVATIONS:
        raise ModelError(f"{file} has activation_function {shown(activation)}; allowed are {', '.join(ACTIVATIONS)}")
    state = _dense_weights(folder)
    weight, bias = state.get("linear.weight"), state.get("linear.bias")
    stated = (content.get("out_features"), content.get("in_features"))
    if weight is None or tuple(weight.shape) != stated or weight.shape[1] != features:
        shape = "no linear.weight" if weight is None else f"linear.weight {list(weight.shape)}"
        raise ModelError(
            f"{folder}: {shape}, its config.json says {list(stated)}, and {features} values come in; give the files of "
            "one model"
        )
    if bool(content.get("bias", True)) != (bias is not None) or (bias is not None and len(bias) != len(weight)):
        raise ModelError(f"{folder}: its bias is not as its config.json says; give the files of one model")
    if not all(torch.isfinite(value).all() for value in state.values()):
        raise ModelError(f"{folder}: weights that are no finite numbers; fetch the model again, or give another one")
    return Dense(weight.float(), None if bias is None else bias.float(), activation)


def _dense_weights(folder: Path) -> dict[str, Tensor]:
    safe, old = folder / _WEIGHTS_FILE, folder / _OLD_WEIGHTS_FILE
    file = safe if safe.is_file() else old
    if not file.is_file():
        raise ModelError(f"{folder} has no {_WEIGHTS_FILE} and no {_OLD_WEIGHTS_FILE}; fetch the model again")
    require_fetched([file])
    with foreign_code(f"{file} cannot be read", "fetch the model again"):
        if file == safe:
            return load_file(file)
        return dict(torch.load(file, weights_only=True, map_location="cpu"))


def _pooling_values(modules: SentenceModules, hidden_size: int) -> dict[str, Any]:
    values: dict[str, Any] = {key: name in modules.pooling for name, key in _OLD_POOLINGS.items()}
    if modules.pooling != tuple(sorted(modules.pooling, key=POOLINGS.index)):
        values = {"pooling_mode": list(modules.pooling)}  # switches cannot say an order; older versions know no other
    return {"word_embedding_dimension": hidden_size, **values, "include_prompt": modules.include_prompt}


def _write_dense(folder: Path, layer: Dense) -> None:
    width, features = layer.weight.shape
    sizes = {"in_features": features, "out_features": width, "bias": layer.bias is not None}
    _write(folder / _CONFIG_FILE, {**sizes, "activation_function": _class_name(layer.activation)})
    state = {"linear.weight": layer.weight} | ({} if layer.bias is None else {"linear.bias": layer.bias})
    values = {name: value.detach().to("cpu", torch.float32).contiguous() for name, value in state.items()}
    write_atomically(folder / _WEIGHTS_FILE, safetensors.torch.save(values))


def _class_name(activation: str) -> str:
    """Return the class of `torch.nn` with its module, as sentence-transformers imports it."""
    kind = getattr(torch.nn, activation)
    return f"{kind.__module__}.{kind.__qualname__}"


def _object(file: Path) -> dict[str, Any]:
    content = read_json(file, "a module of the sentence encoder", ModelError)
    if not isinstance(content, dict):
        raise ModelError(f"{file} holds no JSON object; fetch the model again")
    return content


def _write(file: Path, content: Any) -> None:
    write_atomically(file, json.dumps(content, indent=2) + "\n")
