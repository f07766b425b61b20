# shellcheck shell=bash
# The management network: a namespace with a bridge at 10.99.0.1, where the central
# database lives; host number N has 10.99.0.(10+N) on its interface "mgmt".

MGMT_ADDR=10.99.0.1

# mgmt_ns: name of the management namespace.
mgmt_ns() { printf '%s-mgmt\n' "$TESTBED_ID"; }

# mgmt_exec COMMAND...: runs a command in it.
mgmt_exec() { ip netns exec "$(mgmt_ns)" "$@"; }

# netns_add NAME: a namespace with loopback and no IPv6 of its own (no stray packets).
netns_add() {
    ip netns add "$1"
    ip netns exec "$1" sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1
    ip -n "$1" link set lo up
}

# mgmt_start: makes the namespace and the bridge. Called by testbed_init.
mgmt_start() {
    local ns
    ns=$(mgmt_ns)
    netns_add "$ns"
    ip -n "$ns" link add br-mgmt type bridge forward_delay 0
    ip -n "$ns" addr add "$MGMT_ADDR/24" dev br-mgmt
    ip -n "$ns" link set br-mgmt up
}

# mgmt_attach NAMESPACE PORT ADDRESS: gives a namespace an interface on the bridge.
mgmt_attach() {
    local ns
    ns=$(mgmt_ns)
    ip -n "$ns" link add "$2" type veth peer name mgmt netns "$1"
    ip -n "$ns" link set "$2" master br-mgmt up
    ip -n "$1" addr add "$3/24" dev mgmt
    ip -n "$1" link set mgmt up
}

# mgmt_cut HOST / mgmt_mend HOST: takes a host off the management network, and back.
mgmt_cut() { ip -n "$(mgmt_ns)" link set "mg-$1" down; }
mgmt_mend() { ip -n "$(mgmt_ns)" link set "mg-$1" up; }
