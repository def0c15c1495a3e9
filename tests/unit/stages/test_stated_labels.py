"""`--teacher_labels` beside several models."""

from tests.support.models import tiny_config
from tinybert_ds.arguments import EvaluateArguments
from tinybert_ds.data.tasks import TASKS
from tinybert_ds.stages.evaluate_glue import stated_labels


def test_stated_labels_are_for_the_models_that_do_not_name_the_tasks_themselves():
    stated = ["positive", "negative"]
    arguments = EvaluateArguments(model=["t=a", "s=b"], output_dir="out", teacher_labels=",".join(stated))
    for names, expected in (
        (("LABEL_0", "LABEL_1"), stated),
        (("good", "bad"), stated),
        (("negative", "positive"), None),
        (("Positive", "0"), None),
    ):
        config = tiny_config(id2label=dict(enumerate(names)))
        assert stated_labels(arguments, config, TASKS["sst-2"]) == expected
