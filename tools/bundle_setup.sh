#!/usr/bin/env bash
# Makes a controller of this machine from the bundle that this script lies in, or from one that is a file, without any network:
#   BUNDLE/setup DIRECTORY
#   tar -xOf FILE.tar bundle/setup | bash -s -- DIRECTORY FILE.tar
# The suite is unpacked to DIRECTORY, its virtual environment made in DIRECTORY/.venv from the bundle's wheels alone.
set -euo pipefail

directory=${1:-}
given=$(realpath "${2:-$(dirname "$0")}")
bundle=$given

say() { printf '\033[1m==> %s\033[0m\n' "$*" >&2; }
fail() {
  printf '%s\n' "$*" >&2
  exit 1
}

# What this script uses. The rest is verified by each run with -e bundle=, which also finds files that are too many.
verify() {
  (cd "$bundle" && sha256sum --quiet --check SEAL) || fail "The seal of $bundle is broken. Copy the bundle again."
  local list
  list=$(grep -E '  (suite\.tar\.gz|setup|bundle\.json|wheels/.*)$' "$bundle/SHA256SUMS")
  (cd "$bundle" && sha256sum --quiet --check - <<<"$list") ||
    fail "Files of $bundle are not what was sealed, see above. Copy them again."
}

# The first Python that the bundle has wheels for.
find_python() {
  local wheels version candidate
  for wheels in "$bundle"/wheels/*/; do
    version=$(basename "$wheels")
    for candidate in "python$version" "$HOME/.pyenv/versions/$version".*/bin/python3 /opt/python"$version"*/bin/python3 \
      /usr/local/bin/python3 python3; do
      if "$candidate" -c "import sys, venv, ensurepip; sys.exit('%d.%d' % sys.version_info[:2] != '$version')" \
        >/dev/null 2>&1; then
        printf '%s\n' "$version" "$("$candidate" -c 'import sys; print(sys.executable)')"
        return
      fi
    done
  done
  fail "The bundle has wheels for Python $(cd "$bundle/wheels" && echo *), and none of these is here with venv. Install one
from the distribution's medium, or make the bundle with -e '{\"bundle_pythons\": [\"3.N\"]}' for the Python that is here."
}

[ -n "$directory" ] || fail "usage: $0 DIRECTORY [BUNDLE.tar] (where the suite is to live, such as /opt/ascent)"
if [ -e "$directory" ] && [ ! -f "$directory/deploy.yml" ] && [ -n "$(ls -A "$directory")" ]; then
  fail "$directory is there and is no suite. Name another directory."
fi

if [ -f "$given" ]; then
  say "taking what a controller needs out of $given"
  scratch=$(mktemp -d)
  trap 'rm -rf "$scratch"' EXIT
  tar --extract --file "$given" --directory "$scratch" --exclude 'bundle/images/*' --exclude 'bundle/weights/*' \
    --exclude 'bundle/os/*' --exclude 'bundle/driver/*' --exclude 'bundle/cann/*' --exclude 'bundle/engine_wheels/*'
  bundle=$scratch/bundle
fi

say "verifying the bundle"
verify
found=$(find_python) || exit 1
{ read -r version && read -r python; } <<<"$found"

say "suite in $directory"
mkdir -p "$directory"
tar --extract --gzip --file "$bundle/suite.tar.gz" --directory "$directory" --strip-components 1
cd "$directory"

say "virtual environment in $directory/.venv with Python $version"
# No index, no settings of the user: what is missing in the bundle shows here and not at the site's third deploy.
export PIP_CONFIG_FILE=/dev/null PIP_NO_INDEX=1 PIP_FIND_LINKS="$bundle/wheels/$version" PIP_DISABLE_PIP_VERSION_CHECK=1
unset PIP_INDEX_URL PIP_EXTRA_INDEX_URL
"$python" -m venv --clear .venv
.venv/bin/python -m pip install --quiet --constraint constraints.txt --upgrade pip
PYTHONWARNINGS='ignore:Editable installation' \
  .venv/bin/python -m pip install --quiet --constraint constraints.txt --editable .
.venv/bin/python -m pip check >&2

say "ready; the next step:"
cat >&2 <<END
cd $directory
. .venv/bin/activate
ansible-playbook -i YOUR_INVENTORY deploy.yml -l CLUSTER -e bundle=$given
END
