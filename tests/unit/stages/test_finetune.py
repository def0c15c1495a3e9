import dataclasses

import pytest

from tests.support.models import config_directory, model_directory
from tinybert_ds.arguments import FinetuneArguments
from tinybert_ds.errors import ModelError
from tinybert_ds.stages.finetune import find_model

ARGUMENTS = FinetuneArguments(model="m", data_dir="d", output_dir="o")


def found(path, *, from_scratch=False):
    return find_model(dataclasses.replace(ARGUMENTS, model=str(path), from_scratch=from_scratch))


def test_the_model_has_weights_or_is_an_architecture_without_any(tmp_path):
    whole, bare = model_directory(tmp_path / "whole"), config_directory(tmp_path / "bare")
    assert found(whole) == whole
    assert found(bare, from_scratch=True) == bare
    assert found("3L_192", from_scratch=True).name == "3L_192.json"


def test_a_model_that_does_not_fit_is_refused_in_the_words_of_this_command(tmp_path):
    whole, bare = model_directory(tmp_path / "whole"), config_directory(tmp_path / "bare")
    with pytest.raises(ModelError, match=r"model .*missing does not exist"):
        found(tmp_path / "missing")
    with pytest.raises(ModelError, match=r"model .*bare holds no weights; .* with --from_scratch"):
        found(bare)
    with pytest.raises(ModelError, match=r"that --from_scratch would throw away; leave that out"):
        found(whole, from_scratch=True)
