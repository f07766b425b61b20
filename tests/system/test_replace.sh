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

times=${REPLACEMENTS:-$([ "${MOAT_SOAK:-0}" = 1 ] && echo 500 || echo 50)}
rate=200 # forbidden and permitted probes a second, of each stream
syns=300 # new connections a second
idle=6
same=$MOAT_BUILD/datapath/libmoat-engine.so
other=$MOAT_BUILD/tests/system/libother_engine.so
files=("$other" "$other" "$same" "$same" "$other" "$same") # every way, the same twice too

ids=(busy speaks)
for ((i = 0; i < idle; i++)); do ids+=("idle$i"); done
conn() { guest_field web "$2" tcp-status "$1"; } # ID FIELD
received_more() { [ "$(conn "$1" received)" -gt "$2" ]; }

sessions() {
    ctl A --format json session list --proto tcp --state established |
        jq -S '[.[] | select(.local_port != 5003 and .remote_port != 5003) |
            {vnic, local, local_port, remote, remote_port, opened_by, local_state, remote_state}] | sort'
}
same_sessions() { diff <(printf '%s\n' "$shadow") <(sessions); }
settled() { [ "$(sessions | jq length)" = $((2 * ${#ids[@]})) ]; }

arrived() { # UDP and ICMP probes that policy forbids
    local end n=0
    for end in web db; do
        n=$((n + $(guest_field $end count udp-count 7000) + $(guest_field $end count icmp-count)))
    done
    echo $n
}

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
moat_start A
moat_vm web 10.0.0.1 label role=web
moat_vm db 10.0.0.3 label role=db
moat_guests A web db
rules() { # MORE
    cat <<END
policy "replace" version 1
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
policy replace <"$TEST_TMP/one.moat"
neighbours web db
neighbours db web
for end in web db; do
    guest_cmd $end udp-sink 7000
    guest_cmd $end udp-sink 7001
    guest_cmd $end icmp-sink
done
guest_cmd db tcp-listen 5004 idle
guest_cmd db tcp-listen 5001 busy
guest_cmd db tcp-listen 5002 server-speaks:20
guest_cmd web tcp-connect busy 10.0.0.3 5001 busy:20 >/dev/null
guest_cmd web tcp-connect speaks 10.0.0.3 5002 server-speaks >/dev/null
for ((i = 0; i < idle; i++)); do guest_cmd web tcp-connect "idle$i" 10.0.0.3 5004 idle >/dev/null; done
declare -A undelivered_before
for end in web db; do undelivered_before[$end]=$(undelivered $end); done
for pair in "web 10.0.0.3" "db 10.0.0.1"; do
    guest_cmd "${pair% *}" udp-probe-start no "${pair#* }" 7000 $rate
    guest_cmd "${pair% *}" udp-probe-start yes "${pair#* }" 7001 $rate
    guest_cmd "${pair% *}" icmp-probe-start icmp "${pair#* }" $rate
done
# Each is a session at both vNICs, which a RST ends; ports come again.
guest_cmd web shell "traffic syn-flood 10.0.0.3 5003 1000000 $syns >/dev/null 2>&1 &"
check_soon 10 "sessions of the ${#ids[@]} connections, at two vNICs" settled
shadow=$(sessions)
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
replace $third "while policies are published"
kill $publisher
wait $publisher 2>/dev/null || true
check_least "policies published meanwhile" $(($(moat_generation) - generation)) 10
moat_admin policy apply "$TEST_TMP/one.moat" --wait 30 >/dev/null
check_soon 30 "all enforce what is intended" moat_settled_now 2

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
for id in busy speaks; do
    check_soon 30 "$id goes on" received_more $id $(($(conn $id received) + 2))
done
for id in "${ids[@]}"; do
    [[ $id != idle* ]] || check_equal "$id answers" "$(guest_field web state tcp-send "$id" 20000 2>&1)" open
    check_equal "$id, state and records out of order" "$(conn "$id" state) $(conn "$id" out_of_order)" "open 0"
done
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
for id in "${ids[@]}"; do
    [[ $id != idle* ]] || check_equal "$id answers" "$(guest_field web state tcp-send "$id" 20000 2>&1)" open
done

part "control experiment: a lost session would be noticed"
ctl A session flush --vnic=web-nic
check "not the same sessions" not same_sessions
verdict
