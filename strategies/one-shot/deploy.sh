#!/bin/sh
# One SuperLink and two SuperNodes on this machine, as on three: TLS, and nodes that are known by their keys.
# Sites with data of their own, any number: SITES='folder:/data/north folder:/data/south' RUN='data="" size=64' deploy.sh FOLDER
# Usage: strategies/one-shot/deploy.sh [FOLDER]    keys, certificates, logs and the result go to FOLDER (./deployment)
# Another strategy: APP=strategies/anchored NODE='allow-weights=true' RUN='num-rounds=3' deploy.sh FOLDER
# Of one site alone, by its name with _ for what is no letter or digit: NODE_north='send="ask"'. To go on: RUN='resume=true ...'
set -eu

app=$(cd "${APP:-$(dirname "$0")}" && pwd)
mkdir -p "${1:-deployment}"
cd "${1:-deployment}"
case ${RUN-} in *resume*) goes_on=yes ;; *) goes_on= ;; esac
[ -n "$goes_on" ] || [ ! -e result ] || { echo "$(pwd)/result holds a run; give another folder, or resume=true in RUN" >&2; exit 1; }
here=$(pwd)
port=${PORT:-18001}

environment="FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1 FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1"
# shellcheck disable=SC2086,SC2163  # three variables
export $environment FLWR_HOME="$here/flwr"

# 1. A certificate authority, and the server's certificate. On real machines: your own, and the server's name.
openssl req -x509 -newkey rsa:2048 -nodes -days 30 -keyout ca.key -out ca.crt -subj "/CN=fedcondense test CA" \
    -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign,cRLSign 2> openssl.log
openssl req -newkey rsa:2048 -nodes -keyout server.key -out server.csr -subj "/CN=localhost" 2>> openssl.log
printf 'subjectAltName=DNS:localhost,IP:127.0.0.1\nbasicConstraints=CA:FALSE\n' > san.ext
openssl x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 30 -out server.pem \
    -extfile san.ext 2>> openssl.log

# 2. A key for each node; only the public half leaves it. It must be an EC key.
nodes=0
for site in ${SITES:-digits digits}; do nodes=$((nodes + 1)); done
numbers=$(seq 0 $((nodes - 1)))
for node in $numbers; do
    [ -f "node$node" ] || ssh-keygen -q -t ecdsa -b 384 -N "" -f "node$node"
done

# 3. The SuperLink. Apps run under a SuperExec, which has to know a secret: without one, whoever reaches a port could take
#    over their tasks. On real machines each has a secret of its own.
[ -f superexec.secret ] || (umask 077 && openssl rand -hex 32 > superexec.secret)
flower-superlink --ssl-ca-certfile ca.crt --ssl-certfile server.pem --ssl-keyfile server.key --enable-supernode-auth \
    --host 127.0.0.1 --port "$port" --disable-runtime-dependency-installation \
    --isolation process --superexec-auth-secret-file superexec.secret > superlink.log 2>&1 &
started=$!
# shellcheck disable=SC2086  # the list of process ids is meant to be split
trap 'kill $started 2> /dev/null || true' EXIT INT TERM
mkdir -p "$FLWR_HOME"
cat > "$FLWR_HOME/config.toml" << END
[superlink]
default = "tls"
[superlink.tls]
address = "127.0.0.1:$port"
root-certificates = "$here/ca.crt"
END
tries=0
until curl --silent --fail --cacert ca.crt "https://127.0.0.1:$port/health" > /dev/null; do
    tries=$((tries + 1))
    [ "$tries" -lt 60 ] || { echo "the SuperLink did not start, see $here/superlink.log" >&2; exit 1; }
    sleep 1
done

flower-superexec --runtime-api-address "127.0.0.1:$port" --root-certificates ca.crt \
    --superexec-auth-secret-file superexec.secret > superlink-exec.log 2>&1 &
started="$started $!"

# 4. Register the nodes' public keys under the sites' names, then start the nodes. What a node allows stands in its own config.
node=0
for site in ${SITES:-digits digits}; do
    name=site$node part="partition-id=$node"
    case $site in
    *:*) name=$(basename "$site" | tr -c 'A-Za-z0-9._\n-' -) ;;
    *) part="$part num-partitions=$nodes" ;;
    esac
    eval "own=\${NODE_$(printf %s "$name" | tr -c 'A-Za-z0-9' _):-}"
    flwr supernode register "node$node.pub" tls --name "$name"
    printf '%s\n' "$part name='$name' data='$site' max-ipc=10 max-seconds=600.0 \
        ledger='$here/node$node-ledger.jsonl' ${NODE:-} $own" > "node$node.config"
    cat > "node$node.sh" << END
# $name. If it dies, start it again: sh "$here/node$node.sh"
cd "$here"
exec env $environment FLWR_HOME="$here/flwr" flower-supernode --root-certificates ca.crt --superlink "127.0.0.1:$port" \\
    --auth-supernode-private-key node$node --host 127.0.0.1 --port $((port + 100 + node)) \\
    --isolation process --superexec-auth-secret-file superexec.secret \\
    --node-config "\$(cat node$node.config)" >> node$node.log 2>&1
END
    sh "node$node.sh" &
    started="$started $!"
    flower-superexec --insecure --runtime-api-address "127.0.0.1:$((port + 100 + node))" \
        --superexec-auth-secret-file superexec.secret > "node$node-exec.log" 2>&1 &
    started="$started $!"
    node=$((node + 1))
done

# 5. The round. `flwr run` exits with 0 whatever happened: the result's folder says how it ended.
flwr run "$app" tls --stream --run-config "${RUN-ipc=${IPC:-2} steps=${STEPS:-200}} output=\"$here/result\""
flwr list --format json > runs.json
if ! [ -f result/result.json ] || grep -q '"error"' result/result.json; then
    echo "the run failed, see $here/result/result.json and the logs" >&2
    exit 1
fi
echo "wrote $here/result"
