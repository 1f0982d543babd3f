#!/usr/bin/env bash
# SPNet, SPNet with weakened seen classes, and STRICT, from records to their scores.
#
#   bash experiments/strict.sh
#
# runs it on scenes of digits, which it makes; three digits have no pixel labels. Any parameter below
# can be set in the environment:
#
#   DATASET_DIR=records/voc OUTPUT_DIR=strict_voc SPNET_FLAGS=experiments/strict/voc12_spnet.flags \
#     STRICT_FLAGS=experiments/strict/voc12_strict.flags \
#     CLASS_EMBEDDINGS=fasttext.npz+word2vec.npz \
#     SPNET_TRAIN_FLAGS=--pretrained_weights=resnet101_msra.pth SEEN_BIAS=0.6 CROP=513,513 \
#     PREDICTION_FLAGS=--eval_resize=warp bash experiments/strict.sh
#
# A first training leaves out the labels of the validation classes; how much to weaken seen classes is
# chosen by what it says of these, and never by an unseen class. (SEEN_BIAS, where it is known, saves
# that training.)
#
# Each step is an ordinary command, printed before it runs. Run again, it goes on where it stopped:
# finished steps are passed over, a training resumes from its checkpoint. With other parameters than
# those that OUTPUT_DIR was begun with it stops with exit code 2.
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python}
OUTPUT_DIR=${OUTPUT_DIR:-demo_output/strict}
DATASET_DIR=${DATASET_DIR:-}                # records; empty: scenes of digits
TRAIN_SPLIT=${TRAIN_SPLIT:-train_aug}
VAL_SPLIT=${VAL_SPLIT:-val}
SWEEP_SPLIT=${SWEEP_SPLIT:-$VAL_SPLIT}      # images by which the bias is chosen; best neither of the
                                            # other two
SPNET_FLAGS=${SPNET_FLAGS:-experiments/digits_spnet.flags}
STRICT_FLAGS=${STRICT_FLAGS:-experiments/digits_strict.flags}
CLASS_SPLIT=${CLASS_SPLIT:-}                # empty: that of the flagfiles
CLASS_EMBEDDINGS=${CLASS_EMBEDDINGS:-}      # empty: DATASET_DIR/class_embeddings.npz
SPNET_TRAIN_FLAGS=${SPNET_TRAIN_FLAGS:-}    # more flags of both SPNet trainings, separated by spaces
STRICT_TRAIN_FLAGS=${STRICT_TRAIN_FLAGS:-}  # and of STRICT's
SEEN_BIAS=${SEEN_BIAS:-}                    # empty: found among SEEN_BIASES on validation classes
SEEN_BIASES=${SEEN_BIASES:-0:1:0.05}        # first:last:step
CROP=${CROP:-97,97}                         # evaluation crop
PREDICTION_FLAGS=${PREDICTION_FLAGS:-}      # more of eval.py
SEED=${SEED:-0}

PARAMETERS=(DATASET_DIR TRAIN_SPLIT VAL_SPLIT SWEEP_SPLIT SPNET_FLAGS STRICT_FLAGS CLASS_SPLIT
  CLASS_EMBEDDINGS SPNET_TRAIN_FLAGS STRICT_TRAIN_FLAGS SEEN_BIAS SEEN_BIASES CROP
  PREDICTION_FLAGS SEED)
FLAGFILES=(SPNET_FLAGS STRICT_FLAGS)
LATE=(VAL_SPLIT SWEEP_SPLIT STRICT_FLAGS STRICT_TRAIN_FLAGS SEEN_BIAS SEEN_BIASES CROP
  PREDICTION_FLAGS)
SPLITS=(TRAIN_SPLIT VAL_SPLIT SWEEP_SPLIT)
. experiments/recipe.sh

# Lists of flags are split at spaces on purpose.
# shellcheck disable=SC2206
spnet=($SPNET_TRAIN_FLAGS) strict=($STRICT_TRAIN_FLAGS) predict=($PREDICTION_FLAGS) split=()
[ -z "$CLASS_SPLIT" ] || split=("--class_split=$CLASS_SPLIT")
[[ $SEEN_BIASES =~ ^[0-9.]+:[0-9.]+:[0-9.]+$ ]] ||
  stop "SEEN_BIASES=$SEEN_BIASES: not first:last:step, for example 0:1:0.05"
[[ $SEEN_BIAS =~ ^[0-9.]*$ ]] || stop "SEEN_BIAS=$SEEN_BIAS: not a number from 0 on, for example 0.6"
begin
# A mistake is told now, not after the first training.
check_flags eval.py ${predict[@]+"${predict[@]}"}
check_flags train_zls.py --flagfile="$STRICT_FLAGS" ${strict[@]+"${strict[@]}"}

if [ -z "$DATASET_DIR" ]; then
  DATASET_DIR=$OUTPUT_DIR/digits
  step 0_digits "$PYTHON" tfrecords_tools/build_digits.py --output_dir="$DATASET_DIR"
fi

# train NAME FLAGFILE FOLDER FLAG ...: a training on the split's seen classes.
train() {
  local name=$1 flagfile=$2 folder=$3
  shift 3
  step "$name" "$PYTHON" train_zls.py --flagfile="$flagfile" --dataset_dir="$DATASET_DIR" \
    --train_split="$TRAIN_SPLIT" ${split[@]+"${split[@]}"} --seed="$SEED" \
    --class_embeddings="${CLASS_EMBEDDINGS:-$DATASET_DIR/class_embeddings.npz}" \
    --train_logdir="$folder" "$@"
}

if [ -z "$SEEN_BIAS" ]; then
  train 1_validation "$SPNET_FLAGS" "$OUTPUT_DIR/stage1" --exclude_validation_classes \
    ${spnet[@]+"${spnet[@]}"}
  VAL_SPLIT=$SWEEP_SPLIT evaluate 2_sweep "$OUTPUT_DIR/stage1" \
    --seen_bias_sweep="$SEEN_BIASES" ${predict[@]+"${predict[@]}"}
  SEEN_BIAS=$("$PYTHON" -c 'import json, sys
print(json.load(open(sys.argv[1]))["zero_label"]["best_seen_bias"])' "$OUTPUT_DIR/2_sweep/metrics.json")
fi

train 3_spnet "$SPNET_FLAGS" "$OUTPUT_DIR/stage2" ${spnet[@]+"${spnet[@]}"}
evaluate 4_spnet "$OUTPUT_DIR/stage2" ${predict[@]+"${predict[@]}"}
evaluate 4_spnet_bias "$OUTPUT_DIR/stage2" --seen_bias="$SEEN_BIAS" ${predict[@]+"${predict[@]}"}

train 5_strict "$STRICT_FLAGS" "$OUTPUT_DIR/stage3" --tf_initial_checkpoint="$OUTPUT_DIR/stage2" \
  ${strict[@]+"${strict[@]}"}
evaluate 6_strict "$OUTPUT_DIR/stage3" ${predict[@]+"${predict[@]}"}

show_results 4_spnet 4_spnet_bias 6_strict
echo "4_spnet_bias: --seen_bias=$SEEN_BIAS"
