# Sourced by the batch scripts: enters the project and runs its program.
#
# sbatch runs a copy of a script, in a folder of its own: the project is the folder that
# sbatch was called in.
cd "$SLURM_SUBMIT_DIR"
# Of several jobs that start at once one makes the environment; the others wait for it.
cmp -s requirements.txt .venv/requirements.txt ||
  flock launch/setup.sh bash -euo pipefail -c 'source launch/setup.sh'
source launch/setup.sh
source launch/preemptible.sh

# SLURM_JOB_ID of an array's last task is also the array's, and would stand for all.
job="${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}"
job="${job:-$SLURM_JOB_ID}"

# Slurm no longer hands --cpus-per-task on to srun.
[[ -z "${SLURM_CPUS_PER_TASK:-}" ]] || export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"

# Not through srun, which answers SIGTERM by killing its tasks.
tell_tasks() { scancel --quiet --signal=TERM "$job"; }

# run SRUN-OPTION... -- FLAG...: the program with these flags, as tasks of the job.
# SIGTERM comes to this shell before the time limit (--signal=B:TERM), or, at a
# preemption with grace time, to the tasks alone. Either way the tasks end with 143, and
# the job queues itself again: unless it is no longer running to Slurm, because somebody
# cancelled it or because Slurm has already queued it again.
run() {
  local options=() code=0
  while [[ "$1" != -- ]]; do options+=("$1"); shift; done
  shift
  # The first task to end must not take with it those that still keep their state.
  await tell_tasks srun --kill-on-bad-exit=0 "${options[@]}" \
    launch/preemptible.sh python -m covid3way.main "$@" || code=$?
  if [[ "$code" == 143 || ( -n "$told" && "$code" -gt 128 ) ]] &&
    [[ "$(squeue --noheader --jobs="$job" --format=%T)" == RUNNING ]]; then
    scontrol requeue "$job"
  fi
  exit "$code"
}
