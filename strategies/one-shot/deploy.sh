#!/bin/sh
# One SuperLink and two SuperNodes on this machine, as on three: TLS, and nodes that are known by their keys.
# Sites with data of their own, any number: SITES='folder:/data/north folder:/data/south' RUN='data="" size=64' deploy.sh FOLDER
# Usage: strategies/one-shot/deploy.sh [FOLDER]    keys, certificates, logs and the result go to FOLDER (./deployment)
# A further site while it runs: sh FOLDER/add.sh folder:/data/late      a node that died: sh FOLDER/sites/north.sh &
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

# 2. The SuperLink. Apps run under a SuperExec, which has to know a secret: without one, whoever reaches a port could take
#    over their tasks. On real machines each has a secret of its own.
[ -f superexec.secret ] || (umask 077 && openssl rand -hex 32 > superexec.secret)
flower-superlink --ssl-ca-certfile ca.crt --ssl-certfile server.pem --ssl-keyfile server.key --enable-supernode-auth \
    --host 127.0.0.1 --port "$port" --disable-runtime-dependency-installation \
    --isolation process --superexec-auth-secret-file superexec.secret > superlink.log 2>&1 &
echo $! > started
# shellcheck disable=SC2046  # the list of process ids is meant to be split
trap 'kill $(cat started) 2> /dev/null || true' EXIT INT TERM
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
echo $! >> started

# 3. How a site joins: a key, of which only the public half leaves it (it must be an EC key), is registered under the site's
#    name, and a node starts. What a node allows stands in its own config. So does a site that comes while others run.
nodes=0
for site in ${SITES:-digits digits}; do nodes=$((nodes + 1)); done
printf '%s\n' "export $environment FLWR_HOME='$here/flwr'" "nodes=$nodes port=$port" > add.env
printf '%s\n' "${NODE:-}" > add.config
mkdir -p sites
: > joined
cat > add.sh << 'END'
#!/bin/sh
# One more site, while deploy.sh runs: sh FOLDER/add.sh folder:/data/late
set -eu
cd "$(dirname "$0")"
. ./add.env
site=$1 number=$(wc -l < joined | tr -d ' ')
name=site$number part="partition-id=$number"
case $site in
*:*) name=$(basename "$site" | tr -c 'A-Za-z0-9._\n-' -) ;;
*) part="$part num-partitions=$nodes" ;;
esac
own=sites/$name
if grep -qxF "$name" joined; then
    echo "$name has joined; if it died, start it again: sh $PWD/$own.sh &" >&2
    exit 1
fi
eval "allows=\${NODE_$(printf %s "$name" | tr -c 'A-Za-z0-9' _):-}"
[ -f "$own.key" ] || ssh-keygen -q -t ecdsa -b 384 -N "" -f "$own.key"
flwr supernode register "$own.key.pub" tls --name "$name"
echo "$name" >> joined
printf '%s\n' "$part name='$name' data='$site' max-ipc=10 max-seconds=600.0 \
    ledger='$PWD/$own-ledger.jsonl' $(cat add.config) $allows" > "$own.config"
api=127.0.0.1:$((port + 100 + number))
cat > "$own.sh" << NODE
# $name. If it dies, start it again, and deploy.sh ends it with the others: sh "$PWD/$own.sh" &
# In the first minute after a kill Flower refuses it ("Failed to activate SuperNode" in $own.log): try again.
cd "$PWD"
. ./add.env
echo \$\$ >> started
exec flower-supernode --root-certificates ca.crt --superlink "127.0.0.1:$port" \\
    --auth-supernode-private-key "$own.key" --host 127.0.0.1 --port "${api#*:}" \\
    --isolation process --superexec-auth-secret-file superexec.secret \\
    --node-config "\$(cat "$own.config")" >> "$own.log" 2>&1
NODE
sh "$own.sh" &
flower-superexec --insecure --runtime-api-address "$api" \
    --superexec-auth-secret-file superexec.secret > "$own-exec.log" 2>&1 &
echo $! >> started
END
for site in ${SITES:-digits digits}; do sh add.sh "$site"; done

# 4. The round. `flwr run` exits with 0 whatever happened: the result's folder says how it ended.
small=""
grep -q '^ipc = ' "$app/pyproject.toml" && small="ipc=${IPC:-2} steps=${STEPS:-200}"
flwr run "$app" tls --stream --run-config "${RUN-$small} output=\"$here/result\""
flwr list --format json > runs.json
if ! [ -f result/result.json ] || grep -q '"error"' result/result.json; then
    echo "the run failed, see $here/result/result.json and the logs" >&2
    exit 1
fi
echo "wrote $here/result"
