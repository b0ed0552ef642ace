#!/usr/bin/env bash
# Makes the virtual environment and, as root on a Debian system, the system packages the sandbox needs.
# Quick when nothing is to do: the environment is keyed by the files that define it.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=${ASCENT_VENV:-.venv}
system_packages=(debootstrap docker.io iptables makeself openssh-client rsync)

say() { printf '\033[1m==> %s\033[0m\n' "$*" >&2; }

# A shim that exists may still refuse to run, so every candidate has to prove itself.
find_python() {
  local candidate
  for candidate in python3.13 python3.12 python3.14 python3 \
    "$HOME"/.pyenv/versions/*/bin/python3 /opt/python*/bin/python3 /usr/local/bin/python3; do
    if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 12))' >/dev/null 2>&1; then
      "$candidate" -c 'import sys; print(sys.executable)'
      return
    fi
  done
  cat >&2 <<'END'
No Python 3.12 or newer with venv was found on PATH or under ~/.pyenv/versions. Install one, for instance:
  Debian 13, Ubuntu 24.04:  apt-get install python3 python3-venv
  openEuler 24.03 and later: dnf install python3.12
  any system with pyenv:    pyenv install 3.13
then run `make setup` again.
END
  return 1
}

install_system_packages() {
  local missing=() package
  for package in "${system_packages[@]}"; do
    [ "$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  if ! command -v apt-get >/dev/null; then
    say "the sandbox needs debootstrap, a Docker engine (dockerd) and ssh; install them with this system's package manager"
  elif [ "$(id -u)" -ne 0 ]; then
    say "the sandbox needs system packages; install them with:"
    printf 'sudo apt-get update && sudo apt-get install -y --no-install-recommends %s\n' "${missing[*]}" >&2
  else
    say "system packages: ${missing[*]}"
    apt-get update -qq
    # The sandbox runs an engine of its own, so the package must not start the distribution's service.
    DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 \
      apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
  fi
}

make_venv() {
  local want have=""
  want=$(cat pyproject.toml constraints.txt "$0" | sha256sum | cut -d' ' -f1)
  [ -f "$venv/.ascent-setup" ] && have=$(<"$venv/.ascent-setup")
  [ "$want" = "$have" ] && return 0
  local python
  python=$(find_python)
  say "virtual environment in $venv with $("$python" --version)"
  rm -f "$venv/.ascent-setup"
  "$python" -m venv "$venv"
  "$venv/bin/python" -m pip install -qq --disable-pip-version-check -c constraints.txt -U pip
  # The build warns about the very layout that an editable install is for.
  PYTHONWARNINGS='ignore:Editable installation' \
    "$venv/bin/python" -m pip install -qq --disable-pip-version-check -c constraints.txt --group test -e .
  "$venv/bin/python" -m pip check
  printf '%s\n' "$want" >"$venv/.ascent-setup"
}

install_system_packages
make_venv
