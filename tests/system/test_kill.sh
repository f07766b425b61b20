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
. "$(dirname "$(readlink -f "$0")")/ends.sh"

kills=${KILLS:-$([ "${MOAT_SOAK:-0}" = 1 ] && echo 500 || echo 50)}
RANDOM=${SEED:-1}
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
ends_start
verdicts_hold "at first"
ends_probe

third=$((kills / 3))
part "the agent is dead"
moat_agent_stop A KILL
kills 1 $third "without an agent"
verdicts_hold "without an agent"

part "the agent is there, and publishes"
moat_agent_start A
ends_publish
kills $((third + 1)) $((2 * third)) "while policies are published"
ends_published "$third"
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
ends_go_on "after $kills kills"
[ ${#failures[@]} = 0 ] || evidence

part "control experiment: a lost session would be noticed"
ctl A session flush --vnic=web-nic
check "not the same sessions" not same_sessions

part "positive control: the forbidden probes, permitted"
{
    ends_rules ", icmp echo-request"
} | sed 's/udp 7001/udp 7000-7001, icmp echo-request/' >"$TEST_TMP/open.moat"
moat_admin policy apply "$TEST_TMP/open.moat" --wait 20 >/dev/null
udp_at() { guest_field "$1" count udp-count 7000; }
icmp_at() { guest_field "$1" count icmp-count; }
for end in web db; do
    check_soon 10 "UDP probes arrive at $end" at_least 10 udp_at $end
    check_soon 10 "ICMP probes arrive at $end" at_least 10 icmp_at $end
done
verdict
