#!/usr/bin/env bash
# Every role's molecule scenario on two sandbox nodes of their own: boots them, runs, takes them down. Roles may be named:
#   tests/roles/run.sh host_tuning images
# KEEP=1 leaves the nodes up, for the next run or to look around.
set -uo pipefail
cd "$(dirname "$0")/../.." || exit
export PATH="$PWD/.venv/bin:$PATH"

roles=("$@")
[ ${#roles[@]} -gt 0 ] || for scenario in roles/*/molecule/default; do
  [ -f "$scenario/molecule.yml" ] && role=${scenario#roles/} && roles+=("${role%%/*}")
done

output=$(mktemp -d)
take_down() {
  [ -n "${KEEP:-}" ] || python sandbox/cluster.py down --inventory tests/roles/inventory
  rm -rf "$output"
}
trap take_down EXIT
python sandbox/cluster.py up --inventory tests/roles/inventory || exit 1

failed=()
for role in "${roles[@]}"; do
  printf '\n== role %s\n' "$role"
  started=$SECONDS
  # What molecule remembers of a run that was broken off must not make it leave out preparing the nodes.
  MOLECULE_EPHEMERAL_DIRECTORY=$(mktemp -d)
  export MOLECULE_EPHEMERAL_DIRECTORY
  (cd "roles/$role" && molecule test --no-command-borders) 2>&1 | tee "$output/$role" || failed+=("$role")
  rm -rf "$MOLECULE_EPHEMERAL_DIRECTORY"
  printf '== role %s: %s s\n' "$role" $((SECONDS - started))
done

if [ ${#failed[@]} -gt 0 ]; then
  for role in "${failed[@]}"; do
    printf '\n== the end of role %s, which failed\n' "$role"
    tail -n 60 "$output/$role"
  done
  printf '\nfailed: %s\n' "${failed[*]}" >&2
  exit 1
fi
printf '\nall roles passed: %s\n' "${roles[*]}"
