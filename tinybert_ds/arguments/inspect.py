"""The arguments of the inspection and adoption of shards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tinybert_ds.arguments.groups import BERT_MODEL, SEED, Casing
from tinybert_ds.arguments.option import data, like, pace


@dataclass(frozen=True, kw_only=True)
class InspectArguments(Casing):
    """Show what is in a corpus directory, check its files, print samples as text, adopt shards of other tools.

    Shards of other tools, of int16, int32 or uint16, are left as they are; --adopt writes a manifest beside them.
    """

    prog = "inspect_shards.py"

    directory: str = data("Output of pregenerate_training_data.py.", path=True, positional=True)
    verify: bool = pace("Read every file and compare its hash; exit code 2 on damage.", False)
    decode: int = pace("Print the first N samples of an epoch.", 0, least=0)
    seed: int = like(SEED, help="Seed of the samples that --decode prints.")
    adopt: bool = data("Check the shards in DIR and write a manifest beside them.", False)
    bert_model: str | None = like(
        BERT_MODEL, None, help="With --adopt: model directory with the tokeniser that made the ids."
    )
    dtype_codes: Literal["deepspeed", "megatron"] | None = data(
        "With --adopt, of uint16 shards: whose they are; the code of that dtype is 6 to DeepSpeed, 8 to Megatron.", None
    )

    def problems(self) -> list[str]:
        found = super().problems()
        if self.adopt != (self.bert_model is not None):
            found.append("--adopt and --bert_model go together")
        if self.dtype_codes is not None and not self.adopt:
            found.append("--dtype_codes goes with --adopt")
        return found
