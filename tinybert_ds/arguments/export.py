"""The arguments of the export of a model to other runtimes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tinybert_ds.arguments import groups
from tinybert_ds.arguments.card import Published
from tinybert_ds.arguments.compare import CompareArguments
from tinybert_ds.arguments.embed import EmbedDistillArguments, StsFiles
from tinybert_ds.arguments.option import flags_of, like, machine, result
from tinybert_ds.arguments.task import FinetuneArguments


@dataclass(frozen=True, kw_only=True)
class ExportModelArguments(groups.TaskName, Published):
    """Write a fine-tuned model or a sentence encoder for ONNX Runtime and OpenVINO, whole and in fewer bits, and
    measure each file beside the model that it was made of: quality, latency, memory, size. What loses too much fails
    the command."""

    prog = "export_model.py"

    model: str = like(
        FinetuneArguments.__dataclass_fields__["model"],
        help="Directory of the fine-tuned model, or of a sentence encoder.",
    )
    teacher: str | None = like(
        CompareArguments.__dataclass_fields__["teacher"],
        None,
        help="Directory of its teacher, which is measured beside it in the same formats.",
    )
    output_dir: str = like(groups.OUTPUT_DIR)
    format: list[Literal["onnx", "openvino"]] = result("What is written.", ["onnx", "openvino"])
    precision: list[Literal["fp32", "fp16", "int8"]] = result(
        "In which precisions. int8 needs the task, or of a sentence encoder --texts: its layers are chosen by "
        "measurement on training rows.",
        ["fp32", "int8"],
    )
    int8: list[Literal["dynamic", "static"]] = result(
        "ONNX int8 with scales of the activations that are computed for each batch, or fixed ones of calibration rows. "
        "OpenVINO's int8 is static.",
        ["dynamic"],
    )
    opset: int = result(
        "Operator set of ONNX files in fp32 and fp16. Older runtimes read 20, too; 24 is faster, see --int8_opset.",
        20,
        least=18,
    )
    int8_opset: int = result(
        "Operator set of ONNX files in int8. From 24 on attention is one operator, the fastest on a CPU, for ONNX "
        "Runtime from 1.24 on; give 20 for older ones.",
        24,
        least=18,
    )
    keep_padding: bool = result(
        "Let ONNX files in fp32 and int8 compute padding as well: each shape then follows from those of the inputs, as "
        "compilers for accelerators want it. Graphs in which more than masked attention mixes tokens do so anyway.",
        False,
    )
    data_dir: str | None = like(groups.DATA_DIR, None, help="Directory of the task's files.")
    split: str | None = like(
        CompareArguments.__dataclass_fields__["split"],
        None,
        help="Labelled split to measure on. Default: the task's evaluation split.",
    )
    sts: str | None = like(
        StsFiles.__dataclass_fields__["sts"],
        None,
        help="Of a sentence encoder: file of sentence pairs with a score of their likeness, .tsv, .csv, .jsonl or "
        ".parquet; its metric is Spearman's correlation of the scores with the cosines of the vectors.",
    )
    sts_columns: list[str] = like(StsFiles.__dataclass_fields__["sts_columns"])
    texts: list[str] = like(
        EmbedDistillArguments.__dataclass_fields__["texts"],
        help="Of a sentence encoder: files of texts that int8 is calibrated on, the first 10,000 of them, and without "
        "--sts others of these that vectors are compared on; .txt (one a line), .tsv, .csv, .jsonl, .json, .parquet.",
    )
    text_column: list[str] = like(EmbedDistillArguments.__dataclass_fields__["text_column"])
    calibration_rows: int = result(
        "Training rows, or --texts, that fix the scales of static int8, and twice as many others that choose the "
        "layers that stay in float.",
        256,
        least=1,
    )
    max_loss: float = result(
        "How much of the official metric a file may lose against the model; more fails the command.",
        0.01,
        least=0,
    )
    max_seq_length: int | None = like(groups.MAX_SEQ_LENGTH)
    allow_unknown: bool = like(groups.ALLOW_UNKNOWN)
    threads: int | None = machine("Threads of each runtime. Default: those of torch here.", None, least=1)

    def problems(self) -> list[str]:
        found = super().problems()
        task = (self.task_name is None) != (self.task_file is None)
        if (self.data_dir is None) == task or (self.task_name is not None and self.task_file is not None):
            found.append("--data_dir goes with one of --task_name and --task_file")
        elif not task and not self.texts and "int8" in self.precision:
            found.append(
                "--precision int8 needs the task (--data_dir with --task_name or --task_file), or of a sentence "
                "encoder --texts, which says what a layer in 8 bits loses; or leave int8 out"
            )
        if self.split is not None and not task:
            found.append("--split is one of a task's; give --task_name or --task_file with it")
        found += [
            f"--{name} is 23, for which torch's exporter writes rotary embeddings that ONNX Runtime refuses; give "
            "22 or 24"
            for name in ("opset", "int8_opset")
            if getattr(self, name) == 23
        ]
        found += self._unread_problems() + self._vector_problems(task)
        if self.several_tasks:
            found.append("give one --task_name: a model is exported for its own task")
        return found

    def _vector_problems(self, task: bool) -> list[str]:
        """What is wrong with the flags of sentence encoders."""
        found = [
            f"--{name} is for sentence encoders, which have no task; leave it out, or --data_dir"
            for name in ("sts", "texts")
            if task and getattr(self, name)
        ]
        if self.texts and self.sts and "int8" not in self.precision:
            found.append("--texts is for int8 and, without --sts, for the comparison; leave it out, or add int8")
        if len(self.sts_columns) != 3:
            found.append(f"--sts_columns are {self.sts_columns}; give three: two sentences and their score")
        return found

    def _unread_problems(self) -> list[str]:
        """What nobody reads with these formats and precisions."""
        onnx, int8 = "onnx" in self.format, "int8" in self.precision
        for_onnx = "is for ONNX files; leave it out, or add onnx to --format"
        for_int8 = "is for files in 8 bits; leave it out, or add int8 to --precision"
        for_more = "is for ONNX files in fp32 and fp16; leave it out, or give --int8_opset"
        wider = {"fp32", "fp16"} & {*self.precision}
        readers: dict[str, tuple[bool, str]] = {"calibration_rows": (int8, for_int8)}
        readers["opset"] = (onnx and bool(wider), for_more if onnx else for_onnx)
        for_cpus = "is for ONNX files in fp32 and int8; leave it out, others have padding anyway"
        readers["keep_padding"] = (onnx and bool({"fp32", "int8"} & {*self.precision}), for_cpus if onnx else for_onnx)
        readers["int8"] = readers["int8_opset"] = (onnx and int8, for_int8 if onnx else for_onnx)
        stated = [flag for flag in flags_of(type(self)) if getattr(self, flag.name) != flag.default]
        return [f"{flag.shown} {readers[flag.name][1]}" for flag in stated if not readers.get(flag.name, (True, ""))[0]]
