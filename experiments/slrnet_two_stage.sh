#!/usr/bin/env bash
# SLRNet in two stages, from records with image-level labels to a DeepLabv3+ that learned its masks.
#
#   bash experiments/slrnet_two_stage.sh
#
# runs it on scenes of digits, which it makes, without any mask. Any parameter below can be set in
# the environment:
#
#   DATASET_DIR=records/voc OUTPUT_DIR=slrnet_voc STAGE1_FLAGS=stage1.flags STAGE2_FLAGS=stage2.flags \
#     STAGE1_TRAIN_FLAGS=--pretrained_weights=wide_resnet38.pth \
#     STAGE2_TRAIN_FLAGS=--pretrained_weights=resnet101s.pth CROP=0,0 \
#     STAGE1_PREDICTION_FLAGS="--merge_scales=masks --scale_kernel=pillow --eval_scales=0.5 \
#       --eval_scales=0.75 --eval_scales=1 --eval_scales=1.5 --eval_scales=2 --add_flipped_images \
#       --bg_pow=3 --dense_crf --crf_iterations=10 --crf_bilateral_sxy=80" \
#     CLASS_FILTER="--fp_cut=0.3 --topk_classes=6" \
#     bash experiments/slrnet_two_stage.sh
#
# Each step is an ordinary command, printed before it runs. Run again, it goes on where it stopped:
# finished steps are passed over, a training resumes from its checkpoint. With other parameters than
# those that OUTPUT_DIR was begun with it stops with exit code 2.
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python}
OUTPUT_DIR=${OUTPUT_DIR:-demo_output/slrnet_two_stage}
DATASET_DIR=${DATASET_DIR:-}                # records; empty: scenes of digits
LABELLED_SPLIT=${LABELLED_SPLIT:-}          # images with masks, for STAGE1_FLAGS with
                                            # --supervision=pixel_...; empty: image-level labels alone
ALL_SPLIT=${ALL_SPLIT:-train_aug}           # all training images, with image-level labels
VAL_SPLIT=${VAL_SPLIT:-val}
STAGE1_FLAGS=${STAGE1_FLAGS:-experiments/digits_slrnet_stage1.flags}
STAGE2_FLAGS=${STAGE2_FLAGS:-experiments/digits_slrnet_stage2.flags}
STAGE1_TRAIN_FLAGS=${STAGE1_TRAIN_FLAGS:-}  # more flags of the first training, separated by spaces
STAGE2_TRAIN_FLAGS=${STAGE2_TRAIN_FLAGS:-}  # and of the second
CROP=${CROP:-97,97}                         # evaluation crop
STAGE1_PREDICTION_FLAGS=${STAGE1_PREDICTION_FLAGS---merge_scales=masks}  # more of eval.py and vis.py
CLASS_FILTER=${CLASS_FILTER---fp_cut=0.3}   # more of eval.py where image-level labels are not used
STAGE2_PREDICTION_FLAGS=${STAGE2_PREDICTION_FLAGS:-}
SEED=${SEED:-0}

PARAMETERS=(DATASET_DIR LABELLED_SPLIT ALL_SPLIT VAL_SPLIT STAGE1_FLAGS STAGE2_FLAGS
  STAGE1_TRAIN_FLAGS STAGE2_TRAIN_FLAGS CROP STAGE1_PREDICTION_FLAGS CLASS_FILTER
  STAGE2_PREDICTION_FLAGS SEED)
FLAGFILES=(STAGE1_FLAGS STAGE2_FLAGS)
LATE=(VAL_SPLIT STAGE2_FLAGS STAGE2_TRAIN_FLAGS CROP STAGE1_PREDICTION_FLAGS CLASS_FILTER
  STAGE2_PREDICTION_FLAGS)
SPLITS=(LABELLED_SPLIT ALL_SPLIT VAL_SPLIT)
. experiments/recipe.sh

# Lists of flags are split at spaces on purpose.
# shellcheck disable=SC2206
train1=($STAGE1_TRAIN_FLAGS) train2=($STAGE2_TRAIN_FLAGS) predict1=($STAGE1_PREDICTION_FLAGS)
# shellcheck disable=SC2206
predict2=($STAGE2_PREDICTION_FLAGS) filter=($CLASS_FILTER)
begin
# A mistake is told now, not after the first training.
check_flags eval.py ${predict1[@]+"${predict1[@]}"} ${filter[@]+"${filter[@]}"}
check_flags vis.py ${predict1[@]+"${predict1[@]}"}
check_flags eval.py ${predict2[@]+"${predict2[@]}"}
check_flags train_sup.py --flagfile="$STAGE2_FLAGS" ${train2[@]+"${train2[@]}"}

if [ -z "$DATASET_DIR" ]; then
  DATASET_DIR=$OUTPUT_DIR/digits
  step 0_digits "$PYTHON" tfrecords_tools/build_digits.py --output_dir="$DATASET_DIR" \
    --image_size=97 --num_digits=4 --num_train=24
fi

labelled=() true_masks=()
if [ -n "$LABELLED_SPLIT" ]; then
  labelled=("--train_split=$LABELLED_SPLIT") true_masks=("--labelled_split=$LABELLED_SPLIT")
fi

step 1_train "$PYTHON" train_wss.py --flagfile="$STAGE1_FLAGS" --dataset_dir="$DATASET_DIR" \
  --train_split_cls="$ALL_SPLIT" ${labelled[@]+"${labelled[@]}"} --seed="$SEED" \
  --train_logdir="$OUTPUT_DIR/stage1" ${train1[@]+"${train1[@]}"}

# With --reestimate_batch_norm among its flags the training leaves its best network there.
stage1=$OUTPUT_DIR/stage1
if [ -d "$stage1/reestimated" ]; then stage1=$stage1/reestimated; fi

evaluate 2_stage1 "$stage1" ${predict1[@]+"${predict1[@]}"} ${filter[@]+"${filter[@]}"}
evaluate 2_image_labels "$stage1" --use_image_labels ${predict1[@]+"${predict1[@]}"}

step 3_pseudo_labels "$PYTHON" vis.py --checkpoint_dir="$stage1" \
  --dataset_dir="$DATASET_DIR" --vis_split="$ALL_SPLIT" --vis_crop_size="$CROP" \
  --vis_logdir="$OUTPUT_DIR/pseudo_labels" --use_image_labels --also_save_raw_predictions \
  ${predict1[@]+"${predict1[@]}"}

step 4_records "$PYTHON" tfrecords_tools/build_pseudo_labels.py --dataset_dir="$DATASET_DIR" \
  ${true_masks[@]+"${true_masks[@]}"} --ids_of_split="$ALL_SPLIT" \
  --pseudo_labels_dir="$OUTPUT_DIR/pseudo_labels/raw_segmentation_results" \
  --output_split=pseudo --output_dir="$OUTPUT_DIR/records"

step 5_retrain "$PYTHON" train_sup.py --flagfile="$STAGE2_FLAGS" \
  --dataset_dir="$OUTPUT_DIR/records" --train_split=pseudo --seed="$SEED" \
  --train_logdir="$OUTPUT_DIR/stage2" ${train2[@]+"${train2[@]}"}

evaluate 6_retrained "$OUTPUT_DIR/stage2" ${predict2[@]+"${predict2[@]}"}

show_results 2_stage1 2_image_labels 6_retrained
