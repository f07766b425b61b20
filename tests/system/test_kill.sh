#!/bin/bash
# ovs-vswitchd is killed (kill -9) fifty times at random instants under traffic: while packets of
# established connections, new sessions and forbidden probes meet it; while the agent is dead;
# while policies are published one after the other; and while it starts. After each restart the
# table must hold the established sessions that it held before any of it, no more and no fewer; no
# forbidden probe has arrived; permitted ones arrive again. In the end every connection
# goes on, with no byte lost or twice.
#
#   KILLS=N   how many; 50, and 500 with MOAT_SOAK=1
#   SEED=N    of the instants; 1
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$(readlink -f "$0")")/lib.sh"

kills=${KILLS:-$([ "${MOAT_SOAK:-0}" = 1 ] && echo 500 || echo 50)}
RANDOM=${SEED:-1}
rate=100 # forbidden and permitted probes a second, of each stream
syns=300 # new connections a second
idle=8

ids=(busy speaks)
for ((i = 0; i < idle; i++)); do ids+=("idle$i"); done
conn() { guest_field web "$2" tcp-status "$1"; } # ID FIELD
received_more() { [ "$(conn "$1" received)" -gt "$2" ]; }

# sessions: the established ones of the connections above, at both vNICs, without what traffic
# or another policy changes.
sessions() {
    ctl A --format json session list --proto tcp --state established |
        jq -S '[.[] | select(.local_port != 5003 and .remote_port != 5003) |
            {vnic, local, local_port, remote, remote_port, opened_by, local_state, remote_state}] | sort'
}
same_sessions() { diff <(printf '%s\n' "$shadow") <(sessions); }

arrived() { # UDP and ICMP probes that policy forbids
    local end n=0
    for end in web db; do
        n=$((n + $(guest_field $end count udp-count 7000) + $(guest_field $end count icmp-count)))
    done
    echo $n
}
more_at() { [ "$(guest_field "$1" count udp-count 7001)" -gt "$2" ]; }

verdicts() {
    echo "web -> db, TCP 5004: $(guest_cmd web tcp-try 10.0.0.3 5004 3000 2>&1)"
    echo "web -> db, TCP 5999: $(guest_cmd web tcp-try 10.0.0.3 5999 1000 2>&1)"
    echo "db -> web, TCP 5004: $(guest_cmd db tcp-try 10.0.0.1 5004 1000 2>&1)"
}
wanted="web -> db, TCP 5004: ok
web -> db, TCP 5999: timeout
db -> web, TCP 5004: timeout"
verdicts_hold() {
    check_same "$1: verdicts" "$(verdicts)" "$wanted"
    check_equal "$1: forbidden probes that arrived" "$(arrived)" 0
}

# went_on EVENT: all connections are as if nothing had happened.
went_on() {
    local id
    for id in busy speaks; do
        check_soon 30 "$1: $id goes on" received_more $id $(($(conn $id received) + 2))
    done
    [ ${#failures[@]} = 0 ] || evidence
    for id in "${ids[@]}"; do
        [[ $id != idle* ]] || check_equal "$1: $id answers" "$(guest_field web state tcp-send "$id" 20000 2>&1)" open
        check_equal "$1: $id, state and records out of order" "$(conn "$id" state) $(conn "$id" out_of_order)" "open 0"
    done
}

pause() { sleep "$(printf '0.%03d' $((RANDOM % $1)))"; }

# kill_running, kill_starting: one kill each, and a switch that starts.
kill_running() {
    pause 300
    host_switch_stop A KILL
    host_switch_spawn A
}
kill_starting() {
    pause 500
    testbed_alive A-switch || return 1
    host_switch_stop A KILL
    host_switch_spawn A
}

# evidence: of a connection that has ended, from both ends and both slots.
evidence() {
    local end
    for end in web db; do
        guest_cmd $end tcp-status
        ctl A slot show $end-nic
    done
    ctl A session list --proto tcp --port=5001
}

# restarted NUMBER: the switch is as it was. Forbidden probes are looked for every fifth
# time: what has arrived stays counted.
restarted() {
    local end before
    WAIT_LOG=$(host_dir A)/ovs-vswitchd.log wait_for 30 "the switch" host_switch_up A
    for end in web db; do wait_for 15 "$end to be connected" host_port_up A $end; done
    if ! same_sessions >"$TEST_TMP/lost"; then
        check "kill $1: the same sessions" cat "$TEST_TMP/lost" /nonexistent
    fi
    for end in web db; do
        before=$(guest_field $end count udp-count 7001)
        wait_for 20 "permitted probes at $end" more_at $end $((before + 2))
    done
    if [ "$(conn busy state) $(conn speaks state)" != "open open" ]; then
        check "kill $1: the connections are open" false
        evidence
        verdict
    fi
    [ $(($1 % 5)) != 0 ] || [ "$(arrived)" = 0 ] || check "kill $1: no forbidden probe has arrived" false
}

# kills FIRST LAST TEXT: that many; every fourth one meets a switch that starts.
kills() {
    local n failed=${#failures[@]}
    for ((n = $1; n <= $2; n++)); do
        kill_running
        if [ $((n % 4)) = 3 ] && [ "$n" -lt "$2" ]; then
            n=$((n + 1))
            kill_starting
        fi
        restarted "$n"
    done
    check_equal "kills $1 to $2, $3: those after which something was lost or had leaked" $((${#failures[@]} - failed)) 0
    check_equal "kills $1 to $2, $3: forbidden probes that arrived" "$(arrived)" 0
}

system_test
part "one host, web and db, established connections, new ones, and probes"
moat_start A
moat_vm web 10.0.0.1 label role=web
moat_vm db 10.0.0.3 label role=db
moat_guests A web db
rules() { # MORE
    cat <<END
policy "kill" version 1
group web = vms labelled role=web
group db = vms labelled role=db
tier t {
    allow from web to db service tcp 5001-5004$1
    allow from any to any service udp 7001
}
default drop
settings for any { tcp strict; on-missing-state block; on-missing-policy block }
END
}
rules "" >"$TEST_TMP/one.moat"
rules ", tcp 6000" >"$TEST_TMP/other.moat"
policy kill <"$TEST_TMP/one.moat"
neighbours web db
neighbours db web
for end in web db; do
    guest_cmd $end udp-sink 7000
    guest_cmd $end udp-sink 7001
    guest_cmd $end icmp-sink
    guest_cmd $end tcp-listen 5004 idle
done
guest_cmd db tcp-listen 5001 busy
guest_cmd db tcp-listen 5002 server-speaks:20
guest_cmd db tcp-listen 5999 idle
guest_cmd web tcp-connect busy 10.0.0.3 5001 busy:20 >/dev/null
guest_cmd web tcp-connect speaks 10.0.0.3 5002 server-speaks >/dev/null
for ((i = 0; i < idle; i++)); do guest_cmd web tcp-connect "idle$i" 10.0.0.3 5004 idle >/dev/null; done
verdicts_hold "at first"
for pair in "web 10.0.0.3" "db 10.0.0.1"; do
    guest_cmd "${pair% *}" udp-probe-start no "${pair#* }" 7000 $rate
    guest_cmd "${pair% *}" udp-probe-start yes "${pair#* }" 7001 $rate
    guest_cmd "${pair% *}" icmp-probe-start icmp "${pair#* }" $rate
done
# Each is a session at both vNICs, which a RST ends; ports come again.
guest_cmd web shell "traffic syn-flood 10.0.0.3 5003 1000000 $syns >/dev/null 2>&1 &"
settled() { [ "$(sessions | jq length)" = $((2 * ${#ids[@]})) ]; }
check_soon 10 "sessions of the ${#ids[@]} connections, at two vNICs" settled
shadow=$(sessions)

third=$((kills / 3))
part "the agent is dead"
moat_agent_stop A KILL
kills 1 $third "without an agent"
verdicts_hold "without an agent"

part "the agent is there, and publishes"
moat_agent_start A
publish() {
    trap - ERR EXIT
    set +e
    while :; do
        moat_admin policy apply "$TEST_TMP/other.moat"
        moat_admin policy apply "$TEST_TMP/one.moat"
    done >"$TEST_TMP/published" 2>&1
}
generation=$(moat_generation)
publish &
publisher=$!
kills $((third + 1)) $((2 * third)) "while policies are published"
kill $publisher
wait $publisher 2>/dev/null || true
check_least "policies published meanwhile" $(($(moat_generation) - generation)) "$third"
moat_admin policy apply "$TEST_TMP/one.moat" --wait 30 >/dev/null
check_soon 30 "all enforce what is intended" moat_settled_now 2
verdicts_hold "after the publications"

part "the agent is there, and has nothing to say"
kills $((2 * third + 1)) "$kills" "with an agent"

part "what is left"
check_equal "times that the kernel killed anything else, or the switch died by itself" \
    "$(log_lines "$(host_dir A)/ovs-vswitchd.log" 'SIG(SEGV|BUS|ABRT)|EMER')" 0
check_equal "complaints about the mapping" "$(log_lines "$(host_dir A)/ovs-vswitchd.log" 'moat: .*(damaged|cannot start)')" 0
new_ones() { ctl A --format json session list --vnic=web-nic --port=5003 | jq length; }
check_least "sessions of new connections that are in the table, too" "$(new_ones)" 50
check_soon 30 "all enforce what is intended" moat_settled_now 2
verdicts_hold "after $kills kills"
check "the same sessions" same_sessions
went_on "after $kills kills"

part "control experiment: a lost session would be noticed"
ctl A session flush --vnic=web-nic
check "not the same sessions" not same_sessions

part "positive control: the forbidden probes, permitted"
{
    rules ", icmp echo-request"
} | sed 's/udp 7001/udp 7000-7001, icmp echo-request/' >"$TEST_TMP/open.moat"
moat_admin policy apply "$TEST_TMP/open.moat" --wait 20 >/dev/null
udp_at() { guest_field "$1" count udp-count 7000; }
icmp_at() { guest_field "$1" count icmp-count; }
for end in web db; do
    check_soon 10 "UDP probes arrive at $end" at_least 10 udp_at $end
    check_soon 10 "ICMP probes arrive at $end" at_least 10 icmp_at $end
done
verdict
