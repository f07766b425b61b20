# shellcheck shell=bash
# The central database: the stock ovsdb-server in the management namespace, on TLS (mutual)
# and on a unix socket. Files are in $TESTBED_DIR/central.

central_dir() { printf '%s/central\n' "$TESTBED_DIR"; }

# central_remote / central_local: where clients find it, from any host or on this machine.
central_remote() { printf 'ssl:%s:6640\n' "$MGMT_ADDR"; }
central_local() { printf 'unix:%s/db.sock\n' "$(central_dir)"; }

# central_start SCHEMA: makes the database on first use, then serves it. An array
# CENTRAL_ARGS may hold more options for ovsdb-server. Needs pki_init.
# shellcheck disable=SC2120
central_start() {
    local dir options schema=${1:-}
    dir=$(central_dir)
    mkdir -p "$dir"
    [ -e "$dir/central.db" ] || ovsdb-tool create "$dir/central.db" "$schema"
    mapfile -t options < <(pki_options central)
    testbed_spawn central "$dir/ovsdb.out" ip netns exec "$(mgmt_ns)" ovsdb-server "$dir/central.db" \
        --remote="pssl:6640:$MGMT_ADDR" --remote="punix:$dir/db.sock" --unixctl="$dir/ovsdb-server.ctl" \
        "${options[@]}" --log-file="$dir/ovsdb-server.log" -vconsole:off ${CENTRAL_ARGS[@]+"${CENTRAL_ARGS[@]}"}
    WAIT_LOG=$dir/ovsdb-server.log wait_for 10 "the central database" central_up
}
central_up() { ovsdb-client -t 2 list-dbs "$(central_local)" && ovs-appctl -T 2 -t "$(central_dir)/ovsdb-server.ctl" version; }

# central_stop [SIGNAL] and central_restart [SIGNAL]: the data stay.
central_stop() { testbed_kill central "${1:-TERM}"; }
central_restart() {
    central_stop "$@"
    central_start
}

# central_client ARGS...: ovsdb-client on the local socket; the address is put behind the
# command, as in: central_client dump Moat VM
central_client() {
    local command=$1
    shift
    ovsdb-client -t 15 "$command" "$(central_local)" "$@"
}
