# shellcheck shell=bash disable=SC2034  # node_options is used where this is sourced
# Sourced on every machine of a cluster before Ray is started there (cluster.yaml): Ray from .venv, and its settings.
scripts=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
PATH=$(cd "$scripts/../.venv/bin" && pwd):$PATH

# shellcheck disable=SC2046  # several addresses
python "$scripts/public_addresses.py" $(hostname -I) || return 2

# By this scripts/down knows what is the cluster's, among all that runs on the machine (orchestrator/cluster/ray_processes.py).
QLORA_CLUSTER=$(cd "$scripts/.." && pwd -P)
export QLORA_CLUSTER

# Every call to the cluster carries the token in ~/.ray/auth_token, which Ray makes readable for all.
chmod go= ~/.ray ~/.ray/auth_token 2>/dev/null || true
export RAY_AUTH_MODE=token

# The head asks every machine each 3 s, and gives it up after 5 answers in a row that took longer than 4 s: 35 s after its
# link was cut, 15 s after Ray died there. Its trials then go on elsewhere.
export RAY_health_check_period_ms=3000 RAY_health_check_timeout_ms=4000 RAY_health_check_failure_threshold=5

# By then a machine that was cut off has ended its own trials, so that no two write into one folder: connections that
# don't answer a ping, sent each 5 s, within 4 s are broken, and who can't make a new one within 12 s ends itself.
export RAY_grpc_client_keepalive_time_ms=5000 RAY_grpc_client_keepalive_timeout_ms=4000
export RAY_gcs_rpc_server_reconnect_timeout_s=12

# The second version of Ray's autoscaler takes the head for one of the workers where machines are on premises, and
# leaves one of them out (Ray 2.60).
export RAY_enable_autoscaler_v2=0

# `ray job stop` asks a search to stop; it may take so many seconds to export the best so far.
export RAY_JOB_STOP_WAIT_TIME_S=300

# The address under which SSH reached this machine, unless another is given, and fixed ports.
reached=$(cut -d' ' -f3 <<<"${SSH_CONNECTION:-}")
node_options="--node-ip-address=${NODE_ADDRESS:-${reached:-$(hostname -I | cut -d' ' -f1)}}
  --node-manager-port=6380 --object-manager-port=6381 --runtime-env-agent-port=6382
  --dashboard-agent-grpc-port=6383 --dashboard-agent-listen-port=6384 --metrics-export-port=6385
  --min-worker-port=20000 --max-worker-port=20999"
