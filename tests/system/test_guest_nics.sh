#!/bin/bash
# What guests' NICs can do goes through the filter as it came: several pairs of queues, jumbo
# frames, datagrams in fragments, large segments without checksums (TSO). Bulk TCP between two
# guests of one host, both ways at once and checked byte by byte, through both slots; what
# policy forbids stays refused in each configuration. The switch's and the slots' own figures
# must show that it was so: several queues used, packets larger than the MTU.
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$(readlink -f "$0")")/lib.sh"

export GUEST_TIMEOUT_MS=60000
mb=${MB:-4} # megabytes of each bulk transfer, each way
bytes=$((mb << 20))

# --- counts ---

# ses VNIC PORT: the session of web's TCP port PORT as a slot has it: packets and bytes from web
# to db, and back.
ses() {
    ctl A --format json session list "--vnic=$1" --proto=tcp "--port=$2" |
        jq -r --arg v "$1" '"\(length) " + (.[0] | if $v == "web-nic"
            then "\(.packets_from_vm) \(.bytes_from_vm) \(.packets_to_vm) \(.bytes_to_vm)"
            else "\(.packets_to_vm) \(.bytes_to_vm) \(.packets_from_vm) \(.bytes_from_vm)" end)'
}
count() { ctl A session list "--vnic=$1" --proto=tcp "--port=$2" --count; }

# between TEXT GOT LEAST MOST
between() { check "$1: $2 (from $3 to $4 expected)" eval "[ $2 -ge $3 ] && [ $2 -le $4 ]"; }

# near A B MOST: numbers that differ by so much at most.
near() { [ $(($1 - $2)) -le "$3" ] && [ $(($2 - $1)) -le "$3" ]; }

# sessions_agree PORT PACKETS BYTES: both slots' counts of that session differ by no more than that. What
# is under way, as the end of the connection, has been counted by one of them only.
sessions_agree() {
    local w d i
    read -ra w < <(ses web-nic "$1")
    read -ra d < <(ses db-nic "$1")
    echo "web's slot: ${w[*]}; db's slot: ${d[*]}"
    [ "${w[0]}${d[0]}" = 11 ] || return 1
    for i in 1 3; do near "${w[i]}" "${d[i]}" "$2" && near "${w[i + 1]}" "${d[i + 1]}" "$3" || return 1; done
}

# tally VNIC: how many packets a slot has let out, and how many it has met on their way in.
# both_tallies: of web, then of db from the other side. quiet: until nothing moves, sets `tallies`.
tally() {
    ctl A --format json slot show "$1" | jq -r '.[0] | (.counters | [."from-vm.packets", ."to-vm.packets"]) as [$out, $in] |
        "\($out) \($in + ([.drops[] | select(.direction == "to-vm") | .packets] | add // 0))"'
}
both_tallies() {
    local out in
    read -r out in < <(tally db-nic)
    echo "$(tally web-nic) $in $out"
}
quiet() {
    local before
    tallies=$(both_tallies)
    until [ "${before:-}" = "$tallies" ]; do before=$tallies tallies=$(both_tallies); done
}

# all_arrived TALLIES: of what either slot has let out since, all has come to the other one.
all_arrived() {
    local b n
    read -ra b <<<"$1"
    read -ra n < <(both_tallies)
    echo "from web, to web, to db, from db: ${b[*]} before, ${n[*]} now"
    [ $((n[0] - b[0])) = $((n[2] - b[2])) ] && [ $((n[1] - b[1])) = $((n[3] - b[3])) ]
}

# bulk CONFIGURATION ADDRESS CONNS LEAST MOST: transfers, from both CPUs of web at once, CONNS
# connections each; LEAST and MOST bound the mean size of the frames of each. The slots count all
# packets exactly; a session's count may miss some where several queues, that is threads, serve
# one direction of it (datapath/session.h).
bulk() {
    local config=$1 addr=$2 conns=$3 least=$4 most=$5 command answer port n up up_bytes down down_bytes off=8 tallies
    [ "$config" != plain ] || off=0
    quiet
    command="traffic bulk $addr 5001 $bytes $bytes $conns"
    answer=$(guest_cmd web shell "taskset 1 $command >/tmp/1 2>&1 & taskset 2 $command; wait; cat /tmp/1") || true
    check_equal "$config: wrong bytes of a bulk transfer both ways" "$(jq -s 'map(.wrong) | add' <<<"$answer" 2>/dev/null || echo "$answer")" 0
    check_equal "$config: right bytes" "$(jq -s 'map(.right) | add' <<<"$answer" 2>/dev/null)" $((4 * conns * bytes))
    check_soon 10 "$config: what one slot lets out comes to the other, packet by packet" all_arrived "$tallies"
    for port in $(jq '.ports[]' <<<"$answer"); do
        check_soon 10 "$config: both slots have counted the same of port $port (but for $off packets)" \
            sessions_agree "$port" $off $((off * 65600))
        read -r n up up_bytes down down_bytes < <(ses web-nic "$port")
        check_equal "$config: sessions of port $port at web's slot" "$n" 1
        # Each frame has 66 bytes of headers at least, and some bytes go twice.
        check_least "$config: bytes from web without headers" $((up_bytes - 54 * up)) "$bytes"
        check_most "$config: bytes from web" "$up_bytes" $((bytes + bytes / 4 + 128 * up))
        between "$config: mean size of frames, from web and to it" $(((up_bytes + down_bytes) / (up + down))) "$least" "$most"
    done
}

# refused CONFIGURATION: what policy forbids.
refused() {
    check_equal "$1: TCP that policy drops" "$(traffic web tcp 10.0.0.3 5999 1000)" timeout
    check_equal "$1: TCP that policy rejects" "$(traffic web tcp 10.0.0.3 5998 5000)" ECONNREFUSED
    check_equal "$1: UDP that policy rejects" "$(traffic web udp 10.0.0.3 5998 100 5000)" EHOSTUNREACH
    check_equal "$1: the other way, TCP" "$(traffic db tcp 10.0.0.1 5001 1000)" timeout
}

# fragments CONFIGURATION SIZE: datagrams that do not fit one frame.
fragments() {
    local before
    before=$(moat_counter A db-nic fragments.passed)
    check_equal "$1: UDP datagrams of $2 bytes and their echo" "$(traffic web udp 10.0.0.3 5001 "$2" 5000)" ok
    check_equal "$1: the same over IPv6" "$(traffic web udp fd00::3 5001 "$2" 5000)" ok
    check_equal "$1: ping with $2 bytes" "$(traffic web ping 10.0.0.3 "$2" 5000)" ok
    check_equal "$1: the same over IPv6" "$(traffic web ping fd00::3 "$2" 5000)" ok
    check_least "$1: fragments that passed at db's slot" $(($(moat_counter A db-nic fragments.passed) - before)) 16
    before=$(moat_drops A web-nic from-vm fragment)
    check_equal "$1: UDP datagrams of $2 bytes that policy drops" "$(traffic web udp 10.0.0.3 5999 "$2" 1000)" timeout
    check_equal "$1: ping from db that policy drops" "$(traffic db ping 10.0.0.1 "$2" 1000)" timeout
    check_least "$1: later fragments refused at web's slot" $(($(moat_drops A web-nic from-vm fragment) - before)) 1
}

# queues VM rx|tx: packets of its two queues. large VM rx|tx: those over 1518 bytes, of the first one.
queues() { echo "$(host_port_stat A "$1" "$2_q0_good_packets") $(host_port_stat A "$1" "$2_q1_good_packets")"; }
large() { host_port_stat A "$1" "$2_q0_size_1519_max_packets"; }

# used TEXT BEFORE AFTER: both queues were.
used() {
    check_least "$1, first queue, packets" $((${3% *} - ${2% *})) 100
    check_least "$1, second queue, packets" $((${3#* } - ${2#* })) 100
}

serve() {
    traffic db serve 5001
    traffic db udp-echo 5001
    guest_cmd db tcp-listen 5002 idle
    guest_cmd db tcp-listen 5999 idle
    guest_cmd web tcp-listen 5001 idle
}

system_test
part "one host, two PMD threads, two guests with two pairs of queues"
# shellcheck disable=SC2034
HOST_PMD_MASK=3
export GUEST_QUEUES=2 GUEST_CPUS=2
moat_start A
moat_vm web 10.0.0.1,fd00::1
moat_vm db 10.0.0.3,fd00::3
moat_guests A web db
policy nics <<'END'
policy "nics" version 1
tier t {
    allow from vm "web" to vm "db" service tcp 5001-5002, udp 5001, icmp echo-request, icmp6 echo-request
    reject from any to any service tcp 5998, udp 5998
}
default drop
END
serve

part "plain: one pair of queues, MTU 1500"
guest_cmd web nic-queues 1
guest_cmd db nic-queues 1
bulk plain 10.0.0.3 1 200 1514
for i in 1 2 3; do guest_cmd web tcp-connect "c$i" 10.0.0.3 5002 idle >/dev/null; done
check_equal "three connections are three sessions at web's slot" "$(count web-nic 5002)" 3
check_equal "and at db's" "$(count db-nic 5002)" 3
check_equal "plain: frames over 1518 bytes" "$(large web rx) $(large db tx)" "0 0"
refused plain
fragments plain 3000

part "two pairs of queues"
guest_cmd web nic-queues 2
guest_cmd db nic-queues 2
more_queues() { [ "$(host_appctl A dpif-netdev/pmd-rxq-show | grep -cE "port: vhu-$1 +queue-id: +[0-9]+ \(enabled\)")" = 2 ]; }
for vm in web db; do check_soon 10 "the switch polls both queues of $vm" more_queues "$vm"; done
rx=$(queues web rx) tx=$(queues db tx)
bulk mq 10.0.0.3 2 200 1514
used "queues of what web sends" "$rx" "$(queues web rx)"
used "queues of what db gets" "$tx" "$(queues db tx)"
refused mq
fragments mq 3000

part "jumbo frames: MTU 9000"
guest_mtu web 9000
guest_mtu db 9000
bulk jumbo 10.0.0.3 1 1515 9014
refused jumbo
fragments jumbo 20000
check_equal "jumbo: ping with 8000 bytes, in one frame" "$(traffic web ping 10.0.0.3 8000 5000)" ok

part "TSO: another life of the switch, guests that leave segments and checksums to it"
guest_stop web
guest_stop db
export HOST_TSO=true
host_switch_restart A
for vm in web db; do host_port_del A "$vm"; done
GUEST_NIC=,mrg_rxbuf=off moat_guests A web
moat_guests A db
check_soon 20 "both enforce what is intended" moat_settled_now 2
serve
for vm in web db; do check_soon 10 "the switch polls both queues of $vm" more_queues "$vm"; done
bulk TSO 10.0.0.3 1 2000 65600
bulk "TSO over IPv6" fd00::3 1 2000 65600
check_least "TSO: segments that the switch took from web, beyond any MTU" "$(large web rx)" 50
check_least "TSO: the same that it gave to db" "$(large db tx)" 50
refused TSO
fragments TSO 3000
verdict
