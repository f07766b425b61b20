# shellcheck shell=bash
# The demo's first part: build, hosts, database, agents, VMs. And its last: nothing is left.

# machine: what the demo must leave as it is: network devices, the machine's own switch, boot.
machine() {
    ip -br link
    ip -br addr
    pgrep --ns $$ --nslist net '^ovs-vswitchd' || true
    find /etc/openvswitch /etc/default/grub /etc/network /etc/rc?.d /boot -type f -printf '%p %s %T@\n' 2>/dev/null | sort || true
}

build_all() {
    headline "1. Two hosts, a database, three VMs"
    if [ -n "$fast" ]; then
        say "Using what is built already (--fast)."
        return
    fi
    say "First the machine is prepared (packages, hugepages, libopenvswitch) and Moat is built. This takes" \
        "a few minutes the first time."
    quietly "scripts/setup" "$root/scripts/setup"
    quietly "scripts/build" "$root/scripts/build"
}

start_all() {
    say "" "Each host is a network namespace with a stock ovs-vswitchd on DPDK, libmoat.so preloaded into it, and" \
        "the agent moatd. The Moat database is a stock ovsdb-server. Agents and database know each other by" \
        "certificates, made just now. The VMs are real: QEMU guests on native vhost-user ports."
    moat_init
    trap on_exit EXIT # it ends with what testbed_init wants
    quietly "starting the database, host A and host B" moat_start A B
    quietly "putting three VMs into the inventory" inventory
    quietly "booting web, other and db on host A" moat_guests A web other db
    start_stranger
    admin host list
    admin vm list
    say "" "A VM starts with its slot blocked. Then the agent claims the slot; without a policy the VM is in" \
        "quarantine."
    claim_soon 20 "three vNICs enforce what is intended" moat_settled_now 3
    on A slot list
    on A status
    claim_equal "vNICs that differ from what is intended" "$(ctl A --format json status | jq -r .cluster.vnics_different)" 0
}

inventory() {
    moat_vm web 10.0.0.1 label role=web
    moat_vm other 10.0.0.2
    moat_vm db 10.0.0.3 label role=db
}

# The stranger is no VM: a machine on the same wire, 10.0.0.99. Here it is host A's own network
# stack on the bridge. No slot judges what it sends: only the receiver's does.
start_stranger() {
    ip -n "$(host_ns A)" addr add 10.0.0.99/24 dev br0
    ip -n "$(host_ns A)" link set br0 up
}

# try WHO ADDRESS PORT: opens a TCP connection; prints ok, refused or timeout.
try() {
    if [ "$1" != stranger ]; then
        guest_cmd "$1" tcp-try "$2" "$3" "$try_ms"
    elif host_exec A timeout "$((try_ms / 1000 + 1))" bash -c ": </dev/tcp/$2/$3" 2>/dev/null; then
        echo ok
    elif [ $? = 124 ]; then
        echo timeout
    else
        echo refused
    fi
}
try_ms=2000

# attempt WHO TO PORT WANTED [WORDS]: shows an attempt to connect to a VM and claims its result.
attempt() {
    local got
    got=$(try "$1" "$(moat_addr "$2")" "$3" 2>&1) || true
    claim_equal "$1 -> $2, TCP port $3${5:+ ($5)}" "$got" "$4"
}

# pings WHO TO WANTED: one ping.
pings() {
    local got
    got=$(guest_field "$1" received ping "$(moat_addr "$2")" 1 "$try_ms" 2>&1) || true
    claim_equal "$1 -> $2, answers to a ping" "$got" "$3"
}

keep_all() {
    local tb="$root/scripts/testbed/tb $TESTBED_DIR"
    headline "Left running"
    cat <<END
A shell with all functions of the test-bed:
    $tb
moatctl on host A (or B), and beside the database:
    $tb ctl A slot list
    $tb ctl B session list
    $tb moat_admin event list -f
Guests (help lists what they can do), the move of a VM, the agent:
    $tb guest_cmd web tcp-try 10.0.0.3 5432
    $tb moat_migrate db $(guest_host db) $([ "$(guest_host db)" = A ] && echo B || echo A)
    $tb moat_agent_ctl A list-commands
The same moatctl without these scripts, on host A:
    ip netns exec $(host_ns A) env $(moat_ctl_env A | tr '\n' ' ')$(moat_program moatctl) slot list
Logs are in $TESTBED_DIR. End it all:
    $tb testbed_cleanup
END
}

end_all() {
    local dir=$TESTBED_DIR id=$TESTBED_ID
    headline "10. Cleaning up"
    quietly "ending guests, agents, switches, databases" testbed_cleanup
    claim "no process of the demo is left" not pgrep -f -- "$dir/"
    claim "no network namespace is left" not says "^$id-" ip netns list
    claim "no file in hugepages is left" not says "-$id-" ls /dev/hugepages
    [ -n "${TESTBED_KEEP_LOGS:-}" ] || claim "its folder $dir is gone" [ ! -e "$dir" ]
    machine >after
    claim "the machine's network, Open vSwitch and boot configuration are as before" cmp before after
    diff before after | sed 's/^/    /' || true
}
