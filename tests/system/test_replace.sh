#!/bin/bash
# The engine is replaced fifty times under traffic: by one of the same layout of the mapping, by one of
# another, and back; while the agent is there, while it is dead, and while it publishes. After each
# time all sessions of established connections are there, no more and no fewer; no forbidden probe
# has arrived; and every permitted one has. In the end every connection goes on, with no byte lost or
# twice, and a switch that is killed finds what the last engine left.
#
#   REPLACEMENTS=N   how many; 50, and 500 with MOAT_SOAK=1
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$(readlink -f "$0")")/lib.sh"
rate=200 idle=6
. "$(dirname "$(readlink -f "$0")")/ends.sh"

times=${REPLACEMENTS:-$([ "${MOAT_SOAK:-0}" = 1 ] && echo 500 || echo 50)}
same=$MOAT_BUILD/datapath/libmoat-engine.so
other=$MOAT_BUILD/tests/system/libother_engine.so
files=("$other" "$other" "$same" "$same" "$other" "$same") # every way, the same twice too

# What the switch could not deliver because the guest did not empty its ring; known every 5 s.
undelivered() { host_vsctl A get Interface "vhu-$1" statistics:ovs_tx_failure_drops; }
got_all() { # GUEST NUMBER
    [ $(($(guest_field "$1" count udp-count 7001) + $(undelivered "$1") - ${undelivered_before[$1]})) -ge "$2" ]
}

engine() { ctl A --format json engine show | jq -r ".$1"; }

done_times=0
waited=()
# replace TIMES TEXT: so often, each time by the next file.
replace() {
    local n failed=${#failures[@]} answer
    for ((n = 0; n < $1; n++)); do
        if ! answer=$(ctl A --format json engine replace "${files[done_times % ${#files[@]}]}" 2>"$TEST_TMP/why"); then
            check "replacement $done_times, $2" cat "$TEST_TMP/why" /nonexistent
            continue
        fi
        done_times=$((done_times + 1))
        waited+=("$(jq .packets_waited_us <<<"$answer")")
        [ "$(jq .replacements <<<"$answer")" = $done_times ] ||
            check_equal "replacement $done_times: engines before" "$(jq .replacements <<<"$answer")" $done_times
        if ! same_sessions >"$TEST_TMP/lost"; then
            check "replacement $done_times: the same sessions" cat "$TEST_TMP/lost" /nonexistent
        fi
    done
    check_equal "$1 replacements, $2: those that failed, or after which something was lost" $((${#failures[@]} - failed)) 0
    check_equal "$1 replacements, $2: forbidden probes that arrived" "$(arrived)" 0
    check_equal "$1 replacements, $2: engines before this one" "$(engine replacements)" $done_times
}

# refused PATTERN FILE: not taken, and nothing has changed.
refused() {
    local pattern=$1 before
    before=$(engine file)
    if ctl A engine replace "$2" >"$TEST_TMP/out" 2>&1; then return 1; fi
    cat "$TEST_TMP/out"
    grep -qE "$pattern" "$TEST_TMP/out" && [ "$(engine file)" = "$before" ] && same_sessions
}

system_test
part "one host, web and db, established connections, new ones, and probes"
ends_start
declare -A undelivered_before
for end in web db; do undelivered_before[$end]=$(undelivered $end); done
ends_probe
check_equal "engines before this one" "$(engine replacements)" 0
check_equal "its file" "$(engine file)" "$same"

part "what does not take over"
check "no file" refused 'No such file' "$TEST_TMP/nothing.so"
check "not an engine" refused 'not a Moat engine' "$MOAT_BUILD/datapath/libmoat.so"
cp "$same" "$TEST_TMP/open.so"
chmod 666 "$TEST_TMP/open.so"
check "text" refused 'not a Moat engine' /etc/passwd
check "a file that others may write to" refused 'nobody else may write' "$TEST_TMP/open.so"
check_equal "engines before this one" "$(engine replacements)" 0

third=$((times / 3))
part "the agent is there, and has nothing to say"
replace $third "with an agent"

part "the agent publishes"
ends_publish
replace $third "while policies are published"
ends_published 10

part "the agent is dead"
moat_agent_stop A KILL
replace $((times - 2 * third)) "without an agent"
moat_agent_start A

part "what is left"
printf 'microseconds that packets had to wait: %s\n' "$(printf '%s\n' "${waited[@]}" | sort -n |
    awk '{v[NR] = $1} END {printf "median %d, most %d of %d replacements", v[int((NR + 1) / 2)], v[NR], NR}')"
check_soon 30 "all enforce what is intended" moat_settled_now 2
for end in web db; do
    peer=$([ $end = web ] && echo db || echo web)
    sent=$(guest_field $end sent probe-stop yes)
    check_least "permitted probes that $end has sent" "$sent" $((rate * 5))
    check_soon 10 "and $peer has got all $sent, but for what its full ring had no place for" got_all "$peer" "$sent"
done
check "the same sessions" same_sessions
ends_go_on "after $times replacements"
check_equal "engines in memory" "$(grep -c 'r-xp.*libmoat-engine' "/proc/$(<"$(host_dir A)/ovs-vswitchd.pid")/maps")" 1
check_equal "mappings in memory" "$(grep -c "$(host_mapping A)" "/proc/$(<"$(host_dir A)/ovs-vswitchd.pid")/maps")" 1
check_equal "mappings beside it" "$(find "$(host_mapping A)".* 2>/dev/null | wc -l)" 0
check_equal "complaints" "$(log_lines "$(host_dir A)/ovs-vswitchd.log" 'SIG(SEGV|BUS|ABRT)|EMER|moat: .*(damaged|cannot start)')" 0

part "the switch is killed"
while [ "$(engine file)" != "$same" ]; do replace 1 "until it is the file that the switch starts with"; done
host_switch_restart A KILL
for end in web db; do wait_for 15 "$end to be connected" host_port_up A $end; done
check "the same sessions" same_sessions
check_equal "engines before this one" "$(engine replacements)" 0
ends_answer "after the restart"

part "control experiment: a lost session would be noticed"
ctl A session flush --vnic=web-nic
check "not the same sessions" not same_sessions
verdict
