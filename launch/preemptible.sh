#!/usr/bin/env bash
# Runs a command that a scheduler may stop. A training that gets SIGTERM ends with exit
# code 0 once it has kept its state, and a scheduler would take it for finished. So here
# that is exit code 143, as of any program that SIGTERM ended: to be run again, and the
# same command goes on. One that had just finished finds so and ends at once.
#   launch/preemptible.sh python -m covid3way.main --config=... --workdir=...
set -euo pipefail

# await TELL COMMAND...: its exit code. SIGTERM is passed on by calling TELL with the
# command's process id, and `told` holds a dot for each.
told=''
await() {
  local tell="$1" pid='' code before
  shift
  # A signal may come before there is a process to tell.
  trap 'told+=.; [[ -z "$pid" ]] || "$tell" "$pid" || true' TERM
  "$@" &
  pid=$!
  [[ -z "$told" ]] || "$tell" "$pid" || true
  # A signal also ends `wait`, long before the command has ended.
  while
    before="$told" code=0
    wait "$pid" || code=$?
    [[ "$told" != "$before" ]]
  do :; done
  trap '' TERM
  return "$code"
}

# Slurm's scripts source this file for `await` alone.
[[ "${BASH_SOURCE[0]}" == "$0" ]] || return 0
code=0
await 'kill' "$@" || code=$?
[[ -n "$told" && "$code" == 0 ]] && code=143
exit "$code"
