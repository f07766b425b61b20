#!/bin/bash
# Nothing that policy forbids ever gets through. Numbered probes run all the time between db
# and two neighbours, both ways: from before db's port is there, through ports plugged again,
# changes of queues, MTU and PMD threads, migrations, and the end and restart of every program
# in every order. Along with each forbidden stream goes one that policy permits and that must
# come again after each event, so that silence means something; in the end policy permits the
# forbidden ones, too.
#
#   other    a VM: two slots judge, the sender's and the receiver's   UDP ports 7000, 7001
#   outside  no VM: db's slot alone judges, in both directions        UDP ports 7010, 7011
#
# Ports 7000, 7010 and ICMP are forbidden, 7001 and 7011 are permitted. Raw frames of a
# strange ethertype are refused whatever policy says.
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$(readlink -f "$0")")/lib.sh"

rate=${RATE:-200} # probes a second, of each stream

# --- probes ---

sinks() { # NAME PORT...
    local name=$1 port
    shift
    for port; do guest_cmd "$name" udp-sink "$port"; done
    guest_cmd "$name" icmp-sink
    guest_cmd "$name" raw-sink 0x88b5
}

probes() { # FROM TO FORBIDDEN_PORT PERMITTED_PORT
    local addr
    addr=$(moat_addr "$2")
    guest_cmd "$1" udp-probe-start "no-$2" "$addr" "$3" "$rate"
    guest_cmd "$1" udp-probe-start "yes-$2" "$addr" "$4" "$rate"
    guest_cmd "$1" icmp-probe-start "icmp-$2" "$addr" "$rate"
    guest_cmd "$1" raw-probe-start "raw-$2" 0x88b5 "$(moat_mac "$2")" 20
}

# udp STREAM: how many probes of it, "NAME PORT", have arrived.
udp() { guest_field "${1% *}" count udp-count "${1#* }"; }
permitted=("db 7001" "db 7011" "other 7001" "outside 7011")
forbidden_udp=("db 7000" "db 7010" "other 7000" "outside 7010")
ends=(db other outside)

# arrived: how many forbidden probes have arrived, all in all: "UDP ICMP raw".
arrived() {
    local end u=0 i=0 r=0
    for end in "${forbidden_udp[@]}"; do u=$((u + $(udp "$end"))); done
    for end in "${ends[@]}"; do
        i=$((i + $(guest_field "$end" count icmp-count)))
        r=$((r + $(guest_field "$end" count raw-count 0x88b5)))
    done
    echo "$u $i $r"
}
silent() { check_equal "$1: forbidden probes that arrived (UDP, ICMP, raw)" "$(arrived)" "0 0 0"; }

# more STREAM... : each of these streams brings ten more probes, from now on.
more() {
    local end before
    for end; do
        before=$(udp "$end")
        wait_for 20 "probes at $end" udp_beyond "$end" $((before + 9)) || return 1
    done
}
udp_beyond() { [ "$(udp "$1")" -gt "$2" ]; }

# flows EVENT: what is permitted arrives at every end, and nothing else has.
flows() {
    check "$1: permitted probes arrive, on all four ways" more "${permitted[@]}"
    silent "$1"
}

# stopped EVENT: permitted probes do not arrive either: the slot is blocked.
stopped() {
    local end before=0 after=0
    for end in "${permitted[@]}"; do before=$((before + $(udp "$end"))); done
    sleep 1
    for end in "${permitted[@]}"; do after=$((after + $(udp "$end"))); done
    check_equal "$1: permitted probes that arrive within a second" $((after - before)) 0
    silent "$1"
}

# refused HOST: did forbidden probes really come to db's slot there, from both sides?
refused() {
    check_least "db's slot on $1 has refused probes to db" "$(moat_drops "$1" db-nic to-vm default)" 1
    check_least "db's slot on $1 has refused probes from db" "$(moat_drops "$1" db-nic from-vm default)" 1
    check_least "db's slot on $1 has refused raw frames to db" "$(moat_drops "$1" db-nic to-vm l2-ethertype)" 1
}

# --- events ---

stop_program() { # switch|agent|database HOST
    case $1 in
    switch) host_switch_stop "$2" KILL ;;
    agent) moat_agent_stop "$2" KILL ;;
    database) central_stop KILL ;;
    esac
}
start_program() {
    case $1 in
    switch) host_switch_start "$2" ;;
    agent) moat_agent_start "$2" ;;
    database) central_start ;;
    esac
}

# restarts HOST FIRST SECOND THIRD: kills all three programs in this order and starts them in
# the same order. The switch does not need the others.
restarts() {
    local host=$1 program
    shift
    for program; do stop_program "$program" "$host"; done
    for program; do
        start_program "$program" "$host"
        [ "$program" != switch ] || flows "restart of $* on $host, after that of the switch"
    done
    check_soon 30 "restart of $* on $host: all enforce what is intended" moat_settled_now 2
    flows "restart of $* on $host"
}

replug() { # HOST: deletes db's port and plugs it again, without an agent
    moat_agent_stop "$1"
    host_port_del "$1" db
    guest_port_add "$1" db
    wait_for 15 "db to be connected again" host_port_up "$1" db
    stopped "port plugged again on $1 without an agent"
    moat_agent_start "$1"
    flows "agent started on $1"
}

pmd_threads() { host_appctl "$1" dpif-netdev/pmd-rxq-show | grep -c '^pmd thread'; }
mtu() { host_vsctl "$1" get interface vhu-db mtu; }
queues() { host_appctl "$1" dpif-netdev/pmd-rxq-show | grep -cE 'port: vhu-db +queue-id: +[0-9]+ \(enabled\)'; }

# shapes HOST: queues, MTU, PMD threads.
shapes() {
    local mask
    guest_cmd db nic-queues 2
    check_soon 10 "db uses two pairs of queues" is 2 queues "$1"
    flows "two pairs of queues"
    guest_cmd db nic-queues 1
    check_soon 10 "db uses one pair of queues" is 1 queues "$1"
    flows "one pair of queues"
    host_vsctl "$1" set interface vhu-db mtu_request=2000
    check_soon 10 "db's port has an MTU of 2000" is 2000 mtu "$1"
    flows "another MTU"
    mask=$(host_vsctl "$1" get Open_vSwitch . other_config:pmd-cpu-mask)
    host_vsctl "$1" set Open_vSwitch . other_config:pmd-cpu-mask=3
    check_soon 10 "two PMD threads" is 2 pmd_threads "$1"
    flows "two PMD threads"
    host_vsctl "$1" set Open_vSwitch . "other_config:pmd-cpu-mask=$mask"
    check_soon 10 "one PMD thread" is 1 pmd_threads "$1"
    flows "one PMD thread"
}

system_test
part "two hosts, other on A, the machine outside, policy; db's port is not there yet"
moat_start A B
moat_vm other 10.0.0.2
moat_vm db 10.0.0.3
outside_start A 10.0.0.99
GUEST_QUEUES=2 guest_start A db "$(guest_socket A db)" "$(moat_mac db)"
guest_ids db db-nic "attached-mac=$(moat_mac db)"
moat_guests A other
rules() { # PORTS
    cat <<END
policy "no leak" version 1
group db = vm "db"
tier t {
    allow from any to db service $1
    allow from db to any service $1
}
default drop
END
}
rules "udp 7001, udp 7011" | policy closed
neighbours other db
neighbours outside db
sinks other 7000 7001
sinks outside 7010 7011
probes other db 7000 7001
probes outside db 7010 7011

part "db's port is created, and there is no agent"
moat_agent_stop A
guest_await_socket A db
guest_port_add A db
guest_wait_boot db
guest_cmd db ip 10.0.0.3/24
neighbours db other outside
sinks db 7000 7001 7010 7011
probes db other 7000 7001
probes db outside 7010 7011
wait_for 15 "db's port to be up" host_port_up A db
stopped "port created without an agent"
moat_agent_start A
flows "the first agent"
refused A

part "queues, MTU, PMD threads; the port plugged again; the local database"
export GUEST_QUEUES=2
shapes A
replug A
host_ovsdb_stop A KILL
host_ovsdb_start A
flows "restart of the local database"

part "db moves to B"
wait_for 20 "both vNICs to enforce policy" moat_settled_now 2
moat_migrate db A B >/dev/null
flows "migration to B"
refused B
restarts B switch agent database
restarts B agent database switch
restarts B database switch agent
replug B

part "db moves back to A"
wait_for 20 "both vNICs to enforce policy" moat_settled_now 2
moat_migrate db B A >/dev/null
flows "migration to A"
restarts A switch database agent
restarts A database agent switch
restarts A agent switch database
refused A

part "positive control: the forbidden streams, permitted"
silent "up to here"
rules "udp 7000-7011, icmp echo-request" | policy open
check "forbidden no longer, UDP probes arrive on all four ways" more "${forbidden_udp[@]}"
icmp_at() { guest_field "$1" count icmp-count; }
for end in "${ends[@]}"; do check_soon 10 "ICMP probes arrive at $end" at_least 10 icmp_at "$end"; done
check_equal "raw frames are still refused" "$(arrived | cut -d ' ' -f 3)" 0

part "positive control: the raw frames, without a firewall (MOAT_BYPASS=1)"
# shellcheck disable=SC2034
HOST_ENV=(MOAT_BYPASS=1)
host_switch_restart A KILL
raw_at() { guest_field "$1" count raw-count 0x88b5; }
for end in "${ends[@]}"; do check_soon 20 "raw frames arrive at $end" at_least 10 raw_at "$end"; done
verdict
