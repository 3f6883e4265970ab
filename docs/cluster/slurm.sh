#!/bin/bash
# sbatch docs/cluster/slurm.sh recipes/configs/grpo_openvla-oft_libero-10.yaml [flags of the recipe]
#SBATCH --job-name=rlvla
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=96
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=TERM@60
set -euo pipefail

config=$1
shift
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
address=$(srun --nodes=1 --ntasks=1 --nodelist="$head" hostname --ip-address | awk '{print $1}'):6379

export RAY_AUTH_MODE=token
RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))')
export RAY_AUTH_TOKEN

# A Ray node in each task; the command behind `--` runs on the head, once all nodes are there.
exec srun --kill-on-bad-exit ray symmetric-run --address "$address" --min-nodes "$SLURM_NNODES" -- \
    python recipes/grpo.py --config "$config" --cluster.address "$address" "$@"
