#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Two moatd on one machine, each with a fake engine and its own Open_vSwitch
# database, one Moat database, real certificates: hand-overs and their accidents.
#
#   test_moatd.sh MOATD FAKE_ENGINE MOAT_SCHEMA
set -euo pipefail
export LC_ALL=C

# In a network namespace of its own: taps and ports are nobody else's.
if [ -z "${MOATD_TEST_NETNS:-}" ]; then
    MOATD_TEST_NETNS=1 exec unshare --net -- "$0" "$@"
fi
ip link set lo up

moatd=$1 fake=$2 schema=$3
ovs_schema=/usr/share/openvswitch/vswitch.ovsschema
dir=$(mktemp -d /tmp/moatd-test.XXXXXX)
export OVS_RUNDIR=$dir
declare -A pid=()
portA=$((20000 + $$ % 20000)) portB=$((portA + 1)) portC=$((portA + 2))
failed=0

cleanup() {
    local p
    for p in "${pid[@]}"; do kill "$p" 2>/dev/null || true; done
    wait 2>/dev/null || true
    if [ $failed -ne 0 ] && [ -n "${KEEP_LOGS:-}" ]; then echo "logs: $dir"; else rm -rf "$dir"; fi
}
trap cleanup EXIT
step() { printf '%s\n' "- $*"; }
fail() {
    failed=1
    printf 'FAILED: %s\n' "$*" >&2
    for h in A B; do
        printf -- '--- moatd %s\n' $h
        tail -n 40 "$dir/$h.log" || true
        slots $h || true
    done >&2
    exit 1
}

db() { ovsdb-client -t 10 transact "unix:$dir/moat.sock" "$1" >"$dir/txn.out" || fail "transact $1"; ! grep -q '"error"' "$dir/txn.out" || fail "$1: $(<"$dir/txn.out")"; }
get() { # get TABLE COLUMNS WHERE
    ovsdb-client -t 10 --format=csv --no-headings query "unix:$dir/moat.sock" \
        "[\"Moat\",{\"op\":\"select\",\"table\":\"$1\",\"columns\":$2,\"where\":$3}]"
}
say() { # say HOST WORD...
    local h=$1
    shift
    "$fake" -c "$dir/$h.cmd" "$@"
}
slot() { say "$1" slot "${2:-vnic-db}"; }
slots() { say "$1" slots; }
ctl() { # ctl HOST COMMAND...
    local h=$1
    shift
    ovs-appctl -T 10 -t "$dir/$h.ctl" "$@"
}
# until WHAT COMMAND...: repeats the command until it succeeds, at most 8 s
until_ok() {
    local what=$1 i
    shift
    for ((i = 0; i < 160; i++)); do
        if "$@" >/dev/null 2>&1; then return 0; fi
        sleep 0.05
    done
    fail "$what"
}
slot_has() { slot "$1" "${3:-vnic-db}" | grep -q -- "$2"; }
no_slot() { [ "$(slot "$1" "${2:-vnic-db}")" = none ]; }
db_has() { get "$1" "$2" "$3" | grep -q -- "$4"; }
event_has() { get Event '["host","kind","message"]' '[]' | grep -q -- "$1"; }
stays() { # stays SECONDS COMMAND...: true all that time
    local end=$(($(date +%s%N) + $1 * 1000000000))
    shift
    while [ "$(date +%s%N)" -lt "$end" ]; do
        "$@" >/dev/null 2>&1 || return 1
        sleep 0.1
    done
}

start_db() {
    ovsdb-server --no-chdir --remote="punix:$dir/moat.sock" --unixctl="$dir/moatdb.ctl" \
        --log-file="$dir/moatdb.log" "$dir/moat.db" -vconsole:off &
    pid[moatdb]=$!
}
start_local() {
    ovsdb-server --no-chdir --remote="punix:$dir/$1.ovs.sock" --unixctl="$dir/$1.ovsdb.ctl" \
        "$dir/$1.ovs.db" -vconsole:off &
    pid[ovsdb$1]=$!
}
start_engine() {
    "$fake" "$dir/$1.moat.ctl" "$dir/$1.cmd" &
    pid[engine$1]=$!
}
start_moatd() { # HOST [DATABASE]
    local h=$1 port=port$1
    "$moatd" -vconsole:off --db="${2:-unix:$dir/moat.sock}" --ovsdb="unix:$dir/$h.ovs.sock" --host="host$h" \
        --listen="pssl:${!port}:127.0.0.1" --advertise="ssl:127.0.0.1:${!port}" \
        --ctl="$dir/$h.moat.ctl" --host-config="$dir/$h.conf" --unixctl="$dir/$h.ctl" \
        --private-key="$dir/host$h.key" --certificate="$dir/host$h.crt" --ca-cert="$dir/ca.crt" \
        --log-file="$dir/$h.log" -vfile:dbg -vpoll_loop:off -vjsonrpc:off -vstream_ssl:info -vovsdb_cs:info -vreconnect:info -vconsole:off \
        2>>"$dir/$h.err" &
    pid[$h]=$!
}
stop() { # stop NAME [SIGNAL]; an agent without a signal ends by itself, cleanly
    if [ $# -eq 1 ] && [[ $1 = [AB] ]]; then
        ctl "$1" exit
        wait "${pid[$1]}" || fail "moatd $1 ended with $?"
    else
        kill "${2:--TERM}" "${pid[$1]}"
        wait "${pid[$1]}" 2>/dev/null || true
    fi
    unset "pid[$1]"
}
local_db() { ovsdb-client -t 10 transact "unix:$dir/$1.ovs.sock" "$2" >/dev/null; }
add_port() { # HOST [IFACE_ID]: the port with path $dir/HOST.ID.vhost
    local id=${2:-vnic-db}
    local_db "$1" '["Open_vSwitch",
      {"op":"insert","table":"Interface","uuid-name":"i","row":{"name":"p-'"$id"'","type":"dpdkvhostuserclient",
        "options":["map",[["vhost-server-path","'"$dir/$1.$id.vhost"'"]]],"external_ids":["map",[["iface-id","'"$id"'"]]]}},
      {"op":"insert","table":"Port","uuid-name":"p","row":{"name":"p-'"$id"'","interfaces":["named-uuid","i"]}},
      {"op":"mutate","table":"Bridge","where":[],"mutations":[["ports","insert",["set",[["named-uuid","p"]]]]]}]'
    say "$1" port "$dir/$1.$id.vhost" >/dev/null
}
del_port() {
    local id=${2:-vnic-db}
    ovs-vsctl -t 10 --db="unix:$dir/$1.ovs.sock" --no-wait del-port "p-$id"
    say "$1" unplug "$dir/$1.$id.vhost"
}
make_cert() { # NAME CA
    openssl req -newkey rsa:2048 -nodes -keyout "$dir/$1.key" -out "$dir/$1.csr" -subj "/CN=$1" 2>/dev/null
    openssl x509 -req -in "$dir/$1.csr" -CA "$dir/$2.crt" -CAkey "$dir/$2.key" -CAcreateserial -days 2 \
        -out "$dir/$1.crt" 2>/dev/null
}

# --- the stage -------------------------------------------------------------------

for ca in ca other; do
    openssl req -x509 -newkey rsa:2048 -nodes -keyout "$dir/$ca.key" -out "$dir/$ca.crt" -days 2 -subj "/CN=$ca" 2>/dev/null
done
make_cert hostA ca
make_cert hostB ca
make_cert stranger ca
cp "$dir/stranger.key" "$dir/s.key" # a name that the database does not know
make_cert hostX other               # a name signed by somebody else
ovsdb-tool create "$dir/moat.db" "$schema"
start_db
for h in A B; do
    ovsdb-tool create "$dir/$h.ovs.db" "$ovs_schema"
    start_local $h
    start_engine $h
    printf 'database-wait-ms=500\nhandover-wait-ms=400\n' >"$dir/$h.conf"
done
until_ok "databases" test -S "$dir/moat.sock" -a -S "$dir/A.ovs.sock" -a -S "$dir/B.ovs.sock"
for h in A B; do
    local_db $h '["Open_vSwitch",{"op":"insert","table":"Bridge","uuid-name":"b","row":{"name":"br0"}},
      {"op":"insert","table":"Open_vSwitch","row":{"bridges":["named-uuid","b"]}}]'
done
step "a database of the first schema is converted in place and keeps what it has"
python3 - "$schema" >"$dir/first.ovsschema" <<'END'
import json, sys
s = json.load(open(sys.argv[1]))
s["version"] = "1.0.0"
del s["tables"]["VM"]["columns"]["quarantine"], s["tables"]["Enforced"]["columns"]["quarantine"]
json.dump(s, sys.stdout)
END
ovsdb-tool create "$dir/first.db" "$dir/first.ovsschema"
ovsdb-server --no-chdir --remote="punix:$dir/first.sock" --unixctl="$dir/first.ctl" "$dir/first.db" -vconsole:off &
pid[first]=$!
until_ok "the old database" test -S "$dir/first.sock"
first() { ovsdb-client -t 10 transact "unix:$dir/first.sock" "$1"; }
first '["Moat",{"op":"insert","table":"VM","row":{"name":"old","vm_uuid":"33333333-3333-3333-3333-333333333333","labels":["map",[["a","b"]]]}}]' >/dev/null
[ "$(ovsdb-client needs-conversion "unix:$dir/first.sock" "$schema")" = yes ] || fail "no conversion is needed"
ovsdb-client convert "unix:$dir/first.sock" "$schema"
[ "$(ovsdb-client needs-conversion "unix:$dir/first.sock" "$schema")" = no ] || fail "it is still the old one"
first '["Moat",{"op":"select","table":"VM","where":[],"columns":["name","labels","quarantine"]}]' |
    grep -q '"labels":\["map",\[\["a","b"\]\]\],"name":"old","quarantine":false' || fail "rows were lost"
stop first

policy='policy \"test\" version 1\ngroup dbs = vm \"db\"\ntier t {\n  allow from any to dbs service tcp 5432\n}\n'
vm() { # NAME UUID VNIC MAC ADDRESS HOSTS
    printf '{"op":"insert","table":"VNIC","uuid-name":"%s","row":{"vnic_id":"%s","network":["named-uuid","net"],"mac":"%s","addresses":["set",["%s"]]}},
      {"op":"insert","table":"VM","row":{"name":"%s","vm_uuid":"%s","vnics":["set",[["named-uuid","%s"]]],"hosts":["set",[%s]]}}' \
        "v$1" "$3" "$4" "$5" "$1" "$2" "v$1" "$6"
}
db '["Moat",
  {"op":"insert","table":"Policy","uuid-name":"pol","row":{"name":"test","text":"'"$policy"'","generation":1}},
  {"op":"insert","table":"Global","row":{"policy":["set",[["named-uuid","pol"]]],"generation":1}},
  {"op":"insert","table":"Network","uuid-name":"net","row":{"name":"lan","subnets":["set",["10.0.0.0/24"]]}},
  '"$(vm db 11111111-1111-1111-1111-111111111111 vnic-db 52:54:00:00:00:01 10.0.0.1 '')"',
  '"$(vm web 22222222-2222-2222-2222-222222222222 vnic-web 52:54:00:00:00:02 10.0.0.2 '"hostA"')"']'

start_moatd A
start_moatd B
until_ok "both hosts in the database" db_has Host '["name"]' '[["name","==","hostB"]]' hostB

path() { echo "$dir/$1.${2:-vnic-db}.vhost"; }
# The VM's QEMU at a host: arrives (connected, not running), runs, stops, leaves.
boot() { say "$1" connect "$(path "$@")" && say "$1" start "$(path "$@")"; }

step "a vNIC is claimed, policy published, holder and report written"
add_port A
until_ok "slot active on A" slot_has A 'state=active.*ruleset=1 generation=1'
until_ok "holder A" db_has VNIC '["holder","epoch"]' '[["vnic_id","==","vnic-db"]]' hostA
until_ok "report" db_has Enforced '["host","state","generation","problem"]' '[["vnic_id","==","vnic-db"]]' 'hostA.*active\|active.*hostA'
boot A

step "an operator puts a VM in quarantine and releases it, whatever else is in the database"
quarantine() { db '["Moat",{"op":"update","table":"VM","where":[["name","==","'"$1"'"]],"row":{"quarantine":'"$2"'}}]'; }
enforced() { db_has Enforced '["vnic_id","quarantine","problem"]' '[["vnic_id","==","vnic-db"]]' "$1"; }
said_twice() { [ "$(get Event '["time_us","message"]' '[["kind","==","quarantine"]]' | grep -o "$1" | wc -l)" = 2 ]; }
say A sessions vnic-db 50
before=$(slot A)
quarantine db true
until_ok "quarantine on A" slot_has A 'state=active.*sessions=0 .*quarantine=1'
until_ok "reported" enforced operator
until_ok "an event" event_has 'quarantine by an operator: base tier only'
until_ok "the cut is an event" event_has 'quarantine has ended sessions: 50'
say A sessions vnic-db 7
db '["Moat",{"op":"insert","table":"VM","uuid-name":"x","row":{"name":"broken","vm_uuid":"no uuid"}}]'
until_ok "inventory refused" event_has 'inventory-refused'
quarantine db false
until_ok "released" slot_has A 'sessions=7 .*quarantine=0'
until_ok "an event" event_has 'quarantine is lifted'
until_ok "reported" eval '! enforced operator'
quarantine db true
until_ok "again, within the minute" slot_has A 'sessions=0 .*quarantine=1'
until_ok "said again" said_twice operator
db '["Moat",{"op":"delete","table":"VM","where":[["name","==","broken"]]}]'
stop A -KILL
quarantine db false # while nobody looks
sleep 0.3
slot_has A 'quarantine=1' || fail "killing moatd lifted a quarantine"
start_moatd A
until_ok "released" slot_has A 'quarantine=0'
until_ok "said" said_twice lifted
[ "$(slot A | sed 's/ sessions.*//')" = "$(sed 's/ sessions.*//' <<<"$before")" ] || fail "$(slot A), was $before"

step "a VM that never had a firewall is enrolled, once; quarantine ends that"
enrolling() { # HOW: the settings of the new VMs
    printf '%s' 'policy \"test\" version 1\ngroup dbs = vm \"db\"\ntier t {\n  allow from any to dbs service tcp 5432\n}\nsettings for vms except dbs {\n anti-spoofing learn-once; enroll '"$1"'\n}\n'
}
db '["Moat",{"op":"update","table":"Policy","where":[],"row":{"text":"'"$(enrolling 10m)"'"}}]'
network=$(get Network '["_uuid"]' '[]' | sed 's/.*"uuid","\([^"]*\)".*/\1/')
new_vm() { # NAME DIGIT
    db '["Moat",{"op":"insert","table":"VNIC","uuid-name":"v","row":{"vnic_id":"vnic-'"$1"'","network":["uuid","'"$network"'"],"mac":"52:54:00:00:01:0'"$2"'"}},
      {"op":"insert","table":"VM","row":{"name":"'"$1"'","vm_uuid":"44444444-4444-4444-4444-44444444444'"$2"'","vnics":["set",[["named-uuid","v"]]]}}]'
}
del_vm() { db '["Moat",{"op":"delete","table":"VM","where":[["name","==","'"$1"'"]]}]'; }
new_vm young 1
new_vm green 2
add_port B vnic-young
add_port A vnic-green
until_ok "young is enrolled" slot_has B 'state=enrolling epoch=1 .*ruleset=1.*pickup=600' vnic-young
until_ok "green is enrolled" slot_has A 'state=enrolling epoch=1 .*ruleset=1.*pickup=600' vnic-green
until_ok "an event" event_has 'its first firewall: for 600 s'
quarantine green true
until_ok "quarantine enforces" slot_has A 'state=active.*quarantine=1' vnic-green
quarantine green false
until_ok "and it is not enrolled again" slot_has A 'state=active.*quarantine=0' vnic-green
before=$(slot B vnic-young)
stop B -KILL
start_moatd B
until_ok "moatd B" ctl B moat/status
sleep 0.7
[ "$(slot B vnic-young)" = "$before" ] || fail "starting moatd changed the slot: $(slot B vnic-young), was $before"
[ "$(ctl B moat/reconcile | sed -n 's/^differences: //p')" = 0 ] || fail "$(ctl B moat/reconcile)"
say B enrolled vnic-young 7
until_ok "an event" event_has 'refuses from now on: 7'
slot_has B 'state=active' vnic-young || fail "$(slot B vnic-young)"
stop engineB
start_engine B # with an empty mapping
until_ok "engine B" say B port "$(path B vnic-young)"
until_ok "its second slot enforces" slot_has B 'state=active epoch=1 .*ruleset=1' vnic-young

step "an enrolment ends when the policy says so, and with a move, which takes along what is left"
new_vm blue 3
add_port A vnic-blue
until_ok "blue is enrolled" slot_has A 'state=enrolling' vnic-blue
boot A vnic-blue
add_port B vnic-blue
until_ok "B arriving" slot_has B 'state=arriving' vnic-blue
say A replace # its engine; the move goes on
say B connect "$(path B vnic-blue)"
until_ok "A feeds B, and enrolls" slot_has A 'state=enrolling.*precopy=1' vnic-blue
say A log "$(path A vnic-blue)" on
say A stop "$(path A vnic-blue)"
until_ok "B has everything" slot_has B 'ready=1' vnic-blue
say B start "$(path B vnic-blue)"
until_ok "B enforces, and picks up for the rest" slot_has B 'state=active.*pickup=\(600\|5[0-9][0-9]\)' vnic-blue
new_vm red 4
add_port A vnic-red
until_ok "red is enrolled" slot_has A 'state=enrolling' vnic-red
db '["Moat",{"op":"update","table":"Policy","where":[],"row":{"text":"'"$(enrolling 0s)"'"}}]'
until_ok "red enforces" slot_has A 'state=active' vnic-red

step "another engine takes over: nothing is sent again, released or forgotten, and it is said once"
say B sessions vnic-young 50
before=$(slot B vnic-young) lines=$(wc -l <"$dir/B.log")
say B replace
until_ok "a row" db_has Event '["message"]' '[["kind","==","engine-replaced"],["severity","==","notice"],["host","==","hostB"]]' \
    'engine fake1 took over from fake, packets had to wait for 34 us'
ctl B moat/status | grep -q 'fast-path: connected' || fail "$(ctl B moat/status)"
ctl B moat/resync
[ "$(ctl B moat/reconcile | sed -n 's/^differences: //p')" = 0 ] || fail "$(ctl B moat/reconcile)"
[ "$(slot B vnic-young)" = "$before" ] || fail "the slot changed: $(slot B vnic-young), was $before"
quarantine_young() { db '["Moat",{"op":"update","table":"VM","where":[["name","==","young"]],"row":{"quarantine":'"$1"'}}]'; }
say B replace
say B replace
quarantine_young true
until_ok "the third is told what is new" slot_has B 'quarantine=1' vnic-young
until_ok "and tells" event_has 'quarantine has ended sessions: 50'
say B replace-at 4 # instead of an answer to the claim
quarantine_young false
until_ok "the fourth is told what the third did not take" slot_has B 'quarantine=0' vnic-young
say B sessions vnic-young 40
say B replace-at 7 # to the ruleset
quarantine_young true
until_ok "the fifth judges again" event_has 'quarantine has ended sessions: 40'
say B replace-at 2 # to the list of slots
quarantine_young false
until_ok "and back" slot_has B 'quarantine=0' vnic-young
until_ok "each is said" event_has 'engine fake6 took over from fake5'
! get Event '["message"]' '[["kind","==","engine-replaced"]]' | tr '{' '\n' | grep '"message"' | grep -v 'took over' || fail "it is said twice"
! tail -n +$((lines + 1)) "$dir/B.log" | grep -E '\|(WARN|ERR|EMER)\|' || fail "it is no reason to worry"

step "what the fast path learns and runs out of are events"
say B learnt vnic-young
until_ok "an event" event_has 'learns an address that the VM uses as its own: 10.0.0.77'
say B quota vnic-young
until_ok "an event" event_has 'quota of half-open TCP sessions is used up'
for n in young green blue red; do del_vm $n; done
for n in young blue; do del_port B vnic-$n; until_ok "B forgot $n" no_slot B vnic-$n; done
for n in green blue red; do del_port A vnic-$n; until_ok "A forgot $n" no_slot A vnic-$n; done

step "a newer policy is published, a broken one is refused and the old one stays"
db '["Moat",{"op":"update","table":"Policy","where":[],"row":{"generation":2}}]'
until_ok "generation 2" slot_has A 'generation=2'
db '["Moat",{"op":"update","table":"Policy","where":[],"row":{"generation":3,"text":"this is no policy"}}]'
until_ok "refusal is an event" event_has 'policy-refused'
slot_has A 'generation=2' || fail "the old policy did not stay"
db '["Moat",{"op":"update","table":"Policy","where":[],"row":{"generation":4,"text":"'"$policy"'"}}]'
until_ok "generation 4" slot_has A 'generation=4'

step "what another hand took away is put back"
say A corrupt vnic-db
until_ok "ruleset is back" slot_has A 'ruleset=1 generation=4'

epoch() { slot "$1" | sed 's/.*epoch=\([0-9]*\).*/\1/'; }
# A move as QEMU does it. Sessions must all be there at the end.
migrate() { # FROM TO SESSIONS [twice]: twice: the first QEMU at TO goes away
    local from=$1 to=$2 n=$3
    add_port "$to"
    until_ok "$to arriving" slot_has "$to" 'state=arriving'
    say "$to" connect "$(path "$to")"
    until_ok "$from feeds $to" slot_has "$from" 'precopy=1'
    if [ "${4:-}" = twice ]; then
        sleep 0.3
        say "$to" disconnect "$(path "$to")"
        until_ok "$from feeds nobody" slot_has "$from" 'precopy=0'
        say "$to" connect "$(path "$to")"
        until_ok "$from feeds $to again" slot_has "$from" 'precopy=1'
    fi
    say "$from" log "$(path "$from")" on
    say "$from" sessions vnic-db "$n"
    say "$from" stop "$(path "$from")"
    until_ok "$to has everything" slot_has "$to" 'ready=1'
    until_ok "$from departed" slot_has "$from" 'state=departed'
    [ "$(say "$to" count vnic-db)" = "$n" ] || fail "sessions at $to: $(say "$to" count vnic-db), not $n"
    say "$to" start "$(path "$to")"
    until_ok "$to open" slot_has "$to" 'state=active.*ruleset=1'
    say "$from" disconnect "$(path "$from")"
    until_ok "holder $to" db_has VNIC '["holder"]' '[["vnic_id","==","vnic-db"]]' "host$to"
    del_port "$from"
    until_ok "$from forgot" no_slot "$from"
}

step "a VM moves with its sessions"
say A sessions vnic-db 1000
migrate A B 1000
until_ok "evidence" db_has Migration '["state","source","destination"]' '[["vnic_id","==","vnic-db"]]' 'completed.*hostA\|hostB.*completed\|completed'
get Migration '["evidence"]' '[]' | grep -q '"decided-by","none"' || fail "decided-by: $(get Migration '["evidence"]' '[]')"
get Migration '["evidence"]' '[]' | grep -q 'wait-ms' || fail "no wait-ms: $(get Migration '["evidence"]' '[]')"

step "and 20 times back and forth"
from=B to=A
for ((i = 0; i < 20; i++)); do
    migrate $from $to 1000
    t=$from from=$to to=$t
done
[ "$from" = B ] || fail "it should be on B now"

step "a feed begins again on the same connection: both ends still count the same"
migrate B A 1000 twice
migrate A B 1000 twice
! event_has 'sessions-lost' || fail "sessions were lost: $(get Event '["kind","message"]' '[["kind","==","sessions-lost"]]')"
! event_has '"decided"' || fail "a setting had to decide"

step "the VM resumes at the source: roll-back"
add_port A
until_ok "A arriving" slot_has A 'state=arriving'
say A connect "$(path A)"
until_ok "B feeds A" slot_has B 'precopy=1'
say B log "$(path B)" on
say B stop "$(path B)"
until_ok "A has everything" slot_has A 'ready=1'
before=$(epoch B)
say B start "$(path B)"
until_ok "B active again" slot_has B 'state=active'
[ "$(epoch B)" -gt "$before" ] || fail "the epoch did not rise"
slot_has A 'state=a' || fail "A: $(slot A)"
slot_has A 'state=active' && fail "A is open too"
say B log "$(path B)" off
say A disconnect "$(path A)"
del_port A
until_ok "A forgot" no_slot A
[ "$(say B count vnic-db)" = 1000 ] || fail "sessions after roll-back: $(say B count vnic-db)"

step "agents die in the middle: source frozen, destination arriving"
add_port A
until_ok "A arriving" slot_has A 'state=arriving'
say A connect "$(path A)"
until_ok "B feeds A" slot_has B 'precopy=1'
kill -STOP "${pid[A]}" # it can no longer confirm
say B log "$(path B)" on
say B stop "$(path B)"
until_ok "B frozen" slot_has B 'state=frozen'
stop A -KILL
stop B -KILL
start_moatd B
start_moatd A
until_ok "A has everything" slot_has A 'ready=1'
until_ok "B departed" slot_has B 'state=departed'
stop A -KILL
say A start "$(path A)" # the engine opens without its agent
until_ok "A open" slot_has A 'state=active'
start_moatd A
until_ok "holder A" db_has VNIC '["holder"]' '[["vnic_id","==","vnic-db"]]' hostA
[ "$(say A count vnic-db)" = 1000 ] || fail "sessions: $(say A count vnic-db)"
say B disconnect "$(path B)"
del_port B
until_ok "B forgot" no_slot B

step "the pre-copy was cut short: what was not sent comes when the VM resumes"
add_port B
until_ok "B arriving" slot_has B 'state=arriving'
say B connect "$(path B)"
until_ok "A feeds B" slot_has A 'precopy=1'
stop B -KILL
until_ok "A no longer feeds" slot_has A 'precopy=0'
say A stop "$(path A)"
slot_has A 'state=active' || fail "A froze for nobody"
start_moatd B
until_ok "A feeds B again" slot_has A 'precopy=1'
slot_has B 'ready=0' || fail "B has an epoch that A has not given away"
say B start "$(path B)"
until_ok "B open" slot_has B 'state=active'
until_ok "A departed" slot_has A 'state=departed'
[ "$(say B count vnic-db)" = 1000 ] || fail "sessions: $(say B count vnic-db)"
until_ok "holder B" db_has VNIC '["holder"]' '[["vnic_id","==","vnic-db"]]' hostB
say A disconnect "$(path A)"
del_port A
until_ok "A forgot" no_slot A
migrate B A 1000

step "a killed agent changes nothing, a restarted one neither"
before=$(slot A)
stop A -KILL
sleep 0.3
[ "$(slot A)" = "$before" ] || fail "killing moatd changed the slot"
start_moatd A
until_ok "moatd A" ctl A moat/status
sleep 0.7
[ "$(slot A)" = "$before" ] || fail "starting moatd changed the slot: $(slot A), was $before"

step "the database is away: a permitted move goes on, and is written down later"
stop moatdb
sleep 0.2
add_port B
until_ok "B arriving" slot_has B 'state=arriving'
say B connect "$(path B)"
until_ok "A feeds B" slot_has A 'precopy=1'
say A log "$(path A)" on
say A stop "$(path A)"
until_ok "B has everything" slot_has B 'ready=1'
say B start "$(path B)"
until_ok "B open" slot_has B 'state=active'
[ "$(say B count vnic-db)" = 1000 ] || fail "sessions: $(say B count vnic-db)"
rm -f "$dir/moat.sock"
start_db
until_ok "holder B" db_has VNIC '["holder"]' '[["vnic_id","==","vnic-db"]]' hostB
say A disconnect "$(path A)"
del_port A
until_ok "A forgot" no_slot A

step "a host that the database does not permit gets nothing"
add_port A vnic-web
until_ok "web active on A" slot_has A 'state=active' vnic-web
boot A vnic-web
add_port B vnic-web
say B connect "$(path B vnic-web)"
until_ok "alarm" event_has 'does not permit'
say B start "$(path B vnic-web)"
stays 4 eval '! slot_has B state=active vnic-web' || fail "B opened what it may not have"
slot_has A 'state=active' vnic-web || fail "A lost it"

step "strangers are refused"
# a certificate of another authority; one whose name is no host; none at all; garbage
tls() { timeout 3 openssl s_client -connect 127.0.0.1:$portA -quiet "$@" </dev/null >/dev/null 2>&1 || true; }
tls -cert "$dir/hostX.crt" -key "$dir/hostX.key"
tls -cert "$dir/stranger.crt" -key "$dir/stranger.key"
tls
(head -c 5000 /dev/urandom >/dev/tcp/127.0.0.1/$portA) 2>/dev/null || true
until_ok "refusals are counted" eval '[ "$(ctl A moat/status | sed -n "s/^connections-refused: //p")" -ge 3 ]'
until_ok "refusals are events" event_has connection-refused
slot_has A 'state=active' vnic-web || fail "strangers changed something"
# A host of the cluster that lies about its name, or asks for what it may not have.
frame_request() { # VNIC HOST: a REQUEST frame
    local v=$1 h=$2
    printf 'MOAT\0\2\0\1'
    printf "\\x0\\x0\\x0\\x$(printf %x $((2 + 2 + ${#v} + 2 + ${#h} + 8)))"
    printf '\0\0'
    printf "\\x0\\x$(printf %x ${#v})%s\\x0\\x$(printf %x ${#h})%s" "$v" "$h"
    printf '\0\0\0\0\0\0\0\0'
}
as_b() { (cat; sleep 1) | timeout 4 openssl s_client -connect 127.0.0.1:$portA -quiet -cert "$dir/hostB.crt" -key "$dir/hostB.key" 2>/dev/null || true; }
frame_request vnic-web hostA | as_b | grep -aq 'certificate belongs to another host' || fail "a false name was not refused"
frame_request vnic-web hostB | as_b | grep -aq 'does not permit' || fail "a forbidden move was not refused"
frame_request vnic-none hostB | as_b | grep -aq 'does not hold' || fail "an unknown vNIC was not refused"
until_ok "refused requests are events" event_has request-refused

step "the source is dead: on-missing-state and the database decide"
del_port B vnic-web
until_ok "B forgot web" no_slot B vnic-web
stop B -KILL # db is on B
say B disconnect "$(path B)"
add_port A
until_ok "A arriving" slot_has A 'state=arriving'
say A connect "$(path A)"
say A start "$(path A)"
until_ok "A open" slot_has A 'state=active'
until_ok "holder A" db_has VNIC '["holder"]' '[["vnic_id","==","vnic-db"]]' hostA
until_ok "evidence" eval 'get Migration "[\"evidence\"]" "[]" | grep -q "on-missing-state=block (database)"'
start_moatd B
until_ok "B gave it up" slot_has B 'state=departed'

step "the VM is started a second time: the newcomer stays shut"
say B connect "$(path B)"
say B start "$(path B)"
stays 5 eval '! slot_has B state=active && slot_has A state=active' || fail "$(slots A) $(slots B)"
until_ok "alarm" event_has 'run on two hosts'
say B disconnect "$(path B)"

step "a VM's tap in the kernel is reported, set down where the host says so; others are not touched"
ip tuntap add dev tap-vm mode tap
ip tuntap add dev tap-own mode tap
for t in tap-vm tap-own; do
    ip link set $t up
    ovs-vsctl -t 10 --db="unix:$dir/A.ovs.sock" --no-wait add-port br0 $t
done
ovs-vsctl -t 10 --db="unix:$dir/A.ovs.sock" --no-wait set Interface tap-vm external_ids:iface-id=vnic-web
until_ok "reported" event_has 'tap tap-vm is a VM'
until_ok "a problem of the host" db_has Host '["problems"]' '[["name","==","hostA"]]' 'tap:tap-vm'
is_up() { ip -o link show "$1" | grep -q '[<,]UP[,>]'; }
is_up tap-vm || fail "set down although nobody asked for it"
printf 'unprotected-taps=block\n' >>"$dir/A.conf"
ctl A host-config/reload
ip link set tap-vm down
ip link set tap-vm up
until_ok "set down" eval '! is_up tap-vm'
ip link set tap-vm up
until_ok "raised again: an alarm" event_has tap-raised
until_ok "set down again" eval '! is_up tap-vm'
is_up tap-own || fail "another tap was touched"
printf 'no-such-setting=1\n' >>"$dir/A.conf"
! ctl A host-config/reload 2>/dev/null || fail "a bad host file was accepted"

step "a port that stays without a vNIC is reported, those that come and go were not"
! event_has unclaimed-port || fail "$(get Event '["host","message"]' '[["kind","==","unclaimed-port"]]')"
say A port "$dir/nobody.vhost"
say A connect "$dir/nobody.vhost"
say A start "$dir/nobody.vhost"
stays 2 eval '! event_has unclaimed-port' || fail "reported too early"
until_ok "reported" event_has 'nobody.vhost has a VM but belongs to no vNIC'

step "nobody knows it: the host file decides, later the database"
del_port B
until_ok "B forgot" no_slot B
stop A
stop B
for mode in block allow; do
    printf 'database-wait-ms=500\non-missing-policy=%s\n' $mode >"$dir/B.conf"
    start_moatd B "unix:$dir/nowhere.sock"
    add_port B vnic-web
    until_ok "claimed" slot_has B "state=active.*ruleset=0.*policy=$mode" vnic-web
    ctl B moat/status | grep -q "on-missing-policy=$mode (host file)" || fail "$(ctl B moat/status)"
    stop B
    del_port B vnic-web
    start_moatd B "unix:$dir/nowhere.sock"
    until_ok "released" no_slot B vnic-web
    stop B
done

step "an empty database is called so; only a host with VMs misses its fast path"
stop engineB
ovsdb-tool create "$dir/empty.db" "$schema"
ovsdb-server --no-chdir --remote="punix:$dir/empty.sock" --unixctl="$dir/empty.ctl" "$dir/empty.db" -vconsole:off &
pid[empty]=$!
start_moatd B "unix:$dir/empty.sock"
until_ok "empty" eval 'ctl B moat/status | grep -q "the database is empty: .moatctl policy apply"'
! ctl B moat/status | grep 'does not answer' || fail "a host without VMs misses its fast path"
add_port B vnic-web 2>/dev/null || true
until_ok "missed" eval 'ctl B moat/status | grep -q "does not answer"'
start_engine B
until_ok "not missed" eval '! ctl B moat/status | grep -q "does not answer"'
stop B

step "nothing was written to stderr, no agent crashed"
for h in A B; do
    ! [ -s "$dir/$h.err" ] || fail "$(<"$dir/$h.err")"
done
echo "all passed"
