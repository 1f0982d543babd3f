#!/usr/bin/env bash
# ZS3Net in its two steps, and ZS5, from records to their scores.
#
#   bash experiments/zs3.sh
#
# runs it on scenes of digits, which it makes; three digits have no pixel labels. Any parameter below
# can be set in the environment:
#
#   DATASET_DIR=records/voc OUTPUT_DIR=zs3_voc STEP1_FLAGS=experiments/zs3/voc_step1.flags \
#     STEP2_FLAGS=experiments/zs3/voc_step2.flags ZS5_FLAGS=experiments/zs3/voc_zs5.flags \
#     CLASS_SPLIT=zs3_voc_4 CLASS_EMBEDDINGS=word2vec.npz \
#     STEP1_TRAIN_FLAGS=--pretrained_weights=resnet101.pth CROP=0,0 \
#     PREDICTION_FLAGS="--eval_resize=short_side --absent_classes=zero" bash experiments/zs3.sh
#
# Each step is an ordinary command, printed before it runs. Run again, it goes on where it stopped:
# finished steps are passed over, a training resumes from its checkpoint. With other parameters than
# those that OUTPUT_DIR was begun with it stops with exit code 2.
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python}
OUTPUT_DIR=${OUTPUT_DIR:-demo_output/zs3}
DATASET_DIR=${DATASET_DIR:-}              # records; empty: scenes of digits
TRAIN_SPLIT=${TRAIN_SPLIT:-train_aug}
VAL_SPLIT=${VAL_SPLIT:-val}
STEP1_FLAGS=${STEP1_FLAGS:-experiments/digits_zs3_step1.flags}
STEP2_FLAGS=${STEP2_FLAGS:-experiments/digits_zs3.flags}
ZS5_FLAGS=${ZS5_FLAGS:-experiments/digits_zs5.flags}
CLASS_SPLIT=${CLASS_SPLIT:-}              # empty: that of the flagfiles
CLASS_EMBEDDINGS=${CLASS_EMBEDDINGS:-}    # empty: DATASET_DIR/class_embeddings.npz
STEP1_TRAIN_FLAGS=${STEP1_TRAIN_FLAGS:-}  # more flags of the first training, separated by spaces;
                                          # published: --drop_images=FILE
STEP2_TRAIN_FLAGS=${STEP2_TRAIN_FLAGS:-}  # of the second; published: --oracle_layout, a leak
ZS5_TRAIN_FLAGS=${ZS5_TRAIN_FLAGS:-}      # of the third
CROP=${CROP:-97,97}                       # evaluation crop
PREDICTION_FLAGS=${PREDICTION_FLAGS:-}    # more of eval.py
SEED=${SEED:-0}

PARAMETERS=(DATASET_DIR TRAIN_SPLIT VAL_SPLIT STEP1_FLAGS STEP2_FLAGS ZS5_FLAGS CLASS_SPLIT
  CLASS_EMBEDDINGS STEP1_TRAIN_FLAGS STEP2_TRAIN_FLAGS ZS5_TRAIN_FLAGS CROP PREDICTION_FLAGS SEED)
FLAGFILES=(STEP1_FLAGS STEP2_FLAGS ZS5_FLAGS)
LATE=(VAL_SPLIT STEP2_FLAGS ZS5_FLAGS CLASS_EMBEDDINGS STEP2_TRAIN_FLAGS ZS5_TRAIN_FLAGS CROP
  PREDICTION_FLAGS)
SPLITS=(TRAIN_SPLIT VAL_SPLIT)
. experiments/recipe.sh

# Lists of flags are split at spaces on purpose.
# shellcheck disable=SC2206
step1=($STEP1_TRAIN_FLAGS) step2=($STEP2_TRAIN_FLAGS) zs5=($ZS5_TRAIN_FLAGS)
# shellcheck disable=SC2206
predict=($PREDICTION_FLAGS) split=()
[ -z "$CLASS_SPLIT" ] || split=("--class_split=$CLASS_SPLIT")
begin
# A mistake is told now, not after the first training.
check_flags eval.py ${predict[@]+"${predict[@]}"}
check_flags train_zls.py --flagfile="$STEP2_FLAGS" ${step2[@]+"${step2[@]}"}
check_flags train_zls.py --flagfile="$ZS5_FLAGS" ${zs5[@]+"${zs5[@]}"}

if [ -z "$DATASET_DIR" ]; then
  DATASET_DIR=$OUTPUT_DIR/digits
  step 0_digits "$PYTHON" tfrecords_tools/build_digits.py --output_dir="$DATASET_DIR"
fi
vectors=${CLASS_EMBEDDINGS:-$DATASET_DIR/class_embeddings.npz}

# train NAME FLAGFILE FOLDER FLAG ...: a training on the split's seen classes.
train() {
  local name=$1 flagfile=$2 folder=$3
  shift 3
  step "$name" "$PYTHON" train_zls.py --flagfile="$flagfile" --dataset_dir="$DATASET_DIR" \
    --train_split="$TRAIN_SPLIT" ${split[@]+"${split[@]}"} --seed="$SEED" \
    --train_logdir="$folder" "$@"
}

train 1_seen "$STEP1_FLAGS" "$OUTPUT_DIR/stage1" ${step1[@]+"${step1[@]}"}
evaluate 2_seen "$OUTPUT_DIR/stage1" ${predict[@]+"${predict[@]}"}

train 3_zs3net "$STEP2_FLAGS" "$OUTPUT_DIR/stage2" --class_embeddings="$vectors" \
  --tf_initial_checkpoint="$OUTPUT_DIR/stage1" ${step2[@]+"${step2[@]}"}
evaluate 4_zs3net "$OUTPUT_DIR/stage2" ${predict[@]+"${predict[@]}"}

train 5_zs5 "$ZS5_FLAGS" "$OUTPUT_DIR/stage3" --tf_initial_checkpoint="$OUTPUT_DIR/stage2" \
  ${zs5[@]+"${zs5[@]}"}
evaluate 6_zs5 "$OUTPUT_DIR/stage3" ${predict[@]+"${predict[@]}"}

show_results 2_seen 4_zs3net 6_zs5
