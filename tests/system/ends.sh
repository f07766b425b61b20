# shellcheck shell=bash
# Two VMs of host A, web and db, with what a switch or an engine that ends must not harm: established
# connections, new ones all the time, and probes that policy permits and forbids. For tests that source
# lib.sh and then this.
#
#   idle    how many connections are idle; of the others one is busy, in one the server speaks
#   rate    probes a second, of each stream
#   syns    new connections a second
idle=${idle:-8} rate=${rate:-100} syns=${syns:-300}

ids=(busy speaks)
for ((i = 0; i < idle; i++)); do ids+=("idle$i"); done
conn() { guest_field web "$2" tcp-status "$1"; } # ID FIELD
received_more() { [ "$(conn "$1" received)" -gt "$2" ]; }

# ends_sessions: the established ones of these connections, at both vNICs, without what traffic
# or another policy changes.
ends_sessions() {
    ctl A --format json session list --proto tcp --state established |
        jq -S '[.[] | select(.local_port != 5003 and .remote_port != 5003) |
            {vnic, local, local_port, remote, remote_port, opened_by, local_state, remote_state}] | sort'
}
same_sessions() { diff <(printf '%s\n' "$shadow") <(ends_sessions); }
ends_settled() { [ "$(ends_sessions | jq length)" = $((2 * ${#ids[@]})) ]; }

# arrived: how many UDP and ICMP probes have that policy forbids.
arrived() {
    local end n=0
    for end in web db; do
        n=$((n + $(guest_field $end count udp-count 7000) + $(guest_field $end count icmp-count)))
    done
    echo $n
}

ends_rules() { # MORE
    cat <<END
policy "ends" version 1
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

# ends_start: the host, the VMs, and the connections.
ends_start() {
    local end i
    moat_start A
    moat_vm web 10.0.0.1 label role=web
    moat_vm db 10.0.0.3 label role=db
    moat_guests A web db
    ends_rules "" >"$TEST_TMP/one.moat"
    ends_rules ", tcp 6000" >"$TEST_TMP/other.moat"
    policy ends <"$TEST_TMP/one.moat"
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
}

# ends_probe: the probes and new connections begin. `shadow` is what there is of established ones.
ends_probe() {
    local pair
    for pair in "web 10.0.0.3" "db 10.0.0.1"; do
        guest_cmd "${pair% *}" udp-probe-start no "${pair#* }" 7000 "$rate"
        guest_cmd "${pair% *}" udp-probe-start yes "${pair#* }" 7001 "$rate"
        guest_cmd "${pair% *}" icmp-probe-start icmp "${pair#* }" "$rate"
    done
    # Each is a session at both vNICs, which a RST ends; ports come again.
    guest_cmd web shell "traffic syn-flood 10.0.0.3 5003 1000000 $syns >/dev/null 2>&1 &"
    check_soon 10 "sessions of the ${#ids[@]} connections, at two vNICs" ends_settled
    shadow=$(ends_sessions)
}

# ends_publish, ends_published LEAST: policies, one after the other, until it is enough; at least so many.
ends_publish() {
    ends_generation=$(moat_generation)
    (
        trap - ERR EXIT
        set +e
        while :; do
            moat_admin policy apply "$TEST_TMP/other.moat"
            moat_admin policy apply "$TEST_TMP/one.moat"
        done >"$TEST_TMP/published" 2>&1
    ) &
    ends_publisher=$!
}
ends_published() {
    kill "$ends_publisher"
    wait "$ends_publisher" 2>/dev/null || true
    check_least "policies published meanwhile" $(($(moat_generation) - ends_generation)) "$1"
    moat_admin policy apply "$TEST_TMP/one.moat" --wait 30 >/dev/null
    check_soon 30 "all enforce what is intended" moat_settled_now 2
}

# ends_go_on TEXT: all connections are as if nothing had happened. ends_answer: the idle ones do.
ends_answer() {
    local id
    for id in "${ids[@]}"; do
        [[ $id != idle* ]] || check_equal "$1: $id answers" "$(guest_field web state tcp-send "$id" 20000 2>&1)" open
    done
}
ends_go_on() {
    local id
    for id in busy speaks; do
        check_soon 30 "$1: $id goes on" received_more $id $(($(conn $id received) + 2))
    done
    ends_answer "$1"
    for id in "${ids[@]}"; do
        check_equal "$1: $id, state and records out of order" "$(conn "$id" state) $(conn "$id" out_of_order)" "open 0"
    done
}
