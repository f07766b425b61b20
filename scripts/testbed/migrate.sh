# shellcheck shell=bash
# Live migration in steps, so that tests may do something in between, and in one go.

# guest_migrate NAME FROM TO: port and QEMU at the destination, the move, then the end of
# the source. Prints QEMU's figures: {"total_ms", "downtime_ms", "setup_ms", "ram_bytes"}.
guest_migrate() {
    guest_migrate_prepare "$1" "$3" && guest_migrate_begin "$1" "$3" && guest_migrate_await "$1" &&
        guest_migrate_finish "$1" "$2" "$3"
}

# guest_migrate_prepare NAME TO: makes the port and a waiting QEMU there. With GUEST_NO_PORT
# the port is the caller's business (host_port_add); QEMU waits until it is there.
guest_migrate_prepare() {
    local name=$1 to=$2 dir
    dir=$(guest_run_dir "$name" "$to")
    guest_start "$to" "$name" "$(guest_socket "$to" "$name")" "$(cat "$(guest_dir "$name")/mac")" --incoming || return 1
    guest_await_socket "$to" "$name" || return 1
    [ -n "${GUEST_NO_PORT:-}" ] || guest_port_add "$to" "$name" || return 1
    [ -n "${GUEST_NO_PORT:-}" ] || WAIT_LOG=$dir/qemu.out wait_for 15 "QEMU on host $to to await guest $name" test -S "$dir/migrate.sock"
}

# guest_migrate_begin NAME TO: starts to copy. MIGRATE_BANDWIDTH (bytes/s) slows it down.
guest_migrate_begin() {
    local name=$1 dir
    dir=$(guest_run_dir "$name" "$2")
    guest_qmp "$name" migrate-set-parameters \
        "{\"max-bandwidth\": ${MIGRATE_BANDWIDTH:-1073741824}, \"downtime-limit\": ${MIGRATE_DOWNTIME_MS:-300}}" >/dev/null &&
        guest_qmp "$name" migrate "{\"uri\": \"unix:$dir/migrate.sock\"}" >/dev/null
}

# guest_migrate_query NAME: asks QEMU how it goes and keeps the answer in NAME's dir.
guest_migrate_query() { guest_qmp "$1" query-migrate >"$(guest_dir "$1")/migration"; }

# guest_migrate_state NAME: active, completed, failed, cancelled, ...
guest_migrate_state() { guest_migrate_query "$1" && jq -r '.status // "none"' "$(guest_dir "$1")/migration"; }
guest_migrate_over() { guest_migrate_query "$1" && grep -qE '"status":"(completed|failed|cancelled)"' "$(guest_dir "$1")/migration"; }

# guest_migrate_await NAME: until it is over; fails unless it completed.
guest_migrate_await() {
    local answer
    answer=$(guest_dir "$1")/migration
    WAIT_LOG=$(guest_run_dir "$1")/qemu.out wait_for "${MIGRATE_TIMEOUT:-60}" "the migration of $1" guest_migrate_over "$1" || return 1
    grep -q '"status":"completed"' "$answer" || tb_fail "the migration of $1 did not complete: $(<"$answer")"
}

# guest_migrate_cancel NAME TO: gives up; the guest goes on where it was.
guest_migrate_cancel() {
    guest_qmp "$1" migrate_cancel >/dev/null
    wait_for 10 "the migration of $1 to be cancelled" guest_migrate_over "$1"
    testbed_kill "guest-$1-$2" KILL
    host_port_del "$2" "$1"
}

# guest_migrate_finish NAME FROM TO: from here on the guest is TO's; deletes the source's
# port (GUEST_KEEP_PORT leaves it) and ends its QEMU. Prints the figures.
guest_migrate_finish() {
    local name=$1 from=$2 to=$3
    printf '%s\n' "$to" >"$(guest_dir "$name")/host"
    # First of all: until then what is sent to the guest goes astray. Once more when its old
    # port is gone, since frames may have come from there meanwhile.
    host_forget_macs || return 1
    [ -n "${GUEST_KEEP_PORT:-}" ] || host_port_del "$from" "$name" || return 1
    host_forget_macs || return 1
    testbed_kill "guest-$name-$from" KILL || return 1
    jq -c '{total_ms: ."total-time", downtime_ms: .downtime, setup_ms: ."setup-time", ram_bytes: .ram.transferred}' \
        "$(guest_dir "$name")/migration"
}
