"""Students: made or loaded, and whether they fit their teacher."""

from __future__ import annotations

import logging

import pytest
import torch
from transformers import AutoConfig

from tests.support.models import config_directory, model_directory, tiny_config, tiny_model
from tinybert_ds.errors import ConfigError, ModelError
from tinybert_ds.models.build import (
    Head,
    build_student,
    check_pair,
    resolve_student,
    shipped_students,
    svd_embeddings,
)
from tinybert_ds.models.pretrained import read_config
from tinybert_ds.models.student import count_parameters


@pytest.mark.parametrize(
    ("name", "parameters", "size"),
    [
        ("4L_312", 14_350_248, (4, 312, 1200, 12)),  # 14.35 M published
        ("6L_768", 66_955_008, (6, 768, 3072, 12)),  # 66.96 M published
        ("3L_192", 7_330_944, (3, 192, 768, 12)),
    ],
)
def test_a_shipped_student_has_its_published_size(name, parameters, size):
    config = read_config(resolve_student(name), role="student")
    assert (config.num_hidden_layers, config.hidden_size, config.intermediate_size, config.num_attention_heads) == size
    assert config.vocab_size == 30522
    assert name in shipped_students()
    assert count_parameters(build_student(name, weights="random", head=None, seed=0)) == parameters


def test_random_weights_come_from_the_seed_alone(tmp_path):
    config_directory(tmp_path)
    before = torch.random.get_rng_state()
    first, again, other = (build_student(tmp_path, weights="random", head=None, seed=seed) for seed in (1, 1, 2))
    pairs = zip(first.state_dict().values(), again.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.equal(first.get_input_embeddings().weight, other.get_input_embeddings().weight)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not first.training
    assert first.dtype == torch.float32


def test_a_config_file_and_its_directory_give_the_same_student(tmp_path):
    config_directory(tmp_path)
    models = [build_student(path, weights="random", head=None, seed=1) for path in (tmp_path, tmp_path / "config.json")]
    assert torch.equal(*(model.get_input_embeddings().weight for model in models))


def test_a_random_student_can_have_a_head(tmp_path):
    config_directory(tmp_path)
    model = build_student(tmp_path, weights="random", head=Head(("bad", "good", "mixed")), seed=1)
    assert model.config.id2label == {0: "bad", 1: "good", 2: "mixed"}
    assert model.classifier.weight.shape == (3, 24)
    assert build_student(tmp_path, weights="random", head=Head(None), seed=1).classifier.weight.shape == (1, 24)


def test_weights_are_loaded_when_asked_for_with_and_without_a_head(tmp_path):
    model_directory(tmp_path, seed=6)
    expected = tiny_model(seed=6).get_input_embeddings().weight
    for head in (None, Head(("bad", "good"))):
        model = build_student(tmp_path, weights="load", head=head, seed=1)
        assert torch.equal(model.get_input_embeddings().weight, expected)


def test_weights_are_never_thrown_away_in_silence(tmp_path):
    model_directory(tmp_path)
    with pytest.raises(ModelError, match="would be thrown away; give --continue_train"):
        build_student(tmp_path, weights="random", head=None, seed=1)
    build_student(tmp_path / "config.json", weights="random", head=None, seed=1)


def test_a_source_without_weights_is_refused_where_they_are_needed(tmp_path):
    config_directory(tmp_path)
    for source in (tmp_path, tmp_path / "config.json", "4L_312"):
        with pytest.raises(ModelError, match="holds no weights, and this command starts from trained ones"):
            build_student(source, weights="load", head=None, seed=1)


def test_an_unknown_student_is_refused_with_the_shipped_names():
    with pytest.raises(ModelError, match="one of the shipped students: 3L_192, 4L_312, 6L_768"):
        build_student("5L_312", weights="random", head=None, seed=1)


def test_a_config_that_no_model_can_be_built_from_is_refused(tmp_path):
    config_directory(tmp_path, num_attention_heads=5)
    with pytest.raises(ModelError, match="multiple of the number of attention heads"):
        build_student(tmp_path, weights="random", head=None, seed=1)


def student_config(**changes):
    return tiny_config(**{"num_hidden_layers": 2, "hidden_size": 24, "intermediate_size": 32, **changes})


def test_a_pair_that_fits_gives_its_layer_map():
    assert check_pair(tiny_config(), student_config(), layer_map="uniform") == (0, 2, 4)
    assert check_pair(tiny_config("distilbert"), student_config(), layer_map="last") == (0, 3, 4)
    assert check_pair(tiny_config(), student_config(num_attention_heads=6), layer_map=None) == ()


def test_everything_that_does_not_fit_is_reported_together():
    student = student_config(vocab_size=30522, num_attention_heads=6, num_hidden_layers=5)
    with pytest.raises(ConfigError) as error:
        check_pair(tiny_config(), student, layer_map="uniform", projection="none")
    message = str(error.value)
    assert message.startswith("4 problems:")
    assert f'set "vocab_size": {tiny_config().vocab_size} in the student\'s config.json' in message
    assert 'set "num_attention_heads": 4 in the student\'s config.json' in message
    assert "--projection none needs equal widths; the student has hidden_size 24, the teacher 48" in message
    assert "layer map 'uniform' needs a student no deeper than its teacher" in message


def test_a_depth_that_does_not_divide_gets_the_nearest_states_and_is_told(caplog):
    with caplog.at_level(logging.INFO, logger="tinybert_ds"):
        assert check_pair(tiny_config(), student_config(num_hidden_layers=3), layer_map="uniform") == (0, 1, 3, 4)
        assert "4 teacher layers for 3 student layers: the layer map is 0,1,3,4, the nearest" in caplog.text
        caplog.clear()
        check_pair(tiny_config(), student_config(), layer_map="uniform")
        check_pair(tiny_config(), student_config(), layer_map="last")
    assert not caplog.text


def test_a_uniform_map_of_scores_keeps_to_layers_whose_windows_span_the_rows():
    special = dict.fromkeys(("cls_token_id", "sep_token_id", "bos_token_id", "eos_token_id"), 2)
    teacher = tiny_config("modernbert", num_hidden_layers=6, local_attention=8, global_attn_every_n_layers=3, **special)
    found = [
        check_pair(teacher, student_config(), layer_map="uniform", attention=scores, sequence_length=length)
        for scores, length in ((True, 5), (True, 6), (False, 6))
    ]
    assert found == [(0, 3, 6), (0, 1, 4), (0, 3, 6)]


def test_a_student_that_pads_with_a_word_of_its_teacher_is_refused():
    with pytest.raises(ConfigError, match='padding is token 0, the teacher\'s 1; set "pad_token_id": 1'):
        check_pair(tiny_config("roberta"), student_config(), layer_map="uniform")
    student = student_config(pad_token_id=1)
    assert check_pair(tiny_config("roberta"), student, layer_map="uniform") == (0, 2, 4)


def test_the_tokenisers_padding_is_believed_before_the_teachers():
    # Multilingual MiniLM: BERT's config, which pads with 0, and XLM-R's tokeniser, which pads with 1; 0 is its <s>.
    for layer_map in ("uniform", None):
        with pytest.raises(ConfigError, match='padding is token 0, the tokeniser\'s 1; set "pad_token_id": 1'):
            check_pair(tiny_config(), student_config(), layer_map=layer_map, padding_token=1)
    student = student_config(pad_token_id=1)
    assert check_pair(tiny_config(), student, layer_map="uniform", padding_token=1) == (0, 2, 4)
    assert check_pair(tiny_config(), student_config(), layer_map="uniform", padding_token=0) == (0, 2, 4)


def test_numbers_of_heads_do_not_count_where_attention_is_not_compared():
    student = student_config(num_attention_heads=6)
    with pytest.raises(ConfigError, match=r"6 attention heads, the teacher 4; .*--attention_weight 0"):
        check_pair(tiny_config(), student, layer_map="uniform")
    assert check_pair(tiny_config(), student, layer_map="uniform", attention=False) == (0, 2, 4)


def test_architectures_without_heads_are_compared_by_their_states_alone():
    student = AutoConfig.for_model("fnet", num_hidden_layers=2, vocab_size=tiny_config().vocab_size, pad_token_id=0)
    with pytest.raises(
        ConfigError, match=r"student's config\.json .* no single num_attention_heads.*--attention_weight 0"
    ):
        check_pair(tiny_config(), student, layer_map="uniform")
    assert check_pair(tiny_config(), student, layer_map="uniform", attention=False) == (0, 2, 4)


def test_predictions_only_need_the_same_vocabulary():
    with pytest.raises(ConfigError, match="vocabulary has 30522 entries"):
        check_pair(tiny_config(), student_config(vocab_size=30522), layer_map=None)


def tables(model):
    embeddings = model.embeddings
    names = ("word_embeddings", "position_embeddings", "token_type_embeddings")
    return [getattr(embeddings, name).weight.detach().double() for name in names]


def test_svd_embeddings_rebuild_the_teachers_words_as_well_as_any_table_of_their_width():
    teacher, student = tiny_model(), tiny_model(hidden_size=24, intermediate_size=32)
    svd_embeddings(teacher, student)
    (words, *_), (own, *_) = tables(teacher), tables(student)
    residual = words - own @ torch.linalg.lstsq(own, words).solution
    optimum = torch.linalg.svdvals(words)[24:].square().sum()  # Eckart-Young
    assert residual.square().sum() == pytest.approx(optimum.item(), rel=1e-4)
    assert optimum > 1


def test_svd_embeddings_put_words_positions_and_segments_through_one_map():
    teacher, student = tiny_model(), tiny_model(hidden_size=24, intermediate_size=32, max_position_embeddings=32)
    svd_embeddings(teacher, student)
    (words, *others), (own, *own_others) = tables(teacher), tables(student)
    basis = torch.linalg.lstsq(words, own).solution
    torch.testing.assert_close(basis.T @ basis, torch.eye(24, dtype=torch.float64), rtol=0, atol=1e-4)
    for table, own_table in zip(others, own_others, strict=True):
        torch.testing.assert_close(table[: len(own_table)] @ basis, own_table, rtol=0, atol=1e-4)


def test_svd_embeddings_of_tables_that_do_not_fit_are_refused():
    teacher = tiny_model(hidden_size=24, intermediate_size=32)
    with pytest.raises(ModelError, match=r"\(48\) are no wider than the teacher's \(24\)"):
        svd_embeddings(teacher, tiny_model())
    with pytest.raises(ModelError, match="128 position embeddings, the teacher 64"):
        svd_embeddings(teacher, tiny_model(hidden_size=12, max_position_embeddings=128))
    with pytest.raises(ModelError, match="100 word embeddings"):
        svd_embeddings(teacher, tiny_model(hidden_size=12, vocab_size=100))
