#!/usr/bin/env bash
# The whole road on real models and real text: install, prepare, distil in two stages, measure.
#
#     bash launchers/quickstart.sh [OUT_DIR]        OUT_DIR: default out/
#
# Stopped at any moment and started again, it goes on where it was. OUT_DIR/report.md holds the result.
# QUICKSTART_SEED=N is the seed of everything that is random. QUICKSTART_SMOKE=1 takes a few rows and steps of each
# stage, to see that the machinery works, in an OUT_DIR of its own; its figures mean nothing.
set -euo pipefail
case " $* " in
    *" --help "* | *" -h "*)
        sed -n '2,/^[^#]/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
        exit 0
        ;;
esac
caller="$PWD"
cd "$(dirname "${BASH_SOURCE[0]}")/.."
out="${1:-out}"
case "$out" in
    /*) ;;
    *) out="$caller/$out" ;;
esac
seed="${QUICKSTART_SEED:-42}"
kind=full
[ "${QUICKSTART_SMOKE:-0}" != 1 ] || kind=smoke

# A smoke run's documents are other ones under the same name, so its shards would be taken for the full run's.
if [ -e "$out/stages.json" ]; then
    found=full
    ! grep -q '"--max_documents"' "$out/stages.json" || found=smoke
    if [ "$found" != "$kind" ]; then
        echo "error: $out holds a $found run and this is a $kind run (QUICKSTART_SMOKE); give another OUT_DIR, or" \
            "remove that one (nothing was changed)" >&2
        exit 2
    fi
fi

bash launchers/install.sh export
export PATH="$PWD/.venv/bin:$PATH" # the deepspeed launcher and ninja

# Optimizer steps of each stage. The student that learns from labels alone takes as many as the distilled one.
teacher_steps=250 general_steps=50 task_steps=600 eval_step=150
data_options=() task_tokens=200000 general_tokens=50000 max_loss=0.01 formats=(onnx openvino)
if [ "$kind" = smoke ]; then
    teacher_steps=4 general_steps=2 task_steps=4 eval_step=2
    data_options=(--max_documents 20 --max_rows 64) task_tokens=1000 general_tokens=1000 max_loss=1 formats=(onnx)
fi

stage() {
    local name="$1"
    shift
    python launchers/run_stage.py --stages_file "$out/stages.json" --name "$name" -- "$@"
}
train=(deepspeed --num_gpus 1 --master_port FREE_PORT)
task=(--data_dir "$out/data/sentiment" --task_name sst-2 --max_seq_length 64 --train_batch_size 16
    --eval_batch_size 64 --save_steps 200 --seed "$seed")

stage fetch_data python data_tools/quickstart_data.py "$out/data" ${data_options[@]+"${data_options[@]}"}

stage prepare_corpus python data_tools/pregenerate_training_data.py \
    --train_corpus "$out/data/documents/bbc_news.txt" --bert_model "$out/data/teacher" \
    --output_dir "$out/shards" --split_sentences --max_seq_len 64

stage finetune_teacher "${train[@]}" launchers/finetune_teacher.py \
    --model "$out/data/teacher" --output_dir "$out/teacher" "${task[@]}" \
    --max_steps "$teacher_steps" --learning_rate 5e-5 --eval_step "$teacher_steps"

# Shown for the road's sake, with the time it takes: on so little text it adds nothing to a student of the fine-tuned
# teacher (tests/benchmarks/README.md), so the task's student starts without it.
stage general_distillation "${train[@]}" launchers/general_distill.py \
    --pregenerated_data "$out/shards" --teacher_model "$out/data/teacher" --student_model 3L_192 \
    --output_dir "$out/general" --max_seq_length 64 --train_batch_size 16 \
    --eval_fraction 0.01 --save_steps 200 --seed "$seed" --max_steps "$general_steps" --learning_rate 3e-4 \
    --calibration_tokens "$general_tokens"

stage start_student python launchers/inherit_student.py \
    --teacher_model "$out/teacher" --student_model 3L_192 --output_dir "$out/start" \
    --data_dir "$out/data/sentiment" --task_name sst-2 --max_seq_length 64 --seed "$seed" \
    --calibration_tokens "$task_tokens"

# Layers and predictions in one stage, at the rate of tests/benchmarks/results/rates.md.
stage task_distillation "${train[@]}" launchers/task_distill.py --joint \
    --teacher_model "$out/teacher" --student_model "$out/start" --output_dir "$out/student" "${task[@]}" \
    --max_steps "$task_steps" --learning_rate 3e-4 --lr_schedule linear --eval_step "$eval_step"

# On dev.tsv after 650 steps, seed 42, at other rates: 1e-4 0.715, 3e-4 0.761, 5e-4 0.751, 1e-3 0.571 (chance).
stage student_from_labels_alone python launchers/finetune_teacher.py --from_scratch \
    --model 3L_192 --tokenizer "$out/data/teacher" --output_dir "$out/student_without_distillation" "${task[@]}" \
    --max_steps "$task_steps" --learning_rate 3e-4 --eval_step "$eval_step"

# What is served: files for other runtimes, each measured on dev.tsv beside the student and the teacher in its format.
stage export_student python launchers/export_model.py --model "$out/student" --teacher "$out/teacher" \
    --output_dir "$out/exported" --format "${formats[@]}" --precision fp32 int8 --max_loss "$max_loss" \
    --data_dir "$out/data/sentiment" --task_name sst-2 --max_seq_length 64 --license other --languages en

stage compare_models python launchers/compare_models.py --teacher "$out/teacher" --student "$out/student" \
    --student_before_training "$out/start" \
    --student_without_distillation "$out/student_without_distillation" --student_exported "$out/exported" --data_dir "$out/data/sentiment" \
    --task_name sst-2 --split test --max_seq_length 64 --stages_file "$out/stages.json" --output_dir "$out"
cat "$out/report.md"
