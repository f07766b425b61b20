#!/bin/bash
# Connections live through 20 migrations of db in a row, A to B to A, with strict TCP and
# on-missing-state block: no reset, no silence over a second, all session records accepted,
# no setting that had to decide. The first packet after a move comes from either side. And
# without session transfer they break.
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$(readlink -f "$0")")/lib.sh"

moves=${MOVES:-20}
limit_ms=1000
# How long QEMU may stop the VM, if it can: a segment that is lost twice waits for 600 ms.
export MIGRATE_DOWNTIME_MS=100

# From web to db: busy (web speaks, db echoes), speaks (db speaks), idle (web speaks when told
# to), quiet (db speaks when told to). From db to web: back (db speaks, web echoes).
open_all() {
    local id addr
    addr=$(moat_addr db)
    for id in busy speaks idle quiet; do guest_cmd web tcp-close $id >/dev/null 2>&1 || true; done
    guest_cmd db tcp-close back >/dev/null 2>&1 || true
    guest_cmd web tcp-connect busy "$addr" 5001 busy:50 >/dev/null
    guest_cmd web tcp-connect speaks "$addr" 5002 server-speaks >/dev/null
    guest_cmd web tcp-connect idle "$addr" 5003 idle >/dev/null
    guest_cmd web tcp-connect quiet "$addr" 5004 idle >/dev/null
    guest_cmd db tcp-connect back "$(moat_addr web)" 6001 busy:50 >/dev/null
    generation=$((generation + 1))
    quiet_at_db=5004#$generation
    back_at_web=6001#$generation
}
generation=0

# Ends of connections as web sees them: web does not move, so its clock does not stop.
web_ends() { printf '%s\n' busy speaks idle quiet "$back_at_web"; }
conn() { guest_field web "$2" tcp-status "$1"; } # ID FIELD

# received_more ID COUNT: has web got more records than that?
received_more() { [ "$(conn "$1" received)" -gt "$2" ]; }

# speak_first N: who breaks the silence on the connections that are still after move N.
speak_first() {
    local before
    before=$(conn quiet received)
    if [ $(($1 % 2)) = 0 ]; then
        check_equal "move $1: db is the first to speak on a silent connection" \
            "$(guest_field db state tcp-send "$quiet_at_db")" open
        check_equal "move $1: then web on another" "$(guest_field web state tcp-send idle 5000)" open
    else
        check_equal "move $1: web is the first to speak on a silent connection" \
            "$(guest_field web state tcp-send idle 5000)" open
        check_equal "move $1: then db on another" "$(guest_field db state tcp-send "$quiet_at_db")" open
    fi
    check_soon 5 "move $1: web hears it" received_more quiet "$before"
}

# flowing: busy, speaks and back go on (three records each from now).
flowing() {
    local id before
    for id in busy speaks "$back_at_web"; do
        before=$(conn "$id" received)
        wait_for 5 "records on $id" received_more "$id" $((before + 2)) || return 1
    done
}

evidence() { jq -r --arg k "$1" '.evidence[$k] // "none"' <<<"$record"; }

# move N FROM TO: one migration and what must be true of it.
move() {
    local figures record gap
    guest_cmd web tcp-mark
    figures=$(moat_migrate db "$2" "$3")
    speak_first "$1"
    check "move $1: the other connections go on" flowing
    gap=$(guest_cmd web tcp-status | jq -s 'map(.max_gap_ms) | max')
    record=$(moat_admin --format json migration list | jq -c '[.[] | select(.vnic == "db-nic")] | last')
    printf '        move %d, %s to %s: VM stopped for %s ms, its packets held for %s us, QEMU waited for %s ms\n' "$1" "$2" "$3" \
        "$(jq .downtime_ms <<<"$figures")" "$(evidence hold-us)" "$(evidence wait-ms)"
    check_most "move $1: longest silence in ms" "$gap" $limit_ms
    check_least "move $1: session records sent" "$(evidence sessions-sent)" 5
    check_equal "move $1: session records accepted" "$(evidence sessions-accepted)" "$(evidence sessions-sent)"
    check_equal "move $1: setting that decided" "$(evidence decided-by)" none
    longest=$((gap > longest ? gap : longest))
}
longest=0

system_test
part "two hosts, web and db on A"
moat_start A B
moat_vm web 10.0.0.1 label role=web
moat_vm db 10.0.0.3 label role=db
moat_guests A web db
# What is sent to db goes out of all ports. A bridge that learns may take half a second to see
# that db has moved, and that is not what this test is about.
for host in A B; do host_ofctl $host add-flow br0 "priority=100,dl_dst=$(moat_mac db),actions=all"; done
rules() { # TRANSFER
    cat <<END
policy "migrate20" version 1
group web = vms labelled role=web
group db = vms labelled role=db
tier t {
    allow from web to db service tcp 5001-5004
    allow from db to web service tcp 6001
}
default drop
settings for any {
    tcp strict
    on-missing-state block
    on-missing-policy block
    transfer-sessions $1
}
END
}
rules on | policy migrate20
wait_for 20 "both vNICs to enforce it" moat_settled_now 2
guest_cmd db tcp-listen 5001 busy
guest_cmd db tcp-listen 5002 server-speaks:50
guest_cmd db tcp-listen 5003 idle
guest_cmd db tcp-listen 5004 idle
guest_cmd db tcp-listen 5999 idle
guest_cmd web tcp-listen 6001 busy
open_all
check "five connections are open" flowing
check_equal "what policy forbids is refused" "$(guest_cmd web tcp-try 10.0.0.3 5999 1000)" timeout

part "$moves migrations"
from=A to=B
for n in $(seq "$moves"); do
    move "$n" $from $to
    host=$from from=$to to=$host
done
while read -r id; do
    check_equal "$id: state in the end" "$(conn "$id" state)" open
    check_equal "$id: records lost or out of order" "$(conn "$id" out_of_order)" 0
done < <(web_ends)
check_equal "what policy forbids is still refused" "$(guest_cmd web tcp-try 10.0.0.3 5999 1000)" timeout
check_equal "migrations in the database" \
    "$(moat_admin --format json migration list | jq '[.[] | select(.vnic == "db-nic" and .state == "completed")] | length')" "$moves"
printf 'longest silence of all: %d ms\n' "$longest"

part "control experiment: without session transfer"
rules off | policy no-transfer
wait_for 20 "both vNICs to enforce it" moat_settled_now 2
check "the connections still go on" flowing
drops() { echo $(($(moat_drops $to db-nic to-vm tcp-no-session) + $(moat_drops $to db-nic from-vm tcp-no-session))); }
moat_migrate db $from $to >/dev/null
check_equal "session records sent" "$(moat_evidence db-nic sessions-sent)" 0
check "setting that decided: on-missing-state=block" says '^on-missing-state=block' moat_evidence db-nic decided-by
check_soon 10 "segments of unknown sessions are refused" at_least 4 drops
guest_cmd web tcp-mark
before=$(guest_cmd web tcp-status | jq -s 'map(.received) | add')
check "idle: no answer" not guest_cmd web tcp-send idle 3000
guest_cmd db tcp-send "$quiet_at_db" >/dev/null
check_equal "records that arrive in three seconds" \
    $(($(guest_cmd web tcp-status | jq -s 'map(.received) | add') - before)) 0
open_all
check "new connections are no problem" flowing
verdict
