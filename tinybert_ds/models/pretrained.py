"""Strict loading of Hugging Face directories: never remote code, never a weight that is made up in silence."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import (
    CONFIG_MAPPING,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedModel,
)
from transformers.utils import logging as transformers_logging

from tinybert_ds.errors import ModelError
from tinybert_ds.foreign_text import listed, shown
from tinybert_ds.models import published
from tinybert_ds.models.config_values import config_problems, content_problems
from tinybert_ds.models.directory import model_files, require_fetched
from tinybert_ds.models.foreign import foreign_code
from tinybert_ds.models.labels import Head, HeadKind, output_names, set_labels
from tinybert_ds.strict_formats import parse_json

logger = logging.getLogger(__name__)

Role = Literal["teacher", "student", "model"]
"""What a directory is to be; it only words the messages."""

WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    published.WEIGHTS_FILE,
    f"{published.WEIGHTS_FILE}.index.json",
)
HEAD_CLASSES: Mapping[HeadKind, Any] = {
    "one": AutoModelForSequenceClassification,
    "several": AutoModelForSequenceClassification,
    "tokens": AutoModelForTokenClassification,
    "spans": AutoModelForQuestionAnswering,
}
_WEIGHT_PATTERNS = ("model*.safetensors", "pytorch_model*.bin")
"""Of the files that hold them, shards included."""


def read_config(path: str | Path, *, role: Role) -> Any:
    """Read the config of a model directory, or a config.json itself.

    Args:
        path: A directory with a config.json, or that file. One without `model_type` is read as BERT's if it has BERT's
            keys (the published TinyBERTs); the number of outputs is then that of the weights beside it.

    Raises:
        ModelError: Nothing there, an adapter, not JSON, an architecture that transformers does not know (remote code is
            never run), values that it or a model of it does not take, or an encoder-decoder.
    """
    path = model_files(path)
    file = path / "config.json" if path.is_dir() else path
    if not file.is_file():
        what = "has no config.json" if path.is_dir() else "does not exist"
        raise ModelError(f"{role} {path} {what}; give a Hugging Face model directory")
    require_fetched([file])
    with foreign_code(f"{file} is not JSON", "give a Hugging Face model directory"):
        content = parse_json(file.read_bytes())
    if not isinstance(content, dict):
        raise ModelError(f"{file} holds no JSON object; give a Hugging Face model directory")
    invalid = f"{file} is not a valid model config"
    if problems := content_problems(content):
        raise ModelError(f"{invalid}: {'; '.join(problems)}")
    with foreign_code(invalid, "correct the value, or fetch the file again"):
        config: Any = _published_config(content, file.with_name(published.WEIGHTS_FILE))
        config = config or _hugging_face_config(content, file)
        problems = config_problems(config)
    if problems:
        raise ModelError(f"{invalid}: {'; '.join(problems)}")
    if getattr(config, "vocab_size", None) is None or getattr(config, "is_encoder_decoder", False):
        raise ModelError(
            f"{role} {path} (model_type {config.model_type!r}) is not a text encoder; use one such as BERT"
        )
    return config


def has_weights(directory: str | Path) -> bool:
    """Whether a directory holds weights in a form that transformers loads."""
    return any((model_files(directory) / name).is_file() for name in WEIGHT_FILES)


def weights_bytes(directory: str | Path) -> int:
    """Return the size of the weights that are loaded from a directory, without projections or copies in other forms."""
    folder = model_files(directory)
    name = next((name for name in WEIGHT_FILES if (folder / name).is_file()), "")
    stem, _, ending = name.removesuffix(".index.json").rpartition(".")
    files = folder.glob(f"{stem}-*.{ending}") if name.endswith(".index.json") else [folder / name] if name else []
    return sum(file.stat().st_size for file in files)


def load_encoder(directory: str | Path, *, role: Role, seed: int = 0) -> PreTrainedModel:
    """Load an encoder without a head, in float32 and eval mode.

    Args:
        directory: config.json with safetensors or .bin weights (weights only).
        seed: Of a pooler that the directory lacks; it is new then, and a log line says so.

    Raises:
        ModelError: No such directory, no weights, unreadable ones, or any encoder weight that is missing, of another
            shape or without a place in the config's architecture, with their names.
    """
    config = read_config(directory, role=role)
    model, info = _load(AutoModel, Path(directory), config, role, seed)
    _check_encoder(model, info, directory, role)
    if _missing(info):
        logger.info("%s %s: new pooler (%s)", role, directory, listed(sorted(_missing(info))))
    _log_extras(model, info, directory, role)
    return model


def load_classifier(
    directory: str | Path,
    *,
    label_names: Sequence[str] | None,
    role: Role,
    head: Literal["any", "required"] = "any",
    pooler_relu: bool = False,
    seed: int = 0,
    kind: HeadKind = "one",
) -> PreTrainedModel:
    """Load an encoder with a classification head, in float32 and eval mode.

    Args:
        label_names: The task's labels in the order of their ids; None for regression (one output).
        head: "required": the directory must hold a fine-tuned head with as many outputs as the task, whose own names
            stay in the config for `match_labels`. "any": its head is taken where the names of its outputs are the
            task's, else a new one is made and a log line says so; the config gets the task's names.
        kind: What the head answers.
        pooler_relu: Put the published fine-tuned TinyBERTs' ReLU behind the pooler (a saved config may also ask).

    Raises:
        ModelError: As for `load_encoder`; a required head that is missing or of another size; `pooler_relu` for
            something other than a BERT.
    """
    config = read_config(directory, role=role)
    own_names, own_type = output_names(config), getattr(config, "problem_type", None)
    if head == "any":
        set_labels(config, label_names, kind)
    other_kind = head == "any" and own_type not in (None, config.problem_type)
    model, info = _load(HEAD_CLASSES[kind], Path(directory), config, role, seed)
    _check_encoder(model, info, directory, role)
    new = sorted(_missing(info))
    if kind == "tokens" and head == "required" and not _is_for_tokens(config):
        raise ModelError(
            f"{role} {directory} has a head for whole texts ({listed(config.architectures)}), and this task has a tag "
            "for each word; fine-tune it on the task first, with launchers/finetune_teacher.py"
        )
    if head == "required":
        _check_head(new, own_names, 1 if label_names is None else len(label_names), directory, role)
    elif other_kind or (kind != "spans" and _is_for_other_labels(info, own_names, label_names)):
        # A head for other classes, or for the same ones in another order, is worse than a new one.
        new = sorted({*new, *_renew_head(model, seed)})
    if new:
        logger.info("%s %s: new classification head (%s)", role, directory, listed(new))
    _log_extras(model, info, directory, role)
    if pooler_relu or getattr(config, "pooler_relu", False):
        published.apply_pooler_relu(model)
    return model


def load_headed(directory: str | Path, head: Head, *, role: Role, pooler_relu: bool = False) -> PreTrainedModel:
    """Load a fine-tuned model with the head that a task asks for; see `load_classifier`.

    Raises:
        ModelError: As for `load_classifier` with a required head.
    """
    return load_classifier(
        directory,
        label_names=head.label_names,
        role=role,
        head="required",
        pooler_relu=pooler_relu or head.pooler_relu,
        kind=head.kind,
    )


def load_masked_lm(directory: str | Path) -> PreTrainedModel:
    """Load an encoder with its head for masked words, in float32 and eval mode.

    Raises:
        ModelError: As for `load_encoder`; no head for masked words in the directory, or none in the architecture.
    """
    config = read_config(directory, role="model")
    model, info = _load(AutoModelForMaskedLM, Path(directory), config, "model", seed=0)
    _check_encoder(model, info, directory, "model")
    missing = sorted(key for key in _missing(info) if "pooler" not in key)
    if missing:
        raise ModelError(
            f"model {directory} has no head for masked words (missing: {listed(missing)}); give a directory that was "
            "saved with it, as pre-trained BERTs are"
        )
    _log_extras(model, info, directory, "model")
    return model


def _check_head(new: list[str], names: Sequence[str], wanted: int, directory: str | Path, role: Role) -> None:
    if new:
        raise ModelError(
            f"{role} {directory} has no fine-tuned classification head (missing: {listed(new)}); fine-tune it on the "
            "task first, with launchers/finetune_teacher.py"
        )
    if len(names) != wanted:
        raise ModelError(
            f"{role} {directory} has {len(names)} outputs ({listed(names)}), the task has {wanted}; give a model "
            "that was fine-tuned on this task"
        )


def _hugging_face_config(content: dict[str, Any], file: Path) -> Any:
    model_type = content.get("model_type")
    if model_type not in CONFIG_MAPPING:
        remote = " (it asks for remote code, which is never run)" if "auto_map" in content else ""
        found = f"model_type {shown(repr(model_type))}" if model_type else "no model_type"
        raise ModelError(
            f"{file} has {found}, which the installed transformers does not know{remote}; use an architecture of "
            'transformers, such as "bert"'
        )
    return CONFIG_MAPPING[model_type].from_dict(content)


def _published_config(content: dict[str, Any], weights: Path) -> Any | None:
    config = published.published_config(content)
    if config is not None and "id2label" not in content and weights.is_file():
        classifier = published.read_bin(weights).get("classifier.weight")
        if classifier is not None:  # of a fine-tuned one, whose config.json does not say how many outputs it has
            config.num_labels = len(classifier)
    return config


def _load(auto_class: Any, directory: Path, config: Any, role: Role, seed: int) -> tuple[PreTrainedModel, dict]:
    directory = model_files(directory)
    if not directory.is_dir() or not has_weights(directory):
        raise ModelError(
            f"{role} {directory} has no weights; give a directory with one of {', '.join(WEIGHT_FILES)} beside its "
            f"config.json{_weights_of_other_names(directory)}"
        )
    require_fetched(file for pattern in _WEIGHT_PATTERNS for file in sorted(directory.glob(pattern)))
    failed = f"{role} {directory} (model_type {config.model_type!r}) cannot be loaded"
    with foreign_code(failed, "fetch the directory again, or give another one"), seeded(seed), quiet():
        return auto_class.from_pretrained(
            directory,
            config=config,
            dtype=torch.float32,
            local_files_only=True,
            trust_remote_code=False,
            weights_only=True,
            ignore_mismatched_sizes=True,  # mismatches are judged, and named, by us
            output_loading_info=True,
        )


def _weights_of_other_names(directory: Path) -> str:
    """What to do with weights that are there under a name that is not looked for, such as model.fp16.safetensors."""
    names = sorted(file.name for end in ("safetensors", "bin") for file in directory.glob(f"*.{end}"))
    if not names:
        return ""
    wanted = WEIGHT_FILES[0] if names[0].endswith("safetensors") else published.WEIGHTS_FILE
    return f". It has {listed(names)}: if {names[0]} holds its weights, rename it to {wanted}"


def _check_encoder(model: PreTrainedModel, info: dict, directory: str | Path, role: Role) -> None:
    """Refuse made-up or left-over encoder weights; heads and poolers are the callers' affair."""
    problems = []
    missing = sorted(key for key in info["missing_keys"] if _is_encoder_key(model, key))
    if missing:
        problems.append(f"{len(missing)} weights of the encoder are missing: {listed(missing)}")
    for key, found, wanted in sorted(info["mismatched_keys"]):
        if _is_encoder_key(model, key):
            problems.append(f"{key} has shape {list(found)}, its config asks for {list(wanted)}")
    left_over = sorted(key for key in info["unexpected_keys"] if _is_encoder_key(model, key))
    if left_over:
        problems.append(f"{len(left_over)} weights have no place in its config's architecture: {listed(left_over)}")
    if problems:
        raise ModelError(
            f"the weights of {role} {directory} do not fit its config.json ({type(model).__name__}): "
            f"{'; '.join(problems)}. {_wrapped(directory) or 'Give the weights and the config of one model'}"
        )
    broken = [name for name, value in model.named_parameters() if not torch.isfinite(value).all()]
    if broken:
        raise ModelError(
            f"{len(broken)} weights of {role} {directory} hold numbers that are not finite: {listed(broken)}. They "
            "were saved so, or damaged: fetch the model again, or give another one"
        )


def _wrapped(directory: str | Path) -> str:
    """What to do with a .bin whose weights stand one level too deep, "" where they do not."""
    file = model_files(directory) / published.WEIGHTS_FILE
    if not file.is_file() or (file.parent / WEIGHT_FILES[0]).is_file():
        return ""
    name = published.wrapping_name(file)
    if name is None:
        return ""
    return (
        f'{file} keeps its weights under the key {name!r}; unwrap them: python -c "import torch; torch.save('
        f"torch.load({str(file)!r}, weights_only=True, map_location='cpu')[{name!r}], {str(file)!r})\""
    )


def _is_encoder_key(model: PreTrainedModel, key: str) -> bool:
    """Whether a key belongs to the base model, other than to its pooler or to a buffer that old files hold."""
    parts = {name.partition(".")[0] for name, _ in model.base_model.named_parameters()}
    part = key.removeprefix(f"{model.base_model_prefix}.").partition(".")[0]
    return part in parts and not part.startswith("pooler") and not key.endswith("position_ids")


def _is_for_tokens(config: Any) -> bool:
    """Whether the weights may be those of a head for tokens, whose names are often those of one for texts."""
    names = getattr(config, "architectures", None) or []
    return not names or any("TokenClassification" in name for name in names)


def _missing(info: dict) -> set[str]:
    return set(info["missing_keys"]) | {key for key, *_ in info["mismatched_keys"]}


def _is_for_other_labels(info: dict, names: Sequence[str], label_names: Sequence[str] | None) -> bool:
    """Whether the directory holds a head, and one that predicts something else."""
    if any("pooler" not in key for key in info["missing_keys"]):
        return False
    return len(names) != 1 if label_names is None else tuple(names) != tuple(label_names)


def _renew_head(model: PreTrainedModel, seed: int) -> list[str]:
    """Give the head the weights that a new model of its class would have, in place; the names of its parameters."""
    with seeded(seed):
        fresh = dict(type(model)(model.config).named_parameters())
    head = [name for name, _ in model.named_parameters() if not name.startswith(f"{model.base_model_prefix}.")]
    with torch.no_grad():
        for name in head:
            model.get_parameter(name).copy_(fresh[name])
    return head


def _log_extras(model: PreTrainedModel, info: dict, directory: str | Path, role: Role) -> None:
    heads = sorted({_head_name(key) for key in info["unexpected_keys"] if not key.endswith("position_ids")})
    if heads:
        logger.info(
            "%s %s: left out what %s has no use for: %s", role, directory, type(model).__name__, ", ".join(heads)
        )


def _head_name(key: str) -> str:
    parts = key.split(".")
    return ".".join(parts[:2] if parts[0] in ("cls", "bert", "roberta", "fit_denses") else parts[:1])


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Run a block with torch's CPU generator at `seed`, and put the generator back afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' load report and progress bars off the terminal: our own messages say the same in a line."""
    verbosity = transformers_logging.get_verbosity()
    bar = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bar:
            transformers_logging.enable_progress_bar()
