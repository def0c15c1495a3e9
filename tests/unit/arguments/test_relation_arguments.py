"""How the command line says which relations between tokens are compared."""

from __future__ import annotations

import pytest

from tinybert_ds.arguments import GeneralDistillArguments, TaskDistillArguments, identity_of, parse_arguments

GENERAL = ["--pregenerated_data", "d", "--teacher_model", "t", "--student_model", "s", "--output_dir", "o"]
TASK = ["--teacher_model", "t", "--student_model", "s", "--output_dir", "o", "--data_dir", "d", "--task_name", "sst-2"]
KL = ["--attention_loss", "relations_kl"]


def parse(*words: str) -> tuple[GeneralDistillArguments, list[str]]:
    return parse_arguments(GeneralDistillArguments, [*GENERAL, *words], "general_distill.py")


@pytest.mark.parametrize(
    ("words", "factors"),
    [
        ([], (1.0, 1.0, 1.0)),
        (["--relations", "vv"], (0.0, 0.0, 1.0)),
        (["--relations", "kk=0.5, qq"], (1.0, 0.5, 0.0)),
        (["--relations", "qq=0,kk=1e-1,vv=2"], (0.0, 0.1, 2.0)),
    ],
)
def test_relations_are_named_with_weights_or_without(words, factors):
    arguments, problems = parse(*KL, *words)
    assert problems == []
    assert arguments.relation_factors == dict(zip(("queries", "keys", "values"), factors, strict=True))


@pytest.mark.parametrize(
    ("words", "pairs"),
    [
        ([], None),
        (["--relation_layers", "4:11"], ((4, 11),)),
        (["--relation_layers", "2:6, 4:6"], ((2, 6), (4, 6))),
        (["--relation_layers", "Map"], ()),
    ],
)
def test_layers_are_pairs_counted_from_one(words, pairs):
    arguments, problems = parse(*KL, *words)
    assert problems == []
    assert arguments.relation_pairs == pairs


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([*KL, "--relations", "qk"], "--relations is qk; give some of qq, kk, vv"),
        ([*KL, "--relations", "qq,qq"], "--relations is qq,qq"),
        ([*KL, "--relations", "qq=0"], "--relations is qq=0"),
        ([*KL, "--relations", "qq=-1,kk"], "a weight of 0 or more"),
        ([*KL, "--relations", "qq=nan"], "--relations is qq=nan"),
        ([*KL, "--relations", ""], "--relations is ;"),
        ([*KL, "--relation_layers", "4"], "--relation_layers is 4; give STUDENT:TEACHER layers from 1 on"),
        ([*KL, "--relation_layers", "0:3"], "from 1 on"),
        ([*KL, "--relation_layers", "2:1,2:3"], "each student layer once"),
        ([*KL, "--relation_heads", "0"], "--relation_heads is 0; it must be at least 1"),
        ([*KL, "--attention_weight", "0"], "--attention_loss relations_kl and --attention_weight 0 contradict"),
        (["--relations", "qq"], "--relations is for relations between tokens; add --attention_loss"),
        (["--relation_heads", "12"], "--relation_heads is for relations between tokens"),
        (["--relation_layers", "map"], "--relation_layers is for relations between tokens"),
    ],
)
def test_what_cannot_be_meant_is_told(words, said):
    _, problems = parse(*words)
    assert len(problems) == 1
    assert said in problems[0]


def test_the_prediction_stage_has_no_relations():
    _, problems = parse_arguments(TaskDistillArguments, [*TASK, "--pred_distill", *KL], "task_distill.py")
    assert "--attention_loss relations_kl is for the intermediate stage" in problems[0]


def test_runs_from_before_there_were_relations_go_on_and_others_differ():
    def identity(*words):
        resolved = {"layer_map": (0, 4), "teacher_dtype": "fp32", "init_embeddings": "random"}
        return identity_of(parse(*words)[0], {**resolved, "relation_layers": ((1, 3),), "relations": {"values": 2.0}})

    names = {"attention_loss", "relations", "relation_heads", "relation_layers"}
    assert not names & set(identity())
    found = identity(*KL, "--relations", "vv=2", "--relation_heads", "6", "--relation_layers", "1:3")
    expected = {"attention_loss": "relations_kl", "relation_heads": 6, "relation_layers": ((1, 3),)}
    assert {name: found[name] for name in names} == {**expected, "relations": {"values": 2.0}}
