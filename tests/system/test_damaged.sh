#!/bin/bash
# What if the memory that outlives the switch cannot be used? A mapping that is damaged, cut off, of
# another layout or size, or open to others is refused with a reason in the log, and the host's
# setting (MOAT_ON_DAMAGED) says what all VMs get. So it is if there is no room for one. Damage of one
# slot is that vNIC's alone, until the agent has sent again what belongs there. When the session table is
# full (the quotas of a vNIC keep it from that, unless they are raised), those that are in it live on.
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$(readlink -f "$0")")/lib.sh"

verdicts() {
    echo "$(guest_cmd web tcp-try 10.0.0.3 5001 "${1:-1000}" 2>&1) $(guest_cmd web tcp-try 10.0.0.3 5999 "${1:-1000}" 2>&1)"
}
judged="ok timeout" # TCP 5001 is permitted, TCP 5999 is not
blocked="timeout timeout"
open="ok ok"

log() { printf '%s/ovs-vswitchd.log\n' "$(host_dir A)"; }
# start [NAME=VALUE...]: the switch, with that in its environment; `said` looks at what it logs from now on.
# shellcheck disable=SC2034
start() {
    HOST_ENV=("$@")
    log_start=$(wc -l <"$(log)")
    host_switch_start A
    for end in web db; do wait_for 15 "$end to be connected" host_port_up A $end; done
    HOST_ENV=()
}
said() { tail -n +$((log_start + 1)) "$(log)" | grep -E -- "$1"; }
damage() { "$MOAT_BUILD/tests/system/damage" "$mapping" "$@"; }

# refused NAME PATTERN [NAME=VALUE...]: a switch is started; it refuses the mapping, loudly.
refused() {
    local name=$1 pattern=$2
    shift 2
    start "$@"
    check "$name: it is said, with the file, what is wrong and what to do" \
        said "(CRIT|EMER)\|.*cannot start: $file: .*$pattern.*(remove|fewer)"
    check "$name: and what VMs get" said "(CRIT|EMER)\|.*all VMs of this switch are cut off: nothing passes"
    check_equal "$name: web -> db" "$(verdicts 500)" "$blocked"
    check "$name: the switch lives" testbed_alive A-switch
    host_switch_stop A KILL
}
# allowed NAME [NAME=VALUE...]: the same on a host that says `allow`.
allowed() {
    local name=$1
    shift
    start MOAT_ON_DAMAGED=allow "$@"
    check "$name, allow: it is said" said "(CRIT|EMER)\|.*UNPROTECTED: everything passes"
    check_equal "$name, allow: web -> db" "$(verdicts 3000)" "$open"
    host_switch_stop A KILL
}

system_test
part "one host, web and db"
moat_start A
moat_vm web 10.0.0.1 label role=web
moat_vm db 10.0.0.3 label role=db
moat_vm noisy 10.0.0.9
moat_guests A web db noisy
mapping=$(host_mapping A)
file=$mapping
policy damaged <<'END'
policy "damaged" version 1
group web = vms labelled role=web
group db = vms labelled role=db
group sink = addresses 10.0.0.77
tier t {
    allow from web to db service tcp 5001
    allow from vm "noisy" to sink service tcp 5003
}
default drop
settings for any { tcp strict; on-missing-state block; on-missing-policy block }
settings for vm "noisy" { max-sessions 4000; max-half-open 4000; timer tcp-first 5s; timer tcp-opening 5s }
END
neighbours web db
neighbours db web
guest_cmd db tcp-listen 5001 busy
guest_cmd db tcp-listen 5999 idle
guest_cmd web tcp-connect busy 10.0.0.3 5001 busy:50 >/dev/null
check_equal "web -> db" "$(verdicts)" "$judged"
busy_more() { [ "$(guest_field web received tcp-status busy)" -gt "$1" ]; }
goes_on() { check_soon 20 "$1: the open connection goes on" busy_more $(($(guest_field web received tcp-status busy) + 2)); }

part "damage of one slot, and the agent is dead"
for what in slot conf ruleset; do
    moat_agent_stop A KILL
    host_switch_stop A KILL
    damage $what db-nic >/dev/null
    start
    check "$what of db: it is said" said "(CRIT|EMER)\|.*mapping $file is damaged at 1 slots: the (record|ruleset) of slot [0-9]+: .*ports without a slot: block"
    check_equal "$what of db: web -> db" "$(verdicts 500)" "$blocked"
    check "$what of db: web's slot is as it was" moat_slot_is A web-nic state active
    moat_agent_start A
    wait_for 30 "the agent to have sent all again" moat_settled_now 3
    check_equal "$what of db, and the agent is back: web -> db" "$(verdicts)" "$judged"
done
host_switch_stop A KILL
damage conf db-nic >/dev/null
moat_agent_stop A KILL
start MOAT_ON_DAMAGED=allow
check "the host says allow: it is said" said "(CRIT|EMER)\|.*is damaged at 1 slots: .*ports without a slot: allow"
check "db's port is open, web's slot still judges" is "$judged" verdicts
moat_agent_start A
wait_for 30 "the agent to have sent all again" moat_settled_now 3

part "one bit of each session"
guest_cmd web tcp-connect busy2 10.0.0.3 5001 busy:50 >/dev/null
host_switch_stop A KILL
check "sessions are damaged" says '[1-9][0-9]* sessions' damage sessions
start
check_equal "web -> db" "$(verdicts)" "$judged"
check "the switch lives" testbed_alive A-switch
ctl A session flush --vnic=web-nic
ctl A session flush --vnic=db-nic
guest_cmd web tcp-connect busy3 10.0.0.3 5001 busy:50 >/dev/null

part "the whole mapping is refused"
host_switch_stop A KILL
moat_agent_stop A KILL
damage header >/dev/null
refused "a bit of the header" "damaged"
allowed "a bit of the header"
damage header >/dev/null # and back
start
check_equal "without that bit it is as good as before: web -> db" "$(verdicts)" "$judged"
check "slots and sessions are found again" said 'engine .* 3 slots and [1-9][0-9]* sessions recovered'
host_switch_stop A KILL
refused "more sessions than before" "bytes, this engine needs" MOAT_SESSIONS=65536
chmod 0644 "$mapping"
refused "others may read it" "owned by user 0 with mode 0644"
chmod 0600 "$mapping"
chown 65534 "$mapping"
refused "another user's" "owned by user 65534"
chown 0 "$mapping"
damage layout
refused "another layout" "layout 10[0-9]"
damage noise
refused "noise" "not a Moat mapping"
truncate -s 2M "$mapping"
refused "cut off" "has 2097152 bytes, this engine needs"
rm "$mapping"
moat_agent_start A
start
wait_for 30 "the agent to have sent all again" moat_settled_now 3
check_equal "removed, as the log says: web -> db" "$(verdicts)" "$judged"

part "no room for a mapping"
host_switch_stop A KILL
mkdir -p "$TESTBED_DIR/small"
mount -t hugetlbfs -o size=4M,mode=0700 none "$TESTBED_DIR/small"
trap 'umount "$TESTBED_DIR/small"; test_on_exit' EXIT
file=$TESTBED_DIR/small/moat.tables
refused "a full mount" "cannot allocate [0-9]+ MiB: No space" "MOAT_MAPPING=$file"
check "nothing is left behind there" not test -e "$file"
allowed "a full mount" "MOAT_MAPPING=$file"
umount "$TESTBED_DIR/small"
trap test_on_exit EXIT
# shellcheck disable=SC2154
free=$(<"$free_pages")
file=/dev/hugepages/moat-$TESTBED_ID-large.tables
refused "more than there are pages, but enough for the switch" "cannot allocate [0-9]+ MiB: No space" \
    "MOAT_MAPPING=$file" MOAT_SESSIONS=67108864
check "nothing is left behind there" not test -e "$file"
check_soon 5 "pages are free again" at_least "$free" cat "$free_pages"

part "a full table"
file=/dev/hugepages/moat-$TESTBED_ID-few.tables
testbed_file "$file"
start "MOAT_MAPPING=$file" MOAT_SESSIONS=1024
wait_for 30 "the agent to have sent all again" moat_settled_now 3
guest_cmd web tcp-connect old 10.0.0.3 5001 busy:50 >/dev/null
guest_cmd noisy shell "arp -s 10.0.0.77 02:00:00:00:00:77"
old_more() { [ "$(guest_field web received tcp-status old)" -gt "$1" ]; }
guest_cmd web tcp-mark
printf '        %s\n' "$(traffic noisy syn-flood 10.0.0.77 5003 4000 2000)"
check_least "noisy's packets that were refused: table-full" "$(moat_drops A noisy-nic from-vm table-full)" 2000
check_soon 5 "an event says so" says 'session table is full' moat_admin event list --vm=noisy
check "web, a new connection now" not is ok guest_cmd web tcp-try 10.0.0.3 5001 300
check_least "its packets that were refused, by web's slot or db's: table-full" \
    $(($(moat_drops A web-nic from-vm table-full) + $(moat_drops A db-nic to-vm table-full))) 1
check_soon 10 "web's established connection goes on" old_more $(($(guest_field web received tcp-status old) + 3))
check_equal "and has lost nothing" "$(guest_field web out_of_order tcp-status old)" 0
new_again() { [ "$(guest_cmd web tcp-try 10.0.0.3 5001 500)" = ok ]; }
check_soon 20 "new ones open when noisy's have timed out" new_again
verdict
