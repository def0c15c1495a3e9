import json

import pytest
import torch
from deepspeed.runtime.lr_schedules import WarmupCosineLR

from tinybert_ds.arguments import TrainingArguments
from tinybert_ds.engine import ds_config
from tinybert_ds.engine.ds_config import (
    CONFIG_DIRECTORY,
    default_config_path,
    fill_schedule,
    read_config,
    resolve_config,
)

SHIPPED = sorted(CONFIG_DIRECTORY.glob("*.json"))


def arguments(**changes):
    return TrainingArguments(output_dir="out", **{"train_batch_size": 32, "learning_rate": 1e-3, **changes})


def resolve(config, world_size=1, device_type="cpu", **changes):
    return resolve_config(config, arguments(**changes), world_size=world_size, device_type=device_type)


def test_configs_are_shipped():
    assert len(SHIPPED) >= 4


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_config_is_filled_completely(path):
    config, problems = read_config(path)
    assert problems == []
    resolved, problems = resolve(config, device_type="cuda", world_size=2, gradient_accumulation_steps=2)
    assert problems == []
    assert fill_schedule(resolved, total_steps=100, warmup_steps=10) == []
    assert '"auto"' not in json.dumps(resolved)
    assert resolved["train_micro_batch_size_per_gpu"] == 8
    assert resolved["optimizer"]["params"]["lr"] == 1e-3


@pytest.mark.parametrize(
    ("device", "bf16", "fp16", "name"),
    [
        ("cpu", True, False, "zero0_autocast_bf16.json"),
        ("cpu", False, False, "zero0_fp32.json"),
        ("cuda", True, False, "zero2_bf16.json"),
        ("cuda", False, False, "zero2_fp16.json"),
        ("cuda", True, True, "zero2_fp16.json"),
    ],
)
def test_the_default_config_fits_the_machine_and_is_there(monkeypatch, device, bf16, fp16, name):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *, including_emulation: bf16 or including_emulation)
    monkeypatch.setattr(ds_config, "multiplies_fast", lambda dtype, device: bf16)
    path = default_config_path(device, fp16=fp16)
    assert path.name == name
    assert path.is_file()


def test_a_run_that_was_begun_with_fp32_products_keeps_them(monkeypatch):
    monkeypatch.setattr(ds_config, "multiplies_fast", lambda dtype, device: True)
    assert default_config_path("cpu", fp16=False, wide=True).name == "zero0_fp32.json"


def test_a_misspelt_key_is_named_with_the_one_that_was_meant(tmp_path):
    path = tmp_path / "config.json"
    path.write_text('{"zero_optimisation": {"stage": 2}}')
    _, problems = read_config(path)
    assert len(problems) == 1
    assert "'zero_optimisation'" in problems[0]
    assert "did you mean zero_optimization?" in problems[0]


def test_a_misspelt_key_inside_a_section_is_named():
    _, problems = resolve({"zero_optimization": {"stage": 1, "overlap_com": True}})
    assert problems == ["unknown key 'zero_optimization.overlap_com'; mend or remove it"]


def test_a_wrong_value_inside_a_section_is_named_by_the_section():
    _, problems = resolve({"zero_optimization": {"stage": 1, "reduce_bucket_size": -1}})
    assert len(problems) == 1
    assert problems[0].startswith("zero_optimization.reduce_bucket_size: ")


@pytest.mark.parametrize("text", ["{", "[1]", '{"bf16": {}, "bf16": {}}'])
def test_a_document_that_is_no_json_object_is_refused(tmp_path, text):
    path = tmp_path / "config.json"
    path.write_text(text)
    _, problems = read_config(path)
    assert len(problems) == 1


def test_a_missing_file_names_the_shipped_ones(tmp_path):
    _, problems = read_config(tmp_path / "none.json")
    assert "zero0_fp32.json" in problems[0]


def test_contradictions_with_the_arguments_are_gathered():
    config = {"train_batch_size": 64, "gradient_clipping": 0.5, "optimizer": {"type": "AdamW", "params": {"lr": 1.0}}}
    _, problems = resolve(config)
    assert len(problems) == 3
    assert any("train_batch_size is 64" in p and "--train_batch_size" in p for p in problems)


def test_equal_values_are_no_contradiction():
    assert resolve({"train_batch_size": 32, "gradient_clipping": 1.0})[1] == []


def test_a_batch_that_does_not_divide_names_the_sizes_that_would():
    _, problems = resolve({}, world_size=3, gradient_accumulation_steps=2)
    assert "take 30 or 36, or keep it with 4 or 8 rank(s) x accumulation step(s)" in problems[0]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"fp16": True}, "fp16 in the DeepSpeed config is true; it must be a JSON object"),
        ({"optimizer": {"type": "AdamW", "params": {"beta": [0.9, 0.99]}}}, "optimizer.params: unknown beta"),
        ({"scheduler": {"type": "WarmupDecay"}}, "take WarmupLR, WarmupDecayLR"),
        ({"scheduler": {"type": "WarmupLR", "params": {"warmup_steps": 5}}}, "scheduler.params: unknown warmup_steps"),
    ],
)
def test_a_section_of_the_wrong_shape_is_named(config, message):
    _, problems = resolve(config)
    assert len(problems) == 1
    assert message in problems[0]


def test_an_auto_that_nobody_owns_is_a_problem():
    _, problems = resolve({"zero_optimization": {"stage": 1, "reduce_bucket_size": "auto"}})
    assert "zero_optimization.reduce_bucket_size" in problems[0]


def test_fp16_on_cpu_is_refused():
    _, problems = resolve({"fp16": {"enabled": True}})
    assert "fp16" in problems[0]


@pytest.mark.parametrize(("dtype", "number"), [("bfloat16", 0), ("bf16", 0), ("float16", 1), (None, 1)])
@pytest.mark.parametrize("enabled", [True, False])
def test_autocast_is_in_bfloat16_or_refused(dtype, number, enabled):
    _, problems = resolve({"torch_autocast": {"enabled": enabled, "dtype": dtype}})
    assert len(problems) == (number if enabled else 0)
    assert all('only "bfloat16" is supported' in problem for problem in problems)


def test_the_fp16_flag_needs_a_config_with_fp16():
    _, problems = resolve({}, device_type="cuda", fp16=True)
    assert "--fp16 contradicts" in problems[0]


def test_on_cpu_adam_is_torchs_so_that_nothing_is_compiled():
    assert resolve({})[0]["optimizer"]["params"]["torch_adam"] is True


def test_a_schedule_on_the_command_line_and_a_scheduler_in_the_config_are_one_too_many():
    config = {"scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": "auto"}}}
    _, problems = resolve(config, lr_schedule="constant")
    assert problems == [
        "--lr_schedule constant and the scheduler WarmupLR of the DeepSpeed config are two schedules; drop one of them"
    ]


def test_the_configs_own_scheduler_is_filled():
    config, problems = resolve({"scheduler": {"type": "WarmupDecayLR", "params": {"warmup_num_steps": "auto"}}})
    assert problems == []
    assert fill_schedule(config, total_steps=100, warmup_steps=10) == []
    assert config["scheduler"]["params"] == {
        "warmup_num_steps": 10,
        "total_num_steps": 100,
        "warmup_min_lr": 0.0,
        "warmup_max_lr": 1e-3,
        "warmup_type": "linear",
    }


def test_a_cosine_scheduler_gets_what_it_takes_and_deepspeed_can_make_it():
    config, problems = resolve({"scheduler": {"type": "WarmupCosineLR"}})
    assert problems == []
    assert fill_schedule(config, total_steps=100, warmup_steps=10) == []
    params = config["scheduler"]["params"]
    assert params == {"warmup_num_steps": 10, "total_num_steps": 100, "warmup_type": "linear"}
    WarmupCosineLR(torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1), **params)


def test_step_counts_that_contradict_max_steps_are_told_with_everything_else():
    params = {"warmup_num_steps": 7, "total_num_steps": 90, "warmup_max_lr": 1.0}
    config = {"scheduler": {"type": "WarmupDecayLR", "params": params}}
    _, problems = resolve(config, max_steps=100, warmup_proportion=0.1)
    assert [problem.split(" in the DeepSpeed config")[0] for problem in problems] == [
        "scheduler.params.warmup_num_steps is 7",
        "scheduler.params.total_num_steps is 90",
        "scheduler.params.warmup_max_lr is 1.0",
    ]
    params |= {"warmup_num_steps": 10, "total_num_steps": 100, "warmup_max_lr": 1e-3}
    assert resolve(config, max_steps=100, warmup_proportion=0.1)[1] == []


def test_null_stands_for_deepspeeds_default():
    nulls = {"fp16": None, "tensorboard": None, "optimizer": None, "zero_optimization": {"offload_optimizer": None}}
    assert resolve(nulls) == resolve({"zero_optimization": {}})


@pytest.mark.parametrize("accumulation", [0, -3])
def test_an_accumulation_that_is_none_is_left_to_the_arguments_own_check(accumulation):
    assert resolve({}, gradient_accumulation_steps=accumulation)[1] == []
    problems = arguments(gradient_accumulation_steps=accumulation).problems()
    assert problems == [f"--gradient_accumulation_steps is {accumulation}; it must be at least 1"]


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_non_finite_numbers_are_refused(value):
    assert f"--num_train_epochs is {value}; it must be a finite number" in arguments(num_train_epochs=value).problems()
    assert arguments(weight_decay=value).problems() == [f"--weight_decay is {value}; it must be a finite number"]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b'{"fp16": {}, "fp16": {}}', "the key 'fp16' stands twice"),
        (b"[" * 100_000, "brackets within brackets"),
        (b'{"zero_optimization": ' + b'{"a": ' * 300 + b"1" + b"}" * 301, "more than 64 levels"),
        (b'{"train_batch_size": ' + b"9" * 5000 + b"}", "a number of thousands of digits"),
        (b"\xff\xfe{}", "not UTF-8 text; it looks like utf_16"),
        (b"{", "Expecting property name"),
        (b"[1]", "holds a list; a DeepSpeed config is a JSON object"),
        (b'"auto"', "holds a str; a DeepSpeed config is a JSON object"),
        (b'{"' + b"x" * 9000 + b'": 1}', "(9,002 characters)"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_a_file_that_is_no_config_is_told_in_a_sentence(tmp_path, content, told):
    path = tmp_path / "ds.json"
    path.write_bytes(content)
    _, (problem,) = read_config(path)
    assert str(path) in problem
    assert told in problem
    assert len(problem) < 600


def adamw(**params):
    return {"optimizer": {"type": "AdamW", "params": params}}


def muon(**params):
    return {"optimizer": {"type": "Muon", "params": {"muon_lr": 0.01, **params}}}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (muon(muon_lr=None), "muon_lr is None; it must be a rate above 0"),
        (muon(nesterov=1), "unknown nesterov; known are"),
        (muon(momentum=1), "momentum is 1; it must be from 0"),
        (muon(ns_method="svd"), "must be gram or standard"),
        ({**muon(), "zero_optimization": {"stage": 1}}, "optimizer Muon goes with ZeRO 0"),
        ({**muon(), "bf16": {"enabled": True}}, 'take "torch_autocast" instead of bf16'),
        ({**muon(), "scheduler": {"type": "WarmupLR"}}, "optimizer Muon has two rates"),
        ({"optimizer": {"type": "Lamb"}}, "optimizer type 'Lamb' is not supported here; take"),
        ({"optimizer": {"type": ["AdamW"]}}, 'optimizer type ["AdamW"] is not supported here'),
        (adamw(betas="x"), "torch.optim.AdamW cannot be made of betas='x'"),
        (adamw(betas=[0.9, 1.5]), "Invalid beta parameter at index 1: 1.5; mend or remove them"),
        (adamw(betas=[0.9, 0.5, 0.1]), "too many values to unpack"),
        (adamw(eps=-1), "Invalid epsilon value: -1"),
        (adamw(eps=10**400), "int too large to convert to float"),
        (adamw(torch_adam="yes"), "optimizer.params.torch_adam is 'yes'; it must be true or false"),
        ({"scheduler": {"type": ["WarmupLR"]}}, 'scheduler type ["WarmupLR"] is not supported; take WarmupLR'),
        ({"scheduler": {"type": "WarmupLR", "params": {"warmup_type": 3}}}, 'warmup_type is 3; it must be "linear"'),
        ({"scheduler": {"type": "WarmupCosineLR", "params": {"cos_min_ratio": "x"}}}, "WarmupCosineLR cannot be made"),
        ({"fp16": {"enabled": False, "loss_scale": 10**400}}, "DeepSpeed refuses the config: "),
    ],
    ids=lambda value: repr(value)[:60],
)
def test_what_cannot_be_made_of_the_config_is_told_before_any_model_is_loaded(config, message):
    _, (problem,) = resolve(config)
    assert message in problem
    assert len(problem) < 700


def test_deepspeeds_own_adam_is_not_given_what_only_torchs_takes():
    _, (problem,) = resolve(adamw(amsgrad=True), device_type="cuda")
    assert problem.startswith("optimizer.params: unknown amsgrad; known are adam_w_mode, betas")
    assert resolve(adamw(amsgrad=True, torch_adam=True), device_type="cuda")[1] == []
    assert resolve(adamw(foreach=True))[1] == []


def test_an_auto_of_fp16_on_a_cpu_is_not_answered_with_the_advice_to_give_it_a_value():
    _, (problem,) = resolve({"fp16": {"enabled": "auto", "loss_scale": "auto"}})
    assert problem.startswith("fp16 training is not supported on this CPU; remove the section fp16")
    _, problems = resolve({"fp16": {"enabled": "auto"}}, device_type="cuda")
    assert 'fp16.enabled is "auto" in the DeepSpeed config, but no argument owns it; give it a value' in problems
