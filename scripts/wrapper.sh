# shellcheck shell=bash disable=SC2034  # what take_option sets is used where this is sourced
# Sourced by run_training.sh and run_inference.sh: options, keys from .env, and the project's Python.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
image=${IMAGE:-qlora-orchestrator}

fail() { # MESSAGE
  echo "error: $1" >&2
  exit 2
}

# Takes one option off the arguments: sets `name` (with _ for -), `value`, `given` (whether it has one) and `used` (how
# many arguments it took). The names that FLAGS matches have no value, others may have one.
take_option() { # FLAGS ARGUMENT ...
  [[ $2 =~ ^--([A-Za-z][A-Za-z0-9_.-]*)(=(.*))?$ ]] || fail "unexpected $2. See --help."
  name=${BASH_REMATCH[1]//-/_} value=${BASH_REMATCH[3]} given=no used=1
  [ -z "${BASH_REMATCH[2]}" ] || given=yes
  if [[ $name =~ ^($1)$ ]]; then
    [ "$given" = no ] || fail "--$name takes no value. See --help."
  elif [[ $given = no && $# -ge 3 && $3 != --* ]]; then
    value=$3 given=yes used=2
  fi
}

need_value() {
  [ "$given" = yes ] || fail "--$name needs a value. See --help."
}

need_gpu() {
  [[ $value =~ ^[0-9]+$ ]] || fail "--$name needs the number of one GPU, such as 0. See --help."
}

# Exports the NAME=value lines of a file. It's read, never executed; values are never printed; empty ones are left out,
# and what the environment has already stands.
load_env() { # FILE
  local line number=0 pattern='^[[:space:]]*(export[[:space:]]+)?([A-Z_][A-Z0-9_]*)=(.*)$'
  while IFS= read -r line || [ -n "$line" ]; do
    number=$((number + 1))
    line=${line%$'\r'}
    [[ $line =~ ^[[:space:]]*(#|$) ]] && continue
    if [[ ! $line =~ $pattern ]]; then
      echo "warning: $1, line $number: not of the form NAME=value; left out" >&2
      continue
    fi
    local name=${BASH_REMATCH[2]} value=${BASH_REMATCH[3]}
    value=${value%"${value##*[![:space:]]}"}
    [[ $value =~ ^\"(.*)\"$ || $value =~ ^\'(.*)\'$ ]] && value=${BASH_REMATCH[1]}
    [ -z "$value" ] || [ -n "${!name:-}" ] || export "$name=$value"
  done <"$1"
}

# Ends the script with a module of the project, natively or in the image. There the current folder is /work, and the
# hub's cache is the user's own.
run_project() { # native|docker GPUS MODULE [ARGUMENT ...]
  local how=$1 gpus=$2
  shift 2
  [ ! -f "$root/.env" ] || load_env "$root/.env"
  if [ "$how" = native ]; then
    { [ -x "$root/.venv/bin/python" ] && [ ! -e "$root/.venv/unfinished" ]; } || "$root/scripts/setup"
    exec "$root/.venv/bin/python" -m "$@"
  fi
  command -v docker >/dev/null || fail "--docker: docker isn't installed. Install it, or leave out --docker."
  local cache=${HF_HOME:-$HOME/.cache/huggingface} options=() name
  mkdir -p "$cache"
  [ ! -f "$root/.env" ] || options+=(--env-file "$root/.env")
  # By name alone, so that no value stands in the list of processes.
  for name in HF_TOKEN WANDB_API_KEY WANDB_MODE; do
    [ -z "${!name:-}" ] || options+=(--env "$name")
  done
  # The user's own id, so that what is written is theirs; the image doesn't know them, hence name and home.
  options+=(--user "$(id -u):$(id -g)" --env USER=user --env HOME=/tmp --env HF_HOME=/hf_home)
  options+=(--volume "$cache:/hf_home" --volume "$PWD:/work" --workdir /work)
  exec docker run --rm --init --gpus "$gpus" "${options[@]}" "$image" python -m "$@"
}
