"""The student of a distillation of vectors: where its weights come from, and what stands behind its transformer."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tinybert_ds.arguments.embed import EmbedDistillArguments
from tinybert_ds.data.calibration import calibration_blocks
from tinybert_ds.data.tokenizer import TOKENIZER_FILES, load_tokenizer, returns_token_types, tokenizer_fingerprint
from tinybert_ds.engine.ranks.exchange import RankExchange, gather_rows
from tinybert_ds.engine.ranks.process_group import World
from tinybert_ds.engine.teacher import Teacher
from tinybert_ds.errors import ConfigError, UserError, raise_all
from tinybert_ds.hardware import inference_dtype
from tinybert_ds.models.build import build_student, check_pair, padding_problems, resolve_student, svd_embeddings
from tinybert_ds.models.directory import model_files
from tinybert_ds.models.inherit.blocks import Blocks
from tinybert_ds.models.inherit.checks import check_inheritance
from tinybert_ds.models.inherit.sweep import Pupil
from tinybert_ds.models.pretrained import has_weights, read_config
from tinybert_ds.models.sentence.directory import has_modules, read_modules
from tinybert_ds.models.sentence.head import SentenceHead
from tinybert_ds.models.sentence.modules import Layer, Normalise, SentenceModules
from tinybert_ds.models.sentence.start import fit_projection
from tinybert_ds.models.student import DistilledStudent, count_parameters, freeze_unused
from tinybert_ds.stages.distillation import prepare_encoder
from tinybert_ds.stages.embed_data import EmbedData
from tinybert_ds.stages.inheritance import start_all_from_teacher
from tinybert_ds.stages.sentence_encoders import NO_PROMPT, SentenceDirectory, last_state_encoder
from tinybert_ds.types import Batch, move
from tinybert_ds.vector_objective import VectorObjective, VectorWeights

logger = logging.getLogger(__name__)


class Candidate(NamedTuple):
    path: Path
    config: Any
    tokenizer: PreTrainedTokenizerFast
    init: Literal["load", "teacher", "svd", "random"]
    layer_map: tuple[int, ...]  # empty but for "teacher"


def find_candidate(arguments: EmbedDistillArguments, teacher: SentenceDirectory | None) -> Candidate:
    """Find the student, and say where its weights and its tokeniser come from.

    Args:
        teacher: None where it is a column.

    Raises:
        ConfigError, ModelError: A student that does not fit its teacher or `--init`, or without a tokeniser.
    """
    path = resolve_student(arguments.student_model)
    config = read_config(path, role="student")
    files = model_files(path)
    own = path.is_dir() and any((files / name).is_file() for name in TOKENIZER_FILES)
    if not own and teacher is None:
        raise ConfigError(
            f"--student_model {arguments.student_model} has no tokeniser, and a teacher that is a column has none to "
            "give it; give a directory with config.json and tokeniser files"
        )
    tokenizer = load_tokenizer(path, arguments.lower_case) if own or teacher is None else teacher.tokenizer
    if path.is_dir() and has_weights(path):
        if arguments.init != "auto":
            raise ConfigError(
                f"--init {arguments.init}: the student {path} holds weights, which would be thrown away; leave --init "
                "out to start from them, or give the path of its config.json"
            )
        if not own and teacher is not None:
            check_pair(teacher.config, config, layer_map=None, padding_token=tokenizer.pad_token_id)
        return Candidate(path, config, tokenizer, "load", ())
    if teacher is None or tokenizer_fingerprint(tokenizer) != tokenizer_fingerprint(teacher.tokenizer):
        raise_all(padding_problems(config, config, tokenizer.pad_token_id))
        if teacher is not None and arguments.init != "random":
            _refuse_or_tell(
                arguments, ConfigError("its tokeniser is not the teacher's, whose words it cannot take over")
            )
        return Candidate(path, config, tokenizer, "random", ())
    check_pair(teacher.config, config, layer_map=None, padding_token=tokenizer.pad_token_id)
    return Candidate(path, config, tokenizer, *_start(arguments, teacher, config))


def _start(
    arguments: EmbedDistillArguments, teacher: SentenceDirectory, config: Any
) -> tuple[Literal["teacher", "svd", "random"], tuple[int, ...]]:
    """Say where the weights of a student come from that has none, and the layer map of a start by its teacher."""
    if arguments.init in ("svd", "random"):
        return arguments.init, ()
    if arguments.teacher_engine == "zero3":
        _refuse_or_tell(arguments, ConfigError("--teacher_engine zero3 says that the teacher does not fit in one rank"))
        return "random", ()
    try:
        layer_map = check_pair(teacher.config, config, layer_map=arguments.layer_map, attention=False)
        check_inheritance(teacher.config, config, layer_map)
    except UserError as error:
        _refuse_or_tell(arguments, error)
        return "random", ()
    return "teacher", layer_map


def _refuse_or_tell(arguments: EmbedDistillArguments, error: UserError) -> None:
    """Raise what keeps a student from a start by its teacher where that was asked for; else say it."""
    if arguments.init in ("teacher", "svd"):
        raise error
    logger.info("the student starts from random weights: %s", error)


class Wanted(NamedTuple):
    """What the teacher's vectors are like."""

    width: int
    normalised: bool
    modules: SentenceModules  # of the teacher; of a column the mean


def choose_modules(
    arguments: EmbedDistillArguments, wanted: Wanted, candidate: Candidate, max_seq_length: int
) -> SentenceModules:
    """Say what stands behind the student's transformer; without layers where the projection is to be fitted."""
    own = None
    if candidate.init == "load" and has_modules(candidate.path):
        own = read_modules(candidate.path, candidate.config.hidden_size)
    pooling = (own or wanted.modules).pooling
    if arguments.pooling != "teacher":
        pooling = (arguments.pooling,)
    finish: tuple[Layer, ...] = (Normalise(),) if wanted.normalised else ()
    layers: tuple[Layer, ...] = ()
    if own is not None and own.pooling == pooling and own.width(candidate.config.hidden_size) == wanted.width:
        kept = own.layers[:-1] if own.normalised else own.layers
        layers = (*kept, *finish) if kept else ()
    default = arguments.prompt_name or wanted.modules.default_prompt
    return SentenceModules(
        pooling,
        layers,
        max_seq_length=max_seq_length,
        prompts=wanted.modules.prompts,
        default_prompt=None if default == NO_PROMPT else default,
    )


def start_model(
    arguments: EmbedDistillArguments,
    candidate: Candidate,
    teacher_model: Callable[[], PreTrainedModel],
    data: EmbedData,
    world: World,
) -> PreTrainedModel:
    """Make the student's transformer and give it the weights that it starts from; called on all ranks."""
    weights: Literal["load", "random"] = "load" if candidate.init == "load" else "random"
    model = build_student(candidate.path, weights=weights, head=None, seed=arguments.seed)
    if candidate.init == "svd":
        svd_embeddings(teacher_model(), model)
    if candidate.init == "teacher":
        dtype = inference_dtype(world.device, arguments.teacher_dtype)
        text = _calibration_text(arguments, candidate, data)
        start_all_from_teacher(teacher_model(), [Pupil(model, candidate.layer_map)], text, dtype=dtype, world=world)
    return model


def fit_modules(
    arguments: EmbedDistillArguments,
    candidate: Candidate,
    model: PreTrainedModel,
    modules: SentenceModules,
    teacher: Teacher,
    data: EmbedData,
    *,
    normalised: bool,
    world: World,
) -> SentenceModules:
    """Return the student's modules with a projection that is fitted to the teacher's vectors; called on all ranks.

    Args:
        model: On the CPU before and after.
        modules: Without layers.
        normalised: Whether the teacher's vectors have length 1.
    """
    encoder = last_state_encoder(model, candidate.tokenizer, data.max_seq_length)
    # Ranks that hold parts of the teacher must all ask it equally often: each looks at all of the text.
    in_lockstep = arguments.teacher_engine == "zero3" and world.size > 1
    exchange = None if in_lockstep else RankExchange(world)

    def vectors_of(batch: Batch) -> Tensor:
        vectors = teacher(move(batch, world.device)).logits
        assert vectors is not None
        return vectors

    model.to(world.device)
    with tempfile.TemporaryDirectory(prefix="tinybert_vectors_") as directory:
        text = _calibration_text(arguments, candidate, data)
        blocks = Blocks(text, Path(directory), device=world.device, exchange=exchange)
        projection, share = fit_projection(encoder, modules.pooling, vectors_of, blocks)
    model.to("cpu")
    logger.info("the student's vectors explain %.1f %% of its teacher's before the first step", 100 * share)
    finish: tuple[Layer, ...] = (Normalise(),) if normalised else ()
    return replace(modules, layers=(projection, *finish))


def build_sentence_student(
    arguments: EmbedDistillArguments,
    candidate: Candidate,
    model: PreTrainedModel,
    modules: SentenceModules,
    data: EmbedData,
    world: World,
) -> DistilledStudent:
    """Return the module that trains the transformer and the layers behind it."""
    encoder = last_state_encoder(model, candidate.tokenizer, data.max_seq_length)
    frozen = freeze_unused(encoder)
    logger.info("student %.2f M parameters, vectors of width %d", count_parameters(model) / 1e6, _width(model, modules))
    if frozen:
        logger.info("not trained in this stage: %s", ", ".join(frozen))
    prepare_encoder(encoder, arguments, world)
    weights = VectorWeights(arguments.l2_weight, arguments.cosine_weight, arguments.relation_weight)
    return DistilledStudent(encoder, VectorObjective(SentenceHead(modules), weights=weights, gather=gather_rows))


def _calibration_text(arguments: EmbedDistillArguments, candidate: Candidate, data: EmbedData) -> list[Batch]:
    types = returns_token_types(candidate.tokenizer)
    return calibration_blocks(data.train, arguments.calibration_tokens, token_types=types)


def _width(model: PreTrainedModel, modules: SentenceModules) -> int:
    return modules.width(model.config.hidden_size)
