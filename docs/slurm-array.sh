#!/bin/bash
# One run as an array of jobs: eight shards of the images, each on a GPU of its own, then one job that measures.
#
#     sbatch --export=ALL,METHOD=wanda,SUITE=sd14-mem500 docs/slurm-array.sh
#
# The folder of records, the store and the suite's files must be on a file system that all nodes see. `bench` must be installed in the environment
# that the jobs start in. A shard that is killed or runs out of time loses at most the unit under way: submit it again and it goes on where it stopped.
#SBATCH --job-name=bench-shards
#SBATCH --array=1-8
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=4
#SBATCH --time=04:00:00
#SBATCH --requeue
set -euo pipefail

run=(bench run --method "${METHOD:?say which method}" --suite "${SUITE:?say which suite}")

if [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then
    # The first task also hands in the job that joins the shards; it starts when all of them have ended well, and makes what may still be missing.
    if [ "$SLURM_ARRAY_TASK_ID" = "$SLURM_ARRAY_TASK_MIN" ] && [ "${SLURM_RESTART_COUNT:-0}" = 0 ]; then
        sbatch --dependency="afterok:$SLURM_ARRAY_JOB_ID" --job-name=bench-measure --gres=gpu:1 --cpus-per-task=4 --time=04:00:00 \
            --export=ALL --wrap="${run[*]}"
    fi
    "${run[@]}" --shard "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT"
else
    "${run[@]}"
fi
