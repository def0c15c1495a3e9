#!/usr/bin/env bash
# Task distillation from end to end: augmentation, start, intermediate layers, predictions, evaluation.
#
#     bash launchers/distill_task.sh (TASK --glue_dir DIR | --task_file FILE --data_dir DIR) --teacher DIR \
#         --student DIR --output_dir DIR (--masked_lm DIR [--glove FILE] | --no_augmentation) [--recipe NAME] \
#         [--inherit] [--joint] [--calibration_tokens N] [--num_gpus N] [--seed N] [-- FLAGS...]
#
# TASK is one of GLUE, its files in its folder below --glue_dir; a task of your own is a YAML file (README), its files
# are in --data_dir. --teacher is fine-tuned on it. --student comes from general distillation; or it is a config.json, a
# directory with one, or a shipped name (4L_312, 6L_768, 3L_192): without weights it starts in closed form from the
# teacher, on the task's training texts, the head included. --inherit moves a student with weights that way too, towards
# the fine-tuned teacher, and keeps a part of what it has learnt. --joint learns layers and predictions in one stage,
# which is best for a student that starts from its teacher (--recipe small). --calibration_tokens says on how much of the
# texts the start is fitted (200,000 tokens). --masked_lm is the model that suggests words, --glove the file of word
# vectors (without it, words of several pieces stay). --recipe is a shipped one or a YAML file; default: paper/TASK, of
# WNLI, which the paper leaves out, that of RTE; a task of your own has none: name one, such as paper/sst-2 for single
# sentences, paper/rte for pairs, paper/sts-b for scores, or small. --num_gpus N takes N ranks under the deepspeed
# launcher; without it there is one rank. FLAGS go to all distillation stages and win over the recipe, such as
# --max_steps 100; those about texts, labels and machine, such as --max_seq_length, go to the other steps that take them,
# too. All is checked before the first step.
#
# Stopped at any moment and started again, it goes on where it was. The result: OUTPUT_DIR/student, and a table of
# teacher and student in OUTPUT_DIR/evaluation/glue_results.md.
set -euo pipefail
case " $* " in
    *" --help "* | *" -h "*)
        sed -n '2,/^[^#]/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
        exit 0
        ;;
esac
here="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

fail() {
    echo "error: $1; see the head of launchers/distill_task.sh" >&2
    exit 2
}
absolute() {
    case "$1" in
        /*) echo "$1" ;;
        *) echo "$PWD/$1" ;;
    esac
}

task="" recipe=""
case "${1:-}" in
    "") fail "name a task, such as sst-2, or one of your own with --task_file" ;;
    --*) ;;
    *)
        task="$(echo "$1" | tr '[:upper:]' '[:lower:]')"
        recipe="paper/${task%-mm}"
        [ "$task" != wnli ] || recipe=paper/rte
        shift
        ;;
esac
glue_dir="" task_file="" data_dir="" teacher="" student="" out="" masked_lm="" glove="" seed=42
augmentation=yes inherit=auto joint=no calibration=()
launch=(python)
flags=()
while [ $# -gt 0 ]; do
    case "$1" in
        --no_augmentation)
            augmentation=no
            shift
            continue
            ;;
        --inherit)
            inherit=yes
            shift
            continue
            ;;
        --joint)
            joint=yes
            shift
            continue
            ;;
        --)
            shift
            flags=("$@")
            break
            ;;
        --glue_dir | --task_file | --data_dir | --teacher | --student | --output_dir | --masked_lm | --glove | \
            --recipe | --calibration_tokens | --num_gpus | --seed)
            [ $# -gt 1 ] || fail "$1 needs a value"
            ;;
        *) fail "unknown argument $1 (flags of the distillation stages come after --)" ;;
    esac
    case "$1" in
        --glue_dir) glue_dir="$(absolute "$2")" ;;
        --task_file) task_file="$(absolute "$2")" ;;
        --data_dir) data_dir="$(absolute "$2")" ;;
        --teacher) teacher="$(absolute "$2")" ;;
        --student)
            student="$(absolute "$2")"
            [ -e "$student" ] || [ ! -f "$here/tinybert_ds/students/$2.json" ] || student="$2"
            ;;
        --output_dir) out="$(absolute "$2")" ;;
        --masked_lm) masked_lm="$(absolute "$2")" ;;
        --glove) glove="$(absolute "$2")" ;;
        --recipe) recipe="$2" ;;
        --calibration_tokens) calibration=(--calibration_tokens "$2") ;;
        --num_gpus) launch=(deepspeed --num_gpus "$2" --master_port FREE_PORT) ;;
        --seed) seed="$2" ;;
    esac
    shift 2
done
if [ -n "$task" ]; then
    [ -z "$task_file$data_dir" ] || fail "--task_file and --data_dir are for your own task; leave out $task or them"
    [ -n "$glue_dir" ] || fail "--glue_dir DIR is missing"
else
    [ -n "$task_file" ] || fail "name a task, such as sst-2, first, or one of your own with --task_file FILE"
    [ -n "$data_dir" ] || fail "--data_dir DIR, where the files of --task_file are, is missing"
    [ -z "$glue_dir" ] || fail "--glue_dir is for tasks of GLUE; leave it out with --task_file"
    [ -n "$recipe" ] || fail "--recipe NAME is missing, such as paper/sst-2"
fi
[ -n "$teacher" ] || fail "--teacher DIR is missing"
[ -n "$student" ] || fail "--student DIR is missing"
[ -n "$out" ] || fail "--output_dir DIR is missing"
if [ "$augmentation" = yes ]; then
    [ -n "$masked_lm" ] || fail "give --masked_lm DIR for the augmentation, or --no_augmentation"
elif [ -n "$masked_lm$glove" ]; then
    fail "--no_augmentation leaves --masked_lm and --glove without use; drop one or the other"
fi
for path in "$glue_dir" "$data_dir" "$teacher" "$masked_lm"; do
    [ -z "$path" ] || [ -d "$path" ] || fail "$path is not a directory"
done
for path in "$task_file" "$student" "$glove"; do
    [ -z "$path" ] || [ -e "$path" ] || [ -f "$here/tinybert_ds/students/$path.json" ] || fail "$path does not exist"
done
if [ "$inherit" = auto ] && [ -d "$student" ]; then # general distillation leaves projections.safetensors beside weights
    weights=(-name "*.safetensors" ! -name "projections.safetensors" -o -name "pytorch_model*.bin")
    [ -z "$(find -L "$student" -maxdepth 2 \( "${weights[@]}" \) -print -quit)" ] || inherit=no
fi
if [ -n "$task" ]; then
    data_dir="$(find "$glue_dir" -mindepth 1 -maxdepth 1 -iname "${task%-mm}" | sort | head -n 1)"
    [ -n "$data_dir" ] || fail "--glue_dir $glue_dir has no folder ${task%-mm}; there are: $(ls "$glue_dir" | tr '\n' ' ')"
    files=(--data_dir "$data_dir" --task_name "$task")
    evaluated=(--task_name "$task" --glue_dir "$glue_dir")
else
    files=(--data_dir "$data_dir" --task_file "$task_file")
    evaluated=("${files[@]}")
fi

[ -d "$here/.venv/bin" ] && export PATH="$here/.venv/bin:$PATH"

stage() {
    local name="$1"
    shift
    python "$here/launchers/run_stage.py" --stages_file "$out/stages.json" --name "$name" -- "$@"
}
distil=(--teacher_model "$teacher" "${files[@]}" --recipe "$recipe" --seed "$seed")
[ "$augmentation" = yes ] || distil+=(--aug_train false)
start=(--teacher_model "$teacher" --student_model "$student" "${files[@]}" --seed "$seed" --output_dir "$out/start"
    ${calibration[@]+"${calibration[@]}"})
if [ "$inherit" != no ]; then
    student="$out/start"
elif [ ${#calibration[@]} -gt 0 ]; then
    fail "--calibration_tokens is of a start from the teacher, and $student has weights: drop it, or add --inherit"
fi
distil+=(${flags[@]+"${flags[@]}"})
if [ "$joint" = yes ]; then
    both=(--joint "${distil[@]}" --student_model "$student" --output_dir "$out/student")
else
    intermediate=("${distil[@]}" --student_model "$student" --output_dir "$out/intermediate")
    prediction=(--pred_distill "${distil[@]}" --student_model "$out/intermediate" --output_dir "$out/student")
fi
more=()
hand_on() { # to COMMAND, beside its OWN WORDS: leaves in `more` those of the user's flags that go for it too
    more=()
    [ ${#flags[@]} -gt 0 ] || return 0
    while IFS= read -r -d '' word; do
        more+=("$word")
    done < <(python -m tinybert_ds.arguments --for "$@" -- "${flags[@]}")
}
evaluation=("${evaluated[@]}" --model "teacher=$teacher" "student=$out/student"
    --output_dir "$out/evaluation")
hand_on evaluate_glue "${evaluation[@]}"
evaluation+=(${more[@]+"${more[@]}"})
hand_on inherit_student "${start[@]}"
start+=(${more[@]+"${more[@]}"})
vectors=(--no_glove)
[ -z "$glove" ] || vectors=(--glove_embs "$glove")
augmented=(--pretrained_bert_model "$masked_lm" "${vectors[@]}" "${files[@]}" --seed "$seed")
hand_on data_augmentation "${augmented[@]}"
augmented+=(${more[@]+"${more[@]}"})
[ "$augmentation" = no ] || python -m tinybert_ds.arguments data_augmentation "${augmented[@]}"
[ "$inherit" = no ] || python -m tinybert_ds.arguments inherit_student "${start[@]}"
if [ "$joint" = yes ]; then
    python -m tinybert_ds.arguments task_distill "${both[@]}"
else
    python -m tinybert_ds.arguments task_distill "${intermediate[@]}"
    python -m tinybert_ds.arguments task_distill "${prediction[@]}"
fi
python -m tinybert_ds.arguments evaluate_glue "${evaluation[@]}"

if [ "$augmentation" = yes ]; then
    stage augmentation "${launch[@]}" "$here/data_tools/data_augmentation.py" "${augmented[@]}"
fi
if [ "$inherit" != no ]; then
    stage start "${launch[@]}" "$here/launchers/inherit_student.py" "${start[@]}"
fi
if [ "$joint" = yes ]; then
    stage joint "${launch[@]}" "$here/launchers/task_distill.py" "${both[@]}"
else
    stage intermediate "${launch[@]}" "$here/launchers/task_distill.py" "${intermediate[@]}"
    stage prediction "${launch[@]}" "$here/launchers/task_distill.py" "${prediction[@]}"
fi
stage evaluation "${launch[@]}" "$here/launchers/evaluate_glue.py" "${evaluation[@]}"

cat "$out/evaluation/glue_results.md"
