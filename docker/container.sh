#!/bin/sh
# What runs in fedsim's containers: the first argument says which part. compose.yaml has the order in which they start.
set -eu

case "${INSECURE:-}" in
'') ;;
no-tls-no-identities)
    echo "WARNING: INSECURE=$INSECURE: nothing is encrypted, and whoever reaches the server can join and read" >&2 ;;
*)
    echo "error: INSECURE=$INSECURE: leave it out, or say no-tls-no-identities to mean it" >&2
    exit 2 ;;
esac

authority=/identity/public/ca.crt
socket=/run/fedsim/worker.sock

kernels() { # compiled with the image, to where new ones can be added
    if [ ! -e "$NUMBA_CACHE_DIR" ]; then cp -r /opt/compiled "$NUMBA_CACHE_DIR"; fi
}

connection() { # the SuperLink of this network namespace, which takes orders from nowhere else
    mkdir -p "$FLWR_HOME"
    if [ "${INSECURE:-}" ]; then trust='insecure = true'; else trust="root-certificates = \"$authority\""; fi
    printf '[superlink.here]\naddress = "127.0.0.1:8000"\n%s\n' "$trust" >"$FLWR_HOME/config.toml"
}

healthy() { # $1: an address
    python -c '
import ssl, sys, urllib.request
context = ssl.create_default_context(cafile=sys.argv[2]) if sys.argv[1].startswith("https") else None
urllib.request.build_opener(
    urllib.request.ProxyHandler({}), *([urllib.request.HTTPSHandler(context=context)] if context else [])
).open(sys.argv[1], timeout=5)' "$1" "$authority"
}

case "${1:-}" in
certs)
    set -- --folder /identity --nodes "$KEYS"
    for name in superlink localhost 127.0.0.1 ${NAMES:-}; do set -- "$@" --name "$name"; done
    exec fedsim certs "$@" ;;
superlink)
    kernels
    if [ "${INSECURE:-}" ]; then set -- --insecure; else
        set -- --ssl-ca-certfile "$authority" --ssl-certfile /identity/server/server.crt \
            --ssl-keyfile /identity/server/server.key --enable-supernode-auth
    fi
    exec python -P /opt/venv/share/fedsim/app/server/gate.py --host 0.0.0.0 --port 8000 --database /state/superlink.db "$@" ;;
superlink-healthy)
    if [ "${INSECURE:-}" ]; then healthy http://127.0.0.1:8000/health; else healthy https://127.0.0.1:8000/health; fi ;;
register)
    if [ "${INSECURE:-}" ]; then exit 0; fi
    connection
    exec fedsim certs --folder /identity --register here ;;
run)
    connection
    hash=$(sha256sum /experiment.toml)
    folder=/runs/${RUN:-run}-$(printf %.8s "$hash")
    if [ -e "$folder/submission.json" ]; then exec fedsim resume "$folder"; fi
    exec fedsim run /experiment.toml --folder "$folder" --engine flower --superlink here ;;
flwr)
    connection
    exec "$@" ;;
worker)
    kernels
    exec fedsim worker --socket "$socket" --folder /rows --data /data ${DEVICE:+--device "$DEVICE"} ;;
worker-healthy)
    exec python -c 'import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])' "$socket" ;;
supernode)
    if [ "${INSECURE:-}" ]; then set -- --insecure; else
        set -- --root-certificates "$authority" --auth-supernode-private-key /identity/node/node.key
    fi
    exec flower-supernode "$@" --superlink "$SUPERLINK" --node-config \
        "partition-id=$((NODE % NODES)) num-partitions=$NODES worker='unix:$socket'${OWN:+ data='/data/$OWN'}" ;;
supernode-healthy)
    healthy http://127.0.0.1:9094/health ;;
*)
    echo "error: '${1:-}': expected certs, superlink, register, run, worker or supernode" >&2
    exit 2 ;;
esac
