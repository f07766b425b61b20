#!/bin/bash
# The firewall needs nobody. With the agent killed, then the database too, no verdict changes.
# With both dead the switch itself is killed and started again: slots, rulesets and sessions
# are as before, open connections go on under strict TCP, verdicts are identical. And when
# agent and database come back, nothing changes either.
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$(readlink -f "$0")")/lib.sh"

# tcp FROM TO PORT, ping FROM TO: one line of verdicts.
tcp() { echo "$1 -> $2, TCP $3: $(guest_cmd "$1" tcp-try "$(moat_addr "$2")" "$3" 1000 2>&1)"; }
ping() { echo "$1 -> $2, answers to a ping: $(guest_field "$1" received ping "$(moat_addr "$2")" 1 1000 2>&1)"; }

# verdicts: of both slots in both directions, and of db's slot alone.
verdicts() {
    tcp web db 5001
    tcp web db 5999
    tcp db web 6001
    tcp outside db 5005
    tcp outside db 5001
    ping web db
    ping db web
    ping outside db
}
wanted="web -> db, TCP 5001: ok
web -> db, TCP 5999: timeout
db -> web, TCP 6001: timeout
outside -> db, TCP 5005: ok
outside -> db, TCP 5001: timeout
web -> db, answers to a ping: 1
db -> web, answers to a ping: 0
outside -> db, answers to a ping: 0"

same_verdicts() { diff <(printf '%s\n' "$wanted") <(verdicts); }

# slots: what they enforce. sessions: those of the three open connections, of both vNICs.
slots() { ctl A --format json slot list | jq -S '[.[] | {vnic, state, connected, running, epoch, generation, digest, rules}]'; }
sessions() {
    ctl A --format json session list --proto tcp --state established |
        jq -S '[.[] | select(.local_port == 5001 or .local_port == 5002 or .local_port == 5003 or
            .remote_port == 5001 or .remote_port == 5002 or .remote_port == 5003) |
            {vnic, local, local_port, remote, remote_port, opened_by, rule, generation, local_state, remote_state}] | sort'
}
oldest() { ctl A --format json session list --vnic db-nic --proto tcp --state established | jq 'map(.age_s) | max | floor'; }

ids=(busy speaks idle)
conn() { guest_field web "$2" tcp-status "$1"; } # ID FIELD
received_more() { [ "$(conn "$1" received)" -gt "$2" ]; }

# go_on EVENT: all three connections are as if nothing had happened.
go_on() {
    local id
    for id in busy speaks; do
        check_soon 15 "$1: $id goes on" received_more $id $(($(conn $id received) + 2))
    done
    check_equal "$1: idle answers" "$(guest_field web state tcp-send idle 10000 2>&1)" open
    for id in "${ids[@]}"; do
        check_equal "$1: $id, state and records out of order" "$(conn "$id" state) $(conn "$id" out_of_order)" "open 0"
    done
}

system_test
part "one host, web and db; the machine outside"
moat_start A
moat_vm web 10.0.0.1 label role=web
moat_vm db 10.0.0.3 label role=db
outside_start A 10.0.0.99
moat_guests A web db
policy shop <<'END'
policy "restart" version 1
group web = vms labelled role=web
group db = vms labelled role=db
tier t {
    allow from web to db service tcp 5001-5003, icmp echo-request
    allow from any to db service tcp 5005
}
default drop
settings for any { tcp strict; on-missing-state block; on-missing-policy block }
END
guest_cmd db tcp-listen 5001 busy
guest_cmd db tcp-listen 5002 server-speaks:50
guest_cmd db tcp-listen 5003 idle
guest_cmd db tcp-listen 5005 idle
guest_cmd db tcp-listen 5999 idle
guest_cmd web tcp-listen 6001 idle
guest_cmd web tcp-connect busy 10.0.0.3 5001 busy:50 >/dev/null
guest_cmd web tcp-connect speaks 10.0.0.3 5002 server-speaks >/dev/null
guest_cmd web tcp-connect idle 10.0.0.3 5003 idle >/dev/null
check "verdicts are those of the policy" same_verdicts
slots_before=$(slots)
sessions_before=$(sessions)
check_equal "sessions of the three connections, at two vNICs" "$(jq length <<<"$sessions_before")" 6

part "kill -9 of the agent"
moat_agent_stop A KILL
check "the same verdicts" same_verdicts
go_on "without the agent"

part "kill -9 of the database"
central_stop KILL
check "the same verdicts" same_verdicts
go_on "without agent and database"
check_same "the slots enforce the same" "$(slots)" "$slots_before"
check_same "the same sessions" "$(sessions)" "$sessions_before"

part "kill -9 of the switch, and its restart, with agent and database dead"
age=$(oldest)
host_switch_restart A KILL
check_soon 15 "web is connected to the new switch" host_port_up A web
check_soon 15 "db is connected to the new switch" host_port_up A db
check_same "the same sessions" "$(sessions)" "$sessions_before"
check_least "the oldest session has not become younger: age in s" "$(oldest)" "$age"
check_same "the slots enforce the same" "$(slots)" "$slots_before"
check "the new switch has recovered it" says 'engine .* 2 slots and [1-9][0-9]* sessions recovered' cat "$(host_dir A)/ovs-vswitchd.log"
go_on "after the restart"
check "the same verdicts" same_verdicts

part "once more, in order (SIGTERM)"
host_switch_restart A TERM
check_soon 15 "db is connected to the new switch" host_port_up A db
go_on "after another restart"
check_same "the same sessions" "$(sessions)" "$sessions_before"

part "database and agent come back"
central_start
moat_agent_start A
check_soon 30 "all enforce what is intended" moat_settled_now 2
check_same "the slots enforce the same" "$(slots)" "$slots_before"
check_same "the same sessions" "$(sessions)" "$sessions_before"
go_on "with agent and database"
check "the same verdicts" same_verdicts

part "control experiment: without their sessions the connections end"
ctl A session flush --vnic=db-nic
before=$(conn busy received)
check "idle: no answer" not guest_cmd web tcp-send idle 2000
check_most "busy: answers" $(($(conn busy received) - before)) 1
check_least "segments of no session that were refused" "$(moat_drops A db-nic to-vm tcp-no-session)" 1
verdict
