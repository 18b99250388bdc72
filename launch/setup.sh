# Sourced by the other scripts: enters the project's folder and its own virtual
# environment, making it when it is absent or older than requirements.txt.
cd "$(dirname "${BASH_SOURCE[0]}")/.."
installed=.venv/requirements.txt
if ! cmp -s requirements.txt "$installed"; then
  for python in python3.12 python3.11 python3; do
    "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2])' \
      2>/dev/null && break
  done || { echo "covid3way needs Python 3.11 or newer" >&2; exit 2; }
  echo "setting up .venv with $("$python" --version)" >&2
  "$python" -m venv .venv
  .venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
  cp requirements.txt "$installed"
fi
source .venv/bin/activate
# Compiled code is kept beside the environment: a second run starts faster.
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$PWD/.venv/jax-cache}"
